//! What several subjects share.
//!
//! | file | what it gives |
//! |---|---|
//! | `answered.rs` | publishers on core NATS that wait for their answers |
//! | `cgroup.rs` | the kernel's limits on memory and processors for one process |
//! | `daemon.rs` | the real program as its own process: `Setup` says how, `Daemon` runs |
//! | `disk.rs` | real disks whose faults are made at will |
//! | `../../evidence/row.rs` | a row of the evidence, as its test sees it |
//! | `heard.rs` | digests as they were published, whatever became of their stream |
//! | `judge.rs` | what the input demands, against what was published |
//! | `link.rs` | a TCP proxy that makes a link bad |
//! | `nats.rs` | a real nats-server, or three |
//! | `pressure.rs` | many messages fast, and how long a user waits meanwhile |
//! | `program.rs` | the program as somebody types it |
//! | `random.rs` | draws that follow from a seed |
//! | `reading.rs` | what a message says, read without code of the daemon |
//! | `replay.rs` | what a power cut may leave of a folder |
//! | `rig.rs` | what most rows begin and end with: a server, a setup, traffic |
//! | `strace.rs` | calls of a program that are seen, fail or take long |
//! | `toy.rs` | a small digest service with a fault planted in it |
//! | `traffic.rs` | messages, and publishers that keep at it until each is confirmed |
//! | `usage.rs` | what a process uses |

pub(crate) mod answered;
pub(crate) mod cgroup;
pub(crate) mod daemon;
pub(crate) mod disk;
#[path = "../../evidence/row.rs"]
pub(crate) mod evidence;
pub(crate) mod heard;
pub(crate) mod judge;
pub(crate) mod link;
pub(crate) mod nats;
pub(crate) mod pressure;
pub(crate) mod program;
pub(crate) mod random;
pub(crate) mod reading;
pub(crate) mod replay;
pub(crate) mod rig;
pub(crate) mod strace;
pub(crate) mod toy;
pub(crate) mod traffic;
pub(crate) mod usage;

use std::time::Duration;

/// Waits until something is seen; fails with what was waited for when the time is over.
pub(crate) async fn eventually(what: &str, is_seen: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while !is_seen().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within 30 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
