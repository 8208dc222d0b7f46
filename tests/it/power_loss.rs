//! The power goes: whatever was not fsynced may be lost, in any part and order, and what was acknowledged is there.
//!
//! | test | cuts | what was written |
//! |---|---|---|
//! | of recorded calls | after each call of the store, thousands of them | a trace of a process that commits, claims, snapshots, closes and opens |
//! | of a disk | under the daemon and its traffic | by ext4, to a block device that forgets what was not flushed |

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tocsin::core::ids::PartitionId;
use tocsin::core::partition::Header;
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::{Store, StoreError};

use super::store_contract::{Folded, Map, Owner, wait};
use super::store_faults::Snapshotting;
use crate::disk::{load, store_on};
use crate::support::answered::Publishers;
use crate::support::daemon::Setup;
use crate::support::disk::Disk;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::program::within;
use crate::support::random::Random;
use crate::support::replay::{self, Files, Recording, read_files, write_files};
use crate::support::rig::Rig;
use crate::support::strace::{Strace, files_of_store};

/// Segments and snapshots so short that a short life crosses many of them.
const SHORT: Options = Options {
    partitions: 2,
    segment_bytes: 1500,
    min_journal_bytes: 3000,
};

const CHILD: &str = "TOCSIN_TEST_STORE_LIFE";

/// What commit `number` of a partition changes: the same in every life of the store.
fn rows_of(seed: u64, partition: u16, number: u64) -> Vec<(String, Option<String>)> {
    let mut random = Random(seed ^ (number << 8) ^ u64::from(partition));
    let num_rows = 1 + random.below(3);
    let row = |_| {
        let key = format!("key-{}", random.below(30));
        let long = if random.below(20) == 0 { 900 } else { 12 };
        let value = format!("{number}-{}", "v".repeat(random.below(long) as usize));
        (key, (random.below(6) > 0).then_some(value))
    };
    (0..num_rows).map(row).collect()
}

/// The rows of a partition after that commit.
pub(crate) fn map_after(seed: u64, partition: u16, number: u64) -> Map {
    let mut map = Map::new();
    for number in 1..=number {
        for (key, value) in rows_of(seed, partition, number) {
            match value {
                Some(value) => map.insert(key.into_bytes(), value.into_bytes()),
                None => map.remove(key.as_bytes()),
            };
        }
    }
    map
}

/// The header and rows of every partition, by opening and claiming all.
pub(crate) fn state(folder: &Path) -> Result<Vec<(Header, Map)>, StoreError> {
    let store = Embedded::open(folder, SHORT)?;
    let ids: Vec<_> = (0..store.num_partitions()).map(PartitionId).collect();
    let mut rows = Folded::default();
    let headers = store.claim(&ids, &mut rows)?;
    let states = ids.iter().zip(headers).map(|(id, header)| {
        let rows = rows.0.remove(id).unwrap_or_default();
        (header, rows)
    });
    Ok(states.collect())
}

/// What somebody was told to be durable, by partition.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    epoch: u64,
    number: u64,
}

fn all_told<'a>(lines: impl IntoIterator<Item = &'a str>) -> BTreeMap<u16, Told> {
    let mut told: BTreeMap<u16, Told> = BTreeMap::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (Some(partition), Some(epoch), Some(number)) = (number(), number(), number()) else {
            panic!("a line of the child: {line}");
        };
        let partition = u16::try_from(partition).expect("a partition");
        told.insert(partition, Told { epoch, number });
    }
    told
}

/// Everything told is there, nothing else but what may have been under way, and every row is as it was committed.
fn assert_kept(folder: &Path, seed: u64, told: &BTreeMap<u16, Told>, when: &str) {
    let state = state(folder).unwrap_or_else(|error| panic!("{when}: {error}"));
    for (partition, (header, map)) in (0..).zip(state) {
        let told = told.get(&partition).copied().unwrap_or_default();
        let number = header.number.0;
        assert!(number >= told.number, "{when}: {header:?} after {told:?}");
        assert!(
            number <= told.number + 1,
            "{when}: {header:?} after {told:?}"
        );
        assert!(
            header.epoch.0 > told.epoch,
            "{when}: {header:?} after {told:?}"
        );
        assert_eq!(
            map,
            map_after(seed, partition, number),
            "{when}: {header:?}"
        );
    }
}

/// Commits, claims, snapshots, closes and opens, and tells each commit and claim to a file once it is durable.
#[test]
#[ignore = "run by other tests of this module in a process that is traced"]
fn child_that_uses_a_store() {
    let words = std::env::var(CHILD).expect("the parent says where");
    let [folder, told, seed, num_steps] = words.split(' ').collect::<Vec<_>>()[..] else {
        panic!("a folder, a file and two numbers: {words}");
    };
    let [seed, num_steps] = [seed, num_steps].map(|it| it.parse::<u64>().expect("a number"));
    let file = fs::File::options().append(true).create(true).open(told);
    let mut told = file.expect("a file for what is durable");
    let mut num_done = 0;
    while num_done < num_steps {
        match live(Path::new(folder), seed, num_steps, &mut num_done, &mut told) {
            Ok(()) => {}
            Err(error @ (StoreError::Poisoned { .. } | StoreError::Unusable { .. })) => {
                println!("ended={error}=");
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Makes a store by so many steps of the same life.
pub(crate) fn build(folder: &Path, seed: u64, num_steps: u64) {
    let (mut num_done, mut told) = (0, Vec::new());
    within("the store", || {
        while num_done < num_steps {
            match live(folder, seed, num_steps, &mut num_done, &mut told) {
                Ok(()) => {}
                // A process that another test has just begun holds every file of ours until it is another program.
                Err(StoreError::Locked { .. }) => return None,
                Err(error) => panic!("{error}"),
            }
        }
        Some(())
    });
}

/// One process's time with a store.
fn live(
    folder: &Path,
    seed: u64,
    num_steps: u64,
    num_done: &mut u64,
    told: &mut impl Write,
) -> Result<(), StoreError> {
    let store = Embedded::open(folder, SHORT)?;
    let mut say = |owner: &Owner| {
        let (epoch, number) = (owner.header.epoch.0, owner.header.number.0);
        let line = format!("{} {epoch} {number}\n", owner.id.0);
        told.write_all(line.as_bytes())
            .expect("what is durable is told");
    };
    let claim = |partition: u16| -> Result<Owner, StoreError> {
        let (id, mut rows) = (PartitionId(partition), Folded::default());
        let headers = store.claim(&[id], &mut rows)?;
        let map = rows.0.remove(&id).unwrap_or_default();
        Ok(Owner {
            id,
            header: headers[0],
            map,
        })
    };
    let mut owners = [claim(0)?, claim(1)?];
    owners.iter().for_each(&mut say);
    let mut random = Random(seed ^ owners[0].header.epoch.0);
    let mut snapshots: BTreeMap<u16, Snapshotting> = BTreeMap::new();
    while *num_done < num_steps {
        *num_done += 1;
        if random.below(40) == 0 {
            return Ok(());
        }
        if random.below(40) == 0 {
            let id = random.below(2) as u16;
            snapshots.remove(&id);
            owners[usize::from(id)] = claim(id)?;
            say(&owners[usize::from(id)]);
        }
        let which = random.below(3);
        let commits = owners
            .iter_mut()
            .filter(|owner| u64::from(owner.id.0) != which);
        let commits = commits.map(|owner| {
            let rows = rows_of(seed, owner.id.0, owner.header.number.0 + 1);
            let rows: Vec<_> = rows
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_deref()))
                .collect();
            owner.next(&rows)
        });
        let receipt = wait(store.commit(commits.collect()))?;
        owners
            .iter()
            .filter(|owner| u64::from(owner.id.0) != which)
            .for_each(&mut say);
        for partition in receipt.snapshot_due {
            let owner = &owners[usize::from(partition.0)];
            snapshots.extend(Snapshotting::begin(&store, owner).map(|it| (partition.0, it)));
        }
        for (id, snapshot) in std::mem::take(&mut snapshots) {
            match snapshot.step(&owners[usize::from(id)].map) {
                Ok(snapshot) => {
                    snapshots.insert(id, snapshot);
                }
                Err(written) => written.install(),
            }
        }
    }
    Ok(())
}

/// A folder for a store, and beside it the file of what its process was told.
struct Life {
    // In memory where that is possible: thousands of stores are opened.
    folder: TempDir,
    seed: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        };
        let folder = folder.expect("a folder");
        for name in ["store", "cut"] {
            fs::create_dir(folder.path().join(name)).expect("a folder");
        }
        Self { folder, seed }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Where what is left of the store is looked at.
    fn cut(&self) -> PathBuf {
        self.folder.path().join("cut")
    }

    fn told(&self) -> PathBuf {
        self.folder.path().join("told")
    }

    /// Runs the child through strace.
    fn run(&self, strace: &[String], num_steps: u64) -> Output {
        let words = format!(
            "{} {} {} {num_steps}",
            self.store().display(),
            self.told().display(),
            self.seed
        );
        let output = Command::new(&strace[0])
            .args(&strace[1..])
            .arg(std::env::current_exe().expect("this program"))
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("power_loss::child_that_uses_a_store")
            .env(CHILD, words)
            .stdin(Stdio::null())
            .output()
            .expect("strace starts");
        assert!(output.status.success(), "{output:?}");
        output
    }
}

fn fingerprint(files: &Files) -> u64 {
    let mut hasher = DefaultHasher::new();
    files.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn after_a_power_cut_at_any_call_everything_acknowledged_is_there() {
    let mut row = Row::new(Rounds::in_test(1));
    let life = Life::new(row.seed());
    let mut random = Random(row.seed());
    let mut known = BTreeMap::new();
    while row.goes_on() {
        let before = read_files(&life.store());
        fs::remove_file(life.told()).ok();
        let strace = Strace::new();
        life.run(
            &strace.command(&["-xx", "-s", "1000000", "-e", replay::CALLS]),
            120,
        );
        let recording = Recording::read(&strace.finished(), &life.store(), &life.told());
        assert!(recording.num_syncs > 150, "{}", recording.num_syncs);
        row.count("fsync calls recorded", recording.num_syncs);
        // The next life begins with what one of the cuts left.
        let last = random.below(recording.len() as u64) as usize;
        let mut next = None;
        let mut seen = HashSet::new();
        let (mut num_cuts, mut num_disks) = (0, 0);
        recording.replay(&before, |i, replay| {
            num_cuts += 1;
            let mut told = known.clone();
            told.extend(all_told(replay.told.iter().copied()));
            let mut left = vec![replay.without_the_rest(), replay.with_the_rest()];
            left.extend((0..3).map(|_| replay.with_any_of_the_rest(&mut random)));
            for files in left {
                if seen.insert((
                    fingerprint(&files),
                    told.values().map(|it| it.number).sum::<u64>(),
                )) {
                    num_disks += 1;
                    write_files(&life.cut(), &files);
                    assert_kept(&life.cut(), life.seed, &told, &format!("step {i}"));
                }
                if i == last {
                    next = Some((files, told.clone()));
                }
            }
        });
        row.count("power cuts, one after each call", num_cuts);
        row.count("different disks that they left", num_disks);
        let (files, told) = next.expect("a cut");
        known = told;
        write_files(&life.store(), &files);
    }
    row.close();
}

/// Every call that the store makes, in a life that crosses segments, snapshots, claims and closings.
const CALLS: [&str; 9] = [
    "write",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "openat",
    "read",
    "lseek",
    "getdents64",
];

#[test]
fn whichever_call_fails_everything_acknowledged_is_there_at_the_next_start() {
    let mut row = Row::new(Rounds::in_test(18));
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        let call = CALLS[round % CALLS.len()];
        let life = Life::new(row.seed() ^ round as u64);
        // Each thread counts its own calls.
        let when = 1 + random.below(match round / CALLS.len() % 3 {
            0 => 3,
            1 => 12,
            _ => 60,
        });
        round += 1;
        let strace = Strace::new();
        let error = ["EIO", "ENOSPC"][random.below(2) as usize];
        let fault = format!("{call}:error={error}:when={when}");
        let output = life.run(
            &strace.injecting(&fault, &files_of_store(&life.store())),
            60,
        );
        let num_injected = strace.num_injected();
        let said = String::from_utf8_lossy(&output.stdout);
        if num_injected == 0 {
            row.count("lives that made fewer such calls", 1);
            assert!(!said.contains("ended="), "{said}");
        } else {
            row.count("calls of the store that failed", 1);
            row.count(call, 1);
            row.count(
                "stores that said so and stopped",
                u64::from(said.contains("ended=failed to ")),
            );
        }
        let told = fs::read_to_string(life.told()).unwrap_or_default();
        assert_kept(&life.store(), life.seed, &all_told(told.lines()), &fault);
    }
    row.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_under_the_daemon_loses_and_repeats_nothing() {
    let mut disk = Disk::new();
    // So long is what was written not flushed, and may be lost.
    disk.flush_takes(Duration::from_millis(5));
    let store = store_on(&disk.path());
    let mut rig = Rig::new(Rounds::in_test(4), Nats::start().await, &[&store], load()).await;
    while rig.row.goes_on() {
        let daemon = rig.setup.start_ready();
        rig.traffic.after(rig.random.below(150)).await;
        cut_power(&mut disk, &mut rig.random, &mut rig.row, || drop(daemon));
    }
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}

/// Cuts the power, ends whoever used the disk, and mounts what is left.
fn cut_power(disk: &mut Disk, random: &mut Random, row: &mut Row, end: impl FnOnce()) {
    let canary = disk.path().join(format!("canary-{}", disk.num_flushes()));
    fs::write(&canary, "was never fsynced").expect("a file");
    let cut = disk.cut_power(random);
    end();
    disk.remount();
    let left = fs::read(&canary).unwrap_or_default();
    assert_ne!(left, b"was never fsynced", "the power was cut");
    row.count("power cuts of a disk", 1);
    row.count("writes of blocks that they lost", cut.lost);
    row.count("writes of blocks that they tore", cut.torn);
    row.count("writes of blocks that they kept", cut.kept);
}

/// What core NATS has not kept, only the daemon's disk has: nobody asks for a digest until the last cut is done.
#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_every_answered_change_outlives_a_power_cut() {
    let mut row = Row::new(Rounds::in_test(4));
    let nats = Nats::start_with(false, "").await;
    let client = nats.connect().await.client().clone();
    let mut disk = Disk::new();
    // So long is what was written not flushed, and may be lost.
    disk.flush_takes(Duration::from_millis(5));
    let setup = Setup::new(&nats).set(&store_on(&disk.path()));
    let mut daemon = setup.start_ready();
    let publishers = Publishers::start(&client, None).await;
    let mut random = Random(row.seed());
    while row.goes_on() {
        publishers.after(1 + random.below(40)).await;
        cut_power(&mut disk, &mut random, &mut row, || drop(daemon));
        daemon = setup.start_ready();
    }
    publishers.conclude(row, daemon).await;
}
