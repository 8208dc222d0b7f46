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
//! | `reader` | the task that pulls batches in, bounded by permits |
//! | `listener`, `router`, `worker`, `producer` | the actors, one file each |
//! | `metrics` | what was counted, and the actor that publishes it once a window |
//!
//! Each actor has a thread of its own. A worker that panics or whose commit is refused is restarted by its
//! router from the store; a store that cannot be written ends the process ([`Fault`]).

pub mod delivery;
mod listener;
pub mod metrics;
mod producer;
mod reader;
mod router;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use actix::dev::{ToEnvelope, channel};
use actix::prelude::*;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tracing::error;

use crate::bus::wire::Limits;
use crate::bus::{Claim, Input, Output};
use crate::core::ids::PartitionId;
use crate::core::partition::Domain;
use crate::store::{Store, StoreError};

use delivery::{Codec, Flush};
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

/// What ends the process.
#[derive(Debug)]
pub enum Fault {
    /// The store cannot be read or written.
    Store(StoreError),
    /// The program is wrong.
    Defect(String),
}

/// Where faults are reported.
#[derive(Clone)]
pub struct Faults(mpsc::Sender<Fault>);

impl Faults {
    /// Ends the process; the first fault is the one that is told.
    pub fn report(&self, fault: Fault) {
        // A full channel holds an earlier fault, and a closed one has been heard.
        drop(self.0.try_send(fault));
    }

    /// Sends within the permits of the message: a full mailbox means that a permit was forgotten.
    fn send<A, M>(&self, to: &Addr<A>, message: M)
    where
        A: Actor + Handler<M>,
        A::Context: ToEnvelope<A, M>,
        M: Message<Result = ()> + Send + 'static,
    {
        match to.try_send(message) {
            // A closed mailbox belongs to an actor that is being restarted or stopped: what it held is read again.
            Ok(()) | Err(SendError::Closed(_)) => {}
            Err(SendError::Full(_)) => {
                let mailbox = std::any::type_name::<A>();
                self.report(Fault::Defect(format!("the mailbox of {mailbox} is full")));
            }
        }
    }
}

/// Held by an actor that must not end: its panic ends the process.
struct Lifeline {
    faults: Faults,
    actor: &'static str,
}

impl Faults {
    const fn lifeline(self, actor: &'static str) -> Lifeline {
        Lifeline {
            faults: self,
            actor,
        }
    }
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let actor = self.actor;
            self.faults
                .report(Fault::Defect(format!("the {actor} panicked")));
        }
    }
}

/// Which worker owns a partition, and which router feeds a worker.
#[derive(Clone, Copy, Debug)]
pub struct Shards {
    /// Partitions of the store.
    pub num_partitions: u16,
    /// Workers that share them.
    pub num_workers: usize,
    /// Routers that share the workers.
    pub num_routers: usize,
}

impl Shards {
    /// The worker that owns a partition.
    #[must_use]
    pub fn worker_of(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) % self.num_workers
    }

    /// Where a partition stands among those of its worker.
    #[must_use]
    pub fn place_in_worker(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) / self.num_workers
    }

    /// The router that feeds a worker.
    #[must_use]
    pub const fn router_of(&self, worker: usize) -> usize {
        worker % self.num_routers
    }

    /// Where a worker stands among those of its router.
    #[must_use]
    pub const fn place_in_router(&self, worker: usize) -> usize {
        worker / self.num_routers
    }

    /// The partitions of a worker, in the order of [`Shards::place_in_worker`].
    pub fn partitions_of(&self, worker: usize) -> impl Iterator<Item = PartitionId> {
        let first = u16::try_from(worker).unwrap_or(u16::MAX);
        (first..self.num_partitions)
            .step_by(self.num_workers)
            .map(PartitionId)
    }

    /// The workers of a router, in the order of [`Shards::place_in_router`].
    pub fn workers_of(&self, router: usize) -> impl Iterator<Item = usize> {
        (router..self.num_workers).step_by(self.num_routers)
    }
}

/// What is owed to the broker by all workers: at its bound the input pauses.
#[derive(Debug, Default)]
pub struct OwedGauge {
    rows: AtomicUsize,
    bytes: AtomicUsize,
    changed: Notify,
}

impl OwedGauge {
    /// Owed messages and their bytes.
    #[must_use]
    pub fn now(&self) -> (usize, usize) {
        (
            self.rows.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    fn replace(&self, before: (usize, usize), after: (usize, usize)) {
        for (total, before, after) in [
            (&self.rows, before.0, after.0),
            (&self.bytes, before.1, after.1),
        ] {
            if after >= before {
                total.fetch_add(after - before, Ordering::Relaxed);
            } else {
                total.fetch_sub(before - after, Ordering::Relaxed);
            }
        }
        if after.0 < before.0 || after.1 < before.1 {
            self.changed.notify_waiters();
        }
    }

    /// Waits until no more than this is owed.
    async fn at_most(&self, rows: usize, bytes: usize) {
        loop {
            let changed = self.changed.notified();
            let (owed_rows, owed_bytes) = self.now();
            if owed_rows <= rows && owed_bytes <= bytes {
                return;
            }
            changed.await;
        }
    }
}

/// When each worker was last seen to work: seconds since the runtime began.
#[derive(Debug)]
pub struct Pulse {
    began: std::time::Instant,
    beats: Vec<AtomicU64>,
    is_recovered: Vec<AtomicBool>,
    recovery: Notify,
}

impl Pulse {
    fn new(num_workers: usize) -> Self {
        Self {
            began: std::time::Instant::now(),
            beats: (0..num_workers).map(|_| AtomicU64::new(0)).collect(),
            is_recovered: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            recovery: Notify::new(),
        }
    }

    fn beat(&self, worker: usize) {
        if let Some(beat) = self.beats.get(worker) {
            beat.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
        }
    }

    fn set_recovered(&self, worker: usize, recovered: bool) {
        if let Some(is_recovered) = self.is_recovered.get(worker) {
            is_recovered.store(recovered, Ordering::Release);
            self.recovery.notify_waiters();
        }
    }

    /// Waits until every worker has read its part of the store.
    async fn recovered(&self) {
        loop {
            let mut changed = std::pin::pin!(self.recovery.notified());
            changed.as_mut().enable();
            if self
                .is_recovered
                .iter()
                .all(|it| it.load(Ordering::Acquire))
            {
                return;
            }
            changed.await;
        }
    }

    /// The longest time since a worker was seen to work; a worker that reads its store does work.
    #[must_use]
    pub fn oldest_beat(&self) -> Duration {
        let now = self.began.elapsed().as_secs();
        let silent = self
            .beats
            .iter()
            .zip(&self.is_recovered)
            .map(|(beat, is_recovered)| {
                let is_recovered = is_recovered.load(Ordering::Acquire);
                if is_recovered {
                    now.saturating_sub(beat.load(Ordering::Relaxed))
                } else {
                    0
                }
            });
        Duration::from_secs(silent.max().unwrap_or_default())
    }
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
            owed: OwedGauge::default(),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_shards() -> impl Strategy<Value = Shards> {
        (1u16..=300).prop_flat_map(|num_partitions| {
            (1..=usize::from(num_partitions)).prop_flat_map(move |num_workers| {
                (1..=num_workers).prop_map(move |num_routers| Shards {
                    num_partitions,
                    num_workers,
                    num_routers,
                })
            })
        })
    }

    proptest! {
        #[test]
        fn each_partition_has_one_worker_and_one_place_there(shards in any_shards()) {
            let mut num_owned = 0;
            for worker in 0..shards.num_workers {
                let owned: Vec<_> = shards.partitions_of(worker).collect();
                prop_assert!(!owned.is_empty(), "worker {worker} has nothing to do");
                for (place, &partition) in owned.iter().enumerate() {
                    prop_assert_eq!(shards.worker_of(partition), worker);
                    prop_assert_eq!(shards.place_in_worker(partition), place);
                }
                num_owned += owned.len();
            }
            prop_assert_eq!(num_owned, usize::from(shards.num_partitions));
        }

        #[test]
        fn each_worker_has_one_router_and_one_place_there(shards in any_shards()) {
            let mut num_fed = 0;
            for router in 0..shards.num_routers {
                let fed: Vec<_> = shards.workers_of(router).collect();
                prop_assert!(!fed.is_empty(), "router {router} has nothing to do");
                for (place, &worker) in fed.iter().enumerate() {
                    prop_assert_eq!(shards.router_of(worker), router);
                    prop_assert_eq!(shards.place_in_router(worker), place);
                }
                num_fed += fed.len();
            }
            prop_assert_eq!(num_fed, shards.num_workers);
        }
    }

    #[test]
    fn the_oldest_beat_is_that_of_the_most_silent_worker_that_has_recovered() {
        let mut pulse = Pulse::new(2);
        let began = pulse.began.checked_sub(Duration::from_secs(30));
        pulse.began = began.expect("the machine is up for longer");
        assert_eq!(pulse.oldest_beat(), Duration::ZERO);
        pulse.set_recovered(0, true);
        pulse.beat(0);
        pulse.set_recovered(1, true);
        assert!(pulse.oldest_beat() >= Duration::from_secs(30));
        pulse.beat(1);
        assert!(pulse.oldest_beat() < Duration::from_secs(2));
    }

    #[test]
    fn an_owed_gauge_adds_up_what_the_workers_tell() {
        let gauge = OwedGauge::default();
        gauge.replace((0, 0), (3, 300));
        gauge.replace((0, 0), (1, 100));
        assert_eq!(gauge.now(), (4, 400));
        gauge.replace((3, 300), (2, 500));
        assert_eq!(gauge.now(), (3, 600));
        gauge.replace((2, 500), (0, 0));
        gauge.replace((1, 100), (0, 0));
        assert_eq!(gauge.now(), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_less_owed_is_woken_by_either_count() {
        let gauge = Arc::new(OwedGauge::default());
        gauge.replace((0, 0), (5, 500));
        let waiting = Arc::clone(&gauge);
        let woken = tokio::spawn(async move { waiting.at_most(5, 100).await });
        tokio::task::yield_now().await;
        // Fewer bytes in more rows.
        gauge.replace((5, 500), (6, 100));
        tokio::task::yield_now().await;
        gauge.replace((6, 100), (5, 90));
        tokio::time::timeout(Duration::from_secs(10), woken)
            .await
            .expect("it is woken")
            .expect("it does not panic");
    }
}
