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
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::format::{
    FRAME_BYTES, FileKind, FormatError, Frame, FrameKind, HEAD_BYTES, HeadFields, Salt, VERSION,
};
use crate::core::ids::PartitionId;

const REMEDY_UNUSABLE: &str = "make it a writable folder on a disk with room, or set store.path";
const REMEDY_DAMAGED: &str =
    "restore the folder from a copy, or move it away to begin anew and read the input again";
const READ_BUFFER_BYTES: usize = 256 * 1024;

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

/// Takes the folder for this process, until the file is dropped.
pub(super) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join("lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .context("create", &path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked {
            path: folder.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(FileError::new("lock", &path, error).into()),
    }
}

/// Begins a file that is to be put in place when it is complete.
pub(super) fn create_temp(temp: &Path) -> Result<File, FileError> {
    File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(temp)
        .context("create", temp)
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

/// Reads a file from its head on, frame by frame.
pub(super) struct FileReader {
    path: PathBuf,
    file: BufReader<File>,
    num_bytes: u64,
    offset: u64,
    body: Vec<u8>,
}

/// What a frame is, where it begins, and its body.
pub(super) type ReadFrame<'a> = (FrameKind, u64, &'a [u8]);

/// Why a frame cannot be read.
pub(super) enum FrameError {
    Unreadable(FileError),
    Bad { offset: u64, what: &'static str },
}

impl FileReader {
    /// Opens a file and reads the body of its head.
    pub(super) fn open(path: PathBuf, kind: FileKind) -> Result<(Self, Vec<u8>), StoreError> {
        let file = File::open(&path).context("open", &path)?;
        let num_bytes = file.metadata().context("read", &path)?.len();
        let mut reader = Self {
            file: BufReader::with_capacity(READ_BUFFER_BYTES, file),
            num_bytes,
            offset: 0,
            body: Vec::new(),
            path,
        };
        let body = reader.read_head(kind)?;
        Ok((reader, body))
    }

    fn read_head(&mut self, kind: FileKind) -> Result<Vec<u8>, StoreError> {
        let too_short = |reader: &Self| damaged(&reader.path, 0, "its head ends too early");
        let mut fields = [0; HEAD_BYTES];
        if self.left() < fields.len() as u64 {
            return Err(too_short(self));
        }
        self.read(&mut fields)?;
        let fields =
            HeadFields::decode(kind, fields).map_err(|error| malformed(&self.path, 0, &error))?;
        if self.left() < u64::from(fields.length) {
            return Err(too_short(self));
        }
        let mut body = vec![0; fields.length as usize];
        self.read(&mut body)?;
        fields
            .check(&body)
            .map_err(|error| malformed(&self.path, 0, &error))?;
        Ok(body)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next frame begins.
    pub(super) const fn offset(&self) -> u64 {
        self.offset
    }

    pub(super) const fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    const fn left(&self) -> u64 {
        self.num_bytes.saturating_sub(self.offset)
    }

    /// Reads no further than `end`.
    pub(super) const fn end_at(&mut self, end: u64) {
        if end < self.num_bytes {
            self.num_bytes = end;
        }
    }

    /// Goes on at `offset`.
    pub(super) fn seek(&mut self, offset: u64) -> Result<(), FileError> {
        self.file
            .seek(SeekFrom::Start(offset))
            .context("read", &self.path)?;
        self.offset = offset;
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), FileError> {
        self.file.read_exact(buffer).context("read", &self.path)?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    /// The next frame, where it begins and its body, checked; `None` at the end.
    pub(super) fn frame(&mut self, salt: Salt) -> Result<Option<ReadFrame<'_>>, FrameError> {
        let offset = self.offset;
        let bad = |what| FrameError::Bad { offset, what };
        if self.left() == 0 {
            return Ok(None);
        }
        if self.left() < FRAME_BYTES as u64 {
            return Err(bad("a frame ends too early"));
        }
        let mut fields = [0; FRAME_BYTES];
        self.read(&mut fields).map_err(FrameError::Unreadable)?;
        let frame = match Frame::decode(salt, offset, &fields) {
            Ok(frame) => frame,
            Err(FormatError::Bad(what)) => return Err(bad(what)),
            Err(FormatError::Newer(_)) => return Err(bad("a frame is of a newer format")),
        };
        if self.left() < frame.length {
            return Err(bad("the content of a frame ends too early"));
        }
        self.body.clear();
        (&mut self.file)
            .take(frame.length)
            .read_to_end(&mut self.body)
            .context("read", &self.path)
            .map_err(FrameError::Unreadable)?;
        self.offset += frame.length;
        if frame.check(&self.body).is_err() {
            return Err(bad("the checksum of its content does not match"));
        }
        Ok(Some((frame.kind, offset, &self.body)))
    }

    /// The first valid frame of a kind that begins after `offset`, wherever that is.
    pub(super) fn find_frame(
        &mut self,
        kind: FrameKind,
        salt: Salt,
        offset: u64,
    ) -> Result<Option<u64>, FileError> {
        let begin = offset + 1;
        self.seek(begin)?;
        let mut rest = Vec::new();
        self.file
            .read_to_end(&mut rest)
            .context("read", &self.path)?;
        let is_frame = |at: usize, window: &[u8]| {
            let offset = begin + at as u64;
            if !window.starts_with(&kind.magic()) {
                return false;
            }
            let Some((fields, behind)) = window.split_first_chunk::<FRAME_BYTES>() else {
                return false;
            };
            let Ok(frame) = Frame::decode(salt, offset, fields) else {
                return false;
            };
            usize::try_from(frame.length)
                .ok()
                .and_then(|length| behind.get(..length))
                .is_some_and(|body| frame.check(body).is_ok())
        };
        let found =
            (0..rest.len()).find(|&at| rest.get(at..).is_some_and(|window| is_frame(at, window)));
        Ok(found.map(|at| begin + at as u64))
    }

    /// The content up to `end`, from the beginning.
    pub(super) fn prefix(self, end: u64) -> Result<io::Take<File>, FileError> {
        let mut file = self.file.into_inner();
        file.seek(SeekFrom::Start(0)).context("read", &self.path)?;
        Ok(file.take(end))
    }
}

impl FrameError {
    /// Where no frame may be bad.
    pub(super) fn damaged(self, path: &Path) -> StoreError {
        match self {
            Self::Unreadable(error) => error.into(),
            Self::Bad { offset, what } => damaged(path, offset, what),
        }
    }
}
