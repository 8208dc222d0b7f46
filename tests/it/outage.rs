//! Brokers that are away or refuse, stores that cannot be used: one clear line, the right exit status, nothing lost.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::judge;
use crate::support::nats::{Nats, limit_stream};
use crate::support::traffic::{change, change_and_request, publish_taken, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_at_the_start_is_waited_for() {
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    nats.kill().await;
    let setup = Setup::new(&nats);
    let mut daemon = setup.start();
    daemon.wait_for("STATUS=waiting for NATS");
    daemon.wait_for("EXTEND_TIMEOUT_USEC=");
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    daemon.wait_for("READY=1");
    change_and_request(&client, "ann", "disk", "CRITICAL", 1).await;
    judge::judge(&client).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_a_minute_loses_and_repeats_nothing() {
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    change_and_request(&client, "ann", "disk", "CRITICAL", 1).await;
    nats.kill().await;
    daemon.wait_for("STATUS=claim on the input lost");
    // The outage itself, not a wait for something to be seen.
    tokio::time::sleep(Duration::from_mins(1)).await;
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    change_and_request(&client, "ann", "disk", "WARNING", 2).await;
    judge::judge(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_told_to_stop_while_its_broker_is_away_ends_well() {
    let mut nats = Nats::start().await;
    let setup = Setup::new(&nats).set("shutdown.timeout=3s");
    let daemon = setup.start_ready();
    nats.kill().await;
    let began = Instant::now();
    assert!(daemon.stop().success());
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_longer_than_the_duplicate_window_gets_each_digest_once() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats).set("output.duplicate_window=2s");
    let daemon = setup.start_ready();
    // Full: it takes nothing more.
    limit_stream(&client, "TOCSIN_OUT", 1).await;
    for user in 0..20 {
        let user = format!("user {user}");
        change_and_request(&client, &user, "disk", "CRITICAL", 1).await;
    }
    eventually("publishes refused for a while", async || {
        setup.log().contains("message sent again")
    })
    .await;
    let began = Instant::now();
    eventually("the window to pass", async || {
        began.elapsed() > Duration::from_secs(4)
    })
    .await;
    daemon.kill();
    limit_stream(&client, "TOCSIN_OUT", -1).await;
    let _daemon = setup.start_ready();
    judge::judge(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_input_stream_drops_its_oldest_and_goes_on_taking() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats).set("input.stream_max_bytes=1MiB");
    let _daemon = setup.start_ready();
    let padding = format!(",\"Padding\":\"{}\"}}", "x".repeat(1000));
    for second in 0..2000 {
        let payload = change("ann", "disk", "CRITICAL", second).replace('}', &padding);
        publish_taken(&client, "AlarmStatusChanged", payload).await;
    }
    let held = judge::read_stream(&client, "TOCSIN_IN").await;
    assert!(
        held.first().is_some_and(|first| first.sequence > 1),
        "nothing was dropped"
    );
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    eventually("the digest", async || {
        let digests = judge::read_stream(&client, "TOCSIN_OUT").await;
        digests.iter().any(|digest| {
            String::from_utf8_lossy(&digest.payload)
                .contains("\"LatestChangedAt\":\"2026-01-01T00:33:19Z\"")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_waited_for_and_said() {
    let config = "authorization { user: right, password: secret }";
    let nats = Nats::start_with(true, config).await;
    let setup = Setup::new(&nats)
        .set("nats.user=wrong")
        .set("nats.password=guess");
    let mut daemon = setup.start();
    daemon.wait_for("STATUS=waiting for NATS");
    eventually("the cause", async || {
        setup.log().to_lowercase().contains("authorization")
    })
    .await;
    assert!(!setup.log().contains("guess"));
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_is_one_clear_line() {
    let nats = Nats::start().await;
    let locked = Setup::new(&nats);
    let holder = locked.start_ready();
    let (status, line) = locked.run();
    assert!(
        status == 2 && line.contains("is in use by another process"),
        "{status}: {line}"
    );
    assert!(holder.stop().success());

    let blocked = Setup::new(&nats);
    fs::write(blocked.store(), "a file").expect("a file can be written");
    let (status, line) = blocked.run();
    assert!(status == 2 && line.contains("store"), "{status}: {line}");

    let journal = fs::read_dir(locked.store())
        .expect("the store is a folder")
        .map(|entry| entry.expect("an entry").path())
        .find(|path| path.to_string_lossy().contains("journal-"))
        .expect("the store has a journal");
    let mut bytes = fs::read(&journal).expect("the journal can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&journal, bytes).expect("the journal can be written");
    let (status, line) = locked.run();
    assert!(
        status == 2 && line.contains("is damaged at byte"),
        "{status}: {line}"
    );
}
