//! The store: commits on their way, the fence, answers, and snapshots.

use super::*;

impl<D: Observed> World<D> {
    pub(super) fn commit(&mut self, number: usize, raises_quiet: bool) -> Checked {
        let Some(worker) = &mut self.workers[number] else {
            return Ok(());
        };
        let is_early = self.bug == Some(Bug::WatermarkTooEarly);
        if worker.current.is_some() && !is_early {
            return Ok(());
        }
        let mut commits = Vec::new();
        for (place, partition) in worker.partitions.iter_mut().enumerate() {
            if !raises_quiet && !partition.is_commit_due() {
                continue;
            }
            let Some(commit) = partition.commit() else {
                continue;
            };
            let begins_at = std::mem::take(&mut worker.begins_at[place]);
            let picture = picture(partition);
            commits.push(Ready {
                commit,
                begins_at,
                picture,
            });
        }
        if commits.is_empty() {
            return Ok(());
        }
        let incarnation = worker.incarnation;
        let numbers: Vec<_> = commits
            .iter()
            .map(|it| format!("p{} n{}", it.commit.partition, it.commit.number.0))
            .collect();
        self.note(format!("worker {number} commits {}", numbers.join(", ")));
        if self.is(Bug::PositionBeforeCommit) {
            for ready in &commits {
                let stored = &mut self.stored[usize::from(ready.commit.partition.0)];
                stored.header.position = ready.commit.position;
            }
        }
        if self.is(Bug::ReleasedBeforeDurable) {
            let headers = commits.iter().map(header_of).collect();
            self.acks.push((number, incarnation, headers));
        }
        let worker = number;
        self.calls.push(Call {
            worker,
            incarnation,
            commits,
        });
        self.acknowledge_if(Bug::ReleasedBeforeDurable)
    }

    pub(super) fn acknowledge_if(&mut self, bug: Bug) -> Checked {
        if self.is(bug) {
            self.acknowledge()
        } else {
            Ok(())
        }
    }

    /// The oldest call of some worker reaches the store; now and then the answer is that it failed.
    pub(super) fn apply_call(&mut self, may_fail: bool) -> Checked {
        self.settle_positions();
        if self.calls.is_empty() {
            return Ok(());
        }
        let worker = self.calls[self.rng.place(self.calls.len())].worker;
        let oldest = self.calls.iter().position(|call| call.worker == worker);
        let call = self.calls.remove(oldest.expect("it is there"));
        let fate = if may_fail { self.rng.below(100) } else { 99 };
        if fate >= 2 {
            for ready in &call.commits {
                self.apply(&call, ready)?;
            }
        }
        if fate < 4 && self.is_up {
            self.note(format!("a write fails (and was done: {})", fate >= 2));
            self.kill_process();
            return Ok(());
        }
        let headers = call.commits.iter().map(header_of).collect();
        if !self.is(Bug::ReleasedBeforeDurable) {
            self.acks.push((call.worker, call.incarnation, headers));
        }
        Ok(())
    }

    pub(super) fn settle_positions(&mut self) {
        for stored in &mut self.stored {
            if let Some(position) = stored.position_to_come.take() {
                stored.header.position = Some(position);
            }
        }
    }

    pub(super) fn apply(&mut self, call: &Call, ready: &Ready) -> Checked {
        let commit = &ready.commit;
        let partition = usize::from(commit.partition.0);
        let owner = self.workers[call.worker].as_ref();
        let is_owners = owner.is_some_and(|it| it.incarnation == call.incarnation);
        let is_fenced = self.stored[partition].header.epoch != commit.epoch
            || self.stored[partition].header.number.next() != commit.number;
        if is_fenced && !self.is(Bug::StaleCommitApplied) {
            self.note(format!("p{partition} n{} is fenced", commit.number.0));
            return demand("I-01 commits follow", !is_owners, || {
                format!(
                    "the owner's {} is refused at {:?}",
                    commit.number.0, self.stored[partition].header
                )
            });
        }
        self.note(format!("p{partition} n{} is durable", commit.number.0));
        let stored = &mut self.stored[partition];
        demand(
            "I-01 commits follow",
            stored.header.number.next() == commit.number,
            || {
                format!(
                    "partition {partition}: {:?} after {:?}",
                    commit.number, stored.header.number
                )
            },
        )?;
        let (before, after) = (
            stored.position.map(|it| it.cursor),
            commit.position.map(|it| it.cursor),
        );
        demand("I-02 no position goes back", before <= after, || {
            format!("partition {partition}: {after:?} after {before:?}")
        })?;
        check_removals(&stored.shadow, &commit.rows, &self.output)?;
        restore(&mut stored.shadow, &commit.rows);
        stored.journal.push(commit.clone());
        stored.picture.clone_from(&ready.picture);
        stored.position = commit.position;
        let is_late = self.bug == Some(Bug::PositionAfterCommit);
        let position = if is_late {
            stored.header.position
        } else {
            commit.position
        };
        stored.position_to_come = commit.position.filter(|_| is_late);
        stored.header = Header {
            number: commit.number,
            position,
            ..stored.header
        };
        if self.bug == Some(Bug::OneGlobalPosition) {
            for other in self
                .stored
                .iter_mut()
                .filter(|it| it.header.position.is_some())
            {
                other.header.position = commit.position;
                other.position = commit.position;
            }
        }
        if let Some(position) = commit.position {
            self.oracle
                .cover(partition, position.cursor, ready.begins_at);
        }
        Ok(())
    }

    pub(super) fn acknowledge(&mut self) -> Checked {
        if self.acks.is_empty() {
            return Ok(());
        }
        let (number, incarnation, headers) = self.acks.remove(0);
        let is_current = |worker: &Worker<D>| worker.incarnation == incarnation;
        if !self.workers[number].as_ref().is_some_and(is_current) {
            return Ok(());
        }
        self.note(format!("worker {number} hears of its commit"));
        let mut owned = (number..self.stored.len()).step_by(self.plan.num_workers);
        for (partition, header) in headers
            .iter()
            .map(|(partition, header)| (*partition, header))
        {
            debug_assert!(
                owned.any(|it| it == partition),
                "a worker's own partitions, in order"
            );
            if let Some(owner) = self.live_mut(partition) {
                owner.committed(header.number);
            }
        }
        self.trim_retained(number);
        self.poll(number)
    }

    pub(super) fn trim_retained(&mut self, number: usize) {
        let Some(worker) = &self.workers[number] else {
            return;
        };
        let durable = worker
            .partitions
            .iter()
            .map(|it| it.durable().position.map(|it| it.cursor));
        let Some(Some(lowest)) = durable.min() else {
            return;
        };
        self.retained[number].retain(|batch| batch.watermark.cursor > lowest);
    }

    pub(super) fn write_snapshot(&mut self, number: usize, may_begin: bool) -> Checked {
        let is_lost = self.rng.chance(20);
        let place = self.rng.next();
        let Some(worker) = &mut self.workers[number] else {
            return Ok(());
        };
        let place = usize::try_from(place % worker.partitions.len() as u64).expect("a place");
        let partition = &mut worker.partitions[place];
        let id = partition.id().0;
        if may_begin && !worker.snapshots.contains_key(&id) && partition.begin_snapshot().is_some()
        {
            worker.snapshots.insert(id, (Rows::default(), is_lost));
            self.note(format!("p{id} begins a snapshot"));
            return Ok(());
        }
        let Some((rows, is_lost)) = worker.snapshots.get_mut(&id) else {
            return Ok(());
        };
        let before = rows.as_bytes().len();
        let has_more = partition.write_snapshot(60, rows);
        let has_moved = before != rows.as_bytes().len();
        if !has_more && !*is_lost && self.bug == Some(Bug::SnapshotTooEarly) {
            let head = SnapshotHead {
                partition: partition.id(),
                header: partition.durable(),
            };
            return self.install(number, head);
        }
        if has_moved {
            self.note(format!("p{id} writes a slice"));
        }
        self.poll(number)
    }

    pub(super) fn install(&mut self, number: usize, head: SnapshotHead) -> Checked {
        let id = head.partition.0;
        let written = self.workers[number]
            .as_mut()
            .and_then(|it| it.snapshots.remove(&id));
        let Some((rows, false)) = written else {
            return Ok(());
        };
        self.note(format!(
            "p{id} installs a snapshot of n{}",
            head.header.number.0
        ));
        let cuts_too_far = self.is(Bug::JournalCutTooFar);
        let stored = &mut self.stored[usize::from(id)];
        let cut = if cuts_too_far {
            stored.header.number
        } else {
            head.header.number
        };
        stored.snapshot = Some((head, rows));
        stored.journal.retain(|commit| commit.number > cut);
        let recovered = recover(stored, usize::from(id), &self.plan.settings);
        demand(
            "I-08 a snapshot is durable",
            picture(&recovered) == picture(&stored.shadow),
            || {
                format!(
                    "p{id} reads {}\nfor {}",
                    picture(&recovered),
                    picture(&stored.shadow)
                )
            },
        )
    }
}
