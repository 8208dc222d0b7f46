//! The process: what dies and starts again, and the workers that deliver.

use super::*;

impl<D: Observed> World<D> {
    pub(super) fn start_process(&mut self) {
        if !self.is_up {
            self.is_up = true;
            self.process += 1;
            self.note("the process starts");
        }
    }

    pub(super) fn kill_process(&mut self) {
        if !self.is_up {
            return;
        }
        self.note("the process dies");
        self.is_up = false;
        self.is_connected = false;
        self.highest = None;
        self.workers.iter_mut().for_each(|worker| *worker = None);
        self.retained.iter_mut().for_each(VecDeque::clear);
        self.acks.clear();
        self.tasks.clear();
        self.confirmations.clear();
        self.deaths.clear();
        if !self.plan.has_stream {
            self.input = Stream::new(self.now);
        }
        if self.is(Bug::IdsFromCounter) {
            self.num_ids = 0;
        }
    }

    pub(super) fn kill_worker(&mut self, number: usize, why: &str) {
        if self.workers[number].take().is_some() {
            self.note(format!("worker {number} {why}"));
            let num_workers = self.plan.num_workers;
            self.tasks
                .retain(|task| task.partition % num_workers != number);
            if self.plan.has_stream {
                self.is_connected = false;
            }
        }
    }

    pub(super) fn start_worker(&mut self, number: usize) -> Checked {
        if !self.is_up || self.workers[number].is_some() {
            return Ok(());
        }
        self.note(format!("worker {number} starts"));
        self.incarnations += 1;
        let mut partitions = Vec::new();
        for partition in (number..self.stored.len()).step_by(self.plan.num_workers) {
            partitions.push(self.claim(partition)?);
        }
        let is_behind = |it: &Partition<D>| {
            let generation = it.durable().position.map(|it| it.cursor.generation);
            generation.is_some_and(|generation| generation < self.generation)
        };
        let is_session = !self.plan.has_stream;
        let begins_at = partitions
            .iter()
            .map(|it| {
                if is_session && is_behind(it) {
                    self.generation
                } else {
                    0
                }
            })
            .collect();
        if self.is(Bug::BatchForgotten) {
            self.retained[number].clear();
        }
        self.workers[number] = Some(Worker {
            incarnation: self.incarnations,
            partitions,
            mailbox: self.retained[number].clone(),
            current: None,
            is_fresh: true,
            begins_at,
            snapshots: BTreeMap::new(),
        });
        if self.plan.has_stream {
            self.is_connected = false;
        }
        self.poll(number)
    }

    pub(super) fn claim(&mut self, partition: usize) -> Result<Partition<D>, Failure> {
        let stored = &mut self.stored[partition];
        if !(self.bug == Some(Bug::StaleCommitApplied)) {
            stored.header.epoch = Epoch(stored.header.epoch.0 + 1);
        }
        let recovered = recover(stored, partition, &self.plan.settings);
        let is_live = picture(&recovered) == stored.picture;
        let is_there = stored.header.position == stored.position;
        if self.plan.has_stream {
            self.oracle.forget_uncovered(partition);
        }
        demand("I-06 recovered is live", is_live, || {
            format!(
                "partition {partition}: {}\nwas {}",
                picture(&recovered),
                self.stored[partition].picture
            )
        })?;
        demand("I-02 position belongs to its commit", is_there, || {
            format!("partition {partition} recovers {:?}", recovered.durable())
        })?;
        Ok(recovered)
    }

    pub(super) fn live(&self, partition: usize) -> Option<&Partition<D>> {
        let worker = self.workers[partition % self.plan.num_workers].as_ref()?;
        worker.partitions.get(partition / self.plan.num_workers)
    }

    pub(super) fn live_mut(&mut self, partition: usize) -> Option<&mut Partition<D>> {
        let worker = self.workers[partition % self.plan.num_workers].as_mut()?;
        worker.partitions.get_mut(partition / self.plan.num_workers)
    }

    /// Delivers one message, or ends a batch.
    pub(super) fn work(&mut self, number: usize) -> Checked {
        let Some(worker) = &mut self.workers[number] else {
            return Ok(());
        };
        if worker.current.is_none() {
            worker.current = worker.mailbox.pop_front().map(|batch| (batch, 0));
            if let Some((batch, _)) = &worker.current
                && self.bug == Some(Bug::WatermarkTooEarly)
            {
                worker
                    .partitions
                    .iter_mut()
                    .for_each(|it| it.advance(batch.watermark));
            }
        }
        let Some((batch, done)) = &mut worker.current else {
            return Ok(());
        };
        let Some((sequence, message)) = batch.messages.get(*done).cloned() else {
            worker
                .partitions
                .iter_mut()
                .for_each(|it| it.advance(batch.watermark));
            worker.current = None;
            self.note(format!("worker {number} ends a batch"));
            return self.poll(number);
        };
        *done += 1;
        let cursor = Cursor {
            generation: batch.generation,
            sequence,
        };
        if message.kind == Kind::Poison {
            let deaths = self.deaths.entry(message.uid).or_default();
            *deaths += 1;
            if *deaths <= 3 {
                self.kill_worker(number, "panics");
                return Ok(());
            }
            if self.is(Bug::PoisonSkipped) {
                return Ok(());
            }
        }
        let clock = if self.is(Bug::WallClock) {
            self.now
        } else {
            message.timestamp
        };
        let (origin, partition) = (self.origin(), message.partition);
        self.note(format!(
            "worker {number} takes {sequence} (#{})",
            message.uid
        ));
        if let Some(owner) = self.live_mut(partition) {
            owner.deliver(origin, delivery(&message, cursor, clock));
        }
        self.poll(number)
    }

    pub(super) fn expire(&mut self, number: usize) {
        if let Some(worker) = &mut self.workers[number]
            && worker.current.is_none()
        {
            worker.partitions.iter_mut().for_each(Partition::expire);
            self.note(format!("worker {number} expires"));
        }
    }
}
