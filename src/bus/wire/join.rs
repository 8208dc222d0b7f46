//! Joins the messages of a digest that was split.
//!
//! The parts of a digest come in order, each with `Tocsin-Part: 2/3` and the digest's id with the range that it
//! holds behind it. A part that comes again changes nothing; one without its beginning is given up.

use std::collections::HashMap;

use bytes::Bytes;

use super::{Reject, decode_digest, encode_digest};
use crate::core::ids::UserId;
use crate::domains::alarms::Digest;

/// Users whose digests may be incomplete at a time; one more, and the beginnings of all are forgotten.
const MAX_UNFINISHED: usize = 1024;

/// A whole digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Joined {
    /// What it says.
    pub digest: Digest,
    /// Its bytes: as they came, or of several parts as if it had come in one.
    pub payload: Bytes,
    /// Its message id, if it has one: the same for a repeat, and without the ranges of its parts.
    pub id: Option<String>,
}

/// Remembers the parts of digests that are not whole yet, one a user.
#[derive(Debug, Default)]
pub struct Joiner {
    unfinished: HashMap<UserId, Unfinished>,
}

#[derive(Debug)]
struct Unfinished {
    id: String,
    next_part: u32,
    digest: Digest,
}

impl Joiner {
    /// Takes a message: its id and part as its headers say, and its bytes. Returns the digest that is whole with it.
    ///
    /// # Errors
    /// [`Reject`] for what is no digest.
    pub fn take(
        &mut self,
        id: Option<&str>,
        part: Option<&str>,
        payload: Bytes,
    ) -> Result<Option<Joined>, Reject> {
        let digest = decode_digest(&payload)?;
        let Some((part, num_parts)) = part.and_then(read_part) else {
            return Ok(Some(Joined {
                digest,
                payload,
                id: id.map(str::to_owned),
            }));
        };
        let (id, _) = id.and_then(|id| id.rsplit_once('.')).unwrap_or_default();
        if part == 1 {
            if self.unfinished.len() >= MAX_UNFINISHED {
                self.unfinished.clear();
            }
            let beginning = Unfinished {
                id: id.to_owned(),
                next_part: 2,
                digest,
            };
            self.unfinished
                .insert(beginning.digest.user.clone(), beginning);
            return Ok(None);
        }
        let user = digest.user.clone();
        let Some(known) = self.unfinished.get_mut(&user) else {
            return Ok(None);
        };
        if known.id != id || known.next_part != part {
            return Ok(None);
        }
        known.digest.alarms.extend(digest.alarms);
        known.next_part += 1;
        if part < num_parts {
            return Ok(None);
        }
        Ok(self.unfinished.remove(&user).map(|whole| Joined {
            payload: encode_digest(&whole.digest),
            id: Some(whole.id),
            digest: whole.digest,
        }))
    }
}

/// Reads `2/3`; `None` for whatever is no part of several.
fn read_part(text: &str) -> Option<(u32, u32)> {
    let (part, num_parts) = text.split_once('/')?;
    let (part, num_parts) = (part.parse().ok()?, num_parts.parse().ok()?);
    (num_parts > 1 && (1..=num_parts).contains(&part)).then_some((part, num_parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Outbound;
    use crate::bus::wire::{PART_HEADER, split_digest};
    use crate::core::ids::{Id, MessageId};
    use crate::core::parts::Stored;
    use crate::core::position::Cursor;
    use crate::core::time::Timestamp;
    use crate::domains::alarms::{AlarmId, DigestEntry, Status};

    fn digest(num_alarms: u64) -> Digest {
        let entry = |i| DigestEntry {
            alarm: AlarmId(Id::new(&format!("alarm \"{i}\"")).unwrap()),
            status: Status::Critical,
            changed_at: Timestamp::from_seconds(i),
        };
        Digest {
            user: UserId(Id::new("ann").unwrap()),
            alarms: (0..num_alarms).map(entry).collect(),
        }
    }

    fn id(sequence: u64) -> MessageId {
        MessageId::Stream {
            cursor: Cursor {
                generation: 0,
                sequence,
            },
            timestamp: Timestamp::from_nanos(17),
        }
    }

    fn parts(digest: &Digest, sequence: u64, max_payload: usize) -> Vec<Outbound> {
        split_digest(&id(sequence), digest, &Stored::default(), max_payload).unwrap()
    }

    fn take(joiner: &mut Joiner, message: &Outbound) -> Option<Joined> {
        let part = message
            .headers
            .iter()
            .find(|(name, _)| *name == PART_HEADER);
        let part = part.map(|(_, value)| value.as_str());
        let taken = joiner.take(Some(&message.id), part, message.payload.clone());
        taken.unwrap()
    }

    #[test]
    fn parts_make_the_bytes_of_the_whole() {
        let digest = digest(40);
        let whole = &parts(&digest, 5, 1 << 20)[0];
        let mut joiner = Joiner::default();
        let alone = take(&mut joiner, whole).unwrap();
        assert_eq!((&alone.payload, &alone.digest), (&whole.payload, &digest));
        let parts = parts(&digest, 5, 1000);
        assert!(parts.len() > 3);
        let (last, others) = parts.split_last().unwrap();
        for part in others {
            assert_eq!(take(&mut joiner, part), None);
            assert_eq!(take(&mut joiner, part), None, "a repeat");
        }
        assert_eq!(take(&mut joiner, last), Some(alone));
        assert_eq!(take(&mut joiner, last), None, "a repeat");
    }

    #[test]
    fn parts_of_two_cuts_make_the_whole() {
        let digest = digest(40);
        let mut joiner = Joiner::default();
        let first = &parts(&digest, 5, 1000)[0];
        assert_eq!(take(&mut joiner, first), None);
        let mut stored = Stored::default();
        stored.add([(first.id.as_str(), None)]);
        let rest = split_digest(&id(5), &digest, &stored, 1 << 20).unwrap();
        assert_eq!(rest.len(), 1);
        let whole = take(&mut joiner, &rest[0]).unwrap();
        assert_eq!((whole.digest, whole.id.as_deref()), (digest, Some("5-17")));
    }

    #[test]
    fn a_part_without_its_beginning_is_given_up() {
        let (first, second) = (parts(&digest(20), 5, 1000), parts(&digest(20), 6, 1000));
        let mut joiner = Joiner::default();
        for part in &first[1..] {
            assert_eq!(take(&mut joiner, part), None);
        }
        assert_eq!(take(&mut joiner, &first[0]), None);
        for part in &second[1..] {
            assert_eq!(take(&mut joiner, part), None, "of another digest");
        }
        let taken: Vec<_> = second
            .iter()
            .filter_map(|part| take(&mut joiner, part))
            .collect();
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn what_is_no_part_is_a_digest_and_what_is_no_digest_is_refused() {
        let mut joiner = Joiner::default();
        for part in ["1/1", "0/2", "3/2", "x", "2/", "", "1/99999999999"] {
            let whole = joiner.take(None, Some(part), encode_digest(&digest(1)));
            assert!(whole.unwrap().is_some(), "{part}");
        }
        assert!(joiner.take(None, None, "junk".into()).is_err());
    }

    #[test]
    fn beginnings_without_an_end_are_bounded() {
        let mut joiner = Joiner::default();
        for user in 0..5000 {
            let payload = format!("{{\"UserID\":\"{user}\",\"ActiveAlarms\":[]}}");
            joiner.take(None, Some("1/2"), payload.into()).unwrap();
            assert!(joiner.unfinished.len() <= MAX_UNFINISHED);
        }
    }
}
