//! A short history of messages, written as data.

use super::super::messages::{self, Instant, Status};
use crate::bus::wire::{CHANGE, REQUEST};

/// 2026-01-01T00:00:00Z, in nanoseconds.
const BEGIN: u64 = 1_767_225_600_000_000_000;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// So many seconds after the beginning of 2026.
pub(super) const fn second(second: u64) -> Instant {
    Instant(BEGIN + second * NANOS_PER_SECOND)
}

/// So many nanoseconds after the first second of 2026.
pub(super) const fn nano(nano: u64) -> Instant {
    Instant(BEGIN + NANOS_PER_SECOND + nano)
}

/// What a message means to a service that does what the specification says.
#[derive(Clone, Debug)]
pub(super) enum Meaning {
    /// A change of an alarm.
    Change {
        user: String,
        alarm: String,
        status: Status,
        at: Instant,
    },
    /// A request of this user.
    Request { user: String },
    /// Nothing: it must be refused.
    Refused,
}

/// A message as it is sent.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) subject: String,
    pub(super) payload: Vec<u8>,
    pub(super) meaning: Meaning,
}

/// Messages in the order in which they are sent, of one user or of several.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// What is peculiar about it.
    pub(super) title: String,
    /// Who gets digests. The messages that are added are the last one's.
    pub(super) users: Vec<String>,
    /// Who must never get one.
    pub(super) strangers: Vec<String>,
    pub(super) messages: Vec<Message>,
}

impl Scenario {
    /// No messages yet.
    pub(super) fn new(title: impl Into<String>, user: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            users: vec![user.into()],
            strangers: Vec::new(),
            messages: Vec::new(),
        }
    }

    /// Reads the notation of the specification's examples: `aC1 aX2 S`.
    pub(super) fn example(user: impl Into<String>, notation: &str) -> Self {
        Self::new(notation, user).then(notation)
    }

    /// Goes on with what the notation says.
    pub(super) fn then(self, notation: &str) -> Self {
        notation
            .split_whitespace()
            .fold(self, |scenario, step| match parse_step(step) {
                Some((alarm, status, at)) => scenario.change(alarm, status, second(at)),
                None => scenario.request(),
            })
    }

    /// What follows is this user's.
    pub(super) fn user(mut self, user: &str) -> Self {
        self.users.retain(|known| known != user);
        self.users.push(user.to_owned());
        self
    }

    /// Nobody may send this user a digest.
    pub(super) fn stranger(mut self, user: impl Into<String>) -> Self {
        self.strangers.push(user.into());
        self
    }

    /// A change.
    pub(super) fn change(self, alarm: &str, status: Status, at: Instant) -> Self {
        let payload = messages::change(self.current(), alarm, status, at);
        self.change_written(CHANGE, payload, alarm, status, at)
    }

    /// A change in these very bytes on this subject.
    pub(super) fn change_written(
        mut self,
        subject: &str,
        payload: impl Into<Vec<u8>>,
        alarm: &str,
        status: Status,
        at: Instant,
    ) -> Self {
        let meaning = Meaning::Change {
            user: self.current().to_owned(),
            alarm: alarm.to_owned(),
            status,
            at,
        };
        self.push(subject, payload.into(), meaning);
        self
    }

    /// A request.
    pub(super) fn request(self) -> Self {
        let payload = messages::request(self.current());
        self.request_written(REQUEST, payload)
    }

    /// A request in these very bytes on this subject.
    pub(super) fn request_written(mut self, subject: &str, payload: impl Into<Vec<u8>>) -> Self {
        let user = self.current().to_owned();
        self.push(subject, payload.into(), Meaning::Request { user });
        self
    }

    /// The first message once more, on this subject.
    pub(super) fn copy_of_first(mut self, subject: &str) -> Self {
        if let Some(first) = self.messages.first().cloned() {
            let subject = subject.to_owned();
            self.messages.push(Message { subject, ..first });
        }
        self
    }

    /// A message that must change nothing.
    pub(super) fn refused(mut self, subject: &str, payload: impl Into<Vec<u8>>) -> Self {
        self.push(subject, payload.into(), Meaning::Refused);
        self
    }

    fn current(&self) -> &str {
        self.users.last().map(String::as_str).unwrap_or_default()
    }

    fn push(&mut self, subject: &str, payload: Vec<u8>, meaning: Meaning) {
        self.messages.push(Message {
            subject: subject.to_owned(),
            payload,
            meaning,
        });
    }
}

/// The alarm, its status and its second; `None` for a request.
fn parse_step(step: &str) -> Option<(&str, Status, u64)> {
    let (alarm, rest) = step.split_at_checked(1)?;
    let (letter, at) = rest.split_at_checked(1)?;
    let status = match letter {
        "W" => Status::Warning,
        "C" => Status::Critical,
        "X" => Status::Cleared,
        _ => return None,
    };
    Some((alarm, status, at.parse().ok()?))
}

/// Ids that no run had before.
#[derive(Debug)]
pub(super) struct Names {
    prefix: String,
    count: usize,
    random: fastrand::Rng,
}

impl Names {
    /// Users are named after the seed and after `run`, a number that no run had before.
    pub(super) fn new(seed: u64, run: u64) -> Self {
        Self {
            prefix: format!("verify-{seed}-{run:x}"),
            count: 0,
            random: fastrand::Rng::with_seed(run),
        }
    }

    /// A new user.
    pub(super) fn user(&mut self) -> String {
        self.count += 1;
        format!("{}-{}", self.prefix, self.count)
    }

    /// A new user whose id ends so.
    pub(super) fn user_like(&mut self, end: &str) -> String {
        self.user() + "-" + end
    }

    /// A new id that is a number and nothing else.
    pub(super) fn number(&mut self) -> String {
        self.random.u64(1 << 40..).to_string()
    }

    /// A new UUID in lower case, with a letter in it.
    pub(super) fn uuid(&mut self) -> String {
        let bits = self.random.u128(..);
        let hex = format!("{bits:032x}");
        let groups: Vec<_> = [0..8, 9..12, 13..16, 17..20, 20..32]
            .into_iter()
            .filter_map(|range| hex.get(range))
            .collect();
        match groups.as_slice() {
            [first, second, third, fourth, fifth] => {
                format!("{first}-a{second}-4{third}-a{fourth}-{fifth}")
            }
            _ => hex,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_notation_of_the_examples_is_read() {
        let scenario = Scenario::example("u", "aC1 bX12 S");
        let payloads: Vec<_> = scenario
            .messages
            .iter()
            .map(|it| String::from_utf8_lossy(&it.payload).into_owned())
            .collect();
        assert_eq!(
            payloads,
            [
                messages::change("u", "a", Status::Critical, second(1)),
                messages::change("u", "b", Status::Cleared, second(12)),
                messages::request("u"),
            ]
        );
        assert_eq!(second(1).to_string(), "2026-01-01T00:00:01Z");
        assert_eq!(nano(5).to_string(), "2026-01-01T00:00:01.000000005Z");
    }

    #[test]
    fn every_id_is_new() {
        let mut names = Names::new(7, 0xbeef);
        assert_eq!(names.user(), "verify-7-beef-1");
        assert_eq!(names.user_like("ann"), "verify-7-beef-2-ann");
        let (one, other) = (names.uuid(), names.uuid());
        assert_ne!(one, other);
        assert_ne!(one, one.to_uppercase());
        let lengths: Vec<_> = one.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{one}");
        assert_ne!(names.number(), names.number());
    }

    #[test]
    fn what_is_written_is_of_the_user_that_was_named_last() {
        let scenario = Scenario::new("two", "u").user("v").request();
        let [message] = scenario.messages.as_slice() else {
            panic!("one message");
        };
        assert!(matches!(&message.meaning, Meaning::Request { user } if user == "v"));
        assert_eq!(scenario.users, ["u", "v"]);
    }
}
