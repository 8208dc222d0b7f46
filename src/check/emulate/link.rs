//! The two connections of a run: one publishes, one receives.
//!
//! Everything is published on one connection, because a change that was published before a request on the same
//! connection must be in its digest. Digests come on another, so that they never wait behind what is published.
//!
//! A stream takes what is published on its subjects without a word, and a server under load drops such a message
//! without one, too. So every [`FENCE_EVERY`]-th message asks for the stream's confirmation, at most
//! [`MAX_FENCES`] are waited for at a time, and the sequences that the stream gave must have grown by as many as
//! were published: what is missing was dropped. Another publisher can hide a loss, never make one up.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::{Client, Message as Incoming, Subject, Subscriber};
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::super::traffic::{Message, NUM_TWINS, Names};
use crate::bus::connection::{Connection, State};
use crate::bus::{BusError, wire};

/// How many messages the stream confirms at once.
pub(super) const FENCE_EVERY: u64 = 2048;
/// How many confirmations may be owed to us.
pub(super) const MAX_FENCES: usize = 2;
/// How much room for payloads is made at a time.
const BUFFER: usize = 64 * 1024;
/// The longest payload, with room to spare.
const MAX_MESSAGE: usize = 1024;
/// How often the stream is asked whether it has everything.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How far the stream has confirmed: so many of ours, at this sequence.
#[derive(Clone, Copy, Debug)]
struct Mark {
    published: u64,
    sequence: u64,
}

/// The stream that takes the messages.
#[derive(Debug)]
struct Fences {
    stream: String,
    confirmed: Mark,
    /// How many had been published with each confirmation that is owed, and since when it is.
    owed: VecDeque<(u64, Instant)>,
    lost: u64,
}

impl Fences {
    /// Takes the sequence that the stream gave the `published`-th message.
    fn confirm(&mut self, published: u64, sequence: u64) {
        while self.owed.front().is_some_and(|(it, _)| *it <= published) {
            self.owed.pop_front();
        }
        let ours = published.saturating_sub(self.confirmed.published);
        let all = sequence.saturating_sub(self.confirmed.sequence);
        self.lost += ours.saturating_sub(all);
        self.confirmed = Mark {
            published,
            sequence,
        };
    }
}

/// Both connections.
pub(super) struct Link {
    publishing: Connection,
    receiving: Connection,
    states: [watch::Receiver<State>; 2],
    epochs: u64,
    buffer: BytesMut,
    subjects: [Vec<Subject>; 2],
    inbox: String,
    confirmations: Subscriber,
    digests: Subscriber,
    fences: Option<Fences>,
    published: u64,
    timeout: Duration,
}

/// What can arrive.
pub(super) enum Arrived {
    Digest(Incoming),
    Confirmation(Incoming),
    /// A connection was lost, or is there again.
    State,
}

impl Link {
    /// Subscribes, and returns when the server has processed it.
    pub(super) async fn open(
        publishing: Connection,
        receiving: Connection,
        timeout: Duration,
    ) -> Result<Self, BusError> {
        let client = publishing.client();
        let inbox = client.new_inbox();
        let confirmations = subscribe(client, format!("{inbox}.*")).await?;
        let digests = subscribe(receiving.client(), wire::DIGEST.to_owned()).await?;
        echo(receiving.client(), timeout).await?;
        let fences = find_stream(&publishing).await;
        let subjects = [wire::CHANGE, wire::REQUEST].map(|base| {
            let twins = (1..=NUM_TWINS).map(|twin| Subject::from(format!("{base}.{twin}")));
            std::iter::once(Subject::from_static(base))
                .chain(twins)
                .collect()
        });
        let states = [publishing.state(), receiving.state()];
        let mut link = Self {
            publishing,
            receiving,
            states,
            epochs: 0,
            buffer: BytesMut::with_capacity(BUFFER),
            subjects,
            inbox,
            confirmations,
            digests,
            fences,
            published: 0,
            timeout,
        };
        link.epochs = link.sum_of_epochs();
        Ok(link)
    }

    /// Whether a stream takes the messages.
    pub(super) const fn has_stream(&self) -> bool {
        self.fences.is_some()
    }

    /// The subject of a message.
    pub(super) fn subject(&self, names: &Names, message: &Message) -> Subject {
        let [changes, requests] = &self.subjects;
        let base = if message.is_on_request_subject() {
            requests
        } else {
            changes
        };
        let subject = base.get(usize::from(names.twin(message)));
        subject.expect("there is one for every twin").clone()
    }

    /// Publishes a message, and waits while the client has no room for it.
    pub(super) async fn publish(&mut self, names: &Names, message: &Message) -> Result<(), String> {
        if self.buffer.capacity() < MAX_MESSAGE {
            self.buffer.reserve(BUFFER);
        }
        names.write(message, &mut self.buffer);
        let payload = self.buffer.split().freeze();
        let subject = self.subject(names, message);
        self.published += 1;
        let client = self.publishing.client().clone();
        if let Some(fences) = &mut self.fences
            && self.published.is_multiple_of(FENCE_EVERY)
        {
            fences.owed.push_back((self.published, Instant::now()));
            let reply = format!("{}.{}", self.inbox, self.published);
            let publishing = client.publish_with_reply(subject, reply, payload);
            return within(self.timeout, publishing).await;
        }
        within(self.timeout, client.publish(subject, payload)).await
    }

    /// Whether the stream must confirm something before more is published.
    pub(super) fn must_wait(&self) -> bool {
        let owed = self.fences.as_ref().map_or(0, |it| it.owed.len());
        owed >= MAX_FENCES
    }

    /// Says once when a confirmation of the stream did not come in time; the next one says what was lost.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let Some(fences) = &mut self.fences else {
            return Ok(());
        };
        let oldest = fences.owed.front();
        if oldest.is_none_or(|(_, since)| since.elapsed() <= self.timeout) {
            return Ok(());
        }
        fences.owed.clear();
        let limit = self.timeout;
        Err(format!(
            "the stream did not confirm within {limit:?} what was published"
        ))
    }

    /// Takes a confirmation.
    pub(super) fn confirm(&mut self, incoming: &Incoming) -> Result<(), String> {
        let number = incoming.subject.rsplit('.').next();
        let number = number.and_then(|it| it.parse().ok());
        let (Some(fences), Some(number)) = (&mut self.fences, number) else {
            return Ok(());
        };
        let answer: Value = serde_json::from_slice(&incoming.payload).unwrap_or_default();
        if answer.get("error").is_some() {
            fences.owed.retain(|(it, _)| *it != number);
            let answer = String::from_utf8_lossy(&incoming.payload);
            return Err(format!("the broker refused a message: {answer}"));
        }
        // A service may answer, too, on the same subject.
        let is_of_stream = answer.get("stream").and_then(Value::as_str) == Some(&fences.stream);
        let sequence = answer.get("seq").and_then(Value::as_u64);
        if let Some(sequence) = sequence.filter(|_| is_of_stream) {
            fences.confirm(number, sequence);
        }
        Ok(())
    }

    /// Messages that the stream dropped, at least.
    pub(super) fn lost(&self) -> u64 {
        self.fences.as_ref().map_or(0, |it| it.lost)
    }

    /// What has arrived already.
    pub(super) fn poll(&mut self) -> Option<Arrived> {
        if let Some(Some(incoming)) = self.confirmations.next().now_or_never() {
            return Some(Arrived::Confirmation(incoming));
        }
        let digest = self.digests.next().now_or_never().flatten();
        digest.map(Arrived::Digest)
    }

    /// Waits for what arrives.
    pub(super) async fn next(&mut self) -> Arrived {
        let [publishing, receiving] = &mut self.states;
        tokio::select! {
            Some(incoming) = self.confirmations.next() => Arrived::Confirmation(incoming),
            Some(incoming) = self.digests.next() => Arrived::Digest(incoming),
            Ok(()) = publishing.changed() => Arrived::State,
            Ok(()) = receiving.changed() => Arrived::State,
            // Never: both connections are ours.
            else => std::future::pending().await,
        }
    }

    /// How often a connection was made again.
    pub(super) fn num_reconnects(&self) -> u64 {
        self.sum_of_epochs().saturating_sub(self.epochs)
    }

    /// What is known of a connection that is away.
    pub(super) fn why_away(&self) -> Option<String> {
        self.states.iter().find_map(|state| match &*state.borrow() {
            State::Connected { .. } => None,
            State::Disconnected { why } => Some(why.clone()),
        })
    }

    /// Returns when the server has processed everything that was published, and the stream has taken it.
    pub(super) async fn settle(&mut self) -> Result<(), String> {
        let client = self.publishing.client().clone();
        echo(&client, self.timeout)
            .await
            .map_err(|error| error.to_string())?;
        let Some(fences) = &mut self.fences else {
            return Ok(());
        };
        let deadline = Instant::now() + self.timeout;
        loop {
            let last = last_sequence(&client, &fences.stream).await?;
            let ours = self.published - fences.confirmed.published;
            if last.saturating_sub(fences.confirmed.sequence) >= ours {
                fences.confirm(self.published, last);
                return Ok(());
            }
            if Instant::now() > deadline {
                fences.confirm(self.published, last);
                return Err(format!(
                    "{} messages never reached the stream {}",
                    fences.lost, fences.stream
                ));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn sum_of_epochs(&self) -> u64 {
        let connections = [&self.publishing, &self.receiving].into_iter();
        connections
            .map(|it| {
                let connects = &it.client().statistics().connects;
                connects.load(std::sync::atomic::Ordering::Relaxed)
            })
            .sum()
    }
}

/// Waits for a publish: at once where the client has room, which costs no timer.
async fn within<E: std::fmt::Display>(
    limit: Duration,
    publishing: impl Future<Output = Result<(), E>>,
) -> Result<(), String> {
    let mut publishing = std::pin::pin!(publishing);
    let published = match futures::poll!(&mut publishing) {
        std::task::Poll::Ready(published) => published,
        std::task::Poll::Pending => timeout(limit, publishing)
            .await
            .map_err(|_| format!("the broker took nothing for {limit:?}"))?,
    };
    published.map_err(|error| format!("failed to publish: {error}"))
}

async fn subscribe(client: &Client, subject: String) -> Result<Subscriber, BusError> {
    let subscribed = client.subscribe(subject.clone()).await;
    subscribed
        .map_err(|error| BusError::Unavailable(format!("failed to listen on {subject}: {error}")))
}

/// Waits until the server has processed everything before this on the connection.
async fn echo(client: &Client, limit: Duration) -> Result<(), BusError> {
    let inbox = client.new_inbox();
    let mut incoming = subscribe(client, inbox.clone()).await?;
    let asking = async {
        client.publish(inbox, Bytes::new()).await.ok()?;
        incoming.next().await
    };
    let answer = timeout(limit, asking).await.ok().flatten();
    answer
        .map(drop)
        .ok_or_else(|| BusError::Unavailable(format!("the broker did not answer within {limit:?}")))
}

/// The stream that takes all messages, where there is one.
async fn find_stream(connection: &Connection) -> Option<Fences> {
    if !connection.has_jetstream() {
        return None;
    }
    let client = connection.client();
    let context = jetstream::new(client.clone());
    let stream = context.stream_by_subject(wire::CHANGE).await.ok()?;
    for subject in wire::INPUT_SUBJECTS {
        let subject = subject.replace('*', "1");
        if context.stream_by_subject(subject).await.ok()? != stream {
            return None;
        }
    }
    let sequence = last_sequence(client, &stream).await.ok()?;
    Some(Fences {
        stream,
        confirmed: Mark {
            published: 0,
            sequence,
        },
        owed: VecDeque::new(),
        lost: 0,
    })
}

async fn last_sequence(client: &Client, stream: &str) -> Result<u64, String> {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream(stream).await;
    let stream = stream.map_err(|error| format!("failed to look at the stream: {error}"))?;
    Ok(stream.cached_info().state.last_sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fences() -> Fences {
        Fences {
            stream: "S".to_owned(),
            confirmed: Mark {
                published: 0,
                sequence: 100,
            },
            owed: VecDeque::from([(10, Instant::now()), (20, Instant::now())]),
            lost: 0,
        }
    }

    #[test]
    fn a_stream_that_grew_by_less_than_was_published_lost_the_rest() {
        let mut fences = fences();
        fences.confirm(10, 110);
        assert_eq!((fences.lost, fences.owed.len()), (0, 1));
        fences.confirm(20, 117);
        assert_eq!((fences.lost, fences.owed.len()), (3, 0));
    }

    #[test]
    fn messages_of_others_are_no_loss_and_a_later_confirmation_stands_for_the_earlier() {
        let mut fences = fences();
        fences.confirm(20, 1000);
        assert_eq!((fences.lost, fences.owed.len()), (0, 0));
    }
}
