//! The bus over streams on a real server: what it reads, publishes and owns, and what no fault may do to it.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, DiscardPolicy};
use futures::future::{BoxFuture, join_all};
use tocsin::bus::connection::{Connector, Settings};
use tocsin::bus::jetstream::{
    ClaimStream, FollowFrom, Followed, Follower, InputStream, JetStream, OutputStream, Streams,
    has_streams,
};
use tocsin::bus::{
    Bus, BusError, Claim, Confirmation, Input, Mode, Outbound, Output, PublishError, RawBatch,
    Start,
};
use tocsin::core::ids::{StoreId, placement_hash};
use tocsin::core::position::{Origin, Position, REWRITE_MARGIN};
use tocsin::core::time::Timestamp;

use crate::support::eventually;
use crate::support::judge::read_stream;
use crate::support::link::Link;
use crate::support::nats::Nats;
use crate::support::traffic::publish_taken;

const HOUR: Duration = Duration::from_hours(1);
const CLAIM_TTL: Duration = Duration::from_secs(2);

fn streams() -> Streams {
    Streams {
        input: InputStream {
            name: "TOCSIN_IN".to_owned(),
            subjects: vec!["change".to_owned(), "change.*".to_owned()],
            max_age: HOUR,
            max_bytes: 1 << 30,
        },
        outputs: vec![
            output("TOCSIN_OUT", "digest"),
            output("TOCSIN_DEAD_LETTER", "dead"),
        ],
        claim: ClaimStream {
            name: "TOCSIN_CLAIM".to_owned(),
            subject: "claim".to_owned(),
            ttl: CLAIM_TTL,
        },
        replicas: 1,
    }
}

fn output(name: &str, subject: &str) -> OutputStream {
    OutputStream {
        name: name.to_owned(),
        subject: subject.to_owned(),
        max_age: HOUR,
        max_bytes: 1 << 30,
        duplicate_window: Duration::from_mins(2),
    }
}

pub(crate) async fn open(nats: &Nats) -> JetStream {
    let opened = JetStream::open(&nats.connector(), streams()).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) async fn input(
    bus: &JetStream,
    positions: &[Option<Position>],
    start: Start,
) -> Box<dyn Input> {
    let opened = bus.open_input(positions.to_vec(), start).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// A publisher that waits for every confirmation, over a connection of its own.
struct Publisher {
    context: jetstream::Context,
}

impl Publisher {
    async fn new(nats: &Nats) -> Self {
        let connection = nats.connect().await;
        let context = jetstream::new(connection.client().clone());
        Self { context }
    }

    /// Publishes the numbers of a range, many at once, in order.
    async fn publish(&self, numbers: std::ops::Range<u64>) {
        let mut acks = Vec::new();
        for number in numbers {
            let payload = number.to_string().into();
            let sent = self
                .context
                .publish(format!("change.{}", number % 3), payload);
            acks.push(sent.await.expect("sent").into_future());
            if acks.len() == 1000 {
                confirm(&mut acks).await;
            }
        }
        confirm(&mut acks).await;
    }

    async fn stream(&self, name: &str) -> jetstream::stream::Stream {
        self.context.get_stream(name).await.expect("the stream")
    }
}

async fn confirm<F: Future<Output = Result<T, E>>, T, E: std::fmt::Debug>(acks: &mut Vec<F>) {
    for ack in join_all(acks.drain(..)).await {
        ack.expect("a confirmation");
    }
}

/// Reads until so many messages came; every batch must be what the contract says.
async fn read(input: &mut dyn Input, count: usize) -> (Vec<u64>, RawBatch) {
    let mut numbers = Vec::new();
    let mut last: Option<RawBatch> = None;
    while numbers.len() < count {
        let next = tokio::time::timeout(Duration::from_mins(1), input.next(700)).await;
        let batch = next.unwrap_or_else(|_| panic!("{} of {count} came", numbers.len()));
        check(&batch, last.as_ref());
        numbers.extend(batch.messages.iter().map(number));
        last = Some(batch);
    }
    (numbers, last.expect("a batch"))
}

/// Reads so many messages and no more.
async fn read_only(input: &mut dyn Input, count: usize) -> Position {
    let mut num_left = count;
    loop {
        let batch = input.next(num_left).await;
        num_left -= batch.messages.len();
        if num_left == 0 {
            return batch.watermark;
        }
    }
}

fn number(message: &tocsin::bus::RawMessage) -> u64 {
    let text = std::str::from_utf8(&message.payload).expect("a number");
    let number = text.parse().expect("a number");
    assert_eq!(*message.subject, *format!("change.{}", number % 3));
    number
}

fn check(batch: &RawBatch, before: Option<&RawBatch>) {
    assert!(batch.messages.len() <= 700);
    assert!(batch.messages.is_sorted_by_key(|message| message.sequence));
    assert_eq!(batch.generation, batch.watermark.cursor.generation);
    assert_eq!(batch.origin, batch.watermark.origin);
    if let Some(last) = batch.messages.last() {
        assert_eq!(batch.watermark.cursor.sequence, last.sequence);
        assert_eq!(batch.watermark.timestamp, last.timestamp);
        assert_eq!(
            batch.watermark.fingerprint,
            Some(placement_hash(&last.payload))
        );
    }
    if let (Some(before), Some(first)) = (before, batch.messages.first())
        && before.generation == batch.generation
    {
        assert!(before.watermark.cursor.sequence < first.sequence);
    }
}

fn range(numbers: std::ops::Range<u64>) -> Vec<u64> {
    numbers.collect()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Stops the server, lets something happen to its files, and starts it again.
async fn while_stopped(nats: &mut Nats, act: impl FnOnce(&Path)) {
    nats.stop(Duration::from_secs(20)).await;
    act(&nats.folder().join("jetstream"));
    nats.restart().await.expect("a start");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_comes_once_in_order_and_reading_goes_on_where_it_stopped() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    assert_eq!(bus.mode(), Mode::JetStream);
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..5000).await;
    let mut first = input(&bus, &[None, None], Start::First).await;
    assert_eq!(first.begin().cursor.sequence, 0);
    assert_eq!(first.begin().timestamp, Timestamp::EPOCH);
    let (numbers, batch) = read(&mut *first, 5000).await;
    assert_eq!(numbers, range(0..5000));
    drop(first);
    publisher.publish(5000..6000).await;
    let mut second = input(&bus, &[Some(batch.watermark), None], Start::First).await;
    assert_eq!(second.begin(), batch.watermark);
    assert_eq!(read(&mut *second, 1000).await.0, range(5000..6000));
    publisher.publish(6000..6010).await;
    assert_eq!(read(&mut *second, 10).await.0, range(6000..6010));
    let stats = second.take_stats();
    assert_eq!((stats.missing, stats.rewrites, stats.restarts), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_a_position_begins_where_it_is_told() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let mut empty = input(&bus, &[None], Start::New).await;
    assert_eq!(empty.begin().cursor.sequence, 0);
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..100).await;
    let (numbers, half) = read(&mut *empty, 100).await;
    assert_eq!(numbers, range(0..100));
    let mut new = input(&bus, &[None], Start::New).await;
    assert_eq!(new.begin(), half.watermark);
    // Broker timestamps must differ for the next part.
    let later = half.watermark.timestamp.plus(Duration::from_nanos(1));
    publisher.publish(100..200).await;
    assert_eq!(read(&mut *new, 100).await.0, range(100..200));
    let mut at = input(&bus, &[None], Start::At(later)).await;
    assert_eq!(at.begin().timestamp, later);
    assert_eq!(read(&mut *at, 100).await.0, range(100..200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_wait_loses_nothing() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let mut input = input(&bus, &[None], Start::First).await;
    let publisher = Publisher::new(&nats).await;
    let publishing = tokio::spawn(async move { publisher.publish(0..20_000).await });
    let mut numbers = Vec::new();
    let mut num_dropped = 0_u32;
    while numbers.len() < 20_000 {
        let wait = Duration::from_micros(u64::from(num_dropped % 7) * 150);
        match tokio::time::timeout(wait, input.next(97)).await {
            Ok(batch) => numbers.extend(batch.messages.iter().map(number)),
            Err(_) => num_dropped += 1,
        }
    }
    publishing.await.expect("published");
    assert_eq!(numbers, range(0..20_000));
    assert!(num_dropped > 0);
    assert_eq!(input.take_stats().restarts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_costs_no_message_and_repeats_none() {
    const PART: usize = 10_000;
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    Publisher::new(&nats).await.publish(0..50_000).await;
    let mut input = input(&bus, &[None], Start::First).await;
    let mut numbers = Vec::new();
    let mut last: Option<RawBatch> = None;
    for part in 1..=5 {
        while numbers.len() < PART * part {
            let batch = input.next(700).await;
            check(&batch, last.as_ref());
            numbers.extend(batch.messages.iter().map(number));
            last = Some(batch);
        }
        if part < 5 {
            nats.restart().await.expect("a start");
        }
    }
    assert_eq!(numbers, range(0..50_000));
    let stats = input.take_stats();
    assert_eq!((stats.missing, stats.rewrites), (0, 0));
    assert!(stats.restarts >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_changed_between_two_restarts_is_read_on() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..100).await;
    let mut first = input(&bus, &[None], Start::First).await;
    let (_, read_up_to) = read(&mut *first, 100).await;
    stamp_anew(&mut nats, "TOCSIN_IN").await;
    publisher.publish(100..200).await;
    assert_eq!(read(&mut *first, 100).await.0, range(100..200));
    assert_eq!(first.take_stats().rewrites, 0);
    let mut second = input(&bus, &[Some(read_up_to.watermark)], Start::New).await;
    assert_eq!(read(&mut *second, 100).await.0, range(100..200));
    assert_eq!(second.take_stats().rewrites, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_costs_no_message() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..1000).await;
    let mut input = input(&bus, &[None], Start::First).await;
    read(&mut *input, 1000).await;
    nats.pause();
    let silent = tokio::time::timeout(Duration::from_secs(4), input.next(700)).await;
    assert!(silent.is_err(), "nothing can come from a frozen server");
    nats.resume();
    publisher.publish(1000..2000).await;
    assert_eq!(read(&mut *input, 1000).await.0, range(1000..2000));
    assert!(input.take_stats().restarts >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_begins_a_generation() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..100).await;
    let mut first = input(&bus, &[None], Start::First).await;
    let (_, read_up_to) = read(&mut *first, 100).await;
    publisher
        .context
        .delete_stream("TOCSIN_IN")
        .await
        .expect("deleted");
    // The running reader makes it again, and says so by an empty batch.
    let batch = first.next(700).await;
    assert!(batch.messages.is_empty());
    assert_eq!((batch.generation, batch.watermark.cursor.sequence), (1, 0));
    assert_ne!(batch.origin, read_up_to.origin);
    let from = read_up_to.watermark.timestamp.minus(REWRITE_MARGIN);
    assert_eq!(batch.watermark.timestamp, from);
    publisher.publish(0..50).await;
    let (numbers, next) = read(&mut *first, 50).await;
    assert_eq!(numbers, range(0..50));
    assert_eq!(next.generation, 1);
    assert_eq!(first.take_stats().rewrites, 1);
    // A reader that was away sees the same.
    let mut second = input(&bus, &[Some(read_up_to.watermark)], Start::New).await;
    assert_eq!(
        (
            second.begin().cursor.generation,
            second.begin().cursor.sequence
        ),
        (1, 0)
    );
    assert_eq!(read(&mut *second, 50).await.0, range(0..50));
    assert_eq!(second.take_stats().rewrites, 1);
}

/// Publishes 100, keeps a copy of the server's files, publishes up to 200, returns what a reader of all saw.
async fn with_a_copy(nats: &mut Nats, bus: &JetStream, kept: &Path) -> (Box<dyn Input>, RawBatch) {
    let publisher = Publisher::new(nats).await;
    publisher.publish(0..100).await;
    while_stopped(nats, |store| copy(store, kept)).await;
    publisher.publish(100..200).await;
    let mut reader = input(bus, &[None], Start::First).await;
    let (numbers, batch) = read(&mut *reader, 200).await;
    assert_eq!(numbers, range(0..200));
    (reader, batch)
}

fn put_back(kept: &Path) -> impl FnOnce(&Path) {
    move |store| {
        std::fs::remove_dir_all(store).expect("removed");
        copy(kept, store);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_rolled_back_before_our_position_is_read_again() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let kept = tempfile::tempdir().expect("a folder");
    let (mut running, read_up_to) = with_a_copy(&mut nats, &bus, kept.path()).await;
    while_stopped(&mut nats, put_back(kept.path())).await;
    let batch = running.next(700).await;
    assert_eq!((batch.generation, batch.messages.len()), (1, 0));
    // The same stream: only its end lies before us.
    assert_eq!(batch.origin, read_up_to.origin);
    let publisher = Publisher::new(&nats).await;
    publisher.publish(300..350).await;
    let mut expected = range(0..100);
    expected.extend(300..350);
    assert_eq!(read(&mut *running, 150).await.0, expected);
    let mut opened = input(&bus, &[Some(read_up_to.watermark)], Start::New).await;
    assert_eq!(opened.begin().cursor.generation, 1);
    assert_eq!(read(&mut *opened, 150).await.0, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_message_at_our_position_is_noticed_though_the_stream_is_long_enough() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let kept = tempfile::tempdir().expect("a folder");
    let (running, read_up_to) = with_a_copy(&mut nats, &bus, kept.path()).await;
    drop(running);
    while_stopped(&mut nats, put_back(kept.path())).await;
    Publisher::new(&nats).await.publish(500..700).await;
    let mut opened = input(&bus, &[Some(read_up_to.watermark)], Start::New).await;
    assert_eq!(opened.begin().cursor.generation, 1);
    let mut expected = range(0..100);
    expected.extend(500..700);
    assert_eq!(read(&mut *opened, 300).await.0, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_between_two_partitions_is_noticed_after_the_start_too() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let kept = tempfile::tempdir().expect("a folder");
    let (_, highest) = with_a_copy(&mut nats, &bus, kept.path()).await;
    let mut from_first = input(&bus, &[None], Start::First).await;
    let lowest = from_first.next(50).await.watermark;
    let positions = [Some(lowest), Some(highest.watermark)];
    let mut reader = input(&bus, &positions, Start::First).await;
    assert_eq!(reader.begin(), lowest);
    while_stopped(&mut nats, put_back(kept.path())).await;
    let batch = loop {
        let batch = reader.next(1).await;
        assert!(batch.watermark.cursor.sequence <= 200);
        if batch.generation == 1 {
            break batch;
        }
    };
    assert!(batch.messages.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_purged_or_deleted_unread_is_counted_to_the_message() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    publisher.publish(0..100).await;
    let mut reader = input(&bus, &[None], Start::First).await;
    let first = read_only(&mut *reader, 10).await;
    drop(reader);
    let stream = publisher.stream("TOCSIN_IN").await;
    stream.purge().sequence(31).await.expect("purged");
    stream.delete_message(40).await.expect("deleted");
    let mut reader = input(&bus, &[Some(first)], Start::First).await;
    assert_eq!(reader.take_stats().missing, 20);
    let (numbers, last) = read(&mut *reader, 69).await;
    assert_eq!(numbers.first(), Some(&30));
    assert!(!numbers.contains(&39));
    assert_eq!(reader.take_stats().missing, 1);
    // Emptied up to where we are: nothing is missing.
    stream.purge().await.expect("purged");
    let mut reader = input(&bus, &[Some(last.watermark)], Start::First).await;
    publisher.publish(100..110).await;
    assert_eq!(read(&mut *reader, 10).await.0, range(100..110));
    assert_eq!(reader.take_stats().missing, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_while_the_connection_is_away_is_counted_once() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    Publisher::new(&nats).await.publish(0..10_000).await;
    let mut reader = input(&bus, &[None], Start::First).await;
    let before = reader.next(100).await.watermark.cursor.sequence;
    // What was asked for arrives in any case; the rest is purged before it is asked for.
    let publisher = Publisher::new(&nats).await;
    let stream = publisher.stream("TOCSIN_IN").await;
    stream.purge().sequence(9001).await.expect("purged");
    nats.restart().await.expect("a start");
    let mut num_read = before;
    while num_read < 10_000 {
        let batch = reader.next(700).await;
        num_read = batch.watermark.cursor.sequence;
        if batch
            .messages
            .iter()
            .any(|message| message.sequence == 9001)
        {
            let stats = reader.take_stats();
            assert!(
                stats.missing > 0 && stats.missing <= 9000 - before,
                "{stats:?}"
            );
        }
    }
    assert_eq!(reader.take_stats().missing, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_of_no_stream_begins_a_generation() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    Publisher::new(&nats).await.publish(0..10).await;
    let session = Position {
        origin: Origin::Session,
        ..input(&bus, &[None], Start::New).await.begin()
    };
    let mut reader = input(&bus, &[Some(session)], Start::New).await;
    assert_eq!(reader.begin().cursor.generation, 1);
    assert_eq!(read(&mut *reader, 10).await.0, range(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_measured() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let mut reader = input(&bus, &[None], Start::First).await;
    Publisher::new(&nats).await.publish(0..100).await;
    read_only(&mut *reader, 10).await;
    let reader = tokio::sync::Mutex::new(reader);
    eventually("90 messages wait", async || {
        reader.lock().await.take_stats().lag == 90
    })
    .await;
}

pub(crate) fn message(subject: &'static str, id: &str) -> Outbound {
    Outbound {
        subject,
        id: id.to_owned(),
        headers: vec![("Tocsin-Part", "1/1".to_owned())],
        payload: "{}".into(),
    }
}

fn confirmed(sequence: u64, is_duplicate: bool) -> Confirmation {
    Confirmation {
        sequence: Some(sequence),
        is_duplicate,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_stored_once_under_its_id_and_found_by_it() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    assert_eq!(bus.duplicate_window(), Some(Duration::from_mins(2)));
    let output = bus.output();
    for (i, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let sequence = u64::try_from(i).expect("small") + 1;
        let answer = output.publish(message("digest", id)).await;
        assert_eq!(answer.expect("confirmed"), confirmed(sequence, false));
    }
    let again = output.publish(message("digest", "b")).await;
    assert_eq!(again.expect("confirmed"), confirmed(2, true));
    // Only one stream's sequences are remembered by those who search later.
    let letter = output
        .publish(message("dead", "a"))
        .await
        .expect("confirmed");
    assert_eq!(letter.sequence, None);
    let ids = |ids: &[&str]| ids.iter().map(|&id| id.to_owned()).collect::<HashSet<_>>();
    let wanted = ids(&["a", "c", "x"]);
    let find = async |subject, after, since| {
        let found = output.find(subject, wanted.clone(), after, since).await;
        found.expect("found")
    };
    let now = tocsin::check::messages::Instant::now().0;
    let now = Timestamp::from_nanos(now);
    let later = now.plus(HOUR);
    let both = [("a".to_owned(), 1), ("c".to_owned(), 3)];
    assert_eq!(find("digest", 0, later).await, both);
    assert_eq!(find("digest", 1, later).await, both[1..]);
    assert_eq!(find("digest", 4, later).await, []);
    // A stream that was made anew, or rolled back, gives sequences out again.
    assert_eq!(find("digest", 4, now).await, both);
    assert_eq!(find("digest", 99, now).await, both);
    assert_eq!(find("dead", 99, later).await, both[..1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_made_anew_holds_is_found_though_it_has_outgrown_the_old_sequence() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let publish = async |id: &str| {
        let answer = output.publish(message("digest", id)).await;
        answer.is_ok()
    };
    for i in 0..5 {
        assert!(publish(&format!("old {i}")).await);
    }
    // Decided now, a message is looked for behind sequence 5.
    let publisher = Publisher::new(&nats).await;
    let decided = publisher.stream("TOCSIN_OUT").await;
    let decided = decided.cached_info().state.last_timestamp;
    let decided = u64::try_from(decided.unix_timestamp_nanos()).expect("after 1970");
    let deleted = publisher.context.delete_stream("TOCSIN_OUT").await;
    deleted.expect("deleted");
    eventually("the stream made anew", async || publish("owed").await).await;
    for i in 0..9 {
        assert!(publish(&format!("new {i}")).await);
    }
    let ids = HashSet::from(["owed".to_owned()]);
    let since = Timestamp::from_nanos(decided);
    let found = output.find("digest", ids, 5, since).await;
    assert_eq!(found.expect("found"), [("owed".to_owned(), 1)]);
}

/// Has the server call a stream created at another time than before.
async fn stamp_anew(nats: &mut Nats, stream: &str) {
    let publisher = Publisher::new(nats).await;
    nats.restart().await.expect("a start");
    let stream = publisher.stream(stream).await;
    let mut config = stream.cached_info().config.clone();
    config.max_messages = 1_000_000;
    let updated = publisher.context.update_stream(config).await;
    updated.expect("updated");
    // From here on nats-server 2.14 calls the stream created at its last start but one.
    nats.restart().await.expect("a start");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_a_stream_that_was_stamped_anew_sees_nothing_twice() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let publish = async |id: &str| {
        let answer = output.publish(message("digest", id)).await;
        answer.is_ok()
    };
    for id in ["0", "1", "2"] {
        assert!(publish(id).await);
    }
    let connection = nats.connect().await;
    let follow = async |from| {
        let opened = Follower::open(&connection, "TOCSIN_OUT", from).await;
        opened.expect("an answer").expect("a stream")
    };
    let mut all = follow(FollowFrom::Since(Timestamp::EPOCH)).await;
    let mut new = follow(FollowFrom::Now).await;
    let id = |it: Followed| {
        let headers = it.headers.expect("headers");
        headers.get("Nats-Msg-Id").expect("an id").to_string()
    };
    for expected in ["0", "1", "2"] {
        assert_eq!(id(all.next().await), expected);
    }
    stamp_anew(&mut nats, "TOCSIN_OUT").await;
    eventually("published", async || publish("3").await).await;
    for follower in [&mut all, &mut new] {
        let next = tokio::time::timeout(Duration::from_mins(1), follower.next()).await;
        assert_eq!(id(next.expect("in time")), "3");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_messages_are_confirmed_at_once() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let publishing = (0..5000).map(|i| output.publish(message("digest", &i.to_string())));
    let answers = join_all(publishing).await;
    let sequences: HashSet<_> = answers
        .into_iter()
        .map(|answer| answer.expect("confirmed").sequence)
        .collect();
    assert_eq!(sequences.len(), 5000);
    let ids = ["17", "4999"].map(str::to_owned).into();
    assert_eq!(
        output
            .find("digest", ids, 0, Timestamp::EPOCH)
            .await
            .expect("found")
            .len(),
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_stream_has_stored_is_not_confirmed() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let publisher = Publisher::new(&nats).await;
    let config = publisher
        .stream("TOCSIN_OUT")
        .await
        .cached_info()
        .config
        .clone();
    publisher
        .context
        .delete_stream("TOCSIN_OUT")
        .await
        .expect("deleted");
    let other = Config {
        name: "OTHER".to_owned(),
        ..config.clone()
    };
    publisher.context.create_stream(other).await.expect("made");
    let answer = output.publish(message("digest", "a")).await;
    let Err(PublishError::Unconfirmed(why)) = answer else {
        panic!("{answer:?}");
    };
    assert!(
        why.contains("stored by OTHER instead of TOCSIN_OUT"),
        "{why}"
    );
    publisher
        .context
        .delete_stream("OTHER")
        .await
        .expect("deleted");
    publisher.context.create_stream(config).await.expect("made");
    let answer = output.publish(message("digest", "a")).await;
    assert_eq!(answer.expect("confirmed"), confirmed(1, false));
}

fn is_refused(answer: &Result<Confirmation, PublishError>) -> bool {
    matches!(answer, Err(PublishError::Refused(_)))
}

fn is_unconfirmed(answer: &Result<Confirmation, PublishError>) -> bool {
    matches!(answer, Err(PublishError::Unconfirmed(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_would_never_take_is_refused_and_blocks_nothing() {
    let mut nats = Nats::start_with(true, "max_payload: 1000").await;
    let bus = open(&nats).await;
    let output = bus.output();
    assert_eq!(output.max_payload(), 1000);
    let mut large = message("digest", "large");
    large.payload = vec![b'x'; 1000].into();
    // The payload alone would fit; with its headers the server would close the connection.
    assert!(is_refused(&output.publish(large.clone()).await));
    assert!(output.publish(message("digest", "small")).await.is_ok());
    // What the broker takes may change at a restart.
    nats.set_config("max_payload: 2000".to_owned());
    nats.restart().await.expect("a start");
    eventually("the new limit", async || output.max_payload() == 2000).await;
    assert!(output.publish(large.clone()).await.is_ok());
    let publisher = Publisher::new(&nats).await;
    let mut config = publisher
        .stream("TOCSIN_OUT")
        .await
        .cached_info()
        .config
        .clone();
    config.max_message_size = 500;
    publisher
        .context
        .update_stream(config)
        .await
        .expect("updated");
    large.id = "larger".to_owned();
    assert!(is_unconfirmed(&output.publish(large.clone()).await));
    // In parts it is taken.
    assert_eq!(output.max_payload(), 500);
    assert!(is_refused(&output.publish(large).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_we_may_not_use_is_refused_at_once() {
    let config = r#"
        authorization: { users: [
            { user: "all", password: "x" },
            { user: "tocsin", password: "x", permissions: { publish: { deny: ["digest"] } } }
        ] }
    "#;
    let nats = Nats::start_with(true, config).await;
    let mut login = nats.login();
    login.user = Some("tocsin".to_owned());
    login.password = Some("x".to_owned());
    let connector = Connector::new(login, tokio::runtime::Handle::current());
    let bus = JetStream::open(&connector, streams())
        .await
        .expect("opened");
    let output = bus.output();
    let before = tokio::time::Instant::now();
    assert!(is_refused(&output.publish(message("digest", "a")).await));
    assert!(
        before.elapsed() < Duration::from_secs(4),
        "not by its deadline"
    );
    assert!(output.publish(message("dead", "a")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_cannot_take_now_is_unconfirmed_and_taken_later_under_its_id() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let publisher = Publisher::new(&nats).await;
    let mut config = publisher
        .stream("TOCSIN_OUT")
        .await
        .cached_info()
        .config
        .clone();
    let full = Config {
        discard: DiscardPolicy::New,
        max_messages: 1,
        ..config.clone()
    };
    publisher
        .context
        .update_stream(full)
        .await
        .expect("updated");
    assert!(output.publish(message("digest", "a")).await.is_ok());
    assert!(
        is_unconfirmed(&output.publish(message("digest", "b")).await),
        "full"
    );
    config.discard = DiscardPolicy::Old;
    publisher
        .context
        .update_stream(config.clone())
        .await
        .expect("updated");
    assert!(output.publish(message("digest", "b")).await.is_ok());
    publisher
        .context
        .delete_stream("TOCSIN_OUT")
        .await
        .expect("deleted");
    assert!(
        is_unconfirmed(&output.publish(message("digest", "c")).await),
        "no stream"
    );
    publisher
        .context
        .create_stream(config)
        .await
        .expect("created");
    // In flight when the server freezes and dies: known at once, not after a deadline.
    nats.pause();
    let waiting = tokio::spawn(output.publish(message("digest", "d")));
    tokio::task::yield_now().await;
    nats.kill().await;
    assert!(is_unconfirmed(&waiting.await.expect("an answer")));
    nats.restart().await.expect("a start");
    let again = output
        .publish(message("digest", "d"))
        .await
        .expect("confirmed");
    assert!(!again.is_duplicate);
}

async fn claim(bus: &JetStream, store: u8) -> Arc<dyn Claim> {
    let claimed = tokio::time::timeout(Duration::from_secs(30), bus.claim(StoreId([store; 16])));
    claimed.await.expect("claimed in time").expect("claimed")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_store_waits_until_the_first_is_gone() {
    let nats = Nats::start().await;
    let (one, two) = (open(&nats).await, open(&nats).await);
    let first = claim(&one, 1).await;
    assert!(first.is_held());
    let second = two.claim(StoreId([2; 16]));
    let waited = tokio::time::timeout(CLAIM_TTL * 3, second).await;
    assert!(waited.is_err(), "two stores own the input");
    assert!(first.is_held());
    // Given back: the next need not wait for its end.
    drop(first);
    let before = tokio::time::Instant::now();
    assert!(claim(&two, 2).await.is_held());
    assert!(before.elapsed() < CLAIM_TTL);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_store_takes_its_claim_back_at_once_and_the_old_process_loses_it() {
    let nats = Nats::start().await;
    let (one, two) = (open(&nats).await, open(&nats).await);
    let old = claim(&one, 1).await;
    let before = tokio::time::Instant::now();
    let new = claim(&two, 1).await;
    assert!(before.elapsed() < CLAIM_TTL);
    eventually("the old process has lost it", async || !old.is_held()).await;
    // They do not take it from each other for ever.
    let lost = tokio::time::timeout(CLAIM_TTL * 2, old.held()).await;
    assert!(lost.is_err() && new.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_claim_is_written_over_and_silences_nobody() {
    let nats = Nats::start().await;
    let stranger = nats.connect().await.client().clone();
    // What the broker answers to somebody who names the claim's subject for it.
    let junk = "{\"stream\":\"TOCSIN_IN\",\"seq\":8}";
    let (one, two) = (open(&nats).await, open(&nats).await);
    let first = claim(&one, 1).await;
    publish_taken(&stranger, "claim", junk).await;
    let claims = async || {
        let stored = read_stream(&stranger, "TOCSIN_CLAIM").await;
        let last = stored.last().map(|message| message.payload.clone());
        String::from_utf8(last.unwrap_or_default()).unwrap()
    };
    eventually("our claim stands there again", async || {
        claims().await.contains("\"store\"")
    })
    .await;
    assert!(first.is_held(), "it was lost to nobody");
    // Nor does it keep the next one waiting for ever.
    first.give_back().await;
    publish_taken(&stranger, "claim", junk).await;
    assert!(claim(&two, 2).await.is_held());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_claim_that_was_given_back_sleeps() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let claim = claim(&bus, 1).await;
    claim.give_back().await;
    eventually("the claim has ended", async || !claim.is_held()).await;
    let waited = tokio::time::timeout(CLAIM_TTL, claim.held()).await;
    assert!(waited.is_err(), "it would be asked for again, for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_ends_before_another_store_can_take_it_and_is_taken_again_after_an_outage() {
    let mut nats = Nats::start().await;
    let one = open(&nats).await;
    let first = claim(&one, 1).await;
    nats.pause();
    eventually("it has ended", async || !first.is_held()).await;
    nats.resume();
    tokio::time::timeout(Duration::from_secs(20), first.held())
        .await
        .expect("held again");
    nats.restart().await.expect("a start");
    tokio::time::timeout(Duration::from_secs(20), first.held())
        .await
        .expect("held again");
    let held_on = tokio::time::timeout(CLAIM_TTL * 2, async {
        while first.is_held() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(held_on.await.is_err(), "it is renewed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_without_a_word_is_followed_after_its_time() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    let gone = r#"{"store":"ff","instance":"1","host":"elsewhere","pid":7}"#;
    let written = publisher
        .context
        .publish("claim", gone.into())
        .await
        .expect("sent");
    written.await.expect("confirmed");
    let before = tokio::time::Instant::now();
    assert!(claim(&bus, 1).await.is_held());
    assert!(before.elapsed() >= CLAIM_TTL);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_own_claim_in_a_stream_that_was_rolled_back_is_not_taken_before_the_others_time() {
    let mut nats = Nats::start().await;
    let bus = open(&nats).await;
    let ours = claim(&bus, 1).await;
    let kept = tempfile::tempdir().expect("a folder");
    while_stopped(&mut nats, |store| copy(store, kept.path())).await;
    eventually("held on", async || ours.is_held()).await;
    let client = nats.connect().await.client().clone();
    let other = r#"{"store":"ff","instance":"1","host":"elsewhere","pid":7}"#;
    publish_taken(&client, "claim", other).await;
    eventually("it is lost to another", async || !ours.is_held()).await;
    nats.stop(Duration::from_secs(20)).await;
    put_back(kept.path())(&nats.folder().join("jetstream"));
    let before = tokio::time::Instant::now();
    nats.restart().await.expect("a start");
    eventually("held again", async || ours.is_held()).await;
    assert!(before.elapsed() >= CLAIM_TTL);
}

async fn refused(nats: &Nats) -> String {
    match JetStream::open(&nats.connector(), streams()).await {
        Err(BusError::Configuration(why)) => why,
        Err(BusError::Unavailable(why)) => panic!("only unavailable: {why}"),
        Ok(_) => panic!("opened"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_relied_on_is_refused_and_never_changed() {
    let nats = Nats::start().await;
    let context = Publisher::new(&nats).await.context;
    let config = Config {
        name: "TOCSIN_IN".to_owned(),
        subjects: vec!["change".to_owned(), "change.*".to_owned()],
        max_age: Duration::from_mins(1),
        ..Config::default()
    };
    context.create_stream(&config).await.expect("created");
    let why = refused(&nats).await;
    assert!(
        why.contains("TOCSIN_IN has max_age 60s, but 3600s is needed"),
        "{why}"
    );
    assert!(
        why.contains("nats stream edit TOCSIN_IN --max-age=3600s"),
        "{why}"
    );
    context.delete_stream("TOCSIN_IN").await.expect("deleted");
    let other = Config {
        name: "OTHER".to_owned(),
        subjects: vec!["change.>".to_owned()],
        ..Config::default()
    };
    context.create_stream(other).await.expect("created");
    let why = refused(&nats).await;
    assert!(why.contains("another stream has such a subject"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_gets_at_most_half_of_what_there_is_room_for() {
    let config = r#"
        accounts: { A: {
            jetstream: { max_file: 512MB, max_mem: 16MB }
            users: [ { user: "a", password: "a" } ]
        } }
        no_auth_user: a
    "#;
    let nats = Nats::start_with(true, config).await;
    let mut streams = streams();
    streams.outputs.truncate(1);
    let bus = JetStream::open(&nats.connector(), streams)
        .await
        .expect("opened");
    let publisher = Publisher::new(&nats).await;
    let room = |stream: jetstream::stream::Stream| stream.cached_info().config.max_bytes;
    let half = |free: i64| (free << 20) / 2;
    assert_eq!(room(publisher.stream("TOCSIN_IN").await), half(511));
    let left = room(publisher.stream("TOCSIN_OUT").await);
    assert_eq!(left, half(511) / 2);
    assert!(bus.output().publish(message("digest", "a")).await.is_ok());
    // The account is not limited, and the server's store is.
    let nats = Nats::start_with(true, "jetstream: { max_file_store: 512MB }").await;
    let bus = open(&nats).await;
    let publisher = Publisher::new(&nats).await;
    assert_eq!(room(publisher.stream("TOCSIN_IN").await), 128 << 20);
    assert!(room(publisher.stream("TOCSIN_OUT").await) <= 256 << 20);
    assert!(bus.output().publish(message("digest", "a")).await.is_ok());
    assert!(bus.output().publish(message("dead", "a")).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_server_or_an_account_without_streams_has_none() {
    let with = Nats::start().await;
    assert!(has_streams(&with.connect().await).await);
    let without = Nats::start_with(false, "").await;
    assert!(!has_streams(&without.connect().await).await);
    let config = r#"
        accounts: {
            A: { jetstream: disabled, users: [ { user: "a", password: "a" } ] }
            B: { jetstream: enabled, users: [ { user: "b", password: "b" } ] }
        }
        no_auth_user: a
    "#;
    let not_for_us = Nats::start_with(true, config).await;
    let connection = not_for_us.connect().await;
    assert!(connection.has_jetstream());
    assert!(!has_streams(&connection).await);
    // A missing permission is waited for: the stream may be there.
    let config = r#"
        authorization: { users: [
            { user: "a", password: "a", permissions: { publish: { deny: ["$JS.API.INFO"] } } }
        ] }
        no_auth_user: a
    "#;
    let forbidden = Nats::start_with(true, config).await;
    let connection = forbidden.connect().await;
    let asked = tokio::time::timeout(Duration::from_secs(7), has_streams(&connection));
    assert!(asked.await.is_err());
}

/// More than every buffer on the way takes, each a large message.
fn too_many(output: &dyn Output) -> Vec<BoxFuture<'static, Result<Confirmation, PublishError>>> {
    let publish = |i: u32| output.publish(large(&i.to_string()));
    (0..40).map(publish).collect()
}

fn large(id: &str) -> Outbound {
    Outbound {
        payload: vec![b' '; 900_000].into(),
        ..message("digest", id)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_not_stored_once_there_is_a_connection_again() {
    let mut nats = Nats::start().await;
    let mut streams = streams();
    for output in &mut streams.outputs {
        output.duplicate_window = Duration::from_secs(1);
    }
    let opened = JetStream::open(&nats.connector(), streams).await;
    let bus = opened.unwrap_or_else(|error| panic!("{error}"));
    let output = bus.output();
    assert!(output.publish(large("39")).await.is_ok());
    nats.pause();
    let answers = join_all(too_many(output.as_ref())).await;
    assert!(answers.iter().all(is_unconfirmed));
    nats.kill().await;
    nats.restart().await.expect("a start");
    assert!(output.publish(message("digest", "last")).await.is_ok());
    // Here the claim may be another store's, and the broker has forgotten what it stored.
    let client = nats.connect().await.client().clone();
    let stored = read_stream(&client, "TOCSIN_OUT").await;
    let ids: Vec<_> = stored.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, ["39", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_ends_with_its_connection_when_the_broker_takes_hardly_anything() {
    // Its signs of life come, so that the client never asks for one.
    let nats = Nats::start_with(true, "ping_interval: 1s\nping_max: 100").await;
    let link = Link::to(&nats.url()).await;
    let login = Settings {
        urls: vec![link.url()],
        ..nats.login()
    };
    let connector = Connector::new(login, tokio::runtime::Handle::current());
    let opened = JetStream::open(&connector, streams()).await;
    let bus = opened.unwrap_or_else(|error| panic!("{error}"));
    let output = bus.output();
    assert!(output.publish(message("digest", "first")).await.is_ok());
    let num_accepted = || link.counts().accepted.load(Ordering::Relaxed);
    let num_before = num_accepted();
    link.throttle(20_000);
    let answers = join_all(too_many(output.as_ref())).await;
    assert!(answers.iter().all(is_unconfirmed));
    eventually("another connection", async || num_accepted() > num_before).await;
    link.heal();
    assert!(output.publish(message("digest", "last")).await.is_ok());
    let client = nats.connect().await.client().clone();
    let stored = read_stream(&client, "TOCSIN_OUT").await;
    assert!(stored.iter().all(|it| it.id != "39"));
}
