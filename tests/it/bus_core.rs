//! The core NATS bus on a real server: what it loses it counts, and what it confirms was processed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tocsin::bus::core_nats::{CoreNats, Settings};
use tocsin::bus::{Bus, BusError, Input, Outbound, PublishError, Start, wire};
use tocsin::core::ids::StoreId;
use tocsin::core::position::{Cursor, Origin, Position};
use tocsin::core::time::Timestamp;

use crate::bus_contract::echo;
use crate::support::eventually;
use crate::support::link::Link;
use crate::support::nats::Nats;

fn settings() -> Settings {
    Settings::new(&wire::CHANGE_SUBJECTS, &wire::REQUEST_SUBJECTS, wire::OWNER)
}

async fn connect(nats: &Nats, settings: Settings) -> CoreNats {
    let connected = CoreNats::connect(nats.connector(), settings).await;
    connected.unwrap_or_else(|error| panic!("{error}"))
}

async fn open(bus: &CoreNats) -> Box<dyn Input> {
    let opened = bus.open_input(vec![None], Start::New).await;
    opened.unwrap_or_else(|error| panic!("{error}"))
}

fn digest(id: &str) -> Outbound {
    Outbound {
        subject: wire::DIGEST,
        id: id.to_owned(),
        headers: Vec::new(),
        payload: Bytes::from_static(b"{}"),
    }
}

/// Publishes so many numbered changes from a task, and waits for the echo.
async fn burst(nats: &Nats, count: u64) {
    let connection = nats.connect().await;
    for number in 0..count {
        let subject = if number % 2 == 0 {
            wire::CHANGE
        } else {
            "AlarmStatusChanged.1"
        };
        let sent = connection
            .client()
            .publish(subject, number.to_string().into())
            .await;
        sent.expect("the client lives");
    }
    echo(&connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_a_million_is_kept_for_a_slow_reader() {
    let nats = Nats::start_with(false, "").await;
    let bus = connect(&nats, settings()).await;
    let mut input = open(&bus).await;
    // Nothing is read before all of it was sent.
    burst(&nats, 1_000_000).await;
    let mut next = [0, 1];
    let mut num_read = 0_u64;
    while num_read < 1_000_000 {
        let batch = tokio::time::timeout(Duration::from_secs(30), input.next(4096));
        let batch = batch.await.expect("a batch within 30 s");
        for message in batch.messages {
            let text = std::str::from_utf8(&message.payload).expect("a number");
            let number: u64 = text.parse().expect("a number");
            let expected = &mut next[usize::from(number % 2 == 1)];
            assert_eq!(number, *expected);
            *expected += 2;
            num_read += 1;
            assert_eq!(message.sequence, num_read);
        }
    }
    assert_eq!(input.take_stats().dropped, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_keeps_no_memory_of_others() {
    let nats = Nats::start_with(false, "").await;
    let bus = connect(&nats, settings()).await;
    let mut input = open(&bus).await;
    burst(&nats, 100).await;
    let mut num_read = 0;
    while num_read < 100 {
        let batch = tokio::time::timeout(Duration::from_secs(30), input.next(4096));
        for message in batch.await.expect("a batch within 30 s").messages {
            assert!(
                message.payload.is_unique(),
                "a slice of a buffer with others"
            );
            num_read += 1;
        }
    }
}

/// Whether it waits too long here or in the client: read and dropped are all there was.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_counted_to_the_message() {
    for (max_waiting, max_buffered) in [(1000, 1 << 20), (1 << 20, 8)] {
        let nats = Nats::start_with(false, "").await;
        let bounds = Settings {
            max_waiting,
            max_buffered,
            ..settings()
        };
        let bus = connect(&nats, bounds).await;
        let mut input = open(&bus).await;
        burst(&nats, 50_000).await;
        let (mut num_read, mut num_dropped) = (0, 0);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while num_read + num_dropped < 50_000 {
            let within = Duration::from_millis(100);
            if let Ok(batch) = tokio::time::timeout(within, input.next(100)).await {
                num_read += batch.messages.len() as u64;
            }
            num_dropped += input.take_stats().dropped;
            let now = tokio::time::Instant::now();
            assert!(now < deadline, "{num_read} read, {num_dropped} dropped");
        }
        assert_eq!(num_read + num_dropped, 50_000);
        assert!(num_dropped > 0, "{num_read} {num_dropped}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_come_after_their_changes_in_a_burst_of_seconds() {
    const NUM: usize = 500_000;
    let nats = Nats::start_with(false, "").await;
    let bus = connect(&nats, settings()).await;
    let mut input = open(&bus).await;
    let connection = nats.connect().await;
    let publishing = tokio::spawn(async move {
        let client = connection.client();
        for number in 0..NUM {
            let change = ["AlarmStatusChanged", "AlarmStatusChanged.7"][number % 2];
            let request = ["SendAlarmDigest", "SendAlarmDigest.7"][number / 2 % 2];
            for subject in [change, request] {
                let sent = client.publish(subject, number.to_string().into()).await;
                sent.expect("the client lives");
            }
        }
        echo(&connection).await;
    });
    let (mut changed, mut num_requests) = (HashSet::new(), 0);
    while num_requests < NUM {
        for message in input.next(1000).await.messages {
            if message.subject.starts_with(wire::CHANGE) {
                changed.insert(message.payload);
            } else {
                assert!(changed.contains(&message.payload), "{:?}", message.payload);
                num_requests += 1;
            }
        }
    }
    publishing.await.expect("published");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reply_subject_of_a_message_is_kept() {
    let nats = Nats::start_with(false, "").await;
    let bus = connect(&nats, settings()).await;
    let mut input = open(&bus).await;
    let connection = nats.connect().await;
    let client = connection.client();
    let sent = client
        .publish_with_reply(wire::REQUEST, "answer.1", Bytes::new())
        .await;
    sent.expect("the client lives");
    let batch = input.next(10).await;
    assert_eq!(batch.messages[0].reply_to.as_deref(), Some("answer.1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_publishes_at_once_are_confirmed_and_delivered() {
    let nats = Nats::start_with(false, "").await;
    let bus = connect(&nats, settings()).await;
    let connection = nats.connect().await;
    let mut digests = connection
        .client()
        .subscribe(wire::DIGEST)
        .await
        .expect("the client lives");
    echo(&connection).await;
    let output = bus.output();
    let ids: Vec<_> = (0..1000).map(|i| format!("id-{i}")).collect();
    let confirmed = ids.iter().map(|id| output.publish(digest(id)));
    for result in futures::future::join_all(confirmed).await {
        assert_eq!(result.expect("confirmed").sequence, None);
    }
    for _ in &ids {
        let message = digests.next().await.expect("a digest");
        let headers = message.headers.expect("headers");
        let id = headers.get(wire::MESSAGE_ID_HEADER).expect("an id");
        assert!(ids.iter().any(|known| known == id.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_the_server_refuses_is_never_confirmed() {
    let config = r#"authorization { users: [
        { user: "ann", password: "pw", permissions: { publish: { deny: ["AlarmDigest"] } } }
    ] }"#;
    let nats = Nats::start_with(false, config).await;
    let login = tocsin::bus::connection::Settings {
        user: Some("ann".to_owned()),
        password: Some("pw".to_owned()),
        ..nats.login()
    };
    let runtime = tokio::runtime::Handle::current();
    let connector = tocsin::bus::connection::Connector::new(login, runtime);
    let connected = CoreNats::connect(connector, settings()).await;
    let bus = connected.unwrap_or_else(|error| panic!("{error}"));
    let output = bus.output();
    let publishes = (0..300).map(|i| output.publish(digest(&i.to_string())));
    for result in futures::future::join_all(publishes).await {
        assert!(
            matches!(result, Err(PublishError::Refused(_))),
            "{result:?}"
        );
    }
    let letter = Outbound {
        subject: wire::DEAD_LETTER,
        ..digest("other")
    };
    assert!(output.publish(letter).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_costs_time_and_is_said() {
    let mut nats = Nats::start_with(false, "").await;
    let bounds = Settings {
        confirm_within: Duration::from_secs(1),
        ..settings()
    };
    let bus = connect(&nats, bounds).await;
    let mut input = open(&bus).await;
    let output = bus.output();
    assert!(output.publish(digest("before")).await.is_ok());
    nats.kill().await;
    let away = output.publish(digest("away")).await;
    assert!(
        matches!(away, Err(PublishError::Unconfirmed(_))),
        "{away:?}"
    );
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    eventually("confirmed again", async || {
        output.publish(digest("after")).await.is_ok()
    })
    .await;
    let connection = nats.connect().await;
    // The input's own connection may come back later than ours: publish until it is heard.
    let publishing = async {
        loop {
            let sent = connection
                .client()
                .publish(wire::CHANGE, "again".into())
                .await;
            sent.expect("the client lives");
            echo(&connection).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let batch = tokio::select! {
        batch = input.next(10) => batch,
        () = publishing => unreachable!("it never ends"),
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("not heard within 30 s"),
    };
    assert_eq!(batch.messages[0].payload, "again");
    let mut restarts = 0;
    while restarts == 0 {
        restarts += input.take_stats().restarts;
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_given_up_is_not_delivered_once_there_is_a_connection_again() {
    let mut nats = Nats::start_with(false, "").await;
    let link = Link::to(&nats.url()).await;
    let login = tocsin::bus::connection::Settings {
        urls: vec![link.url()],
        ..nats.login()
    };
    let runtime = tokio::runtime::Handle::current();
    let connector = tocsin::bus::connection::Connector::new(login, runtime);
    let bounds = Settings {
        confirm_within: Duration::from_secs(1),
        ..settings()
    };
    let connected = CoreNats::connect(connector, bounds).await;
    let bus = connected.unwrap_or_else(|error| panic!("{error}"));
    let output = bus.output();
    assert!(output.publish(digest("before")).await.is_ok());
    nats.pause();
    // More than every buffer on the way takes.
    let large = |i: u32| Outbound {
        payload: vec![b' '; 900_000].into(),
        ..digest(&i.to_string())
    };
    let attempts = (0..40).map(|i| output.publish(large(i)));
    for answer in futures::future::join_all(attempts).await {
        assert!(
            matches!(answer, Err(PublishError::Unconfirmed(_))),
            "{answer:?}"
        );
    }
    link.refuse();
    nats.kill().await;
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let connection = nats.connect().await;
    let subscribed = connection.client().subscribe(wire::DIGEST).await;
    let mut digests = subscribed.expect("the client lives");
    echo(&connection).await;
    link.heal();
    eventually("confirmed again", async || {
        output.publish(digest("after")).await.is_ok()
    })
    .await;
    let first = digests.next().await.expect("a digest");
    let headers = first.headers.expect("headers");
    let id = headers.get(wire::MESSAGE_ID_HEADER).expect("an id");
    assert_eq!(id.as_str(), "after");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_filled_from_a_stream_needs_the_operators_word() {
    let nats = Nats::start_with(false, "").await;
    let position = |origin| {
        Some(Position {
            origin,
            cursor: Cursor {
                generation: 4,
                sequence: 9,
            },
            timestamp: Timestamp::EPOCH,
            fingerprint: None,
        })
    };
    let stream = position(Origin::Stream {
        created: Timestamp::EPOCH,
    });
    let bus = connect(&nats, settings()).await;
    let refused = bus.open_input(vec![None, stream], Start::New).await;
    let Err(BusError::Configuration(why)) = refused.map(|_| ()) else {
        panic!("it was opened");
    };
    assert!(why.contains("input.mode"), "{why}");
    let opened = bus
        .open_input(vec![position(Origin::Session), None], Start::New)
        .await;
    let begin = opened.unwrap_or_else(|error| panic!("{error}")).begin();
    assert_eq!((begin.cursor.generation, begin.cursor.sequence), (5, 0));
    let allowed = Settings {
        allow_stream_positions: true,
        ..settings()
    };
    let bus = connect(&nats, allowed).await;
    assert!(bus.open_input(vec![stream], Start::New).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_stores_that_start_at_once_exactly_one_owns_the_input() {
    let nats = Nats::start_with(false, "").await;
    let mut claims = Vec::new();
    for number in 0..5 {
        let bus = Arc::new(connect(&nats, settings()).await);
        // Two with the same store: a copied folder.
        let store = StoreId([number / 2; 16]);
        claims.push(tokio::spawn(async move { bus.claim(store).await }));
    }
    eventually("an owner", async || {
        claims.iter().any(tokio::task::JoinHandle::is_finished)
    })
    .await;
    // Longer than the others need to ask again.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let owners = claims.iter().filter(|claim| claim.is_finished()).count();
    assert_eq!(owners, 1);
    for claim in claims {
        claim.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_store_owns_the_input_when_its_owner_is_gone() {
    let nats = Nats::start_with(false, "").await;
    let first = connect(&nats, settings()).await;
    let claim = first
        .claim(StoreId([9; 16]))
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    let second = connect(&nats, settings()).await;
    let waiting = tokio::spawn(second.claim(StoreId([1; 16])));
    drop((claim, first));
    let claimed = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    assert!(claimed.expect("within 30 s").expect("no panic").is_ok());
}
