//! Reading an embedded store: what it holds when it is opened, and the rows of claimed partitions.
//!
//! | found | means |
//! |---|---|
//! | no `store`, at most an unused first segment | a new folder: the store is created |
//! | a bad record at the end of the last segment, no valid one behind it | the torn tail of a crash: cut, and said |
//! | any other bad byte, a gap, a missing file | damage: refused, naming file, offset and remedy |
//! | a `.tmp` file | a leftover: removed |
//!
//! After a failed fsync the page cache may hold what the disk does not. So before anything is answered, the
//! last segment (the only file that is appended to) is copied to a new one, which is fsynced and put in its
//! place. Nothing is changed before everything was found to be sound.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::embedded::Options;
use super::files::{self, Context, FileError, FileName};
use super::format::{FileKind, FrameKind, Salt, Section, Sections, SegmentHead, StoreFile};
use super::journal::Claimed;
use super::ledger::{InPlace, Ledger, Segment};
use super::reader::{FileReader, FrameError};
use super::shared::Shared;
use super::snapshot::StoredSnapshot;
use super::{Recovery, StoreError};
use crate::core::ids::{CommitNumber, PartitionId, StoreId};
use crate::core::partition::Header;
use crate::core::rows::{CorruptRow, RowIter};

/// The number of a store's first segment.
const FIRST_SEGMENT: u64 = 1;

/// A store that was found to be sound, and is ours.
pub(super) struct Opened {
    pub(super) store: StoreFile,
    pub(super) ledger: Ledger,
    /// The last segment, to be appended to.
    pub(super) active: File,
}

/// Opens what lies in a folder that this process has locked; creates a store where there is none.
pub(super) fn open(folder: &Path, options: &Options) -> Result<Opened, StoreError> {
    let mut listing = Listing::read(folder)?;
    if !listing.has_store {
        create(folder, options, &listing)?;
        listing = Listing::read(folder)?;
    }
    let found = examine(folder, &listing, options.min_journal_bytes)?;
    if let Some(torn) = &found.torn {
        tracing::warn!(
            file = %torn.path.display(),
            offset = torn.offset,
            num_bytes = torn.num_bytes,
            reason = torn.what,
            "the journal ended in a write that a crash interrupted: its torn tail is cut",
        );
    }
    for temporary in &listing.temporaries {
        files::remove(temporary)?;
    }
    let path = found.last.path().to_owned();
    let active = files::write_whole(&path, &mut found.last.prefix(found.end)?)?;
    Ok(Opened {
        store: found.store,
        ledger: found.ledger,
        active,
    })
}

/// A store that was found to be sound; nothing of it was changed.
pub(super) struct Found {
    pub(super) store: StoreFile,
    pub(super) ledger: Ledger,
    pub(super) torn: Option<TornTail>,
    /// The last segment, and where its valid records end.
    last: FileReader,
    end: u64,
}

/// The end of the journal that a crash interrupted: nobody was told that it is durable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TornTail {
    /// The last segment.
    pub path: PathBuf,
    /// Where the tail begins.
    pub offset: u64,
    /// How long it is.
    pub num_bytes: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

/// Checks the whole journal and the ends of the snapshots.
pub(super) fn examine(
    folder: &Path,
    listing: &Listing,
    min_journal_bytes: u64,
) -> Result<Found, StoreError> {
    let store = read_store(folder)?;
    listing.check_segments(folder)?;
    let mut scan = Scan::new(folder, store);
    let mut oldest_base = Vec::new();
    let mut last = None;
    for &number in &listing.segments {
        let is_last = listing.segments.last() == Some(&number);
        let scanned = scan.segment(number, is_last)?;
        if last.is_none() {
            oldest_base.clone_from(&scanned.base);
        }
        last = Some(scanned);
    }
    let snapshots = check_snapshots(folder, store, listing, &scan, &oldest_base)?;
    let last = last.expect("a checked listing has a segment");
    Ok(Found {
        store,
        ledger: Ledger::new(scan.heads, scan.segments, snapshots, min_journal_bytes),
        torn: last.torn,
        last: last.reader,
        end: last.end,
    })
}

/// What lies in a folder, by name.
#[derive(Default)]
pub(super) struct Listing {
    pub(super) has_store: bool,
    pub(super) segments: Vec<u64>,
    pub(super) snapshots: Vec<PartitionId>,
    pub(super) temporaries: Vec<PathBuf>,
}

impl Listing {
    pub(super) fn read(folder: &Path) -> Result<Self, FileError> {
        let mut listing = Self::default();
        for entry in fs::read_dir(folder).context("read", folder)? {
            let entry = entry.context("read", folder)?;
            match FileName::parse(&entry.file_name()) {
                FileName::Store => listing.has_store = true,
                FileName::Segment(number) => listing.segments.push(number),
                FileName::Snapshot(partition) => listing.snapshots.push(partition),
                FileName::Temporary => listing.temporaries.push(entry.path()),
                FileName::Lock | FileName::Foreign => {}
            }
        }
        listing.segments.sort_unstable();
        listing.snapshots.sort_unstable();
        Ok(listing)
    }

    /// The path of the first segment that should be there and is not.
    pub(super) fn missing_segment(&self, folder: &Path) -> Option<PathBuf> {
        let oldest = self.segments.first().copied().unwrap_or(FIRST_SEGMENT);
        let last = self.segments.last().copied().unwrap_or(FIRST_SEGMENT);
        (oldest..=last)
            .zip(self.segments.iter().map(Some).chain([None]))
            .find(|(expected, found)| *found != Some(expected))
            .map(|(missing, _)| files::segment_path(folder, missing))
    }

    fn check_segments(&self, folder: &Path) -> Result<(), StoreError> {
        match self.missing_segment(folder) {
            Some(path) => Err(files::damaged(&path, 0, "the segment is missing")),
            None => Ok(()),
        }
    }

    /// What to say where there is no store to look into.
    pub(super) fn check_store(&self, folder: &Path) -> Result<(), StoreError> {
        if self.has_store {
            return Ok(());
        }
        if self.segments.is_empty() && self.snapshots.is_empty() {
            let path = folder.to_owned();
            return Err(StoreError::Missing { path });
        }
        Err(store_is_missing(folder))
    }
}

fn store_is_missing(folder: &Path) -> StoreError {
    let path = files::store_path(folder);
    files::damaged(&path, 0, "the file is missing, and its journal is not")
}

/// Creates a store. Its `store` file comes last: without it there is none.
fn create(folder: &Path, options: &Options, listing: &Listing) -> Result<(), StoreError> {
    let store_path = files::store_path(folder);
    let first = files::segment_path(folder, FIRST_SEGMENT);
    let is_new = match listing.segments.as_slice() {
        [] => true,
        [FIRST_SEGMENT] => {
            // A creation that was interrupted left its first segment, and nothing in it.
            let (reader, _) = FileReader::open(first.clone(), FileKind::Journal)?;
            reader.offset() == reader.num_bytes()
        }
        _ => false,
    };
    if !is_new || !listing.snapshots.is_empty() {
        return Err(store_is_missing(folder));
    }
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(io::Error::from)
        .context("draw a random id for", folder)?;
    let store = StoreFile {
        id: StoreId(id),
        partitions: options.partitions.max(1),
    };
    let head = SegmentHead {
        store: store.id,
        number: FIRST_SEGMENT,
        base: vec![Header::default(); usize::from(store.partitions)],
    };
    files::write_whole(&first, &mut head.encode().as_slice())?;
    files::write_whole(&store_path, &mut store.encode().as_slice())?;
    Ok(())
}

pub(super) fn read_store(folder: &Path) -> Result<StoreFile, StoreError> {
    let (reader, body) = FileReader::open(files::store_path(folder), FileKind::Store)?;
    if reader.offset() != reader.num_bytes() {
        let path = reader.path();
        return Err(files::damaged(path, reader.offset(), "bytes are left over"));
    }
    StoreFile::decode(&body).map_err(|error| files::malformed(reader.path(), 0, &error))
}

/// Opens a segment and checks that it is the one looked for.
fn open_segment(
    folder: &Path,
    store: StoreFile,
    number: u64,
) -> Result<(FileReader, SegmentHead), StoreError> {
    let path = files::segment_path(folder, number);
    let (reader, body) = FileReader::open(path, FileKind::Journal)?;
    let head =
        SegmentHead::decode(&body).map_err(|error| files::malformed(reader.path(), 0, &error))?;
    let what = if head.store != store.id {
        "it belongs to another store"
    } else if head.number != number {
        "it is another segment than its name says"
    } else if head.base.len() != usize::from(store.partitions) {
        "it has another number of partitions than the store"
    } else {
        return Ok((reader, head));
    };
    Err(files::damaged(reader.path(), 0, what))
}

/// Follows the journal from its oldest segment on.
pub(super) struct Scan<'a> {
    folder: &'a Path,
    store: StoreFile,
    heads: Vec<Header>,
    segments: VecDeque<Segment>,
}

pub(super) struct Scanned {
    reader: FileReader,
    base: Vec<Header>,
    /// Where its valid records end.
    end: u64,
    /// What follows them in the last segment.
    pub(super) torn: Option<TornTail>,
}

impl<'a> Scan<'a> {
    pub(super) const fn new(folder: &'a Path, store: StoreFile) -> Self {
        Self {
            folder,
            store,
            heads: Vec::new(),
            segments: VecDeque::new(),
        }
    }

    /// Checks the next segment: each byte of it, and that it continues the one before.
    pub(super) fn segment(&mut self, number: u64, is_last: bool) -> Result<Scanned, StoreError> {
        let (mut reader, head) = open_segment(self.folder, self.store, number)?;
        if self.segments.is_empty() {
            self.heads.clone_from(&head.base);
        } else if self.heads != head.base {
            let what = "it does not continue the segment before it";
            return Err(files::damaged(reader.path(), 0, what));
        }
        let salt = Salt::of_segment(self.store.id, number);
        let path = reader.path().to_owned();
        let mut last = vec![CommitNumber::default(); self.heads.len()];
        let mut torn = None;
        let end = loop {
            let (offset, what) = match reader.frame(salt) {
                Ok(None) => break reader.offset(),
                Ok(Some((FrameKind::Record, offset, body))) => {
                    self.record(body, &mut last)
                        .map_err(|what| files::damaged(&path, offset, what))?;
                    continue;
                }
                Ok(Some((FrameKind::Rows | FrameKind::End, offset, _))) => {
                    return Err(files::damaged(&path, offset, "it is part of a snapshot"));
                }
                Err(FrameError::Bad { offset, what }) => (offset, what),
                Err(FrameError::Unreadable(error)) => return Err(error.into()),
            };
            if !is_last {
                return Err(files::damaged(&path, offset, what));
            }
            torn = Some(torn_tail(&mut reader, salt, offset, what)?);
            break offset;
        };
        self.segments.push_back(Segment {
            number,
            num_bytes: end,
            last,
        });
        Ok(Scanned {
            reader,
            base: head.base,
            end,
            torn,
        })
    }

    fn record(&mut self, body: &[u8], last: &mut [CommitNumber]) -> Result<(), String> {
        for section in Sections::new(body) {
            match section.map_err(|error| error.0.to_owned())? {
                Section::Commit {
                    partition, header, ..
                } => {
                    let stored = head_of(&mut self.heads, partition)?;
                    if header.epoch != stored.epoch || header.number != stored.number.next() {
                        return Err(format!(
                            "commit {} of partition {partition} in epoch {} follows commit {} of epoch {}",
                            header.number.0, header.epoch.0, stored.number.0, stored.epoch.0
                        ));
                    }
                    *stored = header;
                    if let Some(last) = last.get_mut(usize::from(partition.0)) {
                        *last = header.number;
                    }
                }
                Section::Claim { partition, epoch } => {
                    let stored = head_of(&mut self.heads, partition)?;
                    if epoch <= stored.epoch {
                        return Err(format!(
                            "partition {partition} goes back to epoch {}",
                            epoch.0
                        ));
                    }
                    stored.epoch = epoch;
                }
            }
        }
        Ok(())
    }
}

fn head_of(heads: &mut [Header], partition: PartitionId) -> Result<&mut Header, String> {
    heads
        .get_mut(usize::from(partition.0))
        .ok_or_else(|| format!("the store has no partition {partition}"))
}

/// Decides what a bad record of the last segment is: damage, if a valid one follows it.
fn torn_tail(
    reader: &mut FileReader,
    salt: Salt,
    offset: u64,
    what: &'static str,
) -> Result<TornTail, StoreError> {
    if let Some(behind) = reader.find_frame(FrameKind::Record, salt, offset)? {
        return Err(files::damaged(
            reader.path(),
            offset,
            format!("{what}, and a valid record follows at byte {behind}"),
        ));
    }
    Ok(TornTail {
        path: reader.path().to_owned(),
        offset,
        num_bytes: reader.num_bytes() - offset,
        what,
    })
}

/// Every commit must be in a snapshot or in the journal, and the journal must reach what snapshots know of.
fn check_snapshots(
    folder: &Path,
    store: StoreFile,
    listing: &Listing,
    scan: &Scan<'_>,
    oldest_base: &[Header],
) -> Result<Vec<InPlace>, StoreError> {
    let mut snapshots = vec![InPlace::default(); scan.heads.len()];
    for &partition in &listing.snapshots {
        let snapshot = StoredSnapshot::open(folder, store, partition)?;
        let path = files::snapshot_path(folder, partition);
        let at = usize::from(partition.0);
        let (Some(in_place), Some(stored)) = (snapshots.get_mut(at), scan.heads.get(at)) else {
            return Err(files::damaged(&path, 0, "the store has no such partition"));
        };
        *in_place = InPlace {
            number: snapshot.head.header.number,
            num_bytes: snapshot.num_bytes(),
        };
        let durable = snapshot.end()?.durable.max(in_place.number);
        if durable > stored.number {
            return Err(files::damaged(
                &path,
                0,
                format!(
                    "it was written after commit {}, and the journal ends at commit {}",
                    durable.0, stored.number.0
                ),
            ));
        }
    }
    for (partition, (base, in_place)) in oldest_base.iter().zip(&snapshots).enumerate() {
        if base.number > in_place.number {
            let oldest = listing.segments.first().copied().unwrap_or(FIRST_SEGMENT);
            return Err(files::damaged(
                &files::segment_path(folder, oldest),
                0,
                format!(
                    "it begins after commit {} of partition {partition}, and the snapshot before it ends at {}",
                    base.number.0, in_place.number.0
                ),
            ));
        }
    }
    Ok(snapshots)
}

/// Hands every row of the claimed partitions on: snapshots first, then the commits after them.
pub(super) fn read(
    shared: &Shared,
    partitions: &[PartitionId],
    claimed: &Claimed,
    recovery: &mut dyn Recovery,
) -> Result<(), StoreError> {
    // How far each claimed partition was read; `None` for those of others.
    let mut reached = vec![None; usize::from(shared.store.partitions)];
    for &partition in partitions {
        let number = read_snapshot(shared, partition, recovery)?;
        if let Some(reached) = reached.get_mut(usize::from(partition.0)) {
            *reached = Some(number);
        }
    }
    for segment in &claimed.segments {
        let is_needed = reached
            .iter()
            .zip(&segment.last)
            .any(|(reached, last)| reached.is_some_and(|reached| reached < *last));
        if is_needed {
            read_segment(shared, segment, &mut reached, recovery)?;
        }
    }
    for (&partition, header) in partitions.iter().zip(&claimed.headers) {
        if reached.get(usize::from(partition.0)) != Some(&Some(header.number)) {
            return Err(files::damaged(
                &shared.folder,
                0,
                format!(
                    "partition {partition} cannot be read up to commit {}",
                    header.number.0
                ),
            ));
        }
    }
    Ok(())
}

fn read_snapshot(
    shared: &Shared,
    partition: PartitionId,
    recovery: &mut dyn Recovery,
) -> Result<CommitNumber, StoreError> {
    if shared.ledger().snapshot(partition) == InPlace::default() {
        return Ok(CommitNumber::default());
    }
    let snapshot = StoredSnapshot::open(&shared.folder, shared.store, partition)?;
    let number = snapshot.head.header.number;
    snapshot.read(|rows| hand_on(partition, rows, recovery))?;
    Ok(number)
}

fn read_segment(
    shared: &Shared,
    segment: &Segment,
    reached: &mut [Option<CommitNumber>],
    recovery: &mut dyn Recovery,
) -> Result<(), StoreError> {
    let (mut reader, _) = open_segment(&shared.folder, shared.store, segment.number)?;
    reader.end_at(segment.num_bytes);
    let path = reader.path().to_owned();
    let salt = Salt::of_segment(shared.store.id, segment.number);
    while let Some((_, offset, body)) = reader
        .frame(salt)
        .map_err(|error: FrameError| error.damaged(&path))?
    {
        for section in Sections::new(body) {
            let section = section.map_err(|error| files::damaged(&path, offset, error.0))?;
            let Section::Commit {
                partition,
                header,
                rows,
            } = section
            else {
                continue;
            };
            let Some(Some(reached)) = reached.get_mut(usize::from(partition.0)) else {
                continue;
            };
            if header.number <= *reached {
                continue;
            }
            if header.number != reached.next() {
                let what = format!(
                    "commit {} of partition {partition} follows commit {}",
                    header.number.0, reached.0
                );
                return Err(files::damaged(&path, offset, what));
            }
            *reached = header.number;
            hand_on(partition, rows, recovery)?;
        }
    }
    Ok(())
}

fn hand_on(
    partition: PartitionId,
    rows: &[u8],
    recovery: &mut dyn Recovery,
) -> Result<(), StoreError> {
    let corrupt = |error: CorruptRow| StoreError::Corrupt { partition, error };
    for row in RowIter::new(rows) {
        let (key, value) = row.map_err(corrupt)?;
        recovery.row(partition, key, value).map_err(corrupt)?;
    }
    Ok(())
}
