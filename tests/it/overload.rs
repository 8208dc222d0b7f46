//! More than the daemon can take, or one user who takes too much: nothing is lost, its memory stays bounded, and
//! the others have their digests as quickly as before.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::cgroup::{Cgroup, Controller};
use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::pressure::{
    Caller, Message, Overload, Publishers, median, mixed, num_waiting, p99,
};
use crate::support::traffic::{change, request};
use crate::support::usage::{MIB, mib};

/// Messages accepted and not yet committed, as the overloaded daemon is set.
const IN_FLIGHT: u64 = 1000;
/// What the daemon may need for each of them: its bytes, what was read from it, its row on its way to the disk.
const BYTES_IN_FLIGHT: u64 = 4096;
/// What it may need besides: itself, what its users have on record, what it asked the stream for.
const BYTES_BESIDES: u64 = 34 * MIB;
/// The share of one processor that it gets in an overload, in thousandths.
const SHARE: u64 = 5;
/// What nobody reads in a message of an overload: it shows in the memory of a daemon that takes too many.
const PADDING: usize = 1200;
/// How many times what it can take arrives in an overload.
const TIMES: u64 = 10;
/// Messages by which its rate is measured before.
const MEASURED: u64 = 2000;

/// A mixed message that fills the memory of whoever holds it.
fn padded(number: u64) -> Message {
    let (subject, payload) = mixed(number);
    let padding = format!(",\"Padding\":\"{}\"}}", "x".repeat(PADDING));
    (subject, payload.replace('}', &padding))
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_what_the_daemon_can_take_waits_and_is_lost_nowhere() {
    let mut row = Row::new(Rounds {
        test: 5,
        hour: 60,
        full: 120,
    });
    let nats = Nats::start().await;
    let processors = Cgroup::new(Controller::Cpu);
    let setup = Setup::new(&nats)
        .through(processors.launcher())
        .set(&format!("input.in_flight={IN_FLIGHT}"));
    let daemon = setup.start_ready();
    let publishers = Publishers::connect(&nats).await;
    let mut caller = Caller::new(&nats, "caller").await;
    let client = nats.connect().await.client().clone();
    let usual = median(&caller.ask_times(50).await);

    processors.limit_cpu(Some(SHARE));
    let began = Instant::now();
    publishers.publish(0..MEASURED, padded).await;
    caller.ask().await;
    let rate = MEASURED as f64 / began.elapsed().as_secs_f64();
    let mut num_published = MEASURED;
    // More than ten times: on a busy machine a pace is not kept to the millisecond.
    let pace = (rate * (TIMES + 3) as f64) as u64;
    let (mut overloaded, mut resident) = (Duration::ZERO, 0);
    while row.goes_on() {
        let first = num_published;
        overloaded += publishers.publish_at(pace, 1, first, padded).await;
        num_published += pace;
        resident = resident.max(daemon.usage().resident);
    }
    let times = (num_published - MEASURED) as f64 / overloaded.as_secs_f64() / rate;
    assert!(
        times >= TIMES as f64,
        "only {times:.1} times its rate arrived"
    );
    let waiting = num_waiting(&client).await;
    assert!(
        waiting > (num_published - MEASURED) / 2,
        "it kept up: only {waiting} of {num_published} wait"
    );
    assert!(
        processors.num_throttled() > 0,
        "its processors were never short"
    );

    processors.limit_cpu(None);
    let began = Instant::now();
    caller.ask().await;
    let drained = began.elapsed();
    let within = Duration::from_secs(5);
    let (recovered, again) = caller.ask_until_usual(usual, within).await;
    let (peak, bound) = (
        daemon.usage().peak,
        IN_FLIGHT * BYTES_IN_FLIGHT + BYTES_BESIDES,
    );
    let overload = Overload {
        rate,
        peak,
        bound,
        drained,
        usual,
        recovered,
        again,
    };
    overload.judge(&mut row);
    let judged = judge::judge(&client).await;
    row.count("messages confirmed to their publishers", num_published);
    row.count("messages published in overload", num_published - MEASURED);
    row.count("messages that waited at its end", waiting);
    row.fact(
        "rate of the overload",
        format!(
            "{times:.1} times that, for {:.0} s",
            overloaded.as_secs_f64()
        ),
    );
    row.fact("largest memory in overload", mib(resident));
    row.fact("limited by", processors.version());
    judged.conclude(row, &client, daemon).await;
}

/// A message of the user who is half of the traffic: each change is asked for.
fn of_neighbour(number: u64) -> Message {
    if number % 2 == 1 {
        return ("SendAlarmDigest", request("neighbour"));
    }
    let alarm = format!("alarm {}", number / 2 % 50);
    let status = ["WARNING", "CRITICAL"][(number / 100 % 2) as usize];
    (
        "AlarmStatusChanged",
        change("neighbour", &alarm, status, number % 80_000),
    )
}

/// Every second message is the neighbour's.
fn beside_neighbour(number: u64) -> Message {
    if number % 2 == 1 {
        of_neighbour(number / 2)
    } else {
        mixed(number)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_is_half_the_traffic_and_always_asks_delays_nobody_else() {
    /// Messages a second, of all.
    const PACE: u64 = 4000;
    let mut row = Row::new(Rounds::in_test(2));
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let client = nats.connect().await.client().clone();
    let mut caller = Caller::new(&nats, "caller").await;
    let (mut without, mut beside, mut num) = (Vec::new(), Vec::new(), 0);
    while row.goes_on() {
        for (waited, make) in [
            (&mut without, mixed as fn(u64) -> Message),
            (&mut beside, beside_neighbour),
        ] {
            let publishers = Publishers::connect(&nats).await;
            let publishing =
                tokio::spawn(async move { publishers.publish_at(PACE, 2, num, make).await });
            waited.extend(caller.ask_during(&publishing).await);
            publishing.await.expect("the publishers end");
            num += 2 * PACE;
        }
    }
    without.sort();
    beside.sort();
    let judged = judge::judge(&client).await;
    let output = judge::read_stream(&client, "TOCSIN_OUT").await;
    let is_of_neighbour = |payload: &[u8]| payload.starts_with(b"{\"UserID\":\"neighbour\"");
    let num_of_neighbour = output
        .iter()
        .filter(|it| is_of_neighbour(&it.payload))
        .count();
    assert!(
        num_of_neighbour as u64 > num / 50,
        "the neighbour got only {num_of_neighbour} digests of {num} messages"
    );
    let ratio = median(&beside).as_secs_f64() / median(&without).as_secs_f64();
    assert!(
        median(&beside) <= 5 * median(&without) + Duration::from_millis(50),
        "{:?} beside the neighbour, {:?} without",
        median(&beside),
        median(&without)
    );
    row.count("messages confirmed to their publishers", num);
    row.count("digests of the neighbour", num_of_neighbour as u64);
    row.count(
        "requests of another user",
        (without.len() + beside.len()) as u64,
    );
    let both =
        |waited: &[Duration]| format!("{:.1?} median, {:.1?} p99", median(waited), p99(waited));
    row.fact("request to digest without the neighbour", both(&without));
    row.fact(
        "request to digest beside the neighbour",
        format!("{} ({ratio:.1} times)", both(&beside)),
    );
    judged.conclude(row, &client, daemon).await;
}
