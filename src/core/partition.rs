//! The whole no-loss protocol of one partition, sans-IO.
//!
//! ```text
//!  deliver ─► decide(&state, message) ─► evolve(&mut state) ─► rows that wait
//!  advance ─► the watermark that covers what was delivered            │ one commit in flight
//!                                                                     ▼
//!  commit ─► Commit{epoch, number, position, rows} ─► the store ─► committed
//!                                                                     │ only now
//!                                                                     ▼
//!  poll ─► Output::Release   publishers answered, the input may forget the messages
//!          Output::Publish   the oldest owed message of a lane ─► the broker ─► published ─► row removed
//!          Output::InstallSnapshot   everything that the snapshot may contain is durable
//! ```
//!
//! Invariants (`core/invariants.rs`): I-01 to I-08 are this file's. It must not wait, log, read a clock or
//! know what a domain's rows mean.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ids::{CommitNumber, Epoch, MessageId, PartitionId, StoreId};
use super::invariants::{Invariant, check};
use super::outbox::{Body, DeadLetter, Outbox, OutboxKey, Owed};
use super::position::{Cursor, Origin, Position};
use super::rows::{CorruptRow, OUTBOX_TABLE, OUTPUT_TABLE, Reader, Rows, put_varint};
use super::time::Timestamp;

/// A state machine that the protocol makes durable: the one trait inside the core.
///
/// `decide` chooses and `evolve` is the only thing that moves, live and at recovery alike. Changes are
/// absolute: a row's new value, or that it is gone.
pub trait Domain: Sized + Unpin + 'static {
    /// What a message asks for.
    type Command: Send + Unpin + 'static;
    /// One row that moves.
    type Change: Unpin;
    /// A message to publish.
    type Outgoing: Send + Sync + Unpin + 'static;
    /// Counts of what was decided, for the metrics.
    type Tally: Default + Unpin;
    /// What its configuration says.
    type Settings: Clone + Send + Sync + Unpin + 'static;

    /// An empty state.
    fn new(settings: Self::Settings) -> Self;

    /// Decides what a message changes and publishes: a function of state and message alone. `at` is the
    /// broker's timestamp of the message.
    fn decide(&self, at: Timestamp, command: &Self::Command, decision: &mut Decision<Self>);

    /// Applies a change.
    fn evolve(&mut self, change: Self::Change);

    /// Appends a change as a row; its table is 16 or above.
    fn encode(change: &Self::Change, rows: &mut Rows);

    /// Reads a row back.
    ///
    /// # Errors
    /// [`CorruptRow`] when it is none that [`Domain::encode`] writes.
    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self::Change, CorruptRow>;

    /// Appends a message to publish.
    fn encode_outgoing(message: &Self::Outgoing, out: &mut Vec<u8>);

    /// Reads a message to publish back.
    ///
    /// # Errors
    /// [`CorruptRow`] when it is none that [`Domain::encode_outgoing`] writes.
    fn decode_outgoing(reader: &mut Reader<'_>) -> Result<Self::Outgoing, CorruptRow>;

    /// Appends the rows from `from` on (0 at first) until they exceed `max_bytes`; returns where to go on,
    /// `None` at the end. A row that exists throughout is written, whatever else changes between the calls.
    fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize>;

    /// Appends changes that remove what has no meaning any more for any message later than `now`, looking at
    /// a bounded number of places from `from` on; returns where to go on.
    fn expire(&self, now: Timestamp, from: usize, changes: &mut Vec<Self::Change>) -> usize;
}

/// What a domain decided about one message.
pub struct Decision<D: Domain> {
    /// The rows that move, in order.
    pub changes: Vec<D::Change>,
    /// The message to publish: at most one, because its id is made of the message that caused it.
    pub publish: Option<D::Outgoing>,
    /// What was decided, counted.
    pub tally: D::Tally,
}

impl<D: Domain> Default for Decision<D> {
    fn default() -> Self {
        Self {
            changes: Vec::new(),
            publish: None,
            tally: D::Tally::default(),
        }
    }
}

/// One message on its way to its partition.
#[derive(Clone, Debug)]
pub struct Delivery<C> {
    /// Where it stands in the input.
    pub cursor: Cursor,
    /// The broker's timestamp; on core NATS the time of receipt.
    pub timestamp: Timestamp,
    /// The placement hash of its user, or of its bytes when it has no usable user.
    pub placement: u64,
    /// What it says.
    pub body: Delivered<C>,
    /// Where its publisher waits for an answer.
    pub reply_to: Option<Box<str>>,
}

/// What a message says.
#[derive(Clone, Debug)]
pub enum Delivered<C> {
    /// Something for the domain.
    Command(C),
    /// Nothing that can be used: to the dead letters.
    Refused(Box<DeadLetter>),
}

/// What a store keeps of a partition beside its rows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Header {
    /// How often it was claimed.
    pub epoch: Epoch,
    /// The number of its last commit.
    pub number: CommitNumber,
    /// How far it covers the input; `None` before anything was read.
    pub position: Option<Position>,
}

/// Everything that becomes durable at once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit {
    /// Whose it is.
    pub partition: PartitionId,
    /// The epoch of its owner.
    pub epoch: Epoch,
    /// Its number: one more than the commit before.
    pub number: CommitNumber,
    /// How far it covers the input.
    pub position: Option<Position>,
    /// Its rows.
    pub rows: Rows,
}

/// An answer to a publisher that waits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Reply {
    /// The subject to answer on.
    pub to: Box<str>,
    /// The stable code of the refusal; `None` when the message was applied.
    pub refused: Option<String>,
}

/// The beginning of a snapshot: recovery reads its rows, then every commit after this number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SnapshotHead {
    /// Whose it is.
    pub partition: PartitionId,
    /// The header when it began.
    pub header: Header,
}

/// What the shell has to do.
#[derive(Debug)]
pub enum Output<M> {
    /// A commit is durable: everything up to this position may be forgotten, and these are answered.
    Release {
        /// The position of the commit.
        position: Option<Position>,
        /// The publishers that wait.
        replies: Vec<Reply>,
    },
    /// Publish this until the broker confirms it.
    Publish(Arc<Owed<M>>),
    /// Put the snapshot that was written in place.
    InstallSnapshot(SnapshotHead),
}

/// One partition: its state, what waits to be committed, and what is owed.
pub struct Partition<D: Domain> {
    store: StoreId,
    id: PartitionId,
    state: D,
    outbox: Outbox<D::Outgoing>,
    /// The last confirmed sequence of the output stream.
    last_output: u64,
    epoch: Epoch,
    issued: CommitNumber,
    durable: Header,
    /// The last message delivered; what is at or below it is a repeat.
    seen: Cursor,
    watermark: Option<Position>,
    pending: Pending,
    in_flight: Option<InFlight>,
    outputs: VecDeque<Output<D::Outgoing>>,
    snapshot: Option<Snapshot>,
    expire_from: usize,
    decision: Decision<D>,
    scratch: Vec<u8>,
}

/// What waits for the next commit.
#[derive(Debug, Default)]
struct Pending {
    rows: Rows,
    replies: Vec<Reply>,
    num_deliveries: usize,
    num_owed: u32,
}

#[derive(Debug)]
struct InFlight {
    header: Header,
    last_owed: OutboxKey,
    replies: Vec<Reply>,
}

/// A snapshot under way.
#[derive(Debug)]
struct Snapshot {
    head: SnapshotHead,
    next: SnapshotPlace,
}

#[derive(Clone, Copy, Debug)]
enum SnapshotPlace {
    Outbox(OutboxKey),
    State(usize),
    /// Everything is written; it may contain what this commit makes durable.
    Written(CommitNumber),
}

impl<D: Domain> Partition<D> {
    /// An empty partition, to be filled by [`Partition::restore`] and opened by [`Partition::recovered`].
    #[must_use]
    pub fn new(store: StoreId, id: PartitionId, settings: D::Settings) -> Self {
        Self {
            store,
            id,
            state: D::new(settings),
            outbox: Outbox::default(),
            last_output: 0,
            epoch: Epoch::default(),
            issued: CommitNumber::default(),
            durable: Header::default(),
            seen: Cursor::default(),
            watermark: None,
            pending: Pending::default(),
            in_flight: None,
            outputs: VecDeque::new(),
            snapshot: None,
            expire_from: 0,
            decision: Decision::default(),
            scratch: Vec::new(),
        }
    }

    /// Applies one stored row: the same `evolve` that moves the live state.
    ///
    /// # Errors
    /// [`CorruptRow`] when no version of this program wrote it.
    pub fn restore(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), CorruptRow> {
        let (&table, rest) = key.split_first().ok_or(CorruptRow("a key is empty"))?;
        match (table, value) {
            (OUTBOX_TABLE, Some(value)) => {
                let key = OutboxKey::from_row_key(rest)?;
                self.outbox
                    .insert(Owed::decode(key, value, D::decode_outgoing)?);
            }
            (OUTBOX_TABLE, None) => {
                self.outbox.remove(OutboxKey::from_row_key(rest)?);
            }
            (OUTPUT_TABLE, Some(value)) => self.last_output = Reader::new(value).varint()?,
            (OUTPUT_TABLE, None) => self.last_output = 0,
            _ => self.state.evolve(D::decode(key, value)?),
        }
        Ok(())
    }

    /// Opens the partition with the header it was claimed with; what it owes is published again.
    pub fn recovered(&mut self, header: Header) {
        self.epoch = header.epoch;
        self.issued = header.number;
        self.durable = header;
        self.watermark = header.position;
        self.seen = header
            .position
            .map_or(Cursor::default(), |position| position.cursor);
        let owed = self.outbox.make_durable(self.outbox.last_key());
        self.outputs.extend(owed.into_iter().map(Output::Publish));
    }

    /// The partition's number.
    #[must_use]
    pub const fn id(&self) -> PartitionId {
        self.id
    }

    /// The state, to be read.
    #[must_use]
    pub const fn state(&self) -> &D {
        &self.state
    }

    /// What is owed.
    #[must_use]
    pub const fn outbox(&self) -> &Outbox<D::Outgoing> {
        &self.outbox
    }

    /// What the store is known to hold.
    #[must_use]
    pub const fn durable(&self) -> Header {
        self.durable
    }

    /// Takes what was counted since the last call.
    pub fn take_tally(&mut self) -> D::Tally {
        std::mem::take(&mut self.decision.tally)
    }

    /// Applies one message. A repeat, at or below what was delivered before, changes nothing.
    ///
    /// [`Partition::advance`] must follow before the next commit: a commit's position covers its messages.
    pub fn deliver(&mut self, origin: Origin, delivery: Delivery<D::Command>) {
        self.pending.num_deliveries += 1;
        if let Some(to) = delivery.reply_to {
            let refused = match &delivery.body {
                Delivered::Command(_) => None,
                Delivered::Refused(letter) => Some(letter.reason.to_string()),
            };
            self.pending.replies.push(Reply { to, refused });
        }
        if delivery.cursor <= self.seen {
            return;
        }
        self.seen = delivery.cursor;
        let body = match delivery.body {
            Delivered::Refused(letter) => Some(Body::DeadLetter(*letter)),
            Delivered::Command(command) => {
                let mut decision = std::mem::take(&mut self.decision);
                self.state
                    .decide(delivery.timestamp, &command, &mut decision);
                self.move_state(&mut decision.changes);
                let publish = decision.publish.take();
                self.decision = decision;
                publish.map(Body::Message)
            }
        };
        if let Some(body) = body {
            let id = self.message_id(origin, delivery.cursor, delivery.timestamp);
            self.owe(id, delivery.placement, delivery.timestamp, body);
        }
    }

    /// Raises the watermark: every message up to here was delivered, or is not for this partition.
    pub fn advance(&mut self, watermark: Position) {
        if self
            .watermark
            .is_none_or(|before| before.cursor <= watermark.cursor)
        {
            self.watermark = Some(watermark);
            self.seen = self.seen.max(watermark.cursor);
        }
    }

    /// Removes a bounded part of what the watermark's timestamp has made meaningless.
    pub fn expire(&mut self) {
        let Some(watermark) = self.watermark else {
            return;
        };
        let mut changes = std::mem::take(&mut self.decision.changes);
        self.expire_from = self
            .state
            .expire(watermark.timestamp, self.expire_from, &mut changes);
        self.move_state(&mut changes);
        self.decision.changes = changes;
    }

    /// Whether someone waits for the next commit: messages were delivered since the last.
    #[must_use]
    pub const fn is_commit_due(&self) -> bool {
        self.pending.num_deliveries > 0 && self.in_flight.is_none()
    }

    /// Whether the next commit would hold anything, if only a raised watermark.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.pending.num_deliveries > 0
            || !self.pending.rows.is_empty()
            || self.watermark != self.durable.position
    }

    /// Takes everything that waits as one commit; `None` when one is in flight or there is nothing new.
    pub fn commit(&mut self) -> Option<Commit> {
        if self.in_flight.is_some() || !self.has_news() {
            return None;
        }
        check!(
            Invariant::PositionCoversCommit,
            self.watermark
                .is_none_or(|watermark| self.seen <= watermark.cursor)
        );
        let pending = std::mem::take(&mut self.pending);
        self.issued = self.issued.next();
        let header = Header {
            epoch: self.epoch,
            number: self.issued,
            position: self.watermark,
        };
        self.in_flight = Some(InFlight {
            header,
            last_owed: self.outbox.last_key(),
            replies: pending.replies,
        });
        Some(Commit {
            partition: self.id,
            epoch: header.epoch,
            number: header.number,
            position: header.position,
            rows: pending.rows,
        })
    }

    /// The commit in flight is durable: what it held back goes out.
    pub fn committed(&mut self, number: CommitNumber) {
        let in_flight = self.in_flight.take().expect("a commit is in flight");
        check!(Invariant::CommitsFollow, in_flight.header.number == number);
        check!(
            Invariant::CommitsFollow,
            self.durable.number.next() == number
        );
        self.durable = in_flight.header;
        self.outputs.push_back(Output::Release {
            position: self.durable.position,
            replies: in_flight.replies,
        });
        let ready = self.outbox.make_durable(in_flight.last_owed);
        self.outputs.extend(ready.into_iter().map(Output::Publish));
        self.install_snapshot_if_durable();
    }

    /// The broker has confirmed a message, at this sequence of the output stream if there is one.
    pub fn published(&mut self, key: OutboxKey, sequence: Option<u64>) {
        let (was_owed, next) = self.outbox.remove(key);
        if !was_owed {
            return;
        }
        self.pending.rows.push(&key.to_row_key(), None);
        if let Some(sequence) = sequence {
            self.last_output = sequence;
            push_last_output(sequence, &mut self.pending.rows);
        }
        self.outputs.extend(next.map(Output::Publish));
    }

    /// The broker refuses a message for good: it stays owed, and its lane goes on without it.
    pub fn parked(&mut self, key: OutboxKey) {
        self.outputs
            .extend(self.outbox.park(key).map(Output::Publish));
    }

    /// The next thing the shell has to do.
    pub fn poll(&mut self) -> Option<Output<D::Outgoing>> {
        self.outputs.pop_front()
    }

    /// Begins a snapshot; `None` while one is under way.
    pub fn begin_snapshot(&mut self) -> Option<SnapshotHead> {
        if self.snapshot.is_some() {
            return None;
        }
        let head = SnapshotHead {
            partition: self.id,
            header: self.durable,
        };
        let next = SnapshotPlace::Outbox(OutboxKey::default());
        self.snapshot = Some(Snapshot { head, next });
        Some(head)
    }

    /// Appends the snapshot's next rows, about `max_bytes` of them; returns whether there are more.
    ///
    /// The state may move between two calls: rows are absolute, and the commits after the head's number are
    /// read after them. [`Output::InstallSnapshot`] follows when all it may contain is durable.
    pub fn write_snapshot(&mut self, max_bytes: usize, rows: &mut Rows) -> bool {
        let Some(snapshot) = &mut self.snapshot else {
            return false;
        };
        snapshot.next = match snapshot.next {
            SnapshotPlace::Outbox(from) => {
                let mut owed = self.outbox.rows_from(from);
                let mut place = from;
                while rows.as_bytes().len() < max_bytes
                    && let Some(next) = owed.next()
                {
                    self.scratch.clear();
                    next.encode(&mut self.scratch, D::encode_outgoing);
                    rows.push(&next.key.to_row_key(), Some(&self.scratch));
                    place = OutboxKey(next.key.0 + 1);
                }
                if owed.next().is_some() {
                    SnapshotPlace::Outbox(place)
                } else {
                    push_last_output(self.last_output, rows);
                    SnapshotPlace::State(0)
                }
            }
            SnapshotPlace::State(from) => match self.state.snapshot(from, max_bytes, rows) {
                Some(next) => SnapshotPlace::State(next),
                // What waits for the next commit may be in it already.
                None if self.pending.rows.is_empty() => SnapshotPlace::Written(self.issued),
                None => SnapshotPlace::Written(self.issued.next()),
            },
            SnapshotPlace::Written(_) => return false,
        };
        let is_written = matches!(snapshot.next, SnapshotPlace::Written(_));
        self.install_snapshot_if_durable();
        !is_written
    }

    fn install_snapshot_if_durable(&mut self) {
        if let Some(Snapshot {
            head,
            next: SnapshotPlace::Written(contains),
        }) = self.snapshot
            && contains <= self.durable.number
        {
            self.outputs.push_back(Output::InstallSnapshot(head));
            self.snapshot = None;
        }
    }

    fn message_id(&self, origin: Origin, cursor: Cursor, timestamp: Timestamp) -> MessageId {
        match origin {
            Origin::Stream { .. } => MessageId::Stream { cursor, timestamp },
            Origin::Session => MessageId::Session {
                store: self.store,
                epoch: self.epoch,
                partition: self.id,
                number: self.issued.next(),
                index: self.pending.num_owed,
            },
        }
    }

    fn owe(&mut self, id: MessageId, lane: u64, since: Timestamp, body: Body<D::Outgoing>) {
        let mut owed = Owed {
            key: self.outbox.next_key(),
            id,
            lane,
            since,
            search_from: self.last_output,
            is_recovered: false,
            num_bytes: 0,
            body,
        };
        self.scratch.clear();
        owed.encode(&mut self.scratch, D::encode_outgoing);
        owed.num_bytes = self.scratch.len();
        self.pending
            .rows
            .push(&owed.key.to_row_key(), Some(&self.scratch));
        self.pending.num_owed += 1;
        self.outbox.insert(owed);
    }

    fn move_state(&mut self, changes: &mut Vec<D::Change>) {
        for change in changes.drain(..) {
            D::encode(&change, &mut self.pending.rows);
            self.state.evolve(change);
        }
    }
}

fn push_last_output(sequence: u64, rows: &mut Rows) {
    let mut value = Vec::new();
    put_varint(&mut value, sequence);
    rows.push(&[OUTPUT_TABLE], Some(&value));
}
