//! Three nats-servers that keep every stream three times, and lose the leader of a stream under traffic.

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::judge;
use crate::support::nats::Cluster;
use crate::support::random::Random;
use crate::support::traffic::{Load, Pace, Traffic};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_loses_its_leaders_loses_and_repeats_nothing() {
    let mut row = Row::new(Rounds {
        test: 2,
        hour: 12,
        full: 60,
    });
    let mut cluster = Cluster::start().await;
    let setup = Setup::with_url(cluster.urls()).set("input.replicas=3");
    let client = cluster.connect().await.client().clone();
    let daemon = setup.start_ready();
    let load = Load::at(Pace::Full).in_bursts_of(3000);
    let traffic = Traffic::start(&client, row.seed(), load).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        traffic.set_pace(Pace::in_turn(round / 2 * 5));
        traffic.after(200 + random.below(500)).await;
        let stream = ["TOCSIN_IN", "TOCSIN_OUT"][random.below(2) as usize];
        let leader = cluster.leader_of(&client, stream).await;
        let node = cluster.node(leader);
        if round % 2 == 0 {
            node.kill().await;
            row.count("kill -9 of the node that leads a stream", 1);
        } else {
            node.pause();
            row.count("SIGSTOP of the node that leads a stream", 1);
        }
        let led_by = cluster.next_leader_of(&client, stream, leader).await;
        assert_ne!(led_by, leader);
        // The two others go on without it.
        traffic.after(200 + random.below(500)).await;
        let node = cluster.node(leader);
        if round % 2 == 0 {
            node.restart().await.expect("a second start");
        } else {
            node.resume();
        }
        round += 1;
    }
    cluster.leader_of(&client, "TOCSIN_IN").await;
    cluster.leader_of(&client, "TOCSIN_OUT").await;
    let rewritten = "the input's history was rewritten";
    assert_eq!(setup.num_logged(rewritten), 0, "{}", setup.log());
    judge::conclude(row, &client, traffic, daemon).await;
}
