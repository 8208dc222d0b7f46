//! The input stream rewritten behind the daemon's back: it never stops ringing, and never skips silently.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use futures::StreamExt;
use tokio::sync::mpsc;

use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::evidence::{Rounds, Row};
use crate::support::heard::Heard;
use crate::support::judge::{self, Stored};
use crate::support::nats::{Nats, num_messages};
use crate::support::random::Random;
use crate::support::traffic::{
    Load, Pace, Traffic, change, change_and_request, publish_taken, request,
};

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
    let deadline = Duration::from_secs(30);
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
    nats.stop(Duration::from_secs(10)).await;
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
    nats.stop(Duration::from_secs(10)).await;
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

/// As many users as the traffic has.
const NUM_USERS: u64 = 40;

/// The input as it was read, whatever became of it, and what was published.
struct Told {
    input: Vec<Stored>,
    heard: Heard,
    num_phases: u64,
}

impl Told {
    /// Publishes for a while, then as [`Told::finish`].
    async fn phase(&mut self, client: &Client, row: &mut Row, random: &mut Random) {
        let traffic = start_traffic(client, random).await;
        traffic.after(100 + random.below(300)).await;
        self.finish(traffic, client, row).await;
    }

    /// Stops the traffic, asks for everybody's digest, and waits until everything is answered.
    async fn finish(&mut self, traffic: Traffic, client: &Client, row: &mut Row) {
        let confirmed = traffic.stop().await.num();
        row.count("messages confirmed to their publishers", confirmed);
        for user in 0..NUM_USERS {
            publish_taken(client, "SendAlarmDigest", request(&format!("user {user}"))).await;
        }
        // Something is due for certain: when it is answered, all before it was read.
        self.num_phases += 1;
        let user = format!("phase {}", self.num_phases);
        change_and_request(client, &user, "disk", "CRITICAL", 1).await;
        let last = self.input.last().map(|it| (it.sequence, it.nanos));
        let stream = judge::read_stream(client, "TOCSIN_IN").await;
        let known = stream
            .iter()
            .position(|it| Some((it.sequence, it.nanos)) == last)
            .map_or(0, |at| at + 1);
        row.count("messages in the input", (stream.len() - known) as u64);
        self.input.extend_from_slice(&stream[known..]);
        self.answered(client).await;
    }

    /// Ends the daemon, and demands what was published up to then.
    async fn conclude(self, mut row: Row, client: &Client, daemon: Daemon) {
        assert!(daemon.stop().success(), "the daemon does not end well");
        self.heard
            .hear(&judge::read_stream(client, "TOCSIN_OUT").await);
        let demand = judge::demand(&self.input, |_| false);
        let num_repeats = self.heard.demand(&demand);
        row.count("digests checked", demand.digests.len() as u64);
        row.fact(
            "digests heard again under their id",
            num_repeats.to_string(),
        );
        row.close();
    }

    async fn answered(&self, client: &Client) {
        let demand = judge::demand(&self.input, |_| false);
        eventually("everything answered", async || {
            self.heard
                .hear(&judge::read_stream(client, "TOCSIN_OUT").await);
            self.heard.has_all(&demand)
        })
        .await;
    }
}

async fn start_traffic(client: &Client, random: &mut Random) -> Traffic {
    Traffic::start(client, random.next(), Load::at(Pace::Paced(500))).await
}

/// How the input stream's history is rewritten.
#[derive(Clone, Copy, Debug)]
enum Rewriting {
    Deletion,
    Purge,
    PurgeOfUnread,
    RollBack,
}

/// What is said, at error level, of a history that does not stand.
const REWRITTEN: &str = "ERROR tocsin::bus::jetstream::reader: the input's history was rewritten";

async fn said_more(setup: &Setup, num_before: usize) {
    eventually("a rewritten history said", async || {
        setup.log().matches(REWRITTEN).count() > num_before
    })
    .await;
}

async fn restart(nats: &mut Nats) {
    let restarted = nats.restart().await;
    restarted.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_its_disk_is_filled_again_under_the_daemon() {
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let mut heard = digests(&client).await;
    rings(&client, &mut heard, "one", 1).await;
    nats.stop(Duration::from_secs(10)).await;
    std::fs::remove_dir_all(nats.folder().join("jetstream")).expect("removed");
    restart(&mut nats).await;
    eventually("the stream", async || {
        let context = jetstream::new(client.clone());
        context.get_stream("TOCSIN_IN").await.is_ok()
    })
    .await;
    rings(&client, &mut heard, "two", 2).await;
    publish_taken(&client, "AlarmStatusChanged", "junk").await;
    // The digest was heard before there was a stream to keep it.
    eventually("the digest and the dead letter kept", async || {
        num_messages(&client, "TOCSIN_OUT").await == 1
            && num_messages(&client, "TOCSIN_DEAD_LETTER").await == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rewritten_histories_lose_and_repeat_nothing_and_are_said() {
    let mut row = Row::new(Rounds::in_test(5));
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let mut told = Told {
        input: Vec::new(),
        heard: Heard::start(&client).await,
        num_phases: 0,
    };
    told.phase(&client, &mut row, &mut random).await;
    let context = jetstream::new(client.clone());
    let mut left = Vec::new();
    while row.goes_on() {
        // Each once, in another order each time.
        if left.is_empty() {
            left = vec![
                Rewriting::Deletion,
                Rewriting::Purge,
                Rewriting::PurgeOfUnread,
                Rewriting::RollBack,
            ];
        }
        let num_said = setup.log().matches(REWRITTEN).count();
        match left.swap_remove(random.below(left.len() as u64) as usize) {
            Rewriting::Deletion => {
                context.delete_stream("TOCSIN_IN").await.expect("deleted");
                said_more(&setup, num_said).await;
                row.count("input streams deleted and made anew", 1);
            }
            Rewriting::Purge => {
                let stream = context.get_stream("TOCSIN_IN").await.expect("the stream");
                stream.purge().await.expect("purged");
                row.count("input streams purged", 1);
            }
            Rewriting::PurgeOfUnread => {
                assert!(daemon.stop().success());
                let num = 1 + random.below(50);
                for second in 0..num {
                    let unread = change("bob", "disk", "WARNING", second);
                    publish_taken(&client, "AlarmStatusChanged", unread).await;
                }
                let stream = context.get_stream("TOCSIN_IN").await.expect("the stream");
                stream.purge().await.expect("purged");
                daemon = setup.start_ready();
                let exactly = format!("missing={num}");
                let log = setup.log();
                let said = |line: &str| line.contains("no longer holds") && line.contains(&exactly);
                assert!(log.lines().any(said), "{num}: {log}");
                row.count("input streams purged of unread messages", 1);
                row.count("unread messages purged, each counted", num);
            }
            Rewriting::RollBack => {
                nats.stop(Duration::from_secs(10)).await;
                let kept = tempfile::tempdir().expect("a folder");
                copy(&nats.folder().join("jetstream"), kept.path());
                restart(&mut nats).await;
                told.phase(&client, &mut row, &mut random).await;
                let output = judge::read_stream(&client, "TOCSIN_OUT").await;
                told.heard.lose(&output);
                nats.stop(Duration::from_secs(10)).await;
                std::fs::remove_dir_all(nats.folder().join("jetstream")).expect("removed");
                copy(&kept.path().join("jetstream"), nats.folder());
                restart(&mut nats).await;
                said_more(&setup, num_said).await;
                told.heard.is_kept_again();
                row.count("brokers rolled back to an older copy", 1);
            }
        }
        told.phase(&client, &mut row, &mut random).await;
    }
    told.conclude(row, &client, daemon).await;
}

/// Which stream is emptied or deleted under way, and what is said of it.
const GONE: [(&str, &str); 3] = [
    (
        "TOCSIN_OUT",
        "the output stream is gone, making it anew stream=\"TOCSIN_OUT\"",
    ),
    (
        "TOCSIN_DEAD_LETTER",
        "the output stream is gone, making it anew stream=\"TOCSIN_DEAD_LETTER\"",
    ),
    (
        "TOCSIN_CLAIM",
        "the stream of the claim is gone, making it anew stream=\"TOCSIN_CLAIM\"",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_ours_purged_or_deleted_under_way_lose_no_digest() {
    let mut row = Row::new(Rounds::in_test(4));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let mut told = Told {
        input: Vec::new(),
        heard: Heard::start(&client).await,
        num_phases: 0,
    };
    let context = jetstream::new(client.clone());
    for round in 0.. {
        if !row.goes_on() {
            break;
        }
        let traffic = start_traffic(&client, &mut random).await;
        traffic.after(100 + random.below(300)).await;
        // One in four is only emptied, and nothing needs to be said.
        if let Some(&(name, said)) = GONE.get(round % 4) {
            let num_said = setup.log().matches(said).count();
            if name == "TOCSIN_OUT" {
                told.heard.lose(&judge::read_stream(&client, name).await);
            }
            context.delete_stream(name).await.expect("deleted");
            eventually(said, async || setup.log().matches(said).count() > num_said).await;
            row.count("streams deleted under way", 1);
            row.count(&format!("of these {name}"), 1);
        } else {
            let stream = context.get_stream("TOCSIN_OUT").await.expect("the stream");
            stream.purge().await.expect("purged");
            row.count("streams purged under way", 1);
        }
        traffic.after(100 + random.below(300)).await;
        told.heard.is_kept_again();
        told.finish(traffic, &client, &mut row).await;
    }
    told.conclude(row, &client, daemon).await;
}
