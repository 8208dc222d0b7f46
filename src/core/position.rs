//! Where the input was read up to, and whether that history still stands.
//!
//! | the broker's stream, seen against our highest position | what follows |
//! |---|---|
//! | same `created`, reaches our position, same message there | go on after the lowest position |
//! | begins beyond our lowest position | purged: go on, and say exactly how many are missing |
//! | another `created`, and the same message there | the same stream, stamped anew: go on |
//! | another `created` without that message, ends before our position, or another message there | history was rewritten: a new generation, read from our lowest timestamp less [`REWRITE_MARGIN`] |
//!
//! nats-server 2.14 stamps a stream anew when it was changed after a restart and the server restarts once more. A message of
//! the same sequence, nanosecond and bytes at our highest position is proof enough that nothing was rewritten.
//!
//! An operator who has the input read again ([`rewind`]) begins a new generation, too: no position goes back. A rewind to a
//! sequence leaves a position that no message proves: where history was rewritten, or only stamped anew, it is read from the
//! message that stands there now, and from the first one where none does.
//!
//! What is read twice is harmless: state is made of registers. What is skipped silently is lost.

use std::time::Duration;

use thiserror::Error;

use super::time::Timestamp;

/// How far before the last timestamp a rewritten history is read again: more than the two minutes that a
/// broker may take to write to its disk, and more than a clock that was set back is usually wrong.
pub const REWRITE_MARGIN: Duration = Duration::from_mins(10);

/// A place in the input, ordered. A rewritten history begins a new generation.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Cursor {
    /// How often the input's history was seen to be rewritten.
    pub generation: u32,
    /// The message's sequence within the generation; 0 stands before the first.
    pub sequence: u64,
}

/// What numbered the messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// A stream of the broker, told from others by the instant of its creation.
    Stream {
        /// The broker's `created` of that stream.
        created: Timestamp,
    },
    /// This process, in the order of receipt: core NATS numbers nothing.
    Session,
}

/// How far a partition's state covers the input: every message up to here was applied, or was not for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Position {
    /// What numbered the messages.
    pub origin: Origin,
    /// The last message covered.
    pub cursor: Cursor,
    /// The broker's timestamp of that message; where none was read yet, the instant at which reading begins, or at a
    /// sequence one that is never before the timestamp of the message that stands there.
    pub timestamp: Timestamp,
    /// The placement hash of that message's payload; `None` where no message was read.
    pub fingerprint: Option<u64>,
}

impl Position {
    /// Whether it names a sequence at which nothing was read: how old the message is that follows it, only the stream knows.
    const fn is_unread(&self) -> bool {
        self.cursor.sequence > 0 && self.fingerprint.is_none()
    }
}

/// What a broker says of its stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StreamView {
    /// The instant at which the stream was created.
    pub created: Timestamp,
    /// The first sequence it holds; one more than the last when it is empty.
    pub first_sequence: u64,
    /// The last sequence it gave out.
    pub last_sequence: u64,
    /// Timestamp and payload hash of the message at the position asked for; `None` when it holds none.
    pub at_position: Option<(Timestamp, u64)>,
}

/// What was seen to be wrong with a history.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Rewrite {
    /// The stream has another `created`, or the position comes from no stream.
    Recreated,
    /// The stream ends before our position.
    RolledBack,
    /// Another message stands at our position.
    Replaced,
    /// A crash left partitions in different generations.
    Mixed,
}

impl Rewrite {
    /// What happened, in words for the operator.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Recreated => "the stream is another one than the one read before",
            Self::RolledBack => "the stream ends before the position read up to",
            Self::Replaced => "another message stands at the position read up to",
            Self::Mixed => "a stop interrupted the start of a new input generation",
        }
    }
}

/// How to go on reading.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resume {
    /// Nothing was read before: `input.start` decides.
    Fresh,
    /// History stands: read what follows this position.
    Continue {
        /// The lowest position.
        after: Position,
        /// How many messages after it are gone from the stream, unread.
        missing: u64,
    },
    /// History was rewritten: begin this generation from this instant.
    Rewritten {
        /// The new generation.
        generation: u32,
        /// Where in time to begin.
        from: Timestamp,
        /// What was seen.
        why: Rewrite,
    },
}

/// The position whose message must be looked at before [`resume`]: the highest.
#[must_use]
pub fn position_to_verify(positions: &[Option<Position>]) -> Option<Position> {
    positions
        .iter()
        .flatten()
        .copied()
        .max_by_key(|position| position.cursor)
}

/// Decides how to go on reading a stream, given every partition's position.
///
/// A partition without a position takes the lowest of the others: before anything is read the first time,
/// every partition commits where reading begins.
#[must_use]
pub fn resume(positions: &[Option<Position>], stream: &StreamView) -> Resume {
    let Some(highest) = position_to_verify(positions) else {
        return Resume::Fresh;
    };
    let known = || positions.iter().flatten().copied();
    let lowest = known()
        .min_by_key(|position| position.cursor)
        .unwrap_or(highest);
    let rewritten = |why| Resume::Rewritten {
        generation: highest.cursor.generation + 1,
        from: known()
            .map(|position| match stream.at_position {
                _ if !position.is_unread() => position.timestamp,
                Some((found, _)) if position.cursor == highest.cursor => {
                    found.min(position.timestamp)
                }
                Some(_) | None => Timestamp::EPOCH,
            })
            .min()
            .unwrap_or_default()
            .minus(REWRITE_MARGIN),
        why,
    };
    let origin = Origin::Stream {
        created: stream.created,
    };
    let ours = highest.fingerprint.map(|it| (highest.timestamp, it));
    let is_proven =
        highest.origin != Origin::Session && ours.is_some() && ours == stream.at_position;
    if highest.origin != origin && !is_proven {
        return rewritten(Rewrite::Recreated);
    }
    if lowest.cursor.generation != highest.cursor.generation {
        return rewritten(Rewrite::Mixed);
    }
    if stream.last_sequence < highest.cursor.sequence {
        return rewritten(Rewrite::RolledBack);
    }
    let is_replaced = stream
        .at_position
        .is_some_and(|found| match highest.fingerprint {
            Some(fingerprint) => found != (highest.timestamp, fingerprint),
            // Where reading begins, what stands before it is not newer: else it took that place afterwards.
            None => found.0 > highest.timestamp,
        });
    if is_replaced {
        return rewritten(Rewrite::Replaced);
    }
    let next = lowest.cursor.sequence + 1;
    // Reading that begins by time has no sequence yet, so nothing of it can be missing.
    let missing = if lowest.cursor.sequence == 0 {
        0
    } else {
        stream.first_sequence.saturating_sub(next)
    };
    Resume::Continue {
        after: Position { origin, ..lowest },
        missing,
    }
}

/// Where an operator has the input read again from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RewindTo {
    /// The first message that the stream holds.
    First,
    /// The message of this sequence, 1 at least.
    Sequence(u64),
    /// The first message not before this instant.
    Time(Timestamp),
}

/// Why the input cannot be read again from there. Each message says what to do.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum RewindError {
    /// Nothing was read.
    #[error("the store has read nothing yet; where its first start begins is said by input.start")]
    Fresh,
    /// There is no stream.
    #[error(
        "the store was last read into over core NATS, which keeps no message that could be read again; have the changes published again"
    )]
    NoStream,
    /// A start of a new generation was interrupted.
    #[error(
        "a stop interrupted the start of a new input generation; start the daemon once, stop it, and rewind then"
    )]
    Mixed,
    /// A rewind to a sequence is still to be read from: how far that is in time, nobody knows yet.
    #[error(
        "the store is rewound to a sequence already, and was not read from since; start the daemon once, or name \
         first or an earlier sequence"
    )]
    Pending,
    /// Reading would go forward, past messages that were not read.
    #[error(
        "sequence {to} was not read yet, the store was read into up to {read_up_to}; a rewind only goes back: name a sequence up to that one"
    )]
    SequenceAhead {
        /// The sequence asked for.
        to: u64,
        /// The last one that every partition covers.
        read_up_to: u64,
    },
    /// The same, by time.
    #[error(
        "{to} was not reached yet, the store was read into up to {read_up_to}; a rewind only goes back: name a time up to that one"
    )]
    TimeAhead {
        /// The time asked for.
        to: Timestamp,
        /// The timestamp that every partition covers.
        read_up_to: Timestamp,
    },
}

/// The position that every partition takes when the input is to be read again: in a new generation, so that no
/// position goes back (I-02) and what is answered again has an id of its own.
///
/// # Errors
/// [`RewindError`] when there is nothing to read again, or reading would skip what was not read.
pub fn rewind(positions: &[Option<Position>], to: RewindTo) -> Result<Position, RewindError> {
    let highest = position_to_verify(positions).ok_or(RewindError::Fresh)?;
    let Origin::Stream { .. } = highest.origin else {
        return Err(RewindError::NoStream);
    };
    let known = || positions.iter().flatten();
    if known().any(|position| position.cursor.generation != highest.cursor.generation) {
        return Err(RewindError::Mixed);
    }
    let timestamps = || known().map(|position| position.timestamp);
    let (sequence, timestamp) = match to {
        RewindTo::First | RewindTo::Sequence(0..=1) => (0, Timestamp::EPOCH),
        RewindTo::Sequence(to) => {
            let sequences = known().map(|position| position.cursor.sequence);
            let read_up_to = sequences.min().unwrap_or_default();
            if to > read_up_to {
                return Err(RewindError::SequenceAhead { to, read_up_to });
            }
            // What stands before it is not newer than anything that was read.
            (to - 1, timestamps().max().unwrap_or_default())
        }
        RewindTo::Time(to) => {
            if known().any(Position::is_unread) {
                return Err(RewindError::Pending);
            }
            let read_up_to = timestamps().min().unwrap_or_default();
            if to > read_up_to {
                return Err(RewindError::TimeAhead { to, read_up_to });
            }
            (0, to)
        }
    };
    Ok(Position {
        origin: highest.origin,
        cursor: Cursor {
            generation: highest.cursor.generation + 1,
            sequence,
        },
        timestamp,
        fingerprint: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: Timestamp = Timestamp::from_seconds(1000);

    #[expect(clippy::unnecessary_wraps, reason = "a partition may have no position")]
    fn at(generation: u32, sequence: u64) -> Option<Position> {
        Some(Position {
            origin: Origin::Stream { created: CREATED },
            cursor: Cursor {
                generation,
                sequence,
            },
            timestamp: Timestamp::from_seconds(5000 + sequence),
            fingerprint: Some(sequence * 7),
        })
    }

    fn stream(first: u64, last: u64, verified: u64) -> StreamView {
        StreamView {
            created: CREATED,
            first_sequence: first,
            last_sequence: last,
            at_position: Some((Timestamp::from_seconds(5000 + verified), verified * 7)),
        }
    }

    fn why(resume: Resume) -> Option<Rewrite> {
        match resume {
            Resume::Rewritten { why, .. } => Some(why),
            Resume::Fresh | Resume::Continue { .. } => None,
        }
    }

    #[test]
    fn a_standing_history_goes_on_after_the_lowest_position() {
        let after = at(0, 40).expect("a position");
        assert_eq!(
            resume(&[at(0, 50), at(0, 40), None], &stream(1, 60, 50)),
            Resume::Continue { after, missing: 0 }
        );
        assert_eq!(resume(&[None, None], &stream(1, 60, 50)), Resume::Fresh);
    }

    #[test]
    fn purged_messages_are_counted_exactly() {
        let after = at(0, 40).expect("a position");
        let purged = StreamView {
            at_position: None,
            ..stream(61, 90, 50)
        };
        assert_eq!(
            resume(&[at(0, 50), at(0, 40)], &purged),
            Resume::Continue { after, missing: 20 }
        );
        let emptied = StreamView {
            at_position: None,
            ..stream(51, 50, 50)
        };
        assert_eq!(
            resume(&[at(0, 50)], &emptied),
            Resume::Continue {
                after: at(0, 50).expect("a position"),
                missing: 0
            }
        );
    }

    #[test]
    fn a_rewritten_history_begins_a_generation_before_the_lowest_timestamp() {
        let positions = [at(3, 50), at(3, 40)];
        let other = StreamView {
            created: Timestamp::from_seconds(1),
            ..stream(1, 90, 51)
        };
        let rewritten = resume(&positions, &other);
        assert_eq!(
            rewritten,
            Resume::Rewritten {
                generation: 4,
                from: Timestamp::from_seconds(5040).minus(REWRITE_MARGIN),
                why: Rewrite::Recreated,
            }
        );
        assert_eq!(
            why(resume(&positions, &stream(1, 49, 50))),
            Some(Rewrite::RolledBack)
        );
        assert_eq!(
            why(resume(&positions, &stream(1, 90, 51))),
            Some(Rewrite::Replaced)
        );
        assert_eq!(
            why(resume(&[at(3, 50), at(2, 70)], &stream(1, 90, 50))),
            Some(Rewrite::Mixed)
        );
        let session = at(3, 50).map(|position| Position {
            origin: Origin::Session,
            ..position
        });
        assert_eq!(
            why(resume(&[session], &stream(1, 90, 50))),
            Some(Rewrite::Recreated)
        );
    }

    #[test]
    fn a_stream_that_was_stamped_anew_is_the_same_by_its_message() {
        let created = Timestamp::from_seconds(1);
        let stamped = StreamView {
            created,
            ..stream(1, 60, 50)
        };
        let after = at(2, 40).map(|lowest| Position {
            origin: Origin::Stream { created },
            ..lowest
        });
        let after = after.expect("a position");
        let positions = [at(2, 50), at(2, 40)];
        assert_eq!(
            resume(&positions, &stamped),
            Resume::Continue { after, missing: 0 }
        );
        // Without that message nothing is proven.
        let purged = StreamView {
            at_position: None,
            ..stamped
        };
        assert_eq!(why(resume(&positions, &purged)), Some(Rewrite::Recreated));
        let unread = at(2, 50).map(|position| Position {
            fingerprint: None,
            ..position
        });
        assert_eq!(why(resume(&[unread], &stamped)), Some(Rewrite::Recreated));
    }

    #[test]
    fn a_second_rewrite_before_the_first_message_of_a_generation_is_noticed() {
        let begun = at(2, 50).map(|position| Position {
            fingerprint: None,
            ..position
        });
        let older = StreamView {
            at_position: Some((Timestamp::from_seconds(5050), 1)),
            ..stream(1, 60, 50)
        };
        assert_eq!(why(resume(&[begun], &older)), None);
        let newer = StreamView {
            at_position: Some((Timestamp::from_seconds(5051), 1)),
            ..older
        };
        assert_eq!(why(resume(&[begun], &newer)), Some(Rewrite::Replaced));
    }

    #[test]
    fn a_rollback_between_two_positions_is_noticed_at_the_higher() {
        assert_eq!(
            why(resume(&[at(0, 50), at(0, 40)], &stream(1, 45, 40))),
            Some(Rewrite::RolledBack)
        );
    }

    #[test]
    fn a_rewind_begins_a_generation_that_a_standing_stream_goes_on_with() {
        let positions = [at(2, 50), None, at(2, 40)];
        let to = |to| rewind(&positions, to).expect("it can be read again");
        let base = to(RewindTo::Sequence(31));
        assert_eq!(
            base.cursor,
            Cursor {
                generation: 3,
                sequence: 30
            }
        );
        for (base, verified) in [(base, 30), (to(RewindTo::Sequence(40)), 39)] {
            assert_eq!(
                resume(&[Some(base); 3], &stream(1, 60, verified)),
                Resume::Continue {
                    after: base,
                    missing: 0
                }
            );
        }
        for (target, timestamp) in [
            (RewindTo::First, Timestamp::EPOCH),
            (RewindTo::Sequence(1), Timestamp::EPOCH),
            (
                RewindTo::Time(Timestamp::from_seconds(5010)),
                Timestamp::from_seconds(5010),
            ),
        ] {
            let base = to(target);
            assert_eq!((base.cursor.sequence, base.timestamp), (0, timestamp));
            assert_eq!(base.cursor.generation, 3);
        }
    }

    #[test]
    fn a_rewind_never_skips_what_was_not_read() {
        let positions = [at(2, 50), at(2, 40)];
        assert_eq!(
            rewind(&positions, RewindTo::Sequence(41)),
            Err(RewindError::SequenceAhead {
                to: 41,
                read_up_to: 40
            })
        );
        let (to, read_up_to) = (Timestamp::from_seconds(5041), Timestamp::from_seconds(5040));
        assert_eq!(
            rewind(&positions, RewindTo::Time(to)),
            Err(RewindError::TimeAhead { to, read_up_to })
        );
        assert!(rewind(&positions, RewindTo::Time(read_up_to)).is_ok());
    }

    #[test]
    fn a_rewind_that_was_not_read_from_yet_says_nothing_of_time() {
        // One partition was behind: what is newer than its timestamp it never read.
        let base = rewind(&[at(0, 50), at(0, 40)], RewindTo::Sequence(31)).unwrap();
        let rewound = [Some(base), Some(base)];
        let to = RewindTo::Time(base.timestamp);
        assert_eq!(rewind(&rewound, to), Err(RewindError::Pending));
        assert!(rewind(&rewound, RewindTo::Sequence(30)).is_ok());
        let further = rewind(&rewound, RewindTo::Sequence(31));
        assert!(matches!(further, Err(RewindError::SequenceAhead { .. })));
        assert!(rewind(&rewound, RewindTo::First).is_ok());
        // One that begins at the first message has passed over none.
        let base = rewind(&rewound, RewindTo::First).unwrap();
        assert!(rewind(&[Some(base)], RewindTo::Time(base.timestamp)).is_ok());
    }

    #[test]
    fn a_rewind_to_a_sequence_outlives_a_stream_that_is_stamped_anew() {
        let begin =
            |positions: &[Option<Position>], stream: &StreamView| match resume(positions, stream) {
                Resume::Rewritten { from, .. } => Some(from),
                Resume::Fresh | Resume::Continue { .. } => None,
            };
        let rewound = rewind(&[at(0, 5000), at(0, 4000)], RewindTo::Sequence(31)).ok();
        let stamped = StreamView {
            created: Timestamp::from_seconds(1),
            ..stream(1, 5000, 30)
        };
        let from_there = Timestamp::from_seconds(5030).minus(REWRITE_MARGIN);
        assert_eq!(begin(&[rewound, rewound], &stamped), Some(from_there));
        // Another stream, by its message: everything since the last that was read.
        let other = StreamView {
            at_position: Some((Timestamp::from_seconds(99_000), 1)),
            ..stamped
        };
        let from_last = Timestamp::from_seconds(10_000).minus(REWRITE_MARGIN);
        assert_eq!(begin(&[rewound, rewound], &other), Some(from_last));
        let purged = StreamView {
            at_position: None,
            ..stamped
        };
        assert_eq!(begin(&[rewound, rewound], &purged), Some(Timestamp::EPOCH));
        // A crash left one partition there when the others had read on.
        let read_on = at(1, 4500);
        let rolled_back = stream(1, 4400, 4400);
        assert_eq!(
            begin(&[read_on, rewound], &rolled_back),
            Some(Timestamp::EPOCH)
        );
        assert_eq!(
            begin(&[read_on], &rolled_back),
            Some(Timestamp::from_seconds(9500).minus(REWRITE_MARGIN))
        );
    }

    #[test]
    fn what_no_stream_keeps_cannot_be_read_again() {
        let to = |positions: &[Option<Position>]| rewind(positions, RewindTo::First);
        assert_eq!(to(&[None, None]), Err(RewindError::Fresh));
        assert_eq!(to(&[at(3, 50), at(2, 70)]), Err(RewindError::Mixed));
        let session = at(3, 50).map(|position| Position {
            origin: Origin::Session,
            ..position
        });
        assert_eq!(to(&[session]), Err(RewindError::NoStream));
    }

    #[test]
    fn a_stream_that_changed_after_a_rewind_is_noticed() {
        let base = rewind(&[at(0, 50), at(0, 40)], RewindTo::Sequence(31)).ok();
        assert_eq!(
            why(resume(&[base], &stream(1, 29, 30))),
            Some(Rewrite::RolledBack)
        );
        let other = StreamView {
            at_position: Some((Timestamp::from_seconds(5051), 1)),
            ..stream(1, 60, 30)
        };
        assert_eq!(why(resume(&[base], &other)), Some(Rewrite::Replaced));
    }
}
