//! Confirmed publishing: many in flight, each answered, refused, or unknown after a bounded time.
//!
//! | what happens to a message in flight | outcome |
//! |---|---|
//! | the stream says its sequence | confirmed |
//! | too large for the broker or the stream, or a subject that we may not use | refused for good |
//! | any other error, no stream or another one, no leader, no answer in time, connection lost | not confirmed: again, same id; a stream that is gone is made anew |
//!
//! One subscription takes all answers, each told apart by a token in its subject. A message with its headers
//! that the broker would not take is never sent: the broker would close the connection, and with it lose
//! everything else in flight. After half the duplicate window an id is looked for in the stream instead.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use super::api::{Api, ApiError, code};
use super::monitor::Monitor;
use super::pull::{From, Pull};
use super::streams::{Wanted, ensure};
use crate::bus::connection::{Connection, State, Violation};
use crate::bus::wire::MESSAGE_ID_HEADER;
use crate::bus::{BusError, Confirmation, Outbound, Output, PublishError};
use crate::core::time::Timestamp;

/// How long one attempt waits for its answer, a connection included.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How long it is between two looks for streams that are gone.
const KEEP_PAUSE: Duration = Duration::from_secs(1);
/// So many signs of life without a message end a search.
const MAX_IDLE: u32 = 3;

type Answer = Result<Confirmation, PublishError>;

/// Where a subject's messages are kept.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) subject: String,
    pub(super) stream: Wanted,
    /// Whether its sequences are the ones that callers remember: only one stream's are.
    pub(super) is_searched_from: bool,
}

/// Publishes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Publisher {
    shared: Arc<Shared>,
    monitor: Arc<Monitor>,
    _answers: Arc<AbortOnDropHandle<()>>,
    _keeping: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    api: Api,
    targets: Vec<Target>,
    inbox: String,
    last_token: AtomicU64,
    in_flight: Mutex<HashMap<u64, InFlight>>,
    /// Told when no stream has answered a message.
    is_unanswered: Notify,
}

struct InFlight {
    subject: &'static str,
    /// The connection over which it was sent.
    epoch: u64,
    answer: oneshot::Sender<Answer>,
}

#[derive(Deserialize)]
struct PubAck {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<PubAckError>,
}

#[derive(Deserialize)]
struct PubAckError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Publisher {
    /// Subscribes to the answers of everything that is published from now on.
    pub(super) async fn new(
        api: Api,
        targets: Vec<Target>,
        monitor: Arc<Monitor>,
    ) -> Result<Self, BusError> {
        let connection = api.connection().clone();
        let inbox = connection.client().new_inbox();
        let answers = connection.client().subscribe(format!("{inbox}.*")).await;
        let answers = answers.map_err(|error| BusError::Unavailable(error.to_string()))?;
        let shared = Arc::new(Shared {
            api,
            targets,
            inbox,
            last_token: AtomicU64::new(0),
            in_flight: Mutex::default(),
            is_unanswered: Notify::new(),
        });
        let keeping = keep_all(Arc::clone(&shared));
        let task = answer_all(
            Arc::clone(&shared),
            answers,
            connection.state(),
            connection.violations(),
        );
        Ok(Self {
            shared,
            monitor,
            _answers: Arc::new(AbortOnDropHandle::new(connection.runtime().spawn(task))),
            _keeping: Arc::new(AbortOnDropHandle::new(connection.runtime().spawn(keeping))),
        })
    }
}

impl Shared {
    fn connection(&self) -> &Connection {
        self.api.connection()
    }

    fn target(&self, subject: &str) -> Option<&Target> {
        self.targets.iter().find(|target| target.subject == subject)
    }

    fn in_flight(&self) -> MutexGuard<'_, HashMap<u64, InFlight>> {
        self.in_flight
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn publish(self: Arc<Self>, message: Outbound) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID_HEADER, message.id.as_str());
        for (name, value) in &message.headers {
            headers.insert(*name, value.as_str());
        }
        let publishing = async {
            let epoch = self.connection().connected().await;
            let (size, limit) = (wire_size(&message), self.connection().max_payload());
            if size > limit {
                return Err(PublishError::Refused(format!(
                    "{size} bytes with headers, and the broker takes {limit} (max_payload)"
                )));
            }
            let (token, answer) = self.register(message.subject, epoch);
            let _forgotten = Forget(&self, token);
            let sent = self.connection().client().publish_with_reply_and_headers(
                message.subject,
                format!("{}.{token}", self.inbox),
                headers,
                message.payload.clone(),
            );
            sent.await
                .map_err(|error| PublishError::Unconfirmed(error.to_string()))?;
            let answer = answer.await;
            answer.unwrap_or_else(|_| Err(unconfirmed("the publisher ended")))
        };
        let answered = timeout(CONFIRMED_WITHIN, publishing).await;
        answered.unwrap_or_else(|_| {
            // Whoever listens to digests is a responder to the broker, and never answers.
            self.is_unanswered.notify_one();
            Err(unconfirmed("no answer in time"))
        })
    }

    fn register(&self, subject: &'static str, epoch: u64) -> (u64, oneshot::Receiver<Answer>) {
        let token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = oneshot::channel();
        let in_flight = InFlight {
            subject,
            epoch,
            answer: sender,
        };
        self.in_flight().insert(token, in_flight);
        (token, receiver)
    }

    fn answer(&self, message: &Message) {
        let token = message
            .subject
            .rsplit('.')
            .next()
            .and_then(|token| token.parse().ok());
        let Some(token) = token else {
            return;
        };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.is_unanswered.notify_one();
        }
        // Nobody waits for one that comes too late.
        if let Some(in_flight) = self.in_flight().remove(&token) {
            let target = self.target(in_flight.subject);
            in_flight.answer.send(read_answer(message, target)).ok();
        }
    }

    /// Answers all that match, without waiting for the broker.
    fn answer_those(&self, is_meant: impl Fn(&InFlight) -> bool, error: &PublishError) {
        let meant: Vec<_> = {
            let mut in_flight = self.in_flight();
            in_flight
                .extract_if(|_, in_flight| is_meant(in_flight))
                .collect()
        };
        for (_, in_flight) in meant {
            in_flight.answer.send(Err(error.clone())).ok();
        }
    }
}

/// Forgets a message when nobody waits for it any more.
struct Forget<'a>(&'a Shared, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.in_flight().remove(&self.1);
    }
}

impl Output for Publisher {
    fn max_payload(&self) -> usize {
        self.shared.connection().max_payload()
    }

    fn publish(&self, message: Outbound) -> BoxFuture<'static, Answer> {
        Arc::clone(&self.shared).publish(message).boxed()
    }

    fn find(
        &self,
        subject: &'static str,
        ids: HashSet<String>,
        after: u64,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>> {
        let Some(target) = self.shared.target(subject).cloned() else {
            return std::future::ready(Ok(Vec::new())).boxed();
        };
        let after = if target.is_searched_from { after } else { 0 };
        let shared = Arc::clone(&self.shared);
        async move {
            let found = find(&shared.api, &target.stream.config.name, ids, after).await;
            if found.is_err() {
                // The stream may be gone.
                shared.is_unanswered.notify_one();
            }
            found
        }
        .boxed()
    }

    fn now(&self) -> Option<Timestamp> {
        self.monitor.now()
    }

    fn send(&self, subject: String, payload: Bytes) {
        let client: Client = self.shared.connection().client().clone();
        // It waits only while the client's bounded queue is full: then it is dropped, as telemetry may be.
        let sent = tokio::task::unconstrained(client.publish(subject, payload)).now_or_never();
        if !matches!(sent, Some(Ok(()))) {
            debug!("a message without confirmation was dropped");
        }
    }
}

/// The bytes of a message with its headers as they go over the wire.
fn wire_size(message: &Outbound) -> usize {
    const FRAME: usize = "NATS/1.0\r\n\r\n".len();
    const LINE: usize = ": \r\n".len();
    let id = MESSAGE_ID_HEADER.len() + message.id.len() + LINE;
    let headers = message.headers.iter();
    let headers = headers.map(|(name, value)| name.len() + value.len() + LINE);
    FRAME + id + headers.sum::<usize>() + message.payload.len()
}

/// Hands every answer to who waits for it. Ends with its [`Publisher`].
async fn answer_all(
    shared: Arc<Shared>,
    mut answers: Subscriber,
    mut state: watch::Receiver<State>,
    mut violations: broadcast::Receiver<Violation>,
) {
    loop {
        tokio::select! {
            biased;
            answer = answers.next() => match answer {
                Some(answer) => shared.answer(&answer),
                None => return,
            },
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = match *state.borrow_and_update() {
                    State::Connected { epoch } => Some(epoch),
                    State::Disconnected { .. } => None,
                };
                let lost = unconfirmed("the connection was lost");
                shared.answer_those(|sent| Some(sent.epoch) != now, &lost);
            }
            violation = violations.recv() => match violation {
                Ok(Violation::Publish(subject)) => {
                    let refused = PublishError::Refused(format!("our user may not publish to {subject}"));
                    shared.answer_those(|sent| sent.subject == subject, &refused);
                }
                // Those whose refusal was missed run into their deadline.
                Ok(Violation::Subscribe(_)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
        }
    }
}

/// Makes a stream anew that was deleted under us: else nothing more would be published until the next start. Ends
/// with its [`Publisher`].
async fn keep_all(shared: Arc<Shared>) {
    loop {
        shared.is_unanswered.notified().await;
        for target in &shared.targets {
            let name = &target.stream.config.name;
            let Err(ApiError::Refused {
                code: code::STREAM_NOT_FOUND,
                ..
            }) = shared.api.stream(name).await
            else {
                continue;
            };
            error!(stream = name, "the output stream is gone, making it anew");
            if let Err(error) = ensure(&shared.api, &target.stream).await {
                warn!(stream = name, %error, "the output stream cannot be made anew yet");
            }
        }
        // Many messages find it missing at once, and each is sent again.
        sleep(KEEP_PAUSE).await;
    }
}

fn read_answer(message: &Message, target: Option<&Target>) -> Answer {
    if let Some(status) = message.status {
        return Err(unconfirmed(format!(
            "no stream takes it now ({})",
            status.as_u16()
        )));
    }
    let ack: PubAck = serde_json::from_slice(&message.payload)
        .map_err(|error| unconfirmed(format!("an answer that cannot be read: {error}")))?;
    match ack.error {
        None if ack.seq > 0 => match target {
            Some(target) if target.stream.config.name != ack.stream => Err(unconfirmed(format!(
                "stored by {} instead of {}: that stream must give up the subject",
                ack.stream, target.stream.config.name
            ))),
            _ => Ok(Confirmation {
                // Two streams' sequences would be taken for one's.
                sequence: target
                    .is_some_and(|target| target.is_searched_from)
                    .then_some(ack.seq),
                is_duplicate: ack.duplicate,
            }),
        },
        None => Err(unconfirmed("an answer without a sequence")),
        Some(error) if is_for_good(error.err_code) => Err(PublishError::Refused(error.describe())),
        Some(error) => Err(unconfirmed(error.describe())),
    }
}

impl PubAckError {
    fn describe(&self) -> String {
        format!("{} (error {})", self.description, self.err_code)
    }
}

const fn is_for_good(error: u64) -> bool {
    matches!(error, code::MESSAGE_TOO_LARGE | code::HEADERS_TOO_LARGE)
}

fn unconfirmed(why: impl Into<String>) -> PublishError {
    PublishError::Unconfirmed(why.into())
}

/// Reads the stream's headers once, from a sequence to its end as it is now.
async fn find(
    api: &Api,
    stream: &str,
    ids: HashSet<String>,
    after: u64,
) -> Result<Vec<(String, u64)>, PublishError> {
    let error =
        |error: &dyn std::fmt::Display| unconfirmed(format!("failed to read {stream}: {error}"));
    let info = api.stream(stream).await.map_err(|e| error(&e))?;
    let (first, last) = (info.state.first_seq, info.state.last_seq);
    // A stream that ends before our sequence is not the one that gave it.
    let after = if last < after { 0 } else { after };
    let mut found = Vec::new();
    if info.state.messages == 0 || last <= after || ids.is_empty() {
        return Ok(found);
    }
    let from = From::Sequence(first.max(after + 1));
    let mut pull = Pull::create(api, stream, from, true)
        .await
        .map_err(|e| error(&e))?;
    let mut messages = Vec::new();
    // The last sequence may be that of a message that was deleted.
    let (mut is_read, mut num_idle) = (pull.was_empty(), 0);
    while !is_read {
        pull.take(1000, &mut messages)
            .await
            .map_err(|e| error(&e))?;
        num_idle = if messages.is_empty() { num_idle + 1 } else { 0 };
        if num_idle > MAX_IDLE {
            return Err(error(&"it shrank meanwhile"));
        }
        for message in messages.drain(..) {
            let id = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(MESSAGE_ID_HEADER));
            if let Some(id) = id.filter(|id| ids.contains(id.as_str())) {
                found.push((id.as_str().to_owned(), message.meta.sequence));
            }
            is_read = message.meta.sequence >= last || message.meta.num_pending == 0;
        }
    }
    pull.delete().await;
    Ok(found)
}
