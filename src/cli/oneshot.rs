//! What the client commands share: where the broker is, one connection to it, a message and what becomes of it.

use std::fs;
use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use async_nats::client::{Request, RequestErrorKind};
use async_nats::{HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures::future::Either;
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::arguments::ClientArgs;
use super::{Exit, Failure};
use crate::app::broker::{claim_stream, login};
use crate::app::up::URL_FILE;
use crate::bus::BusError;
use crate::bus::connection::{Connection, Connector, Violation};
use crate::bus::jetstream::{Holder, holder};
use crate::bus::wire::{self, Joined, Joiner};
use crate::config::{Config, Nats};
use crate::core::ids::UserId;
use crate::domains::Command;

/// Messages that a client command holds before it reads them.
pub(super) const SUBSCRIPTION_CAPACITY: usize = 65_536;
/// How long a digest is waited for once the daemon has committed its request. It is published at once, so this is
/// far longer than it takes; a daemon that owes thousands of digests may take longer.
const DIGEST_WITHIN: Duration = Duration::from_secs(1);

/// How long a daemon has to refuse what the stream keeps.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long an echo is waited for.
const ECHO_WITHIN: Duration = Duration::from_secs(1);
/// How much later than an echo a refusal may be heard.
const REFUSAL_GRACE: Duration = Duration::from_millis(20);

impl From<BusError> for Failure {
    fn from(error: BusError) -> Self {
        let exit = match &error {
            BusError::Unavailable(_) => Exit::Unreachable,
            BusError::Configuration(_) => Exit::Unusable,
        };
        Self::new(exit, &error)
    }
}

/// Connects to the server that is named, else to that of the `up` that runs in this folder.
pub(super) async fn connect(args: &ClientArgs) -> Result<Connection, Failure> {
    connect_with(args, SUBSCRIPTION_CAPACITY).await
}

/// The same, where each subscription holds so many messages before they are read.
pub(super) async fn connect_with(
    args: &ClientArgs,
    capacity: usize,
) -> Result<Connection, Failure> {
    let mut sources = args.config.clone().into_sources();
    let named = args.url.as_ref().map(|url| format!("nats.url={url}"));
    sources.sets.extend(named);
    let mut loaded = Config::load(&sources)?;
    let of_up = args.data.join(URL_FILE);
    if !loaded.is_named("nats.url")
        && let Ok(url) = fs::read_to_string(of_up)
    {
        sources.sets.push(format!("nats.url={url}"));
        loaded = Config::load(&sources)?;
    }
    connect_to(&loaded.config.nats, args.timeout, capacity).await
}

/// Connects to the server that the configuration names.
pub(super) async fn connect_to(
    nats: &Nats,
    limit: Duration,
    capacity: usize,
) -> Result<Connection, Failure> {
    let connector = Connector::new(login(nats), Handle::current());
    let connecting = connector.connect_within(limit, "client", capacity);
    Ok(connecting.await?)
}

/// Listens to a subject, once it is sure that the broker lets us.
///
/// # Errors
/// When our user may not.
pub(super) async fn subscribe(
    connection: &Connection,
    subject: &str,
) -> Result<Subscriber, Failure> {
    let mut violations = connection.violations();
    let subscriber = listen(connection, subject).await?;
    // What the broker says of the subscription comes before an echo, or before the refusal of one.
    let inbox = connection.client().new_inbox();
    let mut echo = listen(connection, &inbox).await?;
    let sent = connection.client().publish(inbox.clone(), Bytes::new());
    sent.await.map_err(|error| unheard(subject, &error))?;
    let refusal = async {
        loop {
            match violations.recv().await {
                Ok(Violation::Subscribe(it)) if it == subject => return true,
                Ok(Violation::Publish(it)) if it == inbox => return false,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    let echoed = async {
        timeout(ECHO_WITHIN, echo.next()).await.ok();
        // The client tells of refusals by another way than of messages.
        sleep(REFUSAL_GRACE).await;
    };
    let is_refused = tokio::select! {
        biased;
        is_refused = refusal => is_refused,
        () = echoed => false,
    };
    if is_refused {
        let violation = Violation::Subscribe(subject.to_owned());
        let line = format!("{violation}; grant it, as config/nats.conf does, or log in as another");
        return Err(Failure::new(Exit::Unusable, &line));
    }
    Ok(subscriber)
}

async fn listen(connection: &Connection, subject: &str) -> Result<Subscriber, Failure> {
    let listening = connection.client().subscribe(subject.to_owned()).await;
    listening.map_err(|error| unheard(subject, &error))
}

fn unheard(subject: &str, error: &dyn std::fmt::Display) -> Failure {
    let line = format!("failed to listen on {subject}: {error}");
    Failure::new(Exit::Unreachable, &line)
}

/// Who took a message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum TakenBy {
    /// The stream, under this sequence: the daemon reads it from there.
    Stream {
        /// Its sequence in the stream.
        sequence: u64,
    },
    /// The daemon, which has committed it.
    Daemon,
}

/// Publishes and waits until it is kept: by the stream, or by the daemon. A refused message is a failure; where the
/// stream keeps it, a daemon that runs has a moment to say so.
pub(super) async fn publish(
    connection: &Connection,
    (subject, payload): (&'static str, Bytes),
    limit: Duration,
) -> Result<(), Failure> {
    let inbox = connection.client().new_inbox();
    let mut answers = listen(connection, &inbox).await?;
    let taken = send(connection, (subject, payload), Some(&inbox), limit).await?;
    match taken.map_err(|why| refused(subject, &why))? {
        TakenBy::Daemon => Ok(()),
        TakenBy::Stream { .. } => {
            let answer = timeout(ANSWER_WITHIN.min(limit), answers.next()).await;
            let answer = answer.ok().flatten();
            match answer.and_then(|message| wire::decode_reply(&message.payload)) {
                Some(Err(why)) => Err(refused(subject, &why)),
                Some(Ok(())) | None => Ok(()),
            }
        }
    }
}

/// Publishes and waits for whoever answers, the stream or the daemon; in the inner result stands why it was refused.
///
/// `reply_to` is where the daemon answers what it reads from the stream.
pub(super) async fn send(
    connection: &Connection,
    (subject, payload): (&'static str, Bytes),
    reply_to: Option<&str>,
    limit: Duration,
) -> Result<Result<TakenBy, String>, Failure> {
    let unreachable = |why: String| Failure::new(Exit::Unreachable, &why);
    let mut request = Request::new().payload(payload).timeout(Some(limit));
    if let Some(inbox) = reply_to {
        let mut headers = HeaderMap::new();
        headers.insert(wire::REPLY_TO_HEADER, inbox);
        request = request.headers(headers);
    }
    let answered = connection.client().send_request(subject, request).await;
    let answer = answered.map_err(|error| {
        unreachable(match error.kind() {
            RequestErrorKind::NoResponders => {
                format!("nobody takes messages on {subject}; start the daemon (tocsin up)")
            }
            RequestErrorKind::TimedOut => {
                format!("no answer on {subject} within {limit:?}; is the daemon running?")
            }
            RequestErrorKind::InvalidSubject
            | RequestErrorKind::MaxPayloadExceeded
            | RequestErrorKind::Other => format!("failed to publish on {subject}: {error}"),
        })
    })?;
    if let Some(reply) = wire::decode_reply(&answer.payload) {
        return Ok(reply.map(|()| TakenBy::Daemon));
    }
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    Ok(
        if let Some(sequence) = answer.get("seq").and_then(Value::as_u64) {
            Ok(TakenBy::Stream { sequence })
        } else {
            let why = answer.pointer("/error/description").and_then(Value::as_str);
            Err(why.map_or_else(|| answer.to_string(), str::to_owned))
        },
    )
}

fn refused(subject: &str, why: &str) -> Failure {
    let line = format!("the message on {subject} was refused: {why}");
    Failure::new(Exit::NotTaken, &line)
}

/// Gives a message to a joiner, with what its headers say; `None` for junk, and for a part of several.
pub(super) fn join(
    joiner: &mut Joiner,
    headers: Option<&HeaderMap>,
    payload: Bytes,
) -> Option<Joined> {
    let header = |name: &str| Some(headers?.get(name)?.as_str());
    let whole = joiner.take(
        header(wire::MESSAGE_ID_HEADER),
        header(wire::PART_HEADER),
        payload,
    );
    whole.ok().flatten()
}

/// Asks for a user's digest; `None` when the daemon has taken the request and nothing is new.
///
/// # Errors
/// When nobody takes the request, or no daemon answers it within the limit.
pub(super) async fn ask(
    connection: &Connection,
    user: &UserId,
    limit: Duration,
) -> Result<Option<Joined>, Failure> {
    let until = Instant::now() + limit;
    // One connection: the server knows of the subscriptions before it sees the request.
    let mut digests = subscribe(connection, wire::DIGEST).await?;
    let inbox = connection.client().new_inbox();
    let mut answers = listen(connection, &inbox).await?;
    let request = wire::encode_command(&Command::SendDigest { user: user.clone() });
    let subject = request.0;
    let taken = send(connection, request, Some(&inbox), limit).await?;
    let taken = taken.map_err(|why| refused(subject, &why))?;
    let sequence = match taken {
        TakenBy::Stream { sequence } => Some(sequence),
        TakenBy::Daemon => None,
    };
    let mut coming = pin!(next_of(&mut digests, user, sequence));
    if sequence.is_some() {
        let answered = answer(&mut answers, subject, connection, until);
        tokio::select! {
            biased;
            digest = &mut coming => return Ok(Some(digest)),
            answered = answered => answered?,
        }
    }
    let within = Instant::now() + DIGEST_WITHIN.min(limit);
    Ok(tokio::select! {
        biased;
        digest = coming => Some(digest),
        () = sleep_until(within) => None,
    })
}

/// The next whole digest of a user; where the request has a sequence, that which answers it: an earlier request's may
/// still be on its way.
async fn next_of(digests: &mut Subscriber, user: &UserId, sequence: Option<u64>) -> Joined {
    let mut joiner = Joiner::default();
    let is_answer = |id: Option<&str>| match (id, sequence) {
        (Some(id), Some(sequence)) => id.starts_with(&format!("{sequence}-")),
        // Of a service that gives its digests no id, or none that names a request.
        (None, _) | (_, None) => true,
    };
    while let Some(message) = digests.next().await {
        let Message {
            headers, payload, ..
        } = message;
        if let Some(joined) = join(&mut joiner, headers.as_ref(), payload)
            && joined.digest.user == *user
            && is_answer(joined.id.as_deref())
        {
            return joined;
        }
    }
    // The subscription ends with the connection, which the caller holds.
    std::future::pending().await
}

/// Waits for the daemon to commit what the stream took; a failure says what is known of the daemon.
async fn answer(
    answers: &mut Subscriber,
    subject: &str,
    connection: &Connection,
    until: Instant,
) -> Result<(), Failure> {
    let claim = claim_stream();
    let answered = answers.next().map(|message| {
        let reply = message.and_then(|message| wire::decode_reply(&message.payload));
        reply.unwrap_or(Ok(()))
    });
    let mut answered = pin!(answered);
    let found = holder(connection, &claim).await;
    let is_nobody = matches!(found, Ok(Holder::Nobody));
    let waiting = if is_nobody {
        Either::Left(ready(()))
    } else {
        Either::Right(sleep_until(until))
    };
    tokio::select! {
        biased;
        reply = &mut answered => return reply.map_err(|why| refused(subject, &why)),
        () = waiting => {}
    }
    let found = if is_nobody {
        found
    } else {
        holder(connection, &claim).await
    };
    let (what, when) = match found? {
        Holder::Nobody => (
            "no daemon is running".to_owned(),
            "when one starts (tocsin up)",
        ),
        Holder::Alive { process } => (
            format!("the daemon ({process}) has not come to the request in time"),
            "when it does",
        ),
        Holder::Silent { process } => (
            format!("the daemon ({process}) ended or stands still"),
            "when one runs again (tocsin up)",
        ),
    };
    let stream = wire::INPUT_STREAM;
    let line = format!("{what}; the request is kept in stream {stream} and answered {when}");
    Err(Failure::new(Exit::Unreachable, &line))
}
