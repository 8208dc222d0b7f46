//! The behaviour of the digest, on JetStream and on core NATS, against the real program.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use futures::future::join_all;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::daemon::{Daemon, Setup};
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// A server and a daemon of its own.
struct Service {
    nats: Nats,
    _daemon: Daemon,
    _setup: Setup,
}

impl Service {
    async fn start(has_jetstream: bool, num_actors: usize) -> Self {
        let nats = Nats::start_with(has_jetstream, "").await;
        let setup = Setup::new(&nats).actors(num_actors);
        let daemon = setup.start_ready();
        Self {
            nats,
            _daemon: daemon,
            _setup: setup,
        }
    }
}

/// Digests of each user as they come, on one subscription.
async fn digests_by_user(
    client: &Client,
    users: &[String],
) -> HashMap<String, mpsc::Receiver<String>> {
    let mut digests = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    let (senders, receivers): (HashMap<_, _>, HashMap<_, _>) = users
        .iter()
        .map(|user| {
            let (sender, receiver) = mpsc::channel(10_000);
            ((user.clone(), sender), (user.clone(), receiver))
        })
        .unzip();
    tokio::spawn(async move {
        while let Some(message) = digests.next().await {
            let text = String::from_utf8(message.payload.to_vec()).expect("a digest is UTF-8");
            let json: Value = serde_json::from_str(&text).expect("a digest is JSON");
            if let Some(sender) = json["UserID"].as_str().and_then(|user| senders.get(user)) {
                sender.send(text).await.expect("the test waits");
            }
        }
    });
    receivers
}

/// The status of a letter of the table.
fn status(letter: char) -> &'static str {
    match letter {
        'W' => "WARNING",
        'C' => "CRITICAL",
        'X' => "CLEARED",
        other => panic!("no status {other}"),
    }
}

/// What a digest lists, in the notation of the table.
fn in_notation(digest: &str) -> String {
    let json: Value = serde_json::from_str(digest).expect("a digest is JSON");
    let alarms = json["ActiveAlarms"]
        .as_array()
        .expect("a digest lists alarms")
        .iter()
        .map(|entry| {
            let status = match entry["Status"].as_str().expect("a status") {
                "WARNING" => "W",
                "CRITICAL" => "C",
                other => panic!("{other} in a digest"),
            };
            let at = entry["LatestChangedAt"].as_str().expect("an instant");
            let second: u32 = at["2026-01-01T00:00:".len()..19].parse().expect("a second");
            format!(
                "{}{status}{second}",
                entry["AlarmID"].as_str().expect("an alarm")
            )
        });
    alarms.collect::<Vec<_>>().join(" ")
}

/// The examples of the specification: what arrives, and the digests that are not empty.
const EXAMPLES: [(&str, &[&str]); 12] = [
    ("S", &[]),
    ("aC1 aW2 S", &["aW2"]),
    ("aC2 aW1 S", &["aC2"]),
    ("aC1 S S", &["aC1"]),
    ("aC1 S aC2 S", &["aC1"]),
    ("aC1 S aX2 aC3 S", &["aC1", "aC3"]),
    ("aW1 S aC2 aW3 S", &["aW1", "aW3"]),
    ("aC1 S aC3 aW2 S", &["aC1"]),
    ("aX2 aC1 S", &[]),
    ("bC2 aW1 S", &["aW1 bC2"]),
    ("aC2 S bW1 S", &["aC2", "bW1"]),
    ("aC1 aX1 S", &[]),
];

async fn examples_hold(has_jetstream: bool) {
    let service = Service::start(has_jetstream, 2).await;
    let client = service.nats.connect().await.client().clone();
    let users: Vec<String> = (0..EXAMPLES.len())
        .map(|row| format!("row {row}"))
        .collect();
    let mut digests = digests_by_user(&client, &users).await;
    for (user, (arrives, expected)) in users.iter().zip(EXAMPLES) {
        // A last alarm, younger than all others, says when everything before it was decided.
        let arrives = format!("{arrives} zC9 S");
        for token in arrives.split(' ') {
            if token == "S" {
                publish_taken(&client, "SendAlarmDigest", request(user)).await;
            } else {
                let mut chars = token.chars();
                let (alarm, letter) = (
                    chars.next().expect("an alarm"),
                    chars.next().expect("a status"),
                );
                let second = chars.as_str().parse().expect("a second");
                let payload = change(user, &alarm.to_string(), status(letter), second);
                client
                    .publish("AlarmStatusChanged", payload.into())
                    .await
                    .expect("published");
            }
        }
        let digests = digests.get_mut(user).expect("a receiver for each user");
        let mut found = Vec::new();
        while found.last().is_none_or(|last| last != "zC9") {
            let digest = timeout(ANSWER, digests.recv())
                .await
                .expect("a digest in time");
            found.push(in_notation(&digest.expect("the subscription lasts")));
        }
        found.pop();
        assert_eq!(found, expected, "{arrives}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_holds_on_jetstream() {
    examples_hold(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_holds_on_core_nats() {
    examples_hold(false).await;
}

/// Many users at once on one connection: each publishes a change and asks at once, 10,000 times in all.
async fn a_request_sees_the_change_before_it(has_jetstream: bool, num_actors: usize) {
    const USERS: usize = 50;
    const ROUNDS: usize = 200;
    let service = Service::start(has_jetstream, num_actors).await;
    let client = service.nats.connect().await.client().clone();
    let users: Vec<String> = (0..USERS).map(|user| format!("user {user}")).collect();
    let mut digests = digests_by_user(&client, &users).await;
    let client = &client;
    join_all(users.iter().enumerate().map(|(number, user)| {
        let mut digests = digests.remove(user).expect("a receiver for each user");
        async move {
            for round in 0..ROUNDS {
                let alarm = format!("alarm {round}");
                // All combinations of bare and numbered subjects take turns.
                let of_change = ["AlarmStatusChanged", "AlarmStatusChanged.7"][round % 2];
                let of_request = ["SendAlarmDigest", "SendAlarmDigest.x"][round / 2 % 2];
                let payload = change(user, &alarm, "CRITICAL", round as u64);
                client
                    .publish(of_change, payload.into())
                    .await
                    .expect("published");
                let request = request(user);
                client
                    .publish(of_request, request.into())
                    .await
                    .expect("published");
                let digest = timeout(ANSWER, digests.recv()).await;
                let digest =
                    digest.unwrap_or_else(|_| panic!("no digest for user {number}, {alarm}"));
                let digest = digest.expect("the subscription lasts");
                assert!(
                    digest.contains(&format!("\"{alarm}\"")),
                    "{alarm} is not in {digest}"
                );
            }
        }
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sees_the_change_before_it_on_jetstream_with_one_of_each() {
    a_request_sees_the_change_before_it(true, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sees_the_change_before_it_on_jetstream_with_four_of_each() {
    a_request_sees_the_change_before_it(true, 4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sees_the_change_before_it_on_core_nats_with_one_of_each() {
    a_request_sees_the_change_before_it(false, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sees_the_change_before_it_on_core_nats_with_four_of_each() {
    a_request_sees_the_change_before_it(false, 4).await;
}
