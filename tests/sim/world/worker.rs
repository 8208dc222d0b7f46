//! Workers: deliveries, one message at a time, and what the partitions ask for after each.

use bytes::Bytes;
use tocsin::core::ids::Id;
use tocsin::core::outbox::DeadLetter;
use tocsin::core::partition::{Delivered, Delivery, Output, Reply};
use tocsin::core::time::Timestamp;
use tocsin::domains::alarms::{Command, Status};

use crate::oracle::{Kind, Message};

use super::*;

pub(super) struct Worker<D: Observed> {
    pub(super) incarnation: u64,
    pub(super) partitions: Vec<Partition<D>>,
    pub(super) mailbox: VecDeque<Arc<reader::Batch>>,
    /// The batch in hand, and how many of its messages are done.
    pub(super) current: Option<(Arc<reader::Batch>, usize)>,
    /// The number of the last batch delivered.
    pub(super) last_number: u64,
    pub(super) must_commit: bool,
    pub(super) is_committing: bool,
    pub(super) snapshots: BTreeMap<u16, snapshot::Writing>,
}

impl<D: Observed> Worker<D> {
    pub(super) fn num_owed(&self) -> usize {
        let partitions = self.partitions.iter();
        partitions.map(|it| it.outbox().num_rows()).sum()
    }
}

impl<D: Observed> World<D> {
    /// The partition that a message is delivered to.
    pub(super) fn place(&self, message: &Message, num_workers: usize) -> usize {
        if self.is(Bug::PlacementByWorkers) {
            let num_workers = num_workers as u64;
            usize::try_from(message.lane % num_workers).expect("few workers")
        } else {
            message.partition
        }
    }

    pub(super) fn has_work(&self, daemon: usize, number: usize) -> bool {
        let worker = self.daemons[daemon].workers.get(number);
        let worker = worker.and_then(Option::as_ref);
        worker.is_some_and(|it| it.current.is_some() || !it.mailbox.is_empty())
    }

    /// Delivers one message, or ends a batch.
    pub(super) fn work(&mut self, daemon: usize, number: usize) -> Checked {
        let is_early = self.is(Bug::WatermarkTooEarly);
        let num_workers = self.daemons[daemon].workers.len();
        let Some(worker) = &mut self.daemons[daemon].workers[number] else {
            return Ok(());
        };
        if worker.current.is_none() {
            worker.current = worker.mailbox.pop_front().map(|batch| (batch, 0));
            if let Some((batch, _)) = worker.current.as_ref().filter(|_| is_early) {
                let watermark = batch.watermark;
                worker
                    .partitions
                    .iter_mut()
                    .for_each(|it| it.advance(watermark));
            }
        }
        let Some((batch, done)) = worker.current.clone() else {
            return Ok(());
        };
        let mut left = batch.messages.iter().enumerate().skip(done);
        let own = left.find(|(_, (_, it))| self.place(it, num_workers) % num_workers == number);
        let Some((at, (sequence, message))) = own else {
            self.end_batch(daemon, number, &batch);
            return self.poll(daemon, number);
        };
        let worker = self.daemons[daemon].workers[number].as_mut();
        worker.expect("it works").current = Some((Arc::clone(&batch), at + 1));
        self.deliver(daemon, number, &batch, *sequence, message)
    }

    fn end_batch(&mut self, daemon: usize, number: usize, batch: &reader::Batch) {
        let Some(worker) = &mut self.daemons[daemon].workers[number] else {
            return;
        };
        let partitions = worker.partitions.iter_mut();
        partitions.for_each(|it| it.advance(batch.watermark));
        worker.current = None;
        worker.last_number = batch.number;
        worker.must_commit |= batch.messages.is_empty();
        self.trace.note(format_args!(
            "worker {daemon}.{number} has all of batch {}",
            batch.number
        ));
    }

    fn deliver(
        &mut self,
        daemon: usize,
        number: usize,
        batch: &reader::Batch,
        sequence: u64,
        message: &Message,
    ) -> Checked {
        self.count("simulated deliveries");
        if message.kind == Kind::Poison {
            let deaths = self.daemons[daemon].deaths.entry(message.uid).or_default();
            *deaths += 1;
            if *deaths <= 3 {
                self.kill_worker(daemon, number, "panics");
                return Ok(());
            }
        }
        let is_skipped = message.kind == Kind::Poison && self.is(Bug::PoisonSkipped)
            || message.kind == Kind::Junk && self.is(Bug::JunkSkipped);
        if is_skipped {
            return Ok(());
        }
        let judged_at = if self.is(Bug::WallClock) {
            self.now
        } else {
            message.timestamp
        };
        let cursor = Cursor {
            generation: batch.generation,
            sequence,
        };
        let uid = message.uid;
        self.trace.note(format_args!(
            "worker {daemon}.{number} takes {sequence} (#{uid})"
        ));
        let partition = self.place(message, self.daemons[daemon].workers.len());
        let delivery = delivery(message, cursor, judged_at);
        if let Some(owner) = self.daemons[daemon].live_mut(partition) {
            owner.deliver(batch.origin, delivery);
        }
        if message.has_reply && self.is(Bug::AnsweredAtDelivery) {
            let (to, refused) = (uid.to_string().into(), None);
            self.answer(daemon, &[Reply { to, refused }])?;
        }
        self.poll(daemon, number)
    }

    /// Does what the partitions of a worker ask for.
    pub(super) fn poll(&mut self, daemon: usize, number: usize) -> Checked {
        let mut outputs = Vec::new();
        if let Some(worker) = &mut self.daemons[daemon].workers[number] {
            for partition in &mut worker.partitions {
                let id = usize::from(partition.id().0);
                outputs.extend(std::iter::from_fn(|| partition.poll()).map(|output| (id, output)));
            }
        }
        let store = self.daemons[daemon].store;
        for (partition, output) in outputs {
            match output {
                Output::Release { position, replies } => {
                    let stored = cursor_of(self.stores[store][partition].position);
                    let released = cursor_of(position);
                    demand(
                        "I-03 nothing is released before it is durable",
                        released <= stored,
                        || format!("p{partition} releases {released:?} at {stored:?}"),
                    )?;
                    self.answer(daemon, &replies)?;
                }
                Output::Publish(owed) => self.owe(daemon, partition, owed)?,
                Output::InstallSnapshot(head) => self.snapshot_is_durable(daemon, number, head),
            }
        }
        Ok(())
    }

    pub(super) fn expire(&mut self, daemon: usize, number: usize) {
        if let Some(worker) = &mut self.daemons[daemon].workers[number]
            && worker.current.is_none()
        {
            worker.partitions.iter_mut().for_each(Partition::expire);
            self.trace
                .note(format_args!("worker {daemon}.{number} expires"));
        }
    }
}

fn delivery(message: &Message, cursor: Cursor, timestamp: u64) -> Delivery<Command> {
    let id = |text: &str| Id::new(text).expect("a valid id");
    let refused = |reason: &'static str| {
        Delivered::Refused(Box::new(DeadLetter {
            reason: reason.into(),
            detail: "not for us".into(),
            subject: "AlarmStatusChanged".into(),
            payload: Bytes::copy_from_slice(message.bytes.as_bytes()),
        }))
    };
    let body = match &message.kind {
        Kind::Junk => refused("bad_json"),
        Kind::Poison => refused("internal"),
        Kind::Request { user } => Delivered::Command(Command::SendDigest {
            user: UserId(id(user)),
        }),
        Kind::Change {
            user,
            alarm,
            status,
            at_s,
        } => Delivered::Command(Command::StatusChanged {
            user: UserId(id(user)),
            alarm: AlarmId(id(alarm)),
            status: Status::parse(status).expect("a status"),
            changed_at: Timestamp::from_seconds(*at_s),
        }),
    };
    Delivery {
        cursor,
        timestamp: Timestamp::from_nanos(timestamp),
        placement: message.lane,
        body,
        reply_to: message.has_reply.then(|| message.uid.to_string().into()),
    }
}
