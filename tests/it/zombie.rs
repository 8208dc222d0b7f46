//! A daemon that is frozen for longer than its claim lasts, and wakes up when another owns the input.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::random::Random;
use crate::support::traffic::{Load, Pace, Traffic, change, publish_taken, request};
use crate::support::{eventually, judge};

/// What lies in a store, in bytes of each file.
fn stored(store: &Path) -> Vec<(std::path::PathBuf, u64)> {
    let mut files: Vec<_> = fs::read_dir(store)
        .expect("the store is a folder")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| (path.clone(), fs::metadata(&path).expect("a file").len()))
        .collect();
    files.sort();
    files
}

/// Waits until a store has not grown for longer than a worker keeps what it need not commit at once: no write
/// is under way that would end after its process wakes up.
async fn quiet(store: &Path) {
    let seen = Mutex::new((stored(store), Instant::now()));
    eventually("a store at rest", async || {
        let now = stored(store);
        let mut seen = seen.lock().expect("nobody panics while holding it");
        if seen.0 != now {
            *seen = (now, Instant::now());
        }
        seen.1.elapsed() > Duration::from_secs(4)
    })
    .await;
}

async fn ring(client: &async_nats::Client, user: &str, second: u64) {
    let payload = change(user, &format!("alarm {second}"), "CRITICAL", second);
    publish_taken(client, "AlarmStatusChanged", payload).await;
    publish_taken(client, "SendAlarmDigest", request(user)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_daemon_that_wakes_up_without_its_claim_neither_commits_nor_publishes() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let frozen = Setup::new(&nats);
    let daemon = frozen.start_ready();
    for user in 0..20 {
        ring(&client, &format!("user {user}"), 1).await;
    }
    judge::judge(&client).await;
    quiet(&frozen.store()).await;
    daemon.freeze();
    // These lie in its sockets when it wakes up.
    for user in 0..20 {
        ring(&client, &format!("user {user}"), 2).await;
    }
    let other = Setup::new(&nats);
    let _owner = other.start_ready();
    judge::judge(&client).await;
    let before = stored(&frozen.store());
    daemon.thaw();
    eventually("the loss noticed", async || {
        frozen.log().contains("another process has taken the input")
            || frozen.log().contains("owns the input (process")
    })
    .await;
    for user in 0..20 {
        ring(&client, &format!("user {user}"), 3).await;
    }
    judge::judge(&client).await;
    assert_eq!(stored(&frozen.store()), before, "it committed");
    assert!(
        !frozen.log().contains("first attempt for a repeat"),
        "it published:\n{}",
        frozen.log()
    );
    // It drains with nothing to do, and does not wait for what it may not do.
    assert!(daemon.stop().success());
    assert_eq!(stored(&frozen.store()).len(), before.len());
}

/// Logged by the store that owns the input from now on, and by one that finds another's claim.
const OWNS: &str = "this store owns the input";
const STANDS_BY: &str = "owns the input (process";

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_take_over_from_each_other_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds {
        test: 2,
        hour: 10,
        full: 60,
    });
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    // Shorter than a takeover takes: what was answered before must be found in the output.
    let setups = [(); 2].map(|()| Setup::new(&nats).set("output.duplicate_window=8s"));
    let daemons = [setups[0].start_ready(), setups[1].start()];
    eventually("a standby", async || setups[1].num_logged(STANDS_BY) > 0).await;
    let load = Load::at(Pace::Full).in_bursts_of(3000);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        let (owner, standby) = (round % 2, (round + 1) % 2);
        traffic.set_pace(Pace::in_turn(round as u64 * 5));
        round += 1;
        traffic.after(200 + random.below(500)).await;
        let num_owned = setups[standby].num_logged(OWNS);
        daemons[owner].freeze();
        row.count("SIGSTOP of the owner beyond its claim", 1);
        eventually("the standby owns the input", async || {
            setups[standby].num_logged(OWNS) > num_owned
        })
        .await;
        row.count("standbys that took over", 1);
        // What it publishes now would come a second time from the one that wakes up.
        traffic.after(200 + random.below(500)).await;
        let num_stood_by = setups[owner].num_logged(STANDS_BY);
        daemons[owner].thaw();
        eventually("the loss noticed", async || {
            setups[owner].num_logged(STANDS_BY) > num_stood_by
        })
        .await;
    }
    let confirmed = traffic.stop().await;
    let judged = judge::judge_confirmed(&client, &confirmed).await;
    let [first, second] = daemons;
    // The standby goes first: nobody takes over again.
    let (owner, standby) = if round % 2 == 0 {
        (first, second)
    } else {
        (second, first)
    };
    assert!(standby.stop().success());
    judged.conclude(row, &client, owner).await;
}
