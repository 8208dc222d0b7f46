//! A limit on the daemon's memory: a long backlog, and one of large messages, is drained below it, and a kill for
//! want of memory loses nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::cgroup::Cgroup;
use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::pressure::{Cycle, Message, Publishers, mixed, num_waiting};
use crate::support::random::Random;
use crate::support::usage::{MIB, mib};
use crate::support::{eventually, judge};

/// The default of `input.in_flight`.
const IN_FLIGHT: u64 = 65_536;

/// A daemon that has made its streams and ended.
fn setup_with_streams(nats: &Nats, memory: &Cgroup, in_flight: u64) -> Setup {
    let setup = Setup::new(nats)
        .through(memory.launcher())
        .set(&format!("input.in_flight={in_flight}"));
    assert!(setup.start_ready().stop().success());
    setup
}

/// Resolves when the kernel killed the daemon.
async fn killed(memory: &Cgroup) {
    while memory.num_oom_kills() == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Drains a backlog of a cycle below a limit.
async fn drain_below(
    mut row: Row,
    (limit, in_flight): (u64, u64),
    cycle: Cycle,
    per_round: u64,
    make: fn(Cycle, u64) -> String,
) {
    let nats = Nats::start().await;
    let memory = Cgroup::of_memory(limit);
    let setup = setup_with_streams(&nats, &memory, in_flight);
    let publishers = Publishers::connect(&nats).await;
    let client = nats.connect().await.client().clone();
    let mut num = 0;
    while row.goes_on() {
        let change = move |number| ("AlarmStatusChanged", make(cycle, number));
        publishers.publish(num..num + per_round, change).await;
        num += per_round;
    }
    let request = |user| ("SendAlarmDigest", Cycle::request(user));
    publishers.publish(0..cycle.num_users, request).await;
    let began = Instant::now();
    let daemon = setup.start_ready();
    let judged = tokio::select! {
        judged = cycle.judge(&client, num) => judged,
        () = killed(&memory) => panic!("killed for want of memory below {}", mib(limit)),
    };
    let took = began.elapsed();
    assert_eq!(memory.num_oom_kills(), 0);
    let peak = daemon.usage().peak;
    assert!(peak < limit, "{} of {}", mib(peak), mib(limit));
    row.count("messages in the backlog", num);
    row.count("OOM kills below the limit", memory.num_oom_kills());
    row.fact(
        "limit of memory",
        format!("{} ({})", mib(limit), memory.version()),
    );
    row.fact("largest memory of the daemon", mib(peak));
    row.fact(
        "largest memory with the pages of its files",
        mib(memory.peak_memory()),
    );
    row.fact(
        "backlog drained within",
        format!("{:.1} s", took.as_secs_f64()),
    );
    judged.conclude(row, &client, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_backlog_is_drained_below_a_limit_of_memory() {
    let cycle = Cycle {
        num_users: 1000,
        alarms_per_user: 100,
    };
    let row = Row::new(Rounds {
        test: 1,
        hour: 10,
        full: 100,
    });
    drain_below(row, (300 * MIB, IN_FLIGHT), cycle, 100_000, Cycle::change).await;
}

/// A change with up to 200 KB of what nobody reads.
fn large_change(cycle: Cycle, number: u64) -> String {
    let padding = "x".repeat(Random(number).below(200_000) as usize);
    let changed = cycle.change(number);
    changed.replace("\"}", &format!("\",\"Padding\":\"{padding}\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_large_messages_is_drained_below_a_limit_of_memory() {
    let cycle = Cycle {
        num_users: 50,
        alarms_per_user: 10,
    };
    let row = Row::new(Rounds {
        test: 4,
        hour: 20,
        full: 100,
    });
    // One at a time makes the store slow: the broker sends them faster than they are taken.
    drain_below(row, (96 * MIB, 1), cycle, 1000, large_change).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_for_want_of_memory_lose_and_repeat_nothing() {
    /// Messages that wait for each start.
    const BACKLOG: u64 = 60_000;
    let mut row = Row::new(Rounds {
        test: 3,
        hour: 40,
        full: 100,
    });
    let nats = Nats::start().await;
    let enough = Cgroup::of_memory(300 * MIB);
    let setup = setup_with_streams(&nats, &enough, IN_FLIGHT);
    let publishers = Publishers::connect(&nats).await;
    let client = nats.connect().await.client().clone();
    let mut random = Random(row.seed());
    let offset = row.seed() << 32;
    let make = move |number| -> Message { mixed(offset + number) };
    let mut num = 0;
    let mut more = async || {
        publishers.publish(num..num + BACKLOG, make).await;
        num += BACKLOG;
    };
    // What it takes where it may: from there down until it does not get through.
    more().await;
    let daemon = setup.start_ready();
    judge::judge(&client).await;
    daemon.kill();
    let needed = enough.peak_memory();
    let (mut limit, mut smallest, mut largest) = (needed, u64::MAX, 0);
    let mut setup = setup;
    while row.goes_on() {
        let killed = loop {
            more().await;
            let too_little = Cgroup::of_memory(limit);
            setup = setup.through(too_little.launcher());
            let daemon = setup.start();
            let is_killed = || too_little.num_oom_kills() > 0;
            eventually("the end of the backlog, or of the daemon", async || {
                is_killed() || num_waiting(&client).await == 0
            })
            .await;
            if is_killed() {
                let status = daemon.wait();
                assert!(!status.success(), "{status}");
                break too_little.num_oom_kills();
            }
            daemon.kill();
            limit = limit * 9 / 10;
        };
        row.count("OOM kills of the daemon", killed);
        (smallest, largest) = (smallest.min(limit), largest.max(limit));
        limit = limit * (96 + random.below(8)) / 100;
    }
    let setup = setup.through(enough.launcher());
    let daemon = setup.start_ready();
    let judged = judge::judge(&client).await;
    row.fact("memory that it takes where it may", mib(needed));
    row.fact(
        "memory that it was given",
        format!("{} to {}", mib(smallest), mib(largest)),
    );
    row.fact("limited by", enough.version());
    judged.conclude(row, &client, daemon).await;
}
