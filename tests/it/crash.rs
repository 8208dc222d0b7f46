//! kill -9 of the daemon and of nats-server under traffic: the judge must find every digest, each once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::traffic::{Random, Traffic, change, message_for_large_digests, request};
use crate::support::{eventually, judge};

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_daemon_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 100,
        hour: 200,
        full: 1000,
    });
    let nats = Nats::start().await;
    let setup = Setup::new(&nats).set("input.in_flight=500");
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let traffic = Traffic::start(&client, 0);
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        round += 1;
        traffic.after(random.below(60)).await;
        daemon.kill();
        row.count("kill -9 of the daemon", 1);
        // One in three dies while it recovers.
        daemon = if round % 3 == 0 {
            setup.start()
        } else {
            setup.start_ready()
        };
    }
    traffic.stop().await;
    judge::judge(&client).await;
    drop(daemon);
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_and_of_the_daemon_lose_and_repeat_nothing() {
    let mut nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let traffic = Traffic::start(&client, 10);
    let mut random = Random(7);
    for round in 0..10 {
        traffic.after(100 + random.below(200)).await;
        nats.kill().await;
        if round % 2 == 0 {
            daemon.kill();
            daemon = setup.start();
        }
        nats.restart()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
    }
    traffic.after(200).await;
    traffic.stop().await;
    judge::judge(&client).await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn split_digests_survive_kills_freezes_and_another_number_of_actors() {
    let mut nats = Nats::start_with(true, "max_payload: 1KB").await;
    let mut setup = Setup::new(&nats).set("output.duplicate_window=1s");
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let traffic = Traffic::start_with(&client, 20, message_for_large_digests);
    let mut random = Random(4711);
    for round in 0..30 {
        traffic.after(50 + random.below(150)).await;
        if round % 4 == 1 {
            daemon.freeze();
            traffic.after(20 + random.below(100)).await;
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
    traffic.after(200).await;
    traffic.stop().await;
    judge::judge(&client).await;
    drop(daemon);
}

/// Publishes to core NATS and repeats until the daemon says that it has committed the message.
async fn publish_until_answered(client: &async_nats::Client, subject: &str, payload: &str) {
    loop {
        let asked = client.request(subject.to_owned(), payload.to_owned().into());
        if let Ok(Ok(answer)) = timeout(Duration::from_secs(1), asked).await
            && answer.payload == "{\"ok\":true}"
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_every_answered_change_is_in_a_digest_after_forty_kills() {
    const USERS: u64 = 4;
    let nats = Nats::start_with(false, "").await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let mut digests = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    let mut daemon = setup.start_ready();
    let stop = Arc::new(AtomicBool::new(false));
    let num = Arc::new(AtomicU64::new(0));
    let publishers: Vec<_> = (0..USERS)
        .map(|user| {
            let (client, stop, num) = (client.clone(), Arc::clone(&stop), Arc::clone(&num));
            tokio::spawn(async move {
                let user = format!("user {user}");
                let mut alarm = 0;
                while !stop.load(Ordering::Relaxed) {
                    let payload = change(&user, &format!("a{alarm}"), "CRITICAL", 1);
                    publish_until_answered(&client, "AlarmStatusChanged", &payload).await;
                    alarm += 1;
                    num.fetch_add(1, Ordering::Relaxed);
                    if alarm % 7 == 0 {
                        publish_until_answered(&client, "SendAlarmDigest", &request(&user)).await;
                    }
                }
                publish_until_answered(&client, "SendAlarmDigest", &request(&user)).await;
                alarm
            })
        })
        .collect();
    let mut random = Random(99);
    for _ in 0..40 {
        let until = num.load(Ordering::Relaxed) + random.below(40);
        eventually("traffic", async || num.load(Ordering::Relaxed) >= until).await;
        daemon.kill();
        daemon = setup.start_ready();
    }
    stop.store(true, Ordering::Relaxed);
    let mut answered = BTreeSet::new();
    for (user, publisher) in publishers.into_iter().enumerate() {
        let num_alarms = publisher.await.expect("the publisher ends");
        for alarm in 0..num_alarms {
            answered.insert((format!("user {user}"), format!("a{alarm}")));
        }
    }
    while !answered.is_empty() {
        let digest = timeout(Duration::from_secs(20), digests.next()).await;
        let digest = digest.unwrap_or_else(|_| panic!("in no digest: {answered:?}"));
        let json: serde_json::Value =
            serde_json::from_slice(&digest.expect("a digest").payload).expect("a digest is JSON");
        let user = json["UserID"].as_str().expect("a user");
        for entry in json["ActiveAlarms"].as_array().expect("alarms") {
            let alarm = entry["AlarmID"].as_str().expect("an alarm");
            answered.remove(&(user.to_owned(), alarm.to_owned()));
        }
    }
    drop(daemon);
}
