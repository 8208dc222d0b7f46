//! A broker behind a bad link: far away, throttled, silent, reset, cut in the middle of a message, refused.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::Client;

use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::link::{Direction, Link};
use crate::support::nats::{Nats, num_messages};
use crate::support::random::Random;
use crate::support::traffic::{Load, Pace, Traffic, change_and_request};
use crate::support::{eventually, judge};

/// How long a byte takes in each direction: a satellite's link.
const SATELLITE: Duration = Duration::from_millis(250);
/// What the daemon logs when it has a connection again.
const CONNECTED_AGAIN: &str = "connected to NATS again";
/// What it logs when it has waited in vain: for a sign of life, or for an answer.
const SILENT: [&str; 2] = ["the broker fell silent", "request timed out"];
/// What it logs when it may read and publish.
const OWNS_THE_INPUT: &str = "this store owns the input";
/// What it logs when it has found that it has none.
const NO_CONNECTION: &str = "no connection to NATS";

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_half_a_second_away_is_read_all_the_same() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let link = Link::to(&nats.url()).await;
    link.delay(SATELLITE);
    let setup = Setup::with_url(link.url());
    let _daemon = setup.start_ready();
    change_and_request(&client, "ann", "disk", "CRITICAL", 1).await;
    judge::judge(&client).await;
}

/// What is done to the link in one round.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Delay,
    Throttle,
    HalfOpen(Direction),
    Swallow,
    Reset,
    Cut(Direction),
    Refuse,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::Delay,
        Self::Throttle,
        Self::HalfOpen(Direction::ToServer),
        Self::HalfOpen(Direction::ToClient),
        Self::Swallow,
        Self::Reset,
        Self::Cut(Direction::ToServer),
        Self::Cut(Direction::ToClient),
        Self::Refuse,
    ];

    /// As the evidence says it.
    const fn name(self) -> &'static str {
        match self {
            Self::Delay => "links that delay every byte",
            Self::Throttle => "links throttled to some KB a second",
            Self::HalfOpen(Direction::ToServer) => "links silent towards the broker",
            Self::HalfOpen(Direction::ToClient) => "links silent towards the daemon",
            Self::Swallow => "links silent in both directions",
            Self::Reset => "links reset (RST)",
            Self::Cut(Direction::ToServer) => "links cut in the middle of a message to the broker",
            Self::Cut(Direction::ToClient) => "links cut in the middle of a message to the daemon",
            Self::Refuse => "links refused for a while",
        }
    }

    /// Makes the fault, and waits until it has happened.
    async fn make(self, link: &Link, setup: &Setup, random: &mut Random) {
        let counts = link.counts();
        let seen = || match self {
            Self::Delay | Self::Throttle => counts.slowed.load(Ordering::Relaxed),
            Self::HalfOpen(_) | Self::Swallow => SILENT.map(|it| setup.num_logged(it)).iter().sum(),
            Self::Reset | Self::Refuse => counts.reset.load(Ordering::Relaxed),
            Self::Cut(_) => counts.cut.load(Ordering::Relaxed),
        };
        let num_seen = seen();
        match self {
            Self::Delay => link.delay(Duration::from_millis(1 + random.below(300))),
            Self::Throttle => link.throttle(4000 + random.below(60_000)),
            Self::HalfOpen(direction) => link.silence(direction),
            Self::Swallow => {
                link.silence(Direction::ToServer);
                link.silence(Direction::ToClient);
            }
            Self::Reset => link.reset(),
            Self::Cut(direction) => link.cut(direction, random.next()),
            Self::Refuse => link.refuse(),
        }
        eventually(self.name(), async || seen() > num_seen).await;
    }

    /// Whether the daemon must have found its connection broken.
    const fn breaks(self) -> bool {
        matches!(self, Self::Reset | Self::Cut(_) | Self::Refuse)
    }
}

async fn start_traffic(client: &Client, random: &mut Random, pace: Pace) -> Traffic {
    Traffic::start(client, random.next(), Load::at(pace).in_bursts_of(500)).await
}

async fn digests_go_on(client: &Client, num_before: u64) {
    eventually("digests go on", async || {
        num_messages(client, "TOCSIN_OUT").await > num_before
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_link_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds::in_test(9));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let link = Link::to(&nats.url()).await;
    let setup = Setup::with_url(link.url())
        .set("output.duplicate_window=1m")
        .set("log.filter=info,tocsin::bus::jetstream::reader=debug");
    let daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let mut faults = Fault::ALL.to_vec();
    let traffic = start_traffic(&client, &mut random, Pace::Full).await;
    for round in 0.. {
        if !row.goes_on() {
            break;
        }
        // Each once, in another order each time.
        if faults.is_empty() {
            faults = Fault::ALL.to_vec();
        }
        traffic.set_pace(Pace::in_turn(round));
        let fault = faults.swap_remove(random.below(faults.len() as u64) as usize);
        let num_connected = setup.num_logged(CONNECTED_AGAIN);
        fault.make(&link, &setup, &mut random).await;
        traffic.after(50 + random.below(400)).await;
        link.heal();
        if fault.breaks() {
            eventually(fault.name(), async || {
                setup.num_logged(CONNECTED_AGAIN) > num_connected
            })
            .await;
        }
        let num_digests = num_messages(&client, "TOCSIN_OUT").await;
        traffic.after(200).await;
        digests_go_on(&client, num_digests).await;
        row.count("links faulty", 1);
        row.count(fault.name(), 1);
    }
    let connected_again = setup.num_logged(CONNECTED_AGAIN);
    row.count("connections made anew by the daemon", connected_again);
    judge::conclude(row, &client, traffic, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_silent_for_longer_than_the_ping_is_found_dead_and_loses_and_repeats_nothing() {
    // The first is the worst: what is published is stored, and its confirmation never comes.
    const SILENCES: [&[Direction]; 3] = [
        &[Direction::ToClient],
        &[Direction::ToServer, Direction::ToClient],
        &[Direction::ToServer],
    ];
    let mut row = Row::new(Rounds::in_test(1));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let link = Link::to(&nats.url()).await;
    let setup = Setup::with_url(link.url()).set("output.duplicate_window=1m");
    let mut daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let traffic = start_traffic(&client, &mut random, Pace::Paced(500)).await;
    for directions in SILENCES.into_iter().cycle() {
        if !row.goes_on() {
            break;
        }
        // Confirmations are under way when it falls silent.
        link.delay(SATELLITE);
        traffic.after(200 + random.below(400)).await;
        let num_found = setup.log().matches(NO_CONNECTION).count();
        for direction in directions {
            link.silence(*direction);
        }
        daemon.told_until("STATUS=claim on the input lost");
        // Of its four connections, each finds it by its own ping.
        eventually("dead connections found", async || {
            setup.log().matches(NO_CONNECTION).count() >= num_found + 4
        })
        .await;
        // What was sent over the dead connections arrives now, late, but not later than half the duplicate window.
        let num_digests = num_messages(&client, "TOCSIN_OUT").await;
        let num_owned = setup.num_logged(OWNS_THE_INPUT);
        link.heal();
        eventually("the claim is taken again", async || {
            setup.num_logged(OWNS_THE_INPUT) > num_owned
        })
        .await;
        digests_go_on(&client, num_digests).await;
        row.count("links silent until the daemon found them dead", 1);
    }
    judge::conclude(row, &client, traffic, daemon).await;
}
