//! The rows of the table.
//!
//! | file | rows |
//! |---|---|
//! | `flow.rs` | how much goes through |
//! | `delay.rs` | how long a request waits for its digest |
//! | `state.rs` | what a state takes: memory, disk, and the time to read it back |

mod delay;
mod flow;
mod state;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::figures::Figures;
use crate::server::Server;

/// What the journal needs for a change of two UUIDs, without what surrounds it.
const RECORD_BYTES: f64 = 57.0;
/// The yardstick's own stream of digests.
const OTHER: &str = "BENCH_OUT";
const OTHER_SUBJECT: &str = "bench.digest";

/// What a row is measured with.
pub(crate) struct Bench {
    pub(crate) folder: PathBuf,
    pub(crate) num_rounds: usize,
    /// 1 for the figures of the table; less makes every row smaller, to try it.
    pub(crate) scale: f64,
}

impl Bench {
    /// A count of the table, made smaller.
    pub(crate) fn scaled(&self, count: u64) -> u64 {
        ((count as f64 * self.scale) as u64).max(1)
    }

    pub(crate) fn server(&self) -> Server {
        Server::start(&self.folder.join("nats"))
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }
}

/// One row: its yardstick runs beside it, in turn, on the same server.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) beside: &'static str,
    pub(crate) measure: fn(&Bench, &mut Figures),
}

/// Every row, in the order of the table.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "drain",
        what: "a JetStream stream of 2 M changes is drained: 1 M users with 10 alarms, from the program's start to the digest of the last change, fsync on",
        beside: "the bare client pulls the same stream and counts",
        measure: flow::drain,
    },
    Row {
        name: "digests",
        what: "the same with one request in twenty messages, every digest confirmed in `TOCSIN_OUT`",
        beside: "the bare client beside as many confirmed publishes of as many bytes",
        measure: flow::digests,
    },
    Row {
        name: "core-burst",
        what: "1 M changes at once on core NATS, fsync on",
        beside: "a subscriber that counts them",
        measure: flow::burst,
    },
    Row {
        name: "live",
        what: "changes published to JetStream as fast as it confirms them, until all are applied",
        beside: "the same publisher, and the bare client that counts",
        measure: flow::live,
    },
    Row {
        name: "request-under-load",
        what: "request to digest, at half of what `live` carries",
        beside: "a bare service under the same load: pull, one fsync, publish",
        measure: delay::under_load,
    },
    Row {
        name: "request-at-idle",
        what: "request to digest, with nothing else",
        beside: "the bare service",
        measure: delay::at_idle,
    },
    Row {
        name: "large-user",
        what: "the digest of a user with 8,000 alarms, and the others meanwhile",
        beside: "a digest of 1,000 alarms; the others without it",
        measure: delay::large_user,
    },
    Row {
        name: "state-of-uuids",
        what: "10 M alarms, users and alarms named by UUIDs: memory, and the time from the start to `READY=1`",
        beside: "the files read and as many inserts into a map, on one thread",
        measure: state::uuids,
    },
    Row {
        name: "state-of-texts",
        what: "10 M alarms named by texts of 20 bytes",
        beside: "the same",
        measure: state::texts,
    },
    Row {
        name: "store-size",
        what: "the folder after ten changes of each of 2 M alarms",
        beside: "57 bytes an alarm, the live state",
        measure: state::size,
    },
];

/// How long some work takes.
fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Nothing is waited for: it is the pace of what is published, or quiet that is measured.
#[expect(
    clippy::disallowed_methods,
    reason = "time itself is what is waited for"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// CPU time in microseconds each.
fn micros_each(cpu: Duration, num_messages: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / num_messages as f64
}

/// What a run of the daemon left: the next begins as if there had been none.
fn forget(server: &Server, store: &Path) {
    std::fs::remove_dir_all(store).expect("the store can be removed");
    for stream in ["TOCSIN_CLAIM", crate::server::OUTPUT, "TOCSIN_DEAD_LETTER"] {
        server.remove(stream);
    }
    server.purge(crate::server::INPUT, crate::daemon::MARKER_REQUEST);
}
