//! Snapshots, each step on its own: begun, written in slices, durable, put in place, the journal cut.

use tocsin::core::partition::SnapshotHead;
use tocsin::core::rows::Rows;

use super::*;

pub(super) struct Writing {
    rows: Rows,
    is_written: bool,
    /// Set once everything that it may contain is durable.
    head: Option<SnapshotHead>,
    is_lost: bool,
}

impl<D: Observed> World<D> {
    /// The next step of some snapshot of a worker.
    pub(super) fn snapshot(&mut self, daemon: usize, number: usize, may_begin: bool) -> Checked {
        let is_lost = self.choices.chance(20);
        let place = self.choices.place(self.plan.num_partitions);
        let is_early = self.is(Bug::SnapshotTooEarly);
        let store = self.daemons[daemon].store;
        if may_begin && self.choices.chance(20) {
            return self.cut_journal(store, place);
        }
        let Some(worker) = &mut self.daemons[daemon].workers[number] else {
            return Ok(());
        };
        let place = place % worker.partitions.len();
        let partition = &mut worker.partitions[place];
        let id = partition.id().0;
        if may_begin && !worker.snapshots.contains_key(&id) && partition.begin_snapshot().is_some()
        {
            let (rows, is_written, head) = (Rows::default(), false, None);
            let writing = Writing {
                rows,
                is_written,
                head,
                is_lost,
            };
            worker.snapshots.insert(id, writing);
            self.trace.note(format_args!("p{id} begins a snapshot"));
            return Ok(());
        }
        let Some(writing) = worker.snapshots.get_mut(&id) else {
            return Ok(());
        };
        if let (true, Some(head)) = (writing.is_written, writing.head) {
            return self.install(daemon, number, head);
        }
        if writing.is_written {
            return Ok(());
        }
        writing.is_written = !partition.write_snapshot(60, &mut writing.rows);
        if is_early && writing.is_written {
            writing.head = Some(SnapshotHead {
                partition: partition.id(),
                header: partition.durable(),
            });
        }
        self.trace.note(format_args!("p{id} writes a slice"));
        self.poll(daemon, number)
    }

    pub(super) fn snapshot_is_durable(&mut self, daemon: usize, number: usize, head: SnapshotHead) {
        let Some(worker) = &mut self.daemons[daemon].workers[number] else {
            return;
        };
        if let Some(writing) = worker.snapshots.get_mut(&head.partition.0) {
            writing.head = Some(head);
            self.trace.note(format_args!(
                "all that p{}'s snapshot may contain is durable",
                head.partition.0
            ));
        }
    }

    fn install(&mut self, daemon: usize, number: usize, head: SnapshotHead) -> Checked {
        let id = head.partition.0;
        let at = &mut self.daemons[daemon];
        let store = at.store;
        let worker = at.workers[number].as_mut();
        let Some(writing) = worker.and_then(|it| it.snapshots.remove(&id)) else {
            return Ok(());
        };
        let stored = &mut self.stores[store][usize::from(id)];
        let known = stored.snapshot.as_ref().map(|(head, _)| head.header.number);
        if writing.is_lost || known >= Some(head.header.number) {
            return Ok(());
        }
        stored.snapshot = Some((head, writing.rows));
        self.trace.note(format_args!(
            "p{id} installs a snapshot of n{}",
            head.header.number.0
        ));
        self.count("snapshots put in place");
        self.check_recovery(store, usize::from(id))
    }

    /// What the snapshot covers is removed from the journal.
    fn cut_journal(&mut self, store: usize, partition: usize) -> Checked {
        let is_too_far = self.is(Bug::JournalCutTooFar);
        let stored = &mut self.stores[store][partition];
        let Some((head, _)) = &stored.snapshot else {
            return Ok(());
        };
        let cut = if is_too_far {
            stored.header.number
        } else {
            head.header.number
        };
        stored.journal.retain(|commit| commit.number > cut);
        self.trace.note(format_args!(
            "p{partition}'s journal is cut up to n{}",
            cut.0
        ));
        self.count("journals cut");
        self.check_recovery(store, partition)
    }

    fn check_recovery(&self, store: usize, partition: usize) -> Checked {
        let read = Picture::of(&self.recover(store, partition));
        let shadow = Picture::of(&self.stores[store][partition].shadow);
        demand("I-08 a snapshot is durable", read.is(&shadow), || {
            format!("p{partition} reads {read:?}\nfor {shadow:?}")
        })
    }
}
