//! Damage at rest: bytes, lengths and whole files of a store that nobody uses. It is refused with the file and what
//! to do, or opens as it was; only what the end of the journal has lost may be gone, and then whole commits of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;
use tocsin::store::StoreError;
use tocsin::store::format::FRAME_BYTES;

use crate::disk::load;
use crate::power_loss::{build, map_after, state};
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::random::Random;
use crate::support::replay::{Files, read_files, write_files};
use crate::support::rig::Rig;

/// In memory where that is possible: thousands of stores are opened.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    folder.expect("a folder")
}

/// A store that was closed: its files without the lock.
fn store(seed: u64) -> Files {
    let folder = folder();
    build(folder.path(), seed, 150);
    let mut files = read_files(folder.path());
    files.remove("lock");
    files
}

fn last_segment(files: &Files) -> String {
    let segments = files.keys().filter(|name| name.starts_with("journal-"));
    segments.max().expect("a segment").clone()
}

/// What was done to a store, as the table says it.
fn damage(files: &mut Files, other: &Files, random: &mut Random) -> &'static str {
    let names: Vec<_> = files.keys().cloned().collect();
    let mut any = || names[random.below(names.len() as u64) as usize].clone();
    let (name, second) = (any(), any());
    let bytes = files.get_mut(&name).expect("a file");
    let len = bytes.len() as u64;
    let (begin, sector) = (random.below(len), 1 + random.below(600));
    let [begin, end] = [begin, (begin + sector).min(len)].map(|it| it as usize);
    match random.below(9) {
        0 => {
            for _ in 0..=random.below(3) {
                bytes[random.below(len) as usize] ^= 1 << random.below(8);
            }
            "flipped bits"
        }
        1 => {
            bytes[begin..end].fill_with(|| random.next() as u8);
            "overwritten ranges"
        }
        2 => {
            bytes[begin..end].fill(0);
            "ranges of zeros"
        }
        3 => {
            bytes.truncate(begin);
            "files cut short"
        }
        4 => {
            files.remove(&name);
            "files removed"
        }
        5 => {
            let moved = files[&second].clone();
            let first = files.insert(name, moved).expect("a file");
            files.insert(second, first);
            "files swapped"
        }
        6 => {
            if let Some(foreign) = other.get(&name) {
                files.insert(name, foreign.clone());
            }
            "files of another store"
        }
        7 => {
            bytes.extend((0..sector).map(|_| random.next() as u8));
            "files with bytes behind their end"
        }
        _ => {
            let moved = bytes[begin..end].to_vec();
            let to = random.below(len - moved.len() as u64 + 1) as usize;
            bytes[to..to + moved.len()].copy_from_slice(&moved);
            "ranges written to another place"
        }
    }
}

#[test]
fn a_damaged_store_is_refused_or_as_it_was() {
    let mut row = Row::new(Rounds {
        test: 1500,
        hour: 20_000,
        full: 500_000,
    });
    let (seed, folder) = (row.seed(), folder());
    let (whole, other) = (store(seed), store(seed + 1));
    let last = last_segment(&whole);
    write_files(folder.path(), &whole);
    let as_it_was: Vec<_> = state(folder.path())
        .expect("a sound store")
        .into_iter()
        .map(|(header, _)| header.number.0)
        .collect();
    let mut random = Random(seed);
    while row.goes_on() {
        let mut files = whole.clone();
        let what = damage(&mut files, &other, &mut random);
        if files == whole {
            continue;
        }
        row.count("damaged stores", 1);
        row.count(what, 1);
        let has_its_end = files.get(&last).is_some_and(|bytes| {
            let (end, known_end) = (bytes.len(), whole[&last].len());
            end == known_end && bytes[end - FRAME_BYTES..] == whole[&last][end - FRAME_BYTES..]
        });
        write_files(folder.path(), &files);
        match state(folder.path()) {
            Err(error @ (StoreError::Damaged { .. } | StoreError::NewerFormat { .. })) => {
                let line = error.to_string();
                assert!(
                    line.contains(&folder.path().display().to_string()),
                    "{line}"
                );
                assert_eq!(line.lines().count(), 1, "{line}");
                row.count("refused, naming the file", 1);
            }
            Err(error) => panic!("{what}: {error}"),
            Ok(found) => {
                let numbers: Vec<_> = found.iter().map(|(header, _)| header.number.0).collect();
                for (partition, (number, (_, map))) in (0..).zip(numbers.iter().zip(&found)) {
                    assert_eq!(*map, map_after(seed, partition, *number), "{what}");
                }
                if has_its_end {
                    assert_eq!(numbers, as_it_was, "{what}");
                }
                row.count(
                    if numbers == as_it_was {
                        "opened as it was"
                    } else {
                        "opened without the last commits: the end of the journal was gone"
                    },
                    1,
                );
            }
        }
    }
    row.close();
}

/// Only its last segment says where a journal ends, unless a snapshot knows: without it, it ends before.
#[test]
fn without_its_last_segment_a_journal_ends_where_the_one_before_does() {
    let numbers = |folder: &Path| -> Vec<u64> {
        let found = state(folder).expect("a store that opens");
        for (partition, (header, map)) in (0..).zip(&found) {
            assert_eq!(*map, map_after(1, partition, header.number.0));
        }
        found.iter().map(|(header, _)| header.number.0).collect()
    };
    let mut lengths = 1..;
    let (folder, whole) = loop {
        let folder = folder();
        build(folder.path(), 1, lengths.next().expect("another"));
        let files = read_files(folder.path());
        let num_segments = files
            .keys()
            .filter(|name| name.starts_with("journal-"))
            .count();
        // Its head has less than half of that.
        if num_segments == 2 && files[&last_segment(&files)].len() > 400 {
            break (folder, files);
        }
    };
    assert!(
        whole.keys().all(|name| !name.starts_with("snapshot-")),
        "no snapshot knows"
    );
    let as_it_was = numbers(folder.path());
    let mut files = whole;
    let last = last_segment(&files);
    files.remove(&last);
    write_files(folder.path(), &files);
    let found = numbers(folder.path());
    assert!(
        found
            .iter()
            .zip(&as_it_was)
            .all(|(found, was)| found <= was)
    );
    assert_ne!(found, as_it_was);
}

/// Runs `store verify` with little memory: its exit status, and all it says.
fn verify_in_little_memory(folder: &Path) -> (Option<i32>, String) {
    let output = Command::new("sh")
        .args(["-c", r#"ulimit -v 400000; exec "$0" "$@""#])
        .arg(env!("CARGO_BIN_EXE_tocsin"))
        .args(["store", "verify", "--set"])
        .arg(format!("store.path={}", folder.display()))
        .stdin(Stdio::null())
        .output()
        .expect("sh is in the PATH");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// As long as damage makes it look, and never in memory at once.
#[test]
fn lengths_of_gigabytes_take_no_memory() {
    const HUGE: u64 = 700 << 20;
    let (folder, whole) = (folder(), store(1));
    let last = last_segment(&whole);
    for name in whole.keys() {
        let mut files = whole.clone();
        let bytes = files.get_mut(name).expect("a file");
        bytes[12..16].copy_from_slice(&((HUGE - 4096) as u32).to_le_bytes());
        write_files(folder.path(), &files);
        make_long(&folder.path().join(name), HUGE);
        let (status, said) = verify_in_little_memory(folder.path());
        assert_eq!(status, Some(2), "{name}: {said}");
        assert!(
            said.contains(name) && said.contains("its head is longer than any"),
            "{said}"
        );
    }
    let mut files = whole;
    let bytes = files.get_mut(&last).expect("a segment");
    bytes.truncate(bytes.len() - FRAME_BYTES / 2);
    write_files(folder.path(), &files);
    make_long(&folder.path().join(&last), HUGE);
    let (status, said) = verify_in_little_memory(folder.path());
    assert!(
        said.contains("torn tail") && said.contains("the next start cuts its"),
        "{said}"
    );
    // It was read to its end: what is no row of the daemon's is all that is wrong with it.
    assert!(said.contains("stored row cannot be read"), "{said}");
    assert_eq!(status, Some(2), "{said}");
}

/// The file goes on with zeros, which take no room.
fn make_long(path: &PathBuf, num_bytes: u64) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.set_len(num_bytes).expect("a longer file");
}

/// What a cut of the journal has lost, the stream still has: the daemon reads it again and repeats nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_journal_cut_short_at_rest_loses_no_alarm_of_a_stream() {
    let mut rig = Rig::new(Rounds::in_test(3), Nats::start().await, &[], load()).await;
    let segment = rig.setup.store().join("journal-0000000000000001");
    while rig.row.goes_on() {
        let daemon = rig.setup.start_ready();
        rig.traffic.after(50 + rig.random.below(100)).await;
        assert!(daemon.stop().success(), "{}", rig.setup.log());
        let len = fs::metadata(&segment).expect("a segment").len();
        // Its head is whole: without it the store is refused.
        let cut = len - rig.random.below(len - 4096).min(20_000);
        let file = fs::File::options().write(true).open(&segment);
        file.expect("a segment")
            .set_len(cut)
            .expect("a shorter file");
        rig.row.count("journals cut short at rest", 1);
        rig.row.count("bytes that they lost", len - cut);
    }
    let daemon = rig.setup.start_ready();
    rig.conclude(daemon).await;
}
