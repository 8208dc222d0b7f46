//! What is owed: bounded, in order, found again, and split where the broker asks for it.

use async_nats::Client;
use async_nats::jetstream;

use crate::support::daemon::Setup;
use crate::support::nats::{Nats, limit_stream};
use crate::support::traffic::{change, publish_taken, request};
use crate::support::{eventually, judge};

async fn ring(client: &Client, user: &str, second: u64) {
    let payload = change(user, &format!("alarm {second}"), "CRITICAL", second);
    publish_taken(client, "AlarmStatusChanged", payload).await;
    publish_taken(client, "SendAlarmDigest", request(user)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_input_pauses_at_the_bound_of_what_is_owed_and_goes_on() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats)
        .set("producers.owed.rows=5")
        .set("input.in_flight=1")
        .set("input.listeners=2")
        .set("input.routers=2")
        .set("workers.count=3")
        .set("producers.count=2")
        .set("producers.in_flight=1");
    let mut daemon = setup.start_ready();
    ring(&client, "first", 1).await;
    judge::judge(&client).await;
    limit_stream(&client, "TOCSIN_OUT", 1).await;
    for user in 0..40 {
        ring(&client, &format!("user {user}"), 1).await;
    }
    // Six are more than five: nothing more is taken.
    daemon.wait_for("STATUS=0 messages in flight, 6 owed");
    limit_stream(&client, "TOCSIN_OUT", -1).await;
    judge::judge(&client).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owed_digest_is_published_although_the_end_of_the_output_was_deleted() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    ring(&client, "ann", 1).await;
    judge::judge(&client).await;
    ring(&client, "bob", 1).await;
    judge::judge(&client).await;
    let context = jetstream::new(client.clone());
    let output = context
        .get_stream("TOCSIN_OUT")
        .await
        .expect("the stream exists");
    assert!(output.delete_message(2).await.expect("it can be deleted"));
    limit_stream(&client, "TOCSIN_OUT", 1).await;
    ring(&client, "ann", 2).await;
    eventually("a publish refused", async || {
        setup.log().contains("message sent again")
    })
    .await;
    daemon.kill();
    limit_stream(&client, "TOCSIN_OUT", -1).await;
    let _daemon = setup.start_ready();
    eventually("the digest", async || {
        let digests = judge::read_stream(&client, "TOCSIN_OUT").await;
        digests.iter().any(|digest| {
            String::from_utf8_lossy(&digest.payload).contains("\"AlarmID\":\"alarm 2\"")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_of_many_parts_survives_a_kill_between_them() {
    const ALARMS: u64 = 9000;
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut setup = Setup::new(&nats).set("output.duplicate_window=2s");
    let mut daemon = setup.start_ready();
    for round in 0..2 {
        for alarm in 0..ALARMS {
            let payload = change(
                "ann",
                &format!("alarm {alarm} with a name of its own {alarm:060}"),
                ["WARNING", "CRITICAL"][round],
                alarm / 3 + 10_000 * round as u64,
            );
            client
                .publish("AlarmStatusChanged", payload.into())
                .await
                .expect("published");
        }
        client.flush().await.expect("the server answers");
        // Room for the first part, and not for the second.
        let parts = judge::read_stream(&client, "TOCSIN_OUT").await.len();
        let room = i64::try_from(parts + 1).expect("few messages");
        limit_stream(&client, "TOCSIN_OUT", room).await;
        publish_taken(&client, "SendAlarmDigest", request("ann")).await;
        ring(&client, "ann", 20_000 + round as u64).await;
        eventually("the second part refused", async || {
            let log = setup.log();
            log.matches("message sent again").count() > 3 * round
                && judge::read_stream(&client, "TOCSIN_OUT").await.len() == parts + 1
        })
        .await;
        daemon.kill();
        setup = setup.actors(3 - round);
        daemon = setup.start_ready();
        limit_stream(&client, "TOCSIN_OUT", -1).await;
        judge::judge(&client).await;
    }
    assert!(daemon.stop().success());
}
