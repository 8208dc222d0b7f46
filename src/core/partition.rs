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
//! It holds most of the invariants of `core/invariants.rs`. It must not wait, log, read a clock or
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

    /// How many steps [`Domain::approach`] takes.
    const STEPS: usize = 0;

    /// Prefetches: reads the next place in memory on the way to what [`Domain::decide`] will read, and returns where
    /// that is; `place` is where the step before ended. With many messages one step each after the other, what they
    /// need is fetched side by side. Nothing but time depends on it, and it does not panic.
    fn approach(&self, _command: &Self::Command, _step: usize, place: u32) -> u32 {
        place
    }

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
            .map_or_else(Cursor::default, |position| position.cursor);
        self.outbox.begin_epoch(header.epoch);
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

    /// One step towards a message that will be delivered soon, as [`Domain::approach`] has it; changes nothing.
    #[must_use]
    pub fn approach(&self, delivery: &Delivery<D::Command>, step: usize, place: u32) -> u32 {
        match &delivery.body {
            Delivered::Command(command) => self.state.approach(command, step, place),
            Delivered::Refused(_) => place,
        }
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
        // An equal cursor may come with another origin: a stream that was stamped anew.
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
            self.seen
                <= self
                    .watermark
                    .map_or_else(Cursor::default, |watermark| watermark.cursor)
        );
        // The next one will be about as large.
        let num_bytes = self.pending.rows.as_bytes().len();
        let next = Pending {
            rows: Rows::with_capacity(num_bytes),
            ..Pending::default()
        };
        let pending = std::mem::replace(&mut self.pending, next);
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

    /// The broker has confirmed a message, at this sequence of its stream if there is one.
    pub fn published(&mut self, key: OutboxKey, sequence: Option<u64>) {
        let Some(removed) = self.outbox.remove(key) else {
            return;
        };
        self.pending.rows.push(&key.to_row_key(), None);
        // Dead letters have a stream of their own: its sequences say nothing about the output's.
        if let (Some(sequence), Body::Message(_)) = (sequence, &removed.owed.body) {
            self.last_output = sequence;
            push_last_output(sequence, &mut self.pending.rows);
        }
        self.outputs.extend(removed.next.map(Output::Publish));
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
        // A slice of its own, and room for a row: each call gets on, whatever the caller has gathered.
        let (mut slice, max_bytes) = (Rows::default(), max_bytes.max(1));
        let has_more = self.write_slice(max_bytes, &mut slice);
        rows.append(&slice);
        has_more
    }

    fn write_slice(&mut self, max_bytes: usize, rows: &mut Rows) -> bool {
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    /// A second domain, which knows no alarm: the last value under each letter. A question is answered with
    /// the value, once it is not what was answered before.
    #[derive(Default)]
    struct LastValues(BTreeMap<u8, Value>);

    #[derive(Clone, Copy, Debug, Eq, PartialEq)]
    struct Value {
        value: u8,
        is_told: bool,
    }

    const TABLE: u8 = 200;

    #[derive(Clone, Copy)]
    enum Ask {
        Set(u8, u8),
        Tell(u8),
    }

    impl Domain for LastValues {
        type Command = Ask;
        type Change = (u8, Option<Value>);
        type Outgoing = (u8, u8);
        type Tally = u64;
        type Settings = ();

        fn new((): ()) -> Self {
            Self::default()
        }

        fn decide(&self, _: Timestamp, command: &Ask, decision: &mut Decision<Self>) {
            decision.tally += 1;
            match *command {
                Ask::Set(letter, value) => {
                    let is_told = false;
                    decision
                        .changes
                        .push((letter, Some(Value { value, is_told })));
                }
                Ask::Tell(letter) => {
                    let known = self.0.get(&letter).filter(|known| !known.is_told);
                    let Some(&Value { value, .. }) = known else {
                        return;
                    };
                    let is_told = true;
                    decision
                        .changes
                        .push((letter, Some(Value { value, is_told })));
                    decision.publish = Some((letter, value));
                }
            }
        }

        fn evolve(&mut self, (letter, value): Self::Change) {
            match value {
                Some(value) => self.0.insert(letter, value),
                None => self.0.remove(&letter),
            };
        }

        fn encode((letter, value): &Self::Change, rows: &mut Rows) {
            let value = value.map(|it| [it.value, u8::from(it.is_told)]);
            rows.push(&[TABLE, *letter], value.as_ref().map(<[u8; 2]>::as_slice));
        }

        fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self::Change, CorruptRow> {
            let &[TABLE, letter] = key else {
                return Err(CorruptRow("not a letter"));
            };
            let value = match value {
                None => None,
                Some(&[value, told]) => Some(Value {
                    value,
                    is_told: told == 1,
                }),
                Some(_) => return Err(CorruptRow("not a value")),
            };
            Ok((letter, value))
        }

        fn encode_outgoing(&(letter, value): &(u8, u8), out: &mut Vec<u8>) {
            out.extend_from_slice(&[letter, value]);
        }

        fn decode_outgoing(reader: &mut Reader<'_>) -> Result<(u8, u8), CorruptRow> {
            Ok((reader.byte()?, reader.byte()?))
        }

        fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize> {
            for (place, (&letter, &value)) in self.0.iter().enumerate().skip(from) {
                if rows.as_bytes().len() >= max_bytes {
                    return Some(place);
                }
                Self::encode(&(letter, Some(value)), rows);
            }
            None
        }

        fn expire(&self, now: Timestamp, _: usize, changes: &mut Vec<Self::Change>) -> usize {
            if now >= Timestamp::from_seconds(1_000_000) {
                changes.extend(self.0.keys().map(|&letter| (letter, None)));
            }
            0
        }
    }

    const ORIGIN: Origin = Origin::Stream {
        created: Timestamp::from_seconds(5),
    };
    const STORE: StoreId = StoreId([7; 16]);
    const ID: PartitionId = PartitionId(3);

    fn cursor(sequence: u64) -> Cursor {
        Cursor {
            generation: 0,
            sequence,
        }
    }

    fn position(sequence: u64) -> Position {
        Position {
            origin: ORIGIN,
            cursor: cursor(sequence),
            timestamp: Timestamp::from_seconds(sequence),
            fingerprint: None,
        }
    }

    fn delivery(sequence: u64, lane: u64, command: Ask) -> Delivery<Ask> {
        Delivery {
            cursor: cursor(sequence),
            timestamp: Timestamp::from_seconds(sequence),
            placement: lane,
            body: Delivered::Command(command),
            reply_to: Some(format!("reply.{sequence}").into()),
        }
    }

    fn opened(epoch: u64, commits: &[Commit]) -> Partition<LastValues> {
        let mut partition = Partition::new(STORE, ID, ());
        for row in commits.iter().flat_map(|commit| commit.rows.iter()) {
            let (key, value) = row.unwrap();
            partition.restore(key, value).unwrap();
        }
        let last = commits.last();
        partition.recovered(Header {
            epoch: Epoch(epoch),
            number: last.map_or(CommitNumber(0), |commit| commit.number),
            position: last.and_then(|commit| commit.position),
        });
        partition
    }

    fn deliver(partition: &mut Partition<LastValues>, sequence: u64, command: Ask) {
        partition.deliver(ORIGIN, delivery(sequence, 1, command));
        partition.advance(position(sequence));
    }

    /// What a partition hands out, each in a word or two.
    fn outputs(partition: &mut Partition<LastValues>) -> Vec<String> {
        let mut outputs = Vec::new();
        while let Some(output) = partition.poll() {
            outputs.push(match output {
                Output::Release { position, replies } => {
                    let sequence = position.map_or(0, |position| position.cursor.sequence);
                    let replies: Vec<_> = replies
                        .iter()
                        .map(|reply| {
                            format!(
                                " {}{}",
                                reply.to,
                                reply.refused.as_deref().map_or("", |_| "!")
                            )
                        })
                        .collect();
                    format!("release {sequence}{}", replies.concat())
                }
                Output::Publish(owed) => format!("publish {}", owed.id),
                Output::InstallSnapshot(head) => format!("install {}", head.header.number.0),
            });
        }
        outputs
    }

    fn commit(partition: &mut Partition<LastValues>) -> Commit {
        let commit = partition.commit().expect("there is something to commit");
        partition.committed(commit.number);
        commit
    }

    fn keys(partition: &Partition<LastValues>) -> Vec<OutboxKey> {
        partition
            .outbox()
            .rows_from(OutboxKey(0))
            .map(|owed| owed.key)
            .collect()
    }

    #[test]
    fn i_01_commits_follow_without_a_gap_and_one_is_in_flight() {
        let mut partition = opened(1, &[]);
        assert_eq!(partition.commit(), None);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        assert!(partition.is_commit_due());
        let first = partition.commit().unwrap();
        deliver(&mut partition, 2, Ask::Set(b'b', 2));
        assert!(!partition.is_commit_due());
        assert_eq!(partition.commit(), None);
        partition.committed(first.number);
        let second = partition.commit().unwrap();
        assert_eq!(
            (first.number, second.number),
            (CommitNumber(1), CommitNumber(2))
        );
        partition.committed(second.number);
        assert_eq!(
            opened(2, &[first, second]).durable().number,
            CommitNumber(2)
        );
        assert_eq!(partition.commit(), None);
    }

    #[test]
    fn i_02_a_position_covers_the_messages_of_its_commit_and_never_goes_back() {
        let mut partition = opened(1, &[]);
        partition.deliver(ORIGIN, delivery(4, 1, Ask::Set(b'a', 1)));
        partition.advance(position(6));
        assert_eq!(commit(&mut partition).position, Some(position(6)));
        partition.advance(position(5));
        assert_eq!(partition.commit(), None);
        // A quiet partition is raised too: by a commit without a row.
        partition.advance(position(9));
        assert!(!partition.is_commit_due());
        let quiet = commit(&mut partition);
        assert_eq!(
            (quiet.position, quiet.rows),
            (Some(position(9)), Rows::default())
        );
    }

    #[test]
    #[should_panic(expected = "I-02")]
    fn i_02_a_commit_that_does_not_cover_its_messages_is_a_defect() {
        let mut partition = opened(1, &[]);
        partition.deliver(ORIGIN, delivery(4, 1, Ask::Set(b'a', 1)));
        let _ = partition.commit();
    }

    #[test]
    fn i_03_nothing_goes_out_before_its_commit_is_durable() {
        let mut partition = opened(1, &[]);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        deliver(&mut partition, 2, Ask::Tell(b'a'));
        assert!(outputs(&mut partition).is_empty());
        let number = partition.commit().unwrap().number;
        // What comes while the commit is in flight waits for the next one.
        deliver(&mut partition, 3, Ask::Set(b'b', 1));
        partition.deliver(ORIGIN, delivery(4, 2, Ask::Tell(b'b')));
        partition.advance(position(4));
        assert!(outputs(&mut partition).is_empty());
        partition.committed(number);
        assert_eq!(
            outputs(&mut partition),
            ["release 2 reply.1 reply.2", "publish 2-2000000000"]
        );
        commit(&mut partition);
        assert_eq!(
            outputs(&mut partition),
            ["release 4 reply.3 reply.4", "publish 4-4000000000"]
        );
    }

    #[test]
    fn i_04_an_owed_message_is_published_again_until_its_confirmation_is_durable() {
        let mut partition = opened(1, &[]);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        deliver(&mut partition, 2, Ask::Tell(b'a'));
        let owing = commit(&mut partition);
        let key = keys(&partition)[0];
        partition.published(key, Some(77));
        let confirmed = commit(&mut partition);
        assert_eq!(
            outputs(&mut opened(2, std::slice::from_ref(&owing))),
            ["publish 2-2000000000"]
        );
        let mut settled = opened(2, &[owing, confirmed]);
        assert!(outputs(&mut settled).is_empty());
        // The next message is looked for from the last confirmed sequence on.
        deliver(&mut settled, 3, Ask::Set(b'a', 2));
        deliver(&mut settled, 4, Ask::Tell(b'a'));
        let searched: Vec<_> = settled
            .outbox()
            .rows_from(OutboxKey(0))
            .map(|it| it.search_from)
            .collect();
        assert_eq!(searched, [77]);
    }

    #[test]
    fn i_04_where_a_dead_letter_is_stored_says_nothing_about_the_output() {
        let mut partition = opened(1, &[]);
        let letter = DeadLetter {
            reason: "bad_json".into(),
            detail: String::new(),
            subject: "in".into(),
            payload: bytes::Bytes::new(),
        };
        partition.deliver(
            ORIGIN,
            Delivery {
                body: Delivered::Refused(Box::new(letter)),
                ..delivery(1, 1, Ask::Tell(b'a'))
            },
        );
        partition.advance(position(1));
        commit(&mut partition);
        partition.published(keys(&partition)[0], Some(5000));
        deliver(&mut partition, 2, Ask::Set(b'a', 1));
        deliver(&mut partition, 3, Ask::Tell(b'a'));
        let searched: Vec<_> = partition
            .outbox()
            .rows_from(OutboxKey(0))
            .map(|it| it.search_from)
            .collect();
        assert_eq!(searched, [0]);
    }

    #[test]
    fn i_04_a_late_confirmation_for_an_earlier_owner_removes_nothing_else() {
        let mut earlier = opened(1, &[]);
        deliver(&mut earlier, 1, Ask::Set(b'a', 1));
        deliver(&mut earlier, 2, Ask::Tell(b'a'));
        let owing = commit(&mut earlier);
        let key = keys(&earlier)[0];
        earlier.published(key, None);
        let confirmed = commit(&mut earlier);

        let mut later = opened(2, &[owing.clone(), confirmed]);
        deliver(&mut later, 3, Ask::Set(b'a', 2));
        deliver(&mut later, 4, Ask::Tell(b'a'));
        commit(&mut later);
        later.published(key, None);
        assert_eq!(later.outbox().num_rows(), 1);

        // Where the message is still owed, the confirmation is as good as one's own.
        let mut later = opened(2, &[owing]);
        later.published(key, None);
        assert_eq!(later.outbox().num_rows(), 0);
    }

    #[test]
    fn i_04_a_parked_message_stays_owed_and_its_lane_goes_on() {
        let mut partition = opened(1, &[]);
        for (sequence, command) in [
            (1, Ask::Set(b'a', 1)),
            (2, Ask::Tell(b'a')),
            (3, Ask::Set(b'a', 2)),
            (4, Ask::Tell(b'a')),
        ] {
            deliver(&mut partition, sequence, command);
        }
        let commit = commit(&mut partition);
        outputs(&mut partition);
        partition.parked(keys(&partition)[0]);
        assert_eq!(outputs(&mut partition), ["publish 4-4000000000"]);
        assert_eq!(opened(2, &[commit]).outbox().num_rows(), 2);
    }

    #[test]
    fn i_05_one_message_of_a_lane_is_under_way() {
        let mut partition = opened(1, &[]);
        for sequence in 1..=3 {
            deliver(&mut partition, 2 * sequence, Ask::Set(b'a', 1));
            deliver(&mut partition, 2 * sequence + 1, Ask::Tell(b'a'));
        }
        partition.deliver(ORIGIN, delivery(8, 2, Ask::Set(b'b', 1)));
        partition.deliver(ORIGIN, delivery(9, 2, Ask::Tell(b'b')));
        partition.advance(position(9));
        let owing = commit(&mut partition);
        assert_eq!(
            outputs(&mut partition)[1..],
            ["publish 3-3000000000", "publish 9-9000000000"]
        );
        partition.published(keys(&partition)[0], None);
        assert_eq!(outputs(&mut partition), ["publish 5-5000000000"]);
        // The same after a crash.
        assert_eq!(
            outputs(&mut opened(2, &[owing])),
            ["publish 3-3000000000", "publish 9-9000000000"]
        );
    }

    #[test]
    fn i_06_the_recovered_state_is_the_live_one() {
        let mut partition = opened(1, &[]);
        let mut commits = Vec::new();
        for value in 1..=20_u8 {
            let (sequence, letter) = (u64::from(value), b'a' + value % 3);
            let command = if sequence % 4 == 0 {
                Ask::Tell(letter)
            } else {
                Ask::Set(letter, value)
            };
            deliver(&mut partition, sequence, command);
            if sequence % 5 == 0 {
                commits.push(commit(&mut partition));
                partition.published(keys(&partition)[0], Some(sequence));
            }
            // Replaying everything twice changes nothing: rows are absolute.
            let twice: Vec<_> = commits.iter().chain(&commits).cloned().collect();
            if sequence % 5 == 0 {
                let recovered = opened(2, &twice);
                assert_eq!(recovered.state().0, partition.state().0);
                assert_eq!(recovered.durable().position, partition.durable().position);
            }
        }
        commits.push(commit(&mut partition));
        assert_eq!(keys(&opened(2, &commits)), keys(&partition));
    }

    #[test]
    fn i_06_what_expires_is_gone_from_the_store_too() {
        let mut partition = opened(1, &[]);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        let first = commit(&mut partition);
        partition.advance(position(1_000_000));
        partition.expire();
        assert!(!partition.is_commit_due());
        let second = commit(&mut partition);
        assert!(opened(2, &[first, second]).state().0.is_empty());
    }

    #[test]
    fn i_07_a_message_of_a_stream_has_the_same_id_whoever_answers_it() {
        let answer = |epoch, store| {
            let mut partition = Partition::<LastValues>::new(store, ID, ());
            partition.recovered(Header {
                epoch: Epoch(epoch),
                ..Header::default()
            });
            deliver(&mut partition, 1, Ask::Set(b'a', 1));
            deliver(&mut partition, 2, Ask::Tell(b'a'));
            commit(&mut partition);
            outputs(&mut partition).pop()
        };
        assert_eq!(answer(1, STORE), answer(9, StoreId([8; 16])));
    }

    #[test]
    fn i_07_ids_of_a_session_never_repeat() {
        let mut ids = Vec::new();
        for epoch in 1..=2 {
            // The second owner begins with an empty store again, as far as this commit is concerned.
            let mut partition = opened(epoch, &[]);
            for first in [1, 10] {
                for sequence in [first, first + 2] {
                    for (sequence, command) in [
                        (sequence, Ask::Set(b'a', 1)),
                        (sequence + 1, Ask::Tell(b'a')),
                    ] {
                        partition.deliver(Origin::Session, delivery(sequence, sequence, command));
                        partition.advance(position(sequence));
                    }
                }
                commit(&mut partition);
            }
            ids.extend(
                partition
                    .outbox()
                    .rows_from(OutboxKey(0))
                    .map(|owed| owed.id.to_string()),
            );
        }
        let expected: Vec<_> = [
            "1-3-1.0", "1-3-1.1", "1-3-2.0", "1-3-2.1", "2-3-1.0", "2-3-1.1", "2-3-2.0", "2-3-2.1",
        ]
        .map(|id| format!("{STORE}-{id}"))
        .into();
        assert_eq!(ids, expected);
    }

    #[test]
    fn i_08_a_snapshot_is_installed_when_everything_in_it_is_durable() {
        let mut partition = opened(1, &[]);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        let mut commits = vec![commit(&mut partition)];
        outputs(&mut partition);
        let head = partition.begin_snapshot().unwrap();
        assert_eq!(
            (head.header, partition.begin_snapshot()),
            (partition.durable(), None)
        );
        // The mark "told" moves into the snapshot before the message that it goes with is durable.
        deliver(&mut partition, 2, Ask::Tell(b'a'));
        let in_flight = partition.commit().unwrap();
        deliver(&mut partition, 3, Ask::Set(b'b', 2));
        let mut snapshot = Rows::default();
        while partition.write_snapshot(1, &mut snapshot) {}
        assert!(outputs(&mut partition).is_empty());
        partition.committed(in_flight.number);
        assert_eq!(
            outputs(&mut partition).len(),
            2,
            "a release and a publish, nothing installed"
        );
        let last = commit(&mut partition);
        assert_eq!(outputs(&mut partition), ["release 3 reply.3", "install 1"]);

        commits[0].rows = snapshot;
        commits.extend([in_flight, last]);
        let recovered = opened(2, &commits);
        assert_eq!(recovered.state().0, partition.state().0);
        assert_eq!(keys(&recovered), keys(&partition));
        assert!(!partition.write_snapshot(1, &mut Rows::default()));
        assert!(partition.begin_snapshot().is_some());
    }

    #[test]
    fn i_08_a_snapshot_of_what_is_durable_is_installed_at_once_whatever_its_slices() {
        let mut partition = opened(1, &[]);
        for (sequence, letter) in (1..).step_by(2).zip([b'a', b'b', b'c']) {
            deliver(&mut partition, sequence, Ask::Set(letter, 1));
            deliver(&mut partition, sequence + 1, Ask::Tell(letter));
        }
        commit(&mut partition);
        outputs(&mut partition);
        partition.begin_snapshot().unwrap();
        let mut snapshot = Rows::default();
        let num_more = (0..20)
            .take_while(|_| partition.write_snapshot(1, &mut snapshot))
            .count();
        // Three owed messages, where the output ends, three letters: a slice for each, and none twice.
        let keys = snapshot.iter().map(|row| row.unwrap().0.to_vec());
        let keys: BTreeSet<_> = keys.collect();
        assert_eq!((snapshot.iter().count(), keys.len()), (7, 7));
        assert!(num_more < 20, "it ends");
        assert_eq!(outputs(&mut partition), ["install 1"]);
    }

    #[test]
    fn i_11_every_message_is_applied_and_a_repeat_changes_nothing() {
        let mut partition = opened(1, &[]);
        deliver(&mut partition, 1, Ask::Set(b'a', 1));
        deliver(&mut partition, 2, Ask::Set(b'a', 2));
        let first = commit(&mut partition);
        let mut recovered = opened(2, &[first]);
        for sequence in [1, 2] {
            deliver(&mut recovered, sequence, Ask::Set(b'a', 9));
        }
        assert_eq!(recovered.take_tally(), 0);
        // Its publisher waits all the same, and is answered with the next commit.
        assert!(recovered.is_commit_due());
        assert!(commit(&mut recovered).rows.is_empty());
        assert_eq!(outputs(&mut recovered), ["release 2 reply.1 reply.2"]);
        deliver(&mut recovered, 3, Ask::Set(b'a', 3));
        assert_eq!(recovered.state().0[&b'a'].value, 3);
        assert_eq!(recovered.take_tally(), 1);
    }

    #[test]
    fn i_11_a_message_at_or_below_the_watermark_is_a_repeat() {
        let mut partition = opened(1, &[]);
        partition.advance(position(7));
        deliver(&mut partition, 7, Ask::Set(b'a', 1));
        assert!(partition.state().0.is_empty());
        let mut next = delivery(1, 1, Ask::Set(b'a', 1));
        next.cursor.generation = 1;
        partition.deliver(ORIGIN, next);
        assert_eq!(partition.state().0.len(), 1);
    }

    #[test]
    fn a_refused_message_becomes_a_dead_letter_of_the_commit_that_moves_past_it() {
        let mut partition = opened(1, &[]);
        let letter = DeadLetter {
            reason: "bad_json".into(),
            detail: "a brace".into(),
            subject: "in".into(),
            payload: bytes::Bytes::from_static(b"junk"),
        };
        partition.deliver(
            ORIGIN,
            Delivery {
                body: Delivered::Refused(Box::new(letter.clone())),
                ..delivery(1, 1, Ask::Tell(b'a'))
            },
        );
        partition.advance(position(1));
        let refusing = commit(&mut partition);
        assert_eq!(
            outputs(&mut partition),
            ["release 1 reply.1!", "publish 1-1000000000"]
        );
        let recovered = opened(2, &[refusing]);
        let owed = recovered.outbox().rows_from(OutboxKey(0)).next().unwrap();
        assert_eq!(owed.body, Body::DeadLetter(letter));
    }

    #[test]
    fn rows_of_another_program_are_refused() {
        let mut partition = Partition::<LastValues>::new(STORE, ID, ());
        for (key, value) in [
            (&b""[..], None),
            (b"\x01\0", None),
            (b"\x01\0\0\0\0\0\0\0\x01", Some(&b"\x07"[..])),
            (b"\x02", Some(b"")),
            (b"\x02", None),
            (b"\x11x", Some(b"")),
        ] {
            assert!(partition.restore(key, value).is_err(), "{key:?}");
        }
    }
}
