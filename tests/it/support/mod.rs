//! What several subjects share.

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
pub(crate) mod reading;
pub(crate) mod replay;
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
