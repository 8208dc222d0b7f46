//! Messages that are owed to the broker: each stays until the broker has confirmed it, in order per lane.
//!
//! A lane is a user's placement hash: at most one unconfirmed message of a user is under way, different users
//! go concurrently. (Two users with one hash share a lane, which costs them nothing but concurrency.)
//!
//! ```text
//! value := id lane(8) since(8) varint(search_from) body
//! id    := 0 varint(generation) varint(sequence) timestamp(8)
//!        | 1 store(16) varint(epoch) varint(partition) varint(number) varint(index)
//! body  := 0 a domain's message, as the domain writes it
//!        | 1 bytes(reason) bytes(detail) bytes(subject) payload, a dead letter
//! ```

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound::{Excluded, Included};
use std::sync::Arc;

use bytes::Bytes;

use super::ids::{CommitNumber, Epoch, MessageId, PartitionId, StoreId};
use super::position::Cursor;
use super::rows::{CorruptRow, OUTBOX_TABLE, Reader, put_bytes, put_timestamp, put_varint};
use super::time::Timestamp;

/// The number of an owed message within its partition: later ones are higher, and none is given out twice,
/// because each owner of the partition begins a range of its own ([`OutboxKey::before`]).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct OutboxKey(pub u64);

impl OutboxKey {
    /// The key before the first of an owner: a confirmation that an earlier owner waited for, and that
    /// arrives late, can only name the message that it was meant for.
    #[must_use]
    pub const fn before(epoch: Epoch) -> Self {
        Self(epoch.0 << KEY_BITS_PER_EPOCH)
    }

    /// The row's key.
    #[must_use]
    pub fn to_row_key(self) -> [u8; 9] {
        let mut key = [OUTBOX_TABLE; 9];
        key[1..].copy_from_slice(&self.0.to_be_bytes());
        key
    }

    /// Reads what follows the table byte of a row's key.
    ///
    /// # Errors
    /// [`CorruptRow`] when it is not eight bytes.
    pub fn from_row_key(key: &[u8]) -> Result<Self, CorruptRow> {
        let bytes = key
            .try_into()
            .map_err(|_| CorruptRow("an outbox key has not eight bytes"))?;
        Ok(Self(u64::from_be_bytes(bytes)))
    }
}

/// 2^40 messages an owner, 2^24 owners: a restart each second for half a year, a message each microsecond for
/// twelve days.
const KEY_BITS_PER_EPOCH: u32 = 40;

/// A message that was refused, with everything its publisher needs to find the fault.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeadLetter {
    /// The stable code of the refusal.
    pub reason: Cow<'static, str>,
    /// What exactly was wrong, in words.
    pub detail: String,
    /// The subject it came on.
    pub subject: String,
    /// Its bytes, unchanged.
    pub payload: Bytes,
}

/// What is owed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Body<M> {
    /// A message that a domain decided to publish.
    Message(M),
    /// A refused message on its way to the dead letters.
    DeadLetter(DeadLetter),
}

/// A message owed to the broker.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owed<M> {
    /// Its number.
    pub key: OutboxKey,
    /// The id it is published under, at every attempt.
    pub id: MessageId,
    /// Messages of one lane are published one after the other.
    pub lane: u64,
    /// The broker's timestamp of the message that caused it.
    pub since: Timestamp,
    /// The last confirmed sequence of the output stream when it was decided: no attempt of this message is
    /// stored at or before it, unless the broker gave that sequence out again.
    pub search_from: u64,
    /// Whether it was read back from the store: earlier attempts may have reached the broker.
    pub is_recovered: bool,
    /// The size of its row, in bytes.
    pub num_bytes: usize,
    /// What is owed.
    pub body: Body<M>,
}

impl<M> Owed<M> {
    /// Appends the row's value; `put_message` encodes a domain's message.
    pub fn encode(&self, out: &mut Vec<u8>, put_message: impl FnOnce(&M, &mut Vec<u8>)) {
        put_message_id(out, &self.id);
        out.extend_from_slice(&self.lane.to_be_bytes());
        put_timestamp(out, self.since);
        put_varint(out, self.search_from);
        match &self.body {
            Body::Message(message) => {
                out.push(0);
                put_message(message, out);
            }
            Body::DeadLetter(letter) => {
                out.push(1);
                put_bytes(out, letter.reason.as_bytes());
                put_bytes(out, letter.detail.as_bytes());
                put_bytes(out, letter.subject.as_bytes());
                out.extend_from_slice(&letter.payload);
            }
        }
    }

    /// Reads a row's value; `take_message` decodes a domain's message.
    ///
    /// # Errors
    /// [`CorruptRow`] when it is none that [`Owed::encode`] writes.
    pub fn decode(
        key: OutboxKey,
        value: &[u8],
        take_message: impl FnOnce(&mut Reader<'_>) -> Result<M, CorruptRow>,
    ) -> Result<Self, CorruptRow> {
        let mut reader = Reader::new(value);
        let id = take_message_id(&mut reader)?;
        let lane = u64::from_be_bytes(reader.array()?);
        let since = reader.timestamp()?;
        let search_from = reader.varint()?;
        let body = match reader.byte()? {
            0 => {
                let message = take_message(&mut reader)?;
                reader.finish()?;
                Body::Message(message)
            }
            1 => Body::DeadLetter(DeadLetter {
                reason: Cow::Owned(reader.text()?.to_owned()),
                detail: reader.text()?.to_owned(),
                subject: reader.text()?.to_owned(),
                payload: Bytes::copy_from_slice(reader.rest()),
            }),
            _ => return Err(CorruptRow("an owed message is of an unknown kind")),
        };
        let num_bytes = value.len();
        Ok(Self {
            key,
            id,
            lane,
            since,
            search_from,
            is_recovered: true,
            num_bytes,
            body,
        })
    }
}

fn put_message_id(out: &mut Vec<u8>, id: &MessageId) {
    match id {
        MessageId::Stream { cursor, timestamp } => {
            out.push(0);
            put_varint(out, u64::from(cursor.generation));
            put_varint(out, cursor.sequence);
            put_timestamp(out, *timestamp);
        }
        MessageId::Session {
            store,
            epoch,
            partition,
            number,
            index,
        } => {
            out.push(1);
            out.extend_from_slice(&store.0);
            put_varint(out, epoch.0);
            put_varint(out, u64::from(partition.0));
            put_varint(out, number.0);
            put_varint(out, u64::from(*index));
        }
    }
}

fn take_message_id(reader: &mut Reader<'_>) -> Result<MessageId, CorruptRow> {
    match reader.byte()? {
        0 => Ok(MessageId::Stream {
            cursor: Cursor {
                generation: reader.varint_u32()?,
                sequence: reader.varint()?,
            },
            timestamp: reader.timestamp()?,
        }),
        1 => Ok(MessageId::Session {
            store: StoreId(reader.array()?),
            epoch: Epoch(reader.varint()?),
            partition: PartitionId(
                u16::try_from(reader.varint()?)
                    .map_err(|_| CorruptRow("a partition does not fit"))?,
            ),
            number: CommitNumber(reader.varint()?),
            index: reader.varint_u32()?,
        }),
        _ => Err(CorruptRow("a message id is of an unknown kind")),
    }
}

/// A message that is owed no more.
#[derive(Debug)]
pub struct Removed<M> {
    /// The message.
    pub owed: Arc<Owed<M>>,
    /// The next of its lane, if it may go now.
    pub next: Option<Arc<Owed<M>>>,
}

/// The owed messages of one partition.
#[derive(Debug)]
pub struct Outbox<M> {
    rows: BTreeMap<OutboxKey, Arc<Owed<M>>>,
    /// The rows of each lane that wait or are under way, oldest first; no lane is empty.
    lanes: HashMap<u64, VecDeque<OutboxKey>>,
    last_key: OutboxKey,
    last_durable: OutboxKey,
    num_bytes: usize,
}

impl<M> Default for Outbox<M> {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            lanes: HashMap::new(),
            last_key: OutboxKey::default(),
            last_durable: OutboxKey::default(),
            num_bytes: 0,
        }
    }
}

impl<M> Outbox<M> {
    /// How many messages are owed.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// How large their rows are together.
    #[must_use]
    pub const fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The owed messages, oldest first, from a key on.
    pub fn rows_from(&self, from: OutboxKey) -> impl Iterator<Item = &Arc<Owed<M>>> {
        self.rows.range(from..).map(|(_, owed)| owed)
    }

    /// The key for the next message.
    #[must_use]
    pub const fn next_key(&self) -> OutboxKey {
        OutboxKey(self.last_key.0 + 1)
    }

    /// The newest key given out.
    #[must_use]
    pub const fn last_key(&self) -> OutboxKey {
        self.last_key
    }

    /// Gives out keys beyond every earlier owner's from now on.
    pub fn begin_epoch(&mut self, epoch: Epoch) {
        self.last_key = self.last_key.max(OutboxKey::before(epoch));
    }

    /// Takes a message that is owed from now on, or the same row again.
    pub fn insert(&mut self, owed: Owed<M>) {
        let (key, lane) = (owed.key, owed.lane);
        self.last_key = self.last_key.max(key);
        self.num_bytes += owed.num_bytes;
        match self.rows.insert(key, Arc::new(owed)) {
            None => self.lanes.entry(lane).or_default().push_back(key),
            Some(replaced) => self.num_bytes -= replaced.num_bytes,
        }
    }

    /// Makes every row up to `key` durable; returns those that may be published now.
    pub fn make_durable(&mut self, key: OutboxKey) -> Vec<Arc<Owed<M>>> {
        // Most commits owe nothing new: the range may be empty, but never backwards.
        let key = key.max(self.last_durable);
        let newly = self
            .rows
            .range((Excluded(self.last_durable), Included(key)));
        let first_of_lane = |owed: &&Arc<Owed<M>>| {
            self.lanes.get(&owed.lane).and_then(VecDeque::front) == Some(&owed.key)
        };
        let ready = newly
            .map(|(_, owed)| owed)
            .filter(first_of_lane)
            .cloned()
            .collect();
        self.last_durable = key;
        ready
    }

    /// Removes a confirmed message; `None` when it was not owed.
    pub fn remove(&mut self, key: OutboxKey) -> Option<Removed<M>> {
        let owed = self.rows.remove(&key)?;
        self.num_bytes -= owed.num_bytes;
        let next = self.leave_lane(owed.lane, key);
        Some(Removed { owed, next })
    }

    /// Lets the lane of a message go on without it; it stays owed. What is not first in its lane was not offered to be
    /// published: the word is of an attempt that an earlier owner asked for, and the message keeps its turn.
    pub fn park(&mut self, key: OutboxKey) -> Option<Arc<Owed<M>>> {
        let lane = self.rows.get(&key)?.lane;
        if self.lanes.get(&lane)?.front() != Some(&key) {
            return None;
        }
        self.leave_lane(lane, key)
    }

    fn leave_lane(&mut self, lane: u64, key: OutboxKey) -> Option<Arc<Owed<M>>> {
        let waiting = self.lanes.get_mut(&lane)?;
        let was_first = waiting.front() == Some(&key);
        waiting.retain(|&other| other != key);
        let Some(&next) = waiting.front() else {
            self.lanes.remove(&lane);
            return None;
        };
        if !was_first || next > self.last_durable {
            return None;
        }
        self.rows.get(&next).cloned()
    }
}

#[cfg(test)]
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method's lifetime is too narrow for where the closure goes"
)]
mod tests {
    use super::*;

    fn owed(key: u64, lane: u64) -> Owed<u8> {
        Owed {
            key: OutboxKey(key),
            id: MessageId::Stream {
                cursor: Cursor {
                    generation: 0,
                    sequence: key,
                },
                timestamp: Timestamp::EPOCH,
            },
            lane,
            since: Timestamp::EPOCH,
            search_from: 0,
            is_recovered: false,
            num_bytes: 10,
            body: Body::Message(7),
        }
    }

    fn keys(owed: &[Arc<Owed<u8>>]) -> Vec<u64> {
        owed.iter().map(|owed| owed.key.0).collect()
    }

    #[test]
    fn a_lane_goes_one_by_one_and_only_what_is_durable() {
        let mut outbox = Outbox::default();
        for (key, lane) in [(1, 5), (2, 5), (3, 6), (4, 5)] {
            outbox.insert(owed(key, lane));
        }
        assert_eq!(keys(&outbox.make_durable(OutboxKey(3))), [1, 3]);
        let removed = outbox.remove(OutboxKey(1)).expect("it was owed");
        assert_eq!(removed.next.map(|owed| owed.key.0), Some(2));
        // The fourth is not durable yet, so the lane waits for it.
        let removed = outbox.remove(OutboxKey(2)).expect("it was owed");
        assert_eq!(removed.next, None);
        assert_eq!(keys(&outbox.make_durable(OutboxKey(4))), [4]);
        assert!(outbox.remove(OutboxKey(1)).is_none());
        assert_eq!((outbox.num_rows(), outbox.num_bytes()), (2, 20));
    }

    #[test]
    fn each_owner_gives_out_keys_of_its_own() {
        assert_eq!(OutboxKey::before(Epoch(1)), OutboxKey(1 << 40));
        let mut outbox = Outbox::<u8>::default();
        outbox.begin_epoch(Epoch(2));
        assert_eq!(outbox.next_key(), OutboxKey((2 << 40) + 1));
        outbox.begin_epoch(Epoch(1));
        assert_eq!(outbox.last_key(), OutboxKey(2 << 40), "keys never go back");
        let row_key = OutboxKey(0x0102).to_row_key();
        assert_eq!(row_key, [OUTBOX_TABLE, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(
            OutboxKey::from_row_key(&row_key[1..]),
            Ok(OutboxKey(0x0102))
        );
        assert!(OutboxKey::from_row_key(&row_key).is_err());
    }

    #[test]
    fn the_same_row_again_is_counted_once() {
        let mut outbox = Outbox::default();
        for key in [1, 2, 1, 3] {
            outbox.insert(owed(key, 5));
        }
        assert_eq!((outbox.num_rows(), outbox.num_bytes()), (3, 30));
        let from_second: Vec<_> = outbox.rows_from(OutboxKey(2)).cloned().collect();
        assert_eq!(keys(&from_second), [2, 3]);
    }

    #[test]
    fn a_commit_that_owes_nothing_new_makes_nothing_ready() {
        let mut outbox = Outbox::default();
        outbox.insert(owed(1, 5));
        assert_eq!(keys(&outbox.make_durable(OutboxKey(1))), [1]);
        assert!(outbox.make_durable(OutboxKey(1)).is_empty());
    }

    #[test]
    fn a_parked_message_stays_owed_and_lets_its_lane_go_on() {
        let mut outbox = Outbox::default();
        outbox.insert(owed(1, 5));
        outbox.insert(owed(2, 5));
        assert_eq!(keys(&outbox.make_durable(OutboxKey(2))), [1]);
        assert_eq!(outbox.park(OutboxKey(1)).map(|owed| owed.key.0), Some(2));
        assert_eq!(outbox.num_rows(), 2);
        // Confirmed after all, while the second is under way: the second is not published again.
        for key in [1, 2] {
            let removed = outbox.remove(OutboxKey(key)).expect("it was owed");
            assert_eq!((removed.owed.key.0, removed.next), (key, None));
        }
    }

    #[test]
    fn what_was_not_offered_cannot_be_parked() {
        let mut outbox = Outbox::default();
        outbox.insert(owed(1, 5));
        outbox.insert(owed(2, 5));
        assert_eq!(keys(&outbox.make_durable(OutboxKey(2))), [1]);
        // Said of an attempt before the owner that died; nobody else would publish it now.
        assert_eq!(outbox.park(OutboxKey(2)), None);
        let removed = outbox.remove(OutboxKey(1)).expect("it was owed");
        assert_eq!(removed.next.map(|owed| owed.key.0), Some(2));
    }

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let mut out = Vec::new();
        owed(3, 0x0102).encode(&mut out, |message, out| out.push(*message));
        let expected: &[u8] =
            b"\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\0\0\0\x07";
        assert_eq!(out, expected);
        let read = Owed::decode(OutboxKey(3), &out, |reader| reader.byte()).expect("a row");
        assert_eq!(
            read,
            Owed {
                is_recovered: true,
                num_bytes: 30,
                ..owed(3, 0x0102)
            }
        );
    }

    #[test]
    fn a_dead_letter_keeps_every_byte() {
        let letter = Owed::<u8> {
            id: MessageId::Session {
                store: StoreId([9; 16]),
                epoch: Epoch(300),
                partition: PartitionId(5),
                number: CommitNumber(70_000),
                index: 2,
            },
            body: Body::DeadLetter(DeadLetter {
                reason: "bad_json".into(),
                detail: "expected a brace".into(),
                subject: "AlarmStatusChanged.7".into(),
                payload: Bytes::from_static(b"\xff\x00junk"),
            }),
            is_recovered: true,
            ..owed(4, 1)
        };
        let mut out = Vec::new();
        letter.encode(&mut out, |_, _| {});
        let num_bytes = out.len();
        let read = Owed::decode(OutboxKey(4), &out, |reader| reader.byte());
        assert_eq!(
            read,
            Ok(Owed {
                num_bytes,
                ..letter
            })
        );
        for cut in 0..30 {
            assert!(Owed::decode(OutboxKey(4), &out[..cut], |reader| reader.byte()).is_err());
        }
    }
}
