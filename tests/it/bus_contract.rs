//! The contract of `bus/mod.rs`, on every bus there is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tocsin::bus::connection::Connection;
use tocsin::bus::core_nats::{CoreNats, Settings};
use tocsin::bus::jetstream::{ClaimStream, InputStream, JetStream, OutputStream, Streams};
use tocsin::bus::memory::MemoryBus;
use tocsin::bus::{Bus, Input, Mode, Outbound, PublishError, RawMessage, Start, wire};
use tocsin::core::ids::StoreId;
use tocsin::core::position::Position;
use tocsin::core::time::Timestamp;

use crate::support::eventually;
use crate::support::nats::Nats;

const ONE: StoreId = StoreId([1; 16]);
const TWO: StoreId = StoreId([2; 16]);

struct Broker {
    bus: Arc<dyn Bus>,
    publisher: Publisher,
    nats: Option<Nats>,
}

enum Publisher {
    Memory(MemoryBus),
    Nats(Connection),
}

impl Broker {
    async fn all() -> [Self; 3] {
        let memory = MemoryBus::new();
        let memory = Self {
            bus: Arc::new(memory.clone()),
            publisher: Publisher::Memory(memory),
            nats: None,
        };
        let core = Nats::start_with(false, "").await;
        let bus = core_nats(&core).await;
        let core = Self::new(Arc::new(bus), core).await;
        let nats = Nats::start().await;
        let bus = jetstream(&nats).await;
        [memory, core, Self::new(Arc::new(bus), nats).await]
    }

    async fn new(bus: Arc<dyn Bus>, nats: Nats) -> Self {
        Self {
            bus,
            publisher: Publisher::Nats(nats.connect().await),
            nats: Some(nats),
        }
    }

    /// The same broker, as another process sees it.
    async fn again(&self) -> Arc<dyn Bus> {
        match (&self.nats, self.bus.mode()) {
            (Some(nats), Mode::Core) => Arc::new(core_nats(nats).await),
            (Some(nats), Mode::JetStream | Mode::Memory) => Arc::new(jetstream(nats).await),
            (None, _) => self.bus.clone(),
        }
    }

    async fn open(&self, positions: &[Option<Position>]) -> Box<dyn Input> {
        let opened = self.bus.open_input(positions.to_vec(), Start::First).await;
        opened.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Publishes, in order, and waits until the broker has all of it.
    async fn publish(&self, messages: impl IntoIterator<Item = (&'static str, String)>) {
        match &self.publisher {
            Publisher::Memory(broker) => {
                for (subject, payload) in messages {
                    broker.publish(subject, payload);
                }
            }
            Publisher::Nats(connection) => {
                let client = connection.client();
                for (subject, payload) in messages {
                    let sent = client.publish(subject, payload.into()).await;
                    sent.expect("the client lives");
                }
                echo(connection).await;
            }
        }
    }
}

async fn core_nats(nats: &Nats) -> CoreNats {
    let settings = Settings::new(&wire::CHANGE_SUBJECTS, &wire::REQUEST_SUBJECTS, wire::OWNER);
    let connected = CoreNats::connect(nats.connector(), settings).await;
    connected.unwrap_or_else(|error| panic!("{error}"))
}

async fn jetstream(nats: &Nats) -> JetStream {
    let max_age = Duration::from_hours(1);
    let output = |name: &str, subject: &str| OutputStream {
        name: name.to_owned(),
        subject: subject.to_owned(),
        max_age,
        max_bytes: 1 << 30,
        duplicate_window: Duration::from_mins(2),
    };
    let streams = Streams {
        input: InputStream {
            name: "TOCSIN_IN".to_owned(),
            subjects: wire::INPUT_SUBJECTS.map(str::to_owned).to_vec(),
            max_age,
            max_bytes: 1 << 30,
        },
        outputs: vec![
            output("TOCSIN_OUT", wire::DIGEST),
            output("TOCSIN_DEAD_LETTER", wire::DEAD_LETTER),
        ],
        claim: ClaimStream {
            name: "TOCSIN_CLAIM".to_owned(),
            subject: wire::CLAIM.to_owned(),
            ttl: Duration::from_secs(2),
        },
        replicas: 1,
    };
    let opened = JetStream::open(&nats.connector(), streams).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

/// Waits until the server has processed everything this connection published.
pub(crate) async fn echo(connection: &Connection) {
    let client = connection.client();
    let inbox = client.new_inbox();
    let mut echoes = client
        .subscribe(inbox.clone())
        .await
        .expect("the client lives");
    let sent = client.publish(inbox, Bytes::new()).await;
    sent.expect("the client lives");
    echoes.next().await.expect("an echo");
}

fn message(id: &str, payload: impl Into<Bytes>) -> Outbound {
    Outbound {
        subject: wire::DIGEST,
        id: id.to_owned(),
        headers: vec![(wire::PART_HEADER, "1/2".to_owned())],
        payload: payload.into(),
    }
}

/// Reads until so many messages came, and checks every batch.
async fn read(input: &mut dyn Input, count: usize, max_messages: usize) -> Vec<RawMessage> {
    let mut messages: Vec<RawMessage> = Vec::new();
    while messages.len() < count {
        let batch = tokio::time::timeout(Duration::from_secs(30), input.next(max_messages));
        let batch = batch.await.expect("a batch within 30 s");
        assert!(batch.messages.len() <= max_messages);
        assert_eq!(batch.generation, batch.watermark.cursor.generation);
        for message in batch.messages {
            let last = messages.last().map(|last| last.sequence);
            assert!(Some(message.sequence) > last);
            assert!(message.sequence <= batch.watermark.cursor.sequence);
            messages.push(message);
        }
    }
    assert_eq!(messages.len(), count);
    messages
}

fn changes(numbers: std::ops::Range<u32>) -> impl Iterator<Item = (&'static str, String)> {
    numbers.map(|number| (wire::CHANGE, number.to_string()))
}

fn payloads(messages: &[RawMessage]) -> Vec<String> {
    let text = |it: &RawMessage| String::from_utf8_lossy(&it.payload).into_owned();
    messages.iter().map(text).collect()
}

fn expected(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_come_in_the_order_of_their_publisher() {
    for broker in Broker::all().await {
        let mut input = broker.open(&[None, None]).await;
        broker.publish(changes(0..2000)).await;
        let messages = read(input.as_mut(), 2000, 64).await;
        assert_eq!(payloads(&messages), expected(0..2000));
        assert!(messages.iter().all(|it| *it.subject == *wire::CHANGE));
        assert!(messages[0].sequence > input.begin().cursor.sequence);
        let stats = input.take_stats();
        assert_eq!((stats.missing, stats.dropped), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_comes_before_the_request_sent_after_it() {
    for broker in Broker::all().await {
        let mut input = broker.open(&[None]).await;
        let pairs = (0..500).flat_map(|number: u32| {
            let change = ["AlarmStatusChanged", "AlarmStatusChanged.7"][number as usize % 2];
            let request = ["SendAlarmDigest", "SendAlarmDigest.x"][number as usize / 2 % 2];
            [(change, number.to_string()), (request, number.to_string())]
        });
        broker.publish(pairs).await;
        let mut seen = vec![false; 500];
        for message in read(input.as_mut(), 1000, 100).await {
            let number: usize = payloads(std::slice::from_ref(&message))[0]
                .parse()
                .expect("a number");
            if message.subject.starts_with(wire::CHANGE) {
                seen[number] = true;
            } else {
                assert!(seen[number], "request {number} came before its change");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_wait_for_messages_loses_none() {
    for broker in Broker::all().await {
        let mut input = broker.open(&[None]).await;
        // Polled once and dropped, while there is nothing and while there is something.
        assert!(input.next(10).now_or_never().is_none());
        broker.publish(changes(0..100)).await;
        let mut messages = Vec::new();
        for _ in 0..50 {
            messages.extend(
                input
                    .next(1)
                    .now_or_never()
                    .into_iter()
                    .flat_map(|it| it.messages),
            );
        }
        let rest = 100 - messages.len();
        messages.extend(read(input.as_mut(), rest, 7).await);
        assert_eq!(payloads(&messages), expected(0..100));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_goes_on_after_a_stored_position() {
    for broker in Broker::all().await {
        let mut input = broker.open(&[None]).await;
        broker.publish(changes(0..10)).await;
        let batch = input.next(4).await;
        let position = batch.watermark;
        drop(input);
        let mut input = broker.open(&[Some(position), None]).await;
        assert!(input.begin().cursor >= position.cursor);
        broker.publish(changes(10..20)).await;
        // Without a stream, what was received and not committed is gone with its process.
        let from = match broker.bus.mode() {
            Mode::Core => 10,
            Mode::JetStream | Mode::Memory => u32::try_from(batch.messages.len()).expect("few"),
        };
        let messages = read(input.as_mut(), 20 - from as usize, 100).await;
        assert_eq!(payloads(&messages), expected(from..20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_confirmed_and_a_repeat_is_known_where_there_is_a_window() {
    for broker in Broker::all().await {
        let output = broker.bus.output();
        let first = output.publish(message("id-1", "one")).await;
        let first = first.expect("confirmed");
        assert!(!first.is_duplicate);
        let again = output.publish(message("id-1", "one")).await;
        let again = again.expect("confirmed");
        let has_window = broker.bus.duplicate_window().is_some();
        assert_eq!(again.is_duplicate, has_window);
        assert_eq!(first.sequence.is_some(), has_window);
        let ids = ["id-1", "id-2"].map(str::to_owned).into();
        let found = output
            .find(wire::DIGEST, ids, 0, Timestamp::EPOCH)
            .await
            .expect("read");
        let expected = first.sequence.map(|sequence| ("id-1".to_owned(), sequence));
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        let part = output.publish(message("id-2.0-3", "a part")).await;
        let part = part.expect("confirmed").sequence;
        let found = output
            .find(wire::DIGEST, ["id-2".to_owned()].into(), 0, Timestamp::MAX)
            .await;
        let expected = part.map(|sequence| ("id-2.0-3".to_owned(), sequence));
        assert_eq!(found.expect("read"), Vec::from_iter(expected));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_max_payload_with_headers_is_taken() {
    for broker in Broker::all().await {
        let output = broker.bus.output();
        let room = output.max_payload() - wire::message_bytes(&message("id-1", ""));
        let fits = output.publish(message("id-1", vec![b'x'; room])).await;
        assert!(fits.is_ok(), "{fits:?}");
        let refused = output.publish(message("id-2", vec![b'x'; room + 1])).await;
        assert!(matches!(refused, Err(PublishError::Refused(_))));
        assert!(output.publish(message("id-3", "x")).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_owns_the_input() {
    for broker in Broker::all().await {
        let claim = broker.bus.claim(TWO).await;
        let claim = claim.unwrap_or_else(|error| panic!("{error}"));
        claim.held().await;
        assert!(claim.is_held());
        let other = broker.again().await;
        let waiting = tokio::time::timeout(Duration::from_secs(2), other.claim(ONE)).await;
        assert!(waiting.is_err(), "{:?}: two owners", broker.bus.mode());
        assert!(claim.is_held());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_without_confirmation_arrives() {
    for broker in Broker::all().await {
        let mut replies = match &broker.publisher {
            Publisher::Memory(_) => None,
            Publisher::Nats(connection) => {
                let client = connection.client();
                let replies = client.subscribe("reply").await.expect("the client lives");
                echo(connection).await;
                Some(replies)
            }
        };
        let output = broker.bus.output();
        output.send("reply".to_owned(), wire::encode_reply(None));
        match (&broker.publisher, &mut replies) {
            (Publisher::Memory(memory), _) => {
                eventually("an answer", async || memory.sent_messages().len() == 1).await;
            }
            (Publisher::Nats(_), Some(replies)) => {
                let reply = replies.next().await.expect("an answer");
                assert_eq!(reply.payload, "{\"ok\":true}");
            }
            (Publisher::Nats(_), None) => {}
        }
    }
}
