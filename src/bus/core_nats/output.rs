//! Publishes over a server without streams, and confirms by echo.
//!
//! A server processes what a connection sends in order, so the echo of a message to an inbox of our own says
//! that everything published before it was processed. One echo confirms all that wait for one. Three things
//! are no confirmation: an echo over another connection than the message (what was buffered for the old one
//! is lost), an echo that does not come in time, and an echo while the server refuses the subject. The client
//! tells a refusal on another path than messages, so a short grace after the echo lets it arrive.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::{Client, HeaderMap, HeaderValue, Subscriber};
use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::ended;
use crate::bus::connection::{Connection, Violation};
use crate::bus::wire::{MESSAGE_ID_HEADER, message_bytes};
use crate::bus::{BusError, Confirmation, Outbound, Output, PublishError};

/// How many publishes one echo confirms at most.
const MAX_BATCH: usize = 1024;
/// How many answers and telemetry messages wait; more are dropped.
const MAX_UNSENT: usize = 1 << 16;
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
    connection: Connection,
    confirm_within: Duration,
    confirmations: mpsc::Sender<Waiter>,
    unsent: mpsc::Sender<Unsent>,
    _tasks: Arc<[AbortOnDropHandle<()>; 2]>,
}

impl CoreOutput {
    pub(super) async fn open(
        connection: &Connection,
        confirm_within: Duration,
    ) -> Result<Self, BusError> {
        let client = connection.client();
        let inbox = client.new_inbox();
        let violations = connection.violations();
        let echoes = client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| ended("subscribe", &error))?;
        let (confirmations, waiters) = mpsc::channel(MAX_BATCH);
        let (unsent, to_send) = mpsc::channel(MAX_UNSENT);
        let echo = Echo {
            client: client.clone(),
            inbox,
            echoes,
            violations,
            refused: HashMap::new(),
            number: 0,
        };
        let runtime = connection.runtime();
        let tasks = [
            AbortOnDropHandle::new(runtime.spawn(echo.run(waiters))),
            AbortOnDropHandle::new(runtime.spawn(send_all(client.clone(), to_send))),
        ];
        Ok(Self {
            connection: connection.clone(),
            confirm_within,
            confirmations,
            unsent,
            _tasks: Arc::new(tasks),
        })
    }
}

impl Output for CoreOutput {
    fn max_payload(&self) -> usize {
        self.connection.max_payload()
    }

    fn publish(&self, message: Outbound) -> BoxFuture<'static, Result<Confirmation, PublishError>> {
        let deadline = Instant::now() + self.confirm_within;
        let publishing = publish(
            self.connection.clone(),
            self.confirmations.clone(),
            message,
            deadline,
        );
        let bounded = timeout_at(deadline, publishing);
        let result = bounded.map(|result| result.unwrap_or_else(|_| Err(unconfirmed("no echo"))));
        result.boxed()
    }

    fn find(
        &self,
        _: &'static str,
        _: HashSet<String>,
        _: u64,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>> {
        ready(Ok(Vec::new())).boxed()
    }

    fn send(&self, subject: String, payload: Bytes) {
        let message = Unsent::Message(subject, payload);
        if let Err(error) = self.unsent.try_send(message)
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
        let flushing = flush(
            self.connection.clone(),
            self.unsent.clone(),
            self.confirmations.clone(),
            deadline,
        );
        timeout_at(deadline, flushing)
            .map(|flushed| {
                if !matches!(flushed, Ok(Some(Ok(_)))) {
                    warn!(
                        "the last answers may not have been sent: the broker does not confirm them"
                    );
                }
            })
            .boxed()
    }
}

async fn send_all(client: Client, mut to_send: mpsc::Receiver<Unsent>) {
    while let Some(unsent) = to_send.recv().await {
        let (subject, payload) = match unsent {
            Unsent::Message(subject, payload) => (subject, payload),
            Unsent::Mark(reached) => {
                // Whoever waited may have given up.
                reached.send(()).ok();
                continue;
            }
        };
        if let Err(error) = client.publish(subject, payload).await {
            warn!(error = %error, "an answer or telemetry was not sent");
        }
    }
}

/// Waits for an echo sent after everything that waits; `None` when the output ended.
async fn flush(
    connection: Connection,
    unsent: mpsc::Sender<Unsent>,
    confirmations: mpsc::Sender<Waiter>,
    deadline: Instant,
) -> Option<Result<Confirmation, PublishError>> {
    let (reached, is_given) = oneshot::channel();
    unsent.send(Unsent::Mark(reached)).await.ok()?;
    is_given.await.ok()?;
    let (done, confirmed) = oneshot::channel();
    let waiter = Waiter {
        subject: "",
        connects: num_connects(connection.client()),
        started: Instant::now(),
        deadline,
        done,
    };
    confirmations.send(waiter).await.ok()?;
    confirmed.await.ok()
}

async fn publish(
    connection: Connection,
    confirmations: mpsc::Sender<Waiter>,
    message: Outbound,
    deadline: Instant,
) -> Result<Confirmation, PublishError> {
    connection.connected().await;
    let max_payload = connection.max_payload();
    let size = message_bytes(&message);
    if size > max_payload {
        return Err(PublishError::Refused(format!(
            "{size} bytes with headers, the broker takes {max_payload}"
        )));
    }
    let subject = message.subject;
    let headers = headers(&message)?;
    let client = connection.client();
    let connects = num_connects(client);
    let started = Instant::now();
    client
        .publish_with_headers(subject, headers, message.payload)
        .await
        .map_err(|error| unconfirmed(&error.to_string()))?;
    let (done, confirmed) = oneshot::channel();
    let waiter = Waiter {
        subject,
        connects,
        started,
        deadline,
        done,
    };
    let is_ended = |_| unconfirmed("the output ended");
    confirmations
        .send(waiter)
        .await
        .map_err(|_| unconfirmed("the output ended"))?;
    confirmed.await.map_err(is_ended)?
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

fn num_connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Acquire)
}

fn unconfirmed(why: &str) -> PublishError {
    PublishError::Unconfirmed(why.to_owned())
}

/// One publish that waits for an echo sent after it.
struct Waiter {
    subject: &'static str,
    /// How often there had been a connection before it was published.
    connects: u64,
    started: Instant,
    deadline: Instant,
    done: oneshot::Sender<Result<Confirmation, PublishError>>,
}

/// Sends echoes, one at a time, each for all that wait.
struct Echo {
    client: Client,
    inbox: String,
    echoes: Subscriber,
    violations: Receiver<Violation>,
    /// When each subject was last refused.
    refused: HashMap<String, Instant>,
    number: u64,
}

impl Echo {
    async fn run(mut self, mut waiters: mpsc::Receiver<Waiter>) {
        let mut batch = Vec::new();
        while waiters.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let echoed = self.echo(&batch).await;
            let connects = num_connects(&self.client);
            let is_complete = echoed.is_ok() && self.see_violations().await;
            for waiter in batch.drain(..) {
                let result = match &echoed {
                    _ if self.is_refused(&waiter) => Err(PublishError::Refused(format!(
                        "the broker does not let us publish to {}; grant it",
                        waiter.subject
                    ))),
                    Err(error) => Err(error.clone()),
                    Ok(()) if waiter.connects != connects => {
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
        }
    }

    async fn echo(&mut self, batch: &[Waiter]) -> Result<(), PublishError> {
        self.number += 1;
        let number = self.number.to_be_bytes();
        let deadlines = batch.iter().map(|waiter| waiter.deadline);
        let deadline = deadlines.max().unwrap_or_else(Instant::now);
        let echo = async {
            let payload = Bytes::copy_from_slice(&number);
            self.client
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
        timeout_at(deadline, echo)
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
