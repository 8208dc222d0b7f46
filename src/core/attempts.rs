//! When an owed message may be sent, and when it is looked for in the output first.
//!
//! The broker drops a repeat only while it remembers its id: for the duplicate window. An attempt may have been
//! stored by anybody who had the message before us: an earlier process, another store that answered the same
//! request, ourselves before a pause. So an attempt is made only while everything that may be stored is younger
//! than half the window, the other half being the margin of clocks and of what is still on its way; after that the
//! output is looked through for the ids that are to be sent, and whatever is stored later is young again.
//!
//! A message may be cut in several ways, because what the broker takes in one changes: whole under one id, or in
//! parts under ids of their own (`parts.rs`). The broker drops no repeat under another id, so before it is sent in
//! another way than before the output is looked through once more. Every look is for all ways.

use std::collections::BTreeSet;
use std::time::Duration;

/// The attempts at one message. Instants are those of one clock that never stands still or goes back.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// `None` where the broker remembers no ids: there is nothing to look through.
    window: Option<Duration>,
    /// Until then the broker remembers every attempt that may have been stored; `None` until we have looked.
    remembered_until: Option<Duration>,
    /// Whether nobody can have tried before.
    is_first: bool,
    /// The ids under which it, or what is missing of it, is to be sent now.
    planned: Vec<String>,
    /// The ids of the attempts since the last look that were not confirmed.
    unconfirmed: BTreeSet<String>,
}

impl Attempts {
    /// Nobody has tried, unless another store has answered the request, which was stored `age` ago.
    #[must_use]
    pub fn first(window: Option<Duration>, age: Duration, now: Duration) -> Self {
        let left = window.and_then(|window| (window / 2).checked_sub(age));
        Self {
            remembered_until: left.map(|left| now + left),
            is_first: window.is_none() || left.is_some(),
            ..Self::again(window)
        }
    }

    /// Somebody may have tried long ago: the message was read back from the store, or was parked.
    #[must_use]
    pub const fn again(window: Option<Duration>) -> Self {
        Self {
            window,
            remembered_until: None,
            is_first: false,
            planned: Vec::new(),
            unconfirmed: BTreeSet::new(),
        }
    }

    /// The next attempts are made under these ids.
    pub fn plan<'a>(&mut self, ids: impl IntoIterator<Item = &'a str>) {
        self.planned = ids.into_iter().map(str::to_owned).collect();
    }

    /// Whether the output must be looked through before the next attempt.
    #[must_use]
    pub fn must_look(&self, now: Duration) -> bool {
        let is_forgotten = self.remembered_until.is_none_or(|until| now > until);
        let was_cut_otherwise = || self.unconfirmed.iter().any(|id| !self.planned.contains(id));
        self.window.is_some() && (is_forgotten || was_cut_otherwise())
    }

    /// The output was looked through. However long that took, there is time for an attempt after it.
    pub fn looked(&mut self, began: Duration, ended: Duration) {
        let until = |window: Duration| (began + window / 2).max(ended + window / 4);
        self.remembered_until = self.window.map(until);
        self.is_first = false;
        self.unconfirmed.clear();
    }

    /// Notes an attempt; returns whether it is certainly the first under this id.
    pub fn begin(&mut self, id: &str) -> bool {
        self.unconfirmed.insert(id.to_owned()) && self.is_first
    }

    /// The attempt under this id was confirmed.
    pub fn confirmed(&mut self, id: &str) {
        self.unconfirmed.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Option<Duration> = Some(Duration::from_mins(2));

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_young_is_sent_and_what_waited_is_looked_for() {
        let mut attempts = Attempts::first(WINDOW, at(20), at(1000));
        attempts.plan(["1"]);
        assert!(!attempts.must_look(at(1040)));
        assert!(attempts.begin("1"));
        assert!(!attempts.begin("1"), "a repeat");
        assert!(!attempts.must_look(at(1040)), "under the same id");
        // Held back by a lost claim or a frozen process, it is as old as any other.
        assert!(attempts.must_look(at(1041)));
        attempts.looked(at(1041), at(1042));
        assert!(!attempts.must_look(at(1101)));
        assert!(attempts.must_look(at(1102)));
        attempts.looked(at(1102), at(1200));
        assert!(!attempts.must_look(at(1230)), "a slow look is not in vain");
        assert!(attempts.must_look(at(1231)));
        assert!(!attempts.begin("1"), "somebody may have been faster");
    }

    #[test]
    fn what_is_old_or_was_tried_before_is_looked_for_first() {
        for mut attempts in [
            Attempts::first(WINDOW, at(61), at(1000)),
            Attempts::again(WINDOW),
        ] {
            attempts.plan(["1"]);
            assert!(attempts.must_look(at(1000)));
            assert!(!attempts.begin("1"));
            attempts.looked(at(1000), at(1001));
            assert!(!attempts.must_look(at(1060)));
        }
    }

    #[test]
    fn before_it_is_sent_in_another_way_it_is_looked_for() {
        let mut attempts = Attempts::first(WINDOW, at(1), at(1000));
        attempts.plan(["1.0-2", "1.2-3"]);
        attempts.plan(["1"]);
        assert!(!attempts.must_look(at(1001)), "nobody has tried before");
        attempts.begin("1");
        assert!(!attempts.must_look(at(1001)), "under the same id");
        attempts.plan(["1.0-2", "1.2-3"]);
        assert!(attempts.must_look(at(1001)), "it may be stored as one");
        attempts.looked(at(1001), at(1001));
        assert!(!attempts.must_look(at(1002)));
        attempts.begin("1.0-2");
        assert!(!attempts.must_look(at(1002)), "the second part follows");
        attempts.confirmed("1.0-2");
        attempts.plan(["1.2-3"]);
        assert!(!attempts.must_look(at(1002)), "what is confirmed is known");
        attempts.begin("1.2-3");
        attempts.plan(["1.2-4"]);
        assert!(attempts.must_look(at(1002)), "the rest in another way");
    }

    #[test]
    fn without_a_window_there_is_nothing_to_look_through() {
        let mut attempts = Attempts::again(None);
        attempts.plan(["1"]);
        assert!(!attempts.must_look(at(1)));
        assert!(Attempts::first(None, at(9999), at(1)).begin("1"));
    }
}
