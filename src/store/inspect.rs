//! Looking into an embedded store that no process uses, without changing a byte of it.
//!
//! | | reads | finds |
//! |---|---|---|
//! | [`Inspection::open`] | the journal, the ends of the snapshots | what the next start would find |
//! | [`Inspection::read`] | every row that the next start would read | rows that cannot be read |
//! | [`verify`] | every byte of every file | each file that is damaged, not only the first |
//!
//! The folder is held for as long as it is looked at, but nothing is created: a copy of a store that was never
//! opened has no `lock`, and nobody to keep out.

use std::fs;
use std::path::{Path, PathBuf};

use super::embedded::{Embedded, Options};
use super::files::{self, FileError, FolderLock};
use super::format;
use super::journal::Claimed;
use super::recovery::{self, Listing, Scan};
use super::shared::Shared;
use super::snapshot::StoredSnapshot;
use super::{Recovery, StoreError};
use crate::core::ids::{PartitionId, StoreId};
use crate::core::partition::Header;

pub use super::recovery::TornTail;

/// How many files of a kind there are, and how long they are together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Files {
    /// How many.
    pub num: usize,
    /// Their bytes.
    pub num_bytes: u64,
}

/// A store that was found to be sound, held while this lives.
pub struct Inspection {
    shared: Shared,
    torn: Option<TornTail>,
    lock: Option<FolderLock>,
}

impl Inspection {
    /// Opens a store to be looked into.
    ///
    /// # Errors
    /// [`StoreError::Missing`] when there is none, [`StoreError::Locked`] when a process uses it, else what a
    /// start would fail with.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let (lock, listing) = hold(folder)?;
        let found = recovery::examine(folder, &listing, 0)?;
        Ok(Self {
            shared: Shared::new(folder.to_owned(), found.store, 0, found.ledger),
            torn: found.torn,
            lock,
        })
    }

    /// The random id drawn when the store was created.
    #[must_use]
    pub const fn id(&self) -> StoreId {
        self.shared.store.id
    }

    /// The format of its files.
    #[must_use]
    pub const fn format(&self) -> u32 {
        format::VERSION
    }

    /// What is stored of each partition.
    #[must_use]
    pub fn headers(&self) -> Vec<Header> {
        self.shared.ledger().heads().to_vec()
    }

    /// What the next start would cut.
    #[must_use]
    pub const fn torn_tail(&self) -> Option<&TornTail> {
        self.torn.as_ref()
    }

    /// The segments of the journal, and the snapshots.
    #[must_use]
    pub fn files(&self) -> (Files, Files) {
        let ledger = self.shared.ledger();
        let segments = ledger.segments().iter().map(|it| it.num_bytes);
        let snapshots = self.partitions().into_iter();
        let snapshots = snapshots.map(|it| ledger.snapshot(it).num_bytes);
        let count = |lengths: &mut dyn Iterator<Item = u64>| {
            lengths.fold(Files::default(), |files, num_bytes| Files {
                num: files.num + 1,
                num_bytes: files.num_bytes + num_bytes,
            })
        };
        (
            count(&mut segments.into_iter()),
            count(&mut snapshots.filter(|num_bytes| *num_bytes > 0)),
        )
    }

    /// Hands on every row that the next start would read, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::Corrupt`] when it cannot be read.
    pub fn read(&self, recovery: &mut dyn Recovery) -> Result<(), StoreError> {
        let claimed = Claimed {
            headers: self.headers(),
            segments: self.shared.ledger().segments().clone(),
        };
        recovery::read(&self.shared, &self.partitions(), &claimed, recovery)
    }

    /// Opens it to be written; nobody else can have had it meanwhile.
    ///
    /// # Errors
    /// As [`Embedded::open`].
    pub fn into_store(self) -> Result<Embedded, StoreError> {
        let folder = &self.shared.folder;
        let lock = match self.lock {
            Some(lock) => lock,
            None => files::lock(folder)?,
        };
        Embedded::open_locked(folder, Options::default(), lock)
    }

    fn partitions(&self) -> Vec<PartitionId> {
        (0..self.shared.store.partitions).map(PartitionId).collect()
    }
}

/// Takes the folder of a store, and lists what is in it.
fn hold(folder: &Path) -> Result<(Option<FolderLock>, Listing), StoreError> {
    if !folder.exists() {
        let path = folder.to_owned();
        return Err(StoreError::Missing { path });
    }
    let lock = files::lock_existing(folder)?;
    let listing = Listing::read(folder)?;
    listing.check_store(folder)?;
    Ok((lock, listing))
}

/// A file of a store, and what was found in it.
#[derive(Clone, Debug)]
pub struct CheckedFile {
    /// The file.
    pub path: PathBuf,
    /// How long it is.
    pub num_bytes: u64,
    /// What was found.
    pub verdict: Verdict,
}

/// What was found in a file.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Every checksum is right.
    Well,
    /// The journal ends in a write that a crash interrupted; the next start cuts it, and nothing is lost.
    Torn(TornTail),
    /// A file that a crash left half written; the next start removes it, and nothing is lost.
    Leftover,
    /// It cannot be used, or is not there.
    Damaged(StoreError),
    /// Its checksums cannot be told without the file `store`.
    Unchecked,
}

/// Reads every byte of a store and checks every checksum; the rows are handed on as [`Inspection::read`] does.
/// Returns the files, and the first thing that keeps the store from being used.
///
/// # Errors
/// [`StoreError::Missing`], [`StoreError::Locked`], or that the folder cannot be listed.
pub fn verify(
    folder: &Path,
    recovery: &mut dyn Recovery,
) -> Result<(Vec<CheckedFile>, Option<StoreError>), StoreError> {
    let (_lock, listing) = hold(folder)?;
    let mut files = check_files(folder, &listing)?;
    let damage = files.iter().find_map(|file| match &file.verdict {
        Verdict::Damaged(error) => Some(error.clone()),
        Verdict::Well | Verdict::Torn(_) | Verdict::Leftover | Verdict::Unchecked => None,
    });
    if damage.is_some() {
        return Ok((files, damage));
    }
    let rows = recovery::examine(folder, &listing, 0).and_then(|found| {
        let inspection = Inspection {
            shared: Shared::new(folder.to_owned(), found.store, 0, found.ledger),
            torn: None,
            lock: None,
        };
        inspection.read(recovery)
    });
    let damage = rows.err();
    // Files that are well by themselves may not belong together.
    if let Some(error @ StoreError::Damaged { path, .. }) = &damage
        && let Some(file) = files.iter_mut().find(|file| file.path == *path)
    {
        file.verdict = Verdict::Damaged(error.clone());
    }
    Ok((files, damage))
}

fn check_files(folder: &Path, listing: &Listing) -> Result<Vec<CheckedFile>, StoreError> {
    let mut checked = Vec::new();
    let mut put = |path: PathBuf, verdict| -> Result<(), StoreError> {
        let num_bytes = match (fs::metadata(&path), &verdict) {
            (Ok(metadata), _) => metadata.len(),
            // What is missing has no length.
            (Err(_), Verdict::Damaged(_)) => 0,
            (Err(error), _) => return Err(FileError::new("read", &path, error).into()),
        };
        checked.push(CheckedFile {
            path,
            num_bytes,
            verdict,
        });
        Ok(())
    };
    let store = recovery::read_store(folder);
    let verdict = store.as_ref().map(|_| ()).map_err(Clone::clone);
    put(files::store_path(folder), verdict_of(verdict))?;
    if let Some(path) = listing.missing_segment(folder) {
        let missing = files::damaged(&path, 0, "the segment is missing");
        put(path, Verdict::Damaged(missing))?;
    }
    let mut scan = store.as_ref().ok().map(|store| Scan::new(folder, *store));
    for &number in &listing.segments {
        let is_last = listing.segments.last() == Some(&number);
        let verdict = match &mut scan {
            None => Verdict::Unchecked,
            Some(it) => match it.segment(number, is_last) {
                Ok(scanned) => scanned.torn.map_or(Verdict::Well, Verdict::Torn),
                Err(error) => {
                    // The next is looked at by itself.
                    scan = store.as_ref().ok().map(|store| Scan::new(folder, *store));
                    Verdict::Damaged(error)
                }
            },
        };
        put(files::segment_path(folder, number), verdict)?;
    }
    for &partition in &listing.snapshots {
        let verdict = match &store {
            Err(_) => Verdict::Unchecked,
            Ok(store) => verdict_of(
                StoredSnapshot::open(folder, *store, partition)
                    .and_then(|snapshot| snapshot.read(|_| Ok(()))),
            ),
        };
        put(files::snapshot_path(folder, partition), verdict)?;
    }
    for leftover in &listing.temporaries {
        put(leftover.clone(), Verdict::Leftover)?;
    }
    Ok(checked)
}

fn verdict_of(checked: Result<(), StoreError>) -> Verdict {
    checked.map_or_else(Verdict::Damaged, |()| Verdict::Well)
}
