//! Realistic traffic against any running digest service, and the proof that every digest held what it must.
//!
//! | file | what it is |
//! |---|---|
//! | `pacer` | when which message is due, pure |
//! | `judge` | what every digest must hold, pure |
//! | `link` | the two connections: publishing, receiving, what the broker lost |
//! | `summary` | what a run did, as numbers |
//!
//! ```text
//! traffic ─► due by the pace? ─► its user waits? ─► judge ─► link ─► the broker ─► the service
//!                                 └ held back ┘        ▲                              │
//!                                     ▲ released ──────┴──────── digests ◄────────────┘
//! ```
//!
//! One task does all of it, a batch at a time, so nothing here is shared. How the judge can be exact for every
//! service is said in [`judge`]. What it does not judge:
//!
//! - **Without a stream a service may drop what it has no room for.** A checked run keeps so little ahead of the
//!   last request that was answered ([`MAX_AHEAD`]) that no service needs more room than that.
//! - **After a lost connection nobody knows what arrived.** A checked run ends then, without a verdict and not
//!   well; so it does when the stream dropped a message. A run that is not checked goes on, and counts it.
//! - **A digest is missing when none at all came for as long as the timeout.** The specification gives no time; a
//!   service that works off a backlog is not wrong.

pub mod judge;
mod link;
pub mod pacer;
pub mod summary;

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::{HeaderValue, Message as Incoming};
use bytes::BytesMut;
use tokio::sync::watch;
use tokio::time::{Instant as Clock, sleep_until};

use self::judge::{Arrival, Effect, Judge, Verdict as Ruling, Wrong};
use self::link::{Arrived, Link};
use self::pacer::Pace;
use self::summary::{
    Absorbed, Broker, Finding, Input, Latencies, Published, Received, Sent, Summary, Verdict,
};
use super::messages::Digest;
use super::oracle::Fate;
use super::traffic::{Message, Names, Recipe, Traffic, What};
use crate::bus::connection::Connection;
use crate::bus::{BusError, wire};

/// How many messages are published between two looks at what arrived.
const BATCH: u64 = 256;
/// How many messages may be held back for users whose digests are owed.
const MAX_HELD: usize = 1 << 16;
/// How far a checked run over core NATS gets ahead of the last request that was answered, in messages.
pub const MAX_AHEAD: u64 = 1 << 14;
/// How often the observer is told.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// After so long without a digest, a run that does not know what is owed ends.
const QUIET: Duration = Duration::from_secs(1);
/// How many messages of a user stand beside what was wrong.
const NUM_SHOWN: usize = 16;

/// When a run ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Limit {
    /// After so many messages.
    Count(u64),
    /// After so long.
    Duration(Duration),
}

/// What a run is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What its messages are made of.
    pub recipe: Recipe,
    /// How fast they are published.
    pub pace: Pace,
    /// When it ends.
    pub limit: Limit,
    /// Whether every digest is judged.
    pub is_checked: bool,
    /// How long to wait for the broker, and for a digest while one is owed.
    pub timeout: Duration,
}

/// Runs it: publishes, receives, judges. `observe` is told some times a second; `stop` ends the publishing.
///
/// # Errors
/// When the broker cannot be used at the start. What goes wrong later is in the summary.
pub async fn run(
    settings: Settings,
    publishing: Connection,
    receiving: Connection,
    stop: watch::Receiver<bool>,
    observe: &mut (dyn FnMut(&Summary) + Send),
) -> Result<Summary, BusError> {
    let link = Link::open(publishing, receiving, settings.timeout).await?;
    let mut run = Run::new(settings, link, stop, observe);
    let ended = run.play().await;
    Ok(run.into_summary(ended))
}

/// Why a run ended before its time.
enum Cut {
    /// A digest was wrong.
    Wrong(Box<Wrong>),
    /// Something of ours may be lost.
    Lost(String),
}

impl From<Box<Wrong>> for Cut {
    fn from(wrong: Box<Wrong>) -> Self {
        Self::Wrong(wrong)
    }
}

/// Who looks at the digests.
enum Reader {
    Judge(Box<Judge>),
    /// Only counts: when each user asked for the last time, where no digest came since.
    Counter(Vec<Option<Duration>>),
}

struct Run<'a> {
    settings: Settings,
    names: Names,
    traffic: Traffic,
    link: Link,
    reader: Reader,
    stop: watch::Receiver<bool>,
    observe: &'a mut (dyn FnMut(&Summary) + Send),
    /// How many messages it will have, where that is known.
    planned: Option<u64>,
    num_made: u64,
    /// Users who need not wait any more.
    freed: VecDeque<u32>,
    began: Clock,
    last_made: Duration,
    last_published: Duration,
    last_digest: Duration,
    last_told: Duration,
    published: Published,
    received: Received,
    absorbed: Absorbed,
    latencies: Latencies,
}

impl<'a> Run<'a> {
    fn new(
        settings: Settings,
        link: Link,
        stop: watch::Receiver<bool>,
        observe: &'a mut (dyn FnMut(&Summary) + Send),
    ) -> Self {
        let names = Names::new(&settings.recipe);
        let users = settings.recipe.users;
        let reader = if settings.is_checked {
            Reader::Judge(Box::new(Judge::new(
                names.clone(),
                users,
                !link.has_stream(),
            )))
        } else {
            Reader::Counter(vec![None; users as usize])
        };
        let planned = match settings.limit {
            Limit::Count(count) => Some(count),
            Limit::Duration(duration) => settings.pace.num_within(duration),
        };
        Self {
            traffic: Traffic::new(settings.recipe.clone()),
            names,
            link,
            reader,
            stop,
            observe,
            planned,
            num_made: 0,
            freed: VecDeque::new(),
            began: Clock::now(),
            last_made: Duration::ZERO,
            last_published: Duration::ZERO,
            last_digest: Duration::ZERO,
            last_told: Duration::ZERO,
            published: Published::default(),
            received: Received::default(),
            absorbed: Absorbed::default(),
            latencies: Latencies::new(),
            settings,
        }
    }

    async fn play(&mut self) -> Result<(), Cut> {
        while !self.is_published() {
            self.take_arrived()?;
            self.publish_freed().await?;
            match self.room() {
                0 => self.wait(self.next_due()).await?,
                room => self.publish_next(room.min(BATCH)).await?,
            }
            self.look()?;
        }
        self.link.settle().await.or_else(|why| self.doubt(why))?;
        while !self.is_answered() {
            self.take_arrived()?;
            if !self.is_stopped() {
                self.publish_freed().await?;
            }
            self.wait(None).await?;
            self.look()?;
        }
        // What was held back came after the first.
        self.link.settle().await.or_else(|why| self.doubt(why))
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_stopped(&self) -> bool {
        *self.stop.borrow()
    }

    /// Whether nothing new is made any more.
    fn is_published(&self) -> bool {
        let is_over = match (self.planned, self.settings.limit) {
            (Some(planned), _) => self.num_made >= planned,
            (None, Limit::Duration(duration)) => self.elapsed() >= duration,
            (None, Limit::Count(count)) => self.num_made >= count,
        };
        is_over || self.is_stopped()
    }

    /// Whether nothing more must come.
    fn is_answered(&self) -> bool {
        match &self.reader {
            Reader::Judge(judge) => {
                judge.num_owed() == 0 && (judge.num_held() == 0 || self.is_stopped())
            }
            Reader::Counter(_) => {
                let quiet_since = self.last_digest.max(self.last_published);
                self.num_unanswered() == 0 || self.elapsed() >= quiet_since + QUIET
            }
        }
    }

    fn num_unanswered(&self) -> u64 {
        self.published
            .requests
            .saturating_sub(self.received.digests)
    }

    /// How many messages may be published now.
    fn room(&self) -> u64 {
        if self.link.must_wait() || self.link.why_away().is_some() {
            return 0;
        }
        if let Reader::Judge(judge) = &self.reader {
            let ahead = self.published.total.saturating_sub(judge.last_answered());
            let is_too_far = !self.link.has_stream() && judge.num_owed() > 0 && ahead >= MAX_AHEAD;
            if is_too_far || judge.num_held() >= MAX_HELD {
                return 0;
            }
        }
        let due = self.settings.pace.num_due(self.elapsed());
        let due = due.unwrap_or(u64::MAX);
        let until = self.planned.unwrap_or(u64::MAX);
        due.min(until).saturating_sub(self.num_made)
    }

    /// When the next message is due, if nothing but the pace is in its way.
    fn next_due(&self) -> Option<Duration> {
        let due = self.settings.pace.num_due(self.elapsed())?;
        (due <= self.num_made).then(|| self.settings.pace.next_due(self.elapsed()))
    }

    async fn publish_next(&mut self, num: u64) -> Result<(), Cut> {
        for _ in 0..num {
            let Some(message) = self.traffic.next() else {
                return Ok(());
            };
            self.num_made += 1;
            if let Reader::Judge(judge) = &mut self.reader
                && judge.hold(message)
            {
                continue;
            }
            self.publish(&message).await?;
        }
        self.last_made = self.elapsed();
        Ok(())
    }

    async fn publish_freed(&mut self) -> Result<(), Cut> {
        while let Some(user) = self.freed.pop_front() {
            while let Reader::Judge(judge) = &mut self.reader
                && let Some(message) = judge.release(user)
            {
                self.publish(&message).await?;
            }
        }
        Ok(())
    }

    async fn publish(&mut self, message: &Message) -> Result<(), Cut> {
        self.published.total += 1;
        let numbered = self.names.twin(message) > 0;
        self.published.numbered += u64::from(numbered);
        match message.what {
            What::Change(change) if change.is_repeat => self.published.duplicates += 1,
            What::Change(change) => {
                self.published.changes += 1;
                self.published.late += u64::from(change.is_late);
            }
            What::Request => self.published.requests += 1,
            What::Junk(_) => self.published.junk += 1,
        }
        let at = self.began.elapsed();
        self.last_published = at;
        match &mut self.reader {
            Reader::Judge(judge) => match judge.publish(message, self.published.total, at) {
                Effect::Changed(Fate::Stale) => self.absorbed.stale += 1,
                Effect::Changed(Fate::Duplicate) => self.absorbed.duplicates += 1,
                Effect::Asked { is_owed: false } => self.absorbed.empty += 1,
                Effect::Changed(Fate::Decides)
                | Effect::Asked { is_owed: true }
                | Effect::Refused => {}
            },
            Reader::Counter(asked) => {
                if message.what == What::Request
                    && let Some(asked) = asked.get_mut(message.user as usize)
                {
                    *asked = Some(at);
                }
            }
        }
        let published = self.link.publish(&self.names, message).await;
        published.map_err(Cut::Lost)
    }

    fn take_arrived(&mut self) -> Result<(), Cut> {
        while let Some(arrived) = self.link.poll() {
            self.take(arrived)?;
        }
        Ok(())
    }

    /// Waits for something to arrive, until an instant at the most.
    async fn wait(&mut self, until: Option<Duration>) -> Result<(), Cut> {
        let tell = self.last_told + TELL_EVERY;
        let until = until.map_or(tell, |until| until.min(tell));
        let arrived = tokio::select! {
            arrived = self.link.next() => Some(arrived),
            () = sleep_until(self.began + until) => None,
            // The loops look whether it is over.
            Ok(()) = self.stop.changed() => None,
        };
        arrived.map_or(Ok(()), |arrived| self.take(arrived))
    }

    fn take(&mut self, arrived: Arrived) -> Result<(), Cut> {
        match arrived {
            Arrived::Digest(digest) => self.take_digest(&digest),
            Arrived::Confirmation(confirmation) => {
                let confirmed = self.link.confirm(&confirmation);
                confirmed.or_else(|why| self.doubt(why))
            }
            Arrived::State => match self.link.why_away() {
                Some(why) => self.doubt(format!("the connection was lost: {why}")),
                None => Ok(()),
            },
        }
    }

    fn take_digest(&mut self, incoming: &Incoming) -> Result<(), Cut> {
        let at = self.elapsed();
        let header = |name| {
            let headers = incoming.headers.as_ref()?;
            headers.get(name).map(HeaderValue::as_str)
        };
        match &mut self.reader {
            Reader::Judge(judge) => {
                let (user, ruling) = judge.receive(&Arrival {
                    payload: &incoming.payload,
                    id: header(wire::MESSAGE_ID_HEADER),
                    part: header(wire::PART_HEADER),
                    at,
                })?;
                match ruling {
                    Ruling::Foreign => return Ok(()),
                    Ruling::Repeat => self.received.repeats += 1,
                    Ruling::Part { alarms } => self.received.alarms += alarms,
                    Ruling::Answers { alarms, after } => {
                        self.received.digests += 1;
                        self.received.alarms += alarms;
                        self.latencies.add(after);
                    }
                    Ruling::Allowed { alarms } => {
                        self.received.digests += 1;
                        self.received.alarms += alarms;
                    }
                }
                self.freed.extend(user);
            }
            Reader::Counter(asked) => {
                let Ok(digest) = Digest::read(&incoming.payload) else {
                    return Ok(());
                };
                let Some(user) = self.names.read_user(&digest.user) else {
                    return Ok(());
                };
                self.received.alarms += digest.entries.len() as u64;
                let asked = asked.get_mut(user as usize);
                // Of several parts the first is the answer.
                if header(wire::PART_HEADER).is_none_or(|part| part.starts_with("1/")) {
                    self.received.digests += 1;
                    if let Some(asked) = asked.and_then(Option::take) {
                        self.latencies.add(at.saturating_sub(asked));
                    }
                }
            }
        }
        self.last_digest = at;
        Ok(())
    }

    /// What the clock alone can say, and what the observer is told.
    fn look(&mut self) -> Result<(), Cut> {
        let now = self.elapsed();
        if now >= self.last_told + TELL_EVERY {
            self.last_told = now;
            let summary = self.summary(Verdict::Unchecked, None, None);
            (self.observe)(&summary);
        }
        self.link.check().or_else(|why| self.doubt(why))?;
        if self.link.lost() > 0 {
            self.doubt(format!("the stream dropped {} messages", self.link.lost()))?;
        }
        if let Reader::Judge(judge) = &self.reader
            && let Some(since) = judge.owed_since()
            && now > since.max(self.last_digest) + self.settings.timeout
            && let Some(wrong) = judge.missing(self.settings.timeout)
        {
            return Err(Cut::Wrong(Box::new(wrong)));
        }
        Ok(())
    }

    /// Something of ours may not have arrived: then nothing can be judged any more.
    fn doubt(&self, why: String) -> Result<(), Cut> {
        if self.settings.is_checked {
            return Err(Cut::Lost(why));
        }
        Ok(())
    }

    /// The last messages of a user, made once more.
    fn messages_of(&self, user: u32, num: u32) -> Vec<Sent> {
        let again = (1_u64..).zip(Traffic::new(self.settings.recipe.clone()));
        let of_user = again.filter(|(_, message)| message.user == user);
        let first = (num as usize).saturating_sub(NUM_SHOWN);
        let shown = of_user.take(num as usize).skip(first);
        shown
            .map(|(number, message)| {
                let mut payload = BytesMut::new();
                self.names.write(&message, &mut payload);
                Sent {
                    number,
                    subject: self.link.subject(&self.names, &message).to_string(),
                    payload: String::from_utf8_lossy(&payload).into_owned(),
                }
            })
            .collect()
    }

    fn into_summary(self, ended: Result<(), Cut>) -> Summary {
        match ended {
            Ok(()) if self.settings.is_checked && self.received.digests == 0 => {
                let why = "no digest was due, so none was judged; raise --count or --duration";
                self.summary(Verdict::Unknown, Some(why.to_owned()), None)
            }
            Ok(()) if self.settings.is_checked => self.summary(Verdict::Right, None, None),
            Ok(()) => self.summary(Verdict::Unchecked, None, None),
            Err(Cut::Lost(why)) => self.summary(Verdict::Unknown, Some(why), None),
            Err(Cut::Wrong(wrong)) => {
                let messages = wrong
                    .user
                    .map(|user| self.messages_of(user, wrong.num_published));
                let name = wrong.user.map(|user| self.names.user(user));
                let finding = Finding::new(*wrong, name, messages.unwrap_or_default());
                self.summary(Verdict::Wrong, None, Some(finding))
            }
        }
    }

    fn summary(&self, verdict: Verdict, why: Option<String>, wrong: Option<Finding>) -> Summary {
        // On a schedule, what is held back for its user has been sent on time all the same.
        let (num, last) = if self.settings.pace == Pace::Max {
            (self.published.total, self.last_published)
        } else {
            (self.num_made, self.last_made)
        };
        let seconds = last.as_secs_f64();
        let recipe = &self.settings.recipe;
        let owed = match &self.reader {
            Reader::Judge(judge) => judge.num_owed() as u64,
            Reader::Counter(_) => self.num_unanswered(),
        };
        let input = if self.link.has_stream() {
            Input::JetStream
        } else {
            Input::Core
        };
        Summary {
            verdict,
            why,
            input,
            seed: recipe.seed,
            start: recipe.start.to_string(),
            prefix: recipe.prefix.clone(),
            seconds,
            // From the first to the last there is one interval less than messages.
            rate: if seconds > 0.0 {
                num.saturating_sub(1) as f64 / seconds
            } else {
                0.0
            },
            asked_rate: self.settings.pace.per_second(),
            planned: self.planned,
            published: self.published,
            received: Received {
                owed,
                ..self.received
            },
            absorbed: self.settings.is_checked.then_some(self.absorbed),
            latency: self.latencies.read(),
            broker: Broker {
                reconnects: self.link.num_reconnects(),
                lost: self.link.lost(),
            },
            wrong,
        }
    }
}
