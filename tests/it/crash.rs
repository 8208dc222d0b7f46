//! kill -9 of the daemon and of nats-server under traffic: the judge must find every digest, each once.

use crate::support::daemon::Setup;
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::traffic::{Random, Traffic, message_for_large_digests};

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_lose_and_repeat_nothing() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats).set("input.in_flight=500");
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let traffic = Traffic::start(&client, 0);
    let mut random = Random(2026);
    for round in 0..100 {
        traffic.after(random.below(60)).await;
        daemon.kill();
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
