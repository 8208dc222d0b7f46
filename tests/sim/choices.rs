//! Where every draw of a world comes from: a seed, or a list of choices that was recorded. And how a list at
//! which a check fails is made as short as it gets.
//!
//! A list holds the draws of the plan first, then those of each step on their own: a step that is taken out
//! takes exactly its draws with it, and all others mean what they meant.

use std::collections::BTreeMap;

use crate::random::Random;

/// The draws of the plan, then of each step.
pub(crate) type Tape = Vec<Vec<u64>>;

enum Source {
    Seed(Random),
    Tape(Tape),
    /// The rest of a world draws what no list holds.
    Rest(Random),
}

/// See the module.
pub(crate) struct Choices {
    source: Source,
    drawn: Tape,
}

impl Choices {
    pub(crate) fn from_seed(seed: u64) -> Self {
        let (source, drawn) = (Source::Seed(Random(seed)), vec![Vec::new()]);
        Self { source, drawn }
    }

    pub(crate) fn from_tape(tape: &Tape) -> Self {
        let (source, drawn) = (Source::Tape(tape.clone()), vec![Vec::new()]);
        Self { source, drawn }
    }

    /// Begins the draws of a step; `false` when there are no more: a seed has so many, a list what it holds.
    pub(crate) fn begin_step(&mut self, num_steps: usize) -> bool {
        let num_steps = match &self.source {
            Source::Tape(tape) => tape.len().saturating_sub(1),
            Source::Seed(_) | Source::Rest(_) => num_steps,
        };
        let has_more = self.drawn.len() <= num_steps;
        if has_more {
            self.drawn.push(Vec::new());
        }
        has_more
    }

    /// From now on the draws follow from this seed.
    pub(crate) fn begin_rest(&mut self, seed: u64) {
        self.source = Source::Rest(Random(seed));
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let bound = bound.max(1);
        let step = self.drawn.len() - 1;
        let drawn = match &mut self.source {
            Source::Rest(random) => return random.below(bound),
            Source::Seed(random) => random.below(bound),
            Source::Tape(tape) => {
                let place = self.drawn[step].len();
                let recorded = tape.get(step).and_then(|draws| draws.get(place));
                recorded.copied().unwrap_or_default() % bound
            }
        };
        self.drawn[step].push(drawn);
        drawn
    }

    pub(crate) fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        // Nothing happens where a shortened list holds no draw.
        self.below(100) >= 100 - percent.min(100)
    }

    pub(crate) fn into_tape(self) -> Tape {
        self.drawn
    }
}

/// So many worlds are played at the most to make a list shorter.
const MAX_PLAYS: usize = 3000;

/// Takes steps out, and makes draws smaller, for as long as `fails` says that the same check still does not hold.
pub(crate) fn shrink(tape: Tape, fails: impl Fn(&Tape) -> bool) -> Tape {
    let mut shrinking = Shrinking {
        best: tape,
        fails,
        num_plays: 0,
    };
    loop {
        let before = shrinking.best.clone();
        shrinking.take_steps_out();
        shrinking.make_draws_smaller();
        if shrinking.best == before || shrinking.num_plays >= MAX_PLAYS {
            return shrinking.best;
        }
    }
}

struct Shrinking<F> {
    best: Tape,
    fails: F,
    num_plays: usize,
}

impl<F: Fn(&Tape) -> bool> Shrinking<F> {
    /// Plays a list; it is kept if the check still does not hold.
    fn play(&mut self, candidate: Tape) -> bool {
        self.num_plays += 1;
        let is_better = (self.fails)(&candidate);
        if is_better {
            self.best = candidate;
        }
        is_better
    }

    /// Halves at first, then ever smaller pieces, then single steps.
    fn take_steps_out(&mut self) {
        let mut size = self.best.len() / 2;
        while size > 0 {
            // From the end: what came last is rarely what it takes.
            let mut to = self.best.len();
            while to > 1 && self.num_plays < MAX_PLAYS {
                let from = to.saturating_sub(size).max(1);
                let mut candidate = self.best.clone();
                candidate.drain(from..to);
                self.play(candidate);
                to = from;
            }
            size /= 2;
        }
    }

    fn make_draws_smaller(&mut self) {
        for step in 0..self.best.len() {
            for place in 0..self.best[step].len() {
                for divisor in [u64::MAX, 2] {
                    let drawn = self.best[step][place];
                    if drawn > 0 && self.num_plays < MAX_PLAYS {
                        let mut candidate = self.best.clone();
                        candidate[step][place] = drawn / divisor;
                        self.play(candidate);
                    }
                }
            }
        }
    }
}

/// How often everything of interest happened.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    pub(crate) fn add(&mut self, what: &'static str, num: u64) {
        *self.0.entry(what).or_default() += num;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (what, num) in &other.0 {
            self.add(what, *num);
        }
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(&what, &num)| (what, num))
    }
}
