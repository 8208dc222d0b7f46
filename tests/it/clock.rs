//! The daemon under a wrong clock, by libfaketime: time is the broker's, and a wrong clock is said.
//!
//! The clock that is wrong is the wall clock, as in a machine without NTP: a step of it does not move the
//! monotonic clock. Only where a test says so, that one jumps, too, as in a machine that was moved or slept.
//! The broker and the test have the right time.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use futures::StreamExt;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::task::AbortOnDropHandle;

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::random::Random;
use crate::support::traffic::{
    Load, Pace, Traffic, Turn, change_and_request, publish_taken, request,
};
use crate::support::{eventually, judge};

/// What the daemon logs of a wrong clock, and when it is right again.
const DIFFER: &str = "our clock and the broker's differ; set both by NTP";
const AGREE: &str = "our clock and the broker's agree again";

/// Where `.ci/tools clock` puts it.
fn libfaketime() -> PathBuf {
    let lib = std::fs::read_dir("/usr/lib").expect("the system has libraries");
    let mut candidates = lib.map(|entry| {
        let folder = entry.expect("an entry").path();
        folder.join("faketime/libfaketimeMT.so.1")
    });
    candidates
        .find(|candidate| candidate.exists())
        .expect("libfaketime; type `.ci/tools clock` as root")
}

/// The clock of a daemon, moved by writing how far off it is.
struct Clock {
    folder: tempfile::TempDir,
}

impl Clock {
    fn new(offset: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the clock");
        let clock = Self { folder };
        clock.set(offset);
        clock
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("offset")
    }

    /// `+0`, `-1d`, `+1d x1.1`: how far off it is, and how fast it goes.
    fn set(&self, offset: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, offset).expect("the clock can be set");
        std::fs::rename(&new, self.file()).expect("the clock can be set");
    }

    /// Gives a daemon this clock.
    fn of(&self, setup: Setup) -> Setup {
        let library = libfaketime();
        setup
            .env("LD_PRELOAD", &library.to_string_lossy())
            .env("FAKETIME_TIMESTAMP_FILE", &self.file().to_string_lossy())
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }
}

/// Changes from half a day ago to half a day ahead, most of them clear: under a clock that is two days behind they
/// lie too far in the future, under one that is two days ahead every tombstone has had its time. Always of other
/// alarms: soon none would be newer than what is on record.
fn message_around_now(random: &mut Random, Turn { began, number }: Turn) -> (String, String) {
    const HALF_A_DAY: u64 = 12 * 3600;
    let user = format!("user {}", random.below(10));
    if random.below(5) == 0 {
        return ("SendAlarmDigest".to_owned(), request(&user));
    }
    let alarm = format!("{began}-{}-{}", number / 200, random.below(10));
    let status = ["CLEARED", "CLEARED", "WARNING", "CRITICAL"][random.below(4) as usize];
    let ahead = Duration::from_secs(random.below(2 * HALF_A_DAY));
    let at = OffsetDateTime::now_utc() + ahead - Duration::from_secs(HALF_A_DAY);
    let at = at.format(&Rfc3339).expect("an instant can be written");
    let payload = format!(
        "{{\"AlarmID\":\"alarm {alarm}\",\"UserID\":\"{user}\",\"Status\":\"{status}\",\"ChangedAt\":\"{at}\"}}"
    );
    ("AlarmStatusChanged".to_owned(), payload)
}

async fn start_traffic(client: &Client, seed: u64) -> Traffic {
    let load = Load::at(Pace::Paced(500)).of(message_around_now);
    Traffic::start(client, seed, load).await
}

/// What matters to time, short enough to be in play.
fn setup(nats: &Nats) -> Setup {
    Setup::new(nats)
        .set("input.stream_max_age=1d")
        .set("alarms.tombstone_retention=25h")
        .set("output.duplicate_window=1s")
        .set("metrics.aggregate_interval=1s")
}

/// Counts the windows of the metrics.
async fn windows(client: &Client) -> (Arc<AtomicU64>, AbortOnDropHandle<()>) {
    let mut aggregates = client
        .subscribe("MetricAggregate")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    let num = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&num);
    let counting = tokio::spawn(async move {
        while aggregates.next().await.is_some() {
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    (num, AbortOnDropHandle::new(counting))
}

/// Waits for so many windows of the metrics: the daemon's timers go.
async fn windows_go_on(num: &AtomicU64, more: u64) {
    let until = num.load(Ordering::Relaxed) + more;
    eventually("windows of the metrics", async || {
        num.load(Ordering::Relaxed) >= until
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_under_the_daemon_loses_and_repeats_nothing_and_is_said() {
    let mut row = Row::new(Rounds::in_test(4));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let (num_windows, _counting) = windows(&client).await;
    let clock = Clock::new("-2d");
    let setup = clock.of(setup(&nats));
    let daemon = setup.start_ready();
    let traffic = start_traffic(&client, row.seed()).await;
    let mut random = Random(row.seed());
    let (mut is_off, mut num_said) = (true, 1);
    let says = |line: &str, num: usize| setup.log().matches(line).count() == num;
    eventually("a wrong clock said", async || says(DIFFER, num_said)).await;
    while row.goes_on() {
        let offset = match random.below(4) {
            // Back to the right time, so that the next jump is said again.
            _ if is_off => "+0".to_owned(),
            0 => format!("-{}d", 1 + random.below(3)),
            1 => format!("+{}d", 1 + random.below(3)),
            2 => format!("-{}m", 2 + random.below(60)),
            _ => format!("+{}m", 2 + random.below(60)),
        };
        is_off = !is_off;
        clock.set(&offset);
        if is_off {
            num_said += 1;
            eventually("a wrong clock said", async || says(DIFFER, num_said)).await;
        } else {
            eventually("a right clock said", async || says(AGREE, num_said)).await;
        }
        traffic.after(100 + random.below(300)).await;
        windows_go_on(&num_windows, 2).await;
        row.count("jumps of the wall clock under the daemon", 1);
    }
    judge::conclude(row, &client, traffic, daemon).await;
    // Once: a claim that was lost is owned again, and said again.
    assert_eq!(setup.num_logged("this store owns the input"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_under_wrong_clocks_lose_and_repeat_nothing() {
    const CLOCKS: [&str; 5] = ["-1d", "+1d", "+0 x1.1", "+0 x0.9", "+2d x1.1"];
    let mut row = Row::new(Rounds::in_test(3));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let (num_windows, _counting) = windows(&client).await;
    let clock = Clock::new("+0");
    let setup = clock.of(setup(&nats));
    let traffic = start_traffic(&client, row.seed()).await;
    for round in 0.. {
        if !row.goes_on() {
            break;
        }
        let offset = CLOCKS[round % CLOCKS.len()];
        clock.set(offset);
        let num_said = setup.log().matches(DIFFER).count();
        let daemon = setup.start_ready();
        traffic.after(500).await;
        if offset.contains('d') {
            eventually("a wrong clock said", async || {
                setup.log().matches(DIFFER).count() > num_said
            })
            .await;
            row.count("starts with a clock a day or more off", 1);
        } else {
            row.count("starts with a clock that goes wrong by a tenth", 1);
        }
        windows_go_on(&num_windows, 2).await;
        // What it owes is found by the next one, under another clock.
        daemon.kill();
    }
    clock.set("+0");
    let daemon = setup.start_ready();
    judge::conclude(row, &client, traffic, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_under_a_wrong_clock_repeats_no_digest_that_is_older_than_the_window() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    for offset in ["-1d", "+1d"] {
        let first = setup(&nats).start_ready();
        for user in 0..20 {
            let user = format!("user {user} under {offset}");
            change_and_request(&client, &user, "disk", "CRITICAL", 1).await;
        }
        judge::judge(&client).await;
        assert!(first.stop().success());
        // The window itself, twice: the broker forgets the ids.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let clock = Clock::new(offset);
        let second = clock.of(setup(&nats));
        let daemon = second.start_ready();
        let alarm = format!("another alarm under {offset}");
        change_and_request(&client, "ann", &alarm, "WARNING", 2).await;
        judge::judge(&client).await;
        eventually("a wrong clock said", async || second.log().contains(DIFFER)).await;
        assert!(daemon.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monotonic_clock_that_jumps_a_day_ahead_loses_and_repeats_nothing() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let (num_windows, _counting) = windows(&client).await;
    let clock = Clock::new("+0");
    let setup = clock
        .of(setup(&nats))
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "0");
    let daemon = setup.start_ready();
    let traffic = start_traffic(&client, 1).await;
    traffic.after(200).await;
    clock.set("+1d");
    eventually("a wrong clock said", async || setup.log().contains(DIFFER)).await;
    traffic.after(500).await;
    windows_go_on(&num_windows, 2).await;
    traffic.stop().await;
    judge::judge(&client).await;
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_too_far_ahead_by_the_brokers_time_and_by_no_other() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let clock = Clock::new("+3d");
    let setup = clock.of(setup(&nats));
    let _daemon = setup.start_ready();
    let at = OffsetDateTime::now_utc() + Duration::from_hours(48);
    let at = at.format(&Rfc3339).expect("an instant can be written");
    let payload = format!(
        "{{\"AlarmID\":\"disk\",\"UserID\":\"ann\",\"Status\":\"CRITICAL\",\"ChangedAt\":\"{at}\"}}"
    );
    publish_taken(&client, "AlarmStatusChanged", payload.clone()).await;
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    judge::judge_refusing(&client, |message| message.payload == payload.as_bytes()).await;
}
