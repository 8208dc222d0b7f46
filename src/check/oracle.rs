//! What a user's alarms are, and which digest a request must get, by the specification.
//!
//! For every request: due ⊆ digest ⊆ active, and without crashes digest = due. It forgets nothing: histories
//! here are shorter than any retention.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::messages::{Entry, Instant, Status};

/// One alarm on record.
#[derive(Clone, Debug)]
struct Register {
    at: Instant,
    status: Status,
    /// Which statuses were seen at this very instant, each a bit.
    seen: u8,
    /// Whether the status that it has now was reported.
    is_reported: bool,
}

const fn bit(status: Status) -> u8 {
    1 << status as u8
}

/// What became of a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fate {
    /// It decides from now on.
    Decides,
    /// It is older than what is on record.
    Stale,
    /// It was seen before.
    Duplicate,
}

/// The alarms of one user. `A` names an alarm, and must be ordered as the bytes of its name are.
#[derive(Clone, Debug)]
pub struct Alarms<A> {
    registers: BTreeMap<A, Register>,
}

impl<A> Default for Alarms<A> {
    fn default() -> Self {
        Self {
            registers: BTreeMap::new(),
        }
    }
}

impl<A: Ord + Clone> Alarms<A> {
    /// Takes a change in the order of arrival.
    pub fn change(&mut self, alarm: A, status: Status, at: Instant) -> Fate {
        let Some(known) = self.registers.get_mut(&alarm) else {
            let first = Register {
                at,
                status,
                seen: bit(status),
                is_reported: false,
            };
            self.registers.insert(alarm, first);
            return Fate::Decides;
        };
        if at < known.at {
            return Fate::Stale;
        }
        if at > known.at {
            known.seen = 0;
        } else if known.seen & bit(status) != 0 {
            return Fate::Duplicate;
        }
        known.is_reported &= known.status == status;
        known.at = at;
        known.status = status;
        known.seen |= bit(status);
        Fate::Decides
    }

    /// What is due, from oldest to newest, ties by the alarm's name; then none of it is due any more.
    pub fn request(&mut self) -> Vec<Entry<A>> {
        let registers = self.registers.iter_mut();
        let due = registers
            .filter(|(_, it)| it.status.is_active() && !it.is_reported)
            .map(|(alarm, it)| {
                it.is_reported = true;
                Entry {
                    alarm: alarm.clone(),
                    status: it.status,
                    at: it.at,
                }
            });
        let mut due: Vec<_> = due.collect();
        // Stable: they came by name.
        due.sort_by_key(|entry| entry.at);
        due
    }

    /// What is active, due or not, by name.
    pub fn active(&self) -> impl Iterator<Item = Entry<&A>> {
        let registers = self.registers.iter();
        registers
            .filter(|(_, it)| it.status.is_active())
            .map(|(alarm, it)| Entry {
                alarm,
                status: it.status,
                at: it.at,
            })
    }
}

/// The alarms of every user. `U` names a user.
#[derive(Clone, Debug)]
pub struct Oracle<U, A> {
    users: HashMap<U, Alarms<A>>,
}

impl<U, A> Default for Oracle<U, A> {
    fn default() -> Self {
        Self {
            users: HashMap::new(),
        }
    }
}

impl<U: Eq + Hash, A: Ord + Clone> Oracle<U, A> {
    /// Nothing is known of anybody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a change in the order of arrival.
    pub fn change(&mut self, user: U, alarm: A, status: Status, at: Instant) -> Fate {
        self.users
            .entry(user)
            .or_default()
            .change(alarm, status, at)
    }

    /// What is due, from oldest to newest, ties by the alarm's name; then none of it is due any more.
    pub fn request(&mut self, user: &U) -> Vec<Entry<A>> {
        let alarms = self.users.get_mut(user);
        alarms.map(Alarms::request).unwrap_or_default()
    }

    /// What is active, due or not, by name.
    pub fn active(&self, user: &U) -> impl Iterator<Item = Entry<&A>> {
        self.users.get(user).into_iter().flat_map(Alarms::active)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a line of the specification's table, such as `aC1 S aX2`; returns its digests, such as `[aC1]`.
    fn play(history: &str) -> Vec<String> {
        let mut oracle = Oracle::new();
        let mut digests = Vec::new();
        for step in history.split_whitespace() {
            if step == "S" {
                let entries = oracle.request(&"u");
                let entries: Vec<_> = entries
                    .iter()
                    .map(|it| {
                        let letter = it.status.as_str().replace("CRITICAL", "C");
                        format!("{}{}{}", it.alarm, letter.replace("WARNING", "W"), it.at.0)
                    })
                    .collect();
                digests.push(format!("[{}]", entries.join(" ")));
                continue;
            }
            let status = match &step[1..2] {
                "W" => Status::Warning,
                "C" => Status::Critical,
                _ => Status::Cleared,
            };
            let at = Instant(step[2..].parse().unwrap());
            oracle.change("u", step[..1].to_owned(), status, at);
        }
        digests
    }

    #[test]
    fn the_table_of_the_specification() {
        for (history, digests) in [
            ("S", &["[]"][..]),
            ("aC1 aW2 S", &["[aW2]"]),
            ("aC2 aW1 S", &["[aC2]"]),
            ("aC1 S S", &["[aC1]", "[]"]),
            ("aC1 S aC2 S", &["[aC1]", "[]"]),
            ("aC1 S aX2 aC3 S", &["[aC1]", "[aC3]"]),
            ("aW1 S aC2 aW3 S", &["[aW1]", "[aW3]"]),
            ("aC1 S aC3 aW2 S", &["[aC1]", "[]"]),
            ("aX2 aC1 S", &["[]"]),
            ("bC2 aW1 S", &["[aW1 bC2]"]),
            ("aC2 S bW1 S", &["[aC2]", "[bW1]"]),
            ("aC1 aX1 S", &["[]"]),
            ("aC1 aX1 aC1 S", &["[]"]),
            ("bC1 aC1 S", &["[aC1 bC1]"]),
        ] {
            assert_eq!(play(history), digests, "{history}");
        }
    }

    #[test]
    fn what_is_reported_stays_active() {
        let mut oracle = Oracle::new();
        oracle.change("u", "a", Status::Warning, Instant(1));
        assert_eq!(oracle.request(&"u").len(), 1);
        assert_eq!(oracle.active(&"u").count(), 1);
        oracle.change("u", "a", Status::Cleared, Instant(2));
        assert_eq!(oracle.active(&"u").count(), 0);
        assert_eq!(oracle.active(&"v").count(), 0);
    }

    #[test]
    fn the_fate_of_a_change_is_told() {
        let mut oracle = Oracle::new();
        let mut change = |status, at| oracle.change("u", "a", status, Instant(at));
        assert_eq!(change(Status::Warning, 2), Fate::Decides);
        assert_eq!(change(Status::Warning, 2), Fate::Duplicate);
        assert_eq!(change(Status::Critical, 1), Fate::Stale);
        assert_eq!(change(Status::Critical, 2), Fate::Decides);
        assert_eq!(change(Status::Warning, 2), Fate::Duplicate);
    }
}
