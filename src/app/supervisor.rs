//! What systemd is told, and the signals that stop us.

use std::time::Duration;

use rustix::process::Signal as Number;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{error, info};

use super::AppError;

/// How often systemd is asked for more time while we start.
const EXTEND_EVERY: Duration = Duration::from_secs(5);
/// How much more time is asked for.
const EXTEND_BY: Duration = Duration::from_secs(30);

/// We were told to stop.
pub(super) struct Stop;

/// Speaks with whoever started us.
pub(super) struct Supervisor {
    terminate: Signal,
    interrupt: Signal,
    watchdog: Option<Duration>,
    last_status: String,
}

impl Supervisor {
    pub(super) fn new() -> Result<Self, AppError> {
        let listen = |kind| {
            signal(kind).map_err(|error| AppError::System {
                action: "listen for signals",
                error,
            })
        };
        // At a limit on the size of files a write then fails, and says so, where it would kill.
        drop(listen(SignalKind::from_raw(Number::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            watchdog: sd_notify::watchdog_enabled(),
            last_status: String::new(),
        })
    }

    /// Resolves at the next signal that stops us.
    pub(super) async fn stopped(&mut self) -> Stop {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        info!(signal = name, "told to stop");
        Stop
    }

    /// Waits for a step of the start, asking for time; `None` when we are told to stop before it is done.
    pub(super) async fn while_starting<T>(
        &mut self,
        step: &str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        info!(step, "starting");
        self.status(step);
        let mut work = std::pin::pin!(work);
        let mut extend = interval(EXTEND_EVERY);
        extend.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Some(done),
                Stop = self.stopped() => return None,
                _ = extend.tick() => {
                    tell(&[more_time(EXTEND_BY)]);
                }
            }
        }
    }

    pub(super) fn ready() {
        tell(&[NotifyState::Ready]);
    }

    /// Says that we stop, within a time.
    pub(super) fn stopping(&mut self, within: Duration) {
        tell(&[NotifyState::Stopping, more_time(within)]);
        self.status("draining");
    }

    /// Says in one line what we are doing.
    pub(super) fn status(&mut self, status: &str) {
        if self.last_status != status {
            status.clone_into(&mut self.last_status);
            tell(&[NotifyState::Status(status)]);
        }
    }

    /// Feeds the watchdog, unless a worker has been silent for half of its time.
    pub(super) fn feed_watchdog(&self, silent_for: Duration) {
        let Some(limit) = self.watchdog else {
            return;
        };
        if silent_for < limit / 2 {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!(?silent_for, "a worker is silent, the watchdog is not fed");
        }
    }
}

/// Asks for so much time more.
fn more_time(by: Duration) -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(u32::try_from(by.as_micros()).unwrap_or(u32::MAX))
}

/// Tells systemd; without one there is nobody to tell, and that is fine.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        error!(%error, "failed to notify the service manager");
    }
}
