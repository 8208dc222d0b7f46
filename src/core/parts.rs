//! A message in parts: what they are called, and how much of the message is stored.
//!
//! ```text
//! id := whole | whole "." first "-" end      units first..end of it: alarms of a digest, bytes of a dead letter
//! ```
//!
//! A part is named by what it holds, never by its number: cut anew, because the broker takes messages of another
//! length, no part has the id of one with other content. Parts are sent in order, each when the one before is
//! stored, so what is stored is a beginning, and the rest may be cut in any way.

use std::ops::Range;

/// The id of a part.
#[must_use]
pub fn part_id(whole: &str, units: &Range<usize>) -> String {
    format!("{whole}.{}-{}", units.start, units.end)
}

/// The id of the whole message, and the units that this id is of, if it is a part's.
#[must_use]
pub fn read_id(id: &str) -> (&str, Option<Range<usize>>) {
    let units = |text: &str| {
        let (first, end) = text.split_once('-')?;
        Some(first.parse().ok()?..end.parse().ok()?)
    };
    let part = id.rsplit_once('.');
    let part = part.and_then(|(whole, text)| Some((whole, units(text)?)));
    part.map_or((id, None), |(whole, units)| (whole, Some(units)))
}

/// How much of one message the output is known to hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Stored {
    /// Whether it holds the message as one.
    pub is_whole: bool,
    /// How many parts it holds, one behind the other.
    pub num_parts: usize,
    /// The units before this one are in them.
    pub end: usize,
    /// The sequence of the last of what it holds, where it has one.
    pub sequence: Option<u64>,
}

impl Stored {
    /// Adds what was stored: the message or parts of it by their ids, each with its sequence.
    pub fn add<'a>(&mut self, stored: impl IntoIterator<Item = (&'a str, Option<u64>)>) {
        let mut parts = Vec::new();
        for (id, sequence) in stored {
            if let Some(units) = read_id(id).1 {
                parts.push((units.start, units.end, sequence));
            } else {
                self.is_whole = true;
                self.sequence = self.sequence.max(sequence);
            }
        }
        parts.sort_unstable();
        for (first, end, sequence) in parts {
            // What does not follow was stored before the output lost something: it is sent again.
            if first <= self.end && self.end < end {
                self.num_parts += 1;
                self.end = end;
                self.sequence = self.sequence.max(sequence);
            }
        }
    }

    /// Whether that is all of a message of so many units.
    #[must_use]
    pub const fn is_all_of(&self, num_units: usize) -> bool {
        self.is_whole || (self.end > 0 && self.end >= num_units)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_what_it_is_of() {
        assert_eq!(part_id("5-17", &(0..12)), "5-17.0-12");
        for (id, read) in [
            ("5-17", ("5-17", None)),
            ("5-17-2", ("5-17-2", None)),
            ("5-17.0-12", ("5-17", Some(0..12))),
            ("abab-3-7-9.1", ("abab-3-7-9.1", None)),
            ("abab-3-7-9.1.4-5", ("abab-3-7-9.1", Some(4..5))),
            ("5-17.x-12", ("5-17.x-12", None)),
            ("5-17.0-", ("5-17.0-", None)),
        ] {
            assert_eq!(read_id(id), read, "{id}");
        }
    }

    #[test]
    fn what_is_stored_is_a_beginning() {
        let stored = |ids: &[&str]| {
            let mut stored = Stored::default();
            stored.add((10..).zip(ids).map(|(at, id)| (*id, Some(at))));
            stored
        };
        let parts = |num_parts, end, sequence| Stored {
            num_parts,
            end,
            sequence: Some(sequence),
            ..Stored::default()
        };
        assert_eq!(stored(&[]), Stored::default());
        assert_eq!(stored(&["1.0-5", "1.5-7"]), parts(2, 7, 11));
        assert_eq!(stored(&["1.5-7", "1.0-5"]), parts(2, 7, 11), "in any order");
        assert_eq!(stored(&["1.0-5", "1.6-7"]), parts(1, 5, 10), "a gap");
        assert_eq!(stored(&["1.6-7"]), Stored::default(), "no beginning");
        assert_eq!(stored(&["1.0-5", "1.0-9"]), parts(2, 9, 11), "two cuts");
        let whole = stored(&["1.0-5", "1"]);
        assert!(whole.is_whole);
        assert_eq!(whole.sequence, Some(11));
        let mut one_by_one = stored(&["1.0-5"]);
        one_by_one.add([("1.5-9", None)]);
        assert_eq!(one_by_one, parts(2, 9, 10), "confirmed without a sequence");
        one_by_one.add([("1.5-9", Some(12))]);
        assert_eq!(one_by_one, parts(2, 9, 10), "confirmed again");
    }
}
