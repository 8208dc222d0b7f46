//! How much goes through.

use std::iter::once;
use std::thread;
use std::time::Duration;

use super::{Bench, OTHER, OTHER_SUBJECT, RECORD_BYTES, forget, micros_each, pause, timed};
use crate::bare::{Bare, put_publish};
use crate::daemon::{Daemon, marker, wait_for_marker};
use crate::figures::{Figures, Must};
use crate::server::{Consumer, INPUT, OUTPUT, Server, number_after};
use crate::traffic::{CHANGE, Ids, Message, Mixed, every_alarm};

const NUM_MESSAGES: u64 = 2_000_000;
const NUM_USERS: u64 = 1_000_000;
const SEED: u64 = 42;
/// About what a digest of the row takes.
const DIGEST_BYTES: usize = 400;

pub(super) fn drain(bench: &Bench, figures: &mut Figures) {
    let (server, num_messages) = (bench.server(), bench.scaled(NUM_MESSAGES));
    server.make_input();
    let changes = Mixed::new(SEED, num_messages - 1, NUM_USERS, 0);
    server.load(changes.chain(once(marker(num_messages))));
    for _ in 0..bench.num_rounds {
        let mut raw = Duration::ZERO;
        let broker_raw = server.cpu_of(|| raw = timed(|| server.drain(INPUT, num_messages)));
        let store = bench.store();
        let daemon = Daemon::start(&server, &store, &[]);
        let broker = server.cpu_of(|| wait_for_marker(&mut server.connect()));
        let took = daemon.elapsed();
        figures.add(
            "rate",
            "of the bare client's",
            Must::AtLeast(0.60),
            raw.as_secs_f64() / took.as_secs_f64(),
        );
        let each = |cpu| micros_each(cpu, num_messages);
        figures.add(
            "CPU of the daemon",
            "µs a change",
            Must::AtMost(1.3),
            each(daemon.process.cpu()),
        );
        figures.add(
            "CPU of nats-server",
            "µs a message",
            Must::Say,
            each(broker),
        );
        figures.add(
            "CPU of nats-server for the bare client",
            "µs a message",
            Must::Say,
            each(broker_raw),
        );
        let written = daemon.process.written_bytes() as f64 / num_messages as f64;
        figures.add(
            "written to the store",
            "× a record of 57 B",
            Must::AtMost(3.0),
            written / RECORD_BYTES,
        );
        figures.add(
            "changes",
            "k/s",
            Must::Say,
            num_messages as f64 / took.as_secs_f64() / 1e3,
        );
        daemon.stop();
        forget(&server, &store);
    }
}

pub(super) fn digests(bench: &Bench, figures: &mut Figures) {
    let (server, num_messages) = (bench.server(), bench.scaled(NUM_MESSAGES));
    server.make_input();
    let mut mixed = Mixed::new(SEED, num_messages - 1, NUM_USERS, 20);
    server.load(mixed.by_ref().chain(once(marker(num_messages))));
    let num_digests = mixed.num_digests;
    for _ in 0..bench.num_rounds {
        server.make_stream(OTHER, OTHER_SUBJECT);
        let raw = timed(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    let payload = "x".repeat(DIGEST_BYTES);
                    let digest = Message {
                        subject: OTHER_SUBJECT,
                        payload,
                    };
                    server.load((0..num_digests).map(|_| &digest));
                });
                server.drain(INPUT, num_messages);
            });
        });
        server.remove(OTHER);
        let store = bench.store();
        let daemon = Daemon::start(&server, &store, &[]);
        let mut bare = server.connect();
        wait_for_marker(&mut bare);
        // The marker's own is one more.
        while Server::num_messages(&mut bare, OUTPUT) < num_digests + 1 {
            pause(Duration::from_millis(5));
        }
        let took = daemon.elapsed();
        figures.add(
            "rate",
            "of the bare clients'",
            Must::AtLeast(0.55),
            raw.as_secs_f64() / took.as_secs_f64(),
        );
        figures.add(
            "CPU of the daemon",
            "µs a message",
            Must::Say,
            micros_each(daemon.process.cpu(), num_messages),
        );
        figures.add("digests", "", Must::Say, num_digests as f64);
        daemon.stop();
        forget(&server, &store);
    }
}

pub(super) fn burst(bench: &Bench, figures: &mut Figures) {
    let (server, num_messages) = (bench.server(), bench.scaled(1_000_000));
    let users = num_messages / 10;
    let lines = lines_of(every_alarm(Ids::Uuids, users, 10, 0));
    for _ in 0..bench.num_rounds {
        let mut counter = server.connect();
        counter.subscribe(CHANGE, 1);
        let raw = timed(|| {
            thread::scope(|scope| {
                scope.spawn(|| server.connect().write_all_and_flush(&lines));
                for _ in 0..num_messages {
                    counter.next_payload();
                }
            });
        });
        drop(counter);
        let store = bench.store();
        let daemon = Daemon::start(
            &server,
            &store,
            &["input.mode=core", "metrics.aggregate_interval=1s"],
        );
        daemon.wait_until_ready();
        let mut metrics = server.connect();
        metrics.subscribe("MetricAggregate", 1);
        let cpu_before = daemon.process.cpu();
        let mut bare = server.connect();
        let took = timed(|| {
            bare.write_all_and_flush(&lines);
            let last = marker(num_messages);
            bare.subscribe("_INBOX.burst", 4);
            bare.publish(last.subject, "_INBOX.burst", &last.payload);
            let answer = bare.next_text();
            assert!(answer.contains("true"), "{answer}");
        });
        let cpu = daemon.process.cpu_since(cpu_before);
        // The marker's own is one more.
        let num_applied = applied(&mut metrics, num_messages + 1);
        figures.add(
            "rate",
            "of the subscriber's",
            Must::AtLeast(0.60),
            raw.as_secs_f64() / took.as_secs_f64(),
        );
        figures.add(
            "lost",
            "changes",
            Must::AtMost(0.0),
            (num_messages + 1 - num_applied) as f64,
        );
        figures.add(
            "CPU of the daemon",
            "µs a change",
            Must::Say,
            micros_each(cpu, num_messages),
        );
        daemon.stop();
        std::fs::remove_dir_all(store).expect("the store can be removed");
    }
}

/// How many changes the daemon says that it has recorded, once it is all of them or nothing new is said.
fn applied(metrics: &mut Bare, wanted: u64) -> u64 {
    const QUIET: u32 = 5;
    let (mut sum, mut num_quiet) = (0, 0);
    while sum < wanted && num_quiet < QUIET {
        let aggregate = metrics.next_text();
        let counts = aggregate.split("\"tocsin_status_changes_total\"").skip(1);
        let new: u64 = counts.filter_map(|it| number_after(it, "\"Count\":")).sum();
        sum += new;
        num_quiet = if new == 0 { num_quiet + 1 } else { 0 };
    }
    sum
}

pub(super) fn live(bench: &Bench, figures: &mut Figures) {
    let (server, num_messages) = (bench.server(), bench.scaled(1_000_000));
    let changes = Mixed::new(SEED, num_messages - 1, NUM_USERS, 0);
    let changes: Vec<_> = changes.chain(once(marker(num_messages))).collect();
    for _ in 0..bench.num_rounds {
        let raw = bare_live(&server, &changes);
        server.make_input();
        let store = bench.store();
        let daemon = Daemon::start(&server, &store, &[]);
        daemon.wait_until_ready();
        let (mut bare, cpu_before) = (server.connect(), daemon.process.cpu());
        let took = timed(|| {
            server.load(changes.iter());
            wait_for_marker(&mut bare);
        });
        let cpu = daemon.process.cpu_since(cpu_before);
        figures.add(
            "rate",
            "of the bare clients'",
            Must::AtLeast(0.95),
            raw.as_secs_f64() / took.as_secs_f64(),
        );
        figures.add(
            "the daemon takes",
            "of a core",
            Must::AtMost(0.25),
            cpu.as_secs_f64() / took.as_secs_f64(),
        );
        figures.add(
            "CPU of the daemon",
            "µs a change",
            Must::Say,
            micros_each(cpu, num_messages),
        );
        figures.add(
            "changes",
            "k/s",
            Must::Say,
            num_messages as f64 / took.as_secs_f64() / 1e3,
        );
        daemon.stop();
        forget(&server, &store);
        server.remove(INPUT);
    }
}

/// How long it takes until JetStream has confirmed all of these, and a bare client has read them at once.
fn bare_live(server: &Server, changes: &[Message]) -> Duration {
    server.make_input();
    let mut consumer = Consumer::create(server.connect(), INPUT, "all");
    let took = timed(|| {
        thread::scope(|scope| {
            scope.spawn(|| server.load(changes.iter()));
            for _ in changes {
                consumer.next();
            }
        });
    });
    server.remove(INPUT);
    took
}

/// How many changes a second JetStream confirms and a bare client reads at once.
pub(super) fn live_rate(server: &Server, num_messages: u64) -> f64 {
    let changes: Vec<_> = Mixed::new(SEED, num_messages, NUM_USERS, 0).collect();
    num_messages as f64 / bare_live(server, &changes).as_secs_f64()
}

fn lines_of(messages: impl Iterator<Item = Message>) -> Vec<u8> {
    let mut lines = Vec::new();
    for message in messages {
        put_publish(&mut lines, message.subject, "", &message.payload);
    }
    lines
}
