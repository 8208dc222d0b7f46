//! The actors between a real broker and a real store, with a domain that panics, a store that fails and shapes
//! that panic: what was not committed is decided again, exactly, and nobody else notices.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use async_nats::Client;
use futures::FutureExt;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tocsin::app::{broker, codec};
use tocsin::bus::jetstream::JetStream;
use tocsin::bus::wire::Limits;
use tocsin::bus::{Bus, Start};
use tocsin::config::{Config, Sources};
use tocsin::core::ids::{PartitionId, StoreId};
use tocsin::core::outbox::{Body, Owed};
use tocsin::core::partition::{Commit, Decision, Domain, Header, SnapshotHead};
use tocsin::core::rows::{CorruptRow, Reader, Rows};
use tocsin::core::time::Timestamp;
use tocsin::domains::{Command, Outgoing, State, alarms};
use tocsin::runtime::delivery::Codec;
use tocsin::runtime::{Edges, Fault, Runtime, Settings};
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::{Receipt, Recovery, SnapshotWriter, Store, StoreError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::eventually;
use crate::support::judge::{self, Stored, read_stream};
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

/// How long anything may take.
const DEADLINE: Duration = Duration::from_mins(1);
/// The alarm at which a worker panics every time; what begins so, too.
const ALWAYS: &str = "always";
/// The user whose digest a producer cannot write, and whose change a listener cannot read.
const UNSPEAKABLE: &str = "unspeakable";

/// The alarm domain, which panics at marked alarms.
struct Fragile {
    inner: State,
    fuses: Arc<Fuses>,
}

/// How often a worker still panics at an alarm, and where it stands still.
#[derive(Default)]
struct Fuses {
    panics: HashMap<String, AtomicU32>,
    /// Before the alarm `slow`.
    slow: Gate,
}

/// Where a thread can be kept waiting.
#[derive(Default)]
struct Gate {
    is_closed: Mutex<bool>,
    changed: Condvar,
    num_waiting: AtomicU32,
}

impl Gate {
    fn set_closed(&self, is_closed: bool) {
        *self.is_closed.lock().expect("nobody panics with it") = is_closed;
        self.changed.notify_all();
    }

    fn pass(&self) {
        self.num_waiting.fetch_add(1, Ordering::SeqCst);
        let is_closed = self.is_closed.lock().expect("nobody panics with it");
        let opened = self.changed.wait_while(is_closed, |is_closed| *is_closed);
        drop(opened.expect("nobody panics with it"));
        self.num_waiting.fetch_sub(1, Ordering::SeqCst);
    }

    fn is_in_use(&self) -> bool {
        self.num_waiting.load(Ordering::SeqCst) > 0
    }
}

impl Fuses {
    fn panics(alarms: &[(&str, u32)]) -> Arc<Self> {
        let panics = alarms
            .iter()
            .map(|&(alarm, num)| (alarm.to_owned(), AtomicU32::new(num)))
            .collect();
        let slow = Gate::default();
        Arc::new(Self { panics, slow })
    }

    fn touch(&self, alarm: &str) {
        assert!(!alarm.starts_with(ALWAYS), "this alarm is always a bomb");
        if alarm == "slow" {
            self.slow.pass();
        }
        let is_left = self.panics.get(alarm).is_some_and(|left| {
            let less = |left: u32| left.checked_sub(1);
            left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok()
        });
        assert!(!is_left, "this alarm is a bomb for a while");
    }

    fn are_burnt(&self) -> bool {
        self.panics
            .values()
            .all(|left| left.load(Ordering::SeqCst) == 0)
    }
}

impl Domain for Fragile {
    type Command = Command;
    type Change = alarms::Change;
    type Outgoing = Outgoing;
    type Tally = alarms::Tally;
    type Settings = (alarms::Settings, Arc<Fuses>);

    fn new((settings, fuses): Self::Settings) -> Self {
        let inner = State::new(settings);
        Self { inner, fuses }
    }

    fn decide(&self, at: Timestamp, command: &Command, decision: &mut Decision<Self>) {
        let mut inner = Decision::<State> {
            changes: std::mem::take(&mut decision.changes),
            publish: decision.publish.take(),
            tally: std::mem::take(&mut decision.tally),
        };
        self.inner.decide(at, command, &mut inner);
        (decision.changes, decision.publish) = (inner.changes, inner.publish);
        decision.tally = inner.tally;
        if let Command::StatusChanged { alarm, .. } = command {
            self.fuses.touch(&alarm.0.to_string());
        }
    }

    fn evolve(&mut self, change: Self::Change) {
        self.inner.evolve(change);
    }

    fn encode(change: &Self::Change, rows: &mut Rows) {
        State::encode(change, rows);
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self::Change, CorruptRow> {
        State::decode(key, value)
    }

    fn encode_outgoing(message: &Outgoing, out: &mut Vec<u8>) {
        State::encode_outgoing(message, out);
    }

    fn decode_outgoing(reader: &mut Reader<'_>) -> Result<Outgoing, CorruptRow> {
        State::decode_outgoing(reader)
    }

    fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize> {
        self.inner.snapshot(from, max_bytes, rows)
    }

    fn expire(&self, now: Timestamp, from: usize, changes: &mut Vec<Self::Change>) -> usize {
        self.inner.expire(now, from, changes)
    }
}

/// The program's own shapes, around the fragile domain.
fn fragile_codec() -> Codec<Fragile> {
    let real = codec::codec();
    Codec {
        decode: real.decode,
        encode: real.encode,
        counters: real.counters,
        observe: real.observe,
        observe_state: |state, observations| {
            (codec::codec().observe_state)(&state.inner, observations);
        },
    }
}

/// What a store does once, at the next commit that holds rows of an alarm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Trouble {
    Panics,
    IsFenced,
    /// Another owner's commit could not look different: it is applied, and the answer is a refusal.
    IsFencedAfterIt,
    IsPoisoned,
}

/// A store that gets into trouble, and that can keep a worker waiting while it reads its part.
struct Troubled {
    inner: Embedded,
    trouble: Mutex<Option<Trouble>>,
    /// Before every claim.
    claims: Gate,
}

impl Troubled {
    fn open(folder: &TempDir) -> Arc<Self> {
        let inner = Embedded::open(folder.path(), Options::default());
        Arc::new(Self {
            inner: inner.unwrap_or_else(|error| panic!("{error}")),
            trouble: Mutex::default(),
            claims: Gate::default(),
        })
    }

    fn get_into(&self, trouble: Trouble) {
        *self.trouble.lock().expect("no test panics with it") = Some(trouble);
    }

    fn is_over_it(&self) -> bool {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.is_none()
    }
}

fn fenced(commit: &Commit) -> StoreError {
    StoreError::Fenced {
        partition: commit.partition,
        epoch: commit.epoch.0,
        number: commit.number.0,
        stored_epoch: commit.epoch.0 + 1,
        stored_number: commit.number.0,
    }
}

impl Store for Troubled {
    fn id(&self) -> StoreId {
        self.inner.id()
    }

    fn num_partitions(&self) -> u16 {
        self.inner.num_partitions()
    }

    fn headers(&self) -> Vec<Header> {
        self.inner.headers()
    }

    fn claim(
        &self,
        partitions: &[PartitionId],
        recovery: &mut dyn Recovery,
    ) -> Result<Vec<Header>, StoreError> {
        self.claims.pass();
        self.inner.claim(partitions, recovery)
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<Receipt, StoreError>> {
        let with_rows = commits.iter().find(|commit| !commit.rows.is_empty());
        let Some(refused) = with_rows.map(fenced) else {
            return self.inner.commit(commits);
        };
        let trouble = {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.take()
        };
        match trouble {
            None => self.inner.commit(commits),
            Some(Trouble::Panics) => panic!("this commit panics"),
            Some(Trouble::IsFenced) => async move { Err(refused) }.boxed(),
            Some(Trouble::IsFencedAfterIt) => {
                let applied = self.inner.commit(commits);
                async move { applied.await.and(Err(refused)) }.boxed()
            }
            Some(Trouble::IsPoisoned) => {
                let error = StoreError::Poisoned {
                    path: "journal".into(),
                    error: Arc::new(std::io::Error::other("the disk is gone")),
                };
                async move { Err(error) }.boxed()
            }
        }
    }

    fn begin_snapshot(&self, head: SnapshotHead) -> Option<Box<dyn SnapshotWriter>> {
        self.inner.begin_snapshot(head)
    }
}

/// A broker, a store, and the actors between them.
struct Service {
    client: Client,
    runtime: Runtime<Fragile>,
    faults: mpsc::Receiver<Fault>,
    store: Arc<Troubled>,
    _bus: JetStream,
    _folder: TempDir,
    _nats: Nats,
}

/// What is started; nothing is read before [`Prepared::start`].
struct Prepared {
    client: Client,
    bus: JetStream,
    folder: TempDir,
    nats: Nats,
}

impl Prepared {
    async fn new() -> Self {
        let nats = Nats::start().await;
        let client = nats.connect().await.client().clone();
        let sources = Sources {
            config_path: None,
            sets: Vec::new(),
            env: Vec::new(),
            system_folder: "/nonexistent".into(),
        };
        let config = Config::load(&sources)
            .expect("the defaults are well")
            .config;
        let bus = JetStream::open(&nats.connector(), broker::streams(&config)).await;
        Self {
            client,
            bus: bus.unwrap_or_else(|error| panic!("{error}")),
            folder: tempfile::tempdir().expect("a folder for the store"),
            nats,
        }
    }

    async fn start(self, num_actors: usize, fuses: &Arc<Fuses>, codec: Codec<Fragile>) -> Service {
        let store = Troubled::open(&self.folder);
        let positions = store.headers().iter().map(|it| it.position).collect();
        let claim = self.bus.claim(store.id()).await.expect("the claim is free");
        let edges = Edges {
            store: Arc::<Troubled>::clone(&store),
            output: self.bus.output(),
            claim,
            duplicate_window: self.bus.duplicate_window(),
        };
        let alarms = alarms::Settings {
            tombstone_retention: Duration::from_hours(24 * 14),
            when_empty: alarms::WhenEmpty::Skip,
        };
        let settings = (alarms, Arc::clone(fuses));
        let (mut runtime, faults) =
            Runtime::start(edges, codec, settings, actors(num_actors), "test".into());
        runtime.recovered().await;
        let input = self.bus.open_input(positions, Start::First).await;
        let input = input.unwrap_or_else(|error| panic!("{error}"));
        timeout(DEADLINE, runtime.read(input))
            .await
            .expect("reading begins");
        Service {
            client: self.client,
            runtime,
            faults,
            store,
            _bus: self.bus,
            _folder: self.folder,
            _nats: self.nats,
        }
    }
}

impl Service {
    async fn start(num_actors: usize, fuses: &Arc<Fuses>) -> Self {
        let prepared = Prepared::new().await;
        prepared.start(num_actors, fuses, fragile_codec()).await
    }

    async fn change(&self, user: &str, alarm: &str, second: u64) {
        let payload = change(user, alarm, "CRITICAL", second);
        publish_taken(&self.client, "AlarmStatusChanged", payload).await;
    }

    async fn request(&self, user: &str) {
        publish_taken(&self.client, "SendAlarmDigest", request(user)).await;
    }

    /// Judges everything, then stops, which must leave no fault behind.
    async fn end(mut self) {
        judge::judge_refusing(&self.client, is_always_a_bomb).await;
        assert!(self.faults.try_recv().is_err(), "a fault was reported");
        timeout(DEADLINE, self.runtime.drain_input())
            .await
            .expect("everything is committed");
        timeout(DEADLINE, self.runtime.drain_output())
            .await
            .expect("everything is confirmed");
        timeout(DEADLINE, self.runtime.stop())
            .await
            .expect("the actors stop");
    }

    async fn fault(&mut self) -> Fault {
        let fault = timeout(DEADLINE, self.faults.recv()).await;
        fault.expect("a fault in time").expect("the runtime lives")
    }
}

fn actors(num: usize) -> Settings {
    Settings {
        num_listeners: num,
        num_routers: num,
        num_workers: num,
        num_producers: num,
        in_flight: 65_536,
        mailbox: 70_000,
        producer_in_flight: 1000,
        owed_rows: 1_000_000,
        owed_bytes: 256 << 20,
        limits: Limits::default(),
        aggregate_interval: Duration::from_secs(10),
    }
}

fn is_always_a_bomb(message: &Stored) -> bool {
    String::from_utf8_lossy(&message.payload).contains(&format!("\"AlarmID\":\"{ALWAYS}"))
}

/// Users enough for every worker to have some.
fn users() -> impl Iterator<Item = String> {
    (0..40).map(|number| format!("user {number}"))
}

/// Every user has changes before, at and after what happens to `ann`, and asks each time.
async fn traffic_around(service: &Service, second: u64) {
    for user in users() {
        service
            .change(&user, &format!("alarm {second}"), second)
            .await;
        service.request(&user).await;
    }
    service
        .change("ann", &format!("alarm {second}"), second)
        .await;
    service.request("ann").await;
}

async fn a_panic_is_survived(num_actors: usize, num_panics: u32) {
    let fuses = Fuses::panics(&[("bomb", num_panics), ("second bomb", num_panics)]);
    let service = Service::start(num_actors, &fuses).await;
    traffic_around(&service, 1).await;
    service.change("ann", "bomb", 2).await;
    service.change("user 7", "second bomb", 2).await;
    service.request("user 7").await;
    traffic_around(&service, 3).await;
    eventually("every panic", async || fuses.are_burnt()).await;
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_which_a_worker_panics_once_is_applied_after_its_restart() {
    a_panic_is_survived(1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_at_which_a_worker_panics_twice_is_applied_with_four_of_each() {
    a_panic_is_survived(4, 2).await;
}

/// Waits for the dead letters; returns their reasons, subjects and bytes.
async fn dead_letters(client: &Client, num: usize) -> Vec<(String, String, Vec<u8>)> {
    eventually("the dead letters", async || {
        read_stream(client, "TOCSIN_DEAD_LETTER").await.len() >= num
    })
    .await;
    let letters = read_stream(client, "TOCSIN_DEAD_LETTER").await;
    letters
        .into_iter()
        .map(|it| (it.reason, it.original_subject, it.payload))
        .collect()
}

async fn a_message_that_always_panics_goes_to_the_dead_letters(num_actors: usize) {
    let service = Service::start(num_actors, &Fuses::panics(&[])).await;
    traffic_around(&service, 1).await;
    let bomb = change("ann", ALWAYS, "CRITICAL", 2);
    publish_taken(&service.client, "AlarmStatusChanged.9", bomb.clone()).await;
    traffic_around(&service, 3).await;
    let letters = dead_letters(&service.client, 1).await;
    let expected = (
        "internal".to_owned(),
        "AlarmStatusChanged.9".to_owned(),
        bomb.into_bytes(),
    );
    assert_eq!(letters, vec![expected]);
    traffic_around(&service, 4).await;
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_always_panics_is_a_dead_letter_with_one_of_each() {
    a_message_that_always_panics_goes_to_the_dead_letters(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_always_panics_is_a_dead_letter_with_four_of_each() {
    a_message_that_always_panics_goes_to_the_dead_letters(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_full_of_messages_that_always_panic_does_not_end_the_process() {
    const NUM: usize = 12;
    let prepared = Prepared::new().await;
    // All of them wait before reading begins: they come in one batch.
    for number in 0..NUM {
        let bomb = change("ann", &format!("{ALWAYS} {number}"), "CRITICAL", 1);
        publish_taken(&prepared.client, "AlarmStatusChanged", bomb).await;
        let good = change("ann", &format!("disk {number}"), "WARNING", 1);
        publish_taken(&prepared.client, "AlarmStatusChanged", good).await;
    }
    publish_taken(&prepared.client, "SendAlarmDigest", request("ann")).await;
    let service = prepared
        .start(1, &Fuses::panics(&[]), fragile_codec())
        .await;
    let letters = dead_letters(&service.client, NUM).await;
    assert!(letters.iter().all(|(reason, ..)| reason == "internal"));
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_workers_answer_while_one_reads_its_store_again() {
    let fuses = Fuses::panics(&[("bomb", 1)]);
    let service = Service::start(4, &fuses).await;
    traffic_around(&service, 1).await;
    judge::judge(&service.client).await;
    service.store.claims.set_closed(true);
    service.change("ann", "bomb", 2).await;
    eventually("the restart", async || service.store.claims.is_in_use()).await;
    service.request("ann").await;
    for user in users() {
        service.change(&user, "disk", 3).await;
        service.request(&user).await;
    }
    let is_of_same = |user: &String| worker_of(user) == worker_of("ann");
    let num_others = users().filter(|user| !is_of_same(user)).count();
    eventually("the digests of the other workers' users", async || {
        users_told_of("disk", &service.client).await.len() >= num_others
    })
    .await;
    let answered = users_told_of("disk", &service.client).await;
    assert!(
        !answered.iter().any(is_of_same),
        "a worker that has not read its store answered: {answered:?}"
    );
    service.store.claims.set_closed(false);
    service.end().await;
}

/// Whose digests list the alarm.
async fn users_told_of(alarm: &str, client: &Client) -> Vec<String> {
    let digests = read_stream(client, "TOCSIN_OUT").await;
    let texts = digests
        .into_iter()
        .map(|it| String::from_utf8(it.payload).expect("a digest is UTF-8"));
    texts
        .filter(|text| text.contains(&format!("\"AlarmID\":\"{alarm}\"")))
        .map(|text| {
            let json: serde_json::Value = serde_json::from_str(&text).expect("a digest is JSON");
            json["UserID"].as_str().expect("a user").to_owned()
        })
        .collect()
}

/// The worker of a user where there are four, and 64 partitions.
fn worker_of(user: &str) -> u16 {
    let placement = tocsin::core::ids::placement_hash(user.as_bytes());
    PartitionId::of(placement, Options::default().partitions).0 % 4
}

async fn trouble_at_a_commit_is_survived(num_actors: usize, trouble: Trouble) {
    let service = Service::start(num_actors, &Fuses::panics(&[])).await;
    traffic_around(&service, 1).await;
    service.store.get_into(trouble);
    traffic_around(&service, 2).await;
    eventually("a commit in trouble", async || service.store.is_over_it()).await;
    service.store.get_into(trouble);
    traffic_around(&service, 3).await;
    eventually("a commit in trouble", async || service.store.is_over_it()).await;
    service.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_panics_restarts_its_worker() {
    trouble_at_a_commit_is_survived(1, Trouble::Panics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_panics_restarts_its_worker_with_four_of_each() {
    trouble_at_a_commit_is_survived(4, Trouble::Panics).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_fenced_restarts_its_worker() {
    trouble_at_a_commit_is_survived(4, Trouble::IsFenced).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_applied_and_answered_with_a_refusal_is_not_applied_twice() {
    trouble_at_a_commit_is_survived(1, Trouble::IsFencedAfterIt).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_store_ends_the_process() {
    let mut service = Service::start(4, &Fuses::panics(&[])).await;
    service.store.get_into(Trouble::IsPoisoned);
    service.change("ann", "disk", 1).await;
    let fault = service.fault().await;
    assert!(
        matches!(fault, Fault::Store(StoreError::Poisoned { .. })),
        "{fault:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_panics_is_a_defect() {
    let prepared = Prepared::new().await;
    let codec = Codec {
        decode: |raw, limits| {
            let text = String::from_utf8_lossy(&raw.payload);
            assert!(!text.contains(UNSPEAKABLE), "this message cannot be read");
            (codec::codec().decode)(raw, limits)
        },
        ..fragile_codec()
    };
    let mut service = prepared.start(2, &Fuses::panics(&[]), codec).await;
    service.change(UNSPEAKABLE, "disk", 1).await;
    let fault = service.fault().await;
    assert!(
        matches!(&fault, Fault::Defect(what) if what == "the listener panicked"),
        "{fault:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_panics_is_a_defect() {
    let prepared = Prepared::new().await;
    let codec = Codec {
        encode: |owed: &Owed<Outgoing>, stored, max_payload| {
            let is_bomb = matches!(&owed.body, Body::Message(digest) if digest.user.0.to_string() == UNSPEAKABLE);
            assert!(!is_bomb, "this digest cannot be written");
            (codec::codec().encode)(owed, stored, max_payload)
        },
        ..fragile_codec()
    };
    let mut service = prepared.start(2, &Fuses::panics(&[]), codec).await;
    service.change(UNSPEAKABLE, "disk", 1).await;
    service.request(UNSPEAKABLE).await;
    let fault = service.fault().await;
    assert!(
        matches!(&fault, Fault::Defect(what) if what == "the producer panicked"),
        "{fault:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_still_is_seen_by_its_pulse() {
    let fuses = Fuses::panics(&[]);
    let service = Service::start(4, &fuses).await;
    assert!(service.runtime.pulse().oldest_beat() < Duration::from_secs(3));
    fuses.slow.set_closed(true);
    service.change("ann", "slow", 1).await;
    eventually("the silence", async || {
        service.runtime.pulse().oldest_beat() >= Duration::from_secs(4)
    })
    .await;
    fuses.slow.set_closed(false);
    service.request("ann").await;
    eventually("the pulse again", async || {
        service.runtime.pulse().oldest_beat() < Duration::from_secs(3)
    })
    .await;
    service.end().await;
}
