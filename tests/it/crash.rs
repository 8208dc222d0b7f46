//! kill -9 and SIGTERM of the daemon, kill -9 of nats-server, under traffic: the judge must find every digest, each once.

use std::time::Duration;

use crate::support::answered::Publishers;
use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::random::Random;
use crate::support::rig::Rig;
use crate::support::traffic::{Load, Pace, message_for_large_digests};

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_daemon_lose_and_repeat_nothing() {
    let rounds = Rounds {
        test: 60,
        hour: 1000,
        full: 5000,
    };
    let load = Load::at(Pace::Full).in_bursts_of(400);
    let (mut rig, mut daemon) =
        Rig::ready(rounds, Nats::start().await, &["input.in_flight=500"], load).await;
    let mut round = 0;
    let mut num_in_recovery = 0;
    while rig.row.goes_on() {
        round += 1;
        rig.traffic.set_pace(Pace::in_turn(round));
        rig.traffic.after(rig.random.below(60)).await;
        daemon.kill();
        rig.row.count("kill -9 of the daemon", 1);
        daemon = rig.setup.start();
        // One in three dies while it recovers.
        let is_ready = if round % 3 == 0 {
            let time = Duration::from_millis(rig.random.below(100));
            daemon.told_within("READY=1", time).is_some()
        } else {
            daemon.wait_for("READY=1");
            true
        };
        num_in_recovery += u64::from(!is_ready);
    }
    assert!(num_in_recovery > 0, "every daemon recovered before its end");
    rig.row
        .count("of these before it had recovered", num_in_recovery);
    rig.conclude(daemon).await;
}

/// How often a server or a daemon ends and begins again where both recover each time.
const RESTARTS: Rounds = Rounds {
    test: 6,
    hour: 100,
    full: 500,
};

/// How a nats-server is told to sync every message to its disk before it confirms it.
const SYNC_ALWAYS: &str = "jetstream { sync_interval: always }";

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_lose_and_repeat_nothing() {
    let load = Load::at(Pace::Full).in_bursts_of(2000);
    let (mut rig, daemon) = Rig::ready(RESTARTS, Nats::start().await, &[], load).await;
    let mut round = 0;
    while rig.row.goes_on() {
        round += 1;
        rig.traffic.set_pace(Pace::in_turn(round));
        rig.traffic.after(100 + rig.random.below(300)).await;
        rig.nats.kill().await;
        if round % 2 == 0 {
            rig.row
                .count("kill -9 of nats-server with sync_interval: always", 1);
            rig.nats.set_config(String::new());
        } else {
            rig.row.count("kill -9 of nats-server", 1);
            rig.nats.set_config(SYNC_ALWAYS.to_owned());
        }
        rig.nats.restart().await.expect("a second start");
    }
    rig.traffic.after(200).await;
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_broker_and_of_the_daemon_at_once_lose_and_repeat_nothing() {
    let load = Load::at(Pace::Full).in_bursts_of(2000);
    let (mut rig, mut daemon) = Rig::ready(RESTARTS, Nats::start().await, &[], load).await;
    let mut round = 0;
    while rig.row.goes_on() {
        round += 1;
        rig.traffic.set_pace(Pace::in_turn(round));
        rig.traffic.after(100 + rig.random.below(300)).await;
        rig.nats.kill().await;
        daemon.kill();
        rig.row
            .count("kill -9 of nats-server and the daemon at once", 1);
        // Either is there first.
        if round % 2 == 0 {
            daemon = rig.setup.start();
            rig.nats.restart().await.expect("a second start");
        } else {
            rig.nats.restart().await.expect("a second start");
            daemon = rig.setup.start();
        }
    }
    rig.traffic.after(200).await;
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_of_the_daemon_within_a_burst_are_clean_and_lose_and_repeat_nothing() {
    let load = Load::at(Pace::Full).at_most(1_000_000).in_bursts_of(4000);
    let (mut rig, mut daemon) = Rig::ready(RESTARTS, Nats::start().await, &[], load).await;
    let mut round = 0;
    let mut num_during_stops = 0;
    while rig.row.goes_on() {
        round += 1;
        rig.traffic.set_pace(Pace::in_turn(round));
        rig.traffic.after(100 + rig.random.below(500)).await;
        let before = rig.traffic.num_confirmed();
        assert!(daemon.stop().success(), "{}", rig.setup.log());
        num_during_stops += rig.traffic.num_confirmed() - before;
        rig.row.count("SIGTERM of the daemon, ended with 0", 1);
        let drained = "drained: what was accepted is committed, what was owed is published";
        assert_eq!(rig.setup.num_logged(drained), round, "{}", rig.setup.log());
        daemon = rig.setup.start_ready();
    }
    assert!(num_during_stops > 0, "no stop was within a burst");
    rig.row
        .count("messages published during the stops", num_during_stops);
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn split_digests_survive_kills_freezes_and_another_number_of_actors() {
    let rounds = Rounds {
        test: 30,
        hour: 200,
        full: 1000,
    };
    let load = Load::at(Pace::Full)
        .of(message_for_large_digests)
        .in_bursts_of(500);
    let (mut rig, mut daemon) = Rig::ready(
        rounds,
        Nats::start_with(true, "max_payload: 1KB").await,
        &["output.duplicate_window=1s"],
        load,
    )
    .await;
    let mut round = 0;
    while rig.row.goes_on() {
        round += 1;
        rig.traffic.set_pace(Pace::in_turn(round));
        rig.traffic.after(50 + rig.random.below(150)).await;
        if round % 4 == 1 {
            daemon.freeze();
            rig.traffic.after(20 + rig.random.below(100)).await;
            daemon.thaw();
            rig.row.count("SIGSTOP of the daemon for a moment", 1);
            continue;
        }
        daemon.kill();
        rig.row
            .count("kill -9 of the daemon, then another number of actors", 1);
        rig.setup = rig.setup.actors(1 + rig.random.below(5) as usize);
        if round % 10 == 3 {
            rig.nats.kill().await;
            rig.row.count("kill -9 of nats-server", 1);
            daemon = rig.setup.start();
            rig.nats.restart().await.expect("a second start");
            continue;
        }
        daemon = rig.setup.start_ready();
    }
    rig.traffic.after(200).await;
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_every_answered_change_is_in_a_digest_after_kills() {
    let mut row = Row::new(Rounds::in_test(40));
    let nats = Nats::start_with(false, "").await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    let mut daemon = setup.start_ready();
    let publishers = Publishers::start(&client, Some(7)).await;
    let mut random = Random(row.seed());
    while row.goes_on() {
        publishers.after(random.below(40)).await;
        daemon.kill();
        row.count("kill -9 of the daemon", 1);
        daemon = setup.start_ready();
    }
    publishers.conclude(row, daemon).await;
}
