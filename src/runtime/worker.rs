//! The actor that owns partitions and makes their commits durable.
//!
//! Owns: the partitions `p` with `p % N` = its number. Mailbox: bounded by the permits inside the batches and by
//! the publishes under way. Dies of: a panic, or a commit that is refused; its router restarts it from the store.
//! Stops: with its arbiter, after a flush.
//!
//! All ready commits go to the store in one call, and one call is in flight: what arrives meanwhile joins the
//! next. Handlers are sync; nothing is released before its commit.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::oneshot;
use tracing::{debug, error};

use crate::bus::wire;
use crate::core::ids::{CommitNumber, PartitionId};
use crate::core::partition::{Delivered, Delivery, Domain, Output, Partition, Reply};
use crate::core::position::{Cursor, Origin};
use crate::core::rows::{CorruptRow, Rows};
use crate::store::{Receipt, Recovery, SnapshotWriter, StoreError};

use super::delivery::{Committed, Flush, Outcome, Publish, Settled, Work, WorkerDown};
use super::metrics::{Aggregator, Metric, Observation, Observed, Source};
use super::producer::Producer;
use super::router::{Router, producer_of};
use super::{Fault, Shared};

/// How often a worker looks after itself.
const TICK: Duration = Duration::from_secs(1);
/// After so many ticks a worker commits its watermark although nothing was delivered.
const TICKS_PER_IDLE_COMMIT: u64 = 3;
/// So many messages are approached before the first of them is applied.
const APPROACHED: usize = 32;
/// How much of a snapshot is written between two messages.
const SNAPSHOT_SLICE_BYTES: usize = 256 * 1024;
/// How long the snapshot waits between two slices.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(1);

/// Owns partitions.
pub(super) struct Worker<D: Domain> {
    shared: Arc<Shared<D>>,
    router: Addr<Router<D>>,
    producers: Vec<Addr<Producer<D>>>,
    aggregator: Addr<Aggregator>,
    /// In the order of `Shards::place_in_worker`.
    partitions: Vec<Partition<D>>,
    /// The number of the last batch delivered.
    last_number: u64,
    must_commit: bool,
    is_committing: bool,
    is_waiting_for_claim: bool,
    /// Messages that may be published, and that the producers had no room for.
    unsent: VecDeque<Publish<D::Outgoing>>,
    snapshots: Snapshots,
    num_ticks: u64,
    /// Messages refused since the last tick, by reason.
    refusals: HashMap<&'static str, u64>,
    flushing: Vec<oneshot::Sender<()>>,
    notice: DeathNotice<D>,
}

/// Tells the router when the worker is gone, however that happens.
struct DeathNotice<D: Domain> {
    router: Addr<Router<D>>,
    worker: usize,
    incarnation: u32,
    /// The message that is being applied.
    at: Option<Cursor>,
    /// Set when the process ends anyway: nobody is to start the worker again.
    is_last: bool,
}

impl<D: Domain> Drop for DeathNotice<D> {
    fn drop(&mut self) {
        if self.is_last {
            return;
        }
        let (worker, incarnation, at) = (self.worker, self.incarnation, self.at);
        // A router that is gone, too, is being stopped.
        drop(self.router.try_send(WorkerDown {
            worker,
            incarnation,
            at,
        }));
    }
}

#[derive(Default)]
struct Snapshots {
    due: VecDeque<PartitionId>,
    current: Option<CurrentSnapshot>,
}

struct CurrentSnapshot {
    /// The partition's place among the worker's.
    place: usize,
    writer: Box<dyn SnapshotWriter>,
    /// Rows that the writer has not taken yet.
    rows: Rows,
    has_more: bool,
    is_durable: bool,
}

impl<D: Domain> Worker<D> {
    pub(super) fn new(
        worker: usize,
        incarnation: u32,
        shared: Arc<Shared<D>>,
        router: Addr<Router<D>>,
        producers: Vec<Addr<Producer<D>>>,
        aggregator: Addr<Aggregator>,
    ) -> Self {
        let notice = DeathNotice {
            router: router.clone(),
            worker,
            incarnation,
            at: None,
            is_last: false,
        };
        Self {
            shared,
            router,
            producers,
            aggregator,
            partitions: Vec::new(),
            last_number: 0,
            must_commit: false,
            is_committing: false,
            is_waiting_for_claim: false,
            unsent: VecDeque::new(),
            snapshots: Snapshots::default(),
            num_ticks: 0,
            refusals: HashMap::new(),
            flushing: Vec::new(),
            notice,
        }
    }

    /// Claims the partitions and reads their rows.
    fn recover(&mut self) -> Result<(), StoreError> {
        let store = &self.shared.edges.store;
        let ids: Vec<_> = self
            .shared
            .shards
            .partitions_of(self.notice.worker)
            .collect();
        let settings = &self.shared.domain_settings;
        self.partitions = ids
            .iter()
            .map(|&id| Partition::new(store.id(), id, settings.clone()))
            .collect();
        let mut folding = Folding {
            partitions: &mut self.partitions,
            num_workers: self.shared.shards.num_workers,
        };
        let headers = store.claim(&ids, &mut folding)?;
        for (partition, header) in self.partitions.iter_mut().zip(headers) {
            partition.recovered(header);
        }
        Ok(())
    }

    fn partition(&mut self, id: PartitionId) -> Option<&mut Partition<D>> {
        self.partitions
            .get_mut(self.shared.shards.place_in_worker(id))
    }

    /// Prefetches what the next messages need, side by side.
    fn approach(&self, deliveries: &[(PartitionId, Delivery<D::Command>)]) {
        let mut places = [0; APPROACHED];
        for step in 0..D::STEPS {
            for ((id, delivery), place) in deliveries.iter().zip(&mut places) {
                let at = self.shared.shards.place_in_worker(*id);
                if let Some(partition) = self.partitions.get(at) {
                    *place = partition.approach(delivery, step, *place);
                }
            }
        }
    }

    fn deliver(&mut self, origin: Origin, id: PartitionId, delivery: Delivery<D::Command>) {
        self.notice.at = Some(delivery.cursor);
        if let Delivered::Refused(letter) = &delivery.body
            && let Cow::Borrowed(reason) = letter.reason
        {
            *self.refusals.entry(reason).or_default() += 1;
        }
        if let Some(partition) = self.partition(id) {
            partition.deliver(origin, delivery);
        }
    }

    /// Performs what the partitions ask for, and commits what waits. Every handler ends here.
    fn perform(&mut self, ctx: &mut Context<Self>) {
        for place in 0..self.partitions.len() {
            while let Some(output) = self.partitions.get_mut(place).and_then(Partition::poll) {
                match output {
                    Output::Release { replies, .. } => self.answer(replies),
                    Output::Publish(owed) => {
                        let Some(partition) = self.partitions.get(place).map(Partition::id) else {
                            continue;
                        };
                        self.unsent.push_back(Publish { partition, owed });
                    }
                    Output::InstallSnapshot(_) => {
                        if let Some(current) = &mut self.snapshots.current {
                            current.is_durable = true;
                        }
                    }
                }
            }
        }
        self.hand_out();
        self.tell_owed();
        self.commit(ctx);
    }

    fn answer(&self, replies: Vec<Reply>) {
        for reply in replies {
            let payload = wire::encode_reply(reply.refused.as_deref());
            self.shared.edges.output.send(reply.to.into(), payload);
        }
    }

    /// Hands messages to the producers; what they have no room for waits until they have settled some.
    fn hand_out(&mut self) {
        while let Some(publish) = self.unsent.pop_front() {
            let Some(producer) = producer_of(&self.producers, &publish) else {
                return;
            };
            match producer.try_send(publish) {
                Ok(()) => {}
                Err(SendError::Full(publish)) => return self.unsent.push_front(publish),
                // The producers stop last: the message stays owed in the store.
                Err(SendError::Closed(_)) => return,
            }
        }
    }

    fn tell_owed(&mut self) {
        let owed = self
            .partitions
            .iter()
            .map(Partition::outbox)
            .fold((0, 0), |sum, outbox| {
                (sum.0 + outbox.num_rows(), sum.1 + outbox.num_bytes())
            });
        self.shared.owed.set(self.notice.worker, owed);
    }

    /// Commits what was delivered, if anything, and raises the quiet partitions with it.
    fn commit(&mut self, ctx: &mut Context<Self>) {
        if self.must_commit || self.partitions.iter().any(Partition::is_commit_due) {
            self.commit_all(ctx);
        }
    }

    /// Commits whatever waits.
    fn commit_all(&mut self, ctx: &mut Context<Self>) {
        if self.is_committing {
            return;
        }
        if !self.shared.edges.claim.is_held() {
            return self.wait_for_claim(ctx);
        }
        self.must_commit = false;
        let commits: Vec<_> = self
            .partitions
            .iter_mut()
            .filter_map(Partition::commit)
            .collect();
        let number = self.last_number;
        if commits.is_empty() {
            return self.tell_committed(number);
        }
        let issued: Vec<_> = commits.iter().map(|it| (it.partition, it.number)).collect();
        self.is_committing = true;
        let durable = self.shared.edges.store.commit(commits).into_actor(self);
        ctx.spawn(durable.map(move |result, worker, ctx| {
            worker.on_committed(number, &issued, result, ctx);
        }));
    }

    fn wait_for_claim(&mut self, ctx: &mut Context<Self>) {
        if !self.is_waiting_for_claim {
            self.is_waiting_for_claim = true;
            let held = self.shared.edges.claim.held().into_actor(self);
            ctx.spawn(held.map(|(), worker, ctx| {
                worker.is_waiting_for_claim = false;
                worker.perform(ctx);
            }));
        }
    }

    fn on_committed(
        &mut self,
        number: u64,
        issued: &[(PartitionId, CommitNumber)],
        result: Result<Receipt, StoreError>,
        ctx: &mut Context<Self>,
    ) {
        self.is_committing = false;
        let receipt = match result {
            Ok(receipt) => receipt,
            Err(error @ StoreError::Fenced { .. }) => {
                // The live state is ahead of the store; only reading it again makes them agree.
                error!(%error, worker = self.notice.worker, "commit refused");
                return ctx.stop();
            }
            Err(error) => return self.end(error, ctx),
        };
        for &(partition, number) in issued {
            if let Some(partition) = self.partition(partition) {
                partition.committed(number);
            }
        }
        self.tell_committed(number);
        for partition in receipt.snapshot_due {
            self.snapshots.due.push_back(partition);
        }
        self.write_snapshot(ctx);
        self.perform(ctx);
        self.finish_flush(ctx);
    }

    /// Ends the process, and this worker at once: nothing more of it is released or committed.
    fn end(&mut self, error: StoreError, ctx: &mut Context<Self>) {
        self.shared.faults.report(Fault::Store(error));
        self.notice.is_last = true;
        ctx.stop();
    }

    fn tell_committed(&self, number: u64) {
        let (worker, incarnation) = (self.notice.worker, self.notice.incarnation);
        self.shared.faults.send(
            &self.router,
            Committed {
                worker,
                incarnation,
                number,
            },
        );
    }

    fn finish_flush(&mut self, ctx: &mut Context<Self>) {
        if self.flushing.is_empty() || self.is_committing {
            return;
        }
        if self.partitions.iter().any(Partition::has_news) && self.shared.edges.claim.is_held() {
            return self.commit_all(ctx);
        }
        for flushed in self.flushing.drain(..) {
            // Who asked may have given up waiting.
            flushed.send(()).ok();
        }
    }

    /// Begins the next snapshot that is due, if none is under way.
    fn write_snapshot(&mut self, ctx: &mut Context<Self>) {
        while self.snapshots.current.is_none()
            && let Some(id) = self.snapshots.due.pop_front()
        {
            let place = self.shared.shards.place_in_worker(id);
            let head = self
                .partitions
                .get_mut(place)
                .and_then(Partition::begin_snapshot);
            let Some(writer) = head.and_then(|it| self.shared.edges.store.begin_snapshot(it))
            else {
                continue;
            };
            let (rows, has_more, is_durable) = (Rows::default(), true, false);
            let current = CurrentSnapshot {
                place,
                writer,
                rows,
                has_more,
                is_durable,
            };
            self.snapshots.current = Some(current);
            ctx.run_later(SNAPSHOT_PAUSE, Self::continue_snapshot);
        }
    }

    /// Writes a slice of the snapshot under way, or puts it in place.
    fn continue_snapshot(&mut self, ctx: &mut Context<Self>) {
        let Some(current) = &mut self.snapshots.current else {
            return;
        };
        if current.rows.is_empty()
            && current.has_more
            && let Some(partition) = self.partitions.get_mut(current.place)
        {
            current.has_more = partition.write_snapshot(SNAPSHOT_SLICE_BYTES, &mut current.rows);
        }
        if !current.rows.is_empty() && current.writer.write(&current.rows) {
            current.rows.clear();
        }
        let is_written = current.rows.is_empty() && !current.has_more;
        if is_written && current.is_durable {
            if let Some(current) = self.snapshots.current.take() {
                current.writer.install();
            }
            self.write_snapshot(ctx);
        } else {
            ctx.run_later(SNAPSHOT_PAUSE, Self::continue_snapshot);
        }
        self.perform(ctx);
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.num_ticks += 1;
        self.shared.pulse.beat(self.notice.worker);
        self.partitions.iter_mut().for_each(Partition::expire);
        self.observe();
        if self.num_ticks.is_multiple_of(TICKS_PER_IDLE_COMMIT) {
            self.must_commit = true;
        }
        self.perform(ctx);
    }

    fn observe(&mut self) {
        let codec = self.shared.codec;
        let refused = self.refusals.drain();
        let mut observations: Vec<_> = refused
            .map(|(reason, num)| Observation::count(Metric::Refusals, num).with("reason", reason))
            .collect();
        for partition in &mut self.partitions {
            (codec.observe)(partition.take_tally(), &mut observations);
            (codec.observe_state)(partition.state(), &mut observations);
        }
        let observed = Observed {
            source: Source::Worker(self.notice.worker),
            observations,
        };
        if self.aggregator.try_send(observed).is_err() {
            debug!("the metrics of a second are lost: the aggregator is behind");
        }
    }
}

/// Feeds stored rows to the partitions of a worker.
struct Folding<'a, D: Domain> {
    partitions: &'a mut [Partition<D>],
    num_workers: usize,
}

impl<D: Domain> Recovery for Folding<'_, D> {
    fn row(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), CorruptRow> {
        let place = usize::from(partition.0) / self.num_workers;
        let partition = self.partitions.get_mut(place);
        partition
            .ok_or(CorruptRow("it belongs to no partition asked for"))?
            .restore(key, value)
    }
}

impl<D: Domain> Actor for Worker<D> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Err(error) = self.recover() {
            return self.end(error, ctx);
        }
        self.tell_owed();
        self.shared.pulse.beat(self.notice.worker);
        self.shared.pulse.set_recovered(self.notice.worker, true);
        ctx.run_interval(TICK, Self::tick);
        self.perform(ctx);
    }
}

impl<D: Domain> Drop for Worker<D> {
    fn drop(&mut self) {
        self.shared.pulse.set_recovered(self.notice.worker, false);
    }
}

impl<D: Domain> Handler<Work<D::Command>> for Worker<D> {
    type Result = ();

    fn handle(&mut self, work: Work<D::Command>, ctx: &mut Self::Context) {
        let mut deliveries = work.deliveries.into_iter();
        while !deliveries.as_slice().is_empty() {
            self.notice.at = None;
            self.approach(deliveries.as_slice());
            for (id, delivery) in deliveries.by_ref().take(APPROACHED) {
                self.deliver(work.origin, id, delivery);
            }
        }
        self.notice.at = None;
        for partition in &mut self.partitions {
            partition.advance(work.watermark);
        }
        self.last_number = work.number;
        self.must_commit |= work.must_commit;
        self.perform(ctx);
    }
}

impl<D: Domain> Handler<Settled> for Worker<D> {
    type Result = ();

    fn handle(&mut self, settled: Settled, ctx: &mut Self::Context) {
        if let Some(partition) = self.partition(settled.partition) {
            match settled.outcome {
                Outcome::Published(sequence) => partition.published(settled.key, sequence),
                Outcome::Parked => partition.parked(settled.key),
            }
        }
        self.perform(ctx);
    }
}

impl<D: Domain> Handler<Flush> for Worker<D> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _flush: Flush, ctx: &mut Self::Context) -> Self::Result {
        // What was decided since the last tick belongs to the last aggregate.
        self.observe();
        let (sender, flushed) = oneshot::channel();
        self.flushing.push(sender);
        self.finish_flush(ctx);
        Box::pin(async move {
            // The worker may end before it has flushed: nothing of it was released.
            flushed.await.ok();
        })
    }
}
