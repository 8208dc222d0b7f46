//! What the embedded store does when disks, files and processes fail: a crash at every byte, a flipped bit
//! in every byte, leftovers of every step, failed writes; and that its disk stays bounded meanwhile.

#![expect(
    clippy::panic,
    reason = "clippy takes helpers outside of a #[test] for production code"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tocsin::core::ids::{CommitNumber, PartitionId, StoreId};
use tocsin::core::partition::{Header, SnapshotHead};
use tocsin::core::rows::Rows;
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::format::{
    END_BYTES, FRAME_BYTES, Frame, FrameKind, Salt, SegmentHead, SnapshotEnd, StoreFile,
};
use tocsin::store::{SnapshotWriter, Store, StoreError};

use crate::support::evidence::{Rounds, Row};
use crate::support::random::Random;

use super::store_contract::{Folded, Map, Owner, SMALL, commit, eventually, open, position, wait};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn copy(from: &Path) -> TempDir {
    let to = folder();
    for name in files(from) {
        fs::copy(from.join(&name), to.path().join(&name)).expect("a copy");
    }
    to
}

/// The names of the files that matter, in order.
fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.into_string().expect("a name of ours")
        })
        .filter(|name| name != "lock")
        .collect();
    names.sort_unstable();
    names
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    files(folder)
        .into_iter()
        .filter(|name| name.starts_with("journal-"))
        .map(|name| folder.join(name))
        .collect()
}

fn has_temporaries(folder: &Path) -> bool {
    files(folder).iter().any(|name| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "tmp")
    })
}

fn last_segment(folder: &Path) -> PathBuf {
    segments(folder).pop().expect("a segment")
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).expect("a file").len()
}

/// The number and rows of every partition, by opening and claiming all.
fn state(folder: &Path) -> Result<Vec<(CommitNumber, Map)>, StoreError> {
    let store = Embedded::open(folder, SMALL)?;
    let ids: Vec<_> = (0..store.num_partitions()).map(PartitionId).collect();
    let mut rows = Folded::default();
    let headers = store.claim(&ids, &mut rows)?;
    Ok(ids
        .iter()
        .zip(headers)
        .map(|(id, header)| (header.number, rows.0.remove(id).unwrap_or_default()))
        .collect())
}

fn assert_damaged(folder: &Path, file: &str, says: &str) {
    let error = state(folder).expect_err("it is damaged");
    let StoreError::Damaged { path, what, .. } = &error else {
        panic!("{error}");
    };
    let name = path.file_name().expect("a file").to_string_lossy();
    assert!(name.starts_with(file), "{error}");
    assert!(what.contains(says), "{error}");
}

fn assert_poisoned(store: &dyn Store, owner: &mut Owner) {
    let next = owner.next(&[("after", Some("1"))]);
    let error = commit(store, next).expect_err("the store is poisoned");
    assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
    let error = store
        .claim(&[owner.id], &mut Folded::default())
        .expect_err("the store is poisoned");
    assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
    assert!(store.begin_snapshot(owner.head()).is_none());
}

/// A store of two partitions with nothing in it, in one segment.
const TINY: Options = Options {
    partitions: 2,
    segment_bytes: 1 << 20,
    min_journal_bytes: 1 << 20,
};

fn open_with(folder: &Path, options: Options) -> Arc<dyn Store> {
    Arc::new(Embedded::open(folder, options).expect("a store that opens"))
}

fn snapshot(store: &dyn Store, owner: &Owner, folder: &Path) {
    let mut writer = store.begin_snapshot(owner.head()).expect("a writer");
    assert!(writer.write(&owner.rows()));
    writer.install();
    let path = folder.join(format!("snapshot-{:04x}", owner.id.0));
    eventually("the snapshot is in place", || path.exists());
}

/// Commits one by one; returns the length of the journal and the state after each.
fn history(folder: &Path) -> Vec<(u64, Vec<(CommitNumber, Map)>)> {
    let store = open_with(folder, TINY);
    let mut owners = [0, 1].map(|id| Owner::claim(&*store, id));
    let mut history = Vec::new();
    for i in 0..6 {
        let both = i % 3 == 2;
        let mut commits = vec![owners[0].next(&[("a", Some(&i.to_string())), ("b", None)])];
        if both {
            commits.push(owners[1].next(&[("x", Some(&"y".repeat(i)))]));
        }
        wait(store.commit(commits)).expect("a commit");
        let state = owners
            .iter()
            .map(|owner| (owner.header.number, owner.map.clone()))
            .collect();
        history.push((size(&last_segment(folder)), state));
    }
    history
}

#[test]
fn a_crash_at_any_byte_leaves_every_whole_commit_and_no_part_of_one() {
    let folder = folder();
    let history = history(folder.path());
    let journal = fs::read(last_segment(folder.path())).expect("a journal");
    let begin = history[history.len() - 3].0;
    for end in begin..=journal.len() as u64 {
        let crashed = copy(folder.path());
        let segment = last_segment(crashed.path());
        let file = fs::File::options().write(true).open(&segment).expect("it");
        file.set_len(end).expect("a shorter file");
        let (whole, expected) = history
            .iter()
            .rev()
            .find(|(length, _)| *length <= end)
            .expect("a commit before the cut");
        assert_eq!(state(crashed.path()).as_ref().ok(), Some(expected), "{end}");
        // Only the claim of reading it was appended to what is whole.
        let read = fs::read(&segment).expect("a journal");
        let whole = usize::try_from(*whole).expect("a short file");
        assert_eq!(read[..whole], journal[..whole]);
    }
}

#[test]
fn a_tail_of_which_some_pages_were_never_written_is_cut() {
    let folder = folder();
    let history = history(folder.path());
    let segment = last_segment(folder.path());
    let journal = fs::read(&segment).expect("a journal");
    let (begin, before) = &history[history.len() - 2];
    let (end, after) = &history[history.len() - 1];
    let [begin, end] = [*begin, *end].map(|at| usize::try_from(at).expect("a short file"));
    for from in begin..journal.len() {
        let expected = if from < end { before } else { after };
        for extra in [0, 4096] {
            let mut torn = journal.clone();
            torn[from..].fill(0);
            torn.resize(journal.len() + extra, 0);
            if torn[..journal.len()] == journal {
                continue;
            }
            let crashed = copy(folder.path());
            fs::write(last_segment(crashed.path()), torn).expect("a torn file");
            assert_eq!(
                state(crashed.path()).as_ref().ok(),
                Some(expected),
                "{from}"
            );
        }
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_torn_tail_is_said_with_file_offset_and_length() {
    let folder = folder();
    let history = history(folder.path());
    let segment = last_segment(folder.path());
    let [.., (before, _), (end, _)] = history.as_slice() else {
        panic!("two commits");
    };
    let file = fs::File::options().write(true).open(&segment).expect("it");
    file.set_len(end - 1).expect("a shorter file");
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        open_with(folder.path(), TINY);
        open_with(folder.path(), TINY);
    });
    let log = String::from_utf8(log.0.lock().expect("the log").clone()).expect("a text");
    assert_eq!(log.lines().count(), 1, "it is said once: {log}");
    for said in [
        "WARN",
        "torn tail",
        &format!("file={}", segment.display()),
        &format!("offset={before}"),
        &format!("num_bytes={}", end - 1 - before),
    ] {
        assert!(log.contains(said), "{said}: {log}");
    }
}

/// Two partitions in three short segments, and a snapshot of the first.
fn with_everything(folder: &Path) -> Vec<(CommitNumber, Map)> {
    let options = Options {
        segment_bytes: 360,
        ..TINY
    };
    let store = open_with(folder, options);
    let mut owners = [0, 1].map(|id| Owner::claim(&*store, id));
    for i in 0..6 {
        for owner in &mut owners {
            let next = owner.next(&[("a", Some(&i.to_string())), ("b", Some("bb"))]);
            commit(&*store, next).expect("a commit");
        }
        if i == 2 {
            snapshot(&*store, &owners[0], folder);
        }
    }
    drop(store);
    assert_eq!(segments(folder).len(), 3);
    assert!(size(&last_segment(folder)) > 210, "two records");
    owners
        .into_iter()
        .map(|owner| (owner.header.number, owner.map))
        .collect()
}

/// Of a store that was closed, even the last write is known to have been whole.
#[test]
fn a_changed_byte_anywhere_in_any_file_is_found() {
    let mut row = Row::new(Rounds::in_test(1));
    let folder = folder();
    let whole = with_everything(folder.path());
    let last = last_segment(folder.path());
    let mut random = Random(row.seed());
    let mut round = 0;
    while row.goes_on() {
        let mut num_damaged = 0;
        for name in files(folder.path()) {
            let bytes = fs::read(folder.path().join(&name)).expect("a file");
            for at in 0..bytes.len() {
                let crashed = copy(folder.path());
                let mut flipped = bytes.clone();
                // First each bit of each byte, then any other byte.
                flipped[at] ^= match round {
                    0..8 => 1 << ((at + round) % 8),
                    _ => 1 + random.below(255) as u8,
                };
                fs::write(crashed.path().join(&name), flipped).expect("a file");
                match state(crashed.path()) {
                    Err(StoreError::Damaged { path, .. }) => {
                        assert!(path.starts_with(crashed.path()));
                        num_damaged += 1;
                    }
                    Err(StoreError::NewerFormat { .. }) => {
                        assert!((8..12).contains(&at), "{name} at {at}");
                        num_damaged += 1;
                    }
                    Ok(state) => {
                        let is_in_seal = last.ends_with(&name) && at + FRAME_BYTES >= bytes.len();
                        assert!(is_in_seal, "{name} at {at}");
                        assert_eq!(state, whole, "{name} at {at}");
                        row.count(
                            "changed bytes of the empty record of a clean stop, cut without loss",
                            1,
                        );
                    }
                    Err(error) => panic!("{name} at {at}: {error}"),
                }
            }
        }
        assert!(num_damaged > 1000, "{num_damaged}");
        row.count("changed bytes that were refused", num_damaged);
        round += 1;
    }
    row.close();
}

/// After a crash, it cannot be told from a write that was interrupted: the commit before it stands.
#[test]
fn a_flipped_bit_in_the_last_write_before_a_crash_takes_that_write_alone() {
    let folder = folder();
    let history = history(folder.path());
    let [.., (begin, before), (end, _)] = history.as_slice() else {
        panic!("two commits");
    };
    let segment = last_segment(folder.path());
    let mut journal = fs::read(&segment).expect("a journal");
    journal.truncate(usize::try_from(*end).expect("a short file"));
    for at in usize::try_from(*begin).expect("a short file")..journal.len() {
        let crashed = copy(folder.path());
        let mut flipped = journal.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(last_segment(crashed.path()), flipped).expect("a file");
        assert_eq!(state(crashed.path()).as_ref().ok(), Some(before), "{at}");
    }
}

/// A publisher chooses the bytes of rows: a whole record among them is not a record.
#[test]
fn a_record_inside_a_row_does_not_make_a_torn_tail_look_like_damage() {
    let folder = folder();
    let store = open_with(folder.path(), TINY);
    let mut owner = Owner::claim(&*store, 0);
    let begin = size(&last_segment(folder.path()));
    commit(&*store, owner.next(&[("a", Some("1"))])).expect("a commit");
    let journal = fs::read(last_segment(folder.path())).expect("a journal");
    let record = journal[usize::try_from(begin).expect("short")..].to_vec();
    let mut rows = Rows::default();
    rows.push(b"evil", Some(&record));
    let mut next = owner.next(&[]);
    next.rows = rows;
    commit(&*store, next).expect("a commit");
    let end = size(&last_segment(folder.path()));
    drop(store);
    let segment = last_segment(folder.path());
    let file = fs::File::options().write(true).open(&segment).expect("it");
    file.set_len(end - 1).expect("a shorter file");
    let state = state(folder.path()).expect("a torn tail");
    assert_eq!(state[0].0, CommitNumber(1));
}

#[test]
fn a_bad_record_with_a_valid_one_behind_it_is_damage() {
    let folder = folder();
    let history = history(folder.path());
    let segment = last_segment(folder.path());
    let mut journal = fs::read(&segment).expect("a journal");
    let at = history[3].0;
    journal[usize::try_from(at).expect("short") + 30] ^= 4;
    fs::write(&segment, &journal).expect("a file");
    let behind = history[4].0;
    assert_damaged(
        folder.path(),
        "journal-",
        &format!("a valid record follows at byte {behind}"),
    );
    let error = state(folder.path()).expect_err("it is damaged").to_string();
    assert!(error.contains(&format!("at byte {at}: ")), "{error}");
    assert!(error.contains("restore the folder from a copy"), "{error}");
    assert_eq!(fs::read(&segment).ok(), Some(journal), "nothing is changed");
}

#[test]
fn a_missing_file_is_damage_and_is_named() {
    let folder = folder();
    with_everything(folder.path());
    let without = |name: &str| {
        let copied = copy(folder.path());
        fs::remove_file(copied.path().join(name)).expect("a file");
        copied
    };
    let names: Vec<_> = segments(folder.path())
        .iter()
        .map(|path| {
            path.file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    assert_damaged(without("store").path(), "store", "the file is missing");
    assert_damaged(without(&names[1]).path(), &names[1], "is missing");
    assert_damaged(
        without(&names[0]).path(),
        &names[1],
        "it begins after commit",
    );
    let all = copy(folder.path());
    for name in &names {
        fs::remove_file(all.path().join(name)).expect("a file");
    }
    assert_damaged(all.path(), &names[0], "is missing");
}

#[test]
fn a_snapshot_that_is_missing_is_damage_once_its_segments_are_gone() {
    let folder = folder();
    let store = open_with(
        folder.path(),
        Options {
            segment_bytes: 250,
            ..TINY
        },
    );
    let mut owners = [0, 1].map(|id| Owner::claim(&*store, id));
    for owner in &mut owners {
        for i in 0..6 {
            commit(&*store, owner.next(&[("a", Some(&i.to_string()))])).expect("a commit");
        }
    }
    let oldest = segments(folder.path()).remove(0);
    for owner in &owners {
        snapshot(&*store, owner, folder.path());
    }
    eventually("the oldest segment goes", || !oldest.exists());
    drop(store);
    fs::remove_file(folder.path().join("snapshot-0001")).expect("a snapshot");
    assert_damaged(
        folder.path(),
        "journal-",
        "the snapshot before it ends at 0",
    );
}

#[test]
fn a_journal_that_lost_what_a_snapshot_knows_of_is_damage() {
    let folder = folder();
    let store = open_with(folder.path(), TINY);
    let mut owner = Owner::claim(&*store, 0);
    let head = owner.head();
    commit(&*store, owner.next(&[("a", Some("1"))])).expect("a commit");
    let end = size(&last_segment(folder.path()));
    commit(&*store, owner.next(&[("a", Some("2"))])).expect("a commit");
    let mut writer = store.begin_snapshot(head).expect("a writer");
    assert!(writer.write(&owner.rows()));
    writer.install();
    drop(store);
    let segment = last_segment(folder.path());
    let file = fs::File::options().write(true).open(&segment).expect("it");
    file.set_len(end).expect("a shorter file");
    assert_damaged(
        folder.path(),
        "snapshot-0000",
        "the journal ends at commit 1",
    );
}

#[test]
fn an_older_segment_that_is_too_short_is_damage_wherever_it_is_cut() {
    let folder = folder();
    with_everything(folder.path());
    let first = segments(folder.path()).remove(0);
    for end in 0..size(&first) {
        let copied = copy(folder.path());
        let path = segments(copied.path()).remove(0);
        let file = fs::File::options().write(true).open(&path).expect("it");
        file.set_len(end).expect("a shorter file");
        let error = state(copied.path()).expect_err("it is damaged");
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{end}: {error}"
        );
    }
}

/// Without its last claim a partition would go back to an epoch that was given away.
#[test]
fn an_older_segment_that_lost_a_claim_is_damage() {
    let folder = folder();
    let options = Options {
        segment_bytes: 250,
        ..TINY
    };
    let store = open_with(folder.path(), options);
    let mut before_last = 0;
    while segments(folder.path()).len() == 1 {
        before_last = size(&last_segment(folder.path()));
        Owner::claim(&*store, 0);
        // The next segment is begun after the claim was answered.
        assert!(wait(store.commit(Vec::new())).is_ok());
    }
    drop(store);
    let segments = segments(folder.path());
    let file = fs::File::options().write(true).open(&segments[0]);
    let shortened = file.expect("it").set_len(before_last);
    shortened.expect("a shorter file");
    let second = segments[1].file_name().expect("a name").to_string_lossy();
    assert_damaged(
        folder.path(),
        &second,
        "it does not continue the segment before it",
    );
}

#[test]
fn a_snapshot_that_does_not_hold_what_its_end_says_is_damage() {
    let folder = folder();
    with_everything(folder.path());
    let id = open(folder.path()).id();
    let path = folder.path().join("snapshot-0000");
    let mut bytes = fs::read(&path).expect("a snapshot");
    bytes.truncate(bytes.len() - END_BYTES);
    let end = SnapshotEnd {
        num_blocks: 2,
        num_bytes: 17,
        durable: CommitNumber(3),
    };
    let mut frame = Vec::new();
    Frame::begin(&mut frame);
    end.encode(&mut frame);
    let salt = Salt::of_snapshot(id, PartitionId(0));
    Frame::finish(FrameKind::End, salt, bytes.len() as u64, &mut frame);
    bytes.extend_from_slice(&frame);
    fs::write(&path, bytes).expect("a snapshot");
    assert_damaged(folder.path(), "snapshot-0000", "what its end says");
}

#[test]
fn files_of_another_store_or_place_are_damage() {
    let (one, other) = (folder(), folder());
    with_everything(one.path());
    with_everything(other.path());
    let names = files(one.path());
    for name in names.iter().filter(|name| name.as_str() != "store") {
        let mixed = copy(one.path());
        fs::copy(other.path().join(name), mixed.path().join(name)).expect("a copy");
        assert_damaged(mixed.path(), name, "another store");
    }
    let swapped = copy(one.path());
    let swapped_segments = segments(swapped.path());
    let (first, second) = (&swapped_segments[0], &swapped_segments[1]);
    fs::copy(second, first).expect("a copy");
    assert_damaged(swapped.path(), "journal-", "another segment");
    let renamed = copy(one.path());
    let snapshot = renamed.path().join("snapshot-0000");
    fs::rename(snapshot, renamed.path().join("snapshot-0001")).expect("a rename");
    assert_damaged(renamed.path(), "snapshot-0001", "another partition");
}

#[test]
fn one_process_at_a_time_opens_a_folder() {
    let folder = folder();
    let store = open(folder.path());
    let error = Embedded::open(folder.path(), SMALL).expect_err("it is locked");
    assert!(matches!(error, StoreError::Locked { .. }), "{error}");
    drop(store);
    open(folder.path());
}

#[test]
fn a_file_of_a_newer_format_is_left_alone() {
    let folder = folder();
    with_everything(folder.path());
    for name in files(folder.path()) {
        let copied = copy(folder.path());
        let path = copied.path().join(&name);
        let mut bytes = fs::read(&path).expect("a file");
        bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
        fs::write(&path, &bytes).expect("a file");
        let error = state(copied.path()).expect_err("it is newer");
        let StoreError::NewerFormat {
            path: said,
            found: 2,
            known: 1,
        } = &error
        else {
            panic!("{name}: {error}");
        };
        assert_eq!(*said, path);
        assert_eq!(fs::read(&path).ok(), Some(bytes));
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = folder();
    let file = folder.path().join("file");
    fs::write(&file, "").expect("a file");
    for path in [file.clone(), file.join("store"), file.join("a").join("b")] {
        let error = Embedded::open(&path, SMALL).expect_err("it cannot be made");
        assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains("file"), "{error}");
    }
    let deep = folder.path().join("a").join("b");
    assert!(Embedded::open(&deep, SMALL).is_ok());
}

#[test]
fn a_store_whose_creation_was_interrupted_is_created() {
    let folder = folder();
    let head = SegmentHead {
        store: StoreId([9; 16]),
        number: 1,
        base: vec![Header::default(); 7],
    };
    let first = folder.path().join("journal-0000000000000001");
    fs::write(first, head.encode()).expect("a first segment");
    fs::write(folder.path().join("store.tmp"), "half").expect("a file");
    let store = open(folder.path());
    assert_ne!(store.id(), StoreId([9; 16]), "a new one");
    assert_eq!(store.headers(), vec![Header::default(); 4]);
    assert!(!folder.path().join("store.tmp").exists());
}

#[test]
fn leftovers_of_every_step_are_removed_and_change_nothing() {
    let folder = folder();
    let whole = with_everything(folder.path());
    let names = files(folder.path());
    let last = last_segment(folder.path());
    let next = format!("journal-{:016x}.tmp", names.len());
    let copied = last.file_name().expect("a name").to_string_lossy();
    for leftover in [
        "snapshot-0000.17.tmp",
        "snapshot-0001.3.tmp",
        &next,
        &format!("{copied}.tmp"),
    ] {
        fs::write(folder.path().join(leftover), "half of a file").expect("a leftover");
    }
    fs::write(folder.path().join("notes.txt"), "not ours").expect("a file");
    assert_eq!(state(folder.path()).ok(), Some(whole));
    assert!(folder.path().join("notes.txt").exists());
    fs::remove_file(folder.path().join("notes.txt")).expect("a file");
    assert_eq!(files(folder.path()), names);
}

/// A crash between the snapshot's rename and each removal of a segment: all of it may still lie there.
#[test]
fn segments_that_a_crash_left_behind_a_snapshot_are_removed_at_the_next_start() {
    let folder = folder();
    let options = Options {
        segment_bytes: 250,
        ..TINY
    };
    let store = open_with(folder.path(), options);
    let mut owners = [0, 1].map(|id| Owner::claim(&*store, id));
    for i in 0..6 {
        for owner in &mut owners {
            commit(&*store, owner.next(&[("a", Some(&i.to_string()))])).expect("a commit");
        }
    }
    drop(store);
    let before = copy(folder.path());
    let store = open_with(folder.path(), options);
    for owner in &owners {
        snapshot(&*store, owner, folder.path());
    }
    eventually("one segment is left", || segments(folder.path()).len() == 1);
    drop(store);
    let old = segments(before.path());
    for num_removed in 0..old.len() {
        let crashed = copy(folder.path());
        for path in &old[num_removed..] {
            let to = crashed.path().join(path.file_name().expect("a name"));
            if !to.exists() {
                fs::copy(path, to).expect("a copy");
            }
        }
        let store = open_with(crashed.path(), options);
        eventually("one segment is left", || {
            segments(crashed.path()).len() == 1
        });
        for owner in &owners {
            assert_eq!(Owner::claim(&*store, owner.id.0).map, owner.map);
        }
    }
}

#[test]
fn a_snapshot_that_is_dropped_never_happened() {
    let folder = folder();
    let store = open(folder.path());
    let mut owner = Owner::claim(&*store, 0);
    commit(&*store, owner.next(&[("a", Some("1"))])).expect("a commit");
    let mut writer = store.begin_snapshot(owner.head()).expect("a writer");
    let mut wrong = Rows::default();
    wrong.push(b"never", Some(b"committed"));
    assert!(writer.write(&wrong));
    let temporaries = || has_temporaries(folder.path());
    eventually("it is being written", temporaries);
    drop(writer);
    eventually("it is removed", || !temporaries());
    assert!(!folder.path().join("snapshot-0000").exists());
    drop(store);
    assert_eq!(Owner::claim(&*open(folder.path()), 0).map, owner.map);
}

#[test]
fn an_older_snapshot_does_not_replace_a_newer_one() {
    let folder = folder();
    let store = open(folder.path());
    let mut owner = Owner::claim(&*store, 0);
    commit(&*store, owner.next(&[("a", Some("1"))])).expect("a commit");
    let mut older = store.begin_snapshot(owner.head()).expect("a writer");
    assert!(older.write(&owner.rows()));
    commit(&*store, owner.next(&[("a", Some("2"))])).expect("a commit");
    snapshot(&*store, &owner, folder.path());
    let newer = fs::read(folder.path().join("snapshot-0000")).expect("a snapshot");
    older.install();
    drop(store);
    assert_eq!(
        fs::read(folder.path().join("snapshot-0000")).ok(),
        Some(newer)
    );
    assert!(!has_temporaries(folder.path()));
}

/// Slices of the map while commits change rows before and behind the slice, and remove and add some.
#[test]
fn a_fuzzy_snapshot_and_the_commits_after_its_number_are_the_state() {
    let folder = folder();
    let store = open(folder.path());
    let mut owner = Owner::claim(&*store, 0);
    let key = |i: usize| format!("key-{i:03}");
    for i in 0..100 {
        commit(&*store, owner.next(&[(&key(i), Some("first"))])).expect("a commit");
    }
    let mut writer = store.begin_snapshot(owner.head()).expect("a writer");
    for slice in 0..10 {
        let mut rows = Rows::default();
        let (from, to) = (
            key(slice * 10).into_bytes(),
            key(slice * 10 + 10).into_bytes(),
        );
        for (key, value) in owner.map.range(from..to) {
            rows.push(key, Some(value));
        }
        assert!(writer.write(&rows));
        let value = format!("while slice {slice}");
        let (before, behind) = (slice * 7 % 100, (slice * 13 + 50) % 100);
        let next = owner.next(&[
            (&key(before), Some(&value)),
            (&key(behind), None),
            (&format!("new-{slice}"), Some(&value)),
            (&key((slice * 31) % 100), Some(&value)),
        ]);
        commit(&*store, next).expect("a commit");
    }
    writer.install();
    drop(store);
    let store = open(folder.path());
    assert_eq!(Owner::claim(&*store, 0).map, owner.map);
}

/// Writes what is asked for, in slices between commits, as a worker does.
pub(crate) struct Snapshotting {
    writer: Box<dyn SnapshotWriter>,
    next: Vec<u8>,
}

impl Snapshotting {
    /// Begins; `None` on a store that is poisoned.
    pub(crate) fn begin(store: &dyn Store, owner: &Owner) -> Option<Self> {
        let writer = store.begin_snapshot(owner.head())?;
        let next = Vec::new();
        Some(Self { writer, next })
    }

    /// Writes the next slice; hands the writer back to be installed when everything is written.
    pub(crate) fn step(mut self, map: &Map) -> Result<Self, Box<dyn SnapshotWriter>> {
        let mut rows = Rows::default();
        let mut slice = map.range(self.next.clone()..);
        let mut end = None;
        for (key, value) in slice.by_ref().take(10) {
            rows.push(key, Some(value));
            end = Some([key.as_slice(), b"\0"].concat());
        }
        let is_last = slice.next().is_none();
        if !self.writer.write(&rows) {
            return Ok(self);
        }
        if is_last {
            return Err(self.writer);
        }
        self.next = end.unwrap_or_default();
        Ok(self)
    }
}

/// One worker that commits for ever, writes the snapshots it is asked for, and now and then starts anew.
fn endless_traffic(store: &dyn Store, id: u16, num_commits: usize) -> (Owner, usize) {
    let mut owner = Owner::claim(store, id);
    let mut under_way = None;
    let mut num_installed = 0;
    for i in 0..num_commits {
        let key = format!("key-{}", i * 7919 % 60);
        let value = (i % 11 != 0).then(|| format!("{i}-{}", "x".repeat(40)));
        let receipt = commit(store, owner.next(&[(&key, value.as_deref())])).expect("a commit");
        for partition in receipt.snapshot_due {
            assert_eq!(partition, owner.id);
            assert!(under_way.is_none(), "asked for while one is under way");
            under_way = Snapshotting::begin(store, &owner);
            assert!(under_way.is_some(), "a writer");
        }
        under_way = match under_way.take().map(|snapshot| snapshot.step(&owner.map)) {
            Some(Ok(snapshot)) => Some(snapshot),
            Some(Err(written)) => {
                written.install();
                num_installed += 1;
                None
            }
            None => None,
        };
        if i % 500 == 499 {
            under_way = None;
            let again = Owner::claim(store, id);
            assert_eq!(again.map, owner.map);
            owner = again;
        }
    }
    (owner, num_installed)
}

#[test]
fn the_disk_stays_bounded_under_endless_traffic_with_claims_and_snapshots() {
    let folder = folder();
    let store = open(folder.path());
    let max_bytes = Mutex::new(0);
    let owners: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|id| {
                let store = &*store;
                scope.spawn(move || endless_traffic(store, id, 1500))
            })
            .collect();
        scope.spawn(|| {
            // Until the last commit of the first worker.
            eventually("the traffic ends", || {
                let names = fs::read_dir(folder.path()).expect("a folder");
                let num_bytes: u64 = names
                    .filter_map(|entry| entry.ok()?.metadata().ok())
                    .map(|metadata| metadata.len())
                    .sum();
                let mut max = max_bytes.lock().expect("the size");
                *max = num_bytes.max(*max);
                store.headers()[0].number.0 >= 1500
            });
        });
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .collect()
    });
    let num_installed: usize = owners.iter().map(|(_, num)| num).sum();
    // 6,000 commits of about 90 bytes are 540 KB; four maps of 60 rows are 16 KB.
    let max_bytes = *max_bytes.lock().expect("the size");
    assert!(max_bytes < 160 * 1024, "{max_bytes} bytes at most");
    assert!(num_installed > 20, "{num_installed} snapshots");
    drop(store);
    let store = open(folder.path());
    for (owner, _) in owners {
        assert_eq!(Owner::claim(&*store, owner.id.0).map, owner.map);
    }
}

/// `/dev/full` refuses the write, `/dev/null` the fsync: both are what the kernel really says.
#[test]
fn a_segment_that_cannot_be_begun_poisons_the_store() {
    for device in ["/dev/full", "/dev/null"] {
        let folder = folder();
        let store = open_with(
            folder.path(),
            Options {
                segment_bytes: 360,
                ..TINY
            },
        );
        let mut owner = Owner::claim(&*store, 0);
        let next = folder.path().join("journal-0000000000000002.tmp");
        symlink(device, &next).expect("a link");
        let mut num_acknowledged = 0;
        let error = loop {
            let i = num_acknowledged.to_string();
            match commit(&*store, owner.next(&[("i", Some(&i))])) {
                Ok(_) => num_acknowledged += 1,
                Err(error) => break error,
            }
        };
        assert!(num_acknowledged > 2);
        let StoreError::Poisoned { path, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(*path, next);
        assert_poisoned(&*store, &mut owner);
        drop(store);
        let state = state(folder.path()).expect("what was acknowledged");
        assert_eq!(state[0].0, CommitNumber(num_acknowledged));
        let last = (num_acknowledged - 1).to_string().into_bytes();
        assert_eq!(state[0].1, Map::from([(b"i".to_vec(), last)]));
    }
}

#[test]
fn a_snapshot_that_cannot_be_written_poisons_the_store() {
    for device in ["/dev/full", "/dev/null"] {
        let folder = folder();
        let store = open_with(folder.path(), TINY);
        let mut owner = Owner::claim(&*store, 0);
        commit(&*store, owner.next(&[("a", Some("1"))])).expect("a commit");
        let durable = owner.clone();
        symlink(device, folder.path().join("snapshot-0000.1.tmp")).expect("a link");
        let mut writer = store.begin_snapshot(owner.head()).expect("a writer");
        assert!(writer.write(&owner.rows()));
        writer.install();
        eventually("the store is poisoned", || {
            store.begin_snapshot(durable.head()).is_none()
        });
        assert_poisoned(&*store, &mut owner);
        drop(store);
        assert_eq!(Owner::claim(&*open(folder.path()), 0).map, durable.map);
    }
}

const CHILD_FOLDER: &str = "TOCSIN_TEST_STORE_FOLDER";

#[test]
#[ignore = "run by a_full_journal_poisons_the_store in a process with a limit on its files"]
fn child_that_commits_until_it_cannot() {
    let folder = std::env::var_os(CHILD_FOLDER).expect("the parent says where");
    let store = open_with(Path::new(&folder), TINY);
    let mut owner = Owner::claim(&*store, 0);
    let mut num_acknowledged = 0_u64;
    let error = loop {
        let i = num_acknowledged.to_string();
        match commit(&*store, owner.next(&[("i", Some(&i))])) {
            Ok(_) => num_acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
    assert_poisoned(&*store, &mut owner);
    println!("acknowledged={num_acknowledged}=");
}

#[test]
fn a_full_journal_poisons_the_store_and_keeps_what_was_acknowledged() {
    let folder = folder();
    let output = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 16; exec "$0" "$@""#])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "--ignored", "--nocapture"])
        .arg("store_faults::child_that_commits_until_it_cannot")
        .env(CHILD_FOLDER, folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("sh is in the PATH");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    let num_acknowledged: u64 = said
        .split("acknowledged=")
        .nth(1)
        .and_then(|rest| rest.split('=').next())
        .and_then(|number| number.parse().ok())
        .expect("the child says how many");
    assert!(num_acknowledged > 50, "{num_acknowledged}");
    let state = state(folder.path()).expect("what was acknowledged");
    assert_eq!(state[0].0, CommitNumber(num_acknowledged));
    let last = (num_acknowledged - 1).to_string().into_bytes();
    assert_eq!(state[0].1, Map::from([(b"i".to_vec(), last)]));
}

/// Where the bytes of format 1 are kept. `TOCSIN_BLESS=1` writes them, when a format is added.
fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store/v1")
}

fn write_fixture(folder: &Path) -> Vec<(CommitNumber, Map)> {
    let store = StoreFile {
        id: StoreId(*b"0123456789abcdef"),
        partitions: 2,
    };
    let head = SegmentHead {
        store: store.id,
        number: 1,
        base: vec![Header::default(); 2],
    };
    fs::write(folder.join("store"), store.encode()).expect("a file");
    fs::write(folder.join("journal-0000000000000001"), head.encode()).expect("a file");
    with_everything(folder)
}

#[test]
fn format_1_is_written_with_the_same_bytes_for_ever() {
    let folder = folder();
    write_fixture(folder.path());
    if std::env::var_os("TOCSIN_BLESS").is_some() {
        fs::create_dir_all(fixtures()).expect("a folder");
        for name in files(folder.path()) {
            fs::copy(folder.path().join(&name), fixtures().join(&name)).expect("a copy");
        }
    }
    assert_eq!(files(folder.path()), files(&fixtures()));
    for name in files(folder.path()) {
        let written = fs::read(folder.path().join(&name)).expect("a file");
        let kept = fs::read(fixtures().join(&name)).expect("a fixture");
        assert_eq!(written, kept, "{name}");
    }
}

#[test]
fn format_1_is_read_for_ever() {
    let copied = copy(&fixtures());
    let store = open(copied.path());
    assert_eq!(store.id(), StoreId(*b"0123456789abcdef"));
    assert_eq!(store.num_partitions(), 2);
    for id in 0..2 {
        let owner = Owner::claim(&*store, id);
        assert_eq!(owner.header.epoch.0, 2);
        assert_eq!(owner.header.number, CommitNumber(6));
        assert_eq!(owner.header.position, Some(position(60)));
        let rows = [("a", "5"), ("b", "bb")];
        let expected: Map = rows
            .map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec()))
            .into();
        assert_eq!(owner.map, expected);
    }
}

/// Threads claim different partitions at once: together they read what one claim of all reads.
#[test]
fn partitions_are_recovered_in_parallel() {
    let folder = folder();
    let store = open(folder.path());
    let owners: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|id| {
                let store = &*store;
                scope.spawn(move || endless_traffic(store, id, 700).0)
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("a worker"))
            .collect()
    });
    drop(store);
    let store = open(folder.path());
    std::thread::scope(|scope| {
        for owner in &owners {
            let store = &*store;
            scope.spawn(move || assert_eq!(Owner::claim(store, owner.id.0).map, owner.map));
        }
    });
    let head = SnapshotHead {
        partition: PartitionId(0),
        header: store.headers()[0],
    };
    assert!(store.begin_snapshot(head).is_some());
}
