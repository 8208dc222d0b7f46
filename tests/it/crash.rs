//! kill -9 and SIGTERM of the daemon, kill -9 of nats-server, under traffic: the judge must find every digest, each once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::traffic::{
    Load, Pace, Random, Traffic, change, message_for_large_digests, request,
};
use crate::support::{eventually, judge};

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_daemon_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 60,
        hour: 1000,
        full: 5000,
    });
    let nats = Nats::start().await;
    let setup = Setup::new(&nats).set("input.in_flight=500");
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let load = Load::at(Pace::Full).in_bursts_of(400);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    let mut num_in_recovery = 0;
    while row.goes_on() {
        round += 1;
        traffic.set_pace(Pace::in_turn(round));
        traffic.after(random.below(60)).await;
        daemon.kill();
        row.count("kill -9 of the daemon", 1);
        daemon = setup.start();
        // One in three dies while it recovers.
        let is_ready = if round % 3 == 0 {
            let time = Duration::from_millis(random.below(100));
            daemon.told_within("READY=1", time).is_some()
        } else {
            daemon.wait_for("READY=1");
            true
        };
        num_in_recovery += u64::from(!is_ready);
    }
    assert!(num_in_recovery > 0, "every daemon recovered before its end");
    row.count("of these before it had recovered", num_in_recovery);
    judge::conclude(row, &client, traffic, daemon).await;
}

/// How a nats-server is told to sync every message to its disk before it confirms it.
const SYNC_ALWAYS: &str = "jetstream { sync_interval: always }";

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 6,
        hour: 100,
        full: 500,
    });
    let mut nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let daemon = setup.start_ready();
    let load = Load::at(Pace::Full).in_bursts_of(2000);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        round += 1;
        traffic.set_pace(Pace::in_turn(round));
        traffic.after(100 + random.below(300)).await;
        nats.kill().await;
        if round % 2 == 0 {
            row.count("kill -9 of nats-server with sync_interval: always", 1);
            nats.set_config(String::new());
        } else {
            row.count("kill -9 of nats-server", 1);
            nats.set_config(SYNC_ALWAYS.to_owned());
        }
        nats.restart().await.expect("a second start");
    }
    traffic.after(200).await;
    judge::conclude(row, &client, traffic, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_and_of_the_daemon_at_once_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 6,
        hour: 100,
        full: 500,
    });
    let mut nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let load = Load::at(Pace::Full).in_bursts_of(2000);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        round += 1;
        traffic.set_pace(Pace::in_turn(round));
        traffic.after(100 + random.below(300)).await;
        nats.kill().await;
        daemon.kill();
        row.count("kill -9 of nats-server and the daemon at once", 1);
        // Either is there first.
        if round % 2 == 0 {
            daemon = setup.start();
            nats.restart().await.expect("a second start");
        } else {
            nats.restart().await.expect("a second start");
            daemon = setup.start();
        }
    }
    traffic.after(200).await;
    judge::conclude(row, &client, traffic, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_of_the_daemon_within_a_burst_are_clean_and_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 6,
        hour: 100,
        full: 500,
    });
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let load = Load::at(Pace::Full).at_most(1_000_000).in_bursts_of(4000);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    let mut num_during_stops = 0;
    while row.goes_on() {
        round += 1;
        traffic.set_pace(Pace::in_turn(round));
        traffic.after(100 + random.below(500)).await;
        let before = traffic.num_confirmed();
        assert!(daemon.stop().success(), "{}", setup.log());
        num_during_stops += traffic.num_confirmed() - before;
        row.count("SIGTERM of the daemon, ended with 0", 1);
        let drained = "drained: what was accepted is committed, what was owed is published";
        assert_eq!(setup.num_logged(drained), round, "{}", setup.log());
        daemon = setup.start_ready();
    }
    assert!(num_during_stops > 0, "no stop was within a burst");
    row.count("messages published during the stops", num_during_stops);
    judge::conclude(row, &client, traffic, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_digests_survive_kills_freezes_and_another_number_of_actors() {
    let mut row = Row::new(Rounds {
        test: 30,
        hour: 200,
        full: 1000,
    });
    let mut nats = Nats::start_with(true, "max_payload: 1KB").await;
    let mut setup = Setup::new(&nats).set("output.duplicate_window=1s");
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let load = Load::at(Pace::Full).of(message_for_large_digests);
    let traffic = Traffic::start(&client, row.seed(), load.in_bursts_of(500)).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        round += 1;
        traffic.set_pace(Pace::in_turn(round));
        traffic.after(50 + random.below(150)).await;
        if round % 4 == 1 {
            daemon.freeze();
            traffic.after(20 + random.below(100)).await;
            daemon.thaw();
            row.count("SIGSTOP of the daemon for a moment", 1);
            continue;
        }
        daemon.kill();
        row.count("kill -9 of the daemon, then another number of actors", 1);
        setup = setup.actors(1 + random.below(5) as usize);
        if round % 10 == 3 {
            nats.kill().await;
            row.count("kill -9 of nats-server", 1);
            daemon = setup.start();
            nats.restart().await.expect("a second start");
            continue;
        }
        daemon = setup.start_ready();
    }
    traffic.after(200).await;
    judge::conclude(row, &client, traffic, daemon).await;
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
async fn on_core_nats_every_answered_change_is_in_a_digest_after_kills() {
    const USERS: u64 = 4;
    let mut row = Row::new(Rounds::in_test(40));
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
    let mut random = Random(row.seed());
    while row.goes_on() {
        let until = num.load(Ordering::Relaxed) + random.below(40);
        eventually("traffic", async || num.load(Ordering::Relaxed) >= until).await;
        daemon.kill();
        row.count("kill -9 of the daemon", 1);
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
    row.count(
        "changes answered to their publishers",
        answered.len() as u64,
    );
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
        row.count("digests checked", 1);
    }
    drop(daemon);
    row.close();
}
