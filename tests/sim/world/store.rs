//! The store: commits on their way, the fence, answers. A commit may fail, or be applied although it is said to
//! have failed, or reach the store after its sender has died.

use std::collections::BTreeSet;

use tocsin::core::ids::{CommitNumber, Epoch};
use tocsin::core::partition::{Commit, Header, SnapshotHead};
use tocsin::core::rows::Rows;

use super::*;

/// One partition in a store.
pub(super) struct Stored<D: Observed> {
    pub(super) header: Header,
    pub(super) journal: Vec<Commit>,
    pub(super) snapshot: Option<(SnapshotHead, Rows)>,
    /// Every applied commit, folded at once: what is truly durable.
    pub(super) shadow: Partition<D>,
    /// What was live when the last applied commit was taken, and its position.
    picture: Picture,
    pub(super) position: Option<Position>,
    /// Planted: the position of a commit whose rows are in place already.
    position_to_come: Option<Position>,
    /// Every message that was ever owed.
    pub(super) ever_owed: BTreeSet<OutboxKey>,
}

impl<D: Observed> Stored<D> {
    pub(super) fn new(empty: Partition<D>) -> Self {
        Self {
            header: Header::default(),
            journal: Vec::new(),
            snapshot: None,
            picture: Picture::of(&empty),
            shadow: empty,
            position: None,
            position_to_come: None,
            ever_owed: BTreeSet::new(),
        }
    }
}

/// A commit on its way.
struct Ready {
    commit: Commit,
    picture: Picture,
}

/// What one worker commits at once.
pub(super) struct Call {
    store: usize,
    daemon: usize,
    process: u64,
    worker: usize,
    incarnation: u64,
    /// Up to which batch.
    last_number: u64,
    commits: Vec<Ready>,
}

/// To a worker's incarnation: these commits are durable, or its commit was refused.
pub(super) struct Ack {
    worker: usize,
    incarnation: u64,
    last_number: u64,
    durable: Vec<(usize, Header)>,
    is_refused: bool,
}

impl Call {
    fn answer(&self, is_refused: bool) -> Ack {
        Ack {
            worker: self.worker,
            incarnation: self.incarnation,
            last_number: self.last_number,
            durable: self.commits.iter().map(header_of).collect(),
            is_refused,
        }
    }
}

fn header_of(ready: &Ready) -> (usize, Header) {
    let Commit {
        partition,
        epoch,
        number,
        position,
        ..
    } = ready.commit;
    let header = Header {
        epoch,
        number,
        position,
    };
    (usize::from(partition.0), header)
}

pub(super) fn restore<D: Observed>(partition: &mut Partition<D>, rows: &Rows) {
    for row in rows {
        let (key, value) = row.expect("whole rows");
        partition.restore(key, value).expect("rows of ours");
    }
}

impl<D: Observed> World<D> {
    /// What a recovery reads: the snapshot, then every commit after the number at which it began.
    pub(super) fn recover(&self, store: usize, partition: usize) -> Partition<D> {
        let stored = &self.stores[store][partition];
        let settings = D::settings(self.plan.settings, self.bug);
        let mut recovered = Partition::new(store_id(store), partition_id(partition), settings);
        let mut after = CommitNumber::default();
        if let Some((head, rows)) = &stored.snapshot {
            restore(&mut recovered, rows);
            after = head.header.number;
        }
        let commits = stored.journal.iter().filter(|it| it.number > after);
        commits.for_each(|commit| restore(&mut recovered, &commit.rows));
        recovered.recovered(stored.header);
        recovered
    }

    /// Raises the epoch of a partition, and reads it.
    pub(super) fn claim_partition(
        &mut self,
        store: usize,
        partition: usize,
    ) -> Result<Partition<D>, Failure> {
        let is_raised = !self.is(Bug::StaleCommitApplied);
        let stored = &mut self.stores[store][partition];
        if is_raised {
            stored.header.epoch = Epoch(stored.header.epoch.0 + 1);
        }
        let recovered = self.recover(store, partition);
        let stored = &self.stores[store][partition];
        let (read, live) = (Picture::of(&recovered), &stored.picture);
        demand("I-06 recovered is live", read.is(live), || {
            format!("p{partition}: {read:?}\nwas {live:?}")
        })?;
        demand(
            "I-02 position belongs to its commit",
            stored.header.position == stored.position,
            || format!("p{partition} recovers {:?}", recovered.durable()),
        )?;
        self.count("recoveries of a partition");
        Ok(recovered)
    }

    /// A worker commits what waits; one call of it is under way.
    pub(super) fn commit(&mut self, daemon: usize, number: usize, raises_quiet: bool) -> Checked {
        let holds_claim = self.holds_claim(daemon);
        let is_early = self.is(Bug::WatermarkTooEarly);
        let at = &mut self.daemons[daemon];
        let (store, process) = (at.store, at.process);
        let Some(worker) = &mut at.workers[number] else {
            return Ok(());
        };
        if worker.current.is_some() && !is_early || worker.is_committing || !holds_claim {
            return Ok(());
        }
        let is_due = worker.partitions.iter().any(Partition::is_commit_due);
        if !(raises_quiet || worker.must_commit || is_due) {
            return Ok(());
        }
        worker.must_commit = false;
        let mut commits = Vec::new();
        for partition in &mut worker.partitions {
            if let Some(commit) = partition.commit() {
                let picture = Picture::of(partition);
                commits.push(Ready { commit, picture });
            }
        }
        let (incarnation, last_number) = (worker.incarnation, worker.last_number);
        if commits.is_empty() {
            self.trim_retained(daemon, number, last_number);
            return Ok(());
        }
        worker.is_committing = true;
        self.trace.note(format_args!(
            "worker {daemon}.{number} commits {:?}",
            commits
                .iter()
                .map(|it| (it.commit.partition.0, it.commit.number.0))
                .collect::<Vec<_>>()
        ));
        let call = Call {
            store,
            daemon,
            process,
            worker: number,
            incarnation,
            last_number,
            commits,
        };
        if self.is(Bug::PositionBeforeCommit) {
            for ready in &call.commits {
                let partition = usize::from(ready.commit.partition.0);
                self.stores[store][partition].header.position = ready.commit.position;
            }
        }
        let is_told_early = self.is(Bug::ReleasedBeforeDurable);
        if is_told_early {
            self.daemons[daemon].acks.push(call.answer(false));
        }
        self.calls.push(call);
        if is_told_early {
            return self.acknowledge(daemon);
        }
        Ok(())
    }

    /// A call reaches its store, now and then long after its sender has died.
    pub(super) fn apply_call(&mut self, may_fail: bool) -> Checked {
        self.settle_positions();
        if self.calls.is_empty() {
            return Ok(());
        }
        let place = self.choices.place(self.calls.len());
        let call = self.calls.remove(place);
        let fate = if may_fail { self.choices.below(100) } else { 0 };
        let is_owners = self.is_of_owner(&call);
        let is_applied = fate < 98;
        let mut is_refused = false;
        if is_applied {
            for ready in &call.commits {
                is_refused |= !self.apply(&call, ready)?;
            }
            if !self.daemons[call.daemon].is_up || self.daemons[call.daemon].process != call.process
            {
                self.count("commits that outlived their process");
            }
        }
        if fate >= 96 {
            self.trace
                .note(format_args!("a write fails (and was done: {is_applied})"));
            self.count("failed writes");
            if is_applied {
                self.count("failed writes that were done");
            }
            if is_owners {
                self.kill_process(call.daemon);
            }
            return Ok(());
        }
        let is_current = self.daemons[call.daemon].process == call.process;
        if is_current && !self.is(Bug::ReleasedBeforeDurable) {
            self.daemons[call.daemon].acks.push(call.answer(is_refused));
        }
        Ok(())
    }

    fn is_of_owner(&self, call: &Call) -> bool {
        let at = &self.daemons[call.daemon];
        let worker = at.workers.get(call.worker).and_then(Option::as_ref);
        at.process == call.process && worker.is_some_and(|it| it.incarnation == call.incarnation)
    }

    fn settle_positions(&mut self) {
        for stored in self.stores.iter_mut().flatten() {
            if let Some(position) = stored.position_to_come.take() {
                stored.header.position = Some(position);
            }
        }
    }

    /// Applies a commit, or refuses it; returns whether it was applied.
    fn apply(&mut self, call: &Call, ready: &Ready) -> Result<bool, Failure> {
        let commit = &ready.commit;
        let partition = usize::from(commit.partition.0);
        let is_owners = self.is_of_owner(call) && self.stores.len() == self.daemons.len();
        let accepts_stale = self.is(Bug::StaleCommitApplied);
        let stored = &self.stores[call.store][partition];
        let is_fenced =
            stored.header.epoch != commit.epoch || stored.header.number.next() != commit.number;
        if is_fenced && !accepts_stale {
            self.trace
                .note(format_args!("p{partition} n{} is fenced", commit.number.0));
            demand("I-01 commits follow", !is_owners, || {
                format!("the owner's {:?} is refused", commit.number)
            })?;
            self.count("commits of earlier owners refused");
            return Ok(false);
        }
        demand(
            "I-01 commits follow",
            stored.header.number.next() == commit.number,
            || format!("p{partition}: {:?} out of turn", commit.number),
        )?;
        let (before, after) = (cursor_of(stored.position), cursor_of(commit.position));
        demand("I-02 no position goes back", before <= after, || {
            format!("p{partition}: {after:?} after {before:?}")
        })?;
        self.check_removals(&stored.shadow, &commit.rows)?;
        self.trace.note(format_args!(
            "p{partition} n{} is durable in store {}",
            commit.number.0, call.store
        ));
        self.count("commits");
        self.make_durable(call.store, partition, ready);
        if let Some(position) = commit.position {
            self.oracle
                .cover(call.store, call.process, partition, position.cursor);
        }
        Ok(true)
    }

    fn make_durable(&mut self, store: usize, partition: usize, ready: &Ready) {
        let commit = &ready.commit;
        let is_late = self.is(Bug::PositionAfterCommit);
        let is_global = self.is(Bug::OneGlobalPosition);
        let stored = &mut self.stores[store][partition];
        restore(&mut stored.shadow, &commit.rows);
        let owed = stored.shadow.outbox().rows_from(OutboxKey(0));
        stored.ever_owed.extend(owed.map(|it| it.key));
        stored.journal.push(commit.clone());
        stored.picture.clone_from(&ready.picture);
        stored.position = commit.position;
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
        if is_global {
            let others = self.stores[store].iter_mut();
            for other in others.filter(|it| it.header.position.is_some()) {
                other.header.position = commit.position;
                other.position = commit.position;
            }
        }
    }

    /// I-04: an owed message leaves the store only once the broker has it.
    fn check_removals(&self, shadow: &Partition<D>, rows: &Rows) -> Checked {
        for row in rows {
            let (key, value) = row.expect("whole rows");
            let (Some((&1, key)), None) = (key.split_first(), value) else {
                continue;
            };
            let key = OutboxKey::from_row_key(key).expect("an outbox key");
            let mut owed = shadow.outbox().rows_from(key);
            let Some(owed) = owed.next().filter(|it| it.key == key) else {
                continue;
            };
            demand(
                "I-04 owed until confirmed",
                self.output_of(&owed.body)
                    .holds(owed.lane, &content(&owed.body)),
                || format!("{} is gone unpublished", owed.id),
            )?;
        }
        Ok(())
    }

    /// A worker hears of one of its calls.
    pub(super) fn acknowledge(&mut self, daemon: usize) -> Checked {
        if self.daemons[daemon].acks.is_empty() {
            return Ok(());
        }
        let place = self.choices.place(self.daemons[daemon].acks.len());
        let ack = self.daemons[daemon].acks.remove(place);
        let number = ack.worker;
        let at = &mut self.daemons[daemon];
        let Some(worker) = at.workers.get_mut(number).and_then(Option::as_mut) else {
            return Ok(());
        };
        if worker.incarnation != ack.incarnation {
            return Ok(());
        }
        if ack.is_refused {
            self.kill_worker(daemon, number, "ends: its commit was refused");
            return Ok(());
        }
        worker.is_committing = false;
        self.trace
            .note(format_args!("worker {daemon}.{number} hears of its commit"));
        for (partition, header) in &ack.durable {
            if let Some(owner) = self.daemons[daemon].live_mut(*partition) {
                owner.committed(header.number);
            }
        }
        self.trim_retained(daemon, number, ack.last_number);
        self.poll(daemon, number)
    }
}
