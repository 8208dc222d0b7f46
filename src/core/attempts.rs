//! When an owed message may be sent, and when it is looked for in the output first.
//!
//! The broker drops a repeat only while it remembers its id: for the duplicate window. An attempt may have been
//! stored by anybody who had the message before us: an earlier process, another store that answered the same
//! request, ourselves before a pause. So an attempt is made only while everything that may be stored is younger
//! than half the window, the other half being the margin of clocks and of what is still on its way; after that the
//! output is looked through for the ids that are to be sent, and whatever is stored later is young again. Under other
//! ids, because the broker takes messages of another length now, it is looked through once more.

use std::collections::BTreeSet;
use std::time::Duration;

/// The attempts at one message. Instants are those of one clock that never stands still or goes back.
#[derive(Clone, Debug)]
pub struct Attempts {
    /// `None` where the broker remembers no ids: there is nothing to look through.
    window: Option<Duration>,
    /// Until then the broker remembers every attempt that may have been stored; `None` until we have looked.
    remembered_until: Option<Duration>,
    /// The ids that were looked for last; `None` before the first look.
    looked_for: Option<BTreeSet<String>>,
    /// Whether nobody can have tried before.
    is_first: bool,
    begun: BTreeSet<String>,
}

impl Attempts {
    /// Nobody has tried, unless another store has answered the request, which is so old.
    #[must_use]
    pub fn first(window: Option<Duration>, age: Duration, now: Duration) -> Self {
        let left = window.and_then(|window| (window / 2).checked_sub(age));
        Self {
            window,
            remembered_until: left.map(|left| now + left),
            looked_for: None,
            is_first: window.is_none() || left.is_some(),
            begun: BTreeSet::new(),
        }
    }

    /// Somebody may have tried long ago: the message was read back from the store, or was parked.
    #[must_use]
    pub const fn again(window: Option<Duration>) -> Self {
        Self {
            window,
            remembered_until: None,
            looked_for: None,
            is_first: false,
            begun: BTreeSet::new(),
        }
    }

    /// Whether the output must be looked through before the next attempt, which is made under these ids.
    #[must_use]
    pub fn must_look<'a>(&self, now: Duration, ids: impl IntoIterator<Item = &'a str>) -> bool {
        let is_forgotten = self.remembered_until.is_none_or(|until| now > until);
        let is_unseen =
            |looked_for: &BTreeSet<String>| ids.into_iter().any(|id| !looked_for.contains(id));
        self.window.is_some() && (is_forgotten || self.looked_for.as_ref().is_some_and(is_unseen))
    }

    /// The output was looked through for these ids. However long that took, there is time for an attempt after it.
    pub fn looked<'a>(
        &mut self,
        began: Duration,
        ended: Duration,
        ids: impl IntoIterator<Item = &'a str>,
    ) {
        let until = |window: Duration| (began + window / 2).max(ended + window / 4);
        self.remembered_until = self.window.map(until);
        self.looked_for = Some(ids.into_iter().map(str::to_owned).collect());
        self.is_first = false;
    }

    /// Notes an attempt; returns whether it is certainly the first under this id.
    pub fn begin(&mut self, id: &str) -> bool {
        self.begun.insert(id.to_owned()) && self.is_first
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
        assert!(!attempts.must_look(at(1040), ["1"]));
        assert!(attempts.begin("1"));
        assert!(!attempts.begin("1"), "a repeat");
        // Held back by a lost claim or a frozen process, it is as old as any other.
        assert!(attempts.must_look(at(1041), ["1"]));
        attempts.looked(at(1041), at(1042), ["1"]);
        assert!(!attempts.must_look(at(1101), ["1"]));
        assert!(attempts.must_look(at(1102), ["1"]));
        attempts.looked(at(1102), at(1200), ["1"]);
        assert!(
            !attempts.must_look(at(1230), ["1"]),
            "a slow look is not in vain"
        );
        assert!(attempts.must_look(at(1231), ["1"]));
        assert!(!attempts.begin("2"), "somebody may have been faster");
    }

    #[test]
    fn what_is_old_or_was_tried_before_is_looked_for_first() {
        for mut attempts in [
            Attempts::first(WINDOW, at(61), at(1000)),
            Attempts::again(WINDOW),
        ] {
            assert!(attempts.must_look(at(1000), ["1"]));
            assert!(!attempts.begin("1"));
            attempts.looked(at(1000), at(1001), ["1"]);
            assert!(!attempts.must_look(at(1060), ["1"]));
        }
    }

    #[test]
    fn what_is_to_go_under_other_ids_is_looked_for_under_them() {
        let mut attempts = Attempts::again(WINDOW);
        attempts.looked(at(1000), at(1000), ["1"]);
        assert!(!attempts.must_look(at(1001), ["1"]));
        // Split otherwise, because the broker takes less now: a part may be there since long ago.
        assert!(attempts.must_look(at(1001), ["1.0-2", "1.2-3"]));
        attempts.looked(at(1001), at(1001), ["1.0-2", "1.2-3"]);
        assert!(!attempts.must_look(at(1002), ["1.2-3"]));
        assert!(attempts.must_look(at(1002), ["1"]));
        let young = Attempts::first(WINDOW, at(1), at(1000));
        assert!(
            !young.must_look(at(1001), ["1.0-2"]),
            "nobody has tried before"
        );
    }

    #[test]
    fn without_a_window_there_is_nothing_to_look_through() {
        assert!(!Attempts::again(None).must_look(at(1), ["1"]));
        assert!(Attempts::first(None, at(9999), at(1)).begin("1"));
    }
}
