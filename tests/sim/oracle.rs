//! What the input demands of the output, written from the documents alone.
//!
//! The oracle shares no code with the domain: it knows messages as text and numbers. For each partition it
//! keeps what the durable commits claim to cover, in order, and at the end plays exactly that through the
//! rules of the page.
//!
//! | the input was | demanded |
//! |---|---|
//! | read, and covered by a durable position | applied once, whatever became of the stream afterwards |
//! | rolled back, purged or (without a stream) lost in a crash before that | nothing |
//! | still in the stream at the end | covered by every means: nothing may be skipped |

use std::collections::{BTreeMap, BTreeSet};

use tocsin::core::position::Cursor;

use crate::world::{Failure, Published};

/// What one message says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Change {
        user: &'static str,
        alarm: &'static str,
        status: &'static str,
        at_s: u64,
    },
    Request {
        user: &'static str,
    },
    /// Nothing that can be read.
    Junk,
    /// Makes a worker panic, each time.
    Poison,
}

/// One message of the input, as the broker has stored it.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Unique in the world, whatever the broker's sequence.
    pub(crate) uid: u64,
    pub(crate) timestamp: u64,
    pub(crate) partition: usize,
    pub(crate) lane: u64,
    pub(crate) kind: Kind,
    pub(crate) bytes: String,
}

/// See the module.
pub(crate) struct Oracle {
    retention: u64,
    has_stream: bool,
    /// What was read for each partition and may yet be covered.
    views: Vec<BTreeMap<Cursor, Message>>,
    covered: Vec<Cursor>,
    logs: Vec<Vec<(Cursor, Message)>>,
}

struct Register {
    at_s: u64,
    /// In the order seen at that instant; the last decides.
    seen: Vec<&'static str>,
    is_reported: bool,
    forgotten_after: u64,
}

/// Id (where it can be known), and content.
type Owed = (Option<String>, String);

impl Oracle {
    pub(crate) fn new(num_partitions: usize, retention: u64, has_stream: bool) -> Self {
        Self {
            retention,
            has_stream,
            views: vec![BTreeMap::new(); num_partitions],
            covered: vec![Cursor::default(); num_partitions],
            logs: vec![Vec::new(); num_partitions],
        }
    }

    /// The reader went over these messages, which the broker held.
    pub(crate) fn read(&mut self, generation: u32, sequence: u64, message: &Message) {
        let cursor = Cursor {
            generation,
            sequence,
        };
        let view = &mut self.views[message.partition];
        view.entry(cursor).or_insert_with(|| message.clone());
    }

    /// The owner of a partition died: what was read and is not covered must be read again.
    pub(crate) fn forget_uncovered(&mut self, partition: usize) {
        let covered = self.covered[partition];
        self.views[partition].retain(|&cursor, _| cursor <= covered);
    }

    /// A durable commit claims everything up to here. Its owner began with the generation `begins_at`, and
    /// left what was before it where it was.
    pub(crate) fn cover(&mut self, partition: usize, to: Cursor, begins_at: u32) {
        let from = self.covered[partition];
        let claimed = self.views[partition]
            .range(from..=to)
            .filter(|&(&cursor, _)| cursor > from)
            .filter(|(cursor, _)| cursor.generation >= begins_at);
        self.logs[partition].extend(claimed.map(|(&cursor, message)| (cursor, message.clone())));
        self.covered[partition] = to;
    }

    /// Nothing that the broker still holds was passed over.
    pub(crate) fn check_complete<'a>(
        &self,
        held: impl Iterator<Item = &'a Message>,
    ) -> Result<(), Failure> {
        let applied: BTreeSet<_> = self.logs.iter().flatten().map(|(_, it)| it.uid).collect();
        for message in held {
            if !applied.contains(&message.uid) {
                let detail = format!("message {} of the input was never covered", message.uid);
                return Err(Failure::new("I-11 input is complete", detail));
            }
        }
        Ok(())
    }

    /// The output is exactly what the covered input demands: per lane, in order, each once.
    pub(crate) fn check_output(&self, output: &[Published]) -> Result<(), Failure> {
        let mut expected: BTreeMap<u64, Vec<Owed>> = BTreeMap::new();
        for log in &self.logs {
            let mut registers = BTreeMap::new();
            for (cursor, message) in log {
                if let Some(content) = self.answer(&mut registers, message) {
                    let id = self.has_stream.then(|| id(*cursor, message.timestamp));
                    expected
                        .entry(message.lane)
                        .or_default()
                        .push((id, content));
                }
            }
        }
        let mut actual: BTreeMap<u64, Vec<&Published>> = BTreeMap::new();
        let mut ids = BTreeSet::new();
        for published in output {
            if ids.insert(&published.id) {
                actual.entry(published.lane).or_default().push(published);
            }
        }
        let lanes: BTreeSet<_> = expected.keys().chain(actual.keys()).copied().collect();
        for lane in lanes {
            let expected = expected.remove(&lane).unwrap_or_default();
            compare(&expected, &actual.remove(&lane).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Applies one message by the rules of the page; returns what must be published for it.
    fn answer(
        &self,
        registers: &mut BTreeMap<(&'static str, &'static str), Register>,
        message: &Message,
    ) -> Option<String> {
        match &message.kind {
            Kind::Junk => Some(format!("dead letter bad_json {}", message.bytes)),
            Kind::Poison => Some(format!("dead letter internal {}", message.bytes)),
            Kind::Change {
                user,
                alarm,
                status,
                at_s,
            } => {
                let now = message.timestamp;
                let known = registers
                    .remove(&(*user, *alarm))
                    .filter(|it| it.seen.last() != Some(&"CLEARED") || now <= it.forgotten_after);
                let mut register = known.unwrap_or(Register {
                    at_s: *at_s,
                    seen: Vec::new(),
                    is_reported: false,
                    forgotten_after: 0,
                });
                let is_news = *at_s > register.at_s
                    || *at_s == register.at_s && !register.seen.contains(status);
                if is_news {
                    register.is_reported &= register.seen.last() == Some(status);
                    if *at_s > register.at_s {
                        register.seen.clear();
                    }
                    register.seen.push(status);
                    register.at_s = *at_s;
                    // A tombstone's age is kept in whole seconds, never shorter than asked for.
                    let later = now.max(at_s * 1_000_000_000).div_ceil(1_000_000_000);
                    register.forgotten_after = later * 1_000_000_000 + self.retention;
                }
                registers.insert((*user, *alarm), register);
                None
            }
            Kind::Request { user } => {
                let mut due = Vec::new();
                for ((whose, alarm), register) in registers.iter_mut() {
                    let status = register.seen.last().copied().unwrap_or_default();
                    if whose == user && status != "CLEARED" && !register.is_reported {
                        register.is_reported = true;
                        due.push((register.at_s, *alarm, status));
                    }
                }
                due.sort_unstable();
                let due: Vec<_> = due
                    .iter()
                    .map(|(at_s, alarm, status)| format!("{alarm} {status} {at_s}"))
                    .collect();
                (!due.is_empty()).then(|| format!("{user}: {}", due.join(", ")))
            }
        }
    }
}

/// Rule 13 of the no-loss protocol.
fn id(cursor: Cursor, timestamp: u64) -> String {
    let suffix = match cursor.generation {
        0 => String::new(),
        generation => format!("-{generation}"),
    };
    format!("{}-{timestamp}{suffix}", cursor.sequence)
}

fn compare(expected: &[Owed], actual: &[&Published]) -> Result<(), Failure> {
    let is_same = |(owed, published): (&Owed, &&Published)| {
        owed.0.as_ref().is_none_or(|id| *id == published.id) && owed.1 == published.content
    };
    if expected.len() == actual.len() && expected.iter().zip(actual).all(is_same) {
        return Ok(());
    }
    let detail = format!("expected {expected:#?}\npublished {actual:#?}");
    let expected: BTreeMap<_, _> = numbered(expected.iter().map(|(id, it)| (id.clone(), it)));
    let actual: BTreeMap<_, _> = numbered(actual.iter().map(|it| {
        let is_known = expected.keys().any(|(id, _)| id.is_some());
        (is_known.then(|| it.id.clone()), &it.content)
    }));
    let check = if expected == actual {
        "I-05 order within a lane"
    } else if actual.keys().any(|id| !expected.contains_key(id)) {
        "I-07 a message that nothing asked for"
    } else if expected.keys().any(|id| !actual.contains_key(id)) {
        "I-10 a digest is lost"
    } else {
        "I-10 a digest holds exactly what is due"
    };
    Err(Failure::new(check, detail))
}

/// Messages by id; where ids cannot be known, by their turn.
fn numbered<'a>(
    messages: impl Iterator<Item = (Option<String>, &'a String)>,
) -> BTreeMap<(Option<String>, usize), &'a String> {
    messages
        .enumerate()
        .map(|(turn, (id, content))| {
            let turn = if id.is_some() { 0 } else { turn };
            ((id, turn), content)
        })
        .collect()
}
