//! When which message is due, on an absolute schedule, pure.
//!
//! Message `i` of a steady rate is due at `i / rate` after the start, whatever happened to the ones before it: who
//! is late sends what is due and has caught up, and no pause is added to another. A burst adds so many messages
//! at once.

use std::num::NonZeroU64;
use std::time::Duration;

const NANOS_PER_SECOND: u128 = 1_000_000_000;
/// How far apart the times of messages are that are published as fast as they are taken.
const STEP_AT_MAX: Duration = Duration::from_micros(1);

/// So many messages at once, every so often.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Burst {
    /// How many.
    pub size: u64,
    /// The first one after this time, and so on.
    pub every: Duration,
}

/// How fast messages are published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pace {
    /// As fast as the broker takes them.
    Max,
    /// On a schedule.
    Steady {
        /// Messages a second.
        rate: NonZeroU64,
        /// And so many at once every so often.
        burst: Option<Burst>,
    },
}

impl Pace {
    /// How many messages are due after so long; `None` when there is no end to them.
    #[must_use]
    pub fn num_due(&self, elapsed: Duration) -> Option<u64> {
        let Self::Steady { rate, burst } = self else {
            return None;
        };
        let steady = elapsed.as_nanos() * u128::from(rate.get()) / NANOS_PER_SECOND + 1;
        let bursts = burst.map_or(0, |it| num_bursts(it, elapsed) * u128::from(it.size));
        Some(u64::try_from(steady + bursts).unwrap_or(u64::MAX))
    }

    /// How many messages a run of so long has; `None` when nobody can know before.
    #[must_use]
    pub fn num_within(&self, duration: Duration) -> Option<u64> {
        self.num_due(duration.saturating_sub(Duration::from_nanos(1)))
    }

    /// The first instant after this one at which another message is due.
    #[must_use]
    pub fn next_due(&self, elapsed: Duration) -> Duration {
        let Self::Steady { rate, burst } = self else {
            return elapsed;
        };
        let rate = u128::from(rate.get());
        let next = elapsed.as_nanos() * rate / NANOS_PER_SECOND + 1;
        let steady = from_nanos((next * NANOS_PER_SECOND).div_ceil(rate));
        match burst {
            None => steady,
            Some(burst) => {
                let next = (num_bursts(*burst, elapsed) + 1) * burst.every.as_nanos();
                steady.min(from_nanos(next))
            }
        }
    }

    /// Messages a second, bursts included; `None` when as many as the broker takes.
    #[must_use]
    pub fn per_second(&self) -> Option<f64> {
        match self {
            Self::Max => None,
            Self::Steady { rate, burst } => {
                let of_bursts = burst.map_or(0.0, |it| it.size as f64 / it.every.as_secs_f64());
                Some(rate.get() as f64 + of_bursts)
            }
        }
    }

    /// How much later each message says that it is than the one before.
    #[must_use]
    pub fn step(&self) -> Duration {
        self.per_second().map_or(STEP_AT_MAX, |per_second| {
            Duration::from_secs_f64(1.0 / per_second)
        })
    }
}

fn num_bursts(burst: Burst, elapsed: Duration) -> u128 {
    elapsed.as_nanos() / burst.every.as_nanos().max(1)
}

fn from_nanos(nanos: u128) -> Duration {
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn steady(rate: u64) -> Pace {
        let rate = NonZeroU64::new(rate).unwrap();
        Pace::Steady { rate, burst: None }
    }

    fn with_bursts(rate: u64, size: u64, every: Duration) -> Pace {
        let rate = NonZeroU64::new(rate).unwrap();
        let burst = Some(Burst { size, every });
        Pace::Steady { rate, burst }
    }

    /// Plays a sender on a clock of its own: it wakes late by what `lateness` gives, and publishes what is due.
    fn play(pace: Pace, until: Duration, mut lateness: impl FnMut() -> Duration) -> Vec<Duration> {
        let (mut now, mut published) = (Duration::ZERO, Vec::new());
        loop {
            let due = pace.num_due(now).unwrap() as usize;
            published.resize(due.max(published.len()), now);
            if now >= until {
                return published;
            }
            let next = pace.next_due(now);
            assert!(next > now, "{next:?} after {now:?}");
            now = next + lateness();
        }
    }

    #[test]
    fn each_message_has_its_instant() {
        let pace = steady(4);
        let published = play(pace, Duration::from_secs(1), || Duration::ZERO);
        let millis: Vec<_> = published.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [0, 250, 500, 750, 1000]);
        assert_eq!(pace.num_within(Duration::from_secs(1)), Some(4));
        assert_eq!(pace.step(), Duration::from_millis(250));
    }

    #[test]
    fn a_late_sender_catches_up_and_never_drifts() {
        let mut number = 0_u64;
        let published = play(steady(1000), Duration::from_mins(1), || {
            number += 1;
            // Mostly a little late, now and then by a second.
            let millis = if number.is_multiple_of(5000) {
                1000
            } else {
                number % 3
            };
            Duration::from_millis(millis)
        });
        for (i, at) in (0_u64..).zip(&published) {
            let due = Duration::from_millis(i);
            assert!(*at >= due && *at <= due + Duration::from_millis(1003));
        }
        assert!(published.len() >= 60_000);
    }

    #[test]
    fn bursts_come_on_top_and_at_once() {
        let pace = with_bursts(10, 500, Duration::from_secs(2));
        let published = play(pace, Duration::from_millis(4500), || Duration::ZERO);
        assert_eq!(published.len(), 46 + 2 * 500);
        let at_once = |at| {
            published
                .iter()
                .filter(|it| **it == Duration::from_secs(at))
                .count()
        };
        assert_eq!((at_once(1), at_once(2), at_once(4)), (1, 501, 501));
        assert_eq!(pace.per_second(), Some(260.0));
    }

    #[test]
    fn as_fast_as_possible_has_no_schedule() {
        assert_eq!(Pace::Max.num_due(Duration::ZERO), None);
        assert_eq!(Pace::Max.num_within(Duration::from_secs(9)), None);
        assert_eq!(Pace::Max.per_second(), None);
    }

    proptest! {
        #[test]
        fn any_rate_is_kept_to_the_message(rate in 1_u64..3_000_000, seconds in 1_u64..100_000) {
            let pace = steady(rate);
            let elapsed = Duration::from_secs(seconds);
            prop_assert_eq!(pace.num_due(elapsed), Some(rate * seconds + 1));
            prop_assert_eq!(pace.num_within(elapsed), Some(rate * seconds));
            let next = pace.next_due(elapsed);
            prop_assert_eq!(pace.num_due(next), Some(rate * seconds + 2));
            prop_assert_eq!(pace.num_due(next.saturating_sub(Duration::from_nanos(1))), Some(rate * seconds + 1));
        }
    }
}
