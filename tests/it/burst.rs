//! A burst on core NATS: everything is applied, or the loss is counted to the message and said.

use std::time::Duration;

use futures::StreamExt;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

const USERS: usize = 1000;
const ALARMS_PER_USER: usize = 1000;

/// How many messages the log says were dropped.
fn num_said_to_be_lost(log: &str) -> usize {
    let lines = log.lines().filter(|line| line.contains("dropped"));
    let numbers = lines.filter_map(|line| {
        let (_, rest) = line.split_once("dropped=")?;
        rest.split_whitespace().next()?.parse::<usize>().ok()
    });
    numbers.sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_changes_at_once_are_all_applied_or_counted() {
    let nats = Nats::start_with(false, "").await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let mut digests = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    for alarm in 0..ALARMS_PER_USER {
        for user in 0..USERS {
            let payload = change(
                &format!("u{user}"),
                &format!("a{alarm}"),
                "CRITICAL",
                alarm as u64,
            );
            client
                .publish("AlarmStatusChanged", payload.into())
                .await
                .expect("published");
        }
    }
    // An answered message comes after everything that this connection published before it.
    publish_taken(
        &client,
        "AlarmStatusChanged",
        change("last", "last", "WARNING", 1),
    )
    .await;
    for user in 0..USERS {
        let asked = client.publish("SendAlarmDigest", request(&format!("u{user}")).into());
        asked.await.expect("published");
    }
    let mut num_reported = 0;
    for _ in 0..USERS {
        let digest = timeout(Duration::from_mins(1), digests.next()).await;
        let digest = digest
            .expect("a digest for every user in time")
            .expect("a digest");
        num_reported += String::from_utf8_lossy(&digest.payload)
            .matches("AlarmID")
            .count();
    }
    let num_lost = num_said_to_be_lost(&setup.log());
    assert_eq!(num_reported + num_lost, USERS * ALARMS_PER_USER);
}
