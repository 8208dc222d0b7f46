//! `tocsin up --demo`: the story that it tells, against what was really published.

use std::time::{Duration, Instant};

use futures::StreamExt;

use crate::support::judge::{judge, read_stream};
use crate::support::nats::Nats;
use crate::support::program::Up;
use crate::support::traffic::publish_taken;

/// What it prints up to the last line that there is to try, with the program's path as `tocsin`.
fn story(up: &mut Up) -> Vec<String> {
    let mut lines = Vec::new();
    while !lines
        .last()
        .is_some_and(|line: &String| line.contains("digest ann"))
    {
        let line = up
            .lines
            .next()
            .expect("another line")
            .expect("it can be read");
        lines.push(line.replace(env!("CARGO_BIN_EXE_tocsin"), "tocsin"));
    }
    lines
}

/// The user of a story.
fn user(story: &[String]) -> String {
    let line = story
        .iter()
        .find(|line| line.contains("demo-"))
        .expect("a user");
    let word = line.split(' ').find(|word| word.starts_with("demo-"));
    word.expect("a user").trim_end_matches('.').to_owned()
}

/// A story without what differs from one to the next: the user and how long the digest took.
fn told(story: &[String]) -> Vec<String> {
    let user = user(story);
    let without = |line: &String| {
        let line = line.replace(&user, "USER");
        match line.split_once(", after ") {
            Some((line, _)) => line.to_owned(),
            None => line,
        }
    };
    // The first names the port.
    story.iter().skip(1).map(without).collect()
}

const DAY: [&str; 22] = [
    "A small fleet's day in ten seconds. Every line is published over NATS for user USER.",
    "       8h ago  WARNING   db-1 disk    fills up",
    "       6h ago  CRITICAL  web-2 http   is down",
    "   4h 40m ago  CLEARED   mail queue   is clear again before anybody was told",
    "   2h 50m ago  CRITICAL  lb-1 health  flaps: 21 changes in 10m",
    "       2h ago  CRITICAL  db-1 disk    gets worse",
    "      15m ago  24 messages  arrive at once over a bad network: late, twice, the newest first",
    "       1m ago  3 messages   refused, kept on tocsin.dead_letter: bad_json, bad_time, unknown_status",
    "",
    "          now  What is new for USER?  one digest of 5 alarms, oldest first",
    "  CRITICAL  web-2 http   6h",
    "  CRITICAL  lb-1 health  2h 50m",
    "  CRITICAL  db-1 disk    2h",
    "  WARNING   cron backup  40m",
    "  CRITICAL  api latency  15m",
    "  53 messages in: 12 repeats, 9 late, 22 overtaken, 2 cleared, 3 refused → 1 digest of 5 alarms",
    "          now  asked again: nothing is new, no message. Then all 5 are cleared, and the day is over.",
    "",
    "Try next, in another terminal (Ctrl-C here stops everything):",
    "  tocsin tail                       digests as they come",
    "  tocsin change ann disk CRITICAL   raises an alarm of ann's",
    "  tocsin digest ann                 asks for what is new for ann",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_tells_a_day_and_the_same_at_the_next_start_and_stays_up() {
    let mut up = Up::start(&["--demo"]);
    let began = Instant::now();
    let first = story(&mut up);
    let took = began.elapsed();
    assert!((5..60).contains(&took.as_secs()), "{took:?}");
    assert!(first.len() <= 25, "{first:#?}");
    for line in &first {
        assert!(line.chars().count() <= 100, "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
    let day = told(&first);
    let from = day.iter().position(String::is_empty).unwrap() + 1;
    assert_eq!(day[from..], DAY);

    // It stays up, and nothing of the demo is active any more.
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
    let (status, out, _) = up.run(&["digest", "ann"]);
    assert!(status == 0 && out.starts_with("1 alarm for ann\n"), "{out}");
    let again = up.run(&["digest", &user(&first)]);
    let nothing = format!("nothing is new for {}\n", user(&first));
    assert_eq!(again, (0, nothing, String::new()));
    up.signal(rustix::process::Signal::TERM);
    assert!(up.wait().success());

    let folder = std::mem::replace(&mut up.folder, tempfile::tempdir().unwrap());
    let mut up = Up::start_in(folder, &["--demo"]);
    let second = story(&mut up);
    assert_eq!(told(&second), day);
    assert_ne!(user(&second), user(&first));
    let client = async_nats::connect(up.url()).await.unwrap();
    judge(&client).await;
    for user in [user(&first), user(&second)] {
        let digests = read_stream(&client, "TOCSIN_OUT").await;
        let of_user = digests
            .iter()
            .filter(|digest| String::from_utf8_lossy(&digest.payload).contains(&user));
        assert_eq!(of_user.count(), 1, "{user}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_broker_without_streams_that_somebody_named_only_the_demos_user_is_touched() {
    let nats = Nats::start_with(false, "").await;
    let client = nats.connect().await.client().clone();
    let mut changes = client.subscribe("AlarmStatusChanged").await.unwrap();
    let mut requests = client.subscribe("SendAlarmDigest").await.unwrap();
    client.flush().await.unwrap();
    let set = format!("nats.url={}", nats.url());
    let mut up = Up::start(&["--demo", "--set", &set]);
    let story = tokio::task::spawn_blocking(move || story(&mut up))
        .await
        .unwrap();
    let day = told(&story);
    let from = day.iter().position(String::is_empty).unwrap() + 1;
    assert_eq!(day[from..], DAY);
    let user = user(&story);
    // 53 that were told, and 5 that clear what is active.
    for _ in 0..58 {
        let change = changes.next().await.unwrap();
        assert!(
            String::from_utf8_lossy(&change.payload).contains(&user),
            "{change:?}"
        );
    }
    for _ in 0..2 {
        let request = requests.next().await.unwrap();
        assert_eq!(request.payload, format!("{{\"UserID\":\"{user}\"}}"));
    }
}

/// Waits until the demo complains, in a file; what it printed until then.
async fn complaint(nats: &Nats, sets: &[&str]) -> (Up, String) {
    let url = format!("nats.url={}", nats.url());
    let mut arguments = vec!["--demo", "--set", &url];
    for set in sets {
        arguments.extend(["--set", set]);
    }
    let up = Up::start_complaining(&arguments);
    let deadline = Instant::now() + Duration::from_mins(1);
    while !up.read("complaints").ends_with('\n') {
        assert!(Instant::now() < deadline, "no complaint");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let text = up.read("complaints");
    (up, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_differs_from_what_must_come_is_said_and_up_stays_up() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut changes = client.subscribe("AlarmStatusChanged").await.unwrap();
    client.flush().await.unwrap();
    let meddling = tokio::spawn(async move {
        let change = changes.next().await.unwrap();
        let more = String::from_utf8_lossy(&change.payload).replace("db-1 disk", "another");
        publish_taken(&client, "AlarmStatusChanged", more).await;
    });
    let (up, text) = complaint(&nats, &[]).await;
    meddling.await.unwrap();
    let line = "tocsin: the demo ended early: the digest is wrong, it must hold: web-2 http, lb-1 health, db-1 disk, cron backup, api latency\n";
    assert_eq!(text, line);
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_does_not_come_is_said_and_up_stays_up() {
    let deny = "authorization { users: [ { user: a, password: b, permissions: { publish: { deny: AlarmDigest } } } ] }";
    let nats = Nats::start_with(true, deny).await;
    let (up, text) = complaint(&nats, &["nats.user=a", "nats.password=b"]).await;
    assert_eq!(text, "tocsin: the demo ended early: no digest came\n");
    let login = ["--set", "nats.user=a", "--set", "nats.password=b"];
    let change = [&["change", "ann", "disk", "WARNING"][..], &login].concat();
    assert_eq!(up.run(&change).0, 0);
}
