//! Looks at the input stream every few seconds: how much waits, how full it is, and how the clocks differ.
//!
//! The reader says how far it is; what lies beyond is unread. A stream that discards its oldest is always
//! full once it is old enough: only what is *unread* of it is in danger, so that is what is measured, against
//! each of its limits. It decides nothing, and a failed look is only a look less.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::api::{Api, StreamInfo};
use crate::bus::{steady_clock, wall_clock};
use crate::core::position::Position;
use crate::core::time::Timestamp;

const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// Clocks that differ by more are shouted.
const MAX_OFFSET: Duration = Duration::from_mins(1);

/// How much waits in the input stream.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Load {
    /// Messages that wait.
    pub(super) lag: u64,
    /// The share of the stream's limits that they take, 0.0 to 1.0.
    pub(super) fill: f64,
}

#[derive(Debug, Default)]
struct Seen {
    info: Option<StreamInfo>,
    read_up_to: u64,
    /// The broker's time of the last look at which nothing waited.
    caught_up_at: Timestamp,
    is_offset_said: bool,
    /// The broker's time, not before that time of our steady clock.
    told: Option<(Timestamp, Duration)>,
}

/// What was last seen.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    seen: Mutex<Seen>,
}

impl Monitor {
    /// Begins to look at a stream, until the handle is dropped.
    pub(super) fn start(api: Api, stream: String) -> (Arc<Self>, AbortOnDropHandle<()>) {
        let monitor = Arc::new(Self::default());
        let looking = Arc::clone(&monitor);
        let runtime = api.connection().runtime().clone();
        let task = runtime.spawn(async move {
            let mut ticks = interval(LOOK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                api.connection().connected().await;
                let (asked, asked_at) = (wall_clock(), steady_clock());
                if let Ok(info) = api.stream(&stream).await {
                    looking.saw(info, asked, wall_clock(), asked_at);
                }
            }
        });
        (monitor, AbortOnDropHandle::new(task))
    }

    /// The reader has yielded everything up to here.
    pub(super) fn read_up_to(&self, position: &Position) {
        self.lock().read_up_to = position.cursor.sequence;
    }

    /// What waits beyond a position; `None` before the first look.
    pub(super) fn load(&self, position: &Position) -> Option<Load> {
        let seen = self.lock();
        let info = seen.info.as_ref();
        info.map(|info| load(info, position, seen.caught_up_at))
    }

    /// The broker's time; `None` before the first look.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let (told, at) = self.lock().told?;
        Some(told.plus(steady_clock().saturating_sub(at)))
    }

    fn saw(&self, info: StreamInfo, asked: Timestamp, answered: Timestamp, asked_at: Duration) {
        let mut seen = self.lock();
        // An older server's is not known: there, ours must do.
        seen.told = Some((info.now.unwrap_or(answered), asked_at));
        if let Some(theirs) = info.now {
            // The answer was made at some instant between the two.
            let offset = theirs.since(answered).max(asked.since(theirs));
            let is_off = offset > MAX_OFFSET;
            if is_off != seen.is_offset_said {
                seen.is_offset_said = is_off;
                if is_off {
                    error!(?offset, broker = %theirs, ours = %answered, "our clock and the broker's differ; set both by NTP");
                } else {
                    info!("our clock and the broker's agree again");
                }
            }
        } else if seen.info.is_none() {
            warn!("this nats-server does not tell its time: clocks are not compared");
        }
        if info.state.last_seq <= seen.read_up_to || info.state.messages == 0 {
            seen.caught_up_at = info.now.unwrap_or(info.state.last_ts);
        }
        seen.info = Some(info);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn load(info: &StreamInfo, position: &Position, caught_up_at: Timestamp) -> Load {
    let (state, config) = (&info.state, &info.config);
    let read = position
        .cursor
        .sequence
        .max(state.first_seq.saturating_sub(1));
    let lag = state.last_seq.saturating_sub(read).min(state.messages);
    if lag == 0 {
        return Load { lag, fill: 0.0 };
    }
    let unread = share(lag, state.messages);
    let bytes = u64::try_from(config.max_bytes).map_or(0.0, |max| share(state.bytes, max) * unread);
    let messages = u64::try_from(config.max_msgs).map_or(0.0, |max| share(lag, max));
    // The oldest unread message came after the last one read, and after a look that found none.
    let oldest = position.timestamp.max(caught_up_at);
    let age = info.now.unwrap_or(state.last_ts).since(oldest);
    let age = if config.max_age.is_zero() || oldest == Timestamp::EPOCH {
        0.0
    } else {
        age.as_secs_f64() / config.max_age.as_secs_f64()
    };
    Load {
        lag,
        fill: bytes.max(messages).max(age).min(1.0),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a share needs no more than 52 bits"
)]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::{StreamConfig, StreamState};
    use super::*;
    use crate::core::position::{Cursor, Origin};

    fn stream(messages: u64, bytes: u64) -> StreamInfo {
        StreamInfo {
            config: StreamConfig {
                max_bytes: 1000,
                max_msgs: -1,
                max_age: Duration::from_secs(100),
                ..StreamConfig::default()
            },
            created: Timestamp::EPOCH,
            state: StreamState {
                messages,
                bytes,
                first_seq: 1,
                last_seq: messages,
                last_ts: Timestamp::from_seconds(5000),
            },
            now: Some(Timestamp::from_seconds(5000)),
        }
    }

    fn at(sequence: u64, seconds: u64) -> Position {
        Position {
            origin: Origin::Session,
            cursor: Cursor {
                generation: 0,
                sequence,
            },
            timestamp: Timestamp::from_seconds(seconds),
            fingerprint: None,
        }
    }

    fn percent(load: Load) -> (u64, i64) {
        #[expect(clippy::cast_possible_truncation, reason = "at most 100")]
        let percent = (load.fill * 100.0).round() as i64;
        (load.lag, percent)
    }

    #[test]
    fn only_what_is_unread_counts() {
        let full = stream(10, 1000);
        let caught_up = Timestamp::from_seconds(5000);
        assert_eq!(percent(load(&full, &at(10, 4000), caught_up)), (0, 0));
        assert_eq!(percent(load(&full, &at(4, 4999), caught_up)), (6, 60));
    }

    #[test]
    fn what_waits_longer_than_half_its_time_is_seen_before_it_is_gone() {
        let stream = stream(10, 10);
        let long_ago = Timestamp::from_seconds(1);
        assert_eq!(percent(load(&stream, &at(4, 4920), long_ago)), (6, 80));
        // Nothing came for long, and now something did.
        let recently = Timestamp::from_seconds(4990);
        assert_eq!(percent(load(&stream, &at(9, 4000), recently)), (1, 10));
    }
}
