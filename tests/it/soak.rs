//! The same daemon, or the same store, for long: what it uses does not grow, and nothing is lost.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tocsin::app::upkeep;

use crate::support::daemon::{Daemon, Setup};
use crate::support::evidence::{Rounds, Row};
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::pressure::{Caller, median};
use crate::support::rig::Rig;
use crate::support::traffic::{Load, Pace};
use crate::support::usage::{MIB, Usage, mib};

/// Messages a second.
const PACE: u64 = 1000;
/// Users and alarms of the traffic: what is on record cannot be more.
const MAX_ALARMS: u64 = 40 * 12;
/// What the store may take on disk: segments of 64 MiB go when a later snapshot stands.
const MAX_STORE: u64 = 256 * MIB;
/// How many looks are taken in one undisturbed stretch.
const LOOKS: usize = 5;

/// What is done to a daemon between two undisturbed stretches.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    /// SIGSTOP, and SIGCONT a second later.
    Freeze,
    /// kill -9 of nats-server, and its start.
    KillBroker,
    /// kill -9, and another process.
    Kill,
    /// SIGTERM, and another process.
    Stop,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "SIGSTOP and SIGCONT of the daemon",
            Self::KillBroker => "kill -9 of nats-server",
            Self::Kill => "kill -9 of the daemon",
            Self::Stop => "SIGTERM of the daemon",
        }
    }
}

/// What was seen of the daemon and its store in one undisturbed moment.
#[derive(Clone, Copy)]
struct Look {
    usage: Usage,
    store: u64,
}

async fn look(setup: &Setup, daemon: &Daemon, looks: &mut Vec<Look>) {
    for _ in 0..LOOKS {
        let (usage, store) = (daemon.usage(), num_bytes(&setup.store()));
        looks.push(Look { usage, store });
        // The pause between two looks, not a wait for something to be seen.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The bytes of the files of a store.
fn num_bytes(folder: &Path) -> u64 {
    let files = fs::read_dir(folder).expect("the store is a folder");
    // A file may go between the list and the look.
    let lens = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len()));
    lens.sum()
}

/// Whether a measure of the last quarter is that of the second: at most so much above it.
fn demand_flat(
    row: &mut Row,
    looks: &[Look],
    what: &str,
    of: fn(&Look) -> u64,
    more: u64,
    say: fn(u64) -> String,
) {
    let quarter = looks.len() / 4;
    let median_of = |looks: &[Look]| {
        let mut values: Vec<_> = looks.iter().map(of).collect();
        values.sort_unstable();
        median(&values)
    };
    let second = median_of(&looks[quarter..2 * quarter]);
    let last = median_of(&looks[looks.len() - quarter..]);
    assert!(
        last <= second + more,
        "{what}: {} then {}",
        say(second),
        say(last)
    );
    row.fact(
        what,
        format!(
            "{} in the second quarter, {} in the last",
            say(second),
            say(last)
        ),
    );
}

async fn soak(faults: &[Fault]) {
    let load = Load::at(Pace::Paced(PACE)).at_most(u64::MAX);
    let rounds = Rounds::in_test(4);
    let (mut rig, mut daemon) = Rig::ready(rounds, Nats::start().await, &[], load).await;
    let mut caller = Caller::new(&rig.nats, "caller").await;
    let mut looks = Vec::new();
    for &fault in faults.iter().cycle() {
        if !rig.row.goes_on() {
            break;
        }
        rig.traffic.after(rig.random.below(PACE / 2)).await;
        match fault {
            Fault::Freeze => {
                daemon.freeze();
                rig.traffic.after(PACE).await;
                daemon.thaw();
            }
            Fault::KillBroker => {
                rig.nats.kill().await;
                rig.nats
                    .restart()
                    .await
                    .unwrap_or_else(|error| panic!("{error}"));
            }
            Fault::Kill => {
                daemon.kill();
                daemon = rig.setup.start_ready();
            }
            Fault::Stop => {
                assert!(daemon.stop().success());
                let stats = upkeep::stats(&rig.setup.store());
                let stats = stats.unwrap_or_else(|error| panic!("{error}"));
                let num_rows: u64 = stats.num_alarms.iter().sum();
                // The caller's own are apart.
                let of_caller = looks.len() as u64 + 8;
                assert!(
                    num_rows <= MAX_ALARMS + of_caller,
                    "{num_rows} alarms on record"
                );
                rig.row
                    .fact("alarms on record at the last stop", num_rows.to_string());
                daemon = rig.setup.start_ready();
            }
        }
        rig.row.count(fault.name(), 1);
        // Behind everything that waited: the backlog is worked off.
        caller.ask().await;
        look(&rig.setup, &daemon, &mut looks).await;
    }
    rig.traffic.after(PACE / 4).await;
    let confirmed = rig.traffic.stop().await;
    caller.ask().await;
    let judged = judge::judge_confirmed(&rig.client, &confirmed).await;
    let count = |num: u64| num.to_string();
    demand_flat(
        &mut rig.row,
        &looks,
        "memory",
        |it| it.usage.resident,
        16 * MIB,
        mib,
    );
    demand_flat(
        &mut rig.row,
        &looks,
        "open files",
        |it| it.usage.num_files,
        8,
        count,
    );
    demand_flat(
        &mut rig.row,
        &looks,
        "threads",
        |it| it.usage.num_threads,
        4,
        count,
    );
    let largest = looks.iter().map(|it| it.store).max().unwrap_or_default();
    assert!(largest <= MAX_STORE, "{}", mib(largest));
    rig.row.fact("largest store", mib(largest));
    rig.row.count("looks at what it uses", looks.len() as u64);
    judged.conclude(rig.row, &rig.client, daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_for_long_uses_no_more_than_at_first() {
    soak(&[Fault::Freeze, Fault::KillBroker]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_store_for_long_uses_no_more_than_at_first() {
    let faults = [Fault::Kill, Fault::Stop, Fault::Freeze, Fault::KillBroker];
    soak(&faults).await;
}
