//! How long a request waits for its digest.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, OTHER, OTHER_SUBJECT, flow, forget, pause};
use crate::bare::{Bare, put_publish};
use crate::daemon::Daemon;
use crate::figures::{Figures, Must};
use crate::server::{Consumer, INPUT, Server};
use crate::traffic::{CHANGE, Ids, Message, Mixed, REQUEST};

const NUM_REQUESTS: u64 = 500;
/// From one request to the next.
const PAUSE: Duration = Duration::from_millis(10);
/// How often the load sends what is due.
const BEAT: Duration = Duration::from_millis(1);

pub(super) fn under_load(bench: &Bench, figures: &mut Figures) {
    let server = bench.server();
    let rate = flow::live_rate(&server, bench.scaled(1_000_000)) / 2.0;
    compare(
        bench,
        &server,
        rate,
        figures,
        [Must::AtMost(2.0), Must::AtMost(2.0)],
    );
    figures.add("load", "k changes/s", Must::Say, rate / 1e3);
}

pub(super) fn at_idle(bench: &Bench, figures: &mut Figures) {
    compare(
        bench,
        &bench.server(),
        0.0,
        figures,
        [Must::Say, Must::AtMost(2.0)],
    );
}

fn compare(bench: &Bench, server: &Server, rate: f64, figures: &mut Figures, must: [Must; 2]) {
    let num_requests = bench.scaled(NUM_REQUESTS).max(20);
    for round in 0..bench.num_rounds as u64 {
        server.make_input();
        server.make_stream(OTHER, OTHER_SUBJECT);
        let bare = bare_service(bench, server, rate, num_requests);
        server.remove(INPUT);
        server.remove(OTHER);
        server.make_input();
        let store = bench.store();
        let daemon = Daemon::start(server, &store, &[]);
        daemon.wait_until_ready();
        let ours = loaded(server, rate, || {
            delays(server, "AlarmDigest", round, num_requests)
        });
        daemon.stop();
        forget(server, &store);
        server.remove(INPUT);
        for (name, at, must) in [
            ("median delay", 0.5, must[0]),
            ("99th percentile", 0.99, must[1]),
        ] {
            figures.add(
                name,
                "of the bare service's",
                must,
                quantile(&ours, at) / quantile(&bare, at),
            );
        }
        for (name, at) in [("median", 0.5), ("99 of 100", 0.99)] {
            figures.add(name, "ms", Must::Say, quantile(&ours, at) * 1e3);
        }
    }
}

/// The delays of a service that does as little as can be done: pull, one fsync, publish and be confirmed.
fn bare_service(bench: &Bench, server: &Server, rate: f64, num_requests: u64) -> Vec<f64> {
    let is_over = AtomicBool::new(false);
    let mut journal = File::create(bench.folder.join("bare-journal")).expect("a file");
    let mut consumer = Consumer::create(server.connect(), INPUT, "all");
    let mut out = server.connect();
    out.subscribe("_INBOX.bare", 2);
    thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                let payload = consumer.next();
                if consumer
                    .bare
                    .bytes(payload.clone())
                    .starts_with(b"{\"UserID\"")
                {
                    journal.write_all(&[7; 57]).expect("the disk takes it");
                    journal.sync_data().expect("the disk takes it");
                    let request = text(&consumer.bare, payload);
                    out.publish(OTHER_SUBJECT, "_INBOX.bare", &request);
                    out.next_payload();
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            }
        });
        let delays = loaded(server, rate, || {
            delays(server, OTHER_SUBJECT, 0, num_requests)
        });
        is_over.store(true, Ordering::Relaxed);
        let last = Message::request("last");
        server.connect().publish(REQUEST, "", &last.payload);
        delays
    })
}

fn text(bare: &Bare, payload: Range<usize>) -> String {
    String::from_utf8_lossy(bare.bytes(payload)).into_owned()
}

/// Asks for digests of users with one new alarm each, and waits for each.
fn delays(server: &Server, answers: &str, round: u64, num_requests: u64) -> Vec<f64> {
    let (mut asking, mut hearing) = (server.connect(), server.connect());
    hearing.subscribe(answers, 1);
    (0..num_requests)
        .map(|number| {
            pause(PAUSE);
            let user = format!("probe-{round}-{number}");
            let change = Message::change(&user, "alarm", "CRITICAL", number);
            let mut lines = Vec::new();
            put_publish(&mut lines, CHANGE, "", &change.payload);
            put_publish(&mut lines, REQUEST, "", &Message::request(&user).payload);
            let began = Instant::now();
            asking.write(&lines);
            while !hearing.next_text().contains(&user) {}
            began.elapsed().as_secs_f64()
        })
        .collect()
}

/// Measures while changes of a rate are published.
fn loaded(server: &Server, rate: f64, measure: impl FnOnce() -> Vec<f64>) -> Vec<f64> {
    let is_over = AtomicBool::new(rate == 0.0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bare = server.connect();
            let mut changes = Mixed::new(1, u64::MAX, 100_000, 0);
            let (began, mut sent, mut lines) = (Instant::now(), 0, Vec::new());
            while !is_over.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * rate) as u64;
                for change in changes.by_ref().take((due - sent) as usize) {
                    put_publish(&mut lines, change.subject, "", &change.payload);
                }
                sent = due;
                bare.write(&lines);
                lines.clear();
                pause(BEAT);
            }
            bare.flush();
        });
        let delays = measure();
        is_over.store(true, Ordering::Relaxed);
        delays
    })
}

pub(super) fn large_user(bench: &Bench, figures: &mut Figures) {
    let server = bench.server();
    for round in 0..bench.num_rounds as u64 {
        server.make_input();
        let store = bench.store();
        let daemon = Daemon::start(&server, &store, &[]);
        daemon.wait_until_ready();
        let small = digest_of_many(&server, "small", 1000);
        let large = digest_of_many(&server, "large", 8000);
        let per_alarm = (large / 8000.0) / (small / 1000.0);
        figures.add(
            "8,000 alarms, each",
            "of each of 1,000",
            Must::AtMost(1.2),
            per_alarm,
        );
        figures.add("8,000 alarms", "ms", Must::Say, large * 1e3);
        let others = thread::scope(|scope| {
            let large = scope.spawn(|| digest_of_many(&server, "another", 8000));
            let others = delays(&server, "AlarmDigest", round, 50);
            large.join().expect("it is digested");
            others
        });
        figures.add(
            "the others' longest delay",
            "ms",
            Must::AtMost(10.0),
            quantile(&others, 1.0) * 1e3,
        );
        daemon.stop();
        forget(&server, &store);
        server.remove(INPUT);
    }
}

/// How long the digest of a user takes that has so many new alarms, in seconds.
fn digest_of_many(server: &Server, user: &str, num_alarms: u64) -> f64 {
    let change = |alarm| Message::change(user, &Ids::Uuids.alarm(alarm), "CRITICAL", alarm);
    server.load((0..num_alarms).map(change));
    let mut bare = server.connect();
    bare.subscribe("AlarmDigest", 1);
    let began = Instant::now();
    bare.publish(REQUEST, "", &Message::request(user).payload);
    while !bare.next_text().contains(user) {}
    began.elapsed().as_secs_f64()
}

/// The smallest that so much of all is not above.
fn quantile(delays: &[f64], of: f64) -> f64 {
    let mut sorted = delays.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * of).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}
