//! The bytes of absolute rows: what a commit, a journal and a snapshot carry.
//!
//! A row is a key and its new value, or a key that is gone; never a difference, so that writing one twice,
//! or over a newer one that is written again afterwards, is harmless. [`Rows`] holds many of them, in order:
//!
//! ```text
//! row := varint(key length) varint(0 = gone, else value length + 1) key value
//! key := table byte, then what the table's owner chose
//! ```
//!
//! Table bytes are persisted and never reused: 1 to 15 belong to this core ([`OUTBOX_TABLE`],
//! [`OUTPUT_TABLE`]), 16 and above to the domains (`domains/mod.rs` lists them).

use thiserror::Error;

use super::ids::{Id, UserId};
use super::time::Timestamp;

/// Key: the row's number, big-endian. Value: an owed message (`core/outbox.rs`). Lives until the broker
/// has confirmed the message.
pub const OUTBOX_TABLE: u8 = 1;
/// Key: empty. Value: the sequence of the last confirmed message in the output stream. Lives for ever.
pub const OUTPUT_TABLE: u8 = 2;

/// Stored bytes that no version of this program wrote.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("stored row cannot be read: {0}")]
pub struct CorruptRow(pub &'static str);

/// Absolute rows, encoded one after the other.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rows(Vec<u8>);

impl Rows {
    /// No rows yet, and room for so many bytes.
    #[must_use]
    pub fn with_capacity(num_bytes: usize) -> Self {
        Self(Vec::with_capacity(num_bytes))
    }

    /// Takes encoded rows as they were stored; reading them reports what is wrong.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The encoded rows.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends a row: `Some` is the new value, `None` is gone.
    pub fn push(&mut self, key: &[u8], value: Option<&[u8]>) {
        put_varint(&mut self.0, key.len() as u64);
        put_varint(&mut self.0, value.map_or(0, |value| value.len() as u64 + 1));
        self.0.extend_from_slice(key);
        self.0.extend_from_slice(value.unwrap_or_default());
    }

    /// Appends a row whose lengths are known: `put` writes the key, then the value.
    ///
    /// # Panics
    /// When it writes more or less: the row could not be read back.
    pub fn push_sized(
        &mut self,
        key_len: usize,
        value_len: Option<usize>,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        put_varint(&mut self.0, key_len as u64);
        put_varint(&mut self.0, value_len.map_or(0, |len| len as u64 + 1));
        let end = self.0.len() + key_len + value_len.unwrap_or_default();
        put(&mut self.0);
        assert_eq!(self.0.len(), end, "a row is as long as was said");
    }

    /// Removes every row; the memory is kept.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Appends the rows of another.
    pub fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// The rows in order.
    #[must_use]
    pub fn iter(&self) -> RowIter<'_> {
        RowIter::new(&self.0)
    }
}

impl<'a> IntoIterator for &'a Rows {
    type Item = Row<'a>;
    type IntoIter = RowIter<'a>;

    fn into_iter(self) -> RowIter<'a> {
        self.iter()
    }
}

/// A row's key, and its value unless it is gone.
pub type Row<'a> = Result<(&'a [u8], Option<&'a [u8]>), CorruptRow>;

/// Iterates over encoded rows; ends after the first that cannot be read.
#[derive(Clone, Debug)]
pub struct RowIter<'a> {
    reader: Reader<'a>,
    is_broken: bool,
}

impl<'a> RowIter<'a> {
    /// Iterates over rows encoded in `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            reader: Reader::new(bytes),
            is_broken: false,
        }
    }

    fn read(&mut self) -> Row<'a> {
        let key_len = self.reader.varint()?;
        let value_len = self.reader.varint()?;
        let key = self.reader.take(key_len)?;
        let value = match value_len.checked_sub(1) {
            Some(len) => Some(self.reader.take(len)?),
            None => None,
        };
        Ok((key, value))
    }
}

impl<'a> Iterator for RowIter<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_broken || self.reader.is_at_end() {
            return None;
        }
        let row = self.read();
        self.is_broken = row.is_err();
        Some(row)
    }
}

/// Appends an unsigned LEB128 number.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends an id: 0 and 16 bytes for a UUID, else the text's length and the text.
pub fn put_id(out: &mut Vec<u8>, id: &Id) {
    match id {
        Id::Uuid(bytes) => {
            out.push(0);
            out.extend_from_slice(bytes);
        }
        Id::Text(text) => put_bytes(out, text.as_bytes()),
    }
}

/// How many bytes [`put_id`] appends.
#[must_use]
pub const fn id_len(id: &Id) -> usize {
    match id {
        Id::Uuid(_) => 17,
        Id::Text(text) if text.len() < 0x80 => 1 + text.len(),
        Id::Text(text) => 2 + text.len(),
    }
}

/// Appends an instant as eight bytes, big-endian.
pub fn put_timestamp(out: &mut Vec<u8>, timestamp: Timestamp) {
    out.extend_from_slice(&timestamp.as_nanos().to_be_bytes());
}

/// Reads what the `put_…` functions wrote.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the beginning of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether everything was read.
    #[must_use]
    pub const fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    /// Fails unless everything was read.
    ///
    /// # Errors
    /// [`CorruptRow`] when bytes are left over.
    pub fn finish(&self) -> Result<(), CorruptRow> {
        if self.is_at_end() {
            Ok(())
        } else {
            Err(CorruptRow("bytes are left over"))
        }
    }

    /// Reads so many bytes.
    ///
    /// # Errors
    /// [`CorruptRow`] when there are fewer.
    pub fn take(&mut self, len: u64) -> Result<&'a [u8], CorruptRow> {
        let len = usize::try_from(len).map_err(|_| CorruptRow("a length is too large"))?;
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(CorruptRow("it ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    /// Reads a fixed number of bytes.
    ///
    /// # Errors
    /// [`CorruptRow`] when there are fewer.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], CorruptRow> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(CorruptRow("it ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// [`CorruptRow`] at the end.
    pub fn byte(&mut self) -> Result<u8, CorruptRow> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// Reads an unsigned LEB128 number.
    ///
    /// # Errors
    /// [`CorruptRow`] when it does not end or does not fit.
    pub fn varint(&mut self) -> Result<u64, CorruptRow> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits > u64::MAX >> shift {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CorruptRow("a number does not fit"))
    }

    /// Reads an unsigned LEB128 number of at most 32 bits.
    ///
    /// # Errors
    /// [`CorruptRow`] when it does not end or does not fit.
    pub fn varint_u32(&mut self) -> Result<u32, CorruptRow> {
        u32::try_from(self.varint()?).map_err(|_| CorruptRow("a number does not fit"))
    }

    /// Reads everything that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.0;
        self.0 = &[];
        rest
    }

    /// Reads a length and so many bytes.
    ///
    /// # Errors
    /// [`CorruptRow`] when there are fewer.
    pub fn bytes(&mut self) -> Result<&'a [u8], CorruptRow> {
        let len = self.varint()?;
        self.take(len)
    }

    /// Reads a length and so many bytes of UTF-8.
    ///
    /// # Errors
    /// [`CorruptRow`] when they are not UTF-8, or fewer.
    pub fn text(&mut self) -> Result<&'a str, CorruptRow> {
        std::str::from_utf8(self.bytes()?).map_err(|_| CorruptRow("a text is not UTF-8"))
    }

    /// Reads an id.
    ///
    /// # Errors
    /// [`CorruptRow`] when it is none that [`put_id`] writes.
    pub fn id(&mut self) -> Result<Id, CorruptRow> {
        let mut ahead = self.clone();
        if ahead.byte()? == 0 {
            *self = ahead;
            return Ok(Id::Uuid(self.array()?));
        }
        Id::new(self.text()?).ok_or(CorruptRow("an id is too long"))
    }

    /// Reads a user's id.
    ///
    /// # Errors
    /// As [`Reader::id`].
    pub fn user(&mut self) -> Result<UserId, CorruptRow> {
        self.id().map(UserId)
    }

    /// Reads an instant.
    ///
    /// # Errors
    /// [`CorruptRow`] when there are fewer than eight bytes.
    pub fn timestamp(&mut self) -> Result<Timestamp, CorruptRow> {
        self.array()
            .map(|bytes| Timestamp::from_nanos(u64::from_be_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_have_these_bytes_for_ever() {
        let mut rows = Rows::default();
        rows.push(&[16, b'k'], Some(b"value"));
        rows.push(&[16, b'g'], None);
        rows.push(&[16, b'e'], Some(b""));
        assert_eq!(
            rows.as_bytes(),
            b"\x02\x06\x10kvalue\x02\x00\x10g\x02\x01\x10e"
        );
        let read: Result<Vec<_>, _> = rows.iter().collect();
        assert_eq!(
            read,
            Ok(vec![
                (&b"\x10k"[..], Some(&b"value"[..])),
                (&b"\x10g"[..], None),
                (&b"\x10e"[..], Some(&b""[..])),
            ])
        );
    }

    #[test]
    fn rows_are_appended_and_cleared() {
        let (mut all, mut more) = (Rows::default(), Rows::default());
        all.push(b"a", None);
        more.push(b"b", None);
        all.append(&more);
        assert_eq!(all.iter().count(), 2);
        all.clear();
        assert_eq!(all.as_bytes(), b"");
    }

    #[test]
    fn a_number_of_more_than_64_bits_is_refused() {
        let with_last = |last: u8| [&[0xff; 9][..], &[last]].concat();
        assert_eq!(Reader::new(&with_last(1)).varint(), Ok(u64::MAX));
        for bytes in [with_last(2), with_last(0x40), vec![0x80; 11]] {
            assert_eq!(
                Reader::new(&bytes).varint(),
                Err(CorruptRow("a number does not fit")),
                "{bytes:x?}"
            );
        }
    }

    #[test]
    fn an_id_is_as_long_as_is_said() {
        let uuid = "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned();
        for text in [
            uuid,
            "a".to_owned(),
            "x".repeat(127),
            "x".repeat(128),
            "x".repeat(256),
        ] {
            let id = Id::new(&text).expect("a valid id");
            let mut out = Vec::new();
            put_id(&mut out, &id);
            assert_eq!(out.len(), id_len(&id), "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "as long as was said")]
    fn a_row_of_another_length_is_never_written() {
        Rows::default().push_sized(2, None, |out| out.push(1));
    }

    #[test]
    fn a_row_cut_short_is_reported_and_ends_the_iteration() {
        let rows = Rows::from_bytes(b"\x02\x06\x10kval".to_vec());
        let read: Vec<_> = rows.iter().collect();
        assert_eq!(read, vec![Err(CorruptRow("it ends too early"))]);
    }

    proptest! {
        #[test]
        fn what_is_put_is_read_again(value in any::<u64>(), text in "[^\\x00]{1,64}", nanos in any::<u64>()) {
            let id = Id::new(&text);
            prop_assume!(id.is_some());
            let id = id.expect("checked");
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_id(&mut out, &id);
            put_timestamp(&mut out, Timestamp::from_nanos(nanos));
            put_bytes(&mut out, text.as_bytes());
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.id(), Ok(id));
            prop_assert_eq!(reader.timestamp(), Ok(Timestamp::from_nanos(nanos)));
            prop_assert_eq!(reader.text(), Ok(text.as_str()));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = RowIter::new(&bytes).count();
            let mut reader = Reader::new(&bytes);
            drop(reader.id());
            drop(reader.varint());
            drop(reader.text());
        }
    }
}
