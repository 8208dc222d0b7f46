//! One scenario as it is played: what to send next, and whether what came is right. Pure: it neither waits nor sends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::messages::{self, Digest, Entry, Status};
use super::super::oracle::Oracle;
use super::scenario::{Meaning, Message, Scenario, second};
use crate::bus::wire::{CHANGE, REQUEST};

/// The second of the first sentinel.
const FIRST_SENTINEL: u64 = 100_000;

/// A digest that came, or one part of it.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// Whose it is.
    pub(super) user: String,
    /// As it came.
    pub(super) payload: Vec<u8>,
    /// What it says, or why it is none.
    pub(super) digest: Result<Digest, String>,
    /// Which part of how many.
    pub(super) part: Option<(usize, usize)>,
}

/// A message of a play's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Line {
    /// Ours.
    Sent { subject: String, payload: Vec<u8> },
    /// A digest.
    Came { payload: Vec<u8> },
}

/// What was wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fault {
    /// In words.
    pub(super) why: String,
    /// The digest that should have come.
    pub(super) expected: Option<String>,
    /// Whether nothing came at all: the service may be gone.
    pub(super) is_silence: bool,
}

/// How a play ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// Every digest was right.
    Passed,
    /// One was wrong, or did not come.
    Failed(Fault),
}

/// What is not as the specification writes it, and means the same.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Watch {
    /// Other bytes.
    Bytes,
    /// The same instant in another form.
    Times,
    /// A request with nothing due is answered.
    Empty,
}

/// What is waited for.
#[derive(Clone, Debug)]
struct Awaited {
    user: String,
    entries: Vec<Entry<String>>,
    /// Of the parts that came.
    so_far: Vec<Entry<String>>,
    num_parts: usize,
}

/// How many requests a user sent, and how many of them were answered.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    requests: usize,
    answers: usize,
}

/// A scenario under way.
#[derive(Clone, Debug)]
pub(super) struct Play {
    scenario: Scenario,
    ahead: VecDeque<Message>,
    /// Whose end is to be looked at still.
    barriers: VecDeque<String>,
    oracle: Oracle<String, String>,
    awaited: Option<Awaited>,
    counts: BTreeMap<String, Count>,
    num_sentinels: u64,
    record: Vec<Line>,
    differences: BTreeMap<Watch, String>,
    outcome: Option<Outcome>,
}

impl Play {
    /// Ends when the last user's last request was followed to its end: what came twice is seen.
    pub(super) fn new(scenario: Scenario) -> Self {
        let barriers = scenario.users.iter().cloned().collect();
        Self {
            ahead: scenario.messages.iter().cloned().collect(),
            barriers,
            ..Self::without_barrier(scenario)
        }
    }

    /// Ends as soon as the last awaited digest came.
    pub(super) fn without_barrier(scenario: Scenario) -> Self {
        Self {
            ahead: scenario.messages.iter().cloned().collect(),
            scenario,
            barriers: VecDeque::new(),
            oracle: Oracle::new(),
            awaited: None,
            counts: BTreeMap::new(),
            num_sentinels: 0,
            record: Vec::new(),
            differences: BTreeMap::new(),
            outcome: None,
        }
    }

    pub(super) const fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// What was sent so far and must be refused.
    pub(super) fn refused(&self) -> impl Iterator<Item = &Message> {
        let num_sent = self.scenario.messages.len() - self.ahead.len();
        let sent = self.scenario.messages.iter().take(num_sent);
        sent.filter(|it| matches!(it.meaning, Meaning::Refused))
    }

    /// Everything that was sent and that came.
    pub(super) fn record(&self) -> &[Line] {
        &self.record
    }

    /// `None` while it is under way.
    pub(super) const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// What was different and not wrong, if it was.
    pub(super) fn difference(&self, watch: Watch) -> Option<&str> {
        self.differences.get(&watch).map(String::as_str)
    }

    /// Everybody whose digests are this play's business.
    pub(super) fn all_users(&self) -> impl Iterator<Item = &String> {
        self.scenario.users.iter().chain(&self.scenario.strangers)
    }

    /// What to send now, up to the next request whose digest must be waited for.
    pub(super) fn advance(&mut self) -> Vec<(String, Vec<u8>)> {
        let begin = self.record.len();
        self.awaited = None;
        while self.awaited.is_none() && self.outcome.is_none() {
            if let Some(message) = self.ahead.pop_front() {
                self.send(message);
            } else if let Some(user) = self.barriers.pop_front() {
                self.send_sentinel(&user);
            } else {
                self.outcome = Some(Outcome::Passed);
            }
        }
        let sent = self.record.iter().skip(begin);
        sent.filter_map(|line| match line {
            Line::Sent { subject, payload } => Some((subject.clone(), payload.clone())),
            Line::Came { .. } => None,
        })
        .collect()
    }

    fn send(&mut self, message: Message) {
        let Message {
            subject,
            payload,
            meaning,
        } = message;
        self.record.push(Line::Sent { subject, payload });
        match meaning {
            Meaning::Change {
                user,
                alarm,
                status,
                at,
            } => {
                self.oracle.change(user, alarm, status, at);
            }
            Meaning::Request { user } => self.await_digest(&user),
            Meaning::Refused => {}
        }
    }

    fn await_digest(&mut self, user: &str) {
        self.counts.entry(user.to_owned()).or_default().requests += 1;
        let entries = self.oracle.request(&user.to_owned());
        if entries.is_empty() {
            return self.send_sentinel(user);
        }
        self.awaited = Some(Awaited {
            user: user.to_owned(),
            entries,
            so_far: Vec::new(),
            num_parts: 0,
        });
    }

    /// Makes another alarm due and asks for it: whatever the service had to say before comes before that digest.
    fn send_sentinel(&mut self, user: &str) {
        self.num_sentinels += 1;
        let alarm = format!("sentinel-{}", self.num_sentinels);
        let at = second(FIRST_SENTINEL + self.num_sentinels);
        self.send(Message {
            subject: CHANGE.to_owned(),
            payload: messages::change(user, &alarm, Status::Critical, at).into_bytes(),
            meaning: Meaning::Change {
                user: user.to_owned(),
                alarm,
                status: Status::Critical,
                at,
            },
        });
        self.send(Message {
            subject: REQUEST.to_owned(),
            payload: messages::request(user).into_bytes(),
            meaning: Meaning::Request {
                user: user.to_owned(),
            },
        });
    }

    /// Takes a digest of one of its users; returns what to send now.
    pub(super) fn on_digest(&mut self, arrived: Arrived) -> Vec<(String, Vec<u8>)> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        let payload = arrived.payload.clone();
        self.record.push(Line::Came { payload });
        match self.judge(arrived) {
            Ok(true) => self.advance(),
            Ok(false) => Vec::new(),
            Err(why) => {
                self.fail(why, false);
                Vec::new()
            }
        }
    }

    /// Nothing came for so long.
    pub(super) fn on_silence(&mut self, limit: Duration) {
        if self.outcome.is_none() {
            self.fail(format!("no digest came within {limit:?}"), true);
        }
    }

    fn fail(&mut self, why: String, is_silence: bool) {
        let awaited = self.awaited.as_ref();
        let expected = awaited.map(|it| messages::digest(&it.user, &it.entries));
        self.outcome = Some(Outcome::Failed(Fault {
            why,
            expected,
            is_silence,
        }));
    }

    /// Whether the awaited digest is there now.
    fn judge(&mut self, arrived: Arrived) -> Result<bool, String> {
        let digest = arrived.digest?;
        self.note_differences(&digest, &arrived.payload, arrived.part.is_some());
        let count = self.counts.entry(arrived.user.clone()).or_default();
        let is_asked = count.answers < count.requests;
        let user = &arrived.user;
        if !is_asked {
            return Err(format!("a digest for {user:?}, which nobody asked for"));
        }
        if digest.entries.is_empty() {
            count.answers += 1;
            return Ok(false);
        }
        let awaited = self.awaited.as_mut();
        let Some(awaited) = awaited.filter(|it| it.user == arrived.user) else {
            return Err(format!("a digest for {user:?} while nothing of it is due"));
        };
        awaited.so_far.extend(digest.entries);
        if let Some((number, of)) = arrived.part {
            awaited.num_parts += 1;
            if awaited.num_parts != number {
                return Err(format!(
                    "part {number} of {of} came as number {}",
                    awaited.num_parts
                ));
            }
            if number < of {
                return Ok(false);
            }
        }
        if let Some(why) = mistake(&awaited.entries, &awaited.so_far) {
            return Err(why);
        }
        count.answers += 1;
        Ok(true)
    }

    fn note_differences(&mut self, digest: &Digest, payload: &[u8], is_part: bool) {
        let came = String::from_utf8_lossy(payload).into_owned();
        if digest.entries.is_empty() && !is_part {
            self.differences.entry(Watch::Empty).or_insert(came);
            return;
        }
        if !digest.has_exact_times {
            let came = came.clone();
            self.differences.entry(Watch::Times).or_insert(came);
        }
        if !digest.is_exact {
            self.differences.entry(Watch::Bytes).or_insert(came);
        }
    }
}

/// What is wrong with a digest, in words; `None` when nothing is.
fn mistake(expected: &[Entry<String>], came: &[Entry<String>]) -> Option<String> {
    if expected == came {
        return None;
    }
    let mut seen = BTreeSet::new();
    for entry in came {
        let alarm = &entry.alarm;
        if !seen.insert(alarm) {
            return Some(format!("{alarm:?} is in the digest twice"));
        }
        let Some(due) = expected.iter().find(|it| it.alarm == entry.alarm) else {
            return Some(format!("{alarm:?} is in the digest and not due"));
        };
        if due.status != entry.status {
            let (is, should) = (entry.status, due.status);
            return Some(format!("{alarm:?} is {is} instead of {should}"));
        }
        if due.at != entry.at {
            let (is, should) = (entry.at, due.at);
            return Some(format!("{alarm:?} is of {is} instead of {should}"));
        }
    }
    let missing = expected.iter().find(|it| !seen.contains(&it.alarm));
    Some(missing.map_or_else(
        || "the alarms are in another order".to_owned(),
        |it| format!("{:?} is due and not in the digest", it.alarm),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(user: &str, payload: &str) -> Arrived {
        Arrived {
            user: user.to_owned(),
            payload: payload.as_bytes().to_vec(),
            digest: Digest::read(payload.as_bytes()),
            part: None,
        }
    }

    fn entry(alarm: &str, status: Status, at: u64) -> Entry<String> {
        Entry {
            alarm: alarm.to_owned(),
            status,
            at: second(at),
        }
    }

    fn digest(entries: &[Entry<String>]) -> Arrived {
        arrived("u", &messages::digest("u", entries))
    }

    fn sentinel(number: u64) -> Arrived {
        let alarm = format!("sentinel-{number}");
        digest(&[entry(&alarm, Status::Critical, FIRST_SENTINEL + number)])
    }

    fn begun(notation: &str) -> Play {
        let mut play = Play::new(Scenario::example("u", notation));
        play.advance();
        play
    }

    fn why(play: &Play) -> &str {
        match play.outcome() {
            Some(Outcome::Failed(fault)) => &fault.why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_is_followed_to_its_end_before_the_next_message() {
        let mut play = Play::new(Scenario::example("u", "aC1 S bW2 S"));
        assert_eq!(play.advance().len(), 2);
        assert_eq!(
            play.on_digest(digest(&[entry("a", Status::Critical, 1)]))
                .len(),
            2
        );
        // The sentinel at the end.
        assert_eq!(
            play.on_digest(digest(&[entry("b", Status::Warning, 2)]))
                .len(),
            2
        );
        assert_eq!(play.outcome(), None);
        assert!(play.on_digest(sentinel(1)).is_empty());
        assert_eq!(play.outcome(), Some(&Outcome::Passed));
        assert_eq!(play.record().len(), 9);
    }

    #[test]
    fn behind_a_request_with_nothing_due_a_sentinel_is_asked_for() {
        let mut play = Play::new(Scenario::example("u", "aX1 S"));
        assert_eq!(play.advance().len(), 4);
        assert_eq!(play.on_digest(sentinel(1)).len(), 2);
        play.on_digest(sentinel(2));
        assert_eq!(play.outcome(), Some(&Outcome::Passed));
    }

    #[test]
    fn an_empty_digest_is_different_and_one_that_nobody_asked_for_is_wrong() {
        let empty = || arrived("u", "{\"UserID\":\"u\",\"ActiveAlarms\":[]}");
        let mut play = begun("S");
        play.on_digest(empty());
        play.on_digest(sentinel(1));
        play.on_digest(sentinel(2));
        assert_eq!(play.outcome(), Some(&Outcome::Passed));
        assert!(play.difference(Watch::Empty).is_some());

        let mut play = begun("S");
        play.on_digest(empty());
        play.on_digest(empty());
        play.on_digest(empty());
        assert!(why(&play).contains("nobody asked for"), "{}", why(&play));
    }

    #[test]
    fn what_is_wrong_is_said_in_words() {
        let a = || entry("a", Status::Critical, 1);
        for (entries, what) in [
            (vec![a(), a()], "\"a\" is in the digest twice"),
            (
                vec![a(), entry("x", Status::Critical, 1)],
                "\"x\" is in the digest and not due",
            ),
            (
                vec![entry("a", Status::Warning, 1)],
                "\"a\" is WARNING instead of CRITICAL",
            ),
            (
                vec![entry("a", Status::Critical, 2)],
                "\"a\" is of 2026-01-01T00:00:02Z instead of 2026-01-01T00:00:01Z",
            ),
            (vec![a()], "\"b\" is due and not in the digest"),
            (vec![entry("b", Status::Warning, 2), a()], "another order"),
        ] {
            let mut play = begun("aC1 bW2 S");
            play.on_digest(digest(&entries));
            assert!(why(&play).contains(what), "{}", why(&play));
        }
    }

    #[test]
    fn a_digest_that_comes_twice_is_seen_at_the_sentinel() {
        let mut play = begun("aC1 S");
        let a = digest(&[entry("a", Status::Critical, 1)]);
        play.on_digest(a.clone());
        play.on_digest(a);
        assert!(why(&play).contains("not due"), "{}", why(&play));
    }

    #[test]
    fn a_digest_of_a_stranger_is_wrong() {
        let mut play = Play::new(Scenario::example("u", "aC1 S").stranger("v"));
        play.advance();
        play.on_digest(arrived(
            "v",
            &messages::digest("v", &[entry("a", Status::Critical, 1)]),
        ));
        assert!(why(&play).contains("nobody asked for"), "{}", why(&play));
    }

    #[test]
    fn parts_are_joined_in_their_order() {
        let part = |entry, part| Arrived {
            part: Some(part),
            ..digest(&[entry])
        };
        let (a, b) = (
            entry("a", Status::Critical, 1),
            entry("b", Status::Warning, 2),
        );
        let mut play = begun("aC1 bW2 S");
        play.on_digest(part(a.clone(), (1, 2)));
        assert_eq!(play.on_digest(part(b, (2, 2))).len(), 2);
        assert_eq!(play.outcome(), None);
        let mut play = begun("aC1 bW2 S");
        play.on_digest(part(a, (2, 2)));
        assert!(why(&play).contains("part 2 of 2"), "{}", why(&play));
    }

    #[test]
    fn silence_and_what_is_no_digest_are_told_apart() {
        let mut play = begun("aC1 S");
        play.on_silence(Duration::from_secs(5));
        let Some(Outcome::Failed(fault)) = play.outcome() else {
            panic!("it failed");
        };
        assert!(fault.is_silence && fault.why.contains("within 5s"));
        assert!(fault.expected.as_ref().unwrap().contains("\"a\""));

        let mut play = begun("aC1 S");
        play.on_digest(arrived("u", "{\"UserID\":\"u\"}"));
        assert!(
            why(&play).contains("ActiveAlarms is missing"),
            "{}",
            why(&play)
        );
    }
}
