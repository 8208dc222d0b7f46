//! Disks that fail under the real daemon and real traffic: full, refusing, slow, and each call of the store
//! failing by itself. The daemon ends with one clear line; on a mended disk it goes on, and the judge finds
//! nothing lost and nothing twice.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, Setup};
use crate::support::disk::{Disk, SmallDisk};
use crate::support::evidence::Rounds;
use crate::support::nats::Nats;
use crate::support::rig::Rig;
use crate::support::strace::{Strace, files_of_store};
use crate::support::traffic::{Load, Pace};
use crate::support::{eventually, judge};

/// A record's first bytes: no other write than the journal's contains them.
const RECORD: &[u8] = b"\xf7Trj";
/// A write or an fsync failed.
const WRITE_FAILED: i32 = 74;
/// The store cannot be used.
const UNUSABLE: i32 = 2;

/// Puts the store on a disk of the test's own.
pub(crate) fn store_on(disk: &Path) -> String {
    format!("store.path={}/store", disk.display())
}

/// The daemon ended because of its disk: one line names file, cause and what follows.
fn assert_ended_by_disk(setup: &Setup, daemon: Daemon, cause: &str) -> i32 {
    let status = daemon.wait().code();
    let log = setup.take_log();
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.starts_with("tocsin: "))
        .collect();
    let [line] = lines[..] else {
        panic!("{status:?}, not one line: {log}");
    };
    let says = match status {
        Some(WRITE_FAILED) => "the process ends, because what the disk holds",
        Some(UNUSABLE) => "make it a writable folder on a disk with room",
        _ => panic!("{status:?}: {log}"),
    };
    for said in ["failed to ", "/store", cause, says] {
        assert!(line.contains(said), "{status:?} without {said}: {log}");
    }
    status.unwrap_or_default()
}

/// Traffic that never pauses: without it no fault of a disk is met.
pub(crate) fn load() -> Load {
    Load::at(Pace::Paced(1000))
}

/// A failed fsync leaves page cache and disk apart: what the next start reads is not what the disk holds.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_fsync_failed_to_write_is_neither_lost_nor_believed() {
    let mut disk = Disk::new();
    let store = store_on(&disk.path());
    let mut rig = Rig::new(Rounds::in_test(2), Nats::start().await, &[&store], load()).await;
    while rig.row.goes_on() {
        let daemon = rig.setup.start_ready();
        rig.traffic.after(rig.random.below(100)).await;
        let num_refused = disk.num_refused();
        disk.refuse(RECORD);
        let status = assert_ended_by_disk(&rig.setup, daemon, "Input/output error");
        assert_eq!(status, WRITE_FAILED);
        assert!(disk.num_refused() > num_refused);
        disk.mend();
        rig.row.count("fsyncs that failed on a block device", 1);
        let daemon = rig.setup.start_ready();
        rig.traffic.after(50).await;
        daemon.kill();
        rig.setup.take_log();
        // What only the page cache knew is gone now.
        disk.remount();
        rig.row.count("disks mounted anew after it", 1);
    }
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

/// A disk that takes nothing any more makes its file system read-only: every start says so, until it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_that_died_every_start_says_so_and_a_mended_one_loses_nothing() {
    let mut disk = Disk::new();
    let store = store_on(&disk.path());
    let mut rig = Rig::new(Rounds::in_test(1), Nats::start().await, &[&store], load()).await;
    while rig.row.goes_on() {
        let daemon = rig.setup.start_ready();
        rig.traffic.after(rig.random.below(100)).await;
        disk.refuse(b"");
        let status = assert_ended_by_disk(&rig.setup, daemon, "(os error ");
        assert_eq!(status, WRITE_FAILED);
        rig.row.count("disks that refused every write", 1);
        eventually("the file system is read-only", async || {
            // The file system notices with its next commit.
            let probe = std::fs::File::create(disk.path().join("probe"));
            let synced = probe.and_then(|probe| probe.sync_all());
            synced.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
        })
        .await;
        let status = assert_ended_by_disk(&rig.setup, rig.setup.start(), "Read-only file system");
        assert_eq!(status, UNUSABLE);
        rig.row.count("starts on a read-only file system", 1);
        disk.mend();
        disk.remount();
    }
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_daemon_and_loses_nothing_once_there_is_room() {
    let rounds = Rounds {
        test: 2,
        hour: 8,
        full: 8,
    };
    let mut size = 64 * 1024;
    let disk = SmallDisk::new(size);
    let store = store_on(disk.path());
    let mut rig = Rig::new(rounds, Nats::start().await, &[&store], load()).await;
    while rig.row.goes_on() {
        let status = assert_ended_by_disk(&rig.setup, rig.setup.start(), "No space left on device");
        rig.row.count("disks that ran full", 1);
        rig.row
            .count("ends with status 74", u64::from(status == WRITE_FAILED));
        // It is still full.
        let status = assert_ended_by_disk(&rig.setup, rig.setup.start(), "No space left on device");
        rig.row.count("starts on a full disk", 1);
        rig.row
            .count("ends with status 74", u64::from(status == WRITE_FAILED));
        // At a start the last segment is there twice.
        size = 2 * size + 4096 * (1 + rig.random.below(16));
        disk.resize(size);
    }
    disk.resize(1 << 30);
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_ends_the_daemon_with_a_line_and_loses_nothing() {
    let mut rig = Rig::new(
        Rounds::in_test(2),
        Nats::start().await,
        &["log.filter=error"],
        load(),
    )
    .await;
    let mut num_blocks = 64;
    while rig.row.goes_on() {
        num_blocks += 16 + rig.random.below(64);
        let limit = format!(r#"ulimit -f {num_blocks}; exec "$0" "$@""#);
        rig.setup = rig.setup.through(["sh", "-c", &limit]);
        let status = assert_ended_by_disk(&rig.setup, rig.setup.start(), "File too large");
        rig.row.count("file-size limits reached", 1);
        rig.row
            .count("ends with status 74", u64::from(status == WRITE_FAILED));
        // What the limit cut in the middle is mended by a start without it.
        rig.setup = rig.setup.through([""; 0]);
        rig.setup.start_ready().kill();
        rig.setup.take_log();
    }
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

/// Of each call how often it comes at a start, or before its fault is sure to come under traffic.
const CALLS: [(&str, u64); 7] = [
    ("write", 60),
    ("fdatasync", 60),
    ("fsync", 2),
    ("rename", 1),
    ("openat", 9),
    ("read", 6),
    ("getdents64", 2),
];
const ERRORS: [(&str, &str); 3] = [
    ("EIO", "Input/output error"),
    ("ENOSPC", "No space left on device"),
    ("EROFS", "Read-only file system"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_the_store_may_fail_at_any_time() {
    let rounds = Rounds::in_test(14);
    let (mut rig, daemon) = Rig::ready(rounds, Nats::start().await, &[], load()).await;
    let files = files_of_store(&rig.setup.store());
    drop(daemon);
    rig.setup.take_log();
    let mut round = 0;
    while rig.row.goes_on() {
        let (call, num) = CALLS[round % CALLS.len()];
        round += 1;
        let (error, cause) = ERRORS[rig.random.below(ERRORS.len() as u64) as usize];
        let when = 1 + rig.random.below(num);
        let strace = Strace::new();
        rig.setup = rig
            .setup
            .through(strace.injecting(&format!("{call}:error={error}:when={when}"), &files));
        let mut daemon = rig.setup.start();
        let is_of_the_start = !["write", "fdatasync"].contains(&call);
        let deadline = Instant::now() + Duration::from_mins(1);
        // What the daemon says is heard: it waits for whoever started it.
        while !(daemon.has_told("READY=1") && is_of_the_start || daemon.has_ended()) {
            assert!(
                Instant::now() < deadline,
                "{call} {when}:\n{}",
                rig.setup.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if daemon.has_ended() {
            let status = assert_ended_by_disk(&rig.setup, daemon, cause);
            assert!(strace.num_injected() > 0, "{call} {when}");
            rig.row.count("calls of the store that failed", 1);
            rig.row.count(&format!("{call} with {error}"), 1);
            rig.row
                .count("ends with status 74", u64::from(status == WRITE_FAILED));
        } else {
            daemon.kill();
            rig.setup.take_log();
            assert_eq!(strace.num_injected(), 0, "{call} {when}");
            rig.row.count("starts that made fewer such calls", 1);
        }
    }
    rig.setup = rig.setup.through([""; 0]);
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

/// A flush of seconds is no failure: nothing but the digests waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn while_an_fsync_takes_seconds_the_daemon_lives_and_keeps_its_claim() {
    let disk = Disk::new();
    let store = store_on(&disk.path());
    let mut rig = Rig::new(Rounds::in_test(1), Nats::start().await, &[&store], load()).await;
    // systemd would kill it after three seconds of silence.
    rig.setup = rig.setup.env("WATCHDOG_USEC", "3000000");
    let mut daemon = rig.setup.start_ready();
    let mut seconds = 4;
    while rig.row.goes_on() {
        let num_flushes = disk.num_flushes();
        disk.flush_takes(Duration::from_secs(seconds));
        while disk.num_flushes() == num_flushes {
            daemon.wait_for("WATCHDOG=1");
        }
        disk.flush_takes(Duration::ZERO);
        rig.row.count("fsyncs that took seconds", 1);
        rig.row.fact("longest fsync", format!("{seconds} s"));
        rig.traffic.after(100).await;
        // The next is longer than the claim on the input lasts.
        seconds = 12;
    }
    judge::conclude(rig.row, &rig.client, rig.traffic, daemon).await;
    let log = rig.setup.log();
    assert!(!log.contains("ERROR"), "{log}");
}
