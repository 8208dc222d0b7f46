//! What cannot be used is refused, counted, and goes to the dead letters whole; the next good message works.

use async_nats::Client;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::judge::read_stream;
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish, publish_taken, request};

/// Messages that must be refused: the reason, the subject, the bytes.
fn refused() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let on_change =
        |reason, payload: &str| (reason, "AlarmStatusChanged", payload.as_bytes().to_vec());
    let field = |name: &str, value: &str| {
        let mut fields = [
            ("AlarmID", "\"a\""),
            ("UserID", "\"u\""),
            ("Status", "\"CRITICAL\""),
            ("ChangedAt", "\"2026-01-01T00:00:00Z\""),
        ]
        .map(|(name, value)| (name, value.to_owned()));
        for (known, place) in &mut fields {
            if *known == name {
                value.clone_into(place);
            }
        }
        let fields = fields.map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", fields.join(","))
    };
    vec![
        (
            "bad_utf8",
            "AlarmStatusChanged",
            b"{\"UserID\":\"\xff\"}".to_vec(),
        ),
        on_change("bad_json", "{\"UserID\":"),
        on_change("bad_json", ""),
        on_change("bad_json", &format!("{} {{}}", field("", ""))),
        on_change("not_an_object", "[1]"),
        on_change("not_an_object", "\"text\""),
        on_change("missing_field", "{}"),
        on_change("wrong_type", &field("UserID", "7")),
        on_change("wrong_type", &field("AlarmID", "null")),
        on_change("empty_field", &field("UserID", "\"\"")),
        on_change(
            "too_long",
            &field("AlarmID", &format!("\"{}\"", "x".repeat(257))),
        ),
        on_change("unknown_status", &field("Status", "\"critical\"")),
        on_change("empty_field", &field("Status", "\"\"")),
        on_change("bad_time", &field("ChangedAt", "\"2026-01-01 00:00:00Z\"")),
        on_change("bad_time", &field("ChangedAt", "\"2026-01-01T00:00:60Z\"")),
        on_change(
            "before_1970",
            &field("ChangedAt", "\"1969-12-31T23:59:59Z\""),
        ),
        on_change("in_future", &field("ChangedAt", "\"2999-01-01T00:00:00Z\"")),
        (
            "wrong_type",
            "SendAlarmDigest.3",
            b"{\"userid\":\"u\",\"UserID\":7,\"x\":1}".to_vec(),
        ),
        // Deep nesting must end no stack.
        on_change("not_an_object", &("[".repeat(5000) + &"]".repeat(5000))),
        on_change(
            "missing_field",
            &("{\"a\":".repeat(100) + "1" + &"}".repeat(100)),
        ),
        // As large as the broker takes: with the headers of a dead letter it must be split.
        ("bad_json", "AlarmStatusChanged.9", vec![b'x'; 1024 * 1024]),
    ]
}

async fn good_messages_still_work(client: &Client, user: &str) {
    use futures::StreamExt;
    let mut digests = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    publish_taken(
        client,
        "AlarmStatusChanged",
        change(user, "disk", "CRITICAL", 5),
    )
    .await;
    publish_taken(client, "SendAlarmDigest", request(user)).await;
    let digest = digests.next().await.expect("a digest");
    assert!(String::from_utf8_lossy(&digest.payload).contains("\"disk\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_bad_message_becomes_a_whole_dead_letter_even_when_the_daemon_is_killed() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    let mut expected = Vec::new();
    for (number, (reason, subject, payload)) in refused().into_iter().enumerate() {
        publish_taken(&client, subject, payload.clone()).await;
        expected.push((subject.to_owned(), payload, reason));
        if number % 5 == 4 {
            daemon.kill();
            daemon = setup.start_ready();
        }
    }
    good_messages_still_work(&client, "ann").await;
    let num_parts = expected.len() + 1;
    eventually("the dead letters", async || {
        read_stream(&client, "TOCSIN_DEAD_LETTER").await.len() >= num_parts
    })
    .await;
    let mut letters: Vec<(String, Vec<u8>)> = Vec::new();
    for letter in read_stream(&client, "TOCSIN_DEAD_LETTER").await {
        // The parts of the one that was too large for a single message come in order.
        match letters.last_mut() {
            Some((_, payload)) if letter.part.starts_with("2/") => payload.extend(letter.payload),
            _ => letters.push((letter.original_subject, letter.payload)),
        }
    }
    let mut expected: Vec<_> = expected
        .into_iter()
        .map(|(subject, payload, _)| (subject, payload))
        .collect();
    letters.sort();
    expected.sort();
    assert!(
        letters == expected,
        "{} dead letters, {} refused",
        letters.len(),
        expected.len()
    );
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_the_publisher_is_told_the_reason() {
    let nats = Nats::start_with(false, "").await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    for (reason, subject, payload) in refused() {
        let answer = publish(&client, subject, payload).await;
        assert_eq!(answer, format!("{{\"ok\":false,\"reason\":\"{reason}\"}}"));
    }
    good_messages_still_work(&client, "ann").await;
}
