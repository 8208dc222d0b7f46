//! Messages for tests, and publishers that keep at it until the stream has confirmed each of theirs.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::judge::Stored;
use super::random::Random;

/// The beginning of 2026, in seconds since 1970.
const YEAR: u64 = 1_767_225_600;

/// A change at so many seconds after the beginning of 2026.
pub(crate) fn change(user: &str, alarm: &str, status: &str, second: u64) -> String {
    let at = time_of(second);
    format!(
        "{{\"AlarmID\":\"{alarm}\",\"UserID\":\"{user}\",\"Status\":\"{status}\",\"ChangedAt\":\"{at}Z\"}}"
    )
}

/// So many seconds after the beginning of 2026, without its end.
fn time_of(second: u64) -> String {
    let second = i64::try_from(YEAR + second).expect("some year");
    let at = time::OffsetDateTime::from_unix_timestamp(second).expect("some year");
    let (date, (hour, minute, second)) = (at.date(), at.to_hms());
    format!("{date}T{hour:02}:{minute:02}:{second:02}")
}

/// A request for a digest.
pub(crate) fn request(user: &str) -> String {
    format!("{{\"UserID\":\"{user}\"}}")
}

/// Publishes and waits for whoever answers: the stream, or the daemon after its commit.
pub(crate) async fn publish(client: &Client, subject: &str, payload: impl Into<Bytes>) -> String {
    let answer = client.request(subject.to_owned(), payload.into());
    let answer = timeout(Duration::from_secs(30), answer)
        .await
        .expect("an answer in time");
    String::from_utf8_lossy(&answer.expect("an answer").payload).into_owned()
}

/// Publishes a message that must be taken.
pub(crate) async fn publish_taken(client: &Client, subject: &str, payload: impl Into<Bytes>) {
    let answer = publish(client, subject, payload).await;
    assert!(
        answer == "{\"ok\":true}" || answer.contains("\"seq\":"),
        "{answer}"
    );
}

/// Publishes a change, then a request for that user's digest; both must be taken.
pub(crate) async fn change_and_request(
    client: &Client,
    user: &str,
    alarm: &str,
    status: &str,
    second: u64,
) {
    let changed = change(user, alarm, status, second);
    publish_taken(client, "AlarmStatusChanged", changed).await;
    publish_taken(client, "SendAlarmDigest", request(user)).await;
}

/// Up to when changes were made by all traffic of this process, in seconds after the beginning of 2026: what is
/// published later is later, or most of it would change nothing.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Which message of its publisher is made.
#[derive(Clone, Copy)]
pub(crate) struct Turn {
    /// When the traffic began, in seconds after the beginning of 2026.
    pub(crate) began: u64,
    pub(crate) number: u64,
}

/// One random message: mostly changes, late, repeated and on again; requests;
/// now and then junk.
fn random_message(random: &mut Random, turn: Turn) -> (String, String) {
    let user = random.below(40);
    let twin = |random: &mut Random, base: &str| match random.below(3) {
        0 => format!("{base}.{}", random.below(3)),
        _ => base.to_owned(),
    };
    match random.below(20) {
        0 => (
            twin(random, "AlarmStatusChanged"),
            format!("{{\"UserID\":\"{user}\" junk {}", random.next()),
        ),
        1..=4 => (
            twin(random, "SendAlarmDigest"),
            request(&format!("user {user}")),
        ),
        _ => {
            let alarm = random.below(12);
            let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
            // Time goes on, or what comes late would soon be everything; in steps, so that some are equal.
            let tenth = turn.number / 20 + random.below(50);
            let (at, tenth) = (time_of(turn.began + tenth / 10), tenth % 10);
            let payload = format!(
                "{{\"AlarmID\":\"alarm {alarm}\",\"UserID\":\"user {user}\",\"Status\":\"{status}\",\"ChangedAt\":\"{at}.{tenth}Z\"}}"
            );
            (twin(random, "AlarmStatusChanged"), payload)
        }
    }
}

/// Many alarms and few requests: digests that a small `max_payload` splits.
pub(crate) fn message_for_large_digests(random: &mut Random, turn: Turn) -> (String, String) {
    let user = format!("user {}", random.below(6));
    if random.below(40) == 0 {
        return ("SendAlarmDigest".to_owned(), request(&user));
    }
    let alarm = format!("alarm {}", random.below(200));
    let at = turn.began + turn.number / 20 + random.below(3600);
    let status = ["WARNING", "CRITICAL"][random.below(2) as usize];
    (
        "AlarmStatusChanged".to_owned(),
        change(&user, &alarm, status, at),
    )
}

/// Makes the next message of a history: its subject and its bytes.
pub(crate) type MakeMessage = fn(&mut Random, Turn) -> (String, String);

/// How fast messages are published.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Pace {
    /// As fast as the stream takes them: thousands are under way unconfirmed.
    Full,
    /// So many a second.
    Paced(u64),
}

/// Both paces, for tests that must hold under either.
pub(crate) const PACES: [Pace; 2] = [Pace::Full, Pace::Paced(500)];

impl Pace {
    /// Five rounds at one pace, then five at the other.
    pub(crate) const fn in_turn(round: u64) -> Self {
        PACES[(round / 5 % 2) as usize]
    }
}

/// What is published, how fast, and how much at the most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    make: MakeMessage,
    pace: Pace,
    at_most: u64,
    burst: u64,
}

impl Load {
    /// Everything there is at this pace, until a judge would have too much to read.
    pub(crate) const fn at(pace: Pace) -> Self {
        Self {
            make: random_message,
            pace,
            at_most: 500_000,
            burst: u64::MAX,
        }
    }

    /// Other messages.
    pub(crate) const fn of(self, make: MakeMessage) -> Self {
        Self { make, ..self }
    }

    /// No more than so many in all.
    pub(crate) const fn at_most(self, at_most: u64) -> Self {
        Self { at_most, ..self }
    }

    /// No more than so many beyond what [`Traffic::after`] was asked for: a full pace that ends before its time
    /// leaves the later faults without traffic.
    pub(crate) const fn in_bursts_of(self, burst: u64) -> Self {
        Self { burst, ..self }
    }
}

/// What the publishers and the test tell each other.
#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    /// How many messages a second; 0 is a full pace.
    per_second: AtomicU64,
    /// How many messages may be made.
    allowed: AtomicU64,
    num_made: AtomicU64,
    num_confirmed: AtomicU64,
}

impl Progress {
    fn set_pace(&self, pace: Pace) {
        let per_second = match pace {
            Pace::Full => 0,
            Pace::Paced(num) => num.max(1),
        };
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// How long a publisher pauses between two messages.
    fn every(&self) -> Option<Duration> {
        let per_second = self.per_second.load(Ordering::Relaxed);
        let publishers = Duration::from_secs(Traffic::NUM_PUBLISHERS);
        (per_second > 0).then(|| publishers.div_f64(per_second as f64))
    }

    /// Whether one more message may be made; then it counts.
    fn may_make(&self) -> bool {
        let allowed = self.allowed.load(Ordering::Relaxed);
        let one_more = |made| (made < allowed).then_some(made + 1);
        let made = &self.num_made;
        !self.stop.load(Ordering::Relaxed)
            && made
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
                .is_ok()
    }
}

/// Four publishers of confirmed messages, at work until they are told to stop.
pub(crate) struct Traffic {
    load: Load,
    progress: Arc<Progress>,
    publishers: Vec<JoinHandle<Vec<(u64, u64)>>>,
}

impl Traffic {
    const NUM_PUBLISHERS: u64 = 4;

    /// Begins to publish; the seed gives the messages.
    pub(crate) async fn start(client: &Client, seed: u64, load: Load) -> Self {
        let progress = Arc::<Progress>::default();
        let allowed = load.burst.min(load.at_most);
        progress.allowed.store(allowed, Ordering::Relaxed);
        progress.set_pace(load.pace);
        let mut publishers = Vec::new();
        for number in 0..Self::NUM_PUBLISHERS {
            let seed = seed.wrapping_mul(Self::NUM_PUBLISHERS).wrapping_add(number);
            let publisher = Publisher::new(client, seed, load.make, Arc::clone(&progress)).await;
            publishers.push(tokio::spawn(publisher.run()));
        }
        Self {
            load,
            progress,
            publishers,
        }
    }

    /// How many messages were confirmed by now.
    pub(crate) fn num_confirmed(&self) -> u64 {
        self.progress.num_confirmed.load(Ordering::Relaxed)
    }

    /// Goes on at another pace.
    pub(crate) fn set_pace(&self, pace: Pace) {
        self.progress.set_pace(pace);
    }

    /// Waits until so many more messages were confirmed, or all.
    pub(crate) async fn after(&self, more: u64) {
        let until = (self.num_confirmed() + more).min(self.load.at_most);
        let allowed = until.saturating_add(self.load.burst).min(self.load.at_most);
        self.progress.allowed.fetch_max(allowed, Ordering::Relaxed);
        super::eventually("traffic", async || self.num_confirmed() >= until).await;
    }

    /// Waits for the last confirmations.
    pub(crate) async fn stop(self) -> Confirmed {
        self.progress.stop.store(true, Ordering::Relaxed);
        let mut confirmed = Vec::new();
        for publisher in self.publishers {
            confirmed.extend(publisher.await.expect("the publisher ends"));
        }
        Confirmed(confirmed)
    }
}

/// What the stream has confirmed: of each message its sequence, and a hash of its bytes.
#[derive(Debug, Default)]
pub(crate) struct Confirmed(Vec<(u64, u64)>);

impl Confirmed {
    /// How many messages.
    pub(crate) fn num(&self) -> u64 {
        self.0.len() as u64
    }

    /// With what was confirmed to other publishers.
    pub(crate) fn and(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Says which confirmed message a stream does not hold where it was confirmed.
    pub(crate) fn missing_in(&self, stream: &[Stored]) -> Option<String> {
        let missing = self.0.iter().find(|(sequence, hash)| {
            let at = stream.binary_search_by_key(sequence, |stored| stored.sequence);
            at.map_or(true, |at| hash_of(&stream[at].payload) != *hash)
        });
        missing.map(|(sequence, _)| format!("message {sequence} was confirmed, and is not there"))
    }

    /// As if these had been confirmed.
    pub(crate) fn of(messages: &[(u64, &str)]) -> Self {
        let hashed = messages
            .iter()
            .map(|(at, text)| (*at, hash_of(text.as_bytes())));
        Self(hashed.collect())
    }
}

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

/// The stream's answer to a publish.
#[derive(Deserialize)]
struct PubAck {
    seq: Option<u64>,
}

struct Sent {
    subject: String,
    payload: Bytes,
    /// When it is sent again if it is not confirmed.
    again_at: Instant,
    pause: Duration,
}

struct Publisher {
    client: Client,
    make: MakeMessage,
    progress: Arc<Progress>,
    random: Random,
    began: u64,
    number: u64,
    inbox: String,
    answers: Subscriber,
    unconfirmed: BTreeMap<u64, Sent>,
    confirmed: Vec<(u64, u64)>,
}

impl Publisher {
    /// How many messages it has under way.
    const WINDOW: usize = 500;
    const FIRST_PAUSE: Duration = Duration::from_secs(2);
    const LONGEST_PAUSE: Duration = Duration::from_secs(8);
    /// Between two looks at what is due.
    const TICK: Duration = Duration::from_millis(5);

    async fn new(client: &Client, seed: u64, make: MakeMessage, progress: Arc<Progress>) -> Self {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await;
        Self {
            client: client.clone(),
            make,
            progress,
            random: Random(seed),
            began: LATEST.load(Ordering::Relaxed),
            number: 0,
            inbox,
            answers: answers.expect("a subscription"),
            unconfirmed: BTreeMap::new(),
            confirmed: Vec::new(),
        }
    }

    async fn run(mut self) -> Vec<(u64, u64)> {
        let mut due_at = Instant::now();
        let mut num_connects = self.num_connects();
        loop {
            while self.unconfirmed.len() < Self::WINDOW
                && due_at <= Instant::now()
                && self.progress.may_make()
            {
                due_at = next_due(due_at, self.progress.every());
                self.publish_next().await;
            }
            if self.unconfirmed.is_empty() && self.progress.stop.load(Ordering::Relaxed) {
                return self.confirmed;
            }
            tokio::select! {
                answer = self.answers.next() => {
                    let mut next = answer;
                    while let Some(answer) = next {
                        self.on_answer(&answer);
                        next = self.answers.next().now_or_never().flatten();
                    }
                }
                () = sleep(Self::TICK) => {}
            }
            // What was under way on a connection that is gone may never be answered.
            let is_new = std::mem::replace(&mut num_connects, self.num_connects()) != num_connects;
            self.publish_again(is_new).await;
        }
    }

    fn num_connects(&self) -> u64 {
        let statistics = self.client.statistics();
        statistics.connects.load(Ordering::Relaxed)
    }

    fn make_next(&mut self) -> (String, String) {
        let turn = Turn {
            began: self.began,
            number: self.number,
        };
        LATEST.fetch_max(turn.began + turn.number / 20, Ordering::Relaxed);
        (self.make)(&mut self.random, turn)
    }

    async fn publish_next(&mut self) {
        let (subject, payload) = self.make_next();
        let sent = Sent {
            subject,
            payload: payload.into(),
            again_at: Instant::now() + Self::FIRST_PAUSE,
            pause: Self::FIRST_PAUSE,
        };
        self.publish(self.number, &sent).await;
        self.unconfirmed.insert(self.number, sent);
        self.number += 1;
    }

    async fn publish(&self, number: u64, sent: &Sent) {
        let reply = format!("{}.{number}", self.inbox);
        let (subject, payload) = (sent.subject.clone(), sent.payload.clone());
        let publishing = self.client.publish_with_reply(subject, reply, payload);
        // A client that is not connected refuses at times; it is sent again.
        publishing.await.ok();
    }

    async fn publish_again(&mut self, all: bool) {
        let now = Instant::now();
        let mut unconfirmed = std::mem::take(&mut self.unconfirmed);
        for (number, sent) in &mut unconfirmed {
            if all || sent.again_at <= now {
                sent.pause = (sent.pause * 2).min(Self::LONGEST_PAUSE);
                sent.again_at = now + sent.pause;
                self.publish(*number, sent).await;
            }
        }
        self.unconfirmed = unconfirmed;
    }

    fn on_answer(&mut self, answer: &async_nats::Message) {
        let number = answer.subject.rsplit_once('.');
        let number: u64 = number
            .and_then(|(_, number)| number.parse().ok())
            .expect("an answer to a publish of ours");
        let ack = serde_json::from_slice::<PubAck>(&answer.payload);
        if let Some(sequence) = ack.ok().and_then(|ack| ack.seq.filter(|seq| *seq > 0)) {
            // A second answer is to one that was sent again.
            if let Some(sent) = self.unconfirmed.remove(&number) {
                self.confirmed.push((sequence, hash_of(&sent.payload)));
                self.progress.num_confirmed.fetch_add(1, Ordering::Relaxed);
            }
        } else if let Some(sent) = self.unconfirmed.get_mut(&number) {
            // Nobody listens, or the stream has no leader: not for long.
            sent.again_at = Instant::now() + Duration::from_millis(100);
        }
    }
}

/// When the next message of a publisher may go, after one that was due then.
fn next_due(due_at: Instant, every: Option<Duration>) -> Instant {
    let Some(every) = every else { return due_at };
    // What an outage held up does not come at once when it is over.
    if due_at.elapsed() > Duration::from_secs(1) {
        return Instant::now();
    }
    due_at + every
}
