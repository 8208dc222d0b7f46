//! The daemon, from its configuration to its end: the only place that knows every part.
//!
//! | file | what it is |
//! |---|---|
//! | `codec` | where domain, wire and metrics meet |
//! | `broker` | which bus the configuration and the server ask for |
//! | `up` | the daemon with a broker of its own |
//! | `supervisor` | what systemd is told, and the signals that stop us |
//! | `upkeep` | what is done with a store while no daemon uses it |
//!
//! The way up: store (locked, its last segment copied), broker (waited for, for ever), claim (waited for while
//! another store holds it), workers (the store is read, in parallel), input, `READY=1`. The way down: the input
//! stops, what was accepted is committed, what is owed is published, the store closes.

pub mod broker;
pub mod codec;
mod supervisor;
pub mod up;
pub mod upkeep;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{error, info, warn};

use crate::bus::server::ServerError;
use crate::bus::wire::Limits;
use crate::bus::{Bus, BusError, Claim, Mode, Output, Start};
use crate::config::{self, Config, InputStart, StoreKind};
use crate::core::ids::StoreId;
use crate::core::position::RewindError;
use crate::domains::State;
use crate::domains::alarms;
use crate::runtime::{Edges, Fault, Pulse, Runtime, Settings};
use crate::store::embedded::{self, Embedded};
use crate::store::memory::Memory;
use crate::store::{Store, StoreError};

use supervisor::{Stop, Supervisor};

/// Why the daemon ended by itself.
#[derive(Debug, Error)]
pub enum AppError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The broker cannot be used as it is configured.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The input cannot be read again from there.
    #[error(transparent)]
    Rewind(#[from] RewindError),
    /// The child nats-server cannot be run.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// Another `up` has the folder.
    #[error("data folder {} is in use by another tocsin up; use that one, or name another folder (--data)", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The folder of `up`, or a file in it, cannot be written.
    #[error("failed to write {}: {error}; make it writable, or name another folder (--data)", path.display())]
    Unwritable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The system refused something that every process may do.
    #[error("failed to {action}: {error}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// The program is wrong.
    #[error(
        "{0}; this is a defect of tocsin, and what was not committed is read again at the next start"
    )]
    Defect(String),
    /// The drain took longer than `shutdown.timeout`.
    #[error(
        "at least {num_messages} messages were not committed within shutdown.timeout; on core NATS they are lost"
    )]
    Undrained {
        /// How many.
        num_messages: usize,
    },
}

impl From<Fault> for AppError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Store(error) => Self::Store(error),
            Fault::Defect(what) => Self::Defect(what),
        }
    }
}

/// Runs the daemon until it is told to stop; `ready` is called once input flows.
///
/// # Errors
/// [`AppError`] when it ends by itself.
pub async fn serve(config: &Config, ready: impl FnOnce(&dyn Bus)) -> Result<(), AppError> {
    let mut supervisor = Supervisor::new()?;
    let opening = supervisor.while_starting("opening the store", open_store(config));
    let Some(store) = opening.await.transpose()? else {
        return Ok(());
    };
    let connecting = broker::connect(config);
    let connecting = supervisor.while_starting("waiting for NATS", connecting);
    let Some(bus) = connecting.await.transpose()? else {
        return Ok(());
    };
    let claiming = bus.claim(store.id());
    let claiming = supervisor.while_starting("waiting for the claim on the input", claiming);
    let Some(claim) = claiming.await.transpose()? else {
        return Ok(());
    };
    let edges = Edges {
        store: Arc::clone(&store),
        output: bus.output(),
        claim: Arc::clone(&claim),
        duplicate_window: bus.duplicate_window(),
    };
    let (runtime, faults) = Runtime::<State>::start(
        edges,
        codec::codec(),
        domain_settings(config),
        runtime_settings(config),
        config.nats.name.clone(),
    );
    let mut daemon = Daemon {
        runtime,
        output: bus.output(),
        faults,
        claim,
        mode: bus.mode(),
        supervisor,
    };
    let start = match config.input.start {
        InputStart::First => Start::First,
        InputStart::New => Start::New,
        InputStart::At(at) => Start::At(at),
    };
    let positions = store
        .headers()
        .iter()
        .map(|header| header.position)
        .collect();
    if daemon.begin(bus.open_input(positions, start)).await? {
        ready(bus.as_ref());
        daemon.run().await?;
    }
    daemon.drain(config.shutdown.timeout).await
}

async fn open_store(config: &Config) -> Result<Arc<dyn Store>, StoreError> {
    let settings = config.store.clone();
    let opening = tokio::task::spawn_blocking(move || -> Result<Arc<dyn Store>, StoreError> {
        Ok(match settings.kind {
            StoreKind::Embedded => {
                let partitions = settings.partitions;
                let options = embedded::Options {
                    partitions,
                    ..embedded::Options::default()
                };
                Arc::new(Embedded::open(&settings.path, options)?)
            }
            StoreKind::Memory => {
                let mut id = [0; 16];
                getrandom::fill(&mut id).expect("the system has random bytes");
                Arc::new(Memory::new(StoreId(id), settings.partitions))
            }
        })
    });
    opening.await.expect("opening a store does not panic")
}

fn domain_settings(config: &Config) -> codec::Settings {
    alarms::Settings {
        tombstone_retention: config.alarms.tombstone_retention,
        when_empty: match config.digest.when_empty {
            config::WhenEmpty::Skip => alarms::WhenEmpty::Skip,
            config::WhenEmpty::Send => alarms::WhenEmpty::Send,
        },
    }
}

fn runtime_settings(config: &Config) -> Settings {
    Settings {
        num_listeners: config.input.listeners,
        num_routers: config.input.routers,
        num_workers: config.workers.count,
        num_producers: config.producers.count,
        in_flight: config.input.in_flight,
        mailbox: config.workers.mailbox,
        producer_in_flight: config.producers.in_flight,
        owed_rows: config.producers.owed.rows,
        owed_bytes: usize::try_from(config.producers.owed.bytes).unwrap_or(usize::MAX),
        limits: Limits {
            max_future: config.alarms.max_future,
        },
        aggregate_interval: config.metrics.aggregate_interval,
    }
}

/// The daemon once its actors run.
struct Daemon {
    runtime: Runtime<State>,
    output: Arc<dyn Output>,
    faults: mpsc::Receiver<Fault>,
    claim: Arc<dyn Claim>,
    mode: Mode,
    supervisor: Supervisor,
}

/// How often the daemon looks after itself.
const TICK: Duration = Duration::from_secs(1);
/// How long the actors may take to stop once everything is drained.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

impl Daemon {
    /// Waits for the workers, then begins to read; returns whether input flows, else we were told to stop.
    async fn begin(
        &mut self,
        input: impl Future<Output = Result<Box<dyn crate::bus::Input>, BusError>>,
    ) -> Result<bool, AppError> {
        let Self {
            runtime,
            faults,
            supervisor,
            ..
        } = self;
        let beginning = async {
            runtime.recovered().await;
            runtime.read(input.await?).await;
            Ok::<_, AppError>(())
        };
        tokio::select! {
            Some(fault) = faults.recv() => Err(fault.into()),
            begun = supervisor.while_starting("reading the store", beginning) => match begun {
                Some(begun) => begun.map(|()| true),
                None => Ok(false),
            },
        }
    }

    /// Looks after the daemon until it is told to stop.
    async fn run(&mut self) -> Result<(), AppError> {
        Supervisor::ready();
        info!("input flows");
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(fault) = self.faults.recv() => return Err(fault.into()),
                Stop = self.supervisor.stopped() => return Ok(()),
                _ = tick.tick() => self.look_after(),
            }
        }
    }

    fn look_after(&mut self) {
        let (owed, _) = self.runtime.owed();
        let in_flight = self.runtime.num_in_flight();
        let claim = if self.claim.is_held() {
            ""
        } else {
            "claim on the input lost; "
        };
        self.supervisor.status(&format!(
            "{claim}{in_flight} messages in flight, {owed} owed"
        ));
        self.supervisor
            .feed_watchdog(self.runtime.pulse().oldest_beat());
    }

    /// Stops the input, commits and publishes what is under way, and stops the actors.
    async fn drain(mut self, limit: Duration) -> Result<(), AppError> {
        self.supervisor.stopping(limit + STOP_TIMEOUT);
        info!(?limit, "draining");
        let mut watch = DrainWatch {
            pulse: Arc::clone(self.runtime.pulse()),
            faults: self.faults,
            supervisor: self.supervisor,
            until: Instant::now() + limit,
        };
        // Without the claim nothing can be committed: the stream keeps what was not.
        let claim = Some(self.claim.as_ref());
        let input = watch.over(claim, self.runtime.drain_input()).await?;
        let num_messages = self.runtime.num_in_flight();
        let output = match input {
            Step::Abandoned => return Ok(()),
            Step::Done | Step::GivenUp => watch.over(None, self.runtime.drain_output()).await?,
        };
        match output {
            Step::Done => {}
            Step::Abandoned => return Ok(()),
            Step::GivenUp => {
                let (owed, _) = self.runtime.owed();
                warn!(
                    owed,
                    "messages stay owed, they are published after the next start"
                );
            }
        }
        let is_stopped = timeout(STOP_TIMEOUT, self.runtime.stop()).await.is_ok();
        if !is_stopped {
            error!("the actors did not stop in time; nothing is lost");
        }
        // The last commits may have failed, too.
        if let Ok(fault) = watch.faults.try_recv() {
            return Err(fault.into());
        }
        if output == Step::Done {
            // A message without a digest is answered, too.
            watch.over(None, self.output.flush()).await?;
        }
        // Where an actor may still publish, the claim ends by its time.
        if is_stopped && self.claim.is_held() {
            watch.over(None, self.claim.give_back()).await?;
        }
        if (input, output) == (Step::Done, Step::Done) {
            info!("drained: what was accepted is committed, what was owed is published");
        }
        match self.mode {
            Mode::Core if input != Step::Done => Err(AppError::Undrained { num_messages }),
            Mode::Core | Mode::JetStream | Mode::Memory => Ok(()),
        }
    }
}

/// How a step of the drain ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Done,
    /// The time is over, or it cannot be done.
    GivenUp,
    /// We were told a second time to stop.
    Abandoned,
}

/// Looks after the daemon while it drains: the service manager goes on to watch it.
struct DrainWatch {
    pulse: Arc<Pulse>,
    faults: mpsc::Receiver<Fault>,
    supervisor: Supervisor,
    until: Instant,
}

impl DrainWatch {
    /// Waits for a step, for as long as the claim that it needs is held.
    async fn over(
        &mut self,
        claim: Option<&dyn Claim>,
        work: impl Future<Output = ()>,
    ) -> Result<Step, AppError> {
        let mut work = std::pin::pin!(work);
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                biased;
                () = &mut work => return Ok(Step::Done),
                Some(fault) = self.faults.recv() => return Err(fault.into()),
                Stop = self.supervisor.stopped() => return Ok(Step::Abandoned),
                () = tokio::time::sleep_until(self.until) => return Ok(Step::GivenUp),
                _ = tick.tick() => {
                    if claim.is_some_and(|claim| !claim.is_held()) {
                        return Ok(Step::GivenUp);
                    }
                    self.supervisor.feed_watchdog(self.pulse.oldest_beat());
                }
            }
        }
    }
}
