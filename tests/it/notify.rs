//! What the service manager is told, and what the signals do that it sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::Client;
use futures::StreamExt;
use serde_json::Value;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::judge::{self, demand, read_stream};
use crate::support::nats::Nats;
use crate::support::random::Random;
use crate::support::traffic::{change, publish_taken, request};

#[tokio::test(flavor = "multi_thread")]
async fn ready_is_said_when_input_flows_and_not_while_another_store_owns_the_input() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let owner = Setup::new(&nats);
    let owning = owner.start_ready();
    let second = Setup::new(&nats);
    let mut standing_by = second.start();
    let told = standing_by.told_until("EXTEND_TIMEOUT_USEC=");
    assert!(
        told.contains(&"STATUS=opening the store".to_owned()),
        "{told:?}"
    );
    let told = standing_by.told_until("STATUS=waiting for the claim on the input");
    assert!(!told.contains(&"READY=1".to_owned()), "{told:?}");
    let payload = change("ann", "disk", "CRITICAL", 1);
    publish_taken(&client, "AlarmStatusChanged", payload).await;
    assert!(owning.stop().success());
    let told = standing_by.told_until("READY=1");
    assert!(
        told.contains(&"STATUS=reading the store".to_owned()),
        "{told:?}"
    );
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    judge::judge(&client).await;
    assert!(standing_by.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_what_is_in_flight_and_the_end_is_announced() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    let status = daemon.wait_for("STATUS=0 messages in flight");
    assert_eq!(status, "STATUS=0 messages in flight, 0 owed");
    daemon.terminate();
    daemon.wait_for("STOPPING=1");
    assert!(daemon.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_while_the_workers_work_and_only_if_there_is_one() {
    let nats = Nats::start().await;
    let watched = Setup::new(&nats).env("WATCHDOG_USEC", "4000000");
    let mut daemon = watched.start_ready();
    let began = Instant::now();
    // Longer than the service manager would wait.
    while began.elapsed() < Duration::from_secs(6) {
        let fed = Instant::now();
        daemon.wait_for("WATCHDOG=1");
        assert!(
            fed.elapsed() < Duration::from_secs(4),
            "{:?}",
            fed.elapsed()
        );
    }
    assert!(daemon.stop().success());
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    daemon.wait_for("STATUS=0 messages in flight");
    daemon.terminate();
    let told = daemon.told_until("STOPPING=1");
    assert!(!told.iter().any(|line| line == "WATCHDOG=1"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watchdog_is_fed_while_a_drain_waits_for_the_broker() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats)
        .env("WATCHDOG_USEC", "2000000")
        .set("shutdown.timeout=60s");
    let mut daemon = setup.start_ready();
    owe_something(&nats, &setup).await;
    daemon.terminate();
    daemon.wait_for("STOPPING=1");
    let told = daemon.told_until("WATCHDOG=1");
    assert!(!told.is_empty());
    for _ in 0..3 {
        let fed = Instant::now();
        daemon.wait_for("WATCHDOG=1");
        assert!(
            fed.elapsed() < Duration::from_secs(2),
            "{:?}",
            fed.elapsed()
        );
    }
    nats.resume();
}

/// Lets the broker stand still with a digest that it has not confirmed.
async fn owe_something(nats: &Nats, setup: &Setup) {
    let client = nats.connect().await.client().clone();
    let context = async_nats::jetstream::new(client.clone());
    let mut stream = context.get_stream("TOCSIN_OUT").await.expect("a stream");
    let config = stream.info().await.expect("its state").config.clone();
    // Full: it takes nothing.
    let full = async_nats::jetstream::stream::Config {
        max_bytes: 1,
        discard: async_nats::jetstream::stream::DiscardPolicy::New,
        ..config
    };
    context.update_stream(&full).await.expect("a full stream");
    let payload = change("ann", "disk", "CRITICAL", 1);
    publish_taken(&client, "AlarmStatusChanged", payload).await;
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    eventually("a digest that is owed", async || {
        setup.log().contains("message sent again")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_drain_at_once() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats).set("shutdown.timeout=60s");
    let mut daemon = setup.start_ready();
    owe_something(&nats, &setup).await;
    daemon.terminate();
    daemon.wait_for("STOPPING=1");
    let began = Instant::now();
    daemon.terminate();
    daemon.wait();
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_while_waiting_for_the_broker_ends_well_at_once() {
    let nats = Nats::start().await;
    nats.pause();
    let setup = Setup::new(&nats);
    let mut daemon = setup.start();
    daemon.wait_for("STATUS=waiting for NATS");
    daemon.wait_for("EXTEND_TIMEOUT_USEC=");
    let began = Instant::now();
    assert!(daemon.stop().success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    nats.resume();
}

/// Publishes without waiting, in bursts that end with an answer, until it is told to stop.
async fn publish_in_bursts(client: Client, seed: u64, stop: Arc<AtomicBool>, num: Arc<AtomicU64>) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..100 {
            let user = format!("user {}", random.below(200));
            let (subject, payload) = if random.below(4) == 0 {
                ("SendAlarmDigest", request(&user))
            } else {
                let alarm = format!("alarm {}", random.below(20));
                let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
                let payload = change(&user, &alarm, status, random.below(80_000));
                ("AlarmStatusChanged", payload)
            };
            let published = client.publish(subject, payload.into()).await;
            published.expect("the client takes it");
            num.fetch_add(1, Ordering::Relaxed);
        }
        publish_taken(&client, "SendAlarmDigest", request("user 0")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_publishes_what_it_committed_and_the_next_start_nothing_twice() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats)
        .actors(2)
        .set("metrics.aggregate_interval=1s");
    let mut daemon = setup.start_ready();
    let (stop, num) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let publishers: Vec<_> = (0..3)
        .map(|seed| {
            let (stop, num) = (Arc::clone(&stop), Arc::clone(&num));
            tokio::spawn(publish_in_bursts(client.clone(), seed, stop, num))
        })
        .collect();
    let load = async |more: u64| {
        let until = num.load(Ordering::Relaxed) + more;
        eventually("traffic", async || num.load(Ordering::Relaxed) >= until).await;
    };
    for _ in 0..3 {
        load(3000).await;
        daemon.terminate();
        daemon.wait_for("STOPPING=1");
        load(500).await;
        assert!(daemon.wait().success());
        let log = setup.log();
        assert!(!log.contains("messages stay owed"), "{log}");
        daemon = setup.start_ready();
    }
    load(1000).await;
    stop.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("the publisher ends");
    }
    judge::judge(&client).await;
    assert!(daemon.stop().success());

    // Nothing was owed at the end: the next start has nothing to publish.
    let published = read_stream(&client, "TOCSIN_OUT").await.len();
    let demanded = demand(&read_stream(&client, "TOCSIN_IN").await, |_| false);
    assert_eq!(published, demanded.digests.len());
    let mut aggregates = client.subscribe("MetricAggregate").await.expect("taken");
    client.flush().await.expect("the server answers");
    let daemon = setup.start_ready();
    let mut counts = [0; 2];
    for _ in 0..3 {
        let aggregate = timeout(Duration::from_secs(30), aggregates.next()).await;
        let aggregate = aggregate.expect("in time").expect("the subscription lasts");
        let json: Value = serde_json::from_slice(&aggregate.payload).expect("JSON");
        for metric in json["Metrics"].as_array().expect("metrics") {
            for (name, count) in ["digests_published", "publish_repeats"]
                .iter()
                .zip(&mut counts)
            {
                if metric["Name"] == format!("tocsin_{name}_total") {
                    *count += metric["Count"].as_u64().expect("a count");
                }
            }
        }
    }
    assert_eq!(counts, [0, 0], "published or repeated after a clean stop");
    assert!(daemon.stop().success());
}
