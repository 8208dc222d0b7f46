//! The actor that publishes what is owed until the broker has confirmed it.
//!
//! Owns: the messages under way and those that wait for room. Mailbox: what does not fit waits with the worker.
//! Dies of: nothing that a message can hold. Stops: with its arbiter; what is unconfirmed stays owed in the store.
//!
//! | the broker says | what follows |
//! |---|---|
//! | confirmed | the worker removes the row |
//! | nothing, or refused for now | sent again under the same id, with a growing pause |
//! | refused for good | parked: the lane goes on, and it is tried again every [`PARKED_PAUSE`] |
//!
//! A message that may have been sent before the duplicate window ended, by us or by another store, is looked for in
//! the output stream before it is sent again; every attempt is made only while the claim is held.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::prelude::*;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{error, info, warn};

use crate::bus::{Confirmation, Outbound, PublishError, steady_clock};
use crate::core::attempts::Attempts;
use crate::core::ids::PartitionId;
use crate::core::outbox::{Body, OutboxKey, Owed};
use crate::core::partition::Domain;
use crate::core::parts::{Stored, read_id};
use crate::core::time::Timestamp;

use super::delivery::{Outcome, Publish, Settled};
use super::metrics::{Aggregator, Metric, Observation, Observed, Source};
use super::router::Router;
use super::{Lifeline, Shared};

/// How many messages a producer's mailbox holds.
pub(super) const MAILBOX: usize = 4096;
/// How long a message that is refused for good waits before it is tried again.
const PARKED_PAUSE: Duration = Duration::from_secs(30);
/// The pause after the first attempt that was not confirmed; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// How many messages one look into the output stream asks for.
const MAX_LOOKUP: usize = 10_000;

/// Publishes what is owed.
pub(super) struct Producer<D: Domain> {
    shared: Arc<Shared<D>>,
    routers: Vec<Addr<Router<D>>>,
    aggregator: Addr<Aggregator>,
    lookups: mpsc::Sender<Lookup>,
    waiting: VecDeque<Publish<D::Outgoing>>,
    /// What waits, is under way or is parked: a restarted worker offers it again.
    known: HashMap<(PartitionId, OutboxKey), Tried>,
    /// Room for messages that are unconfirmed, or confirmed and not heard of by their worker.
    slots: Arc<Semaphore>,
    is_waiting_for_slot: bool,
    _lifeline: Lifeline,
}

/// Whether a message was tried by this producer before it was parked: a part of it, or an attempt whose answer
/// was lost, may have been stored long ago, so it is looked for first, like what an earlier process has left.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Tried {
    Never,
    Before,
}

/// Asks whether messages are in the output stream already.
struct Lookup {
    subject: &'static str,
    /// The message's id.
    id: String,
    after: u64,
    since: Timestamp,
    found: oneshot::Sender<Vec<(String, u64)>>,
}

/// How the publishing of one message ended.
struct Ended {
    outcome: Outcome,
    took: Duration,
    /// Whether a first attempt was taken for a repeat: an id was used twice.
    num_false_duplicates: u64,
    num_repeats: u64,
}

impl<D: Domain> Producer<D> {
    pub(super) fn new(
        shared: Arc<Shared<D>>,
        routers: Vec<Addr<Router<D>>>,
        aggregator: Addr<Aggregator>,
    ) -> Self {
        let (lookups, asked) = mpsc::channel(MAX_LOOKUP);
        let slots = Arc::new(Semaphore::new(shared.settings.producer_in_flight));
        actix::spawn(look_up(Arc::clone(&shared), asked));
        Self {
            _lifeline: shared.faults.clone().lifeline("producer"),
            shared,
            routers,
            aggregator,
            lookups,
            waiting: VecDeque::new(),
            known: HashMap::new(),
            slots,
            is_waiting_for_slot: false,
        }
    }

    /// Begins to publish what waits, as long as there is room.
    fn pump(&mut self, ctx: &mut Context<Self>) {
        while !self.waiting.is_empty() {
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                return self.wait_for_slot(ctx);
            };
            if let Some(publish) = self.waiting.pop_front() {
                self.begin(publish, slot, ctx);
            }
        }
    }

    fn wait_for_slot(&mut self, ctx: &mut Context<Self>) {
        if self.is_waiting_for_slot {
            return;
        }
        self.is_waiting_for_slot = true;
        let slots = Arc::clone(&self.slots);
        let free = async move { slots.acquire().await.map(drop) };
        ctx.spawn(free.into_actor(self).map(|_, producer, ctx| {
            producer.is_waiting_for_slot = false;
            producer.pump(ctx);
        }));
    }

    fn begin(
        &self,
        publish: Publish<D::Outgoing>,
        slot: OwnedSemaphorePermit,
        ctx: &mut Context<Self>,
    ) {
        let (shared, lookups) = (Arc::clone(&self.shared), self.lookups.clone());
        let tried = self.known.get(&(publish.partition, publish.owed.key));
        let window = self.shared.edges.duplicate_window;
        // By the broker's time: our clock may be wrong.
        let now = self.shared.edges.output.now();
        let attempts = match now.map(|now| now.since(publish.owed.since)) {
            Some(age) if !publish.owed.is_recovered && tried != Some(&Tried::Before) => {
                Attempts::first(window, age, steady_clock())
            }
            Some(_) | None => Attempts::again(window),
        };
        let delivered = async move {
            let ended = deliver(&shared, &lookups, &publish.owed, attempts).await;
            (publish, ended)
        };
        ctx.spawn(
            delivered
                .into_actor(self)
                .map(move |(publish, ended), producer, ctx| {
                    producer.settle(publish, &ended, slot, ctx);
                }),
        );
    }

    fn settle(
        &mut self,
        publish: Publish<D::Outgoing>,
        ended: &Ended,
        slot: OwnedSemaphorePermit,
        ctx: &mut Context<Self>,
    ) {
        let (partition, key, outcome) = (publish.partition, publish.owed.key, ended.outcome);
        self.observe(&publish.owed, ended);
        match outcome {
            Outcome::Published(_) => {
                self.known.remove(&(partition, key));
            }
            Outcome::Parked => {
                self.known.insert((partition, key), Tried::Before);
                ctx.run_later(PARKED_PAUSE, |producer, ctx| {
                    producer.waiting.push_back(publish);
                    producer.pump(ctx);
                });
            }
        }
        let shards = self.shared.shards;
        let router = shards.router_of(shards.worker_of(partition));
        if let Some(router) = self.routers.get(router) {
            let settled = Settled {
                partition,
                key,
                outcome,
                slot,
            };
            self.shared.faults.send(router, settled);
        }
    }

    fn observe(&self, owed: &Owed<D::Outgoing>, ended: &Ended) {
        let mut observations = vec![
            Observation::count(Metric::PublishRepeats, ended.num_repeats),
            Observation::count(Metric::FalseDuplicates, ended.num_false_duplicates),
        ];
        if matches!(ended.outcome, Outcome::Published(_)) {
            observations.push(match owed.body {
                Body::Message(_) => Observation::count(Metric::DigestsPublished, 1),
                Body::DeadLetter(_) => Observation::count(Metric::DeadLettersPublished, 1),
            });
            if !owed.is_recovered && matches!(owed.body, Body::Message(_)) {
                let now = self.shared.edges.output.now();
                let waited = now.map_or(ended.took, |now| now.since(owed.since).max(ended.took));
                observations.push(Observation::sample(
                    Metric::RequestToPublished,
                    waited.as_secs_f64(),
                ));
            }
        } else {
            observations.push(Observation::count(Metric::Parked, 1));
        }
        drop(self.aggregator.try_send(Observed {
            source: Source::Other,
            observations,
        }));
    }
}

/// Publishes one message, all its parts in order, until it is confirmed or refused for good.
async fn deliver<D: Domain>(
    shared: &Shared<D>,
    lookups: &mpsc::Sender<Lookup>,
    owed: &Owed<D::Outgoing>,
    mut attempts: Attempts,
) -> Ended {
    let began = Instant::now();
    let mut ended = Ended {
        outcome: Outcome::Parked,
        took: Duration::ZERO,
        num_false_duplicates: 0,
        num_repeats: 0,
    };
    let id = owed.id.to_string();
    let mut stored = Stored::default();
    let mut pause = FIRST_PAUSE;
    loop {
        shared.edges.claim.held().await;
        let max_payload = shared.edges.output.max_payload();
        let missing = match (shared.codec.encode)(owed, &stored, max_payload) {
            Ok(missing) => missing,
            Err(reason) => {
                error!(id = %owed.id, reason, "message cannot be published, it stays owed");
                break;
            }
        };
        let Some(subject) = missing.first().map(|part| part.subject) else {
            ended.outcome = Outcome::Published(stored.sequence);
            break;
        };
        attempts.plan(missing.iter().map(|part| part.id.as_str()));
        let now = steady_clock();
        if attempts.must_look(now) {
            let found = find(lookups, subject, &id, owed).await;
            stored.add(found.iter().map(|(id, at)| (id.as_str(), Some(*at))));
            attempts.looked(now, steady_clock());
            continue;
        }
        match publish(shared, missing, &mut stored, &mut attempts, &mut ended).await {
            Ok(()) => {}
            Err(PublishError::Unconfirmed(reason)) => {
                ended.num_repeats += 1;
                if ended.num_repeats.is_power_of_two() {
                    info!(id = %owed.id, reason, repeats = ended.num_repeats, "message sent again");
                }
                tokio::time::sleep(with_jitter(pause)).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            Err(PublishError::Refused(reason)) => {
                error!(id = %owed.id, reason, "broker refuses a message for good, it stays owed");
                break;
            }
        }
    }
    ended.took = began.elapsed();
    ended
}

/// Publishes what is not stored yet, one part after the other.
async fn publish<D: Domain>(
    shared: &Shared<D>,
    missing: Vec<Outbound>,
    stored: &mut Stored,
    attempts: &mut Attempts,
    ended: &mut Ended,
) -> Result<(), PublishError> {
    for part in missing {
        if !shared.edges.claim.is_held() {
            return Err(PublishError::Unconfirmed(
                "the claim on the input was lost".to_owned(),
            ));
        }
        // A frozen process wakes here, too.
        if attempts.must_look(steady_clock()) {
            return Err(PublishError::Unconfirmed(
                "the output stream was looked through too long ago".to_owned(),
            ));
        }
        let id = part.id.clone();
        let is_first = attempts.begin(&id);
        let Confirmation {
            sequence,
            is_duplicate,
        } = shared.edges.output.publish(part).await?;
        if is_duplicate && is_first {
            ended.num_false_duplicates += 1;
            error!(
                id,
                "broker took a first attempt for a repeat: another store answers this input, or its id was used before"
            );
        }
        stored.add([(id.as_str(), sequence)]);
        attempts.confirmed(&id);
    }
    Ok(())
}

/// The ids under which the output holds a message, whole or in parts, with their sequences.
async fn find<M>(
    lookups: &mpsc::Sender<Lookup>,
    subject: &'static str,
    id: &str,
    owed: &Owed<M>,
) -> Vec<(String, u64)> {
    let (sender, found) = oneshot::channel();
    let lookup = Lookup {
        subject,
        id: id.to_owned(),
        after: owed.search_from,
        since: owed.since,
        found: sender,
    };
    drop(lookups.send(lookup).await);
    found
        .await
        .expect("the task that answers lives as long as the producer's thread")
}

/// Answers lookups, all that wait with one reading of the output stream.
async fn look_up<D: Domain>(shared: Arc<Shared<D>>, mut asked: mpsc::Receiver<Lookup>) {
    let mut lookups = Vec::new();
    while asked.recv_many(&mut lookups, MAX_LOOKUP).await > 0 {
        let mut by_subject: HashMap<&'static str, Vec<Lookup>> = HashMap::new();
        for lookup in lookups.drain(..) {
            by_subject.entry(lookup.subject).or_default().push(lookup);
        }
        for (subject, lookups) in by_subject {
            let found = find_all(&shared, subject, &lookups).await;
            for lookup in lookups {
                let of_lookup = found.get(&lookup.id).cloned().unwrap_or_default();
                // Who asked may have been stopped meanwhile.
                drop(lookup.found.send(of_lookup));
            }
        }
    }
}

/// What the output holds of each message that is asked for.
async fn find_all<D: Domain>(
    shared: &Shared<D>,
    subject: &'static str,
    lookups: &[Lookup],
) -> HashMap<String, Vec<(String, u64)>> {
    let ids: HashSet<String> = lookups.iter().map(|it| it.id.clone()).collect();
    let after = lookups.iter().map(|it| it.after).min().unwrap_or_default();
    let since = lookups.iter().map(|it| it.since).min().unwrap_or_default();
    let output = &shared.edges.output;
    let mut by_message: HashMap<String, Vec<_>> = HashMap::new();
    loop {
        match output.find(subject, ids.clone(), after, since).await {
            Ok(found) => {
                for (id, sequence) in found {
                    let whole = read_id(&id).0.to_owned();
                    by_message.entry(whole).or_default().push((id, sequence));
                }
                return by_message;
            }
            Err(error) => warn!(%error, "failed to look into the output stream, trying again"),
        }
        tokio::time::sleep(with_jitter(MAX_PAUSE)).await;
    }
}

/// A pause of half to the whole length, so that many waiters do not come back at once.
fn with_jitter(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    pause / 2 + (pause / 2).mul_f64(f64::from(random as u32) / f64::from(u32::MAX))
}

impl<D: Domain> Actor for Producer<D> {
    type Context = Context<Self>;
}

impl<D: Domain> Handler<Publish<D::Outgoing>> for Producer<D> {
    type Result = ();

    fn handle(&mut self, publish: Publish<D::Outgoing>, ctx: &mut Self::Context) {
        // A restarted worker offers again what is on its way already.
        let known = self.known.entry((publish.partition, publish.owed.key));
        if let Entry::Vacant(unknown) = known {
            unknown.insert(Tried::Never);
            self.waiting.push_back(publish);
            self.pump(ctx);
        }
    }
}
