//! A burst on core NATS: everything is applied, or the loss is counted to the message and said.

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use tocsin::bus::connection::Connection;
use tokio::time::timeout;

use crate::bus_contract::echo;
use crate::support::daemon::Setup;
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

const USERS: usize = 1000;
const ALARMS_PER_USER: usize = 1000;
/// The users of a daemon that is stopped in a burst.
const STOPPED_USERS: usize = 50;

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

/// Publishes changes of as many alarms, shared among the users, and waits until the server has taken them.
async fn publish_changes(connection: &Connection, num: usize, reply_to: &str) {
    let client = connection.client();
    for number in 0..num {
        let (user, alarm) = (format!("u{}", number % STOPPED_USERS), format!("a{number}"));
        let payload = change(&user, &alarm, "CRITICAL", 1);
        let published =
            client.publish_with_reply("AlarmStatusChanged", reply_to.to_owned(), payload.into());
        published.await.expect("published");
    }
    echo(connection).await;
}

/// Asks for every user's digest until all of the alarms were reported.
async fn see_reported(client: &Client, num: usize) {
    let subscribed = client.subscribe("AlarmDigest").await;
    let mut digests = subscribed.expect("a subscription");
    for user in 0..STOPPED_USERS {
        publish_taken(client, "SendAlarmDigest", request(&format!("u{user}"))).await;
    }
    let mut num_reported = 0;
    while num_reported < num {
        let digest = timeout(Duration::from_secs(10), digests.next()).await;
        let digest = digest.unwrap_or_else(|_| panic!("{num_reported} of {num} were reported"));
        let digest = digest.expect("the subscription lasts");
        num_reported += String::from_utf8_lossy(&digest.payload)
            .matches("AlarmID")
            .count();
    }
    assert_eq!(num_reported, num);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_applies_everything_that_the_server_had_taken_before_it() {
    const NUM: usize = 500_000;
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let client = connection.client();
    // So few at once make the store slow: most of it still waits for the reader.
    let setup = Setup::new(&nats).set("input.in_flight=200");
    let daemon = setup.start_ready();
    publish_changes(&connection, NUM, "nobody").await;
    assert!(daemon.stop().success());
    let _daemon = setup.start_ready();
    see_reported(client, NUM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_everything_that_it_applies() {
    const NUM: usize = 20_000;
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let client = connection.client();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let mut answers = client.subscribe("answers").await.expect("a subscription");
    publish_changes(&connection, NUM, "answers").await;
    assert!(daemon.stop().success());
    for number in 0..NUM {
        let answer = timeout(Duration::from_secs(10), answers.next()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{number} of {NUM} were answered"));
        let answer = answer.expect("the subscription lasts").payload;
        assert_eq!(answer, "{\"ok\":true}");
    }
    let _daemon = setup.start_ready();
    see_reported(client, NUM).await;
}
