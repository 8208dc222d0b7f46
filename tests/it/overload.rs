//! More than the daemon can take: nothing is lost or the loss is counted, its memory is bounded, and it recovers.

use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use tokio::time::Instant;

use crate::support::cgroup::{Cgroup, Controller};
use crate::support::daemon::Setup;
use crate::support::evidence::{Row, Rounds};
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::pressure::{Caller, median, publish_confirmed};
use crate::support::traffic::{Random, change, request};
use crate::support::usage::{MIB, mib};

/// Messages accepted and not yet committed, as the daemon of an overload is set.
const IN_FLIGHT: u64 = 10_000;
/// What the daemon may need for each of them: its bytes, what was read from it, its row.
const BYTES_IN_FLIGHT: u64 = 4096;
/// What it may need besides: what its users have on record, its buffers.
const BYTES_BESIDES: u64 = 48 * MIB;
/// The share of one processor that it gets in an overload, in thousandths.
const SHARE: u64 = 20;
/// How many times more arrives in an overload than it can take.
const TIMES: u64 = 10;

/// A change, or at times a request, of some user.
fn message(number: u64) -> (&'static str, String) {
    let mut random = Random(number);
    let user = format!("user {}", random.below(100));
    if random.below(100) == 0 {
        return ("SendAlarmDigest", request(&user));
    }
    let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
    let alarm = format!("alarm {}", random.below(20));
    ("AlarmStatusChanged", change(&user, &alarm, status, random.below(80_000)))
}

/// Publishes at a rate until so many seconds are over; how many, and how long it took.
async fn publish_at(nats: &Nats, from: u64, per_second: u64, seconds: u64) -> (u64, Duration) {
    let began = Instant::now();
    let slices = seconds * 4;
    for slice in 0..slices {
        let (first, last) = (per_second * slice / 4, per_second * (slice + 1) / 4);
        publish_confirmed(nats, from + first..from + last, message).await;
        // The rate itself, not a wait for something to be seen.
        tokio::time::sleep_until(began + Duration::from_millis(250) * (slice + 1) as u32).await;
    }
    (per_second * seconds, began.elapsed())
}

/// How many messages of the stream the daemon was not given yet.
async fn num_waiting(client: &Client) -> u64 {
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream("TOCSIN_IN").await.expect("the stream exists");
    let mut consumers = stream.consumers();
    let mut fewest = u64::MAX;
    while let Some(consumer) = consumers.next().await {
        fewest = fewest.min(consumer.expect("the broker lists its consumers").num_pending);
    }
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_times_what_the_daemon_can_take_loses_nothing_and_passes() {
    let mut row = Row::new(Rounds { test: 3, hour: 20, full: 60 });
    let nats = Nats::start().await;
    let processors = Cgroup::new(Controller::Cpu);
    let setup = Setup::new(&nats)
        .launched_by(processors.launcher())
        .set(&format!("input.in_flight={IN_FLIGHT}"));
    let daemon = setup.start_ready();
    let mut caller = Caller::new(&nats, "caller").await;
    let client = nats.connect().await.client().clone();
    let before = caller.ask_times(50).await;

    processors.limit_cpu(Some(SHARE));
    let mut num_published = 2000;
    let began = Instant::now();
    publish_confirmed(&nats, 0..num_published, message).await;
    caller.ask().await;
    let rate = (num_published as f64 / began.elapsed().as_secs_f64()) as u64;
    eprintln!("XX before {before:?} rate {rate} usage {:?}", daemon.usage());
    let mut overloaded = Duration::ZERO;
    while row.goes_on() {
        let (num, took) = publish_at(&nats, num_published, rate * (TIMES + 1), 1).await;
        num_published += num;
        overloaded += took;
    }
    let waiting = num_waiting(&client).await;
    let at_once = (num_published - 2000) as f64 / overloaded.as_secs_f64() / rate as f64;
    eprintln!("XX waiting {waiting} times {at_once} throttled {} usage {:?}", processors.num_throttled(), daemon.usage());
    processors.limit_cpu(None);
    let began = Instant::now();
    caller.ask().await;
    let drained = began.elapsed();
    let after = caller.ask_times(50).await;
    eprintln!("XX drained {drained:?} after {after:?} usage {:?}", daemon.usage());
    let began = Instant::now();
    judge::judge(&client).await;
    eprintln!("XX judged {num_published} in {:?} {:?} {}", began.elapsed(), daemon.usage(), mib(1));
    row.close();
}
