//! The actors around the pure core. actix lives only here.
//!
//! ```text
//! Input ─► reader ─► listener ─► router ─► worker { its Partitions } ─► store
//!          permits,   bytes to    batches in      │          ▲
//!          claim,     deliveries  number order,   ▼          │ settled (by way of the router)
//!          owed bound             restarts     producer ─► Output
//! ```
//!
//! | file | what it is |
//! |---|---|
//! | `delivery` | what travels between the actors |
//! | `fault` | what ends the process, and how it is reported |
//! | `gauges` | what the workers tell: what is owed, and that they live |
//! | `shards` | which worker owns a partition, which router feeds a worker |
//! | `reader` | the task that pulls batches in, bounded by permits |
//! | `listener`, `router`, `worker`, `producer` | the actors, one file each |
//! | `metrics` | what was counted, and the actor that publishes it once a window |
//!
//! Each actor has a thread of its own. A worker that panics or whose commit is refused is restarted by its
//! router from the store; a store that cannot be written ends the process ([`Fault`]).

pub mod delivery;
mod fault;
mod gauges;
mod listener;
pub mod metrics;
mod producer;
mod reader;
mod router;
mod shards;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::dev::channel;
use actix::prelude::*;
use tokio::sync::{Semaphore, mpsc, watch};
use tracing::error;

use crate::bus::wire::Limits;
use crate::bus::{Claim, Input, Output};
use crate::core::partition::Domain;
use crate::store::Store;

pub use fault::{Fault, Faults};
pub use gauges::{OwedGauge, Pulse};
pub use shards::Shards;

use delivery::{Codec, Flush};
use fault::Lifeline;
use listener::Listener;
use metrics::{Aggregator, PublishNow};
use producer::Producer;
use reader::Reader;
use router::Router;

/// How many of each actor, and how much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Actors that read messages.
    pub num_listeners: usize,
    /// Actors that put batches in order.
    pub num_routers: usize,
    /// Actors that own partitions.
    pub num_workers: usize,
    /// Actors that publish.
    pub num_producers: usize,
    /// Messages accepted and not yet committed.
    pub in_flight: usize,
    /// The bound of each mailbox, in batches.
    pub mailbox: usize,
    /// Unconfirmed publishes of each producer.
    pub producer_in_flight: usize,
    /// Owed messages at which the input pauses.
    pub owed_rows: usize,
    /// Bytes of owed messages at which the input pauses.
    pub owed_bytes: usize,
    /// How far ahead of the broker's timestamp a change may claim to be.
    pub limits: Limits,
    /// The window of the metric aggregates.
    pub aggregate_interval: Duration,
}

impl Settings {
    /// What the producers may settle at once.
    const fn num_settling(&self) -> usize {
        self.num_producers * self.producer_in_flight
    }

    /// A router hears of batches, of commits and of what is settled.
    const fn router_mailbox(&self) -> usize {
        2 * self.mailbox + self.num_settling()
    }

    /// A worker hears of batches and of what is settled.
    const fn worker_mailbox(&self) -> usize {
        self.mailbox + self.num_settling()
    }
}

/// What the runtime stands between.
#[derive(Clone)]
pub struct Edges {
    /// What is durable.
    pub store: Arc<dyn Store>,
    /// Where messages go.
    pub output: Arc<dyn Output>,
    /// The right to commit and to publish.
    pub claim: Arc<dyn Claim>,
    /// The broker's duplicate window, if it has one.
    pub duplicate_window: Option<Duration>,
}

/// What the actors share: the edges and the counters, nothing that moves.
pub(crate) struct Shared<D: Domain> {
    edges: Edges,
    codec: Codec<D>,
    domain_settings: D::Settings,
    settings: Settings,
    shards: Shards,
    faults: Faults,
    owed: OwedGauge,
    pulse: Arc<Pulse>,
    /// Set when the actors are being stopped: a worker that ends now is not started again.
    is_stopping: AtomicBool,
}

/// The running actors.
pub struct Runtime<D: Domain> {
    shared: Arc<Shared<D>>,
    system: System,
    system_thread: JoinHandle<()>,
    actors: Actors<D>,
    permits: Arc<Semaphore>,
    stop_reading: watch::Sender<bool>,
    reader: Option<tokio::task::JoinHandle<()>>,
}

/// The addresses that the world outside the actors needs.
struct Actors<D: Domain> {
    listeners: Vec<Addr<Listener<D>>>,
    routers: Vec<Addr<Router<D>>>,
    aggregator: Addr<Aggregator>,
}

impl<D: Domain> Runtime<D> {
    /// Starts every actor; the workers begin to read the store at once. Faults arrive at the receiver.
    #[must_use]
    pub fn start(
        edges: Edges,
        codec: Codec<D>,
        domain_settings: D::Settings,
        settings: Settings,
        instance: String,
    ) -> (Self, mpsc::Receiver<Fault>) {
        let (faults, fault_receiver) = mpsc::channel(1);
        let shards = Shards {
            num_partitions: edges.store.num_partitions(),
            num_workers: settings.num_workers,
            num_routers: settings.num_routers.min(settings.num_workers),
        };
        let shared = Arc::new(Shared {
            edges,
            codec,
            domain_settings,
            settings,
            shards,
            faults: Faults(faults),
            owed: OwedGauge::new(settings.num_workers),
            pulse: Arc::new(Pulse::new(settings.num_workers)),
            is_stopping: AtomicBool::new(false),
        });
        let (sender, started) = std::sync::mpsc::sync_channel(1);
        let for_actors = Arc::clone(&shared);
        let system_thread = std::thread::Builder::new()
            .name("actors".to_owned())
            .spawn(move || run_system(&for_actors, instance, &sender))
            .expect("the system has a thread left");
        let (system, actors) = started.recv().expect("the actor system starts");
        let runtime = Self {
            permits: Arc::new(Semaphore::new(settings.in_flight)),
            stop_reading: watch::Sender::new(false),
            shared,
            system,
            system_thread,
            actors,
            reader: None,
        };
        (runtime, fault_receiver)
    }

    /// Resolves when every worker has read its part of the store; never, when one cannot.
    pub async fn recovered(&self) {
        self.shared.pulse.recovered().await;
    }

    /// Begins to read the input; resolves when every partition has committed where reading begins.
    pub async fn read(&mut self, input: Box<dyn Input>) {
        let mut reader = Reader::new(
            input,
            Arc::clone(&self.shared),
            self.actors.listeners.clone(),
            Arc::clone(&self.permits),
            self.actors.aggregator.clone(),
        );
        reader.begin().await;
        self.reader = Some(tokio::spawn(reader.run(self.stop_reading.subscribe())));
    }

    /// When the workers were last seen to work.
    #[must_use]
    pub fn pulse(&self) -> &Arc<Pulse> {
        &self.shared.pulse
    }

    /// Messages accepted and not yet committed.
    #[must_use]
    pub fn num_in_flight(&self) -> usize {
        self.shared.settings.in_flight - self.permits.available_permits()
    }

    /// Owed messages and their bytes.
    #[must_use]
    pub fn owed(&self) -> (usize, usize) {
        self.shared.owed.now()
    }

    /// Stops reading, then waits until everything that was accepted is committed.
    pub async fn drain_input(&mut self) {
        self.stop_reading.send_replace(true);
        if let Some(reader) = &mut self.reader
            && let Err(error) = reader.await
        {
            error!(%error, "the reader ended");
        }
        let all = u32::try_from(self.shared.settings.in_flight).unwrap_or(u32::MAX);
        // The semaphore is never closed.
        drop(self.permits.acquire_many(all).await);
    }

    /// Waits until the broker has confirmed everything that is owed.
    pub async fn drain_output(&self) {
        self.shared.owed.at_most(0, 0).await;
    }

    /// Makes what the workers still hold durable (that messages were confirmed), and stops every actor.
    pub async fn stop(self) {
        for router in &self.actors.routers {
            // A router that is gone has no worker to flush.
            router.send(Flush).await.ok();
        }
        self.actors.aggregator.send(PublishNow).await.ok();
        self.shared.is_stopping.store(true, Ordering::Release);
        self.system.stop();
        if self.system_thread.join().is_err() {
            error!("the actor system ended with a panic");
        }
    }
}

/// Runs the actor system until it is stopped.
fn run_system<D: Domain>(
    shared: &Arc<Shared<D>>,
    instance: String,
    started: &std::sync::mpsc::SyncSender<(System, Actors<D>)>,
) {
    let runner = System::new();
    let actors = runner.block_on(async { start_actors(shared, instance) });
    // The receiver waits for exactly this.
    drop(started.send((System::current(), actors)));
    if let Err(error) = runner.run() {
        error!(%error, "the actor system ended");
    }
}

/// Starts the last stage first, so that each has the address of its next.
fn start_actors<D: Domain>(shared: &Arc<Shared<D>>, instance: String) -> Actors<D> {
    let settings = shared.settings;
    let (output, interval) = (
        Arc::clone(&shared.edges.output),
        settings.aggregate_interval,
    );
    let mut known = Vec::new();
    (shared.codec.counters)(&mut known);
    let aggregator = start_actor(&Arbiter::new().handle(), metrics::MAILBOX, move |_| {
        Aggregator::new(output, instance, interval, known)
    });
    // The producers answer to the routers, which are started after them.
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..shared.shards.num_routers)
        .map(|_| channel::channel::<Router<D>>(settings.router_mailbox()))
        .unzip();
    let routers: Vec<Addr<Router<D>>> = senders.into_iter().map(Addr::new).collect();
    let producers: Vec<_> = (0..settings.num_producers)
        .map(|_| {
            let (shared, routers) = (Arc::clone(shared), routers.clone());
            let aggregator = aggregator.clone();
            start_actor(&Arbiter::new().handle(), producer::MAILBOX, move |_| {
                Producer::new(shared, routers, aggregator)
            })
        })
        .collect();
    for (index, (receiver, address)) in receivers.into_iter().zip(routers.clone()).enumerate() {
        let workers = shared.shards.workers_of(index);
        let seats: Vec<router::Seat> = workers
            .map(|worker| (worker, Arbiter::new().handle()))
            .collect();
        let (shared, producers) = (Arc::clone(shared), producers.clone());
        let aggregator = aggregator.clone();
        Arbiter::new().handle().spawn_fn(move || {
            let router = Router::new(shared, address, producers, aggregator, seats);
            actix::spawn(Context::with_receiver(receiver).into_future(router));
        });
    }
    let listeners = (0..settings.num_listeners)
        .map(|_| {
            let (shared, routers) = (Arc::clone(shared), routers.clone());
            start_actor(&Arbiter::new().handle(), settings.mailbox, move |_| {
                Listener::new(shared, routers)
            })
        })
        .collect();
    Actors {
        listeners,
        routers,
        aggregator,
    }
}

/// Starts an actor on a thread, with a mailbox of its bound from the first message on.
fn start_actor<A: Actor<Context = Context<A>>>(
    arbiter: &ArbiterHandle,
    mailbox: usize,
    make: impl FnOnce(Addr<A>) -> A + Send + 'static,
) -> Addr<A> {
    let (sender, receiver) = channel::channel(mailbox);
    let address = Addr::new(sender);
    let own_address = address.clone();
    arbiter.spawn_fn(move || {
        actix::spawn(Context::with_receiver(receiver).into_future(make(own_address)));
    });
    address
}
