//! Processes and their routers: what dies, what starts again with another number of workers, and what a
//! restarted worker is handed once more.

use super::*;

/// Puts batches in order, and keeps each until every worker that has a part of it has committed.
pub(super) struct Router {
    workers: Vec<usize>,
    /// The number of the next batch to hand out.
    next: u64,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Arc<reader::Batch>>,
    pub(super) retained: VecDeque<Retained>,
}

pub(super) struct Retained {
    pub(super) batch: Arc<reader::Batch>,
    /// The workers that have not committed their part.
    pub(super) waiting: Vec<usize>,
}

impl<D: Observed> World<D> {
    /// A process starts, with as many workers and routers as its configuration says this time.
    pub(super) fn start_process(&mut self, daemon: usize) {
        if self.daemons[daemon].is_up {
            return;
        }
        let num_workers = 1 + self.choices.place(self.plan.num_partitions.min(3));
        let num_routers = 1 + self.choices.place(num_workers.min(2));
        self.num_processes += 1;
        let at = &mut self.daemons[daemon];
        if at.process > 0 && num_workers != at.workers.len() {
            self.counts.add("rebalancings under load", 1);
        }
        at.is_up = true;
        at.process = self.num_processes;
        at.workers = (0..num_workers).map(|_| None).collect();
        at.owed_by_dead = vec![0; num_workers];
        let routers = (0..num_routers).map(|router| Router {
            workers: (router..num_workers).step_by(num_routers).collect(),
            next: 1,
            early: BTreeMap::new(),
            retained: VecDeque::new(),
        });
        at.routers = routers.collect();
        let process = at.process;
        self.trace.note(format_args!(
            "daemon {daemon} starts as process {process}: {num_workers} workers, {num_routers} routers"
        ));
    }

    /// It is killed, or told to stop and gives its claim back.
    pub(super) fn stop_process(&mut self, daemon: usize) {
        if self.daemons[daemon].is_up {
            if self.choices.chance(30) && !self.daemons[daemon].is_frozen {
                self.give_claim_back(daemon);
            }
            self.kill_process(daemon);
        }
    }

    pub(super) fn kill_process(&mut self, daemon: usize) {
        let at = &mut self.daemons[daemon];
        if !at.is_up {
            return;
        }
        let (store, clock, num_ids) = (at.store, at.clock, at.num_ids);
        let workers = std::mem::take(&mut at.workers);
        let is_snapshotting = |it: &worker::Worker<D>| !it.snapshots.is_empty();
        let is_at_snapshot = workers.iter().flatten().any(is_snapshotting);
        let process = at.process;
        *at = Daemon {
            process,
            clock,
            workers: workers.iter().map(|_| None).collect(),
            num_ids: if self.bug == Some(Bug::IdsFromCounter) {
                0
            } else {
                num_ids
            },
            ..Daemon::new(store)
        };
        if !self.plan.has_stream {
            self.broker.input = input::Stream::new(self.now);
        }
        self.trace.note(format_args!("daemon {daemon} dies"));
        self.count("crashes of a daemon");
        if is_at_snapshot {
            self.count("crashes in the middle of a snapshot");
        }
    }

    /// It stands still, and does not know it; or goes on as if no time had passed.
    pub(super) fn freeze_or_thaw(&mut self, daemon: usize) {
        let at = &mut self.daemons[daemon];
        at.is_frozen = at.is_up && !at.is_frozen;
        let is_frozen = at.is_frozen;
        self.trace
            .note(format_args!("daemon {daemon} stands still: {is_frozen}"));
        if is_frozen {
            self.count("daemons frozen");
        }
    }

    pub(super) fn kill_worker(&mut self, daemon: usize, worker: usize, why: &str) {
        let at = &mut self.daemons[daemon];
        if at.is_frozen {
            return;
        }
        let Some(dead) = at.workers[worker].take() else {
            return;
        };
        at.owed_by_dead[worker] = dead.num_owed();
        self.trace
            .note(format_args!("worker {daemon}.{worker} {why}"));
        self.count("crashes of a worker");
    }

    /// A batch reaches a router, which hands out whatever is in turn now.
    pub(super) fn route(&mut self, daemon: usize) {
        if self.daemons[daemon].routes.is_empty() {
            return;
        }
        let num_routes = self.daemons[daemon].routes.len();
        let place = self.choices.place(num_routes);
        let by_arrival = self.is(Bug::BatchesByArrival);
        let (number, batch) = self.daemons[daemon].routes.swap_remove(place);
        let router = &mut self.daemons[daemon].routers[number];
        if batch.number != router.next {
            self.counts.add("batches out of order", 1);
        }
        router.early.insert(batch.number, batch);
        let router = &mut self.daemons[daemon].routers[number];
        let mut in_turn = Vec::new();
        while let Some(batch) = router.early.remove(&router.next) {
            router.next += 1;
            in_turn.push(batch);
        }
        if by_arrival {
            in_turn.extend(std::mem::take(&mut router.early).into_values());
        }
        for batch in in_turn {
            self.shard(daemon, number, &batch);
        }
    }

    fn shard(&mut self, daemon: usize, router: usize, batch: &Arc<reader::Batch>) {
        let num_workers = self.daemons[daemon].workers.len();
        let workers = self.daemons[daemon].routers[router].workers.clone();
        let has_part = |worker: usize| {
            let mut messages = batch.messages.iter();
            messages.any(|(_, it)| self.place(it, num_workers) % num_workers == worker)
        };
        // An empty batch says where a generation begins: every partition commits that.
        let waiting: Vec<_> = workers
            .iter()
            .copied()
            .filter(|&worker| batch.messages.is_empty() || has_part(worker))
            .collect();
        for worker in workers {
            if let Some(worker) = &mut self.daemons[daemon].workers[worker] {
                worker.mailbox.push_back(Arc::clone(batch));
            }
        }
        self.trace.note(format_args!(
            "router {daemon}.{router} hands out batch {}",
            batch.number
        ));
        if waiting.is_empty() {
            return self.let_go(daemon, batch.number);
        }
        let router = &mut self.daemons[daemon].routers[router];
        router.retained.push_back(Retained {
            batch: Arc::clone(batch),
            waiting,
        });
    }

    /// A worker has committed its part of every batch up to this one.
    pub(super) fn trim_retained(&mut self, daemon: usize, worker: usize, up_to: u64) {
        let at = &mut self.daemons[daemon];
        let place = worker % at.routers.len();
        let Some(router) = at.routers.get_mut(place) else {
            return;
        };
        for retained in &mut router.retained {
            if retained.batch.number <= up_to {
                retained.waiting.retain(|&other| other != worker);
            }
        }
        let mut done = Vec::new();
        while let Some(retained) = router.retained.pop_front_if(|it| it.waiting.is_empty()) {
            done.push(retained.batch.number);
        }
        for number in done {
            self.let_go(daemon, number);
        }
    }

    /// A worker claims its partitions, reads them, and is handed what it has not committed.
    pub(super) fn start_worker(&mut self, daemon: usize, number: usize) -> Checked {
        let at = &self.daemons[daemon];
        if !at.is_up || at.workers[number].is_some() {
            return Ok(());
        }
        self.trace
            .note(format_args!("worker {daemon}.{number} starts"));
        self.num_incarnations += 1;
        let (store, num_workers) = (at.store, at.workers.len());
        let mut partitions = Vec::new();
        for partition in (number..self.plan.num_partitions).step_by(num_workers) {
            partitions.push(self.claim_partition(store, partition)?);
        }
        let at = &mut self.daemons[daemon];
        let router = number % at.routers.len();
        let router = &mut at.routers[router];
        let is_for_it = |it: &&Retained| it.waiting.contains(&number);
        let again = router.retained.iter().filter(is_for_it);
        let mut mailbox: VecDeque<_> = again.map(|it| Arc::clone(&it.batch)).collect();
        if !mailbox.is_empty() {
            self.counts
                .add("batches delivered again", mailbox.len() as u64);
        }
        if self.bug == Some(Bug::BatchForgotten) {
            mailbox.clear();
        }
        if self.bug == Some(Bug::PermitLeaked) {
            let numbers = mailbox.iter().map(|it| it.number);
            for number in numbers {
                if let Some((permits, _)) = at.in_hand.get_mut(&number) {
                    *permits = 0;
                }
            }
        }
        at.workers[number] = Some(worker::Worker {
            incarnation: self.num_incarnations,
            partitions,
            mailbox,
            current: None,
            last_number: 0,
            must_commit: false,
            is_committing: false,
            snapshots: BTreeMap::new(),
        });
        self.poll(daemon, number)
    }
}
