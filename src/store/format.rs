//! Every byte at rest of the embedded store. Numbers are little-endian; the varints, and the rows (which are
//! opaque here), are those of `core/rows.rs`.
//!
//! ```text
//! store            head
//! journal-<16 hex> head  record record record …       one record a write; closed: an empty one
//! snapshot-<4 hex> head  rows rows rows … end         complete, or not there
//!
//! head  := magic 8, version u32, length u32, crc32 u32 of all but itself, body
//!          store    body: store id 16, partitions u16
//!          journal  body: store id 16, segment u64, partitions (varint), a header of each: where it begins
//!          snapshot body: store id 16, partition u16, header: recovery reads the commits after its number
//! frame := magic u32, length u64, crc32 u32 of the body, crc32 u32 of (salt, offset in the file, the fields before), body
//!          record body: sections     rows body: rows     end body: blocks u64, bytes u64, durable number u64
//! section := 1 position                                       of the commits that follow in this record
//!          | 2 partition u16, epoch, number, length, rows     a commit (varints)
//!          | 3 partition u16, epoch                           a claim
//! header  := epoch, number (varints), position
//! position := 0 | origin, generation, sequence (varints), timestamp 8, 0 or 1 and fingerprint 8
//! origin   := 1 the session | 2 a stream, its creation 8
//! ```
//!
//! The salt is made of the store's random id and the file's number: a frame is valid in one place only,
//! whatever bytes a publisher chooses. Magic numbers, section kinds and tags are never reused.

use thiserror::Error;

use crate::core::ids::{CommitNumber, Epoch, PartitionId, StoreId};
use crate::core::partition::{Commit, Header, SnapshotHead};
use crate::core::position::{Cursor, Origin, Position};
use crate::core::rows::{CorruptRow, Reader, put_timestamp, put_varint};

/// The newest format that this program reads, and the one that it writes.
pub const VERSION: u32 = 1;
/// The bytes of a head before its body.
pub const HEAD_BYTES: usize = 20;
/// The bytes of a frame before its body.
pub const FRAME_BYTES: usize = 20;
/// The bytes of a snapshot's end, its frame included.
pub const END_BYTES: usize = FRAME_BYTES + 24;

/// No head is longer: that of a segment with 4,096 partitions has a quarter of it.
const MAX_HEAD_BYTES: u32 = 1 << 20;

const SECTION_POSITION: u8 = 1;
const SECTION_COMMIT: u8 = 2;
const SECTION_CLAIM: u8 = 3;
const POSITION_NONE: u8 = 0;
const POSITION_SESSION: u8 = 1;
const POSITION_STREAM: u8 = 2;

/// Bytes that are not what this program writes.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum FormatError {
    /// A newer program wrote them.
    #[error("format {0} is newer than this program")]
    Newer(u32),
    /// They changed, or were never written.
    #[error("{0}")]
    Bad(&'static str),
}

impl From<CorruptRow> for FormatError {
    fn from(error: CorruptRow) -> Self {
        Self::Bad(error.0)
    }
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FileKind {
    /// `store`: what a store is.
    Store,
    /// `journal-<16 hex>`: a segment of the journal.
    Journal,
    /// `snapshot-<4 hex>`: the rows of a partition.
    Snapshot,
}

impl FileKind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Store => b"tocsin-S",
            Self::Journal => b"tocsin-J",
            Self::Snapshot => b"tocsin-R",
        }
    }
}

/// What a store is, fixed when it is created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StoreFile {
    /// The random id.
    pub id: StoreId,
    /// How many partitions it has.
    pub partitions: u16,
}

impl StoreFile {
    /// The whole file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.id.0.to_vec();
        body.extend_from_slice(&self.partitions.to_le_bytes());
        encode_head(FileKind::Store, &body)
    }

    /// Reads the body of its head.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when it is none that [`StoreFile::encode`] writes.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let store = Self {
            id: StoreId(reader.array()?),
            partitions: u16::from_le_bytes(reader.array()?),
        };
        reader.finish()?;
        Ok(store)
    }
}

/// The beginning of a segment of the journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SegmentHead {
    /// Whose it is.
    pub store: StoreId,
    /// Its number; the first is 1.
    pub number: u64,
    /// What was stored of every partition when it began.
    pub base: Vec<Header>,
}

impl SegmentHead {
    /// The bytes before the first record.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = self.store.0.to_vec();
        body.extend_from_slice(&self.number.to_le_bytes());
        put_varint(&mut body, self.base.len() as u64);
        for header in &self.base {
            put_header(&mut body, header);
        }
        encode_head(FileKind::Journal, &body)
    }

    /// Reads the body of its head.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when it is none that [`SegmentHead::encode`] writes.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let store = StoreId(reader.array()?);
        let number = u64::from_le_bytes(reader.array()?);
        let num_partitions = reader.varint()?;
        let base = (0..num_partitions)
            .map(|_| read_header(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self {
            store,
            number,
            base,
        })
    }
}

/// Writes the beginning of a snapshot.
#[must_use]
pub fn encode_snapshot_head(store: StoreId, head: &SnapshotHead) -> Vec<u8> {
    let mut body = store.0.to_vec();
    body.extend_from_slice(&head.partition.0.to_le_bytes());
    put_header(&mut body, &head.header);
    encode_head(FileKind::Snapshot, &body)
}

/// Reads the body of a snapshot's head.
///
/// # Errors
/// [`FormatError::Bad`] when it is none that [`encode_snapshot_head`] writes.
pub fn decode_snapshot_head(body: &[u8]) -> Result<(StoreId, SnapshotHead), FormatError> {
    let mut reader = Reader::new(body);
    let store = StoreId(reader.array()?);
    let partition = PartitionId(u16::from_le_bytes(reader.array()?));
    let header = read_header(&mut reader)?;
    reader.finish()?;
    Ok((store, SnapshotHead { partition, header }))
}

/// The end of a snapshot: it is complete, and what it says must be so.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SnapshotEnd {
    /// How many frames of rows there are.
    pub num_blocks: u64,
    /// The bytes of their rows.
    pub num_bytes: u64,
    /// A commit that was durable when the snapshot was put in place, and not older than any in it: a
    /// journal that ends before it has lost something.
    pub durable: CommitNumber,
}

impl SnapshotEnd {
    /// Appends the body of its frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.num_blocks, self.num_bytes, self.durable.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Reads the body of its frame.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when it is none that [`SnapshotEnd::encode`] writes.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let end = Self {
            num_blocks: u64::from_le_bytes(reader.array()?),
            num_bytes: u64::from_le_bytes(reader.array()?),
            durable: CommitNumber(u64::from_le_bytes(reader.array()?)),
        };
        reader.finish()?;
        Ok(end)
    }
}

fn encode_head(kind: FileKind, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a head is far shorter than 4 GiB");
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(kind.magic());
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    let mut hasher = head_hasher(kind, VERSION, length);
    hasher.update(body);
    out.extend_from_slice(&hasher.finalize().to_le_bytes());
    out.extend_from_slice(body);
    out
}

fn head_hasher(kind: FileKind, version: u32, length: u32) -> crc32fast::Hasher {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(kind.magic());
    hasher.update(&version.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher
}

/// The fields of a head before its body.
#[derive(Clone, Debug)]
pub struct HeadFields {
    hasher: crc32fast::Hasher,
    checksum: u32,
    /// The length of the body.
    pub length: u32,
}

impl HeadFields {
    /// Reads the fields; the version is looked at before anything that a newer one may have changed.
    ///
    /// # Errors
    /// [`FormatError::Newer`], or [`FormatError::Bad`] when the file is of another kind.
    pub fn decode(kind: FileKind, bytes: [u8; HEAD_BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(&bytes);
        if reader.array::<8>()? != *kind.magic() {
            return Err(FormatError::Bad("it does not begin as such a file does"));
        }
        let version = u32::from_le_bytes(reader.array()?);
        if version > VERSION {
            return Err(FormatError::Newer(version));
        }
        let length = u32::from_le_bytes(reader.array()?);
        if length > MAX_HEAD_BYTES {
            return Err(FormatError::Bad("its head is longer than any"));
        }
        Ok(Self {
            hasher: head_hasher(kind, version, length),
            checksum: u32::from_le_bytes(reader.array()?),
            length,
        })
    }

    /// Checks the body that follows.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when fields or body changed.
    pub fn check(&self, body: &[u8]) -> Result<(), FormatError> {
        let mut hasher = self.hasher.clone();
        hasher.update(body);
        if hasher.finalize() == self.checksum {
            Ok(())
        } else {
            Err(FormatError::Bad("the checksum of its head does not match"))
        }
    }
}

/// The kinds of frames.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameKind {
    /// One write of the journal.
    Record,
    /// Rows of a snapshot.
    Rows,
    /// The end of a snapshot.
    End,
}

impl FrameKind {
    /// The first four bytes of such a frame.
    #[must_use]
    pub const fn magic(self) -> [u8; 4] {
        match self {
            Self::Record => *b"\xf7Trj",
            Self::Rows => *b"\xf7Trr",
            Self::End => *b"\xf7Tre",
        }
    }

    fn of_magic(magic: [u8; 4]) -> Option<Self> {
        [Self::Record, Self::Rows, Self::End]
            .into_iter()
            .find(|kind| kind.magic() == magic)
    }
}

/// What ties a frame to its file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Salt(u32);

impl Salt {
    /// The salt of a segment of the journal.
    #[must_use]
    pub fn of_segment(store: StoreId, number: u64) -> Self {
        Self::of(FileKind::Journal, store, number)
    }

    /// The salt of a partition's snapshot.
    #[must_use]
    pub fn of_snapshot(store: StoreId, partition: PartitionId) -> Self {
        Self::of(FileKind::Snapshot, store, u64::from(partition.0))
    }

    fn of(kind: FileKind, store: StoreId, number: u64) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(kind.magic());
        hasher.update(&store.0);
        hasher.update(&number.to_le_bytes());
        Self(hasher.finalize())
    }

    fn checksum(self, offset: u64, frame: &Frame) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.0.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(&frame.kind.magic());
        hasher.update(&frame.length.to_le_bytes());
        hasher.update(&frame.checksum.to_le_bytes());
        hasher.finalize()
    }
}

/// A frame without its body.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame {
    /// What its body is.
    pub kind: FrameKind,
    /// The length of the body.
    pub length: u64,
    checksum: u32,
}

impl Frame {
    /// Makes room for a frame in an empty buffer; its body is appended next.
    pub fn begin(out: &mut Vec<u8>) {
        out.extend_from_slice(&[0; FRAME_BYTES]);
    }

    /// Ends the frame that `out` holds and that will stand at `offset` of its file.
    ///
    /// # Panics
    /// When none was begun.
    pub fn finish(kind: FrameKind, salt: Salt, offset: u64, out: &mut [u8]) {
        let (fields, body) = out
            .split_first_chunk_mut::<FRAME_BYTES>()
            .expect("a frame was begun");
        let frame = Self {
            kind,
            length: body.len() as u64,
            checksum: crc32fast::hash(body),
        };
        let mut encoded = Vec::with_capacity(FRAME_BYTES);
        encoded.extend_from_slice(&kind.magic());
        encoded.extend_from_slice(&frame.length.to_le_bytes());
        encoded.extend_from_slice(&frame.checksum.to_le_bytes());
        encoded.extend_from_slice(&salt.checksum(offset, &frame).to_le_bytes());
        fields.copy_from_slice(&encoded);
    }

    /// Reads a frame that stands at `offset` of its file.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when no frame of this file was written there.
    pub fn decode(salt: Salt, offset: u64, bytes: &[u8; FRAME_BYTES]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let frame = Self {
            kind: FrameKind::of_magic(reader.array()?)
                .ok_or(FormatError::Bad("no frame begins here"))?,
            length: u64::from_le_bytes(reader.array()?),
            checksum: u32::from_le_bytes(reader.array()?),
        };
        if salt.checksum(offset, &frame) == u32::from_le_bytes(reader.array()?) {
            Ok(frame)
        } else {
            Err(FormatError::Bad("the checksum of a frame does not match"))
        }
    }

    /// Checks the body.
    ///
    /// # Errors
    /// [`FormatError::Bad`] when it changed.
    pub fn check(&self, body: &[u8]) -> Result<(), FormatError> {
        if crc32fast::hash(body) == self.checksum {
            Ok(())
        } else {
            Err(FormatError::Bad(
                "the checksum of its content does not match",
            ))
        }
    }
}

/// The highest number that another can follow.
const MAX_COUNT: u64 = u64::MAX - 1;

/// One section of a record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Section<'a> {
    /// What a partition commits.
    Commit {
        /// Whose it is.
        partition: PartitionId,
        /// What is stored from then on.
        header: Header,
        /// Its rows.
        rows: &'a [u8],
    },
    /// A partition has a new owner.
    Claim {
        /// Whose it is.
        partition: PartitionId,
        /// The epoch from then on.
        epoch: Epoch,
    },
}

/// Writes the sections of one record.
#[derive(Debug, Default)]
pub struct RecordEncoder {
    position: Option<Position>,
}

impl RecordEncoder {
    /// Appends a commit; its position only where it differs from the one before.
    pub fn commit(&mut self, out: &mut Vec<u8>, commit: &Commit) {
        if commit.position != self.position {
            self.position = commit.position;
            out.push(SECTION_POSITION);
            put_position(out, commit.position.as_ref());
        }
        out.push(SECTION_COMMIT);
        out.extend_from_slice(&commit.partition.0.to_le_bytes());
        put_varint(out, commit.epoch.0);
        put_varint(out, commit.number.0);
        put_varint(out, commit.rows.as_bytes().len() as u64);
        out.extend_from_slice(commit.rows.as_bytes());
    }

    /// Appends a claim.
    pub fn claim(&mut self, out: &mut Vec<u8>, partition: PartitionId, epoch: Epoch) {
        out.push(SECTION_CLAIM);
        out.extend_from_slice(&partition.0.to_le_bytes());
        put_varint(out, epoch.0);
    }
}

/// Reads the sections of one record; ends after the first that cannot be read.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    reader: Reader<'a>,
    position: Option<Position>,
    is_broken: bool,
}

impl<'a> Sections<'a> {
    /// Reads the body of a record.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(body),
            position: None,
            is_broken: false,
        }
    }

    fn read(&mut self) -> Result<Section<'a>, CorruptRow> {
        let mut kind = self.reader.byte()?;
        if kind == SECTION_POSITION {
            self.position = read_position(&mut self.reader)?;
            kind = self.reader.byte()?;
        }
        let partition = PartitionId(u16::from_le_bytes(self.reader.array()?));
        let epoch = read_epoch(&mut self.reader)?;
        match kind {
            SECTION_COMMIT => Ok(Section::Commit {
                partition,
                header: Header {
                    epoch,
                    number: CommitNumber(read_count(&mut self.reader)?),
                    position: self.position,
                },
                rows: self.reader.bytes()?,
            }),
            SECTION_CLAIM => Ok(Section::Claim { partition, epoch }),
            _ => Err(CorruptRow("a section is of no known kind")),
        }
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, CorruptRow>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_broken || self.reader.is_at_end() {
            return None;
        }
        let section = self.read();
        self.is_broken = section.is_err();
        Some(section)
    }
}

fn put_header(out: &mut Vec<u8>, header: &Header) {
    put_varint(out, header.epoch.0);
    put_varint(out, header.number.0);
    put_position(out, header.position.as_ref());
}

fn read_header(reader: &mut Reader<'_>) -> Result<Header, CorruptRow> {
    Ok(Header {
        epoch: read_epoch(reader)?,
        number: CommitNumber(read_count(reader)?),
        position: read_position(reader)?,
    })
}

fn read_epoch(reader: &mut Reader<'_>) -> Result<Epoch, CorruptRow> {
    let epoch = Epoch(reader.varint()?);
    if epoch > Epoch::MAX {
        return Err(CorruptRow("an epoch is higher than claims make it"));
    }
    Ok(epoch)
}

/// Reads a number of ours, or a sequence of the broker's: another follows it.
fn read_count(reader: &mut Reader<'_>) -> Result<u64, CorruptRow> {
    let count = reader.varint()?;
    if count > MAX_COUNT {
        return Err(CorruptRow("a number is so high that none can follow"));
    }
    Ok(count)
}

fn put_position(out: &mut Vec<u8>, position: Option<&Position>) {
    let Some(position) = position else {
        return out.push(POSITION_NONE);
    };
    match position.origin {
        Origin::Session => out.push(POSITION_SESSION),
        Origin::Stream { created } => {
            out.push(POSITION_STREAM);
            put_timestamp(out, created);
        }
    }
    put_varint(out, u64::from(position.cursor.generation));
    put_varint(out, position.cursor.sequence);
    put_timestamp(out, position.timestamp);
    match position.fingerprint {
        None => out.push(0),
        Some(fingerprint) => {
            out.push(1);
            out.extend_from_slice(&fingerprint.to_le_bytes());
        }
    }
}

fn read_position(reader: &mut Reader<'_>) -> Result<Option<Position>, CorruptRow> {
    let origin = match reader.byte()? {
        POSITION_NONE => return Ok(None),
        POSITION_SESSION => Origin::Session,
        POSITION_STREAM => Origin::Stream {
            created: reader.timestamp()?,
        },
        _ => return Err(CorruptRow("a position is of no known origin")),
    };
    let cursor = Cursor {
        generation: reader.varint_u32()?,
        sequence: read_count(reader)?,
    };
    let timestamp = reader.timestamp()?;
    let fingerprint = match reader.byte()? {
        0 => None,
        1 => Some(u64::from_le_bytes(reader.array()?)),
        _ => return Err(CorruptRow("a fingerprint is neither there nor not")),
    };
    Ok(Some(Position {
        origin,
        cursor,
        timestamp,
        fingerprint,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::rows::Rows;
    use crate::core::time::Timestamp;

    const STORE: StoreId = StoreId([7; 16]);

    fn position() -> impl Strategy<Value = Option<Position>> {
        let fields = (
            any::<Option<u64>>(),
            any::<u32>(),
            0..=MAX_COUNT,
            any::<u64>(),
            any::<Option<u64>>(),
        );
        prop::option::of(
            fields.prop_map(
                |(created, generation, sequence, at, fingerprint)| Position {
                    origin: created.map_or(Origin::Session, |created| Origin::Stream {
                        created: Timestamp::from_nanos(created),
                    }),
                    cursor: Cursor {
                        generation,
                        sequence,
                    },
                    timestamp: Timestamp::from_nanos(at),
                    fingerprint,
                },
            ),
        )
    }

    fn header() -> impl Strategy<Value = Header> {
        (0..=Epoch::MAX.0, 0..=MAX_COUNT, position()).prop_map(|(epoch, number, position)| Header {
            epoch: Epoch(epoch),
            number: CommitNumber(number),
            position,
        })
    }

    fn commit() -> impl Strategy<Value = Commit> {
        (any::<u16>(), header(), any::<Vec<u8>>()).prop_map(|(partition, header, rows)| Commit {
            partition: PartitionId(partition),
            epoch: header.epoch,
            number: header.number,
            position: header.position,
            rows: Rows::from_bytes(rows),
        })
    }

    fn body(kind: FileKind, file: &[u8]) -> Result<&[u8], FormatError> {
        let (fields, body) = file
            .split_first_chunk()
            .ok_or(FormatError::Bad("it ends too early"))?;
        let fields = HeadFields::decode(kind, *fields)?;
        fields.check(body)?;
        Ok(body)
    }

    #[test]
    fn what_nobody_counts_to_is_damage() {
        let is_read = |body: &[u8]| Sections::new(body).all(|section| section.is_ok());
        let claim = |epoch: u64| {
            let mut out = Vec::new();
            RecordEncoder::default().claim(&mut out, PartitionId(1), Epoch(epoch));
            is_read(&out)
        };
        assert!(claim(Epoch::MAX.0));
        assert!(!claim(Epoch::MAX.0 + 1));
        assert!(!claim(u64::MAX));
        let commit = |number: u64, sequence: u64| {
            let mut out = Vec::new();
            let position = Position {
                origin: Origin::Session,
                cursor: Cursor {
                    generation: 0,
                    sequence,
                },
                timestamp: Timestamp::EPOCH,
                fingerprint: None,
            };
            let commit = Commit {
                partition: PartitionId(1),
                epoch: Epoch(1),
                number: CommitNumber(number),
                position: Some(position),
                rows: Rows::default(),
            };
            RecordEncoder::default().commit(&mut out, &commit);
            is_read(&out)
        };
        assert!(commit(MAX_COUNT, MAX_COUNT));
        assert!(!commit(MAX_COUNT + 1, 1));
        assert!(!commit(1, MAX_COUNT + 1));
    }

    proptest! {
        #[test]
        fn heads_are_read_again(base in prop::collection::vec(header(), 0..5), number: u64, partitions: u16) {
            let store = StoreFile { id: STORE, partitions };
            prop_assert_eq!(StoreFile::decode(body(FileKind::Store, &store.encode())?), Ok(store));
            if let Some(&header) = base.first() {
                let head = SnapshotHead { partition: PartitionId(partitions), header };
                let file = encode_snapshot_head(STORE, &head);
                prop_assert_eq!(decode_snapshot_head(body(FileKind::Snapshot, &file)?), Ok((STORE, head)));
            }
            let segment = SegmentHead { store: STORE, number, base };
            let file = segment.encode();
            prop_assert_eq!(SegmentHead::decode(body(FileKind::Journal, &file)?), Ok(segment));
        }

        #[test]
        fn records_are_read_again(commits in prop::collection::vec(commit(), 1..8), offset: u64, claimed: u16) {
            let salt = Salt::of_segment(STORE, 3);
            let mut out = Vec::new();
            Frame::begin(&mut out);
            let mut encoder = RecordEncoder::default();
            encoder.claim(&mut out, PartitionId(claimed), Epoch(5));
            for commit in &commits {
                encoder.commit(&mut out, commit);
            }
            Frame::finish(FrameKind::Record, salt, offset, &mut out);
            let (fields, body) = out.split_first_chunk().expect("a frame");
            let frame = Frame::decode(salt, offset, fields)?;
            prop_assert_eq!(frame.kind, FrameKind::Record);
            prop_assert_eq!(frame.length, body.len() as u64);
            frame.check(body)?;
            let mut sections = Sections::new(body);
            let claim = Section::Claim { partition: PartitionId(claimed), epoch: Epoch(5) };
            prop_assert_eq!(sections.next(), Some(Ok(claim)));
            for commit in &commits {
                let expected = Section::Commit {
                    partition: commit.partition,
                    header: Header { epoch: commit.epoch, number: commit.number, position: commit.position },
                    rows: commit.rows.as_bytes(),
                };
                prop_assert_eq!(sections.next(), Some(Ok(expected)));
            }
            prop_assert_eq!(sections.next(), None);
            prop_assert!(Frame::decode(salt, offset ^ 1, fields).is_err());
            prop_assert!(Frame::decode(Salt::of_segment(STORE, 4), offset, fields).is_err());
        }

        #[test]
        fn a_flipped_bit_is_noticed(base in prop::collection::vec(header(), 0..3), at: prop::sample::Index, bit in 0_u8..8) {
            let mut file = SegmentHead { store: STORE, number: 1, base }.encode();
            let at = at.index(file.len());
            file[at] ^= 1_u8 << bit;
            prop_assert!(body(FileKind::Journal, &file).is_err());
        }

        #[test]
        fn junk_never_panics(junk in any::<Vec<u8>>(), fields: [u8; FRAME_BYTES]) {
            let _ = Sections::new(&junk).count();
            drop(StoreFile::decode(&junk));
            drop(SegmentHead::decode(&junk));
            drop(decode_snapshot_head(&junk));
            drop(SnapshotEnd::decode(&junk));
            drop(Frame::decode(Salt(0), 0, &fields));
            drop(HeadFields::decode(FileKind::Store, fields));
        }
    }

    #[test]
    fn a_position_that_commits_share_is_written_once() {
        let position = Some(Position {
            origin: Origin::Session,
            cursor: Cursor::default(),
            timestamp: Timestamp::EPOCH,
            fingerprint: None,
        });
        let commit = |partition| Commit {
            partition: PartitionId(partition),
            epoch: Epoch(1),
            number: CommitNumber(1),
            position,
            rows: Rows::default(),
        };
        let mut out = Vec::new();
        let mut encoder = RecordEncoder::default();
        encoder.commit(&mut out, &commit(1));
        let first = out.len();
        encoder.commit(&mut out, &commit(2));
        assert_eq!(&out[first..], b"\x02\x02\x00\x01\x01\x00");
    }

    #[test]
    fn the_end_of_a_snapshot_has_these_bytes_for_ever() {
        let end = SnapshotEnd {
            num_blocks: 1,
            num_bytes: 0x0203,
            durable: CommitNumber(4),
        };
        let mut out = Vec::new();
        end.encode(&mut out);
        let expected = [
            &[1, 0, 0, 0, 0, 0, 0, 0][..],
            &[3, 2, 0, 0, 0, 0, 0, 0],
            &[4, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(out, expected.concat());
        assert_eq!(FRAME_BYTES + out.len(), END_BYTES);
        assert_eq!(SnapshotEnd::decode(&out), Ok(end));
        let kinds = [FrameKind::Record, FrameKind::Rows, FrameKind::End].map(FrameKind::magic);
        assert_eq!(kinds, [*b"\xf7Trj", *b"\xf7Trr", *b"\xf7Tre"]);
    }

    #[test]
    fn a_newer_format_is_told_from_a_bad_one() {
        let fields = |version: u32, length: u32| {
            let mut fields = [0; HEAD_BYTES];
            fields[..8].copy_from_slice(FileKind::Store.magic());
            fields[8..12].copy_from_slice(&version.to_le_bytes());
            fields[12..16].copy_from_slice(&length.to_le_bytes());
            HeadFields::decode(FileKind::Store, fields).map(|fields| fields.length)
        };
        assert_eq!(fields(VERSION, 0), Ok(0));
        let newer = FormatError::Newer(VERSION + 1);
        assert_eq!(fields(VERSION + 1, 0), Err(newer));
        assert_eq!(fields(VERSION, MAX_HEAD_BYTES), Ok(MAX_HEAD_BYTES));
        let too_long = FormatError::Bad("its head is longer than any");
        assert_eq!(fields(VERSION, MAX_HEAD_BYTES + 1), Err(too_long));
    }

    #[test]
    fn a_changed_body_is_noticed() {
        let mut out = Vec::new();
        Frame::begin(&mut out);
        out.extend_from_slice(b"rows");
        let salt = Salt::of_snapshot(STORE, PartitionId(1));
        Frame::finish(FrameKind::Rows, salt, 0, &mut out);
        let (fields, body) = out.split_first_chunk().expect("a frame");
        let frame = Frame::decode(salt, 0, fields).expect("it was finished");
        assert_eq!(frame.check(body), Ok(()));
        assert!(frame.check(b"rowz").is_err());
    }
}
