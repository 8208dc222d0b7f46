//! Reads a file of the embedded store from its head on, frame by frame, and checks what it reads.
//!
//! ```text
//! open ─► head: kind, version, checksum ─► frame ─► frame ─► … ─► end
//!                                            └ bad: where, and what; the caller decides what that means
//! ```
//!
//! A body is never longer in memory than its file says: a length counts only after its checksum was right.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::StoreError;
use super::files::{self, Context, FileError};
use super::format::{
    FRAME_BYTES, FileKind, FormatError, Frame, FrameKind, HEAD_BYTES, HeadFields, Salt,
};

const READ_BUFFER_BYTES: usize = 256 * 1024;

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
        let too_short = |reader: &Self| files::damaged(&reader.path, 0, "its head ends too early");
        let mut fields = [0; HEAD_BYTES];
        if self.left() < fields.len() as u64 {
            return Err(too_short(self));
        }
        self.read(&mut fields)?;
        let fields = HeadFields::decode(kind, fields)
            .map_err(|error| files::malformed(&self.path, 0, &error))?;
        if self.left() < u64::from(fields.length) {
            return Err(too_short(self));
        }
        let mut body = vec![0; fields.length as usize];
        self.read(&mut body)?;
        fields
            .check(&body)
            .map_err(|error| files::malformed(&self.path, 0, &error))?;
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
        let by = offset.cast_signed() - self.offset.cast_signed();
        // Unlike an absolute seek, it keeps what was read ahead.
        self.file.seek_relative(by).context("read", &self.path)?;
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
        let mut begin = offset + 1;
        while let Some(at) = self.find_byte(kind.magic()[0], begin)? {
            self.seek(at)?;
            match self.frame(salt) {
                Ok(Some((found, ..))) if found == kind => return Ok(Some(at)),
                Ok(_) | Err(FrameError::Bad { .. }) => begin = at + 1,
                Err(FrameError::Unreadable(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Where a byte is found at `begin` or behind it. Damage can make a file of any length: it is not read as a whole.
    fn find_byte(&mut self, wanted: u8, begin: u64) -> Result<Option<u64>, FileError> {
        self.seek(begin)?;
        loop {
            let buffer = self.file.fill_buf().context("read", &self.path)?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let num_bytes = buffer.len();
            if let Some(at) = buffer.iter().position(|&byte| byte == wanted) {
                return Ok(Some(self.offset + at as u64));
            }
            self.file.consume(num_bytes);
            self.offset += num_bytes as u64;
        }
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
            Self::Bad { offset, what } => files::damaged(path, offset, what),
        }
    }
}
