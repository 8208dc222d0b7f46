//! Confirmed publishing: many in flight, each answered, refused, or unknown after a bounded time.
//!
//! | what happens to a message in flight | outcome |
//! |---|---|
//! | the stream says its sequence | confirmed |
//! | too large for the broker or the stream, or a subject that we may not use | refused for good |
//! | too large for a stream that takes less than we knew | not confirmed: it fits in parts |
//! | any other error, no stream or another one, no leader, no answer in time, connection lost | not confirmed: again, same id; a stream that is gone is made anew |
//!
//! One subscription takes all answers, each told apart by a token in its subject. A message with its headers
//! that the broker would not take is never sent: the broker would close the connection, and with it lose
//! everything else in flight. After half the duplicate window an id is looked for in the stream instead.
//!
//! What was given up must not be stored much later. A lost connection takes with it what waits in its client
//! ([`Line`]). One that stands must echo what follows an attempt that was given up: the server has processed
//! everything before it then. Without an echo it is ended, too.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex as AsyncMutex, Notify, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, warn};

use super::api::{Api, ApiError, StreamInfo, code};
use super::monitor::Monitor;
use super::pull::{From, Pull, Pulled};
use super::singles::singles;
use super::streams::{Wanted, ensure, max_message_size};
use crate::bus::connection::{Connection, Line, Violation};
use crate::bus::wire::MESSAGE_ID_HEADER;
use crate::bus::{Confirmation, Outbound, Output, PublishError};
use crate::core::parts::read_id;
use crate::core::position::REWRITE_MARGIN;
use crate::core::time::Timestamp;

/// How long one attempt waits for its answer, a connection included.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How long the echo is waited for that must follow an attempt that was given up. With [`CONFIRMED_WITHIN`], nothing
/// waits longer in a client.
const ECHO_WITHIN: Duration = Duration::from_secs(20);
/// How long the end of the process waits for what was sent without confirmation.
const FLUSHED_WITHIN: Duration = Duration::from_secs(2);
/// How long it is at the least between two looks at the streams.
const KEEP_PAUSE: Duration = Duration::from_secs(1);
/// How long it is at the most.
const KEEP_INTERVAL: Duration = Duration::from_secs(30);
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
    _serving: Arc<AbortOnDropHandle<()>>,
    _keeping: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    /// What the streams are looked at and looked through with: over a connection that others' messages may end.
    looks: Api,
    targets: Vec<Target>,
    /// What is published over; `None` while there is no connection.
    session: watch::Sender<Option<Arc<Session>>>,
    last_token: AtomicU64,
    in_flight: Mutex<HashMap<u64, InFlight>>,
    /// What the broker took when it was connected last, in bytes.
    max_payload: AtomicUsize,
    /// What every stream took when they were looked at last, in bytes.
    max_message_size: AtomicUsize,
    /// Held by who looks at the streams.
    looking: AsyncMutex<()>,
    /// Told when no stream has answered a message.
    is_unanswered: Notify,
    /// Told when an attempt was given up.
    is_given_up: Notify,
}

/// One connection, where its answers come, and its number.
struct Session {
    connection: Connection,
    inbox: String,
    epoch: u64,
}

struct InFlight {
    subject: Cow<'static, str>,
    reply: oneshot::Sender<Reply>,
}

/// What is heard of a message in flight.
#[derive(Clone, Debug)]
enum Reply {
    /// The attempt has ended.
    Ended(Answer),
    /// The stream takes no message of that size; why.
    TooLarge(String),
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
    /// Publishes over this line from now on; every target's stream takes messages of `max_message_size`.
    pub(super) fn new(
        line: Line,
        looks: Api,
        targets: Vec<Target>,
        max_message_size: usize,
        monitor: Arc<Monitor>,
    ) -> Self {
        let runtime = line.runtime().clone();
        let shared = Arc::new(Shared {
            looks,
            targets,
            session: watch::Sender::new(None),
            last_token: AtomicU64::new(0),
            in_flight: Mutex::default(),
            max_payload: AtomicUsize::new(line.connection().max_payload()),
            max_message_size: AtomicUsize::new(max_message_size),
            looking: AsyncMutex::default(),
            is_unanswered: Notify::new(),
            is_given_up: Notify::new(),
        });
        let keeping = keep_all(Arc::clone(&shared));
        let serving = serve(Arc::clone(&shared), line);
        Self {
            shared,
            monitor,
            _serving: Arc::new(AbortOnDropHandle::new(runtime.spawn(serving))),
            _keeping: Arc::new(AbortOnDropHandle::new(runtime.spawn(keeping))),
        }
    }
}

impl Session {
    /// Subscribes to the answers; `None` when the client has ended.
    async fn begin(line: &Line) -> Option<(Arc<Self>, Subscriber)> {
        let client = line.connection().client();
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await.ok()?;
        let session = Self {
            connection: line.connection().clone(),
            inbox,
            epoch: line.epoch(),
        };
        Some((Arc::new(session), answers))
    }

    /// Where one message is answered.
    fn inbox_of(&self, token: u64) -> String {
        format!("{}.{token}", self.inbox)
    }
}

impl Shared {
    /// What is published over now, as soon as there is a connection.
    async fn session(&self) -> Result<Arc<Session>, PublishError> {
        let mut session = self.session.subscribe();
        let session = session.wait_for(Option::is_some).await;
        let session = session.ok().and_then(|session| session.clone());
        session.ok_or_else(|| unconfirmed("the publisher ended"))
    }

    fn is_current(&self, session: &Session) -> bool {
        let current = self.session.borrow();
        current.as_ref().is_some_and(|it| it.epoch == session.epoch)
    }

    /// What broker and streams take, in bytes with headers.
    fn limit(&self) -> usize {
        let of_streams = self.max_message_size.load(Ordering::Relaxed);
        self.max_payload.load(Ordering::Relaxed).min(of_streams)
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
        let answered = timeout(CONFIRMED_WITHIN, self.publish_over_session(message)).await;
        answered.unwrap_or_else(|_| {
            // Whoever listens to digests is a responder to the broker, and never answers.
            self.is_unanswered.notify_one();
            self.is_given_up.notify_one();
            Err(unconfirmed("no answer in time"))
        })
    }

    async fn publish_over_session(&self, message: Outbound) -> Answer {
        let session = self.session().await?;
        let size = wire_size(&message);
        if size > self.limit() {
            return Err(PublishError::Refused(format!(
                "{size} bytes with headers, and {} are taken (max_payload of the broker, max_msg_size of the stream)",
                self.limit()
            )));
        }
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID_HEADER, message.id.as_str());
        for (name, value) in &message.headers {
            headers.insert(*name, value.as_str());
        }
        let (token, reply) = self.register(|_| message.subject.into());
        let _forgotten = Forget(self, token);
        if !self.is_current(&session) {
            return Err(unconfirmed("the connection was lost"));
        }
        let client = session.connection.client();
        let sent = client.publish_with_reply_and_headers(
            message.subject,
            session.inbox_of(token),
            headers,
            message.payload,
        );
        sent.await.map_err(|error| unconfirmed(error.to_string()))?;
        match reply.await {
            Ok(Reply::Ended(answer)) => answer,
            Ok(Reply::TooLarge(why)) if self.takes_less(size).await => Err(unconfirmed(why)),
            Ok(Reply::TooLarge(why)) => Err(PublishError::Refused(why)),
            Err(_) => Err(unconfirmed("the publisher ended")),
        }
    }

    /// Whether the streams, looked at again, do not take a message that was within the limit.
    async fn takes_less(&self, size: usize) -> bool {
        // Many messages are refused at once, and the first look serves them all.
        let _one = self.looking.lock().await;
        if size <= self.limit() {
            self.look_at_streams().await;
        }
        size > self.limit()
    }

    /// Reads what the streams take, and makes a stream anew that was deleted under us: else nothing more would be
    /// published until the next start.
    async fn look_at_streams(&self) {
        let (mut smallest, mut is_complete) = (usize::MAX, true);
        for target in &self.targets {
            match look_at(&self.looks, &target.stream).await {
                Some(found) => smallest = smallest.min(max_message_size(&found)),
                None => is_complete = false,
            }
        }
        if is_complete {
            self.max_message_size.store(smallest, Ordering::Relaxed);
        }
    }

    fn register(
        &self,
        subject: impl FnOnce(u64) -> Cow<'static, str>,
    ) -> (u64, oneshot::Receiver<Reply>) {
        let token = self.last_token.fetch_add(1, Ordering::Relaxed) + 1;
        let subject = subject(token);
        let (reply, receiver) = oneshot::channel();
        self.in_flight().insert(token, InFlight { subject, reply });
        (token, receiver)
    }

    /// Resolves when what was given up may still wait in the client: a message that follows it does not come back.
    async fn stuck(&self, session: &Session) {
        loop {
            self.is_given_up.notified().await;
            let echoed = timeout(ECHO_WITHIN, self.echo(session)).await;
            if !matches!(echoed, Ok(Some(_))) {
                return;
            }
        }
    }

    /// Waits for a message of our own that follows all others; `None` when the connection ended.
    async fn echo(&self, session: &Session) -> Option<Reply> {
        let (token, reply) = self.register(|token| session.inbox_of(token).into());
        let _forgotten = Forget(self, token);
        let client = session.connection.client();
        let sent = client.publish(session.inbox_of(token), Bytes::new());
        sent.await.ok()?;
        // A refusal comes back, too.
        reply.await.ok()
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
            let target = self.target(&in_flight.subject);
            in_flight.reply.send(read_reply(message, target)).ok();
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
            in_flight.reply.send(Reply::Ended(Err(error.clone()))).ok();
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
        self.shared.limit()
    }

    fn publish(&self, message: Outbound) -> BoxFuture<'static, Answer> {
        Arc::clone(&self.shared).publish(message).boxed()
    }

    fn find(
        &self,
        subject: &'static str,
        ids: HashSet<String>,
        after: u64,
        since: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>> {
        let Some(target) = self.shared.target(subject).cloned() else {
            return std::future::ready(Ok(Vec::new())).boxed();
        };
        let after = if target.is_searched_from { after } else { 0 };
        let shared = Arc::clone(&self.shared);
        async move {
            let found = find(&shared.looks, &target.stream.config.name, ids, after, since).await;
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
        let session = self.shared.session.borrow().clone();
        let sent = session.and_then(|session| {
            // It waits only while the client's bounded queue is full: then it is dropped, as telemetry may be.
            let sent = session.connection.client().publish(subject, payload);
            tokio::task::unconstrained(sent).now_or_never()
        });
        if !matches!(sent, Some(Ok(()))) {
            debug!("a message without confirmation was dropped");
        }
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        async move {
            let session = shared.session.borrow().clone();
            if let Some(session) = session {
                // Telemetry and answers that may be lost.
                drop(timeout(FLUSHED_WITHIN, shared.echo(&session)).await);
            }
        }
        .boxed()
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

/// Publishes over one connection after the other. Ends with its [`Publisher`].
async fn serve(shared: Arc<Shared>, mut line: Line) {
    loop {
        if let Some((session, answers)) = Session::begin(&line).await {
            let connection = line.connection();
            let max_payload = connection.max_payload();
            shared.max_payload.store(max_payload, Ordering::Relaxed);
            let violations = connection.violations();
            shared.session.send_replace(Some(Arc::clone(&session)));
            tokio::select! {
                () = answer_all(&shared, answers, violations) => {}
                () = connection.lost() => {}
                () = shared.stuck(&session) => {
                    warn!(within = ?ECHO_WITHIN, "the broker takes nothing more over this connection, connecting again");
                }
            }
            shared.session.send_replace(None);
            // Whoever registers from now on sees that the connection is gone.
            shared.answer_those(|_| true, &unconfirmed("the connection was lost"));
        }
        line.renew().await;
    }
}

/// Hands every answer to who waits for it, until the connection ends.
async fn answer_all(shared: &Shared, mut answers: Subscriber, mut violations: Receiver<Violation>) {
    loop {
        tokio::select! {
            biased;
            answer = answers.next() => match answer {
                Some(answer) => shared.answer(&answer),
                None => return,
            },
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

/// Looks at a stream, and makes it anew when it is gone; `None` when neither can be done now.
async fn look_at(api: &Api, wanted: &Wanted) -> Option<StreamInfo> {
    let name = &wanted.config.name;
    match api.stream(name).await {
        Ok(found) => Some(found),
        Err(ApiError::Refused {
            code: code::STREAM_NOT_FOUND,
            ..
        }) => {
            error!(stream = name, "the output stream is gone, making it anew");
            let made = ensure(api, wanted).await.inspect_err(|error| {
                warn!(stream = name, %error, "the output stream cannot be made anew yet");
            });
            made.ok()
        }
        Err(error) => {
            debug!(stream = name, %error, "the output stream cannot be looked at");
            None
        }
    }
}

/// Looks at the streams when no stream answers, and now and then. Ends with its [`Publisher`].
async fn keep_all(shared: Arc<Shared>) {
    loop {
        // Nobody says that a stream takes more again.
        drop(timeout(KEEP_INTERVAL, shared.is_unanswered.notified()).await);
        shared.looks.connection().connected().await;
        let one = shared.looking.lock().await;
        shared.look_at_streams().await;
        drop(one);
        // Many messages find one missing at once, and each is sent again.
        sleep(KEEP_PAUSE).await;
    }
}

fn read_reply(message: &Message, target: Option<&Target>) -> Reply {
    if let Some(status) = message.status {
        let why = format!("no stream takes it now ({})", status.as_u16());
        return Reply::Ended(Err(unconfirmed(why)));
    }
    let ack: PubAck = match serde_json::from_slice(&message.payload) {
        Ok(ack) => ack,
        Err(error) => {
            let why = format!("an answer that cannot be read: {error}");
            return Reply::Ended(Err(unconfirmed(why)));
        }
    };
    match &ack.error {
        None => Reply::Ended(read_confirmation(&ack, target)),
        Some(error) => match error.err_code {
            code::MESSAGE_TOO_LARGE => Reply::TooLarge(error.describe()),
            code::HEADERS_TOO_LARGE => Reply::Ended(Err(PublishError::Refused(error.describe()))),
            _ => Reply::Ended(Err(unconfirmed(error.describe()))),
        },
    }
}

fn read_confirmation(ack: &PubAck, target: Option<&Target>) -> Answer {
    match target {
        _ if ack.seq == 0 => Err(unconfirmed("an answer without a sequence")),
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
    }
}

impl PubAckError {
    fn describe(&self) -> String {
        format!("{} (error {})", self.description, self.err_code)
    }
}

fn unconfirmed(why: impl Into<String>) -> PublishError {
    PublishError::Unconfirmed(why.into())
}

/// Reads the stream once, from a sequence or an instant, whichever comes first in it, to its end as it is now.
async fn find(
    api: &Api,
    stream: &str,
    ids: HashSet<String>,
    after: u64,
    since: Timestamp,
) -> Result<Vec<(String, u64)>, PublishError> {
    let error =
        |error: &dyn std::fmt::Display| unconfirmed(format!("failed to read {stream}: {error}"));
    let info = api.stream(stream).await.map_err(|e| error(&e))?;
    if info.state.messages == 0 || ids.is_empty() {
        return Ok(Vec::new());
    }
    // Not its headers alone: nats-server 2.14 ends in a panic where it is asked for those of a block of one byte.
    let begin = async |from| Pull::create(api, stream, from).await;
    let by_time = begin(From::Time(since.minus(REWRITE_MARGIN))).await;
    let mut pull = by_time.map_err(|e| error(&e))?;
    if pull.begins_behind() > after {
        pull.delete().await;
        let by_sequence = begin(From::Sequence(after + 1)).await;
        pull = by_sequence.map_err(|e| error(&e))?;
    }
    let mut search = Search {
        ids,
        found: Vec::new(),
        read_up_to: pull.begins_behind(),
        last: info.state.last_seq,
    };
    let mut messages = Vec::new();
    // The last sequence may be that of a message that was deleted.
    let (mut is_read, mut num_idle) = (pull.was_empty(), 0);
    while !is_read {
        let is_broken = pull.take(1000, &mut messages).await.is_err();
        num_idle = if messages.is_empty() { num_idle + 1 } else { 0 };
        is_read = search.see(messages.drain(..));
        if is_read || !is_broken {
            if num_idle > MAX_IDLE {
                return Err(error(&"it shrank meanwhile"));
            }
            continue;
        }
        let is_stuck = !pull.has_yielded();
        // On the next connection it would be served with what has ended this one.
        drop(pull);
        if is_stuck {
            // What is asked on a connection that has ended gets no answer.
            api.connection().connected().await;
            let next = singles(api, stream, search.read_up_to, search.last).await;
            search.see(next.map_err(|e| error(&e))?);
        }
        let next = begin(From::Sequence(search.read_up_to + 1)).await;
        pull = next.map_err(|e| error(&e))?;
        is_read = pull.was_empty();
    }
    pull.delete().await;
    Ok(search.found)
}

/// What is looked for in a stream, and how far.
struct Search {
    ids: HashSet<String>,
    found: Vec<(String, u64)>,
    read_up_to: u64,
    last: u64,
}

impl Search {
    /// Takes the next messages; returns whether they are the last.
    fn see(&mut self, messages: impl IntoIterator<Item = Pulled>) -> bool {
        let mut is_read = false;
        for Pulled { meta, headers, .. } in messages {
            let id = headers.as_ref().and_then(|it| it.get(MESSAGE_ID_HEADER));
            if let Some(id) = id.filter(|id| self.ids.contains(read_id(id.as_str()).0)) {
                self.found.push((id.as_str().to_owned(), meta.sequence));
            }
            self.read_up_to = meta.sequence;
            is_read = meta.sequence >= self.last || meta.num_pending == 0;
        }
        is_read
    }
}
