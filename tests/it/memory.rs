//! A limit on the daemon's memory: a long backlog is drained below it, and a kill for want of memory loses nothing.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::cgroup::Cgroup;
use crate::support::daemon::Setup;
use crate::support::evidence::{Row, Rounds};
use crate::support::nats::Nats;
use crate::support::pressure::{Cycle, publish_confirmed};
use crate::support::usage::{MIB, mib};

const CYCLE: Cycle = Cycle { num_users: 1000, alarms_per_user: 100 };

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_drained_below_a_limit_of_memory() {
    let mut row = Row::new(Rounds { test: 1, hour: 10, full: 100 });
    let nats = Nats::start().await;
    let memory = Cgroup::of_memory(300 * MIB);
    let setup = Setup::new(&nats).launched_by(memory.launcher());
    // The streams are the daemon's to make.
    assert!(setup.start_ready().stop().success());
    let began = Instant::now();
    let mut num = 0;
    while row.goes_on() {
        publish_confirmed(&nats, num..num + 100_000, |number| {
            ("AlarmStatusChanged", CYCLE.change(number))
        })
        .await;
        num += 100_000;
    }
    publish_confirmed(&nats, 0..CYCLE.num_users, |user| ("SendAlarmDigest", Cycle::request(user))).await;
    eprintln!("XX published {num} in {:?}", began.elapsed());
    let began = Instant::now();
    let daemon = setup.start_ready();
    let client = nats.connect().await.client().clone();
    CYCLE.judge(&client, num).await;
    eprintln!("XX drained in {:?} {:?} {} {} {}", began.elapsed(), daemon.usage(), mib(memory.peak_memory()), memory.num_oom_kills(), memory.version());
    assert!(daemon.stop().success());
    row.close();
}
