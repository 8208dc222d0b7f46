//! The actor that puts batches in order and shards them: worker = partition % N.
//!
//! Owns: its workers, and every batch until they have committed it. Mailbox: bounded by the permits inside the
//! batches. Dies of: nothing that a message can hold. Stops: with its arbiter.
//!
//! A worker that panics, or whose commit is refused, is started again from the store, and gets every batch that
//! it had not committed once more; what it had, it drops by position. A message at which a worker panics three
//! times goes to the dead letters. The other workers never notice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::prelude::*;
use bytes::Bytes;
use tracing::{error, warn};

use crate::core::outbox::DeadLetter;
use crate::core::partition::{Delivered, Domain};
use crate::core::position::Cursor;

use super::delivery::{Batch, Committed, Flush, Publish, Route, Settled, Work, WorkerDown};
use super::listener::read;
use super::metrics::{Aggregator, Metric, Observation, Observed, Source};
use super::producer::Producer;
use super::worker::Worker;
use super::{Fault, Lifeline, Shared, start_actor};

/// A message at which a worker panics so often goes to the dead letters.
const MAX_PANICS: u32 = 3;
/// A worker that fails so often without a commit in between is a defect of the program. Panics at a message do not
/// count: after [`MAX_PANICS`] of them the message is one of the dead letters.
const MAX_FAILURES: u32 = 10;

/// A worker to be: its number and its thread.
pub(super) type Seat = (usize, ArbiterHandle);

/// Shards batches among its workers.
pub(super) struct Router<D: Domain> {
    shared: Arc<Shared<D>>,
    address: Addr<Self>,
    producers: Vec<Addr<Producer<D>>>,
    aggregator: Addr<Aggregator>,
    /// In the order of `Shards::place_in_router`.
    slots: Vec<Slot<D>>,
    /// The number of the next batch to shard.
    next: u64,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Route<D::Command>>,
    /// Batches that are not committed everywhere, in order.
    retained: VecDeque<Retained>,
    /// How often a worker panicked at a message.
    panics: HashMap<Cursor, u32>,
    _lifeline: Lifeline,
}

struct Slot<D: Domain> {
    worker: usize,
    arbiter: ArbiterHandle,
    address: Addr<Worker<D>>,
    incarnation: u32,
    num_failures: u32,
}

struct Retained {
    number: u64,
    batch: Arc<Batch>,
    /// The workers that have not committed their part yet.
    waiting: Vec<usize>,
}

impl<D: Domain> Router<D> {
    pub(super) fn new(
        shared: Arc<Shared<D>>,
        address: Addr<Self>,
        producers: Vec<Addr<Producer<D>>>,
        aggregator: Addr<Aggregator>,
        seats: Vec<Seat>,
    ) -> Self {
        let mut router = Self {
            _lifeline: shared.faults.clone().lifeline("router"),
            shared,
            address,
            producers,
            aggregator,
            slots: Vec::new(),
            next: 1,
            early: BTreeMap::new(),
            retained: VecDeque::new(),
            panics: HashMap::new(),
        };
        for (worker, arbiter) in seats {
            let address = router.start_worker(worker, &arbiter, 0);
            let (incarnation, num_failures) = (0, 0);
            router.slots.push(Slot {
                worker,
                arbiter,
                address,
                incarnation,
                num_failures,
            });
        }
        router
    }

    fn start_worker(
        &self,
        worker: usize,
        arbiter: &ArbiterHandle,
        incarnation: u32,
    ) -> Addr<Worker<D>> {
        let (shared, router) = (Arc::clone(&self.shared), self.address.clone());
        let (producers, aggregator) = (self.producers.clone(), self.aggregator.clone());
        let mailbox = self.shared.settings.worker_mailbox();
        start_actor(arbiter, mailbox, move |_| {
            Worker::new(worker, incarnation, shared, router, producers, aggregator)
        })
    }

    /// Gives every worker its part of a batch, and keeps the batch until they have committed it.
    fn shard(&mut self, route: Route<D::Command>) {
        let Route {
            number,
            batch,
            deliveries,
        } = route;
        let shards = self.shared.shards;
        // An empty batch says where a generation begins: every partition commits that before its messages.
        let must_commit = batch.raw.messages.is_empty();
        let share = deliveries.len() / self.slots.len().max(1) + 1;
        let mut by_worker: Vec<_> = self
            .slots
            .iter()
            .map(|_| Vec::with_capacity(share.min(deliveries.len())))
            .collect();
        for (partition, delivery) in deliveries {
            let place = shards.place_in_router(shards.worker_of(partition));
            if let Some(part) = by_worker.get_mut(place) {
                part.push((partition, delivery));
            }
        }
        let mut waiting = Vec::new();
        for (slot, deliveries) in self.slots.iter().zip(by_worker) {
            if must_commit || !deliveries.is_empty() {
                waiting.push(slot.worker);
            }
            let (origin, watermark) = (batch.raw.origin, batch.raw.watermark);
            let work = Work {
                number,
                origin,
                watermark,
                deliveries,
                must_commit,
            };
            self.shared.faults.send(&slot.address, work);
        }
        if !waiting.is_empty() {
            self.retained.push_back(Retained {
                number,
                batch,
                waiting,
            });
        }
    }

    /// Sends a restarted worker every batch that it has not committed.
    fn send_again(&self, slot: &Slot<D>) {
        let shards = self.shared.shards;
        for retained in self
            .retained
            .iter()
            .filter(|it| it.waiting.contains(&slot.worker))
        {
            let raw = &retained.batch.raw;
            let deliveries: Vec<_> = raw
                .messages
                .iter()
                .map(|message| (message, read(&self.shared, raw.generation, message)))
                .filter(|(_, (partition, _))| shards.worker_of(*partition) == slot.worker)
                .map(|(message, (partition, mut delivery))| {
                    if self
                        .panics
                        .get(&delivery.cursor)
                        .is_some_and(|&num| num >= MAX_PANICS)
                    {
                        delivery.body = Delivered::Refused(Box::new(DeadLetter {
                            reason: "internal".into(),
                            detail: format!("a worker panicked {MAX_PANICS} times at this message"),
                            subject: message.subject.to_string(),
                            payload: Bytes::copy_from_slice(&message.payload),
                        }));
                    }
                    (partition, delivery)
                })
                .collect();
            let work = Work {
                number: retained.number,
                origin: raw.origin,
                watermark: raw.watermark,
                deliveries,
                must_commit: raw.messages.is_empty(),
            };
            self.shared.faults.send(&slot.address, work);
        }
    }

    /// Starts a worker anew; what it failed at is counted unless that was a message.
    fn restart(&mut self, place: usize, is_at_message: bool) {
        let Some(slot) = self.slots.get(place) else {
            return;
        };
        let incarnation = slot.incarnation + 1;
        let num_failures = slot.num_failures + u32::from(!is_at_message);
        if num_failures > MAX_FAILURES {
            let worker = slot.worker;
            self.shared.faults.report(Fault::Defect(format!(
                "worker {worker} failed {num_failures} times without a commit in between"
            )));
            return;
        }
        let (worker, arbiter) = (slot.worker, slot.arbiter.clone());
        let address = self.start_worker(worker, &arbiter, incarnation);
        let slot = Slot {
            worker,
            arbiter,
            address,
            incarnation,
            num_failures,
        };
        self.send_again(&slot);
        if let Some(place) = self.slots.get_mut(place) {
            *place = slot;
        }
    }
}

impl<D: Domain> Actor for Router<D> {
    type Context = Context<Self>;
}

impl<D: Domain> Handler<Route<D::Command>> for Router<D> {
    type Result = ();

    fn handle(&mut self, route: Route<D::Command>, _ctx: &mut Self::Context) {
        self.early.insert(route.number, route);
        while let Some(route) = self.early.remove(&self.next) {
            self.next += 1;
            self.shard(route);
        }
    }
}

impl<D: Domain> Handler<Committed> for Router<D> {
    type Result = ();

    fn handle(&mut self, committed: Committed, _ctx: &mut Self::Context) {
        let place = self.shared.shards.place_in_router(committed.worker);
        match self.slots.get_mut(place) {
            Some(slot) if slot.incarnation == committed.incarnation => slot.num_failures = 0,
            _ => return,
        }
        for retained in &mut self.retained {
            if retained.number > committed.number {
                break;
            }
            retained
                .waiting
                .retain(|&worker| worker != committed.worker);
        }
        while let Some(retained) = self.retained.pop_front_if(|it| it.waiting.is_empty()) {
            let done = retained.batch.raw.watermark.cursor;
            self.panics.retain(|&cursor, _| cursor > done);
        }
    }
}

impl<D: Domain> Handler<WorkerDown> for Router<D> {
    type Result = ();

    fn handle(&mut self, down: WorkerDown, _ctx: &mut Self::Context) {
        let place = self.shared.shards.place_in_router(down.worker);
        let is_current = self
            .slots
            .get(place)
            .is_some_and(|slot| slot.incarnation == down.incarnation);
        if !is_current || self.shared.is_stopping.load(Ordering::Acquire) {
            return;
        }
        let worker = down.worker;
        let is_at_message = down.at.is_some_and(|cursor| {
            let num_panics = self.panics.entry(cursor).or_default();
            *num_panics += 1;
            let (sequence, num_panics) = (cursor.sequence, *num_panics);
            let follows = if num_panics < MAX_PANICS {
                "it is restarted and tries again"
            } else {
                "it is restarted, and the message goes to the dead letters"
            };
            error!(
                worker,
                sequence, num_panics, follows, "worker panicked at a message"
            );
            num_panics <= MAX_PANICS
        });
        if down.at.is_none() {
            warn!(worker, "worker ended, it is restarted from the store");
        }
        let observations = vec![Observation::count(Metric::WorkerRestarts, 1)];
        // Telemetry may be lost.
        drop(self.aggregator.try_send(Observed {
            source: Source::Other,
            observations,
        }));
        self.restart(place, is_at_message);
    }
}

impl<D: Domain> Handler<Settled> for Router<D> {
    type Result = ();

    fn handle(&mut self, settled: Settled, _ctx: &mut Self::Context) {
        let shards = self.shared.shards;
        let place = shards.place_in_router(shards.worker_of(settled.partition));
        if let Some(slot) = self.slots.get(place) {
            self.shared.faults.send(&slot.address, settled);
        }
    }
}

impl<D: Domain> Handler<Flush> for Router<D> {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _flush: Flush, _ctx: &mut Self::Context) -> Self::Result {
        let flushes: Vec<_> = self
            .slots
            .iter()
            .map(|slot| slot.address.send(Flush))
            .collect();
        Box::pin(async move {
            for flush in flushes {
                // A worker that is gone has nothing left to flush.
                flush.await.ok();
            }
        })
    }
}

/// Which producer publishes the messages of a lane.
pub(super) fn producer_of<'a, D: Domain>(
    producers: &'a [Addr<Producer<D>>],
    publish: &Publish<D::Outgoing>,
) -> Option<&'a Addr<Producer<D>>> {
    let place = publish.owed.lane % u64::try_from(producers.len()).unwrap_or(u64::MAX).max(1);
    producers.get(usize::try_from(place).unwrap_or_default())
}
