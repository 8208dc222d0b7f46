//! Who owns the input of a server without streams: asked at start, answered from then on.
//!
//! | who hears a question of another process | what it does |
//! |---|---|
//! | the owner | answers: the asker waits and asks again |
//! | a candidate that comes first (the lower store, then the lower process) | answers too |
//! | a candidate that comes second | begins its own question anew, later |
//!
//! A candidate listens before it asks and owns the input after one window in which nobody answered and the
//! connection stood. Of two that start at once, the second hears the first's question or is heard by it, so
//! not both win. What the server does not deliver within the window cannot be known: two halves of a split
//! cluster have an owner each. From then on the claim is held for good: nothing here could expire.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{Settings, ended};
use crate::bus::connection::{Connection, jitter};
use crate::bus::wire::Owner;
use crate::bus::{BusError, Claim};
use crate::core::ids::StoreId;

/// The claim of this process, held.
pub(super) struct CoreClaim {
    _answering: Arc<AbortOnDropHandle<()>>,
}

impl CoreClaim {
    /// Asks until nobody else owns the input.
    pub(super) async fn take(
        connection: Connection,
        store: StoreId,
        settings: &Settings,
    ) -> Result<Self, BusError> {
        let runtime = connection.runtime().clone();
        let me = Owner {
            store: store.to_string(),
            instance: random_instance()?,
        };
        let client = connection.client().clone();
        let inbox = client.new_inbox();
        let subscribe = async |subject: String| {
            let subscribed = client.subscribe(subject).await;
            subscribed.map_err(|error| ended("subscribe", &error))
        };
        let mut candidate = Candidate {
            questions: subscribe(settings.owner.to_owned()).await?,
            answers: subscribe(inbox.clone()).await?,
            connection,
            subject: settings.owner,
            inbox,
            me,
        };
        let mut said = None;
        while let Some(other) = candidate.ask(settings.claim_window).await? {
            if said.as_ref() != Some(&other) {
                warn!(
                    store = other.store,
                    instance = other.instance,
                    "another store owns this input, standing by until it ends"
                );
                said = Some(other);
            }
            sleep(settings.claim_window.mul_f64(jitter(1.0, 2.0))).await;
        }
        info!(store = candidate.me.store, "this store owns the input");
        let answering = runtime.spawn(candidate.answer());
        Ok(Self {
            _answering: Arc::new(AbortOnDropHandle::new(answering)),
        })
    }
}

impl Claim for CoreClaim {
    fn is_held(&self) -> bool {
        true
    }

    fn held(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

fn random_instance() -> Result<String, BusError> {
    let number = getrandom::u64();
    let number = number.map_err(|error| {
        BusError::Unavailable(format!(
            "failed to draw a random number: {error}; try again"
        ))
    })?;
    Ok(format!("{number:016x}"))
}

struct Candidate {
    connection: Connection,
    questions: Subscriber,
    answers: Subscriber,
    subject: &'static str,
    inbox: String,
    me: Owner,
}

impl Candidate {
    /// Asks once; returns who comes before us, or nobody.
    async fn ask(&mut self, window: Duration) -> Result<Option<Owner>, BusError> {
        loop {
            let epoch = self.connection.connected().await;
            let client = self.connection.client().clone();
            client
                .publish_with_reply(self.subject, self.inbox.clone(), self.me.encode())
                .await
                .map_err(|error| ended("publish", &error))?;
            let (other, was_heard) = self.listen(&client, Instant::now() + window).await;
            if other.is_some() {
                return Ok(other);
            }
            // Our own question came back over the connection that still stands: others have heard it.
            if was_heard && self.connection.connected().await == epoch {
                return Ok(None);
            }
        }
    }

    /// Hears who comes before us until the window ends, and whether our own question was delivered.
    async fn listen(&mut self, client: &Client, until: Instant) -> (Option<Owner>, bool) {
        let mut was_heard = false;
        let window = async {
            loop {
                let other = tokio::select! {
                    Some(answer) = self.answers.next() => Owner::decode(&answer.payload),
                    Some(question) = self.questions.next() => {
                        let other = Owner::decode(&question.payload);
                        was_heard |= other.as_ref() == Some(&self.me);
                        let comes_first = other.as_ref().is_some_and(|other| *other < self.me);
                        if !comes_first && other.as_ref() != Some(&self.me) {
                            answer(client, question, &self.me).await;
                        }
                        other.filter(|_| comes_first)
                    }
                };
                if let Some(other) = other.filter(|other| *other != self.me) {
                    return other;
                }
            }
        };
        let other = timeout_at(until, window).await.ok();
        (other, was_heard)
    }

    /// Tells everybody who asks, for as long as the claim lives.
    async fn answer(mut self) {
        let client = self.connection.client().clone();
        while let Some(question) = self.questions.next().await {
            if Owner::decode(&question.payload).as_ref() != Some(&self.me) {
                answer(&client, question, &self.me).await;
            }
        }
    }
}

async fn answer(client: &Client, question: Message, me: &Owner) {
    let Some(reply) = question.reply else {
        return;
    };
    if let Err(error) = client.publish(reply, me.encode()).await {
        warn!(error = %error, "a question for the owner of the input was not answered");
    }
}
