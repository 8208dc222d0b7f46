//! Whole deployments in one thread without a clock: broker, stores, network and daemons around real
//! [`Partition`]s. Each action is small, the next one is drawn, and everything may die between two.
//!
//! ```text
//!                       ┌─ daemon, one or two; only the holder of the claim reads, commits and sends ───────────┐
//! publishers ─► Stream ─► Reader ─► routers ─► Worker{Partition…} ─► calls ─► Stored ─► acks ─► replies          │
//!                  ▲    │ permits   batches in any order      │                             │                    │
//!               claim ──┤                                     └─► tasks ─► network ─► Output, dead letters       │
//!                       │                                           ▲                        │                   │
//!                       └───────────────────────────────────────────┴─ answers, settled ◄────┘ ──────────────────┘
//! ```
//!
//! | file | what lives there |
//! |---|---|
//! | `input` | publishers, those who wait for an answer, the stream, and what harms it |
//! | `reader` | the reader of a daemon: positions, generations, permits, the bound of what is owed |
//! | `process` | processes and routers: what dies, starts again, and is handed out once more |
//! | `worker` | deliveries |
//! | `store` | commits on their way, the fence, answers |
//! | `snapshot` | snapshots, each step on its own, and the cut of the journal |
//! | `producer` | what is owed, in parts, parked, looked for, sent again |
//! | `output` | the network, the output streams with their duplicate window, and what harms them |
//! | `claim` | who owns the input |
//!
//! Checks that can be made at once are made at once; the [`Oracle`] judges the rest when the faults have stopped
//! and nothing moves.

mod claim;
mod input;
mod output;
mod process;
mod producer;
mod reader;
mod snapshot;
mod store;
mod worker;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tocsin::bus::wire::DIGEST;
use tocsin::core::ids::{PartitionId, StoreId, UserId};
use tocsin::core::outbox::{Body, OutboxKey, Owed};
use tocsin::core::partition::Partition;
use tocsin::core::position::{Cursor, Position};
use tocsin::domains::alarms::{AlarmId, AlarmRow, Digest, Settings};

use crate::choices::{Choices, Counts};
use crate::oracle::Oracle;
use crate::planted::{Bug, Observed};

use claim::Claimant;
pub(crate) use output::Whole;

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000_000 * SECOND;
/// The output's duplicate window; an attempt stays on the network for a quarter of it at the most.
const WINDOW: u64 = 120 * SECOND;
/// So many messages may a daemon have in hand.
const PERMITS: usize = 8;
/// So many messages may be owed before the input waits.
const MAX_OWED: usize = 2;
/// So many rounds may it take until nothing moves any more after the last fault.
const ROUNDS_TO_REST: usize = 600;
/// Nothing has moved for so many rounds: long enough for a claim to be taken over.
const ROUNDS_STILL: usize = 16;

/// A check that did not hold.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) check: String,
    pub(crate) detail: String,
}

impl Failure {
    pub(crate) fn new(check: impl Into<String>, detail: impl Into<String>) -> Self {
        let (check, detail) = (check.into(), detail.into());
        Self { check, detail }
    }
}

type Checked = Result<(), Failure>;

fn demand(check: &str, holds: bool, detail: impl FnOnce() -> String) -> Checked {
    if holds {
        return Ok(());
    }
    Err(Failure::new(check, detail()))
}

/// What happened, line by line, for those who want to read it.
#[derive(Default)]
pub(crate) struct Trace {
    is_kept: bool,
    lines: RefCell<Vec<String>>,
    now: Cell<u64>,
    moves: Cell<u64>,
}

impl Trace {
    /// Something moved.
    fn note(&self, what: fmt::Arguments<'_>) {
        self.moves.set(self.moves.get() + 1);
        self.remark(what);
    }

    /// Something happened that goes on for ever, and is no reason to wait for the next.
    fn remark(&self, what: fmt::Arguments<'_>) {
        if self.is_kept {
            let at = (self.now.get() - START) / 1_000_000;
            self.lines.borrow_mut().push(format!("{at:>9} ms  {what}"));
        }
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into_inner()
    }
}

/// One daemon: a process that may be down, or frozen.
struct Daemon<D: Observed> {
    /// Which store it uses.
    store: usize,
    is_up: bool,
    is_frozen: bool,
    /// Unique in the world.
    process: u64,
    /// How wrong its wall clock is.
    clock: i64,
    max_payload: usize,
    workers: Vec<Option<worker::Worker<D>>>,
    /// What each owed that died, until another has read it back.
    owed_by_dead: Vec<usize>,
    routers: Vec<process::Router>,
    /// Batches on their way to a router.
    routes: Vec<(usize, Arc<reader::Batch>)>,
    reader: reader::Reader,
    permits: usize,
    /// Of each batch in hand: its permits, and how many routers have not let go of it.
    in_hand: BTreeMap<u64, (usize, usize)>,
    /// How often a worker died at a message.
    deaths: BTreeMap<u64, u32>,
    tasks: Vec<producer::Task>,
    acks: Vec<store::Ack>,
    answers: Vec<producer::Answer>,
    settled: Vec<producer::Settled>,
    claimant: Claimant,
    num_ids: u64,
    num_tokens: u64,
}

/// What the broker holds.
struct Broker {
    input: input::Stream,
    digests: output::OutputStream,
    dead_letters: output::OutputStream,
    claim: Option<claim::Claimed>,
    last_claim: u64,
    /// Claims whose sender has given up waiting.
    stray_claims: Vec<claim::Write>,
    /// How wrong its clock is.
    clock: i64,
    max_payload: usize,
    /// What nobody may publish for now.
    refused: Option<&'static str>,
}

/// What a seed decides before anything happens.
struct Plan {
    num_partitions: usize,
    has_stream: bool,
    /// Whether the stream may be rolled back or made anew; if not, hours may pass.
    is_rewritten: bool,
    /// Whether there are two daemons, and whether each has a store of its own.
    deployment: Deployment,
    /// How much of what may go wrong does, in percent.
    unrest: u64,
    num_steps: usize,
    rest_seed: u64,
    settings: Settings,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Deployment {
    One,
    TwoOnOneStore,
    TwoStores,
}

pub(crate) struct World<D: Observed> {
    choices: Choices,
    bug: Option<Bug>,
    plan: Plan,
    now: u64,
    trace: Trace,
    pub(crate) counts: Counts,
    oracle: Oracle,
    broker: Broker,
    waiting: Vec<input::Waiting>,
    next_uid: u64,
    /// By store and partition.
    stores: Vec<Vec<store::Stored<D>>>,
    calls: Vec<store::Call>,
    daemons: Vec<Daemon<D>>,
    num_processes: u64,
    num_incarnations: u64,
    /// What the output streams have lost again.
    num_lost_outputs: u64,
    /// How many moments were told apart.
    num_moments: u64,
    is_resting: bool,
    network: Vec<output::Attempt>,
}

impl<D: Observed> World<D> {
    pub(crate) fn new(mut choices: Choices, bug: Option<Bug>, is_traced: bool) -> Self {
        let num_partitions = 1 + choices.place(4);
        let has_stream = !choices.chance(30);
        let is_lonely = !has_stream || !choices.chance(45);
        let is_rewritten = choices.chance(50) && is_lonely;
        let deployment = match (is_lonely, choices.chance(50)) {
            (true, _) => Deployment::One,
            (false, true) => Deployment::TwoOnOneStore,
            (false, false) => Deployment::TwoStores,
        };
        let unrest = [100, 50, 20, 5][choices.place(4)];
        let num_steps = 300 + choices.place(2000);
        let rest_seed = choices.below(1 << 20);
        let max_payload = output::MAX_PAYLOADS[choices.place(4)];
        let refuses_digests = choices.chance(15);
        let hours = if is_rewritten { 14 * 24 } else { 2 };
        let settings = Settings {
            tombstone_retention: Duration::from_secs(hours * 3600),
            ..Settings::default()
        };
        let plan = Plan {
            num_partitions,
            has_stream,
            is_rewritten,
            deployment,
            unrest,
            num_steps,
            rest_seed,
            settings,
        };
        let (num_daemons, num_stores) = match deployment {
            Deployment::One => (1, 1),
            Deployment::TwoOnOneStore => (2, 1),
            Deployment::TwoStores => (2, 2),
        };
        let trace = Trace {
            is_kept: is_traced,
            ..Trace::default()
        };
        trace.now.set(START);
        trace.remark(format_args!(
            "{num_partitions} partitions, a stream: {has_stream}, rewritten: {is_rewritten}, {deployment:?}, unrest {unrest} %"
        ));
        let stores = (0..num_stores).map(|store| {
            let partitions = 0..num_partitions;
            let new = |partition| {
                store::Stored::new(Partition::<D>::new(
                    store_id(store),
                    partition_id(partition),
                    D::settings(settings, bug),
                ))
            };
            partitions.map(new).collect()
        });
        let daemons = (0..num_daemons).map(|number| Daemon::new(number % num_stores));
        Self {
            oracle: Oracle::new(
                num_stores,
                num_partitions,
                hours * 3600 * SECOND,
                has_stream,
            ),
            choices,
            bug,
            now: START,
            trace,
            counts: Counts::default(),
            broker: Broker {
                input: input::Stream::new(START),
                digests: output::OutputStream::default(),
                dead_letters: output::OutputStream::default(),
                claim: None,
                last_claim: 0,
                stray_claims: Vec::new(),
                clock: 0,
                max_payload,
                refused: refuses_digests.then_some(DIGEST),
            },
            waiting: Vec::new(),
            next_uid: 0,
            stores: stores.collect(),
            calls: Vec::new(),
            daemons: daemons.collect(),
            num_processes: 0,
            num_incarnations: 0,
            num_lost_outputs: 0,
            num_moments: 0,
            is_resting: false,
            network: Vec::new(),
            plan,
        }
    }

    /// Plays the world to its end: faults first, then rest, then the oracle's judgement.
    pub(crate) fn run(&mut self) -> Checked {
        while self.choices.begin_step(self.plan.num_steps) {
            let duration = 1 + self.choices.below(40_000_000);
            self.pass(duration);
            self.step()?;
            self.claims(true);
            self.check_bounds()?;
        }
        self.choices.begin_rest(self.plan.rest_seed);
        self.trace.remark(format_args!("the faults stop"));
        self.end_faults();
        let mut num_still = 0;
        for _ in 0..ROUNDS_TO_REST {
            let before = self.trace.moves.get();
            self.rest()?;
            self.check_bounds()?;
            let is_still = self.trace.moves.get() == before;
            num_still = if is_still { num_still + 1 } else { 0 };
            self.pass(if is_still { SECOND / 2 } else { SECOND / 10 });
            if num_still == ROUNDS_STILL {
                return self.judge();
            }
        }
        Err(Failure::new("liveness", "it never came to rest"))
    }

    pub(crate) fn into_trace(self) -> (Vec<String>, Choices) {
        (self.trace.into_lines(), self.choices)
    }

    fn pass(&mut self, duration: u64) {
        self.now += duration;
        self.trace.now.set(self.now);
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn count(&mut self, what: &'static str) {
        self.counts.add(what, 1);
    }

    fn step(&mut self) -> Checked {
        let action = self.choices.below(1000);
        let daemon = self.choices.place(self.daemons.len());
        let worker = self.choices.place(self.daemons[daemon].workers.len());
        // What is the broker's, the stores', the network's or the operator's goes on without the daemon.
        match action {
            0..60 => self.publish(),
            60..75 => self.publish_unanswered(true),
            570..650 => return self.apply_call(true),
            790..845 => return self.arrive(true),
            960..1000 => self.fault(action, daemon, worker),
            _ => return self.step_daemon(action, daemon, worker),
        }
        Ok(())
    }

    fn step_daemon(&mut self, action: u64, daemon: usize, worker: usize) -> Checked {
        if self.daemons[daemon].is_frozen {
            return Ok(());
        }
        match action {
            95..120 => return self.commit(daemon, worker, false),
            120..145 => self.start_process(daemon),
            145..190 => return self.start_worker(daemon, worker),
            190..225 => self.connect(daemon),
            225..295 => self.read(daemon),
            75..95 | 295..335 => self.route(daemon),
            335..510 => return self.work(daemon, worker),
            510..570 => {
                let raises_quiet = self.choices.chance(50);
                return self.commit(daemon, worker, raises_quiet);
            }
            650..720 => return self.acknowledge(daemon),
            720..790 => return self.send(daemon),
            845..880 => return self.hear_answer(daemon),
            880..915 => return self.settle(daemon, true),
            915..945 => return self.snapshot(daemon, worker, true),
            945..950 => self.expire(daemon, worker),
            950..960 => self.time_out(daemon),
            _ => unreachable!("the broker, the stores and the operator have taken it"),
        }
        Ok(())
    }

    fn fault(&mut self, action: u64, daemon: usize, worker: usize) {
        if !self.choices.chance(self.plan.unrest) {
            return;
        }
        match action {
            960..966 => self.wait(),
            966..973 => self.kill_worker(daemon, worker, "dies"),
            973..979 => self.stop_process(daemon),
            979..983 => self.harm_input(),
            983..985 => self.harm_output(),
            985..987 => self.restart_broker(),
            987..989 => self.disconnect(daemon),
            989..993 => self.freeze_or_thaw(daemon),
            993..994 => self.step_clock(daemon),
            994..998 => self.change_max_payload(),
            _ => self.change_permissions(),
        }
    }

    fn end_faults(&mut self) {
        self.is_resting = true;
        self.broker.refused = None;
        self.broker.max_payload = output::LARGE;
        self.broker.stray_claims.clear();
        let survivor = self.choices.place(self.daemons.len() + 1);
        for daemon in 0..self.daemons.len() {
            self.daemons[daemon].is_frozen = false;
            self.try_parked_again(daemon);
            if self.daemons.len() == 2 && survivor == daemon {
                self.kill_process(daemon);
            }
        }
    }

    /// Everything that there is to do, and no fault. What was killed last stays down where there is another.
    fn rest(&mut self) -> Checked {
        let is_alone = self.daemons.iter().filter(|it| it.is_up).count() == 0;
        for daemon in 0..self.daemons.len() {
            if is_alone && daemon == 0 {
                self.start_process(daemon);
            }
            for worker in 0..self.daemons[daemon].workers.len() {
                self.start_worker(daemon, worker)?;
            }
        }
        self.claims(false);
        self.publish_unanswered(false);
        for daemon in 0..self.daemons.len() {
            self.connect(daemon);
            self.read(daemon);
            while !self.daemons[daemon].routes.is_empty() {
                self.route(daemon);
            }
            for worker in 0..self.daemons[daemon].workers.len() {
                while self.has_work(daemon, worker) {
                    self.work(daemon, worker)?;
                }
                self.commit(daemon, worker, true)?;
                self.snapshot(daemon, worker, false)?;
            }
        }
        while !self.calls.is_empty() {
            self.apply_call(false)?;
        }
        for daemon in 0..self.daemons.len() {
            while !self.daemons[daemon].acks.is_empty() {
                self.acknowledge(daemon)?;
            }
            for _ in 0..8 {
                self.send(daemon)?;
            }
        }
        while !self.network.is_empty() {
            self.arrive(false)?;
        }
        for daemon in 0..self.daemons.len() {
            while !self.daemons[daemon].answers.is_empty() {
                self.hear_answer(daemon)?;
            }
            for _ in 0..8 {
                self.send(daemon)?;
            }
            while !self.daemons[daemon].settled.is_empty() {
                self.settle(daemon, false)?;
            }
            self.time_out(daemon);
        }
        Ok(())
    }

    /// What must hold between any two steps.
    fn check_bounds(&self) -> Checked {
        let holders = || (0..self.daemons.len()).filter(|&daemon| self.holds_claim(daemon));
        // Two processes on one store are kept apart by its epochs.
        let has_claims = self.plan.deployment == Deployment::TwoStores;
        demand(
            "one holder of the claim",
            !has_claims || holders().count() <= 1,
            || format!("daemons {:?} own the input", holders().collect::<Vec<_>>()),
        )?;
        for daemon in &self.daemons {
            let num_in_hand: usize = daemon.in_hand.values().map(|(permits, _)| permits).sum();
            let num_queued = daemon.num_queued();
            demand(
                "what is queued has a permit",
                num_queued <= PERMITS && num_in_hand + daemon.permits <= PERMITS,
                || format!("{num_queued} messages queued, {num_in_hand} permits taken"),
            )?;
            let num_owed = daemon.num_owed();
            demand(
                "what is owed is bounded",
                num_owed <= MAX_OWED + PERMITS,
                || format!("{num_owed} messages owed"),
            )?;
        }
        Ok(())
    }

    fn judge(&mut self) -> Checked {
        self.trace.remark(format_args!("at rest"));
        let holder = (0..self.daemons.len()).find(|&daemon| self.holds_claim(daemon));
        let holder = holder.ok_or_else(|| Failure::new("liveness", "nobody reads the input"))?;
        let daemon = &self.daemons[holder];
        let store = daemon.store;
        for (partition, stored) in self.stores[store].iter().enumerate() {
            let owner = daemon.live(partition);
            let owner = owner.ok_or_else(|| Failure::new("liveness", "a worker is down"))?;
            let (live, shadow) = (Picture::of(owner), Picture::of(&stored.shadow));
            demand("I-06 stored is live", live.is(&shadow), || {
                format!("live {live:?}\nstored {shadow:?}")
            })?;
            demand("liveness", owner.outbox().num_rows() == 0, || {
                "something is still owed".into()
            })?;
        }
        demand("permits come back", daemon.permits == PERMITS, || {
            format!("{} of {PERMITS} are left", daemon.permits)
        })?;
        demand(
            "every publisher is answered",
            self.waiting.is_empty(),
            || format!("{} still wait", self.waiting.len()),
        )?;
        let held = self.broker.input.messages.values();
        self.oracle.check_complete(store, held)?;
        let (digests, dead_letters) = (&self.broker.digests, &self.broker.dead_letters);
        let mut by_lane: BTreeMap<u64, Vec<&Whole>> = BTreeMap::new();
        let mut wholes: Vec<_> = digests.wholes().chain(dead_letters.wholes()).collect();
        wholes.sort_by_key(|whole| whole.turn);
        for whole in wholes {
            by_lane.entry(whole.lane).or_default().push(whole);
        }
        let is_parked = |id: &str| digests.was_parked(id) || dead_letters.was_parked(id);
        let num_judged = self.oracle.check_output(store, &by_lane, is_parked)?;
        self.counts
            .add("digests and dead letters judged", num_judged);
        Ok(())
    }
}

impl<D: Observed> Daemon<D> {
    fn new(store: usize) -> Self {
        Self {
            store,
            is_up: false,
            is_frozen: false,
            process: 0,
            clock: 0,
            max_payload: output::LARGE,
            workers: vec![None],
            owed_by_dead: vec![0],
            routers: Vec::new(),
            routes: Vec::new(),
            reader: reader::Reader::default(),
            permits: PERMITS,
            in_hand: BTreeMap::new(),
            deaths: BTreeMap::new(),
            tasks: Vec::new(),
            acks: Vec::new(),
            answers: Vec::new(),
            settled: Vec::new(),
            claimant: Claimant::default(),
            num_ids: 0,
            num_tokens: 0,
        }
    }

    fn live(&self, partition: usize) -> Option<&Partition<D>> {
        let worker = self.workers[partition % self.workers.len()].as_ref()?;
        worker.partitions.get(partition / self.workers.len())
    }

    fn live_mut(&mut self, partition: usize) -> Option<&mut Partition<D>> {
        let num_workers = self.workers.len();
        let worker = self.workers[partition % num_workers].as_mut()?;
        worker.partitions.get_mut(partition / num_workers)
    }

    fn num_owed(&self) -> usize {
        let workers = self.workers.iter().zip(&self.owed_by_dead);
        let owed_by = |(worker, dead): (&Option<worker::Worker<D>>, &usize)| {
            worker.as_ref().map_or(*dead, worker::Worker::num_owed)
        };
        workers.map(owed_by).sum()
    }

    /// How many messages wait with the routers and the workers.
    fn num_queued(&self) -> usize {
        let batches: BTreeMap<u64, usize> = self
            .routers
            .iter()
            .flat_map(|router| router.retained.iter().map(|it| &it.batch))
            .chain(self.routes.iter().map(|(_, batch)| batch))
            .map(|batch| (batch.number, batch.messages.len()))
            .collect();
        batches.values().sum()
    }
}

/// All that a partition is, to be compared.
#[derive(Clone, Debug)]
struct Picture {
    rows: Vec<(UserId, AlarmId, AlarmRow)>,
    owed: Vec<Arc<Owed<Digest>>>,
}

impl Picture {
    fn of<D: Observed>(partition: &Partition<D>) -> Self {
        Self {
            rows: partition.state().rows(),
            owed: partition
                .outbox()
                .rows_from(OutboxKey(0))
                .cloned()
                .collect(),
        }
    }

    /// Whether it shows the same; who read a message back, and how long its row is, makes no difference.
    fn is(&self, other: &Self) -> bool {
        let is_same = |(one, two): (&Arc<Owed<Digest>>, &Arc<Owed<Digest>>)| {
            (one.key, one.id, one.lane, one.since, one.search_from)
                == (two.key, two.id, two.lane, two.since, two.search_from)
                && one.body == two.body
        };
        self.rows == other.rows
            && self.owed.len() == other.owed.len()
            && self.owed.iter().zip(&other.owed).all(is_same)
    }
}

fn store_id(store: usize) -> StoreId {
    StoreId([7 + u8::try_from(store).expect("few stores"); 16])
}

fn partition_id(partition: usize) -> PartitionId {
    PartitionId(u16::try_from(partition).expect("few partitions"))
}

/// A wall clock that is wrong.
fn clock(now: u64, offset: i64) -> u64 {
    now.saturating_add_signed(offset)
}

fn content(body: &Body<Digest>) -> String {
    match body {
        Body::DeadLetter(letter) => {
            let payload = String::from_utf8_lossy(&letter.payload);
            format!("dead letter {} {payload}", letter.reason)
        }
        Body::Message(digest) => {
            let entries: Vec<_> = digest
                .alarms
                .iter()
                .map(|it| {
                    let at_s = it.changed_at.as_nanos() / SECOND;
                    format!("{} {} {at_s}", it.alarm.0, it.status.as_str())
                })
                .collect();
            format!("{}: {}", digest.user, entries.join(", "))
        }
    }
}

fn cursor_of(position: Option<Position>) -> Option<Cursor> {
    position.map(|it| it.cursor)
}
