//! A whole deployment in one thread without a clock: broker, store, network, workers and producers around
//! real [`Partition`]s. Each action is small, the next one is drawn, and everything may die between two.
//!
//! ```text
//! publishers ─► Stream ─► Reader ─► mailboxes ─► Worker{Partition…} ─► calls ─► Stored ─► acks ─┐
//!                                                      ▲  └─► tasks ─► network ─► Output        │
//!                                                      └──────────── confirmations ◄──┘  ◄──────┘
//! ```
//!
//! Messages are repeated, reordered, refused and poisonous; commits are late, fail, or are applied although
//! they are said to have failed; confirmations are lost or late; snapshots are written in slices and lost; a
//! worker or the process dies; the stream is rolled back, purged or made anew. Checks that can be made at
//! once are made at once; the [`Oracle`] judges the rest when the faults have stopped and nothing moves.

mod input;
mod output;
mod process;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tocsin::core::ids::{Epoch, Id, PartitionId, StoreId, UserId, placement_hash};
use tocsin::core::outbox::{Body, DeadLetter, OutboxKey, Owed};
use tocsin::core::partition::{
    Commit, Delivered, Delivery, Header, Output, Partition, SnapshotHead,
};
use tocsin::core::position::{
    Cursor, Origin, Position, Resume, StreamView, position_to_verify, resume,
};
use tocsin::core::rows::Rows;
use tocsin::core::time::Timestamp;
use tocsin::domains::alarms::{AlarmId, Command, Digest, Settings, Status};

use crate::oracle::{Kind, Message, Oracle};
use crate::planted::{Bug, Observed};

const STORE: StoreId = StoreId([7; 16]);
const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000_000 * SECOND;
/// The output's duplicate window; an attempt stays on the network for a quarter of it at the most.
const WINDOW: u64 = 120 * SECOND;
const USERS: [&str; 4] = [
    "anna",
    "0f8fad5b-d9cb-469f-a165-70867728950e",
    "userID-1",
    "\u{1F514}",
];
const ALARMS: [&str; 3] = ["disk", "11111111-2222-3333-4444-555555555555", "cpu 1"];
/// So many rounds may it take until nothing moves any more after the last fault.
const ROUNDS_TO_REST: usize = 4000;

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

/// `SplitMix64`: small, and the same everywhere.
pub(crate) struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// What the output stream holds.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) id: String,
    pub(crate) lane: u64,
    pub(crate) content: String,
    at: u64,
}

/// The input: a stream of the broker, or what a process without one has received.
struct Stream {
    created: u64,
    first: u64,
    last: u64,
    messages: BTreeMap<u64, Message>,
}

impl Stream {
    fn new(created: u64) -> Self {
        let (first, last, messages) = (1, 0, BTreeMap::new());
        Self {
            created,
            first,
            last,
            messages,
        }
    }
}

/// One partition in the store.
struct Stored<D: Observed> {
    header: Header,
    journal: Vec<Commit>,
    snapshot: Option<(SnapshotHead, Rows)>,
    /// Every applied commit, folded at once: what is truly durable.
    shadow: Partition<D>,
    /// What was live when the last applied commit was taken, and its position.
    picture: String,
    position: Option<Position>,
    /// Planted: the position of a commit whose rows are in place already.
    position_to_come: Option<Position>,
}

/// A commit on its way.
struct Ready {
    commit: Commit,
    begins_at: u32,
    picture: String,
}

struct Call {
    worker: usize,
    incarnation: u64,
    commits: Vec<Ready>,
}

#[derive(Clone)]
struct Batch {
    generation: u32,
    messages: Arc<Vec<(u64, Message)>>,
    watermark: Position,
}

struct Worker<D: Observed> {
    incarnation: u64,
    partitions: Vec<Partition<D>>,
    mailbox: VecDeque<Batch>,
    /// The batch in hand, and how many of its messages are done.
    current: Option<(Batch, usize)>,
    /// Nothing was given to it since it was started.
    is_fresh: bool,
    /// Of each partition: the generation that its next commit begins with, leaving former ones behind.
    begins_at: Vec<u32>,
    snapshots: BTreeMap<u16, (Rows, bool)>,
}

struct Task {
    partition: usize,
    owed: Arc<Owed<Digest>>,
    id: String,
    /// When the first attempt that the broker may still know was made.
    first: Option<u64>,
    is_sent: bool,
}

struct Attempt {
    partition: usize,
    key: OutboxKey,
    published: Published,
    is_first: bool,
    confirms_to: u64,
}

/// To a worker's incarnation: these commits are durable.
type Ack = (usize, u64, Vec<(usize, Header)>);

/// What a seed decides before anything happens.
struct Plan {
    has_stream: bool,
    /// Whether the stream may be rolled back or made anew; if not, hours may pass.
    is_rewritten: bool,
    num_workers: usize,
    /// How much of what may go wrong does, in percent.
    unrest: u64,
    settings: Settings,
}

pub(crate) struct World<D: Observed> {
    rng: Rng,
    bug: Option<Bug>,
    plan: Plan,
    now: u64,
    moves: u64,
    pub(crate) trace: Vec<String>,
    oracle: Oracle,
    input: Stream,
    next_uid: u64,
    output: Vec<Published>,
    stored: Vec<Stored<D>>,
    calls: Vec<Call>,
    acks: Vec<Ack>,
    is_up: bool,
    process: u64,
    incarnations: u64,
    workers: Vec<Option<Worker<D>>>,
    is_connected: bool,
    generation: u32,
    next: u64,
    highest: Option<Position>,
    /// Without a stream: batches that the router keeps until their commit, per worker.
    retained: Vec<VecDeque<Batch>>,
    deaths: BTreeMap<u64, u32>,
    tasks: Vec<Task>,
    network: Vec<Attempt>,
    confirmations: Vec<(usize, OutboxKey, u64, u64)>,
    /// How often each owed message was sent.
    num_sent: BTreeMap<(usize, OutboxKey), u32>,
    num_ids: u64,
}

impl<D: Observed> World<D> {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let mut rng = Rng(seed);
        let num_partitions = 1 + rng.place(4);
        let num_workers = 1 + rng.place(num_partitions.min(3));
        let has_stream = rng.chance(70);
        let is_rewritten = rng.chance(50);
        let unrest = [5, 20, 50, 100][rng.place(4)];
        let hours = if is_rewritten { 14 * 24 } else { 2 };
        let settings = Settings {
            tombstone_retention: Duration::from_secs(hours * 3600),
            ..Settings::default()
        };
        let id = |i: usize| PartitionId(u16::try_from(i).expect("few partitions"));
        let stored = (0..num_partitions).map(|i| Stored {
            header: Header::default(),
            journal: Vec::new(),
            snapshot: None,
            shadow: Partition::new(STORE, id(i), settings),
            picture: picture(&Partition::<D>::new(STORE, id(i), settings)),
            position: None,
            position_to_come: None,
        });
        let mut world = Self {
            bug,
            now: START,
            moves: 0,
            trace: Vec::new(),
            oracle: Oracle::new(num_partitions, hours * 3600 * SECOND, has_stream),
            input: Stream::new(START),
            next_uid: 0,
            output: Vec::new(),
            stored: stored.collect(),
            calls: Vec::new(),
            acks: Vec::new(),
            is_up: false,
            process: 0,
            incarnations: 0,
            workers: (0..num_workers).map(|_| None).collect(),
            is_connected: false,
            generation: 0,
            next: 1,
            highest: None,
            retained: vec![VecDeque::new(); num_workers],
            deaths: BTreeMap::new(),
            tasks: Vec::new(),
            network: Vec::new(),
            confirmations: Vec::new(),
            num_sent: BTreeMap::new(),
            num_ids: 0,
            plan: Plan {
                has_stream,
                is_rewritten,
                num_workers,
                unrest,
                settings,
            },
            rng,
        };
        world.note(format!(
            "seed {seed}: {num_partitions} partitions, {num_workers} workers, stream {has_stream}, rewritten {is_rewritten}"
        ));
        world
    }

    /// Plays the world to its end: faults first, then rest, then the oracle's judgement.
    pub(crate) fn run(&mut self) -> Checked {
        let num_steps = 300 + self.rng.below(2000);
        for _ in 0..num_steps {
            self.step()?;
        }
        self.note("the faults stop");
        let mut num_still = 0;
        for _ in 0..ROUNDS_TO_REST {
            let before = self.moves;
            self.rest()?;
            num_still = if self.moves == before {
                num_still + 1
            } else {
                0
            };
            // What is drawn may miss what is left to do, though not for long.
            if num_still == 100 {
                return self.judge();
            }
        }
        Err(Failure::new("liveness", "it never came to rest"))
    }

    fn note(&mut self, what: impl AsRef<str>) {
        let at = (self.now - START) / 1_000_000;
        self.trace.push(format!("{at:>9} ms  {}", what.as_ref()));
        self.moves += 1;
    }

    fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn step(&mut self) -> Checked {
        self.now += 1 + self.rng.below(40_000_000);
        let worker = self.rng.place(self.plan.num_workers);
        let is_calm = !self.rng.chance(self.plan.unrest);
        match self.rng.below(1000) {
            0..110 => self.publish(),
            110..140 => self.start_process(),
            140..190 => return self.start_worker(worker),
            190..230 => self.connect(),
            230..300 => self.read(),
            300..500 => return self.work(worker),
            500..580 => {
                let raises_quiet = self.rng.chance(50);
                return self.commit(worker, raises_quiet);
            }
            580..670 => return self.apply_call(!is_calm),
            670..750 => return self.acknowledge(),
            750..815 => return self.send(),
            815..875 => return self.arrive(true),
            875..905 => self.confirm(true),
            905..945 => return self.write_snapshot(worker, true),
            945..950 => self.expire(worker),
            950..970 => self.time_out(),
            _ if is_calm => {}
            970..977 => self.wait(),
            977..986 => self.kill_worker(worker, "dies"),
            986..991 => self.kill_process(),
            _ => self.harm_stream(),
        }
        Ok(())
    }

    /// Everything once, and no fault.
    fn rest(&mut self) -> Checked {
        self.now += SECOND / 100;
        self.start_process();
        for worker in 0..self.plan.num_workers {
            self.start_worker(worker)?;
        }
        self.connect();
        self.read();
        for worker in 0..self.plan.num_workers {
            self.work(worker)?;
            self.commit(worker, true)?;
            self.write_snapshot(worker, false)?;
        }
        self.apply_call(false)?;
        self.acknowledge()?;
        self.arrive(false)?;
        self.confirm(false);
        self.time_out();
        self.send()
    }

    fn judge(&mut self) -> Checked {
        self.note("at rest");
        for (partition, stored) in self.stored.iter().enumerate() {
            let owner = self.live(partition);
            let owner = owner.ok_or_else(|| Failure::new("liveness", "a worker is down"))?;
            demand(
                "I-06 stored is live",
                picture(owner) == picture(&stored.shadow),
                || {
                    format!(
                        "live {}\nstored {}",
                        picture(owner),
                        picture(&stored.shadow)
                    )
                },
            )?;
            demand("liveness", owner.outbox().num_rows() == 0, || {
                "something is still owed".into()
            })?;
            demand("liveness", stored.header.position == self.highest, || {
                format!(
                    "partition {partition} rests at {:?}",
                    stored.header.position
                )
            })?;
        }
        self.oracle.check_complete(self.input.messages.values())?;
        self.oracle.check_output(&self.output)
    }
}

/// All that a partition is, in words that can be compared.
fn picture<D: Observed>(partition: &Partition<D>) -> String {
    let owed: Vec<_> = partition
        .outbox()
        .rows_from(OutboxKey(0))
        .map(|it| {
            (
                it.key.0,
                it.id,
                it.lane,
                it.since,
                it.search_from,
                content(&it.body),
            )
        })
        .collect();
    format!("{:?} {owed:?}", partition.state().rows())
}

fn header_of(ready: &Ready) -> (usize, Header) {
    let Commit {
        partition,
        epoch,
        number,
        position,
        ..
    } = ready.commit;
    (
        usize::from(partition.0),
        Header {
            epoch,
            number,
            position,
        },
    )
}

fn restore<D: Observed>(partition: &mut Partition<D>, rows: &Rows) {
    for row in rows {
        let (key, value) = row.expect("whole rows");
        partition.restore(key, value).expect("rows of ours");
    }
}

fn recover<D: Observed>(stored: &Stored<D>, partition: usize, settings: &Settings) -> Partition<D> {
    let id = PartitionId(u16::try_from(partition).expect("few partitions"));
    let mut recovered = Partition::new(STORE, id, *settings);
    if let Some((_, rows)) = &stored.snapshot {
        restore(&mut recovered, rows);
    }
    stored
        .journal
        .iter()
        .for_each(|commit| restore(&mut recovered, &commit.rows));
    recovered.recovered(stored.header);
    recovered
}

/// I-04: an owed message leaves the store only once the broker has it.
fn check_removals<D: Observed>(
    shadow: &Partition<D>,
    rows: &Rows,
    output: &[Published],
) -> Checked {
    for row in rows {
        let (key, value) = row.expect("whole rows");
        let (Some((&1, key)), None) = (key.split_first(), value) else {
            continue;
        };
        let key = OutboxKey::from_row_key(key).expect("an outbox key");
        let Some(owed) = shadow
            .outbox()
            .rows_from(key)
            .next()
            .filter(|it| it.key == key)
        else {
            continue;
        };
        let is_there = output
            .iter()
            .any(|it| it.lane == owed.lane && it.content == content(&owed.body));
        demand("I-04 owed until confirmed", is_there, || {
            format!("{} is gone unpublished", owed.id)
        })?;
    }
    Ok(())
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
    let timestamp = Timestamp::from_nanos(timestamp);
    Delivery {
        cursor,
        timestamp,
        placement: message.lane,
        body,
        reply_to: None,
    }
}
