//! The input stream rewritten behind the daemon's back: it never stops ringing, and never skips silently.

use std::path::Path;
use std::process::Command;

use async_nats::Client;
use async_nats::jetstream;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

/// Every digest from now on.
async fn digests(client: &Client) -> mpsc::Receiver<String> {
    let mut subscription = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    let (sender, receiver) = mpsc::channel(10_000);
    tokio::spawn(async move {
        while let Some(message) = subscription.next().await {
            let text = String::from_utf8_lossy(&message.payload).into_owned();
            if sender.send(text).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Raises an alarm and asks: the digest must list exactly it.
async fn rings(client: &Client, digests: &mut mpsc::Receiver<String>, alarm: &str, second: u64) {
    publish_taken(
        client,
        "AlarmStatusChanged",
        change("ann", alarm, "CRITICAL", second),
    )
    .await;
    publish_taken(client, "SendAlarmDigest", request("ann")).await;
    let deadline = std::time::Duration::from_secs(30);
    let digest = tokio::time::timeout(deadline, digests.recv()).await;
    let digest = digest
        .unwrap_or_else(|_| panic!("no digest with {alarm}"))
        .expect("a digest");
    assert_eq!(digest.matches("AlarmID").count(), 1, "{digest}");
    assert!(digest.contains(&format!("\"{alarm}\"")), "{digest}");
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp")
        .arg("-a")
        .arg(from)
        .arg(to)
        .status()
        .expect("cp runs");
    assert!(status.success());
}

/// A stream restored from an older copy keeps its `created`, and its next sequences are ones that we have seen.
async fn a_stream_rolled_back_is_read_again(daemon_sees_it: bool) {
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    let mut heard = digests(&client).await;
    rings(&client, &mut heard, "one", 1).await;
    nats.stop(std::time::Duration::from_secs(10)).await;
    let kept = tempfile::tempdir().expect("a folder");
    copy(&nats.folder().join("jetstream"), kept.path());
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    rings(&client, &mut heard, "two", 2).await;
    rings(&client, &mut heard, "three", 3).await;
    if !daemon_sees_it {
        daemon.stop();
        daemon = setup.start();
        daemon.kill();
    }
    nats.stop(std::time::Duration::from_secs(10)).await;
    std::fs::remove_dir_all(nats.folder().join("jetstream")).expect("the store can be removed");
    copy(&kept.path().join("jetstream"), nats.folder());
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let daemon = setup.start_ready();
    rings(&client, &mut heard, "four", 4).await;
    rings(&client, &mut heard, "five", 5).await;
    eventually("a line about the history", async || {
        setup.log().contains("ends before")
    })
    .await;
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_rolled_back_while_the_daemon_is_down_is_read_again() {
    a_stream_rolled_back_is_read_again(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_deleted_and_made_anew_under_the_daemon_is_read_from_its_beginning() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let mut heard = digests(&client).await;
    rings(&client, &mut heard, "one", 1).await;
    rings(&client, &mut heard, "two", 2).await;
    let context = jetstream::new(client.clone());
    context
        .delete_stream("TOCSIN_IN")
        .await
        .expect("the stream can be deleted");
    // The daemon makes it again.
    eventually("the stream", async || {
        context.get_stream("TOCSIN_IN").await.is_ok()
    })
    .await;
    rings(&client, &mut heard, "three", 3).await;
    rings(&client, &mut heard, "four", 4).await;
    assert!(setup.log().contains("another one"), "{}", setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_purged_before_they_were_read_are_counted_exactly() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let mut heard = digests(&client).await;
    rings(&client, &mut heard, "one", 1).await;
    assert!(daemon.stop().success());
    for second in 10..47 {
        publish_taken(
            &client,
            "AlarmStatusChanged",
            change("bob", "disk", "WARNING", second),
        )
        .await;
    }
    let context = jetstream::new(client.clone());
    let stream = context
        .get_stream("TOCSIN_IN")
        .await
        .expect("the stream exists");
    stream.purge().await.expect("the stream can be purged");
    let _daemon = setup.start_ready();
    rings(&client, &mut heard, "two", 2).await;
    let log = setup.log();
    assert!(
        log.lines()
            .any(|line| line.contains("no longer holds") && line.contains("37")),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_store_stands_by_says_who_holds_the_input_and_takes_over() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    // The broker has forgotten the ids when the other store answers the same requests.
    let setup = || Setup::new(&nats).set("output.duplicate_window=1s");
    let (first, second) = (setup(), setup());
    let holder = first.start_ready();
    let mut standby = second.start();
    eventually("who holds the input", async || {
        second.log().contains(&holder.pid().to_string())
    })
    .await;
    let ring = async |alarm: &str| {
        publish_taken(
            &client,
            "AlarmStatusChanged",
            change("ann", alarm, "CRITICAL", 1),
        )
        .await;
        publish_taken(&client, "SendAlarmDigest", request("ann")).await;
        judge::judge(&client).await;
    };
    ring("one").await;
    holder.kill();
    standby.wait_for("READY=1");
    // Its store is empty: it reads everything, and answers under the same ids.
    ring("two").await;
    // The first store comes back, and now stands by itself.
    let _returned = first.start();
    eventually("who holds the input", async || {
        first.log().contains(&standby.pid().to_string())
    })
    .await;
    ring("three").await;
}
