//! SIGSTOP of the daemon and of nats-server for longer than every time-out, under traffic.
//!
//! | what ends first | after |
//! |---|---|
//! | an attempt to publish, a question to the broker | 5 s |
//! | the claim, by its holder's clock and by the others' | 8 s, 10 s |
//! | the broker's patience with a client that does not read | 10 s |
//! | a connection that answers no ping | 15 s |
//! | the consumer, which the broker forgets | 30 s |

use std::time::Duration;

use tokio::time::sleep;

use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::evidence::Rounds;
use crate::support::nats::Nats;
use crate::support::rig::Rig;
use crate::support::traffic::{Load, Pace};

/// Beyond the claim, within it, and beyond everything.
const FREEZES: [Duration; 3] = [
    Duration::from_secs(13),
    Duration::from_secs(4),
    Duration::from_secs(35),
];

/// A test has the time for the first two.
const ROUNDS: Rounds = Rounds {
    test: 2,
    hour: 9,
    full: 60,
};

/// How long to freeze in this round, and under which traffic.
fn freeze_of(round: usize) -> (Duration, Pace) {
    (FREEZES[round % 3], Pace::in_turn(round as u64 * 5))
}

/// The store is owned anew after each freeze that is longer than the claim.
const IS_OWNED: &str = "this store owns the input";
const CLAIM_LASTS: Duration = Duration::from_secs(10);

/// Who is stopped, as the evidence says it.
#[derive(Clone, Copy, Debug)]
enum Frozen {
    Daemon,
    Broker,
}

/// Freezes one of the two again and again under traffic, and judges.
async fn freeze(whom: Frozen) {
    // Shorter than every freeze: the broker has forgotten what was sent before.
    let sets = &["output.duplicate_window=2s"];
    let load = Load::at(Pace::Full).in_bursts_of(3000);
    let (mut rig, daemon) = Rig::ready(ROUNDS, Nats::start().await, sets, load).await;
    let (mut round, mut num_owned) = (0, 1);
    while rig.row.goes_on() {
        let (time, pace) = freeze_of(round);
        round += 1;
        rig.traffic.set_pace(pace);
        rig.traffic.after(500).await;
        match whom {
            Frozen::Daemon => daemon.freeze(),
            Frozen::Broker => rig.nats.pause(),
        }
        // The freeze itself.
        sleep(time).await;
        let name = match whom {
            Frozen::Daemon => {
                daemon.thaw();
                "the daemon"
            }
            Frozen::Broker => {
                rig.nats.resume();
                "nats-server"
            }
        };
        rig.row
            .count(&format!("SIGSTOP of {name} for {} s", time.as_secs()), 1);
        num_owned += u64::from(time > CLAIM_LASTS);
        rig.traffic.after(500).await;
        eventually("the input owned again", async || {
            rig.setup.num_logged(IS_OWNED) >= num_owned
        })
        .await;
    }
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freezes_of_the_daemon_lose_and_repeat_nothing() {
    freeze(Frozen::Daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn freezes_of_the_broker_lose_and_repeat_nothing() {
    freeze(Frozen::Broker).await;
}

/// Whether a daemon tells the service manager that it owes the broker messages: each second, where that changed.
fn owes(daemon: &mut Daemon) -> bool {
    let mut owes = false;
    while let Some(status) = daemon.told_within("STATUS=", Duration::from_millis(2500)) {
        owes = !status.ends_with(" 0 owed");
    }
    owes
}

#[tokio::test(flavor = "multi_thread")]
async fn freezes_between_a_publish_and_its_confirmation_repeat_nothing() {
    let rounds = Rounds {
        test: 2,
        hour: 10,
        full: 100,
    };
    let sets = &["output.duplicate_window=1s"];
    let load = Load::at(Pace::Full).in_bursts_of(3000);
    let (mut rig, mut daemon) = Rig::ready(rounds, Nats::start().await, sets, load).await;
    while rig.row.goes_on() {
        loop {
            rig.traffic.after(200 + rig.random.below(500)).await;
            rig.nats.pause();
            if owes(&mut daemon) {
                break;
            }
            rig.nats.resume();
        }
        // What is owed lies in the broker's socket: it is stored and confirmed while the daemon stands still.
        daemon.freeze();
        rig.nats.resume();
        // The freeze itself: longer than an attempt waits, and than the broker remembers.
        sleep(Duration::from_secs(7)).await;
        daemon.thaw();
        rig.row
            .count("SIGSTOP between a publish and its confirmation", 1);
    }
    rig.conclude(daemon).await;
}
