//! The input: the stream's messages in order, verified against where we are.
//!
//! At the start, and whenever the consumer breaks or the connection was lost, the stream is looked at before
//! anything more is yielded, and [`resume`] decides:
//!
//! | history | what follows |
//! |---|---|
//! | stands | a consumer from the sequence after ours |
//! | stands, but some of it is gone | the same, and what is gone is counted to the message |
//! | was rewritten, or is another stream's | a new generation: an empty batch, then all since its base in time |
//! | stands, but the last consumer broke before its first message | the next messages, each asked for by itself (`singles`) |
//!
//! A consumer whose start lies beyond the stream's end raises no error and silently skips what is published
//! until it gets there: so the stream is looked at again *after* the consumer was made, and only when both
//! looks agree is it read.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

use super::api::{Api, ApiError, StreamInfo, code};
use super::monitor::Monitor;
use super::pull::{From, Pull, Pulled};
use super::singles::singles;
use super::streams::{Wanted, ensure};
use crate::bus::connection::jitter;
use crate::bus::wire::REPLY_TO_HEADER;
use crate::bus::{BusError, Input, InputStats, RawBatch, RawMessage, Start};
use crate::core::ids::placement_hash;
use crate::core::position::{
    Cursor, Origin, Position, Resume, StreamView, position_to_verify, resume,
};
use crate::core::time::Timestamp;

/// Everything that a reader needs to begin, again and again.
pub(super) struct Reader {
    api: Api,
    wanted: Wanted,
    monitor: Arc<Monitor>,
    begin: Position,
    /// The last watermark that was yielded.
    last: Position,
    /// The highest position that any partition held at the start: verified until it was read again.
    highest: Option<Position>,
    /// Up to where every message was yielded or counted as missing; `None` until the first is seen.
    accounted: Option<u64>,
    source: Option<Pull>,
    /// The way to the next source, while there is none.
    recovering: Option<BoxFuture<'static, Recovered>>,
    /// A generation that begins is said by an empty batch.
    is_new_generation: bool,
    /// The last consumer broke before its first message, and nothing was read since.
    is_stuck: bool,
    /// Messages that were read by themselves, and not yielded yet.
    singles: Vec<Pulled>,
    stats: InputStats,
    num_pending: u64,
    fill_said: Fill,
}

/// How reading goes on after it was interrupted.
enum Recovered {
    Continued {
        source: Box<Pull>,
        origin: Origin,
        /// How many messages are gone that were not counted yet.
        missing: u64,
        accounted: Option<u64>,
    },
    /// The next messages, without a consumer.
    Singles(Vec<Pulled>),
    /// A new generation begins here.
    Rewritten(Position),
}

/// What it takes to begin anew at our own position.
struct Anew {
    api: Api,
    wanted: Wanted,
    last: Position,
    highest: Option<Position>,
    accounted: Option<u64>,
    is_stuck: bool,
}

/// How much of the room is unread, as it was last said.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Fill {
    Low,
    Half,
    High,
}

/// What a look at the stream found.
struct Look {
    info: StreamInfo,
    view: StreamView,
}

impl Reader {
    /// Opens the input after the positions of all partitions.
    pub(super) async fn open(
        api: Api,
        wanted: Wanted,
        monitor: Arc<Monitor>,
        positions: &[Option<Position>],
        start: Start,
    ) -> Result<Self, BusError> {
        let highest = position_to_verify(positions);
        let mut said = None;
        let (base, missing, rewrites, accounted) = loop {
            api.connection().connected().await;
            let begun = begin(&api, &wanted, positions, start).await;
            match begun {
                Ok(begun) => break begun,
                Err(BusError::Configuration(why)) => return Err(BusError::Configuration(why)),
                Err(BusError::Unavailable(why)) => {
                    say_waiting(&mut said, why);
                    sleep(Duration::from_secs(1).mul_f64(jitter(0.5, 1.5))).await;
                }
            }
        };
        let is_same_history =
            highest.is_some_and(|highest| highest.cursor.generation == base.cursor.generation);
        Ok(Self {
            api,
            wanted,
            monitor,
            begin: base,
            last: base,
            highest: highest.filter(|_| is_same_history),
            accounted,
            source: None,
            recovering: None,
            is_new_generation: false,
            is_stuck: false,
            singles: Vec::new(),
            stats: InputStats {
                missing,
                rewrites,
                ..InputStats::default()
            },
            num_pending: 0,
            fill_said: Fill::Low,
        })
    }

    async fn read(&mut self, max_messages: usize) -> RawBatch {
        let mut pulled = Vec::new();
        loop {
            if std::mem::take(&mut self.is_new_generation) {
                return self.batch(Vec::new());
            }
            if !self.singles.is_empty() {
                let rest = self
                    .singles
                    .split_off(self.singles.len().min(max_messages.max(1)));
                let singles = std::mem::replace(&mut self.singles, rest);
                return self.batch(singles);
            }
            let Some(source) = &mut self.source else {
                self.recover().await;
                continue;
            };
            if let Err(broken) = source.take(max_messages.max(1), &mut pulled).await {
                debug!(
                    error = %broken,
                    "reading the input begins anew at its own position"
                );
                self.is_stuck = !source.has_yielded();
                self.source = None;
                self.stats.restarts += 1;
            }
            if !pulled.is_empty() {
                return self.batch(pulled);
            }
        }
    }

    fn batch(&mut self, pulled: Vec<Pulled>) -> RawBatch {
        if let Some(last) = pulled.last() {
            self.num_pending = last.meta.num_pending;
            self.last.cursor.sequence = last.meta.sequence;
            self.last.timestamp = last.meta.timestamp;
            self.last.fingerprint = Some(placement_hash(&last.payload));
            self.highest = self
                .highest
                .filter(|highest| highest.cursor > self.last.cursor);
        }
        let mut missing = 0;
        let messages = pulled
            .into_iter()
            .map(|message| {
                let sequence = message.meta.sequence;
                // Deleted, or dropped by a limit while we were reading.
                if let Some(accounted) = self.accounted {
                    missing += sequence.saturating_sub(accounted + 1);
                }
                self.accounted = Some(sequence);
                RawMessage {
                    sequence,
                    timestamp: message.meta.timestamp,
                    subject: message.subject,
                    payload: message.payload,
                    reply_to: message.headers.as_ref().and_then(reply_to),
                }
            })
            .collect();
        self.count_missing(missing);
        self.monitor.read_up_to(&self.last);
        RawBatch {
            origin: self.last.origin,
            generation: self.last.cursor.generation,
            messages,
            watermark: self.last,
        }
    }

    fn count_missing(&mut self, missing: u64) {
        if missing > 0 {
            self.stats.missing += missing;
            say_missing(missing);
        }
    }

    /// Waits until there is a consumer at our own position again.
    ///
    /// What was begun is kept: whoever waits may give up and come back as often as it likes, and the broker may
    /// be far away.
    async fn recover(&mut self) {
        let recovering = self.recovering.get_or_insert_with(|| {
            let anew = Anew {
                api: self.api.clone(),
                wanted: self.wanted.clone(),
                last: self.last,
                highest: self.highest,
                accounted: self.accounted,
                is_stuck: self.is_stuck,
            };
            anew.recover().boxed()
        });
        let recovered = recovering.await;
        self.recovering = None;
        match recovered {
            Recovered::Continued {
                source,
                origin,
                missing,
                accounted,
            } => {
                self.last.origin = origin;
                self.count_missing(missing);
                self.accounted = accounted;
                self.source = Some(*source);
            }
            Recovered::Singles(messages) => {
                self.is_stuck = false;
                self.singles = messages;
            }
            Recovered::Rewritten(base) => {
                self.last = base;
                self.highest = None;
                self.accounted = None;
                self.is_new_generation = true;
                self.stats.rewrites += 1;
            }
        }
    }

    fn say_fill(&mut self, fill: f64) {
        let now = match fill {
            fill if fill >= 0.8 => Fill::High,
            fill if fill >= 0.5 => Fill::Half,
            _ => Fill::Low,
        };
        if now > self.fill_said {
            let percent = fill * 100.0;
            let stream = &self.wanted.config.name;
            if now == Fill::High {
                error!(
                    stream,
                    "unread messages take {percent:.0} % of what the stream may hold; at 100 % the broker drops them: raise its limits, or find what slows the daemon"
                );
            } else {
                warn!(
                    stream,
                    "unread messages take {percent:.0} % of what the stream may hold"
                );
            }
        }
        self.fill_said = now;
    }
}

impl Anew {
    async fn recover(self) -> Recovered {
        let mut said = None;
        loop {
            self.api.connection().connected().await;
            let why = match self.begin().await {
                Ok(recovered) => {
                    if said.is_some() {
                        info!("the input is read again");
                    }
                    return recovered;
                }
                Err(BusError::Configuration(why) | BusError::Unavailable(why)) => why,
            };
            say_waiting(&mut said, why);
            sleep(Duration::from_millis(500).mul_f64(jitter(0.2, 1.0))).await;
        }
    }

    async fn begin(&self) -> Result<Recovered, BusError> {
        let positions = [Some(self.last), self.highest];
        let verify = self.highest.unwrap_or(self.last);
        let before = look(&self.api, &self.wanted, Some(verify)).await?;
        let (origin, missing) = match resume(&positions, &before.view) {
            Resume::Continue { after, missing } => {
                (after.origin, self.missing_of(missing, &before.view))
            }
            Resume::Rewritten {
                generation,
                from,
                why,
            } => {
                // It may be another stream: it must be one that can be relied on.
                ensure(&self.api, &self.wanted).await?;
                say_rewritten(&self.last, &before.view, why.as_str(), from);
                let base = generation_base(before.view.created, generation, from);
                return Ok(Recovered::Rewritten(base));
            }
            // Never: there is a position.
            Resume::Fresh => (self.last.origin, 0),
        };
        let name = &self.wanted.config.name;
        let pull = Pull::create(&self.api, name, start_of(&self.last)).await;
        let pull = pull.map_err(|error| unavailable(&error))?;
        let after = look(&self.api, &self.wanted, Some(verify)).await?;
        if !matches!(resume(&positions, &after.view), Resume::Continue { .. }) {
            // Rewritten between the two looks: the consumer's start may lie beyond the end.
            return Err(BusError::Unavailable(
                "the stream changed meanwhile".to_owned(),
            ));
        }
        if self.is_stuck {
            let behind = pull.begins_behind().max(self.last.cursor.sequence);
            let singles = singles(&self.api, name, behind, after.view.last_sequence).await;
            let singles = singles.map_err(|error| unavailable(&error))?;
            if !singles.is_empty() {
                return Ok(Recovered::Singles(singles));
            }
        }
        let accounted = if missing > 0 {
            before.view.first_sequence.checked_sub(1)
        } else {
            self.accounted
        };
        Ok(Recovered::Continued {
            source: Box::new(pull),
            origin,
            missing,
            accounted,
        })
    }

    /// How many of the missing were not counted yet.
    fn missing_of(&self, missing: u64, view: &StreamView) -> u64 {
        self.accounted.map_or(0, |accounted| {
            missing.min(view.first_sequence.saturating_sub(accounted + 1))
        })
    }
}

impl Input for Reader {
    fn begin(&self) -> Position {
        self.begin
    }

    fn next(&mut self, max_messages: usize) -> BoxFuture<'_, RawBatch> {
        self.read(max_messages).boxed()
    }

    fn take_stats(&mut self) -> InputStats {
        let load = self.monitor.load(&self.last);
        let fill = load.map_or(0.0, |load| load.fill);
        self.say_fill(fill);
        let lag = load.map_or(self.num_pending, |load| load.lag);
        InputStats {
            lag,
            fill,
            ..std::mem::take(&mut self.stats)
        }
    }
}

/// Decides where reading begins: base, messages missing before it, rewrites seen, accounted up to.
async fn begin(
    api: &Api,
    wanted: &Wanted,
    positions: &[Option<Position>],
    start: Start,
) -> Result<(Position, u64, u64, Option<u64>), BusError> {
    let highest = position_to_verify(positions);
    let look = look(api, wanted, highest).await?;
    let view = &look.view;
    match resume(positions, view) {
        Resume::Fresh => {
            let base = fresh_base(api, &look, start).await?;
            let accounted = (base.cursor.sequence > 0).then_some(base.cursor.sequence);
            Ok((base, 0, 0, accounted))
        }
        Resume::Continue { after, missing } => {
            if missing > 0 {
                say_missing(missing);
            }
            let is_numbered = after.cursor.sequence > 0;
            let accounted = is_numbered.then_some(after.cursor.sequence + missing);
            Ok((after, missing, 0, accounted))
        }
        Resume::Rewritten {
            generation,
            from,
            why,
        } => {
            if let Some(highest) = highest {
                say_rewritten(&highest, view, why.as_str(), from);
            }
            Ok((generation_base(view.created, generation, from), 0, 1, None))
        }
    }
}

async fn fresh_base(api: &Api, look: &Look, start: Start) -> Result<Position, BusError> {
    let view = &look.view;
    let from = match start {
        Start::First => Timestamp::EPOCH,
        Start::At(instant) => instant,
        Start::New => {
            let name = &look.info.config.name;
            let last = look.info.state.last_seq;
            let message = api.message(name, last.max(1)).await;
            let message = message.map_err(|error| unavailable(&error))?;
            return Ok(Position {
                origin: Origin::Stream {
                    created: view.created,
                },
                cursor: Cursor {
                    generation: 0,
                    sequence: last,
                },
                timestamp: message
                    .as_ref()
                    .map_or(look.info.state.last_ts, |message| message.timestamp),
                fingerprint: message
                    .filter(|_| last > 0)
                    .map(|message| message.fingerprint()),
            });
        }
    };
    Ok(generation_base(view.created, 0, from))
}

/// Looks at the stream, which is created when it is missing, and at the message at a position.
async fn look(api: &Api, wanted: &Wanted, at: Option<Position>) -> Result<Look, BusError> {
    let name = &wanted.config.name;
    let info = match api.stream(name).await {
        Ok(info) => info,
        Err(ApiError::Refused {
            code: code::STREAM_NOT_FOUND,
            ..
        }) => {
            // What is published while there is none is lost.
            error!(stream = name, "the input stream is gone, making it anew");
            ensure(api, wanted).await?
        }
        Err(error) => return Err(unavailable(&error)),
    };
    let mut at_position = None;
    if let Some(position) = at
        && position.cursor.sequence > 0
    {
        let found = api.message(name, position.cursor.sequence).await;
        at_position = found
            .map_err(|error| unavailable(&error))?
            .map(|message| (message.timestamp, message.fingerprint()));
    }
    let view = StreamView {
        created: info.created,
        first_sequence: info.state.first_seq.max(1),
        last_sequence: info.state.last_seq,
        at_position,
    };
    Ok(Look { info, view })
}

fn generation_base(created: Timestamp, generation: u32, from: Timestamp) -> Position {
    Position {
        origin: Origin::Stream { created },
        cursor: Cursor {
            generation,
            sequence: 0,
        },
        timestamp: from,
        fingerprint: None,
    }
}

/// A position at sequence 0 says where in time reading begins.
const fn start_of(position: &Position) -> From {
    match position.cursor.sequence {
        0 => From::Time(position.timestamp),
        sequence => From::Sequence(sequence + 1),
    }
}

/// The longest inbox that is answered: the server closes a connection that sends it a longer line.
const MAX_INBOX_BYTES: usize = 256;

/// Where the publisher of a stored message waits for our answer, if it said so and it is an inbox: we may
/// publish on subjects that it may not.
fn reply_to(headers: &HeaderMap) -> Option<Box<str>> {
    let inbox = headers.get(REPLY_TO_HEADER)?.as_str();
    let is_inbox = (inbox.starts_with("_INBOX.") || inbox.starts_with("_INBOX_"))
        && inbox.len() <= MAX_INBOX_BYTES
        && inbox
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'*' | b'>'));
    is_inbox.then(|| inbox.into())
}

fn unavailable(error: &ApiError) -> BusError {
    BusError::Unavailable(error.to_string())
}

fn say_waiting(said: &mut Option<String>, why: String) {
    if said.as_ref() != Some(&why) {
        warn!(error = %why, "the input cannot be read, trying for ever");
        *said = Some(why);
    }
}

fn say_missing(missing: u64) {
    error!(
        missing,
        "the stream no longer holds messages that were not read yet: raise its limits, and publish their changes again"
    );
}

fn say_rewritten(position: &Position, view: &StreamView, why: &str, from: Timestamp) {
    error!(
        read_up_to = position.cursor.sequence,
        first = view.first_sequence,
        last = view.last_sequence,
        %from,
        "the input's history was rewritten: {why}; everything since that instant is read again, which does no harm; changes that only the lost history held must be published again"
    );
}
