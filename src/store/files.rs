//! Files and folders as the embedded store uses them: what must survive a crash is fsynced, file and folder.
//!
//! | file | how it comes to be |
//! |---|---|
//! | `lock` | created once; held locked while the store is open |
//! | anything else | written as `<name>….tmp`, fsynced, renamed, the folder fsynced: complete, or not there |
//!
//! A file that lies here under its own name is therefore whole up to the journal's appended records, and a
//! `.tmp` is a leftover that nobody needs. This file decides nothing: it names what failed, and on what.

use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::format::{FormatError, VERSION};
use crate::core::ids::PartitionId;

const REMEDY_UNUSABLE: &str = "make it a writable folder on a disk with room, or set store.path";
const REMEDY_DAMAGED: &str =
    "restore the folder from a copy, or move it away to begin anew and read the input again";

/// What a file in the folder is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FileName {
    Store,
    Lock,
    Segment(u64),
    Snapshot(PartitionId),
    /// Was being written when a process ended.
    Temporary,
    /// None of ours.
    Foreign,
}

impl FileName {
    pub(super) fn parse(name: &OsStr) -> Self {
        let Some(name) = name.to_str() else {
            return Self::Foreign;
        };
        if name.strip_suffix(".tmp").is_some_and(is_ours) {
            return Self::Temporary;
        }
        match name {
            "store" => return Self::Store,
            "lock" => return Self::Lock,
            _ => {}
        }
        if let Some(number) = hex(name, "journal-", 16) {
            return Self::Segment(number);
        }
        hex(name, "snapshot-", 4)
            .and_then(|number| u16::try_from(number).ok())
            .map_or(Self::Foreign, |number| Self::Snapshot(PartitionId(number)))
    }
}

fn is_ours(name: &str) -> bool {
    name == "store" || name.starts_with("journal-") || name.starts_with("snapshot-")
}

fn hex(name: &str, prefix: &str, digits: usize) -> Option<u64> {
    let number = name.strip_prefix(prefix)?;
    let is_canonical = number.len() == digits
        && number
            .bytes()
            .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    is_canonical
        .then(|| u64::from_str_radix(number, 16).ok())
        .flatten()
}

pub(super) fn store_path(folder: &Path) -> PathBuf {
    folder.join("store")
}

pub(super) fn segment_path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("journal-{number:016x}"))
}

pub(super) fn snapshot_path(folder: &Path, partition: PartitionId) -> PathBuf {
    folder.join(format!("snapshot-{:04x}", partition.0))
}

/// Several snapshots of one partition may be written at once, when an owner is replaced.
pub(super) fn snapshot_temp_path(folder: &Path, partition: PartitionId, token: u64) -> PathBuf {
    folder.join(format!("snapshot-{:04x}.{token}.tmp", partition.0))
}

fn temp_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    PathBuf::from(name)
}

/// What the system refused.
#[derive(Debug)]
pub(super) struct FileError {
    action: &'static str,
    path: PathBuf,
    error: io::Error,
}

impl FileError {
    pub(super) fn new(action: &'static str, path: &Path, error: io::Error) -> Self {
        Self {
            action,
            path: path.to_owned(),
            error,
        }
    }

    /// In the life of a store: nothing is known of the disk any more.
    pub(super) fn poisoned(self) -> StoreError {
        StoreError::Poisoned {
            path: self.path,
            error: Arc::new(self.error),
        }
    }
}

/// When a store is opened or read.
impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        Self::Unusable {
            action: error.action,
            path: error.path,
            error: Arc::new(error.error),
            remedy: REMEDY_UNUSABLE,
        }
    }
}

/// Says what was tried, and on what.
pub(super) trait Context<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|error| FileError::new(action, path, error))
    }
}

pub(super) fn damaged(path: &Path, offset: u64, what: impl Into<String>) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        offset,
        what: what.into(),
        remedy: REMEDY_DAMAGED,
    }
}

pub(super) fn malformed(path: &Path, offset: u64, error: &FormatError) -> StoreError {
    match error {
        FormatError::Newer(found) => StoreError::NewerFormat {
            path: path.to_owned(),
            found: *found,
            known: VERSION,
        },
        FormatError::Bad(what) => damaged(path, offset, *what),
    }
}

/// Creates a folder and what is missing above it, durably.
pub(super) fn create_folder(path: &Path) -> Result<(), FileError> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = folder_of(path);
    create_folder(parent)?;
    fs::create_dir(path).context("create", path)?;
    sync_folder(parent)
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes what was created, renamed and removed in a folder durable.
pub(super) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .context("fsync", path)
}

/// A folder that this process has to itself, until this is dropped.
pub(super) struct FolderLock(File);

impl Drop for FolderLock {
    /// To close the file would not do: a child that is being made holds every open file until it is its own
    /// program, and with it the lock.
    fn drop(&mut self) {
        // Where it fails, nothing is lost: the lock goes with the last that has the file open.
        drop(self.0.unlock());
    }
}

/// Takes the folder for this process.
pub(super) fn lock(folder: &Path) -> Result<FolderLock, StoreError> {
    let path = folder.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .context("create", &path)?;
    take(file, folder, &path)
}

/// The same without changing anything: `None` where no process has ever had the folder, as in a copy.
pub(super) fn lock_existing(folder: &Path) -> Result<Option<FolderLock>, StoreError> {
    let path = folder.join("lock");
    let writable = File::options().write(true).open(&path);
    match writable.or_else(|_| File::open(&path)) {
        Ok(file) => take(file, folder, &path).map(Some),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::new("open", &path, error).into()),
    }
}

fn take(file: File, folder: &Path, path: &Path) -> Result<FolderLock, StoreError> {
    match file.try_lock() {
        Ok(()) => Ok(FolderLock(file)),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(FileError::new("lock", path, error).into()),
    }
}

/// Begins a file that is to be put in place when it is complete.
pub(super) fn create_temp(temp: &Path) -> Result<File, FileError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(temp)
        .context("create", temp)?;
    give_to_owner_of(folder_of(temp), &file).context("change the owner of", temp)?;
    Ok(file)
}

/// What root writes into the store of a daemon that runs as another user is that user's.
fn give_to_owner_of(folder: &Path, file: &File) -> io::Result<()> {
    let (owner, ours) = (fs::metadata(folder)?, file.metadata()?);
    let is_ours = (owner.uid(), owner.gid()) == (ours.uid(), ours.gid());
    if is_ours || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    fchown(file, Some(owner.uid()), Some(owner.gid()))
}

/// Gives a complete file its name, durably.
pub(super) fn put_in_place(temp: &Path, file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_all().context("fsync", temp)?;
    fs::rename(temp, path).context("rename", temp)?;
    sync_folder(folder_of(path))
}

/// Writes a whole file durably; returns it, to be appended to.
///
/// The content goes through memory, hence `dyn`: where it comes from a file, `io::copy` could otherwise let
/// the two share blocks, and the blocks on the disk may not be what was read.
pub(super) fn write_whole(path: &Path, content: &mut dyn Read) -> Result<File, FileError> {
    let temp = temp_path(path);
    let mut file = create_temp(&temp)?;
    io::copy(content, &mut file).context("write", &temp)?;
    put_in_place(&temp, &file, path)?;
    Ok(file)
}

/// Writes all bytes; they are durable after [`sync`].
pub(super) fn write(file: &mut File, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    file.write_all(bytes).context("write", path)
}

/// Makes what was written durable.
pub(super) fn sync(file: &File, path: &Path) -> Result<(), FileError> {
    file.sync_data().context("fsync", path)
}

/// Removes a file, durably: before anything else is removed.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    fs::remove_file(path).context("remove", path)?;
    sync_folder(folder_of(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_let_go_though_a_child_still_holds_its_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = lock(folder.path()).expect("the folder");
        let _in_the_child = held.0.try_clone().expect("a copy");
        assert!(matches!(
            lock(folder.path()),
            Err(StoreError::Locked { .. })
        ));
        drop(held);
        lock(folder.path()).expect("the folder once more");
    }
}
