//! What the input demands of the output, written from the documents alone.
//!
//! The oracle shares no code with the domain: it knows messages as text and numbers. For each partition of a
//! store it keeps what the durable commits claim to cover, in order, and at the end plays exactly that through
//! the rules of the page.
//!
//! | the input was | demanded |
//! |---|---|
//! | read, and covered by a durable position | applied once, whatever became of the stream afterwards |
//! | rolled back, purged or (without a stream) lost in a crash before that | nothing |
//! | still in the stream at the end | covered by every means: nothing may be skipped |

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tocsin::core::position::Cursor;

use crate::world::{Failure, Whole};

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
    /// Whether its publisher waits for an answer.
    pub(crate) has_reply: bool,
}

/// The messages that one process has read, by partition.
type View = Vec<BTreeMap<Cursor, Arc<Message>>>;

/// What the durable commits of one partition cover.
#[derive(Clone, Default)]
struct Log {
    covered: Cursor,
    messages: Vec<(Cursor, Arc<Message>)>,
}

/// See the module.
pub(crate) struct Oracle {
    retention: u64,
    has_stream: bool,
    num_partitions: usize,
    views: BTreeMap<u64, View>,
    /// By store and partition.
    logs: Vec<Vec<Log>>,
    /// By store: what is in its state.
    applied: Vec<BTreeSet<u64>>,
}

struct Register {
    at_s: u64,
    /// In the order seen at that instant; the last decides.
    seen: Vec<&'static str>,
    is_reported: bool,
    forgotten_after: u64,
}

/// Id (where it can be known), and content.
type Demanded = (Option<String>, String);

impl Oracle {
    pub(crate) fn new(
        num_stores: usize,
        num_partitions: usize,
        retention: u64,
        has_stream: bool,
    ) -> Self {
        Self {
            retention,
            has_stream,
            num_partitions,
            views: BTreeMap::new(),
            logs: vec![vec![Log::default(); num_partitions]; num_stores],
            applied: vec![BTreeSet::new(); num_stores],
        }
    }

    /// A process went over this message, which the broker held.
    pub(crate) fn read(&mut self, process: u64, cursor: Cursor, message: &Arc<Message>) {
        let num_partitions = self.num_partitions;
        let view = self.views.entry(process);
        let view = view.or_insert_with(|| vec![BTreeMap::new(); num_partitions]);
        let place = view[message.partition].entry(cursor);
        place.or_insert_with(|| Arc::clone(message));
    }

    /// A durable commit of a process claims everything up to here.
    pub(crate) fn cover(&mut self, store: usize, process: u64, partition: usize, to: Cursor) {
        let log = &mut self.logs[store][partition];
        let from = log.covered;
        log.covered = from.max(to);
        let Some(view) = self.views.get(&process) else {
            return;
        };
        let claimed = view[partition].range(from..=from.max(to));
        for (&cursor, message) in claimed.filter(|&(&cursor, _)| cursor > from) {
            log.messages.push((cursor, Arc::clone(message)));
            self.applied[store].insert(message.uid);
        }
    }

    /// Whether a message is in the durable state of a store.
    pub(crate) fn is_applied(&self, store: usize, uid: u64) -> bool {
        self.applied[store].contains(&uid)
    }

    /// Nothing that the broker still holds was passed over.
    pub(crate) fn check_complete<'a>(
        &self,
        store: usize,
        held: impl Iterator<Item = &'a Arc<Message>>,
    ) -> Result<(), Failure> {
        for message in held {
            if !self.is_applied(store, message.uid) {
                let detail = format!("message {} of the input was never covered", message.uid);
                return Err(Failure::new("I-11 input is complete", detail));
            }
        }
        Ok(())
    }

    /// The output is exactly what the input covered by a store demands: per lane, in order, each once. Returns
    /// how many messages that were.
    pub(crate) fn check_output(
        &self,
        store: usize,
        output: &BTreeMap<u64, Vec<&Whole>>,
        is_parked: impl Fn(&str) -> bool,
    ) -> Result<u64, Failure> {
        let mut demanded: BTreeMap<u64, Vec<Demanded>> = BTreeMap::new();
        for log in &self.logs[store] {
            let mut registers = BTreeMap::new();
            for (cursor, message) in &log.messages {
                if let Some(content) = self.answer(&mut registers, message) {
                    let id = self.has_stream.then(|| id(*cursor, message.timestamp));
                    let lane = demanded.entry(message.lane).or_default();
                    lane.push((id, content));
                }
            }
        }
        let lanes: BTreeSet<_> = demanded.keys().chain(output.keys()).copied().collect();
        let mut num_judged = 0;
        for lane in lanes {
            let demanded = demanded.remove(&lane).unwrap_or_default();
            let published = output.get(&lane).map(Vec::as_slice).unwrap_or_default();
            compare(&demanded, published, &is_parked)?;
            num_judged += demanded.len() as u64;
        }
        Ok(num_judged)
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

/// The id of what a message of a stream causes, as the page names it.
fn id(cursor: Cursor, timestamp: u64) -> String {
    let suffix = match cursor.generation {
        0 => String::new(),
        generation => format!("-{generation}"),
    };
    format!("{}-{timestamp}{suffix}", cursor.sequence)
}

/// Order is kept by what was never parked: a lane goes on without what the broker refuses for good.
fn compare(
    demanded: &[Demanded],
    published: &[&Whole],
    is_parked: &impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let has_ids = demanded.iter().any(|(id, _)| id.is_some());
    let of_whole = |whole: &&Whole| (has_ids.then(|| whole.id.clone()), whole.content());
    let published_now: Vec<Demanded> = published.iter().map(of_whole).collect();
    if demanded == published_now {
        return Ok(());
    }
    let detail = || format!("demanded {demanded:#?}\npublished {published_now:#?}");
    let [wanted, there] = [demanded, published_now.as_slice()].map(|messages| {
        let mut messages = messages.to_vec();
        messages.sort();
        messages
    });
    if wanted != there {
        return Err(Failure::new(name_difference(&wanted, &there), detail()));
    }
    let has_parked = published.iter().any(|whole| is_parked(&whole.id));
    if has_parked && !has_ids {
        // Which of two with one content was parked cannot be told.
        return Ok(());
    }
    let in_order = |messages: &[Demanded]| -> Vec<Demanded> {
        let never_parked = |(id, _): &&Demanded| !id.as_deref().is_some_and(is_parked);
        messages.iter().filter(never_parked).cloned().collect()
    };
    if in_order(demanded) == in_order(&published_now) {
        return Ok(());
    }
    Err(Failure::new("I-05 order within a lane", detail()))
}

/// What is wrong where two sorted lists of messages differ.
fn name_difference(demanded: &[Demanded], published: &[Demanded]) -> &'static str {
    let ids =
        |messages: &[Demanded]| -> Vec<_> { messages.iter().map(|it| it.0.clone()).collect() };
    let (wanted, there) = (ids(demanded), ids(published));
    if wanted == there {
        let sorted = |messages: &[Demanded]| -> Vec<Vec<String>> {
            let entries = messages.iter().map(|(_, content)| {
                let (_, entries) = content.split_once(": ").unwrap_or(("", content));
                let mut entries: Vec<_> = entries.split(", ").map(str::to_owned).collect();
                entries.sort();
                entries
            });
            entries.collect()
        };
        return if sorted(demanded) == sorted(published) {
            "I-09 a digest runs from oldest to newest"
        } else {
            "I-10 a digest holds exactly what is due"
        };
    }
    if wanted.iter().any(|id| !there.contains(id)) || wanted.len() > there.len() {
        "I-10 a digest is lost"
    } else {
        "I-07 a message that nothing asked for"
    }
}
