//! Publishes over a server without streams, and confirms by echo.
//!
//! A server processes what a connection sends in order, so the echo of a message to an inbox of our own says
//! that everything published before it was processed. One echo confirms all that wait for one. Three things
//! are no confirmation: an echo over another connection than the message (what waited for the old one is lost
//! with it, see [`Line`]), an echo that does not come in time, and an echo while the server refuses the subject.
//! The client tells a refusal on another path than messages, so a short grace after the echo lets it arrive.
//! Where an echo does not come, the connection is ended with what waits in it: it was given up.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Subscriber};
use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::bus::connection::{Connection, Line, Violation};
use crate::bus::wire::{MESSAGE_ID_HEADER, message_bytes};
use crate::bus::{Confirmation, Outbound, Output, PublishError};
use crate::core::time::Timestamp;

/// How many publishes one echo confirms at most.
const MAX_BATCH: usize = 1024;
/// How many answers and telemetry messages wait; more are dropped.
const MAX_UNSENT: usize = 1 << 16;
/// How long an echo is waited for before the connection is ended; whoever published has given up before.
const ECHO_WITHIN: Duration = Duration::from_secs(20);
/// How long after an echo a refusal may still be told by the client.
const GRACE: Duration = Duration::from_millis(10);

/// What waits to be sent without a confirmation.
enum Unsent {
    Message(String, Bytes),
    /// Answered when everything before it was given to the client.
    Mark(oneshot::Sender<()>),
}

/// Where digests, dead letters, answers and telemetry go.
pub(super) struct CoreOutput {
    shared: Arc<Shared>,
    confirm_within: Duration,
    _serving: AbortOnDropHandle<()>,
}

struct Shared {
    /// What is published over; `None` while there is no connection.
    session: watch::Sender<Option<Session>>,
    /// What the server took when it was connected last, in bytes.
    max_payload: AtomicUsize,
    confirmations: mpsc::Sender<Waiter>,
    unsent: mpsc::Sender<Unsent>,
}

/// One connection, and its number.
#[derive(Clone)]
struct Session {
    connection: Connection,
    epoch: u64,
}

impl CoreOutput {
    pub(super) fn new(line: Line, confirm_within: Duration) -> Self {
        let (confirmations, waiters) = mpsc::channel(MAX_BATCH);
        let (unsent, to_send) = mpsc::channel(MAX_UNSENT);
        let shared = Arc::new(Shared {
            session: watch::Sender::new(None),
            max_payload: AtomicUsize::new(line.connection().max_payload()),
            confirmations,
            unsent,
        });
        let runtime = line.runtime().clone();
        let serving = serve(Arc::clone(&shared), line, waiters, to_send);
        Self {
            shared,
            confirm_within,
            _serving: AbortOnDropHandle::new(runtime.spawn(serving)),
        }
    }
}

/// Publishes over one connection after the other. Ends with its [`CoreOutput`].
async fn serve(
    shared: Arc<Shared>,
    mut line: Line,
    mut waiters: mpsc::Receiver<Waiter>,
    mut to_send: mpsc::Receiver<Unsent>,
) {
    loop {
        let session = Session {
            connection: line.connection().clone(),
            epoch: line.epoch(),
        };
        if let Some(echo) = Echo::begin(session.clone()).await {
            let max_payload = session.connection.max_payload();
            shared.max_payload.store(max_payload, Ordering::Relaxed);
            shared.session.send_replace(Some(session.clone()));
            tokio::select! {
                () = session.connection.lost() => {}
                () = echo.run(&mut waiters) => {
                    warn!("the server echoes nothing over this connection, connecting again");
                }
                () = send_all(&session, &mut to_send) => {}
            }
            shared.session.send_replace(None);
        }
        line.renew().await;
    }
}

impl Shared {
    /// Waits for an echo over the connection over which something was published.
    async fn confirmed(
        &self,
        subject: &'static str,
        session: &Session,
        started: Instant,
    ) -> Result<Confirmation, PublishError> {
        let (done, confirmed) = oneshot::channel();
        let waiter = Waiter {
            subject,
            epoch: session.epoch,
            started,
            done,
        };
        let is_given = self.confirmations.send(waiter).await;
        is_given.map_err(|_| unconfirmed("the output ended"))?;
        let confirmed = confirmed.await;
        confirmed.map_err(|_| unconfirmed("the connection was lost meanwhile"))?
    }

    /// What is published over now, as soon as there is a connection.
    async fn session(&self) -> Result<Session, PublishError> {
        let mut session = self.session.subscribe();
        let session = session.wait_for(Option::is_some).await;
        let session = session.ok().and_then(|session| session.clone());
        session.ok_or_else(|| unconfirmed("the output ended"))
    }
}

impl Output for CoreOutput {
    fn max_payload(&self) -> usize {
        self.shared.max_payload.load(Ordering::Relaxed)
    }

    fn publish(&self, message: Outbound) -> BoxFuture<'static, Result<Confirmation, PublishError>> {
        let deadline = Instant::now() + self.confirm_within;
        let publishing = publish(Arc::clone(&self.shared), message);
        let bounded = timeout_at(deadline, publishing);
        let result = bounded.map(|result| result.unwrap_or_else(|_| Err(unconfirmed("no echo"))));
        result.boxed()
    }

    fn find(
        &self,
        _: &'static str,
        _: HashSet<String>,
        _: u64,
        _: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn send(&self, subject: String, payload: Bytes) {
        let message = Unsent::Message(subject, payload);
        if let Err(error) = self.shared.unsent.try_send(message)
            && let Unsent::Message(subject, _) = error.into_inner()
        {
            warn!(
                subject,
                "an answer or telemetry was dropped: too many wait for the broker"
            );
        }
    }

    fn flush(&self) -> BoxFuture<'static, ()> {
        let deadline = Instant::now() + self.confirm_within;
        let flushing = flush(Arc::clone(&self.shared));
        timeout_at(deadline, flushing)
            .map(|flushed| {
                if !matches!(flushed, Ok(Ok(_))) {
                    warn!(
                        "the last answers may not have been sent: the broker does not confirm them"
                    );
                }
            })
            .boxed()
    }
}

/// Sends what needs no confirmation.
async fn send_all(session: &Session, to_send: &mut mpsc::Receiver<Unsent>) {
    while let Some(unsent) = to_send.recv().await {
        let (subject, payload) = match unsent {
            Unsent::Message(subject, payload) => (subject, payload),
            Unsent::Mark(reached) => {
                // Whoever waited may have given up.
                reached.send(()).ok();
                continue;
            }
        };
        let client = session.connection.client();
        if let Err(error) = client.publish(subject, payload).await {
            warn!(error = %error, "an answer or telemetry was not sent");
        }
    }
}

/// Waits for an echo sent after everything that waits.
async fn flush(shared: Arc<Shared>) -> Result<Confirmation, PublishError> {
    let (reached, is_given) = oneshot::channel();
    let is_ended = |_| unconfirmed("the output ended");
    let mark = shared.unsent.send(Unsent::Mark(reached)).await;
    mark.map_err(|_| unconfirmed("the output ended"))?;
    is_given.await.map_err(is_ended)?;
    let session = shared.session().await?;
    shared.confirmed("", &session, Instant::now()).await
}

async fn publish(shared: Arc<Shared>, message: Outbound) -> Result<Confirmation, PublishError> {
    let session = shared.session().await?;
    let max_payload = session.connection.max_payload();
    let size = message_bytes(&message);
    if size > max_payload {
        return Err(PublishError::Refused(format!(
            "{size} bytes with headers, the broker takes {max_payload}"
        )));
    }
    let subject = message.subject;
    let headers = headers(&message)?;
    let started = Instant::now();
    let client = session.connection.client();
    client
        .publish_with_headers(subject, headers, message.payload)
        .await
        .map_err(|error| unconfirmed(&error.to_string()))?;
    shared.confirmed(subject, &session, started).await
}

fn headers(message: &Outbound) -> Result<HeaderMap, PublishError> {
    let value = |text: &str| {
        HeaderValue::from_str(text)
            .map_err(|error| PublishError::Refused(format!("a header cannot be sent: {error}")))
    };
    let mut headers = HeaderMap::new();
    headers.insert(MESSAGE_ID_HEADER, value(&message.id)?);
    for (name, text) in &message.headers {
        headers.insert(*name, value(text)?);
    }
    Ok(headers)
}

fn unconfirmed(why: &str) -> PublishError {
    PublishError::Unconfirmed(why.to_owned())
}

/// One publish that waits for an echo sent after it.
struct Waiter {
    subject: &'static str,
    /// The connection over which it was published.
    epoch: u64,
    started: Instant,
    done: oneshot::Sender<Result<Confirmation, PublishError>>,
}

/// Sends echoes, one at a time, each for all that wait.
struct Echo {
    session: Session,
    inbox: String,
    echoes: Subscriber,
    violations: Receiver<Violation>,
    /// When each subject was last refused.
    refused: HashMap<String, Instant>,
    number: u64,
}

impl Echo {
    /// Subscribes to the echoes; `None` when the client has ended.
    async fn begin(session: Session) -> Option<Self> {
        let client = session.connection.client();
        let inbox = client.new_inbox();
        let echoes = client.subscribe(inbox.clone()).await.ok()?;
        let violations = session.connection.violations();
        Some(Self {
            session,
            inbox,
            echoes,
            violations,
            refused: HashMap::new(),
            number: 0,
        })
    }

    /// Confirms for as long as echoes come.
    async fn run(mut self, waiters: &mut mpsc::Receiver<Waiter>) {
        let mut batch = Vec::new();
        while waiters.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let echoed = self.echo().await;
            let is_complete = echoed.is_ok() && self.see_violations().await;
            for waiter in batch.drain(..) {
                let result = match &echoed {
                    _ if self.is_refused(&waiter) => Err(PublishError::Refused(format!(
                        "the broker does not let us publish to {}; grant it",
                        waiter.subject
                    ))),
                    Err(error) => Err(error.clone()),
                    Ok(()) if waiter.epoch != self.session.epoch => {
                        Err(unconfirmed("the connection was lost meanwhile"))
                    }
                    Ok(()) if !is_complete => Err(unconfirmed("too many refusals to read")),
                    Ok(()) => Ok(Confirmation {
                        sequence: None,
                        is_duplicate: false,
                    }),
                };
                // Whoever waited may have given up.
                drop(waiter.done.send(result));
            }
            if echoed.is_err() {
                return;
            }
        }
    }

    async fn echo(&mut self) -> Result<(), PublishError> {
        self.number += 1;
        let number = self.number.to_be_bytes();
        let echo = async {
            let payload = Bytes::copy_from_slice(&number);
            let client = self.session.connection.client();
            client
                .publish(self.inbox.clone(), payload)
                .await
                .map_err(|error| unconfirmed(&error.to_string()))?;
            while let Some(message) = self.echoes.next().await {
                if *message.payload == number {
                    return Ok(());
                }
            }
            Err(unconfirmed("the connection ended"))
        };
        timeout(ECHO_WITHIN, echo)
            .await
            .unwrap_or_else(|_| Err(unconfirmed("no echo")))
    }

    /// Hears what is refused for a while; `false` when some of it was missed.
    async fn see_violations(&mut self) -> bool {
        let until = Instant::now() + GRACE;
        let mut is_complete = true;
        loop {
            match timeout_at(until, self.violations.recv()).await {
                Ok(Ok(Violation::Publish(subject))) => {
                    self.refused.insert(subject, Instant::now());
                }
                Ok(Ok(Violation::Subscribe(_))) => {}
                Ok(Err(RecvError::Lagged(_))) => is_complete = false,
                Ok(Err(RecvError::Closed)) | Err(_) => return is_complete,
            }
        }
    }

    fn is_refused(&self, waiter: &Waiter) -> bool {
        let refused = self.refused.get(waiter.subject);
        refused.is_some_and(|&at| at >= waiter.started)
    }
}
