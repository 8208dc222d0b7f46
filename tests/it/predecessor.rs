//! The Go service before this one: its publishers, its numbered subjects and its delegator are served unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use futures::future::join_all;
use tocsin::config::{Config, Sources};
use tokio::time::timeout;

use crate::bus_contract::echo;
use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::nats::Nats;

/// How many users its traffic emulator invents at once.
const NUM_USERS: usize = 500;
/// How many listeners it is told to have, one a number.
const NUM_LISTENERS: usize = 12;

/// Every key that its `config.properties` has.
const KEYS: [&str; 11] = [
    "alarmStatusChangedMessagesChan",
    "sendAlarmDigestMessagesChan",
    "alarmDigestMessagesChan",
    "alarmStatusChangedMessages",
    "sendAlarmDigestMessages",
    "alarmDigestMessageProducers",
    "alarmStatusChangedMessagesTotalWorkers",
    "alarmStatusChangedMessagesConsumers",
    "sendAlarmDigestMessagesConsumers",
    "alarmStatusChangedListeners",
    "sendAlarmDigestListeners",
];

fn user(number: usize) -> String {
    format!("653e1290-ff57-11eb-a384-{number:012x}")
}

fn alarm(number: usize) -> String {
    format!("653e1292-ff57-11eb-a384-{number:012x}")
}

/// Publishes as its emulator does: each message on a numbered subject, and once more on the bare one.
async fn publish_twice(client: &Client, subject: &str, listener: usize, payload: String) {
    let numbered = format!("{subject}.{listener}");
    for subject in [numbered, subject.to_owned()] {
        let sent = client.publish(subject, payload.clone().into()).await;
        sent.expect("the client lives");
    }
}

/// What one of its goroutines does: a critical alarm of a new user, and the request for it.
async fn raise_and_ask(client: &Client, number: usize) {
    let listener = number * 7 % NUM_LISTENERS;
    let (user, alarm) = (user(number), alarm(number));
    // Its maps are written with sorted names, its times with an offset and in whole seconds.
    let change = format!(
        "{{\"AlarmID\":\"{alarm}\",\"ChangedAt\":\"2021-08-17T15:33:59+03:00\",\"Status\":\"CRITICAL\",\"UserID\":\"{user}\"}}"
    );
    publish_twice(client, "AlarmStatusChanged", listener, change).await;
    let request = format!("{{\"UserID\":\"{user}\"}}");
    publish_twice(client, "SendAlarmDigest", listener, request).await;
}

/// Its delegator: whatever comes on a bare subject is published on a numbered one, in turn.
async fn delegate(client: Client, mut bare: Subscriber, num_delegated: Arc<AtomicUsize>) {
    while let Some(message) = bare.next().await {
        let listener = num_delegated.load(Ordering::Relaxed) % NUM_LISTENERS;
        let numbered = format!("{}.{listener}", message.subject);
        let sent = client.publish(numbered, message.payload).await;
        sent.expect("the client lives");
        num_delegated.fetch_add(1, Ordering::Relaxed);
    }
}

/// So many digests, by what they hold.
async fn read_digests(digests: &mut Subscriber, num: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..num {
        let digest = timeout(Duration::from_secs(30), digests.next()).await;
        let digest = digest.expect("a digest in time").expect("a subscription");
        let text = String::from_utf8(digest.payload.to_vec()).expect("a digest is UTF-8");
        *seen.entry(text).or_default() += 1;
    }
    seen
}

fn digest(number: usize, alarm: &str, status: &str, at: &str) -> String {
    let user = user(number);
    format!(
        "{{\"UserID\":\"{user}\",\"ActiveAlarms\":[{{\"AlarmID\":\"{alarm}\",\"Status\":\"{status}\",\"LatestChangedAt\":\"{at}\"}}]}}"
    )
}

async fn its_traffic_gets_each_digest_once(has_jetstream: bool) {
    let nats = Nats::start_with(has_jetstream, "").await;
    let setup = Setup::new(&nats).actors(2);
    let _daemon = setup.start_ready();
    let connection = nats.connect().await;
    let client = connection.client();
    let mut digests = client.subscribe("AlarmDigest").await.unwrap();
    let delegator = nats.connect().await;
    let num_delegated = Arc::new(AtomicUsize::new(0));
    for subject in ["AlarmStatusChanged", "SendAlarmDigest"] {
        let bare = delegator.client().subscribe(subject).await.unwrap();
        let counter = Arc::clone(&num_delegated);
        tokio::spawn(delegate(delegator.client().clone(), bare, counter));
    }
    echo(&delegator).await;

    join_all((0..NUM_USERS).map(|number| raise_and_ask(client, number))).await;
    let seen = read_digests(&mut digests, NUM_USERS).await;
    let demanded = (0..NUM_USERS).map(|number| {
        let at = "2021-08-17T12:33:59Z";
        (digest(number, &alarm(number), "CRITICAL", at), 1)
    });
    assert_eq!(seen, demanded.collect());

    // Once every copy has arrived, too, a second alarm: what comes next for each user must be that, and nothing before it.
    eventually("every copy", async || {
        num_delegated.load(Ordering::Relaxed) == 2 * NUM_USERS
    })
    .await;
    echo(&delegator).await;
    for number in 0..NUM_USERS {
        let user = user(number);
        let change = format!(
            "{{\"AlarmID\":\"second\",\"ChangedAt\":\"2021-08-17T15:34:00+03:00\",\"Status\":\"WARNING\",\"UserID\":\"{user}\"}}"
        );
        let request = format!("{{\"UserID\":\"{user}\"}}");
        let (changes, requests) = ("AlarmStatusChanged.0", "SendAlarmDigest.11");
        client.publish(changes, change.into()).await.unwrap();
        client.publish(requests, request.into()).await.unwrap();
    }
    let seen = read_digests(&mut digests, NUM_USERS).await;
    let demanded = (0..NUM_USERS).map(|number| {
        let at = "2021-08-17T12:34:00Z";
        (digest(number, "second", "WARNING", at), 1)
    });
    assert_eq!(seen, demanded.collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_its_traffic_gets_each_digest_once() {
    its_traffic_gets_each_digest_once(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_jetstream_its_traffic_gets_each_digest_once() {
    its_traffic_gets_each_digest_once(true).await;
}

#[test]
fn the_page_names_what_replaces_each_of_its_keys() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("config/moving-from-go.md")).unwrap();
    let nothing_set = Sources {
        config_path: None,
        sets: Vec::new(),
        env: Vec::new(),
        system_folder: "/nonexistent".into(),
    };
    let loaded = Config::load(&nothing_set).unwrap();
    for key in KEYS {
        let key = format!("`{key}`");
        let row = page.lines().find(|line| line.contains(&key));
        let row = row.unwrap_or_else(|| panic!("no word of {key}"));
        let ours: Vec<_> = row.split('|').nth(2).unwrap().split('`').collect();
        let ours: Vec<_> = ours.iter().skip(1).step_by(2).collect();
        assert!(!ours.is_empty(), "nothing replaces {key}: {row}");
        for key in ours {
            let is_known = loaded.settings.iter().any(|known| known.key == *key);
            assert!(is_known, "no key {key}: {row}");
        }
    }
}
