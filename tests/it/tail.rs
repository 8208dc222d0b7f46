//! `tocsin tail`: digests as they come, from the stream and from the subject, whatever the broker does.

use async_nats::Client;
use rustix::process::Signal;
use tokio::task::spawn_blocking;

use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::judge::read_stream;
use crate::support::nats::Nats;
use crate::support::program::{Printing, ended, run, tocsin};
use crate::support::traffic::{change, change_and_request, publish_taken};

/// A server with streams and a daemon.
struct Service {
    nats: Nats,
    client: Client,
    _daemon: Daemon,
    _setup: Setup,
}

impl Service {
    async fn start() -> Self {
        Self::start_with("").await
    }

    async fn start_with(config: &str) -> Self {
        let nats = Nats::start_with(true, config).await;
        let client = nats.connect().await.client().clone();
        let setup = Setup::new(&nats);
        let daemon = setup.start_ready();
        Self {
            nats,
            client,
            _daemon: daemon,
            _setup: setup,
        }
    }

    /// Publishes a change and a request, and waits for the digest, the `num`-th in the stream.
    async fn digest(&self, user: &str, status: &str, second: u64, num: usize) {
        change_and_request(&self.client, user, "disk", status, second).await;
        eventually("the digest", async || {
            read_stream(&self.client, "TOCSIN_OUT").await.len() >= num
        })
        .await;
    }

    /// Starts `tail`.
    fn tail(&self, arguments: &[&str]) -> Printing {
        tail(&self.nats.url(), arguments)
    }
}

fn tail(url: &str, arguments: &[&str]) -> Printing {
    Printing::start(tocsin(&[&["tail", "--url", url], arguments].concat()))
}

/// Waits for lines on another thread.
async fn lines(mut tail: Printing, num: usize) -> (Printing, Vec<String>) {
    let waiting = spawn_blocking(move || {
        let lines = tail.lines(num);
        (tail, lines)
    });
    waiting.await.unwrap()
}

/// A digest of one alarm, as somebody else may publish it.
fn digest(user: &str, alarm: &str) -> String {
    format!(
        "{{\"UserID\":\"{user}\",\"ActiveAlarms\":[{{\"AlarmID\":\"{alarm}\",\"Status\":\"WARNING\",\"LatestChangedAt\":\"2026-01-01T00:00:00Z\"}}]}}"
    )
}

/// A line without the time at its begin, or without the age in it.
fn words(line: &str) -> Vec<&str> {
    let is_age = |word: &str| {
        word.trim_end_matches(['d', 'h', 'm', 's'])
            .parse::<u64>()
            .is_ok()
    };
    line.split_whitespace()
        .filter(|word| !is_age(word))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_ones_come_first_and_then_what_comes_each_told_from_the_one_before() {
    let service = Service::start().await;
    service.digest("ann", "WARNING", 1, 1).await;
    service.digest("bob", "CRITICAL", 1, 2).await;
    service.digest("ann", "CRITICAL", 2, 3).await;
    let tail = service.tail(&["--last", "2", "--user", "ann", "--count", "3"]);
    let (tail, first) = lines(tail, 4).await;
    assert!(first[0].ends_with("  ann  1 alarm"), "{first:?}");
    assert_eq!(words(&first[1]), ["WARNING", "disk", "new"]);
    assert_eq!(words(&first[3]), ["CRITICAL", "disk", "was", "WARNING"]);

    publish_taken(
        &service.client,
        "AlarmStatusChanged",
        change("ann", "disk", "CLEARED", 3),
    )
    .await;
    service.digest("bob", "WARNING", 5, 4).await;
    service.digest("ann", "CRITICAL", 4, 5).await;
    let (mut tail, again) = lines(tail, 2).await;
    assert_eq!(words(&again[1]), ["CRITICAL", "disk", "again"]);
    assert_eq!(tail.complaints(), "");
    assert!(tail.wait().success());

    let stored = read_stream(&service.client, "TOCSIN_OUT").await;
    let expected: Vec<_> = stored
        .iter()
        .map(|digest| String::from_utf8(digest.payload.clone()).unwrap())
        .collect();
    for begin in [
        ["--since", "1h"],
        ["--since", "2026-01-01T00:00:00Z"],
        ["--last", "500"],
    ] {
        let arguments = [&begin[..], &["-o", "json", "--count", "5"]].concat();
        let mut tail = service.tail(&arguments);
        assert_eq!(tail.rest(), expected, "{begin:?}");
        assert!(tail.wait().success());
    }
    let mut two = service.tail(&[
        "--last", "5", "--user", "ann", "--user", "bob", "-o", "json", "--count", "2",
    ]);
    assert_eq!(two.rest(), expected[..2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_place_to_begin_only_what_comes_is_printed_until_ctrl_c() {
    let service = Service::start().await;
    service.digest("ann", "WARNING", 1, 1).await;
    let tail = service.tail(&[]);
    let printed = tokio::spawn(lines(tail, 1));
    // When it listens cannot be seen: digests come until it prints one.
    let mut num = 0;
    while !printed.is_finished() {
        num += 1;
        let user = format!("user {num}");
        service
            .client
            .publish("AlarmDigest", digest(&user, "disk").into())
            .await
            .unwrap();
        service.client.flush().await.unwrap();
    }
    let (mut tail, first) = printed.await.unwrap();
    assert!(first[0].contains("  user "), "{first:?}");
    tail.signal(Signal::INT);
    assert!(tail.wait().success());
    assert_eq!(tail.complaints(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stands_still_does_not_keep_it_from_ending() {
    let service = Service::start().await;
    let publish = service
        .client
        .publish("AlarmDigest", digest("ann", "disk").into());
    publish.await.unwrap();
    // Far more than a pipe holds.
    for num in 1..3000 {
        let payload = digest(&format!("user {num}"), "disk");
        let published = service.client.publish("AlarmDigest", payload.into());
        published.await.unwrap();
    }
    service.client.flush().await.unwrap();
    let (mut tail, _) = lines(service.tail(&["--since", "1h"]), 1).await;
    tail.signal(Signal::INT);
    assert!(tail.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_digest_is_printed_as_one_by_tail_and_by_digest() {
    let service = Service::start_with("max_payload: 1024").await;
    let all = async |second: u64| {
        for alarm in 0..40 {
            let alarm = format!("alarm {alarm:02}");
            let status = ["WARNING", "CRITICAL"][second as usize % 2];
            let change = change("ann", &alarm, status, second);
            publish_taken(&service.client, "AlarmStatusChanged", change).await;
        }
    };
    all(1).await;
    let url = service.nats.url();
    let (status, json, err) = run(&["digest", "ann", "-o", "json", "--url", &url]);
    assert_eq!((status, err.as_str()), (0, ""));
    let read: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(read["ActiveAlarms"].as_array().unwrap().len(), 40);
    assert!(read_stream(&service.client, "TOCSIN_OUT").await.len() > 3);
    all(2).await;
    let (status, text, err) = run(&["digest", "ann", "--url", &url]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        text.starts_with("40 alarms for ann\n") && text.lines().count() == 41,
        "{text}"
    );

    let mut tail = service.tail(&["--last", "2", "-o", "json", "--count", "1"]);
    assert_eq!(tail.rest(), [json.trim_end()]);
    let mut tail = service.tail(&["--last", "2", "--count", "2"]);
    let lines = tail.rest();
    assert_eq!(lines.len(), 82, "{lines:#?}");
    assert!(lines[0].ends_with("  ann  40 alarms"), "{lines:?}");
    assert!(lines[41].ends_with("  ann  40 alarms"), "{lines:?}");
    assert_eq!(words(&lines[42]), ["WARNING", "alarm", "was", "CRITICAL"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_while_the_broker_is_away_where_it_has_the_stream() {
    let mut service = Service::start().await;
    service.digest("ann", "WARNING", 1, 1).await;
    let tail = service.tail(&["--last", "1"]);
    let (tail, _) = lines(tail, 2).await;
    service.nats.kill().await;
    eventually("a complaint", async || tail.complaints().ends_with('\n')).await;
    service
        .nats
        .restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    // At once, before everybody is back.
    for num in 2..5 {
        service
            .digest(
                "ann",
                ["WARNING", "CRITICAL"][(num + 1) % 2],
                num as u64,
                num,
            )
            .await;
    }
    let (tail, printed) = lines(tail, 6).await;
    assert_eq!(words(&printed[1]), ["CRITICAL", "disk", "was", "WARNING"]);
    assert_eq!(words(&printed[5]), ["CRITICAL", "disk", "was", "WARNING"]);
    eventually("that it is back", async || {
        tail.complaints().lines().count() == 2
    })
    .await;
    let complaints = tail.complaints();
    assert!(
        complaints.starts_with("tocsin: the connection to NATS is lost ("),
        "{complaints}"
    );
    assert!(
        complaints.contains("; digests that come meanwhile are printed when it is back\n"),
        "{complaints}"
    );
    assert!(
        complaints.ends_with("tocsin: NATS is back\n"),
        "{complaints}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_it_prints_what_comes_and_says_what_it_cannot() {
    let mut nats = Nats::start_with(false, "").await;
    let url = nats.url();
    for arguments in [["--last", "1"], ["--since", "1h"]] {
        let (status, out, err) = run(&[&["tail", "--url", &url][..], &arguments].concat());
        assert_eq!((status, out.as_str()), (2, ""));
        let line = "tocsin: this server keeps no digests: it has no stream TOCSIN_OUT; leave --since and --last out\n";
        assert_eq!(err, line);
    }
    let client = nats.connect().await.client().clone();
    let publish = async |payload: String| {
        client.publish("AlarmDigest", payload.into()).await.unwrap();
        client.flush().await.unwrap();
    };
    let printed = tokio::spawn(lines(tail(&url, &["-o", "json"]), 1));
    while !printed.is_finished() {
        publish(digest("early", "disk")).await;
    }
    let (tail, _) = printed.await.unwrap();
    for junk in ["", "junk", "{}", "[]", "{\"UserID\":7,\"ActiveAlarms\":[]}"] {
        publish(junk.to_owned()).await;
    }
    let after_junk = digest("ann", "after junk");
    publish(after_junk.clone()).await;
    let tail = until(tail, &after_junk).await;

    nats.kill().await;
    eventually("a complaint", async || tail.complaints().ends_with('\n')).await;
    assert!(
        tail.complaints()
            .ends_with("; digests that come meanwhile are missed\n"),
        "{}",
        tail.complaints()
    );
    nats.restart()
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    eventually("that it is back", async || {
        tail.complaints().ends_with("NATS is back\n")
    })
    .await;
    let back = digest("ann", "back");
    let printed = tokio::spawn({
        let back = back.clone();
        async move { until(tail, &back).await }
    });
    while !printed.is_finished() {
        publish(back.clone()).await;
    }
    printed.await.unwrap();
}

/// Waits for a line.
async fn until(mut tail: Printing, line: &str) -> Printing {
    loop {
        let (more, lines) = lines(tail, 1).await;
        tail = more;
        if lines[0] == line {
            return tail;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_ends_it_well_and_a_full_disk_with_74() {
    let service = Service::start().await;
    service.digest("ann", "WARNING", 1, 1).await;
    let url = service.nats.url();
    let typed = format!(
        "'{}' tail --last 1 --url {url} | head -n 1",
        env!("CARGO_BIN_EXE_tocsin")
    );
    let mut shell = tokio::process::Command::new("bash");
    let shell = shell
        .args(["-o", "pipefail", "-c", &typed])
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(30), shell).await;
    let (status, out, err) = ended(&output.expect("it ends").unwrap());
    assert_eq!((status, err.as_str(), out.lines().count()), (0, "", 1));

    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut tail = tocsin(&["tail", "--last", "1", "--url", &url]);
    let (status, _, err) = ended(&tail.stdout(full).output().unwrap());
    assert_eq!(status, 74);
    assert!(
        err.starts_with("tocsin: failed to write to standard output: "),
        "{err}"
    );
}
