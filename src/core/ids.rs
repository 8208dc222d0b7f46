//! Names of things: users, partitions, stores, epochs, commit numbers, and the ids of what is published.

use std::cmp::Ordering;
use std::fmt;

use twox_hash::XxHash3_64;

use super::position::Cursor;
use super::time::Timestamp;

/// The longest opaque id, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// The seed of every hash that decides a placement: fixed for ever, because stored rows follow from it.
pub const HASH_SEED: u64 = 0;

/// The placement hash of some bytes: `XxHash3_64` with [`HASH_SEED`].
#[must_use]
pub fn placement_hash(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(HASH_SEED, bytes)
}

/// An opaque, non-empty text chosen by a publisher, kept compactly when it is a canonical UUID.
///
/// Equality and order are those of the text's bytes.
#[derive(Clone, Eq, Hash, PartialEq)]
pub enum Id {
    /// A UUID whose printed form is exactly the text: lower case, with hyphens.
    Uuid([u8; 16]),
    /// Any other text.
    Text(Box<str>),
}

impl Id {
    /// Takes a text as an id; `None` when it is empty or longer than [`MAX_ID_BYTES`].
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > MAX_ID_BYTES {
            return None;
        }
        Some(parse_uuid(text.as_bytes()).map_or_else(|| Self::Text(text.into()), Self::Uuid))
    }

    /// Calls `use_text` with the text, without allocating.
    pub fn with_text<T>(&self, use_text: impl FnOnce(&str) -> T) -> T {
        match self {
            Self::Uuid(bytes) => {
                let text = print_uuid(bytes);
                use_text(std::str::from_utf8(&text).expect("a printed UUID is ASCII"))
            }
            Self::Text(text) => use_text(text),
        }
    }
}

impl Ord for Id {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            // Lower-case hexadecimal digits and fixed hyphens order as the bytes they print.
            (Self::Uuid(one), Self::Uuid(two)) => {
                u128::from_be_bytes(*one).cmp(&u128::from_be_bytes(*two))
            }
            (Self::Text(one), Self::Text(two)) => one.cmp(two),
            (Self::Uuid(one), Self::Text(two)) => print_uuid(one).as_slice().cmp(two.as_bytes()),
            (Self::Text(one), Self::Uuid(two)) => one.as_bytes().cmp(print_uuid(two).as_slice()),
        }
    }
}

impl PartialOrd for Id {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| fmt::Debug::fmt(text, f))
    }
}

const HYPHENS: [usize; 4] = [8, 13, 18, 23];
/// Where the two digits of each byte of a printed UUID begin.
const DIGITS_AT: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
/// What [`NIBBLES`] holds for a byte that is no lower-case hexadecimal digit.
const NO_DIGIT: u8 = 0xff;
/// The value of each lower-case hexadecimal digit.
const NIBBLES: [u8; 256] = nibbles();

#[expect(
    clippy::indexing_slicing,
    reason = "checked when the program is compiled"
)]
const fn nibbles() -> [u8; 256] {
    let mut nibbles = [NO_DIGIT; 256];
    let digits = *b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        nibbles[digits[value] as usize] = value as u8;
        value += 1;
    }
    nibbles
}

fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    // A fixed length lets the compiler drop every check of a bound.
    let text: &[u8; 36] = text.try_into().ok()?;
    if HYPHENS.iter().any(|&at| text.get(at) != Some(&b'-')) {
        return None;
    }
    let nibble = |at: usize| {
        let digit = text.get(at).copied().unwrap_or_default();
        NIBBLES.get(usize::from(digit)).copied().unwrap_or(NO_DIGIT)
    };
    let mut bytes = [0; 16];
    let mut seen = 0;
    for (byte, &at) in bytes.iter_mut().zip(&DIGITS_AT) {
        let (high, low) = (nibble(at), nibble(at + 1));
        seen |= high | low;
        *byte = high << 4 | low;
    }
    // No digit's value has a bit above the fourth.
    (seen < 16).then_some(bytes)
}

fn print_uuid(bytes: &[u8; 16]) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    let mut text = [b'-'; 36];
    for (byte, &at) in bytes.iter().zip(&DIGITS_AT) {
        if let Some([high, low]) = text.get_mut(at..at + 2) {
            (*high, *low) = (digit(byte >> 4), digit(byte & 15));
        }
    }
    text
}

/// Whose alarms: every message belongs to one user, and no user sees another's.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct UserId(pub Id);

impl UserId {
    /// The hash that decides this user's partition.
    #[must_use]
    pub fn placement(&self) -> u64 {
        self.0.with_text(|text| placement_hash(text.as_bytes()))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the fixed number of parts that a store's state is divided into.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// The partition of a placement hash among `partitions`.
    #[must_use]
    pub fn of(placement: u64, partitions: u16) -> Self {
        let partition = placement % u64::from(partitions.max(1));
        Self(u16::try_from(partition).expect("a remainder is below its divisor"))
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random id of a store, drawn when it is created.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct StoreId(pub [u8; 16]);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How often a partition was claimed: a commit of an older epoch is refused.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The highest that the keys of owed messages have room for: a claim a second for half a year.
    pub const MAX: Self = Self((1 << 24) - 1);
}

/// The number of a partition's commit: the first is 1, and each follows the one before.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct CommitNumber(pub u64);

impl CommitNumber {
    /// The number after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The stable id under which one owed message is published: the same after every crash and restart.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum MessageId {
    /// Made of the message that caused it: the same whichever store answers it.
    Stream {
        /// Where that message stands in the input.
        cursor: Cursor,
        /// The broker's timestamp of that message.
        timestamp: Timestamp,
    },
    /// Made of the commit that made it: the input has no durable position.
    Session {
        /// The store that committed it.
        store: StoreId,
        /// The epoch of that commit.
        epoch: Epoch,
        /// The partition of that commit.
        partition: PartitionId,
        /// The number of that commit.
        number: CommitNumber,
        /// Which of the messages of that commit.
        index: u32,
    },
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream { cursor, timestamp } => {
                write!(f, "{}-{}", cursor.sequence, timestamp.as_nanos())?;
                // Read again after the stream's history was rewritten: the state may have moved on since
                // the first answer, so the broker must not take the new one for a repeat of the old.
                if cursor.generation > 0 {
                    write!(f, "-{}", cursor.generation)
                } else {
                    Ok(())
                }
            }
            Self::Session {
                store,
                epoch,
                partition,
                number,
                index,
            } => {
                write!(f, "{store}-{}-{partition}-{}.{index}", epoch.0, number.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> Id {
        Id::new(text).expect("a valid id")
    }

    #[test]
    fn only_a_canonical_uuid_is_kept_compactly() {
        let canonical = "0f8fad5b-d9cb-469f-a165-70867728950e";
        assert!(matches!(id(canonical), Id::Uuid(_)));
        for other in [
            "0F8FAD5B-d9cb-469f-a165-70867728950e",
            "0f8fad5bd9cb469fa16570867728950e",
            "{0f8fad5b-d9cb-469f-a165-70867728950e}",
            "0f8fad5b-d9cb-469f-a165-70867728950g",
            "zz8fad5b-d9cb-469f-a165-70867728950e",
            "z08fad5b-d9cb-469f-a165-70867728950e",
            "0f8fad5b-d9cb-469f-a165_70867728950e",
            "1",
            "userID-1",
            "a.b",
            " ",
            "\u{1F514}",
        ] {
            assert!(matches!(id(other), Id::Text(_)), "{other}");
            assert_eq!(id(other).to_string(), other);
        }
        assert_eq!(id(canonical).to_string(), canonical);
    }

    #[test]
    fn an_id_has_1_to_256_bytes() {
        assert_eq!(Id::new(""), None);
        assert!(Id::new(&"x".repeat(256)).is_some());
        assert_eq!(Id::new(&"x".repeat(257)), None);
    }

    /// Vectors computed with the reference implementation (xxHash 0.8, `XXH3_64bits_withSeed`, seed 0).
    #[test]
    fn placement_follows_the_published_vectors() {
        assert_eq!(placement_hash(b""), 0x2d06_8005_38d3_94c2);
        assert_eq!(placement_hash(b"a"), 0xe6c6_32b6_1e96_4e1f);
        assert_eq!(placement_hash(b"abc"), 0x78af_5f94_892f_3950);
    }

    #[test]
    fn a_user_is_placed_by_its_text_and_shown_as_it() {
        let user = UserId(id("abc"));
        assert_eq!(
            (user.placement(), user.to_string().as_str()),
            (0x78af_5f94_892f_3950, "abc")
        );
        assert_eq!(PartitionId::of(200, 64), PartitionId(8));
        assert_eq!(format!("{:?}", StoreId([0xab; 16])), "ab".repeat(16));
    }

    #[test]
    fn a_message_id_names_what_caused_it() {
        let timestamp = Timestamp::from_nanos(17);
        let mut cursor = Cursor {
            generation: 0,
            sequence: 5,
        };
        assert_eq!(MessageId::Stream { cursor, timestamp }.to_string(), "5-17");
        cursor.generation = 2;
        assert_eq!(
            MessageId::Stream { cursor, timestamp }.to_string(),
            "5-17-2"
        );
        let session = MessageId::Session {
            store: StoreId([0xab; 16]),
            epoch: Epoch(3),
            partition: PartitionId(7),
            number: CommitNumber(9),
            index: 1,
        };
        assert_eq!(session.to_string(), format!("{}-3-7-9.1", "ab".repeat(16)));
    }

    proptest! {
        #[test]
        fn ids_order_as_their_bytes(one in "[0-9a-f-]{1,40}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
                                    two in "[0-9a-f-]{1,40}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}") {
            prop_assert_eq!(id(&one).cmp(&id(&two)), one.as_bytes().cmp(two.as_bytes()));
            prop_assert_eq!(id(&one).partial_cmp(&id(&two)), one.as_bytes().partial_cmp(two.as_bytes()));
            prop_assert_eq!(id(&one) == id(&two), one == two);
            prop_assert_eq!(format!("{:?}", id(&one)), format!("{one:?}"));
            prop_assert_eq!(id(&one).to_string(), one);
        }
    }
}
