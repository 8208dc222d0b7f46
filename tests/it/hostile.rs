//! Hostile messages beside good ones: each is applied as the specification says or is a dead letter with its
//! bytes, and nothing that a publisher can write stops or slows the others.

mod generator;
mod raw;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use futures::stream;
use serde_json::Value;
use tocsin::bus::{Bus, Start};
use tocsin::core::time::Timestamp;
use tokio::time::timeout;

use crate::bus_jetstream::{input, message, open};
use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::evidence::{Rounds, Row};
use crate::support::judge::{judge, read_stream};
use crate::support::nats::{Nats, limit_stream, num_messages};
use crate::support::random::Random;
use crate::support::reading::{MAX_FUTURE_NANOS, read};
use crate::support::traffic::{change_and_request, publish_taken, request};
use generator::{Hostile, hostile};
use raw::RawClient;

/// How many hostile messages a round publishes, and how many of them at a time.
const MESSAGES_PER_ROUND: u64 = 100;
const AT_A_TIME: usize = 20;
/// How long the digest of a good user may take, whatever stands beside it.
const DIGEST_WITHIN: Duration = Duration::from_secs(30);

/// Asks again and again for digests of good users, and measures how long each takes.
struct Good {
    client: Client,
    digests: Subscriber,
    second: u64,
}

impl Good {
    async fn start(client: &Client) -> Self {
        let digests = client.subscribe("AlarmDigest").await.expect("taken");
        client.flush().await.expect("the server answers");
        Self {
            client: client.clone(),
            digests,
            second: 0,
        }
    }

    /// From the request of a digest to its arrival.
    async fn digest(&mut self) -> Duration {
        self.second += 1;
        let (user, alarm) = ("good user", "good alarm");
        // Another status each time, so that there is something due.
        let status = ["WARNING", "CRITICAL"][(self.second % 2) as usize];
        let asked = Instant::now();
        change_and_request(&self.client, user, alarm, status, self.second).await;
        let digest = self.digest_of(user).await;
        assert_eq!(digest["ActiveAlarms"][0]["Status"], status);
        asked.elapsed()
    }

    /// The next digest of a user.
    async fn digest_of(&mut self, user: &str) -> Value {
        loop {
            let digest = timeout(DIGEST_WITHIN, self.digests.next()).await;
            let digest = digest
                .expect("a digest in time")
                .expect("the subscription lasts");
            let json: Value = serde_json::from_slice(&digest.payload).expect("JSON");
            if json["UserID"] == user {
                return json;
            }
        }
    }

    async fn digests(&mut self, num: usize) -> Vec<Duration> {
        let mut times = Vec::new();
        for _ in 0..num {
            times.push(self.digest().await);
        }
        times
    }
}

/// The median and the longest.
fn shown(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    format!(
        "{} ms, at most {} ms",
        median.as_millis(),
        longest.as_millis()
    )
}

/// Sends a round of hostile messages, some at a time; what became of each.
async fn send_round<F: Future>(
    random: &mut Random,
    round: u64,
    send: impl Fn(Hostile) -> F,
) -> Vec<F::Output> {
    let first = round * MESSAGES_PER_ROUND;
    let messages: Vec<_> = (first..first + MESSAGES_PER_ROUND)
        .map(|number| hostile(random, number))
        .collect();
    stream::iter(messages)
        .map(send)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await
}

/// What became of a hostile message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    Stored,
    /// By the broker, for what its headers ask.
    RefusedByTheBroker,
}

async fn publish(client: &Client, message: Hostile) -> Fate {
    let request = async_nats::Request::new()
        .payload(message.payload.into())
        .headers(message.headers)
        .timeout(Some(Duration::from_secs(30)));
    let answer = client.send_request(message.subject, request).await;
    let answer: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
    if answer["seq"].as_u64().is_some_and(|seq| seq > 0) && answer["error"].is_null() {
        Fate::Stored
    } else {
        Fate::RefusedByTheBroker
    }
}

fn demand_unharmed(setup: &Setup, mut daemon: Daemon, pid: u32) {
    assert_eq!(daemon.pid(), pid);
    assert!(!daemon.has_told("STOPPING=1"));
    assert!(daemon.stop().success(), "the daemon ends well");
    let log = setup.log();
    assert!(!log.contains("panic"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_messages_are_applied_or_dead_letters_and_good_ones_wait_for_none() {
    let mut row = Row::new(Rounds {
        test: 30,
        hour: 1000,
        full: 10_000,
    });
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let daemon = setup.start_ready();
    let pid = daemon.pid();
    let mut good = Good::start(&client).await;
    let before = good.digests(20).await;

    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let beside = tokio::spawn(async move {
        let mut times = Vec::new();
        while !until.load(Ordering::Relaxed) {
            times.push(good.digest().await);
        }
        times.extend(good.digests(1).await);
        times
    });
    let mut random = Random(row.seed());
    let mut num_rounds = 0;
    while row.goes_on() {
        let fates = send_round(&mut random, num_rounds, |it| publish(&client, it)).await;
        num_rounds += 1;
        row.count("hostile messages published", fates.len() as u64);
        let refused = fates.iter().filter(|it| **it == Fate::RefusedByTheBroker);
        row.count(
            "of them refused by the broker for their headers",
            refused.count() as u64,
        );
    }
    stop.store(true, Ordering::Relaxed);
    let beside = beside.await.expect("good users get their digests");

    let judged = judge(&client).await;
    demand_unharmed(&setup, daemon, pid);
    judged.stays(&client).await;
    let letters = read_stream(&client, "TOCSIN_DEAD_LETTER").await;
    let input = read_stream(&client, "TOCSIN_IN").await;
    let digests = read_stream(&client, "TOCSIN_OUT").await.len() as u64;
    let refused = input
        .iter()
        .filter(|it| read(&it.subject, &it.payload, it.nanos).is_none());
    let num_refused = refused.count() as u64;
    let num_applied = input.len() as u64 - num_refused;
    // A generator that makes only one kind proves nothing.
    let reasons: std::collections::BTreeSet<_> = letters.iter().map(|it| &*it.reason).collect();
    assert!(reasons.len() >= 11, "{reasons:?}");
    let num_published = num_rounds * MESSAGES_PER_ROUND;
    assert!(num_refused > num_published / 4 && num_applied > num_published / 10);
    row.count("dead letters checked, with their bytes", num_refused);
    row.count("messages applied as the specification says", num_applied);
    row.count("digests checked", digests);
    row.fact("a good user's digest, alone", shown(before));
    row.fact("a good user's digest, beside them", shown(beside));
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_every_hostile_message_is_answered_as_the_specification_says() {
    let mut row = Row::new(Rounds::in_test(10));
    let nats = Nats::start_with(false, "").await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let daemon = setup.start_ready();
    let pid = daemon.pid();
    let mut random = Random(row.seed());
    let mut num_rounds = 0;
    while row.goes_on() {
        let answered = send_round(&mut random, num_rounds, |it| answer(&client, it)).await;
        num_rounds += 1;
        let num_refused = answered.iter().filter(|is_ok| !**is_ok).count() as u64;
        row.count("hostile messages answered", MESSAGES_PER_ROUND);
        row.count("of them refused, as the specification says", num_refused);
    }
    publish_taken(&client, "SendAlarmDigest", request("good user")).await;
    demand_unharmed(&setup, daemon, pid);
    row.close();
}

/// Asks, and demands the answer that the specification gives: whether the message is taken.
async fn answer(client: &Client, message: Hostile) -> bool {
    let now = i128::from(tocsin::check::messages::Instant::now().0);
    // The moment of arrival decides only for what lies just about as far ahead as is allowed.
    let reading = |arrived| read(&message.subject, &message.payload, arrived).is_some();
    let expected = reading(now);
    let is_certain = expected == reading(now + MAX_FUTURE_NANOS / 100);
    let request = async_nats::Request::new()
        .payload(message.payload.clone().into())
        .headers(message.headers.clone())
        .timeout(Some(Duration::from_secs(30)));
    let answer = client.send_request(message.subject.clone(), request).await;
    let answer: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
    let is_ok = answer["ok"].as_bool().expect("ok or not");
    assert!(is_ok == expected || !is_certain, "{answer}: {message:?}");
    assert_eq!(is_ok, answer["reason"].is_null(), "{answer}");
    is_ok
}

/// Header blocks that the broker stores, and what a client library makes of them.
const HEADERS: [&[u8]; 17] = [
    // As if they came from the broker itself.
    b"NATS/1.0 100 Idle Heartbeat\r\n\r\n",
    b"NATS/1.0 100 FlowControl Request\r\nNats-Last-Consumer: 18446744073709551615\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 408 Request Timeout\r\nNats-Pending-Messages: 1000000\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    // What ends a client's connection.
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\n: no name\r\n\r\n",
    b"NATS/1.0\r\na name with spaces: value\r\n\r\n",
    b"NATS/1.0\r\nName: \xff\xfe\r\n\r\n",
    b"NATS/1.0 12 no status\r\n\r\n",
    b"NATS/1.0 99999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\r\n\r\n",
    b"\xff",
    b"NATS/1.0\r\nTocsin-Reply-To: _INBOX.a\rb\r\n\xff\r\n\r\n",
    b"NATS/1.0\r\nName: value\r\n no colon, but a continued line\r\n\r\n",
];

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_no_client_can_read_stop_nothing() {
    let mut row = Row::new(Rounds::in_test(1));
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let daemon = setup.start_ready();
    let pid = daemon.pid();
    let mut good = Good::start(&client).await;
    let mut raw = RawClient::connect(&nats.url());
    let mut num_letters = 0;
    while row.goes_on() {
        // A user of each round's own: a digest of many rounds would come in parts.
        let user = format!("ann {num_letters}");
        for (second, headers) in (1..).zip(HEADERS) {
            let alarm = format!("alarm {second}");
            let change = crate::support::traffic::change(&user, &alarm, "CRITICAL", second);
            for payload in [change.as_bytes(), b"junk"] {
                let answer = raw.request("AlarmStatusChanged", headers, payload);
                assert!(answer.contains("\"seq\":"), "{answer}");
            }
            num_letters += 1;
            row.count("messages with headers that no client can read", 2);
        }
        good.digest().await;
        publish_taken(&client, "SendAlarmDigest", request(&user)).await;
        let digest = good.digest_of(&user).await;
        let alarms = digest["ActiveAlarms"].as_array().expect("alarms");
        let alarms: Vec<_> = alarms.iter().map(|it| it["AlarmID"].clone()).collect();
        let expected = (1..=HEADERS.len()).map(|it| Value::from(format!("alarm {it}")));
        assert_eq!(alarms, expected.collect::<Vec<_>>());
        row.count("of them applied", HEADERS.len() as u64);
    }
    eventually("the dead letters", async || {
        read_stream(&client, "TOCSIN_DEAD_LETTER").await.len() as u64 >= num_letters
    })
    .await;
    demand_unharmed(&setup, daemon, pid);
    let letters = read_stream(&client, "TOCSIN_DEAD_LETTER").await;
    assert_eq!(letters.len() as u64, num_letters);
    assert!(letters.iter().all(|it| it.payload == b"junk"));
    row.count("of them a dead letter with their bytes", num_letters);
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_that_no_client_can_read_in_the_output_hold_back_no_owed_digest() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let daemon = setup.start_ready();
    let mut raw = RawClient::connect(&nats.url());
    let answer = raw.request("AlarmDigest", b"NATS/1.0\r\nno colon\r\n\r\n", b"{}");
    assert!(answer.contains("\"seq\":"), "{answer}");
    limit_stream(&client, "TOCSIN_OUT", 1).await;
    change_and_request(&client, "ann", "disk", "CRITICAL", 1).await;
    eventually("an attempt", async || {
        setup.log().contains("message sent again")
    })
    .await;
    daemon.kill();
    limit_stream(&client, "TOCSIN_OUT", -1).await;
    // What an earlier process has left is looked for before it is sent.
    let daemon = setup.start_ready();
    eventually("the digest", async || {
        num_messages(&client, "TOCSIN_OUT").await == 2
    })
    .await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stands_among_headers_that_no_client_can_read_is_found() {
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let output = bus.output();
    let mut raw = RawClient::connect(&nats.url());
    let mut sequence = 0;
    let mut wanted = Vec::new();
    for (number, headers) in HEADERS.into_iter().enumerate() {
        let answer = raw.request("digest", headers, b"{}");
        assert!(answer.contains("\"seq\":"), "{answer}");
        // One is found by itself, and the last by a consumer again.
        let num_readable = if number % 8 == 0 { 120 } else { 1 };
        for copy in 1..=num_readable {
            let id = format!("{number}-{copy}");
            let answer = output.publish(message("digest", &id)).await;
            let stored = answer.expect("confirmed").sequence.expect("a sequence");
            assert!(stored > sequence, "{id}");
            sequence = stored;
            if copy == 1 || copy == num_readable {
                wanted.push((id, stored));
            }
        }
    }
    wanted.dedup();
    let ids: HashSet<_> = wanted.iter().map(|(id, _)| id.clone()).collect();
    let found = output.find("digest", ids, 0, Timestamp::EPOCH);
    let found = timeout(DIGEST_WITHIN, found).await.expect("an end");
    assert_eq!(found.expect("found"), wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_behind_headers_that_no_client_can_read_are_taken_a_few_mebibytes_at_a_time() {
    const NUM_BYTES: usize = 1_000_000;
    let nats = Nats::start().await;
    let bus = open(&nats).await;
    let client = nats.connect().await.client().clone();
    let mut raw = RawClient::connect(&nats.url());
    let answer = raw.request("change", b"NATS/1.0\r\nno colon\r\n\r\n", b"{}");
    assert!(answer.contains("\"seq\":"), "{answer}");
    for _ in 0..20 {
        publish_taken(&client, "change", "x".repeat(NUM_BYTES)).await;
    }
    let mut input = input(&bus, &[None], Start::First).await;
    // What a consumer cannot begin with is the first batch, with what follows it.
    let batch = input.next(1000).await;
    let sizes: Vec<_> = batch.messages.iter().map(|it| it.payload.len()).collect();
    assert_eq!(sizes.first(), Some(&2));
    let num_bytes: usize = sizes.iter().sum();
    assert!(sizes.len() > 1 && num_bytes < 6 * NUM_BYTES, "{sizes:?}");
    let mut num_read = sizes.len();
    while num_read < 21 {
        num_read += input.next(1000).await.messages.len();
    }
}
