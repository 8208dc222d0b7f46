//! An ordered pull consumer: the messages of a stream from one place on, without a gap, or broken.
//!
//! | what comes | what follows |
//! |---|---|
//! | a message with the next consumer sequence | yielded |
//! | any other sequence, an error, the end of the subscription, silence, another connection | [`Broken`]: the owner begins anew |
//! | a heartbeat that counts more than was seen | [`Broken`] |
//! | the end of a request, by time or by bytes | the rest of it is asked for again |
//!
//! Nothing is acknowledged: the place is the owner's. The consumer lives in the broker's memory, under a name
//! of its own, and is gone half a minute after we are. On the way of a message there is no wait, no copy of
//! its bytes and no allocation: everything that has arrived is taken at once.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::api::{Api, ApiError, no_answer};
use crate::bus::connection::State;
use crate::core::time::Timestamp;

/// Messages of one request.
const BATCH: u64 = 1000;
/// Messages asked for and not yet here, at most. Far below a subscription's capacity, which drops.
const MAX_OUTSTANDING: u64 = 4 * BATCH;
/// Bytes of one request, until a single message is larger. A prime: no number of equal messages fills it to
/// the byte, which would end the request without a word.
pub(super) const MAX_BYTES: u64 = 4_194_301;
/// How long the broker keeps a request that it cannot fill.
const EXPIRES: Duration = Duration::from_secs(5);
/// How often it says that it still has one.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Silence that long is no heartbeat missed twice, but a consumer that is gone.
const SILENCE: Duration = Duration::from_millis(2500);
/// How long it keeps a consumer that nobody asks.
const INACTIVE: Duration = Duration::from_secs(30);

/// Where a consumer begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum From {
    /// With this sequence.
    Sequence(u64),
    /// With the first message not before this instant.
    Time(Timestamp),
}

/// Why a consumer yields nothing any more.
#[derive(Clone, Debug)]
pub(super) struct Broken(pub(super) String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What the broker says of a message, read from its reply subject.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Meta {
    /// Its sequence in the stream.
    pub(super) sequence: u64,
    /// When it was stored.
    pub(super) timestamp: Timestamp,
    /// How many wait behind it.
    pub(super) num_pending: u64,
}

/// A message in its place.
#[derive(Debug)]
pub(super) struct Pulled {
    pub(super) meta: Meta,
    pub(super) subject: Arc<str>,
    pub(super) headers: Option<HeaderMap>,
    pub(super) payload: Bytes,
}

#[derive(Serialize)]
struct CreateRequest<'a> {
    stream_name: &'a str,
    config: ConsumerConfig<'a>,
}

#[derive(Clone, Serialize)]
struct ConsumerConfig<'a> {
    name: &'a str,
    deliver_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    opt_start_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opt_start_time: Option<String>,
    ack_policy: &'static str,
    replay_policy: &'static str,
    inactive_threshold: u128,
    num_replicas: usize,
    mem_storage: bool,
}

#[derive(Deserialize)]
struct Created {
    config: CreatedConfig,
    #[serde(default)]
    num_pending: Option<u64>,
    #[serde(default)]
    delivered: Delivered,
}

#[derive(Default, Deserialize)]
struct Delivered {
    #[serde(default)]
    stream_seq: u64,
}

#[derive(Deserialize)]
struct CreatedConfig {
    deliver_policy: String,
    #[serde(default)]
    opt_start_seq: Option<u64>,
    ack_policy: String,
    #[serde(default)]
    filter_subject: Option<String>,
    #[serde(default)]
    filter_subjects: Option<Vec<String>>,
}

impl CreatedConfig {
    /// An older server drops what it does not know, and says nothing.
    fn compare(&self, wanted: &ConsumerConfig<'_>) -> Result<(), ApiError> {
        let is_same = self.deliver_policy == wanted.deliver_policy
            && self.opt_start_seq.unwrap_or_default() == wanted.opt_start_seq.unwrap_or_default()
            && self.ack_policy == wanted.ack_policy
            && self
                .filter_subject
                .as_deref()
                .unwrap_or_default()
                .is_empty()
            && self.filter_subjects.as_ref().is_none_or(Vec::is_empty);
        if is_same {
            Ok(())
        } else {
            Err(no_answer(
                "the broker made another consumer than was asked for",
            ))
        }
    }
}

/// A consumer. Dropped, it is forgotten by the broker after a while.
#[derive(Debug)]
pub(super) struct Pull {
    api: Api,
    state: watch::Receiver<State>,
    /// The connection on which it was created.
    epoch: u64,
    subscriber: Subscriber,
    inbox: Subject,
    next_request: Subject,
    delete_request: String,
    order: Order,
    is_empty: bool,
    begins_behind: u64,
    has_yielded: bool,
    /// Until when something must be heard.
    deadline: Instant,
}

impl Pull {
    /// Creates a consumer and compares what the broker made of it with what was asked.
    pub(super) async fn create(api: &Api, stream: &str, from: From) -> Result<Self, ApiError> {
        let name = format!("tocsin-{:016x}", getrandom::u64().map_err(no_answer)?);
        let client = api.connection().client();
        let epoch = api.connection().connected().await;
        let inbox = Subject::from(client.new_inbox());
        let subscriber = client.subscribe(inbox.clone()).await.map_err(no_answer)?;
        let (deliver_policy, opt_start_seq, opt_start_time) = match from {
            From::Sequence(sequence) => ("by_start_sequence", Some(sequence), None),
            From::Time(Timestamp::EPOCH) => ("all", None, None),
            From::Time(instant) => ("by_start_time", None, Some(instant.to_string())),
        };
        let config = ConsumerConfig {
            name: &name,
            deliver_policy,
            opt_start_seq,
            opt_start_time,
            ack_policy: "none",
            replay_policy: "instant",
            inactive_threshold: INACTIVE.as_nanos(),
            num_replicas: 1,
            mem_storage: true,
        };
        let request = CreateRequest {
            stream_name: stream,
            config: config.clone(),
        };
        let what = format!("CONSUMER.CREATE.{stream}.{name}");
        let created: Created = api.call(&what, &request).await?;
        created.config.compare(&config)?;
        Ok(Self {
            api: api.clone(),
            state: api.connection().state(),
            epoch,
            subscriber,
            inbox,
            next_request: format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}").into(),
            delete_request: format!("CONSUMER.DELETE.{stream}.{name}"),
            order: Order::new(stream, &name),
            is_empty: created.num_pending == Some(0),
            begins_behind: created.delivered.stream_seq,
            has_yielded: false,
            deadline: Instant::now() + SILENCE,
        })
    }

    /// Whether the broker had nothing for it when it was created.
    pub(super) const fn was_empty(&self) -> bool {
        self.is_empty
    }

    /// The sequence in the stream before the first that it looks at.
    pub(super) const fn begins_behind(&self) -> u64 {
        self.begins_behind
    }

    /// Whether any message came.
    pub(super) const fn has_yielded(&self) -> bool {
        self.has_yielded
    }

    /// Appends what has arrived, waiting for the first, at most `max_messages`; nothing when only a sign of
    /// life came. Safe to cancel. What was appended before [`Broken`] is in order, and counts.
    pub(super) async fn take(
        &mut self,
        max_messages: usize,
        into: &mut Vec<Pulled>,
    ) -> Result<(), Broken> {
        let (mut state, epoch) = (self.state.clone(), self.epoch);
        let is_other = |state: &State| *state != State::Connected { epoch };
        tokio::select! {
            biased;
            taken = self.take_arrived(max_messages, into) => taken,
            // The sender lives as long as the connection that we hold.
            _ = state.wait_for(is_other) => Err(broken("the connection was lost")),
        }
    }

    async fn take_arrived(
        &mut self,
        max_messages: usize,
        into: &mut Vec<Pulled>,
    ) -> Result<(), Broken> {
        self.ask().await?;
        let Self {
            subscriber, order, ..
        } = self;
        let arriving = std::future::poll_fn(|context| {
            order.poll_take(subscriber, context, max_messages, into)
        });
        // Cooperative yielding would cut every batch into pieces of its budget.
        let arrived = timeout_at(self.deadline, tokio::task::unconstrained(arriving)).await;
        self.deadline = Instant::now() + SILENCE;
        self.has_yielded |= !into.is_empty();
        arrived.unwrap_or_else(|_| Err(broken("the broker fell silent")))
    }

    /// Deletes the consumer now instead of letting the broker forget it.
    pub(super) async fn delete(self) {
        // It is forgotten anyway.
        drop(self.api.call::<IgnoredAny>(&self.delete_request, &()).await);
    }

    async fn ask(&mut self) -> Result<(), Broken> {
        while self.order.num_outstanding + BATCH <= MAX_OUTSTANDING {
            let client = self.api.connection().client();
            let asked = client.publish_with_reply(
                self.next_request.clone(),
                self.inbox.clone(),
                self.order.request().into(),
            );
            asked.await.map_err(broken)?;
            self.order.num_outstanding += BATCH;
        }
        Ok(())
    }
}

/// What a consumer has yielded and still owes.
#[derive(Debug)]
struct Order {
    /// What a reply subject of this consumer contains before its numbers.
    marker: String,
    /// Where the marker ended in the last message's reply subject: it always does there.
    numbers_at: usize,
    last_consumer_sequence: u64,
    num_outstanding: u64,
    /// Bytes of one request from now on.
    max_bytes: u64,
    subjects: Subjects,
}

impl Order {
    fn new(stream: &str, consumer: &str) -> Self {
        Self {
            marker: format!(".{stream}.{consumer}."),
            numbers_at: 0,
            last_consumer_sequence: 0,
            num_outstanding: 0,
            max_bytes: MAX_BYTES,
            subjects: Subjects::default(),
        }
    }

    /// A request for more: without a bound of its bytes a few large messages would fill the memory.
    fn request(&self) -> String {
        let (max_bytes, expires) = (self.max_bytes, EXPIRES.as_nanos());
        let heartbeat = HEARTBEAT.as_nanos();
        format!(
            r#"{{"batch":{BATCH},"max_bytes":{max_bytes},"expires":{expires},"idle_heartbeat":{heartbeat}}}"#
        )
    }

    fn poll_take(
        &mut self,
        subscriber: &mut Subscriber,
        context: &mut Context<'_>,
        max_messages: usize,
        into: &mut Vec<Pulled>,
    ) -> Poll<Result<(), Broken>> {
        let mut is_alive = false;
        while into.len() < max_messages {
            match subscriber.poll_next_unpin(context) {
                Poll::Ready(Some(message)) => match self.accept(message) {
                    Ok(Some(pulled)) => into.push(pulled),
                    Ok(None) => is_alive = true,
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Poll::Ready(None) => return Poll::Ready(Err(broken("the subscription ended"))),
                Poll::Pending if into.is_empty() && !is_alive => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn accept(&mut self, message: Message) -> Result<Option<Pulled>, Broken> {
        let place = message
            .reply
            .as_deref()
            .and_then(|reply| read_place(reply, &self.marker, &mut self.numbers_at));
        let Some((meta, consumer_sequence)) = place else {
            // Only without a place a status is the broker's: publishers may write one, too.
            let Some(status) = message.status else {
                return Err(broken("a message came without its place in the stream"));
            };
            let text = message.description.unwrap_or_default();
            let headers = message.headers.unwrap_or_default();
            self.on_status(status.as_u16(), &text, &headers)?;
            return Ok(None);
        };
        let expected = self.last_consumer_sequence + 1;
        if consumer_sequence != expected {
            return Err(Broken(format!(
                "message {expected} of the consumer was expected and {consumer_sequence} came"
            )));
        }
        self.last_consumer_sequence = consumer_sequence;
        self.num_outstanding = self.num_outstanding.saturating_sub(1);
        Ok(Some(Pulled {
            meta,
            subject: self.subjects.interned(&message.subject),
            headers: message.headers,
            payload: message.payload,
        }))
    }

    fn on_status(&mut self, status: u16, text: &str, headers: &HeaderMap) -> Result<(), Broken> {
        let number = |name: &str| {
            headers
                .get(name)
                .and_then(|value| value.as_str().parse().ok())
        };
        match status {
            // Behind the messages it counts: whatever it counts beyond ours was dropped on the way.
            100 => match number("Nats-Last-Consumer") {
                Some(sent) if sent > self.last_consumer_sequence => Err(Broken(format!(
                    "the broker sent {sent} messages of the consumer and {} came",
                    self.last_consumer_sequence
                ))),
                _ => Ok(()),
            },
            404 | 408 => {
                let unused: u64 = number("Nats-Pending-Messages").unwrap_or(BATCH);
                self.num_outstanding = self.num_outstanding.saturating_sub(unused);
                Ok(())
            }
            // A request that is bounded in bytes has its end told, too, when all of its messages came.
            409 if text == "Batch Completed" => Ok(()),
            409 if text.contains("MaxBytes") => {
                let unused: u64 = number("Nats-Pending-Messages").unwrap_or(BATCH);
                self.num_outstanding = self.num_outstanding.saturating_sub(unused);
                if unused == BATCH {
                    // Not even the next message fits: streams hold what an earlier `max_payload` let through.
                    self.max_bytes *= 2;
                }
                Ok(())
            }
            503 => Err(broken("the consumer is gone")),
            _ => Err(Broken(format!("{text} ({status})"))),
        }
    }
}

/// Reads `…<marker><deliveries>.<stream sequence>.<consumer sequence>.<nanoseconds>.<pending>[.…]`.
///
/// Before the marker stand a domain and an account or nothing, depending on the server; `numbers_at` remembers
/// where it ended.
fn read_place(reply: &str, marker: &str, numbers_at: &mut usize) -> Option<(Meta, u64)> {
    let is_there = reply
        .get(..*numbers_at)
        .is_some_and(|head| head.ends_with(marker));
    if !is_there {
        *numbers_at = reply.find(marker)? + marker.len();
    }
    let mut numbers = reply.as_bytes().get(*numbers_at..)?;
    let _deliveries = take_number(&mut numbers)?;
    let sequence = take_number(&mut numbers)?;
    let consumer_sequence = take_number(&mut numbers)?;
    let meta = Meta {
        sequence,
        timestamp: Timestamp::from_nanos(take_number(&mut numbers)?),
        num_pending: take_number(&mut numbers)?,
    };
    Some((meta, consumer_sequence))
}

/// Takes a number, and the dot behind it unless it is the last; `None` where none stands, or a larger one than 64 bits
/// hold.
fn take_number(from: &mut &[u8]) -> Option<u64> {
    let mut number: Option<u64> = None;
    while let Some((&byte, rest)) = from.split_first() {
        *from = rest;
        if byte == b'.' {
            break;
        }
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        let before = number.unwrap_or_default();
        number = Some(before.checked_mul(10)?.checked_add(u64::from(digit))?);
    }
    number
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "what it is mapped over is handed over"
)]
fn broken(why: impl ToString) -> Broken {
    Broken(why.to_string())
}

/// Each subject once, however many messages come on it.
#[derive(Debug, Default)]
struct Subjects {
    last: Option<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl Subjects {
    /// Publishers may use any number of subjects.
    const MAX_KNOWN: usize = 4096;

    fn interned(&mut self, subject: &str) -> Arc<str> {
        if let Some(last) = &self.last
            && **last == *subject
        {
            return Arc::clone(last);
        }
        let interned = self
            .known
            .get(subject)
            .map_or_else(|| Arc::from(subject), Arc::clone);
        if self.known.len() >= Self::MAX_KNOWN {
            self.known.clear();
        }
        self.known.insert(Arc::clone(&interned));
        self.last = Some(Arc::clone(&interned));
        interned
    }
}

#[cfg(test)]
mod tests {
    use async_nats::StatusCode;

    use super::*;

    #[test]
    fn a_place_is_read_from_every_form_of_reply() {
        let expected = Some((
            Meta {
                sequence: 22,
                timestamp: Timestamp::from_nanos(1_700_000_000_000_000_001),
                num_pending: 4,
            },
            33,
        ));
        for reply in [
            "$JS.ACK.TOCSIN_IN.c1.1.22.33.1700000000000000001.4",
            "$JS.ACK._.hash.TOCSIN_IN.c1.1.22.33.1700000000000000001.4.token",
        ] {
            assert_eq!(
                read_place(reply, ".TOCSIN_IN.c1.", &mut 0),
                expected,
                "{reply}"
            );
        }
        for reply in [
            "",
            "$JS.ACK.TOCSIN_IN.c2.1.22.33.17.4",
            "$JS.ACK.TOCSIN_IN.c1.1.22",
            "$JS.ACK.TOCSIN_IN.c1.1.22..17.4.5",
            "$JS.ACK.TOCSIN_IN.c1.1.22.33.+17.4",
            "$JS.ACK.TOCSIN_IN.c1.1.18446744073709551616.33.17.4",
            "$JS.ACK.TOCSIN_IN.c1.1.22.33.17.",
        ] {
            assert_eq!(read_place(reply, ".TOCSIN_IN.c1.", &mut 0), None, "{reply}");
        }
    }

    #[test]
    fn a_status_that_a_publisher_wrote_is_no_word_of_the_broker() {
        let message = |reply: Option<&str>| Message {
            subject: "AlarmStatusChanged".into(),
            reply: reply.map(Subject::from),
            payload: Bytes::from_static(b"{}"),
            headers: None,
            status: Some(StatusCode::NOT_FOUND),
            description: None,
            length: 0,
        };
        let mut order = Order::new("TOCSIN_IN", "c1");
        let stored = message(Some("$JS.ACK.TOCSIN_IN.c1.1.22.1.17.4"));
        let pulled = order.accept(stored).expect("in its place");
        assert_eq!(pulled.map(|it| it.meta.sequence), Some(22));
        let said = order.accept(message(None)).expect("nothing is broken");
        assert!(said.is_none());
    }

    #[test]
    fn every_subject_is_kept_once() {
        let mut subjects = Subjects::default();
        let first = subjects.interned("a.1");
        subjects.interned("a.2");
        assert!(Arc::ptr_eq(&first, &subjects.interned("a.1")));
        for number in 0..3 * Subjects::MAX_KNOWN {
            subjects.interned(&number.to_string());
        }
        assert!(subjects.known.len() <= Subjects::MAX_KNOWN);
    }
}
