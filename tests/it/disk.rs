//! Disks that fail under the real daemon and real traffic: full, refusing, slow, and each call of the store
//! failing by itself. The daemon ends with one clear line; on a mended disk it goes on, and the judge finds
//! nothing lost and nothing twice.

use std::path::Path;
use std::time::{Duration, Instant};

use async_nats::Client;

use crate::support::daemon::{Daemon, Setup};
use crate::support::disk::{Disk, SmallDisk};
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::strace::{Strace, files_of_store};
use crate::support::traffic::{Load, Pace, Random, Traffic};
use crate::support::{eventually, judge};

/// A record's first bytes: no other write than the journal's contains them.
const RECORD: &[u8] = b"\xf7Trj";
/// A write or an fsync failed.
const WRITE_FAILED: i32 = 74;
/// The store cannot be used.
const UNUSABLE: i32 = 2;

/// A daemon with its store on a disk of the test's own.
fn setup_on(nats: &Nats, disk: &Path) -> Setup {
    Setup::new(nats).set(&format!("store.path={}/store", disk.display()))
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

/// Judges, and counts what was judged.
pub(crate) async fn judge_and_count(client: &Client, traffic: Traffic, row: &mut Row) {
    let confirmed = traffic.stop().await;
    let judged = judge::judge_confirmed(client, &confirmed).await;
    judged.count_in(row);
}

/// A failed fsync leaves page cache and disk apart: what the next start reads is not what the disk holds.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_fsync_failed_to_write_is_neither_lost_nor_believed() {
    let mut row = Row::new(Rounds::in_test(2));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut disk = Disk::new();
    let setup = setup_on(&nats, &disk.path());
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut random = Random(row.seed());
    while row.goes_on() {
        let daemon = setup.start_ready();
        traffic.after(random.below(100)).await;
        let num_refused = disk.num_refused();
        disk.refuse(RECORD);
        let status = assert_ended_by_disk(&setup, daemon, "Input/output error");
        assert_eq!(status, WRITE_FAILED);
        assert!(disk.num_refused() > num_refused);
        disk.mend();
        row.count("fsync that failed on a block device", 1);
        let daemon = setup.start_ready();
        traffic.after(50).await;
        daemon.kill();
        setup.take_log();
        // What only the page cache knew is gone now.
        disk.remount();
        row.count("disk mounted anew after it", 1);
    }
    let daemon = setup.start_ready();
    judge_and_count(&client, traffic, &mut row).await;
    drop(daemon);
    row.close();
}

/// A disk that takes nothing any more makes its file system read-only: every start says so, until it is mended.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_disk_that_died_every_start_says_so_and_a_mended_one_loses_nothing() {
    let mut row = Row::new(Rounds::in_test(1));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut disk = Disk::new();
    let setup = setup_on(&nats, &disk.path());
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut random = Random(row.seed());
    while row.goes_on() {
        let daemon = setup.start_ready();
        traffic.after(random.below(100)).await;
        disk.refuse(b"");
        let status = assert_ended_by_disk(&setup, daemon, "(os error ");
        assert_eq!(status, WRITE_FAILED);
        row.count("disk that refuses every write", 1);
        eventually("the file system is read-only", async || {
            // The file system notices with its next commit.
            let probe = std::fs::File::create(disk.path().join("probe"));
            let synced = probe.and_then(|probe| probe.sync_all());
            synced.is_err_and(|error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
        })
        .await;
        let status = assert_ended_by_disk(&setup, setup.start(), "Read-only file system");
        assert_eq!(status, UNUSABLE);
        row.count("start on a read-only file system", 1);
        disk.mend();
        disk.remount();
    }
    let daemon = setup.start_ready();
    judge_and_count(&client, traffic, &mut row).await;
    drop(daemon);
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_ends_the_daemon_and_loses_nothing_once_there_is_room() {
    let mut row = Row::new(Rounds {
        test: 2,
        hour: 8,
        full: 8,
    });
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut random = Random(row.seed());
    let mut size = 64 * 1024;
    let disk = SmallDisk::new(size);
    let setup = setup_on(&nats, disk.path());
    while row.goes_on() {
        let status = assert_ended_by_disk(&setup, setup.start(), "No space left on device");
        row.count("disk that ran full", 1);
        row.count("end with status 74", u64::from(status == WRITE_FAILED));
        // It is still full.
        let status = assert_ended_by_disk(&setup, setup.start(), "No space left on device");
        row.count("start on a full disk", 1);
        row.count("end with status 74", u64::from(status == WRITE_FAILED));
        // At a start the last segment is there twice.
        size = 2 * size + 4096 * (1 + random.below(16));
        disk.resize(size);
    }
    disk.resize(1 << 30);
    let daemon = setup.start_ready();
    judge_and_count(&client, traffic, &mut row).await;
    drop(daemon);
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_ends_the_daemon_with_a_line_and_loses_nothing() {
    let mut row = Row::new(Rounds::in_test(2));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut setup = Setup::new(&nats).set("log.filter=error");
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut random = Random(row.seed());
    let mut num_blocks = 64;
    while row.goes_on() {
        num_blocks += 16 + random.below(64);
        let limit = format!(r#"ulimit -f {num_blocks}; exec "$0" "$@""#);
        setup = setup.through(["sh", "-c", &limit]);
        let status = assert_ended_by_disk(&setup, setup.start(), "File too large");
        row.count("file-size limit reached", 1);
        row.count("end with status 74", u64::from(status == WRITE_FAILED));
        // What the limit cut in the middle is mended by a start without it.
        setup = setup.through([""; 0]);
        setup.start_ready().kill();
        setup.take_log();
    }
    let daemon = setup.start_ready();
    judge_and_count(&client, traffic, &mut row).await;
    drop(daemon);
    row.close();
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
    let mut row = Row::new(Rounds::in_test(14));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut setup = Setup::new(&nats);
    let files = files_of_store(&setup.store());
    drop(setup.start_ready());
    setup.take_log();
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        let (call, num) = CALLS[round % CALLS.len()];
        round += 1;
        let (error, cause) = ERRORS[random.below(ERRORS.len() as u64) as usize];
        let when = 1 + random.below(num);
        let strace = Strace::new();
        setup =
            setup.through(strace.injecting(&format!("{call}:error={error}:when={when}"), &files));
        let mut daemon = setup.start();
        let is_of_the_start = !["write", "fdatasync"].contains(&call);
        let deadline = Instant::now() + Duration::from_mins(1);
        // What the daemon says is heard: it waits for whoever started it.
        while !(daemon.has_told("READY=1") && is_of_the_start || daemon.has_ended()) {
            assert!(Instant::now() < deadline, "{call} {when}:\n{}", setup.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if daemon.has_ended() {
            let status = assert_ended_by_disk(&setup, daemon, cause);
            assert!(strace.num_injected() > 0, "{call} {when}");
            row.count(&format!("{call} that failed with {error}"), 1);
            row.count("end with status 74", u64::from(status == WRITE_FAILED));
        } else {
            daemon.kill();
            setup.take_log();
            assert_eq!(strace.num_injected(), 0, "{call} {when}");
            row.count("start that made fewer such calls", 1);
        }
    }
    setup = setup.through([""; 0]);
    let daemon = setup.start_ready();
    judge_and_count(&client, traffic, &mut row).await;
    drop(daemon);
    row.close();
}

/// A flush of seconds is no failure: nothing but the digests waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn while_an_fsync_takes_seconds_the_daemon_lives_and_keeps_its_claim() {
    let mut row = Row::new(Rounds::in_test(1));
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let disk = Disk::new();
    // systemd would kill it after three seconds of silence.
    let setup = setup_on(&nats, &disk.path()).env("WATCHDOG_USEC", "3000000");
    let mut daemon = setup.start_ready();
    let traffic = Traffic::start(&client, row.seed(), load()).await;
    let mut seconds = 4;
    while row.goes_on() {
        let num_flushes = disk.num_flushes();
        disk.flush_takes(Duration::from_secs(seconds));
        while disk.num_flushes() == num_flushes {
            daemon.wait_for("WATCHDOG=1");
        }
        disk.flush_takes(Duration::ZERO);
        row.count("fsync that took seconds", 1);
        row.fact("longest fsync", format!("{seconds} s"));
        traffic.after(100).await;
        // The next is longer than the claim on the input lasts.
        seconds = 12;
    }
    judge_and_count(&client, traffic, &mut row).await;
    let log = setup.log();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(daemon.stop().success(), "{}", setup.log());
    row.close();
}
