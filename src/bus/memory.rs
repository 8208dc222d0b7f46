//! A broker inside the process: an input stream, an output stream, and the faults that a broker has.
//!
//! | what a broker does | how it is had here |
//! |---|---|
//! | numbers, stamps and keeps messages | [`MemoryBus::publish`], [`MemoryBus::publish_at`] |
//! | purges, or is restored to an older copy | [`MemoryBus::purge`], [`MemoryBus::truncate`], [`MemoryBus::recreate`] |
//! | refuses, is away, loses confirmations, is slow | [`MemoryBus::set_faults`] |
//! | forgets ids after its duplicate window | [`MemoryBus::forget_ids`] |
//!
//! Everything lives as long as the process. Reading is verified as with any stream: see
//! [`crate::core::position::resume`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::sync::Notify;

use super::wire::message_bytes;
use super::{
    Bus, BusError, Claim, Confirmation, Input, InputStats, Mode, Outbound, Output, PublishError,
    RawBatch, RawMessage, Start, wall_clock,
};
use crate::core::ids::{StoreId, placement_hash};
use crate::core::parts::read_id;
use crate::core::position::{
    Cursor, Origin, Position, Resume, StreamView, position_to_verify, resume,
};
use crate::core::time::Timestamp;

/// How the broker misbehaves from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Stores nothing and says that it never will.
    pub refuses: bool,
    /// Stores nothing and does not answer.
    pub is_away: bool,
    /// Stores, and the confirmation is lost.
    pub loses_confirmations: bool,
    /// Answers only after this time.
    pub delay: Duration,
}

/// A message of the output.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its sequence.
    pub sequence: u64,
    /// What was published.
    pub message: Outbound,
}

/// A broker inside the process. Its clones are the same broker.
#[derive(Clone)]
pub struct MemoryBus(Arc<Shared>);

struct Shared {
    broker: Mutex<Broker>,
    /// The input or the claim changed.
    changed: Notify,
}

struct Broker {
    created: Timestamp,
    first_sequence: u64,
    input: Vec<Stored>,
    output: Vec<Published>,
    sent: Vec<(String, Bytes)>,
    recent_ids: HashMap<String, u64>,
    duplicate_window: Duration,
    max_payload: usize,
    faults: Faults,
    owner: Option<StoreId>,
}

#[derive(Clone)]
struct Stored {
    timestamp: Timestamp,
    subject: Arc<str>,
    payload: Bytes,
}

impl Default for MemoryBus {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryBus {
    /// An empty broker.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            broker: Mutex::new(Broker {
                created: wall_clock(),
                first_sequence: 1,
                input: Vec::new(),
                output: Vec::new(),
                sent: Vec::new(),
                recent_ids: HashMap::new(),
                duplicate_window: Duration::from_mins(10),
                max_payload: 1 << 20,
                faults: Faults::default(),
                owner: None,
            }),
            changed: Notify::new(),
        }))
    }

    /// Publishes to the input, stamped now; returns the sequence.
    pub fn publish(&self, subject: &str, payload: impl Into<Bytes>) -> u64 {
        self.publish_at(wall_clock(), subject, payload)
    }

    /// Publishes to the input with a timestamp; returns the sequence.
    pub fn publish_at(&self, at: Timestamp, subject: &str, payload: impl Into<Bytes>) -> u64 {
        let sequence = {
            let mut broker = self.0.lock();
            broker.input.push(Stored {
                timestamp: at,
                subject: subject.into(),
                payload: payload.into(),
            });
            broker.last_sequence()
        };
        self.0.changed.notify_waiters();
        sequence
    }

    /// Removes the messages of the input up to a sequence.
    pub fn purge(&self, up_to: u64) {
        self.rewrite(|broker| {
            let num_gone = broker.place_after(up_to);
            broker.input.drain(..num_gone);
            broker.first_sequence += num_gone as u64;
        });
    }

    /// Forgets the messages of the input after a sequence, as a restored older copy does.
    pub fn truncate(&self, after: u64) {
        self.rewrite(|broker| {
            let num_kept = broker.place_after(after);
            broker.input.truncate(num_kept);
        });
    }

    /// Replaces the input stream with an empty one created later.
    pub fn recreate(&self) {
        self.rewrite(|broker| {
            broker.created = broker.created.plus(Duration::from_nanos(1));
            broker.first_sequence = 1;
            broker.input.clear();
        });
    }

    fn rewrite(&self, change: impl FnOnce(&mut Broker)) {
        change(&mut self.0.lock());
        self.0.changed.notify_waiters();
    }

    /// Changes how the broker misbehaves.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// Ends the duplicate window of everything published so far.
    pub fn forget_ids(&self) {
        self.0.lock().recent_ids.clear();
    }

    /// Everything confirmed so far, in order.
    #[must_use]
    pub fn output_messages(&self) -> Vec<Published> {
        self.0.lock().output.clone()
    }

    /// Everything sent without confirmation, in order.
    #[must_use]
    pub fn sent_messages(&self) -> Vec<(String, Bytes)> {
        self.0.lock().sent.clone()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Broker> {
        // Every change of the broker is complete before anything in it can panic.
        self.broker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something, looking again after every change.
    async fn wait_for<T>(&self, mut look: impl FnMut(&mut Broker) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Waiting begins before the look, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl Broker {
    fn last_sequence(&self) -> u64 {
        self.first_sequence + self.input.len() as u64 - 1
    }

    /// The place in the input of the first message after a sequence.
    fn place_after(&self, sequence: u64) -> usize {
        let place = (sequence + 1).saturating_sub(self.first_sequence);
        usize::try_from(place).map_or(self.input.len(), |place| place.min(self.input.len()))
    }

    fn view(&self, verify: Option<Position>) -> StreamView {
        let at_position = verify.and_then(|position| {
            let place = position.cursor.sequence.checked_sub(self.first_sequence)?;
            let stored = self.input.get(usize::try_from(place).ok()?)?;
            Some((stored.timestamp, placement_hash(&stored.payload)))
        });
        StreamView {
            created: self.created,
            first_sequence: self.first_sequence,
            last_sequence: self.last_sequence(),
            at_position,
        }
    }

    /// A place in the input at which no message was read.
    fn position(&self, generation: u32, sequence: u64, timestamp: Timestamp) -> Position {
        Position {
            origin: Origin::Stream {
                created: self.created,
            },
            cursor: Cursor {
                generation,
                sequence,
            },
            timestamp,
            fingerprint: None,
        }
    }

    /// The last sequence before the first message that is not before an instant.
    fn sequence_before(&self, from: Timestamp) -> u64 {
        let place = self.input.iter().position(|it| it.timestamp >= from);
        self.first_sequence + place.unwrap_or(self.input.len()) as u64 - 1
    }

    fn publish(&mut self, message: Outbound) -> Result<Confirmation, PublishError> {
        if self.faults.is_away {
            return Err(PublishError::Unconfirmed("the broker is away".to_owned()));
        }
        if self.faults.refuses {
            return Err(PublishError::Refused("the broker refuses".to_owned()));
        }
        if message_bytes(&message) > self.max_payload {
            let why = format!("more than {} bytes with headers", self.max_payload);
            return Err(PublishError::Refused(why));
        }
        let known = self.recent_ids.get(&message.id).copied();
        let sequence = known.unwrap_or_else(|| {
            let sequence = self.output.len() as u64 + 1;
            self.recent_ids.insert(message.id.clone(), sequence);
            self.output.push(Published { sequence, message });
            sequence
        });
        if self.faults.loses_confirmations {
            return Err(PublishError::Unconfirmed("no confirmation came".to_owned()));
        }
        Ok(Confirmation {
            sequence: Some(sequence),
            is_duplicate: known.is_some(),
        })
    }
}

impl Bus for MemoryBus {
    fn mode(&self) -> Mode {
        Mode::Memory
    }

    fn claim(&self, store: StoreId) -> BoxFuture<'static, Result<Arc<dyn Claim>, BusError>> {
        let shared = self.0.clone();
        let claiming = async move {
            let claim = MemoryClaim { shared, store };
            claim.held().await;
            let claim: Arc<dyn Claim> = Arc::new(claim);
            Ok(claim)
        };
        claiming.boxed()
    }

    fn open_input(
        &self,
        positions: Vec<Option<Position>>,
        start: Start,
    ) -> BoxFuture<'static, Result<Box<dyn Input>, BusError>> {
        let input = MemoryInput::open(self.0.clone(), &positions, start);
        let input: Box<dyn Input> = Box::new(input);
        ready(Ok(input)).boxed()
    }

    fn output(&self) -> Arc<dyn Output> {
        Arc::new(self.clone())
    }

    fn duplicate_window(&self) -> Option<Duration> {
        Some(self.0.lock().duplicate_window)
    }
}

impl Output for MemoryBus {
    fn max_payload(&self) -> usize {
        self.0.lock().max_payload
    }

    fn publish(&self, message: Outbound) -> BoxFuture<'static, Result<Confirmation, PublishError>> {
        let shared = self.0.clone();
        let publishing = async move {
            let (result, delay) = {
                let mut broker = shared.lock();
                (broker.publish(message), broker.faults.delay)
            };
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            result
        };
        publishing.boxed()
    }

    fn find(
        &self,
        subject: &'static str,
        ids: HashSet<String>,
        after: u64,
        _: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>> {
        // No sequence of this output is given out twice.
        let broker = self.0.lock();
        if broker.faults.is_away {
            let away = PublishError::Unconfirmed("the broker is away".to_owned());
            return ready(Err(away)).boxed();
        }
        let is_sought = |published: &&Published| {
            let Published { sequence, message } = published;
            *sequence > after && message.subject == subject && ids.contains(read_id(&message.id).0)
        };
        let found = broker.output.iter().filter(is_sought);
        let found = found.map(|it| (it.message.id.clone(), it.sequence));
        ready(Ok(found.collect())).boxed()
    }

    fn send(&self, subject: String, payload: Bytes) {
        self.0.lock().sent.push((subject, payload));
    }
}

struct MemoryClaim {
    shared: Arc<Shared>,
    store: StoreId,
}

impl Claim for MemoryClaim {
    fn is_held(&self) -> bool {
        self.shared.lock().owner == Some(self.store)
    }

    fn held(&self) -> BoxFuture<'static, ()> {
        let (shared, store) = (self.shared.clone(), self.store);
        let waiting = async move {
            let take =
                |broker: &mut Broker| (*broker.owner.get_or_insert(store) == store).then_some(());
            shared.wait_for(take).await;
        };
        waiting.boxed()
    }
}

struct MemoryInput {
    shared: Arc<Shared>,
    begin: Position,
    /// Everything up to here was yielded.
    read: Position,
    stats: InputStats,
}

impl MemoryInput {
    fn open(shared: Arc<Shared>, positions: &[Option<Position>], start: Start) -> Self {
        let mut stats = InputStats::default();
        let begin = {
            let broker = shared.lock();
            let at = |generation, sequence, from| broker.position(generation, sequence, from);
            match resume(positions, &broker.view(position_to_verify(positions))) {
                Resume::Fresh => match start {
                    Start::First => at(0, broker.first_sequence - 1, Timestamp::EPOCH),
                    Start::New => at(0, broker.last_sequence(), wall_clock()),
                    Start::At(from) => at(0, broker.sequence_before(from), from),
                },
                Resume::Continue { after, missing } => {
                    stats.missing = missing;
                    after
                }
                Resume::Rewritten {
                    generation, from, ..
                } => {
                    stats.rewrites = 1;
                    at(generation, broker.sequence_before(from), from)
                }
            }
        };
        Self {
            shared,
            begin,
            read: begin,
            stats,
        }
    }
}

impl Input for MemoryInput {
    fn begin(&self) -> Position {
        self.begin
    }

    fn next(&mut self, max_messages: usize) -> BoxFuture<'_, RawBatch> {
        let Self {
            shared,
            read,
            stats,
            ..
        } = self;
        let reading = async move {
            let look = |broker: &mut Broker| take_batch(broker, read, max_messages, stats);
            shared.wait_for(look).await
        };
        reading.boxed()
    }

    fn take_stats(&mut self) -> InputStats {
        let last_sequence = self.shared.lock().last_sequence();
        let lag = last_sequence.saturating_sub(self.read.cursor.sequence);
        InputStats {
            lag,
            ..std::mem::take(&mut self.stats)
        }
    }
}

/// The messages after `read`, which moves on; nothing when there is none.
fn take_batch(
    broker: &Broker,
    read: &mut Position,
    max_messages: usize,
    stats: &mut InputStats,
) -> Option<RawBatch> {
    match resume(&[Some(*read)], &broker.view(Some(*read))) {
        Resume::Fresh => return None,
        Resume::Continue { missing: 0, .. } => {}
        Resume::Continue { missing, .. } => {
            stats.missing += missing;
            read.cursor.sequence = broker.first_sequence - 1;
            read.fingerprint = None;
        }
        Resume::Rewritten {
            generation, from, ..
        } => {
            stats.rewrites += 1;
            *read = broker.position(generation, broker.sequence_before(from), from);
            return Some(batch(*read, Vec::new()));
        }
    }
    let place = broker.place_after(read.cursor.sequence);
    let messages: Vec<_> = broker
        .input
        .iter()
        .zip(broker.first_sequence..)
        .skip(place)
        .take(max_messages)
        .map(|(stored, sequence)| RawMessage {
            sequence,
            timestamp: stored.timestamp,
            subject: stored.subject.clone(),
            payload: stored.payload.clone(),
            reply_to: None,
        })
        .collect();
    let last = messages.last()?;
    read.cursor.sequence = last.sequence;
    read.timestamp = last.timestamp;
    read.fingerprint = Some(placement_hash(&last.payload));
    Some(batch(*read, messages))
}

fn batch(watermark: Position, messages: Vec<RawMessage>) -> RawBatch {
    RawBatch {
        origin: watermark.origin,
        generation: watermark.cursor.generation,
        messages,
        watermark,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::wire::DIGEST;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(1_000_000 + seconds)
    }

    fn filled(num_messages: u64) -> MemoryBus {
        let bus = MemoryBus::new();
        for number in 1..=num_messages {
            bus.publish_at(at(number), "in", number.to_string());
        }
        bus
    }

    fn message(id: &str) -> Outbound {
        Outbound {
            subject: DIGEST,
            id: id.to_owned(),
            headers: Vec::new(),
            payload: Bytes::from_static(b"{}"),
        }
    }

    async fn open(bus: &MemoryBus, position: Option<Position>, start: Start) -> Box<dyn Input> {
        let opened = bus.open_input(vec![position, None], start).await;
        opened.expect("it always opens")
    }

    async fn read(input: &mut dyn Input) -> Vec<u64> {
        let batch = input.next(100).await;
        batch.messages.iter().map(|it| it.sequence).collect()
    }

    #[tokio::test]
    async fn reading_begins_where_it_is_told() {
        let bus = filled(5);
        for (start, expected) in [
            (Start::First, vec![1, 2, 3, 4, 5]),
            (Start::At(at(4)), vec![4, 5]),
        ] {
            let mut input = open(&bus, None, start).await;
            assert_eq!(read(input.as_mut()).await, expected);
        }
        let mut input = open(&bus, None, Start::New).await;
        assert!(input.next(1).now_or_never().is_none());
        bus.publish("in", "6");
        assert_eq!(read(input.as_mut()).await, [6]);
    }

    #[tokio::test]
    async fn what_is_purged_is_counted_once() {
        let bus = filled(5);
        let mut input = open(&bus, None, Start::First).await;
        assert_eq!(input.next(2).await.watermark.cursor.sequence, 2);
        bus.purge(4);
        assert_eq!(read(input.as_mut()).await, [5]);
        bus.purge(5);
        bus.publish("in", "6");
        assert_eq!(read(input.as_mut()).await, [6]);
        assert_eq!(input.take_stats().missing, 2);
    }

    #[tokio::test]
    async fn a_rewritten_history_begins_a_new_generation() {
        for rewrite in [
            (|bus: &MemoryBus| bus.truncate(3)) as fn(&MemoryBus),
            |bus| {
                bus.truncate(4);
                bus.publish_at(at(5), "in", "another");
            },
            MemoryBus::recreate,
        ] {
            let bus = filled(5);
            let mut input = open(&bus, None, Start::First).await;
            let position = input.next(100).await.watermark;
            rewrite(&bus);
            // Seen by the reader, and by one that comes later.
            let batch = input.next(100).await;
            assert_eq!((batch.generation, batch.messages.len()), (1, 0));
            assert_eq!(input.take_stats().rewrites, 1);
            let mut later = open(&bus, Some(position), Start::First).await;
            assert_eq!(later.begin(), batch.watermark);
            bus.publish_at(at(6), "in", "6");
            assert_eq!(read(input.as_mut()).await, read(later.as_mut()).await);
        }
    }

    #[tokio::test]
    async fn faults_are_those_of_a_broker() {
        let bus = MemoryBus::new();
        let output = bus.output();
        bus.set_faults(Faults {
            refuses: true,
            ..Faults::default()
        });
        let refused = output.publish(message("1")).await;
        assert!(matches!(refused, Err(PublishError::Refused(_))));
        bus.set_faults(Faults {
            is_away: true,
            ..Faults::default()
        });
        let away = output.publish(message("1")).await;
        assert!(matches!(away, Err(PublishError::Unconfirmed(_))));
        assert!(bus.output_messages().is_empty());
        bus.set_faults(Faults {
            loses_confirmations: true,
            ..Faults::default()
        });
        let lost = output.publish(message("1")).await;
        assert!(matches!(lost, Err(PublishError::Unconfirmed(_))));
        bus.set_faults(Faults::default());
        let again = output.publish(message("1")).await.expect("confirmed");
        assert!(again.is_duplicate);
        bus.forget_ids();
        let anew = output.publish(message("1")).await.expect("confirmed");
        assert_eq!((anew.is_duplicate, anew.sequence), (false, Some(2)));
    }
}
