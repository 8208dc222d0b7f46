//! kill -9 of the daemon and of nats-server under traffic: the judge must find every digest, each once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::traffic::{Random, change};

/// One random message: mostly changes, out of order and repeated; requests; now and then junk.
fn random_message(random: &mut Random) -> (String, String) {
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
            format!("{{\"UserID\":\"user {user}\"}}"),
        ),
        _ => {
            let alarm = random.below(12);
            let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
            let (minute, second, milli) = (random.below(60), random.below(60), random.below(1000));
            let payload = format!(
                "{{\"AlarmID\":\"alarm {alarm}\",\"UserID\":\"user {user}\",\"Status\":\"{status}\",\"ChangedAt\":\"2026-01-01T10:{minute:02}:{second:02}.{milli:03}Z\"}}"
            );
            (twin(random, "AlarmStatusChanged"), payload)
        }
    }
}

/// Many alarms and few requests: digests that a small `max_payload` splits.
fn random_message_of_large_digests(random: &mut Random) -> (String, String) {
    let user = random.below(6);
    if random.below(40) == 0 {
        let payload = format!("{{\"UserID\":\"user {user}\"}}");
        return ("SendAlarmDigest".to_owned(), payload);
    }
    let (alarm, at) = (random.below(200), random.below(3600));
    let status = ["WARNING", "CRITICAL"][random.below(2) as usize];
    let payload = change(
        &format!("user {user}"),
        &format!("alarm {alarm}"),
        status,
        at,
    );
    ("AlarmStatusChanged".to_owned(), payload)
}

/// Publishes confirmed messages until it is told to stop; a message without confirmation is sent again.
async fn publish_traffic(client: Client, seed: u64, stop: Arc<AtomicBool>, num: Arc<AtomicU64>) {
    publish_traffic_of(random_message, client, seed, stop, num).await;
}

async fn publish_traffic_of(
    random_message: fn(&mut Random) -> (String, String),
    client: Client,
    seed: u64,
    stop: Arc<AtomicBool>,
    num: Arc<AtomicU64>,
) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let burst: Vec<_> = (0..50).map(|_| random_message(&mut random)).collect();
        for (subject, payload) in burst {
            while !is_confirmed(&client, &subject, &payload).await {}
            num.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn is_confirmed(client: &Client, subject: &str, payload: &str) -> bool {
    let answer = client.request(subject.to_owned(), payload.to_owned().into());
    match timeout(Duration::from_secs(2), answer).await {
        Ok(Ok(answer)) => String::from_utf8_lossy(&answer.payload).contains("\"seq\":"),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Waits until so many more messages were published.
async fn after_messages(num: &AtomicU64, more: u64) {
    let until = num.load(Ordering::Relaxed) + more;
    crate::support::eventually("traffic", async || num.load(Ordering::Relaxed) >= until).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_and_repeat_nothing() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats).set("input.in_flight=500");
    let client = nats.connect().await.client().clone();
    let (stop, num) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut daemon = setup.start_ready();
    let publishers: Vec<_> = (0..4)
        .map(|seed| {
            tokio::spawn(publish_traffic(
                client.clone(),
                seed,
                Arc::clone(&stop),
                Arc::clone(&num),
            ))
        })
        .collect();
    let mut random = Random(2026);
    for round in 0..100 {
        after_messages(&num, random.below(60)).await;
        daemon.kill();
        // One in three dies while it recovers.
        daemon = if round % 3 == 0 {
            setup.start()
        } else {
            setup.start_ready()
        };
    }
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("the publisher ends");
    }
    judge::judge(&client).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_and_of_the_daemon_lose_and_repeat_nothing() {
    let mut nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let (stop, num) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut daemon = setup.start_ready();
    let publishers: Vec<_> = (10..14)
        .map(|seed| {
            tokio::spawn(publish_traffic(
                client.clone(),
                seed,
                Arc::clone(&stop),
                Arc::clone(&num),
            ))
        })
        .collect();
    let mut random = Random(7);
    for round in 0..10 {
        after_messages(&num, 100 + random.below(200)).await;
        nats.kill().await;
        if round % 2 == 0 {
            daemon.kill();
            daemon = setup.start();
        }
        nats.restart()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }
    after_messages(&num, 200).await;
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("the publisher ends");
    }
    judge::judge(&client).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn split_digests_survive_kills_freezes_and_another_number_of_actors() {
    let mut nats = Nats::start_with(true, "max_payload: 1KB").await;
    let mut setup = Setup::new(&nats).set("output.duplicate_window=1s");
    let client = nats.connect().await.client().clone();
    let (stop, num) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut daemon = setup.start_ready();
    let publishers: Vec<_> = (20..24)
        .map(|seed| {
            tokio::spawn(publish_traffic_of(
                random_message_of_large_digests,
                client.clone(),
                seed,
                Arc::clone(&stop),
                Arc::clone(&num),
            ))
        })
        .collect();
    let mut random = Random(4711);
    for round in 0..30 {
        after_messages(&num, 50 + random.below(150)).await;
        if round % 4 == 1 {
            daemon.freeze();
            after_messages(&num, 20 + random.below(100)).await;
            daemon.thaw();
            continue;
        }
        daemon.kill();
        setup = setup.actors(1 + random.below(5) as usize);
        if round % 10 == 3 {
            nats.kill().await;
            daemon = setup.start();
            nats.restart()
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            continue;
        }
        daemon = setup.start_ready();
    }
    after_messages(&num, 200).await;
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("the publisher ends");
    }
    judge::judge(&client).await;
    drop(daemon);
}
