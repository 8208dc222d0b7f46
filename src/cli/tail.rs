//! `tocsin tail`: digests as they come, as people read them.
//!
//! | the server | where digests are read |
//! |---|---|
//! | has the stream `TOCSIN_OUT` | in it: from any place on, and without a gap while the broker is away |
//! | has not, or our user may not read it | on the subject: what comes while we listen |
//!
//! Beside each alarm stands what this tail has seen of it before, from the same user: nothing (`new`), another
//! status (`was WARNING`), or the same (`again`: it had changed in between).

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::pin::pin;
use std::time::Duration;

use anstyle::Style;
use async_nats::Subscriber;
use futures::StreamExt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::arguments::{ClientArgs, OutputFormat, parse_duration, parse_user};
use super::present::{alarms, counted, instant, shown};
use super::style::{DIM, HEADING};
use super::{Exit, Failure, complain, help, oneshot, print, threads};
use crate::app::AppError;
use crate::bus::connection::{Connection, State};
use crate::bus::jetstream::{FollowFrom, Followed, Follower};
use crate::bus::wire::{self, Joined, Joiner};
use crate::bus::{BusError, wall_clock};
use crate::core::ids::{Id, UserId};
use crate::core::time::Timestamp;
use crate::domains::alarms::{Digest, Status};

/// How many messages before the end are looked at first for the last digests.
const FIRST_LOOK: u64 = 1000;
/// Alarms whose status is remembered; one more, and all are forgotten.
const MAX_REMEMBERED: usize = 1_000_000;
/// How often we look whether anybody still reads our output, and whether the broker is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

const EXITS: [Exit; 5] = [
    Exit::Well,
    Exit::Unusable,
    Exit::Unreachable,
    Exit::Defect,
    Exit::WriteFailed,
];

const EXAMPLES: &str = "\
  tocsin tail                              # digests as they come
  tocsin tail --last 10 --user ann
  tocsin tail --since 2h -o json | jq .UserID";

/// The arguments of `tocsin tail`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &EXITS))]
pub struct Args {
    /// Only the digests of these users.
    #[arg(long, value_name = "USER", value_parser = parse_user,
        help = "Only the digests of this user; may be named several times")]
    pub user: Vec<UserId>,
    /// Begins with what came since then.
    #[arg(long, value_name = "TIME|DURATION", value_parser = parse_since,
        help = "Begins with the digests since a time (2026-01-31T00:00:00Z) or so long ago (2h)")]
    pub since: Option<Timestamp>,
    /// Begins with so many digests that came already.
    #[arg(long, value_name = "N", conflicts_with = "since",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        help = "Begins with the last N digests")]
    pub last: Option<u32>,
    /// Ends after so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..),
        help = "Ends after N digests")]
    pub count: Option<u64>,
    /// What every client command has.
    #[command(flatten)]
    pub client: ClientArgs,
}

fn parse_since(text: &str) -> Result<Timestamp, String> {
    let ago = parse_duration(text).map(|ago| wall_clock().minus(ago));
    ago.or_else(|_| Timestamp::parse(text)).map_err(|_| {
        "must be a time such as 2026-01-31T00:00:00Z, or a duration such as 30m".to_owned()
    })
}

/// Prints digests until it is told to stop, or nobody reads them any more.
///
/// # Errors
/// When the broker cannot be reached at the start, or has not what was asked for.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let threads = threads()?;
    let ended = threads.block_on(async {
        let mut tail = Tail {
            printer: Printer::new(args),
            source: Source::open(args).await?,
            left: args.count,
        };
        tail.run(args).await
    });
    // A write to somebody who does not read may be under way.
    threads.shutdown_background();
    ended
}

/// A digest and when it came.
struct Arrival {
    at: Timestamp,
    joined: Joined,
}

struct Tail {
    printer: Printer,
    source: Source,
    left: Option<u64>,
}

impl Tail {
    async fn run(&mut self, args: &Args) -> Result<Exit, Failure> {
        let on_signal = |kind| {
            signal(kind).map_err(|error| AppError::System {
                action: "listen for signals",
                error,
            })
        };
        let mut interrupt = on_signal(SignalKind::interrupt())?;
        let mut terminate = on_signal(SignalKind::terminate())?;
        let watching = watch(self.source.connection.state(), self.source.is_stream());
        let mut ended = pin!(async {
            tokio::select! {
                () = watching => {}
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        let mut stored = tokio::select! {
            stored = self.source.last(args) => stored?,
            () = &mut ended => return Ok(Exit::Well),
        };
        loop {
            let next = async {
                match stored.pop_front() {
                    Some(arrival) => arrival,
                    None => self.source.next().await,
                }
            };
            let arrival = tokio::select! {
                arrival = next => arrival,
                () = &mut ended => return Ok(Exit::Well),
            };
            let Some(text) = self.printer.text(&arrival) else {
                continue;
            };
            let printing = spawn_blocking(move || print(&text));
            tokio::select! {
                printed = printing => printed.expect("printing does not panic")?,
                () = &mut ended => return Ok(Exit::Well),
            }
            if let Some(left) = &mut self.left {
                *left -= 1;
                if *left == 0 {
                    return Ok(Exit::Well);
                }
            }
        }
    }
}

/// Says when the broker goes away and when it is back; resolves when nobody reads our output any more.
async fn watch(mut state: watch::Receiver<State>, is_stream: bool) {
    let mut ticks = interval(LOOK_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_away = false;
    while !is_output_closed() {
        ticks.tick().await;
        let why = match &*state.borrow_and_update() {
            State::Connected { .. } => None,
            State::Disconnected { why } => Some(why.clone()),
        };
        match why {
            Some(why) if !is_away => {
                let meanwhile = if is_stream {
                    "digests that come meanwhile are printed when it is back"
                } else {
                    "digests that come meanwhile are missed"
                };
                complain(&format!(
                    "the connection to NATS is lost ({why}); {meanwhile}"
                ));
                is_away = true;
            }
            None if is_away => {
                complain("NATS is back");
                is_away = false;
            }
            Some(_) | None => {}
        }
    }
}

/// Whether the reader of our standard output, as `head`, has gone.
fn is_output_closed() -> bool {
    let stdout = io::stdout();
    let mut output = [PollFd::new(&stdout, PollFlags::empty())];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let looked = poll(&mut output, Some(&at_once));
    looked.is_ok()
        && output
            .iter()
            .any(|it| it.revents().contains(PollFlags::ERR))
}

/// Where digests come from.
struct Source {
    connection: Connection,
    feed: Feed,
    joiner: Joiner,
    users: HashSet<UserId>,
}

enum Feed {
    Stream(Box<Follower>),
    Subject(Subscriber),
}

impl Source {
    async fn open(args: &Args) -> Result<Self, Failure> {
        let connection = oneshot::connect(&args.client).await?;
        let place = match (args.since, args.last) {
            (Some(since), _) => FollowFrom::Since(since),
            (None, Some(last)) => FollowFrom::BeforeEnd(FIRST_LOOK.max(last.into())),
            (None, None) => FollowFrom::Now,
        };
        let opening = Follower::open(&connection, wire::OUTPUT_STREAM, place);
        let opened = timeout(args.client.timeout, opening).await.map_err(|_| {
            let stream = wire::OUTPUT_STREAM;
            let limit = args.client.timeout;
            let line = format!("failed to look at stream {stream} within {limit:?}; try again");
            Failure::new(Exit::Unreachable, &line)
        })?;
        let follower = match opened {
            // Who may not read the stream may still hear what comes.
            Err(BusError::Configuration(_)) if place == FollowFrom::Now => None,
            opened => opened?,
        };
        let feed = match follower {
            Some(follower) => Feed::Stream(Box::new(follower)),
            None if place != FollowFrom::Now => {
                let line = format!(
                    "this server keeps no digests: it has no stream {}; leave --since and --last out",
                    wire::OUTPUT_STREAM
                );
                return Err(Failure::new(Exit::Unusable, &line));
            }
            None => Feed::Subject(oneshot::subscribe(&connection, wire::DIGEST).await?),
        };
        Ok(Self {
            connection,
            feed,
            joiner: Joiner::default(),
            users: args.user.iter().cloned().collect(),
        })
    }

    const fn is_stream(&self) -> bool {
        matches!(self.feed, Feed::Stream(_))
    }

    /// The last digests of the stream, as many as are asked for; looks further back until there are so many.
    async fn last(&mut self, args: &Args) -> Result<VecDeque<Arrival>, Failure> {
        let (Some(last), Feed::Stream(follower)) = (args.last, &mut self.feed) else {
            return Ok(VecDeque::new());
        };
        let last = last as usize;
        let mut num_looked_at = FIRST_LOOK.max(last as u64);
        loop {
            let mut found = VecDeque::new();
            while let Some(message) = follower.next_stored().await {
                found.extend(accept(&mut self.joiner, &self.users, message));
                if found.len() > last {
                    found.pop_front();
                }
            }
            if found.len() == last || num_looked_at >= follower.num_at_open() {
                return Ok(found);
            }
            num_looked_at *= 8;
            let place = FollowFrom::BeforeEnd(num_looked_at);
            let opening = Follower::open(&self.connection, wire::OUTPUT_STREAM, place);
            self.joiner = Joiner::default();
            let Some(further) = opening.await? else {
                return Ok(found);
            };
            **follower = further;
        }
    }

    /// Waits for the next digest, for ever.
    async fn next(&mut self) -> Arrival {
        loop {
            let message = match &mut self.feed {
                Feed::Stream(follower) => follower.next().await,
                Feed::Subject(subscriber) => match subscriber.next().await {
                    Some(message) => Followed {
                        timestamp: wall_clock(),
                        headers: message.headers,
                        payload: message.payload,
                    },
                    // It ends with the connection, which we hold.
                    None => std::future::pending().await,
                },
            };
            if let Some(arrival) = accept(&mut self.joiner, &self.users, message) {
                return arrival;
            }
        }
    }
}

/// The digest that is whole with a message, if it is of one of the users, or of anybody where none is named.
fn accept(joiner: &mut Joiner, users: &HashSet<UserId>, message: Followed) -> Option<Arrival> {
    let whole = oneshot::join(joiner, message.headers.as_ref(), message.payload)?;
    let is_wanted = users.is_empty() || users.contains(&whole.digest.user);
    is_wanted.then_some(Arrival {
        at: message.timestamp,
        joined: whole,
    })
}

/// Turns digests into text, and remembers them.
struct Printer {
    output: OutputFormat,
    users: HashMap<UserId, Remembered>,
    num_remembered: usize,
}

/// What was seen of a user.
#[derive(Default)]
struct Remembered {
    last_id: Option<String>,
    alarms: HashMap<Id, Status>,
}

impl Printer {
    fn new(args: &Args) -> Self {
        Self {
            output: args.client.output,
            users: HashMap::new(),
            num_remembered: 0,
        }
    }

    /// A digest as it is printed; `None` for a repeat of the last one.
    fn text(&mut self, arrival: &Arrival) -> Option<String> {
        let Arrival { at, joined } = arrival;
        let notes = self.remember(joined)?;
        Some(match self.output {
            OutputFormat::Json => format!("{}\n", String::from_utf8_lossy(&joined.payload)),
            OutputFormat::Text => as_text(&joined.digest, *at, &notes),
        })
    }

    /// What is new of each alarm, in words; `None` for a repeat of the last digest.
    fn remember(&mut self, joined: &Joined) -> Option<Vec<String>> {
        if self.num_remembered > MAX_REMEMBERED {
            self.users.clear();
            self.num_remembered = 0;
        }
        let user = self.users.entry(joined.digest.user.clone()).or_default();
        if joined.id.is_some() && user.last_id == joined.id {
            return None;
        }
        user.last_id.clone_from(&joined.id);
        let mut notes = Vec::with_capacity(joined.digest.alarms.len());
        for entry in &joined.digest.alarms {
            let before = user.alarms.insert(entry.alarm.0.clone(), entry.status);
            self.num_remembered += usize::from(before.is_none());
            notes.push(match before {
                None => "new".to_owned(),
                Some(status) if status == entry.status => "again".to_owned(),
                Some(status) => format!("was {}", status.as_str()),
            });
        }
        Some(notes)
    }
}

fn as_text(digest: &Digest, at: Timestamp, notes: &[String]) -> String {
    let (at_text, user) = (instant(at), shown(&digest.user));
    let num_alarms = counted(digest.alarms.len(), "alarm");
    let bold = |note: &String| {
        let style = if note == "new" { Style::new() } else { HEADING };
        format!("{style}{note}{style:#}")
    };
    let notes: Vec<_> = notes.iter().map(bold).collect();
    format!(
        "{DIM}{at_text}{DIM:#}  {HEADING}{user}{HEADING:#}  {num_alarms}\n{}",
        alarms(digest, at, &notes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domains::alarms::{AlarmId, DigestEntry};

    fn joined(id: Option<&str>, user: &str, alarms: &[(&str, Status)]) -> Joined {
        let entry = |(alarm, status): &(&str, Status)| DigestEntry {
            alarm: AlarmId(Id::new(alarm).unwrap()),
            status: *status,
            changed_at: Timestamp::from_seconds(60),
        };
        let digest = Digest {
            user: UserId(Id::new(user).unwrap()),
            alarms: alarms.iter().map(entry).collect(),
        };
        Joined {
            payload: wire::encode_digest(&digest),
            digest,
            id: id.map(str::to_owned),
        }
    }

    fn printer() -> Printer {
        Printer {
            output: OutputFormat::Text,
            users: HashMap::new(),
            num_remembered: 0,
        }
    }

    #[test]
    fn each_alarm_is_told_from_what_was_seen_of_it_before() {
        let mut printer = printer();
        let mut notes = |user, alarms: &[_]| printer.remember(&joined(None, user, alarms)).unwrap();
        let (warning, critical) = (("a", Status::Warning), ("a", Status::Critical));
        assert_eq!(
            notes("ann", &[warning, ("b", Status::Critical)]),
            ["new", "new"]
        );
        assert_eq!(notes("ann", &[critical]), ["was WARNING"]);
        assert_eq!(notes("ann", &[critical]), ["again"]);
        assert_eq!(notes("bob", &[critical]), ["new"]);
    }

    #[test]
    fn a_repeat_of_the_last_digest_is_known_by_its_id() {
        let mut printer = printer();
        let one = [("a", Status::Warning)];
        assert!(
            printer
                .remember(&joined(Some("5-17"), "ann", &one))
                .is_some()
        );
        assert!(
            printer
                .remember(&joined(Some("5-17"), "ann", &one))
                .is_none()
        );
        assert!(
            printer
                .remember(&joined(Some("6-18"), "ann", &one))
                .is_some()
        );
        assert!(printer.remember(&joined(None, "ann", &one)).is_some());
        assert!(printer.remember(&joined(None, "ann", &one)).is_some());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut printer = printer();
        printer.remember(&joined(None, "ann", &[("a", Status::Warning)]));
        printer.num_remembered = MAX_REMEMBERED + 1;
        let notes = printer.remember(&joined(None, "ann", &[("a", Status::Warning)]));
        assert_eq!(
            (notes.unwrap(), printer.num_remembered),
            (vec!["new".to_owned()], 1)
        );
    }

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        assert_eq!(
            parse_since("1970-01-01T00:00:05Z"),
            Ok(Timestamp::from_seconds(5))
        );
        let since = parse_since("2h").unwrap();
        let ago = wall_clock().since(since).as_secs();
        assert!((7200..7260).contains(&ago), "{ago}");
        for text in ["", "yesterday", "2", "-1h", "2026-01-31"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }
}
