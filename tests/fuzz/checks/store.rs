//! Bytes as what a disk holds. What of the format can be read is written and read again; and a store whose journal
//! is made of them is refused unchanged, or read, in the same way at every start.
//!
//! Input: a byte that says how, then for each record its length in two bytes and its body. The checksums are made
//! for them: a fuzzer finds none.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tocsin::core::ids::{PartitionId, StoreId};
use tocsin::core::outbox::{OutboxKey, Owed};
use tocsin::core::partition::{Domain, Header, Partition};
use tocsin::core::rows::{CorruptRow, RowIter, Rows};
use tocsin::domains::alarms::{Alarms, Settings};
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::format::{
    Frame, FrameKind, Salt, Section, Sections, SegmentHead, StoreFile, decode_snapshot_head,
    encode_snapshot_head,
};
use tocsin::store::{Recovery, Store, StoreError};

const STORE: StoreId = StoreId([7; 16]);
const PARTITIONS: u16 = 2;
const OPTIONS: Options = Options {
    partitions: PARTITIONS,
    segment_bytes: 1 << 20,
    min_journal_bytes: 1 << 20,
};

/// Returns whether a store was read whose records hold at least one row.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Some((&how, records)) = bytes.split_first() else {
        return false;
    };
    check_heads(records);
    let bodies = bodies(records);
    for body in &bodies {
        check_record(body);
    }
    let folder = folder(
        &bodies,
        if how & 1 == 0 {
            b""
        } else {
            &records[records.len() / 2..]
        },
    );
    let before = files(folder.path());
    let state = match read(folder.path()) {
        Ok(state) => state,
        Err(Refused::Opening) => {
            assert_eq!(
                files(folder.path()),
                before,
                "what is refused is left alone"
            );
            return false;
        }
        Err(Refused::Claiming) => return false,
    };
    let again = read(folder.path()).unwrap_or_else(|_| panic!("what was read is read again"));
    assert_eq!(again.rows, state.rows);
    for (before, after) in state.headers.iter().zip(&again.headers) {
        assert_eq!(after.epoch.0, before.epoch.0 + 1);
        assert_eq!(
            (after.number, after.position),
            (before.number, before.position)
        );
    }
    restore(&state);
    state.rows.iter().any(|rows| !rows.is_empty())
}

/// Heads that can be read are written with the same meaning.
fn check_heads(body: &[u8]) {
    const HEAD: usize = tocsin::store::format::HEAD_BYTES;
    if let Ok(store) = StoreFile::decode(body) {
        assert_eq!(&store.encode()[HEAD..], body);
    }
    if let Ok(segment) = SegmentHead::decode(body) {
        assert_eq!(SegmentHead::decode(&segment.encode()[HEAD..]), Ok(segment));
    }
    if let Ok((store, head)) = decode_snapshot_head(body) {
        let written = encode_snapshot_head(store, &head);
        assert_eq!(decode_snapshot_head(&written[HEAD..]), Ok((store, head)));
    }
}

/// Rows that can be read are written with the same meaning.
fn check_record(body: &[u8]) {
    for section in Sections::new(body).flatten() {
        let Section::Commit { rows, .. } = section else {
            continue;
        };
        for (key, value) in RowIter::new(rows).flatten() {
            if let Ok(change) = Alarms::decode(key, value) {
                let mut written = Rows::default();
                Alarms::encode(&change, &mut written);
                let (key, value) = written
                    .iter()
                    .next()
                    .expect("a row")
                    .expect("one that can be read");
                assert_eq!(Alarms::decode(key, value), Ok(change));
            }
            let Some(value) = value else { continue };
            if let Ok(owed) = Owed::decode(OutboxKey(1), value, Alarms::decode_outgoing) {
                let mut written = Vec::new();
                owed.encode(&mut written, Alarms::encode_outgoing);
                let mut again = Owed::decode(OutboxKey(1), &written, Alarms::decode_outgoing)
                    .expect("what is written is read");
                again.num_bytes = owed.num_bytes;
                assert_eq!(again, owed);
            }
        }
    }
}

fn bodies(mut records: &[u8]) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while let Some((length, rest)) = records.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (body, rest) = rest.split_at(length);
        bodies.push(body);
        records = rest;
    }
    bodies
}

/// A store with one segment of these records, and `tail` behind them.
fn folder(bodies: &[&[u8]], tail: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let store = StoreFile {
        id: STORE,
        partitions: PARTITIONS,
    };
    fs::write(folder.path().join("store"), store.encode()).expect("a file");
    let head = SegmentHead {
        store: STORE,
        number: 1,
        base: vec![Header::default(); usize::from(PARTITIONS)],
    };
    let mut segment = head.encode();
    for body in bodies {
        let mut frame = Vec::new();
        Frame::begin(&mut frame);
        frame.extend_from_slice(body);
        let salt = Salt::of_segment(STORE, 1);
        Frame::finish(FrameKind::Record, salt, segment.len() as u64, &mut frame);
        segment.extend(frame);
    }
    segment.extend_from_slice(tail);
    fs::write(folder.path().join("journal-0000000000000001"), segment).expect("a file");
    folder
}

/// Every file that matters, by its name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    names
        .map(|name| name.into_string().expect("a name of ours"))
        .filter(|name| name != "lock")
        .map(|name| (name.clone(), fs::read(folder.join(&name)).expect("a file")))
        .collect()
}

enum Refused {
    Opening,
    Claiming,
}

/// What a store holds of each partition.
struct State {
    headers: Vec<Header>,
    rows: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
}

/// Takes only what the partition and its domain can read, as the daemon does.
struct Reading {
    partitions: Vec<Partition<Alarms>>,
    rows: Vec<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Recovery for Reading {
    fn row(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), CorruptRow> {
        let at = usize::from(partition.0);
        self.partitions[at].restore(key, value)?;
        match value {
            Some(value) => self.rows[at].insert(key.to_vec(), value.to_vec()),
            None => self.rows[at].remove(key),
        };
        Ok(())
    }
}

fn reading() -> Reading {
    let ids = (0..PARTITIONS).map(PartitionId);
    Reading {
        partitions: ids
            .map(|id| Partition::new(STORE, id, Settings::default()))
            .collect(),
        rows: vec![BTreeMap::new(); usize::from(PARTITIONS)],
    }
}

fn read(folder: &Path) -> Result<State, Refused> {
    let shown = |error: &StoreError| {
        let shown = error.to_string();
        assert!(!shown.is_empty() && !shown.contains('\n'), "{shown:?}");
    };
    let store = Embedded::open(folder, OPTIONS).map_err(|error| {
        shown(&error);
        Refused::Opening
    })?;
    let mut reading = reading();
    let ids: Vec<_> = (0..PARTITIONS).map(PartitionId).collect();
    let headers = store.claim(&ids, &mut reading).map_err(|error| {
        shown(&error);
        Refused::Claiming
    })?;
    for (partition, header) in reading.partitions.iter_mut().zip(&headers) {
        partition.recovered(*header);
    }
    Ok(State {
        headers,
        rows: reading.rows,
    })
}

/// The rows alone, in any order, make the same state as the history that they are left of.
fn restore(state: &State) {
    let mut reading = reading();
    for (partition, rows) in (0..PARTITIONS).map(PartitionId).zip(&state.rows) {
        for (key, value) in rows {
            let taken = reading.row(partition, key, Some(value));
            taken.expect("a row that was taken is taken again");
        }
    }
}
