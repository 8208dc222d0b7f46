//! The claim: which store reads the input and publishes for it, in a stream of one message.
//!
//! | the claim in the stream | what a store does |
//! |---|---|
//! | none, or given back | takes it; where another's was seen and is gone, after its time |
//! | no stream | makes it anew |
//! | its own, of an earlier process | takes it at once |
//! | its own, older than one of another that was seen | waits its time: the stream was rolled back, and the other may not know yet |
//! | of another store, or of another process that took it from this one | waits until it was not renewed for its time, then takes it |
//! | its own | renews it |
//!
//! Every step is a compare-and-set on the message's sequence: of two that try, one succeeds. No two clocks are
//! ever compared: who waits counts from the instant it first saw a claim, which is after it was written; who
//! holds counts from the instant before it sent its last renewal, and stops a margin earlier. Both count time
//! in which the machine slept. The fence against a late writer is the store's epoch, never this claim.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::client::Request;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::system::uname;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::ClaimStream;
use super::api::{Api, ApiError, code, no_answer};
use super::streams::{Wanted, ensure};
use crate::bus::connection::{Connection, jitter};
use crate::bus::{BusError, Claim, steady_clock};
use crate::core::ids::StoreId;

/// How long a claim lasts without a renewal.
pub const TTL: Duration = Duration::from_secs(10);
/// How long giving it back may take.
const GIVE_BACK_WITHIN: Duration = Duration::from_secs(2);
/// The broker takes a claim only over the one of this sequence.
const EXPECTED_SEQUENCE_HEADER: &str = "Nats-Expected-Last-Subject-Sequence";

/// Where the claim is, and for how long it lasts.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) stream: Wanted,
    pub(super) subject: String,
    pub(super) ttl: Duration,
}

impl Place {
    fn name(&self) -> &str {
        &self.stream.config.name
    }

    fn renew_every(&self) -> Duration {
        self.ttl.mul_f64(0.3)
    }

    /// A holder stops that much earlier than anybody may take its claim.
    fn margin(&self) -> Duration {
        self.ttl / 5
    }
}

#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
struct Owner {
    store: String,
    /// Tells two processes with one store apart.
    instance: String,
    host: String,
    pid: u32,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_given_back: bool,
}

impl Owner {
    fn this_process(store: StoreId) -> Self {
        // Not from /proc: a sandbox may hide it.
        let host = uname().nodename().to_string_lossy().into_owned();
        Self {
            store: store.to_string(),
            instance: format!(
                "{:016x}",
                getrandom::u64().expect("the system has random bytes")
            ),
            host,
            pid: std::process::id(),
            is_given_back: false,
        }
    }
}

#[derive(Deserialize)]
struct Taken {
    #[serde(default)]
    seq: u64,
    error: Option<NotTaken>,
}

#[derive(Deserialize)]
struct NotTaken {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Who holds the input of a server with streams, seen from outside.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// Nobody: it was never claimed, or given back.
    Nobody,
    /// A process that renews its claim.
    Alive {
        /// The process, and where it runs: `process 17 on host`.
        process: String,
    },
    /// A process that has not renewed its claim when it should have: it ended, stands still or has lost the broker.
    Silent {
        /// The process, and where it runs: `process 17 on host`.
        process: String,
    },
}

/// Looks at the claim. Its age is that by the broker's own clock.
///
/// # Errors
/// [`BusError::Unavailable`] when the broker does not answer.
pub async fn holder(connection: &Connection, claim: &ClaimStream) -> Result<Holder, BusError> {
    let api = Api::new(connection.clone());
    let unavailable = |error: ApiError| {
        let name = &claim.name;
        BusError::Unavailable(format!("failed to look at the claim in {name}: {error}"))
    };
    let found = match api.last_message(&claim.name, &claim.subject).await {
        Err(ApiError::Refused {
            code: code::STREAM_NOT_FOUND,
            ..
        }) => None,
        found => found.map_err(unavailable)?,
    };
    let Some(message) = found else {
        return Ok(Holder::Nobody);
    };
    let owner = serde_json::from_slice(&message.payload);
    let owner: Owner = owner.map_err(|error| unavailable(no_answer(error)))?;
    if owner.is_given_back {
        return Ok(Holder::Nobody);
    }
    let process = format!("process {} on {}", owner.pid, owner.host);
    // An older server does not tell its time.
    let now = api.stream(&claim.name).await.map_err(unavailable)?.now;
    let age = now.map_or(Duration::ZERO, |now| now.since(message.timestamp));
    Ok(if age < claim.ttl / 2 {
        Holder::Alive { process }
    } else {
        Holder::Silent { process }
    })
}

/// A claim that is renewed in the background for as long as this lives, and given back when it is dropped.
pub(super) struct StreamClaim {
    held_until: watch::Receiver<Duration>,
    is_over: Arc<Notify>,
    _renewing: AbortOnDropHandle<()>,
}

impl StreamClaim {
    /// Begins to take the claim, and then to renew it.
    pub(super) fn start(api: Api, place: Place, store: StoreId) -> Self {
        let (held_in, held_until) = watch::channel(Duration::ZERO);
        let is_over = Arc::<Notify>::default();
        let runtime = api.connection().runtime().clone();
        let claimant = Claimant {
            api,
            place,
            us: Owner::this_process(store),
            held_until: held_in,
            ours: None,
            was_held: false,
            rival: None,
            said: None,
        };
        Self {
            held_until,
            _renewing: AbortOnDropHandle::new(runtime.spawn(claimant.run(Arc::clone(&is_over)))),
            is_over,
        }
    }
}

impl Claim for StreamClaim {
    fn is_held(&self) -> bool {
        steady_clock() < *self.held_until.borrow()
    }

    fn held(&self) -> BoxFuture<'static, ()> {
        let mut held_until = self.held_until.clone();
        async move {
            if held_until
                .wait_for(|until| steady_clock() < *until)
                .await
                .is_err()
            {
                // The claim was given back: whoever waits for it would else ask again at once, and for ever.
                std::future::pending::<()>().await;
            }
        }
        .boxed()
    }

    fn give_back(&self) -> BoxFuture<'static, ()> {
        self.is_over.notify_one();
        let mut held_until = self.held_until.clone();
        let given_back = async move { while held_until.changed().await.is_ok() {} };
        // Without it the next one waits for the claim's time.
        timeout(GIVE_BACK_WITHIN, given_back).map(drop).boxed()
    }
}

/// A claim of another, and since when it is seen unchanged.
#[derive(Debug)]
struct Rival {
    sequence: u64,
    seen_at: Duration,
}

struct Claimant {
    api: Api,
    place: Place,
    us: Owner,
    held_until: watch::Sender<Duration>,
    /// The sequence of our claim.
    ours: Option<u64>,
    /// A process that lost its claim to another of the same store does not take it back at once: two would
    /// take it from each other for ever.
    was_held: bool,
    rival: Option<Rival>,
    said: Option<String>,
}

impl Claimant {
    async fn run(mut self, is_over: Arc<Notify>) {
        tokio::select! {
            () = self.renew() => {}
            () = is_over.notified() => {}
        }
        // Nothing of ours may begin once another may have it.
        self.held_until.send_replace(Duration::ZERO);
        if let Some(sequence) = self.ours.take() {
            // A renewal was under way: what is expected is not there, and the claim lasts for its time.
            self.compare_and_set(&self.given_back(), sequence)
                .await
                .ok();
        }
    }

    async fn renew(&mut self) {
        loop {
            self.api.connection().connected().await;
            let wait = match self.step().await {
                Ok(wait) => wait,
                Err(error) => {
                    self.say(format!(
                        "the claim of the input cannot be read or renewed: {error}"
                    ));
                    self.make_anew().await;
                    self.place.renew_every() / 3
                }
            };
            sleep(wait.mul_f64(jitter(0.7, 1.0))).await;
        }
    }

    /// Renews the claim, or takes it when it may; returns how long to wait.
    async fn step(&mut self) -> Result<Duration, ApiError> {
        if let Some(sequence) = self.ours {
            if self.write(sequence).await? {
                return Ok(self.place.renew_every());
            }
            self.ours = None;
        }
        let Some((sequence, owner)) = self.look().await? else {
            return self.take_from_nobody().await;
        };
        let is_ours_to_take = match &owner {
            // This process: a renewal whose answer was lost.
            Some(owner) => {
                let is_newest = self.rival.as_ref().is_none_or(|it| it.sequence < sequence);
                let is_this_process = owner.instance == self.us.instance && is_newest;
                let is_own_store = owner.store == self.us.store && !self.was_held;
                owner.is_given_back || is_this_process || is_own_store
            }
            // Over ours: whoever takes the claim writes one that can be read.
            None => steady_clock() < *self.held_until.borrow(),
        };
        if is_ours_to_take {
            return self.take(sequence).await;
        }
        match &owner {
            Some(owner) if owner.instance == self.us.instance => self.say(format!(
                "{} was rolled back to an older claim of this process; it is taken again once it has stood there for {:?}",
                self.place.name(), self.place.ttl
            )),
            Some(owner) => self.lose(owner),
            None => self.say(format!(
                "{} holds something that is no claim; it is written over once it has stood there for {:?}",
                self.place.name(), self.place.ttl
            )),
        }
        self.wait_out(sequence).await
    }

    /// Takes the claim of that sequence once it was seen unchanged for its time.
    async fn wait_out(&mut self, sequence: u64) -> Result<Duration, ApiError> {
        let now = steady_clock();
        let rival = match &self.rival {
            Some(rival) if rival.sequence == sequence => rival,
            Some(_) | None => self.rival.insert(Rival {
                sequence,
                seen_at: now,
            }),
        };
        let left = (rival.seen_at + self.place.ttl).saturating_sub(now);
        if left.is_zero() {
            return self.take(sequence).await;
        }
        Ok(left
            .min(self.place.renew_every())
            .max(Duration::from_millis(10)))
    }

    /// Takes the claim where there is none; where there may have been another's, once that has ended.
    async fn take_from_nobody(&mut self) -> Result<Duration, ApiError> {
        let is_held = steady_clock() < *self.held_until.borrow();
        let was_anothers = self.rival.is_some() && !is_held;
        if was_anothers {
            return self.wait_out(0).await;
        }
        self.take(0).await
    }

    /// Makes the stream anew when it is gone: else nobody could ever hold the claim again.
    async fn make_anew(&mut self) {
        let name = self.place.name();
        let Err(ApiError::Refused {
            code: code::STREAM_NOT_FOUND,
            ..
        }) = self.api.stream(name).await
        else {
            return;
        };
        error!(
            stream = name,
            "the stream of the claim is gone, making it anew"
        );
        if let Err(error) = ensure(&self.api, &self.place.stream).await {
            self.say(error.to_string());
        }
    }

    async fn take(&mut self, sequence: u64) -> Result<Duration, ApiError> {
        if self.write(sequence).await? {
            return Ok(self.place.renew_every());
        }
        // Someone else was faster; who, the next look says.
        Ok(Duration::from_millis(100))
    }

    /// Writes our claim over the one of that sequence; `false` when there is another.
    async fn write(&mut self, expected: u64) -> Result<bool, ApiError> {
        let sent_at = steady_clock();
        let Some(sequence) = self.compare_and_set(&self.us, expected).await? else {
            return Ok(false);
        };
        self.ours = Some(sequence);
        self.rival = None;
        self.said = None;
        let was_held = steady_clock() < *self.held_until.borrow();
        let until = sent_at + self.place.ttl.saturating_sub(self.place.margin());
        self.held_until.send_replace(until);
        if !was_held {
            info!(store = self.us.store, "this store owns the input");
        }
        self.was_held = true;
        Ok(true)
    }

    fn given_back(&self) -> Owner {
        Owner {
            is_given_back: true,
            ..self.us.clone()
        }
    }

    async fn compare_and_set(&self, owner: &Owner, expected: u64) -> Result<Option<u64>, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_SEQUENCE_HEADER, expected.to_string());
        let payload = serde_json::to_vec(owner).map_err(no_answer)?;
        let request = Request::new()
            .headers(headers)
            .payload(payload.into())
            .timeout(Some(self.place.renew_every()));
        let client = self.api.connection().client();
        let answer = client
            .send_request(self.place.subject.clone(), request)
            .await;
        let answer = answer.map_err(no_answer)?;
        let taken: Taken = serde_json::from_slice(&answer.payload).map_err(no_answer)?;
        match taken.error {
            None if taken.seq > 0 => Ok(Some(taken.seq)),
            None => Err(no_answer("an answer without a sequence")),
            Some(error) if error.err_code == code::WRONG_LAST_SEQUENCE => Ok(None),
            Some(error) => Err(ApiError::Refused {
                code: error.err_code,
                description: error.description,
            }),
        }
    }

    /// The last message where claims are; without an owner when it is none, but somebody's who may publish there,
    /// or let the broker answer there.
    async fn look(&self) -> Result<Option<(u64, Option<Owner>)>, ApiError> {
        let found = self
            .api
            .last_message(self.place.name(), &self.place.subject)
            .await?;
        let Some(message) = found else {
            return Ok(None);
        };
        let owner = serde_json::from_slice(&message.payload).ok();
        Ok(Some((message.sequence, owner)))
    }

    /// Another has it.
    fn lose(&mut self, owner: &Owner) {
        let was_held = steady_clock() < self.held_until.send_replace(Duration::ZERO);
        let Owner {
            store, host, pid, ..
        } = owner;
        if was_held {
            error!(
                store,
                host, pid, "another process has taken the input from this one"
            );
        }
        self.say(format!(
            "store {store} owns the input (process {pid} on {host}); this one takes over when it stops"
        ));
    }

    fn say(&mut self, text: String) {
        if self.said.as_ref() != Some(&text) {
            warn!(store = self.us.store, "{text}");
            self.said = Some(text);
        }
    }
}

impl Drop for Claimant {
    fn drop(&mut self) {
        let Some(sequence) = self.ours else {
            return;
        };
        let given_back = self.given_back();
        let mut headers = HeaderMap::new();
        headers.insert(EXPECTED_SEQUENCE_HEADER, sequence.to_string());
        let client = self.api.connection().client();
        if let Ok(payload) = serde_json::to_vec(&given_back) {
            // A courtesy: without it the next one waits for the claim's time.
            let subject = self.place.subject.clone();
            let sent = client.publish_with_headers(subject, headers, payload.into());
            tokio::task::unconstrained(sent).now_or_never();
        }
    }
}
