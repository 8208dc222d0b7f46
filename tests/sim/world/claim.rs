//! Who owns the input: one message at the broker, taken and renewed by compare-and-set, each step on its own.
//!
//! Who waits counts from when it first saw a claim; who holds counts from before it sent its renewal, and stops
//! a margin earlier. A request or its answer may be lost, or be late.

use super::*;

const TTL: u64 = 5 * SECOND;
const MARGIN: u64 = TTL / 5;
const RENEW_EVERY: u64 = TTL * 3 / 10;

/// What stands at the broker.
#[derive(Clone, Copy)]
pub(super) struct Claimed {
    sequence: u64,
    process: u64,
    store: usize,
    is_given_back: bool,
}

/// A claim on its way to the broker: over the one of this sequence.
#[derive(Clone, Copy)]
pub(super) struct Write {
    process: u64,
    store: usize,
    expected: u64,
    sent_at: u64,
    is_slow: bool,
    answer: Answer,
}

/// What is heard of a claim.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Answer {
    NotYet,
    /// It stands, with this sequence.
    Taken(u64),
    /// There is another.
    Refused,
}

/// What a process knows of it.
#[derive(Default)]
pub(super) struct Claimant {
    /// The sequence of our claim.
    ours: Option<u64>,
    held_until: u64,
    was_held: bool,
    /// A claim of another, and since when it is seen unchanged.
    rival: Option<(u64, u64)>,
    next_at: u64,
    under_way: Option<Write>,
}

impl<D: Observed> World<D> {
    /// Whether a daemon may read, commit and send, by its own clock.
    pub(super) fn holds_claim(&self, daemon: usize) -> bool {
        let at = &self.daemons[daemon];
        at.is_up && (!self.plan.has_stream || self.now < at.claimant.held_until)
    }

    /// The tasks that take and renew claims, a step each.
    pub(super) fn claims(&mut self, may_fail: bool) {
        if !self.plan.has_stream {
            return;
        }
        for daemon in 0..self.daemons.len() {
            let at = &self.daemons[daemon];
            if !at.is_up || at.is_frozen {
                continue;
            }
            let num_steps = if may_fail { 1 } else { 4 };
            (0..num_steps).for_each(|_| self.step_claim(daemon, may_fail));
        }
        if !self.broker.stray_claims.is_empty() && self.choices.chance(5) {
            let place = self.choices.place(self.broker.stray_claims.len());
            let stray = self.broker.stray_claims.swap_remove(place);
            self.compare_and_set(&stray);
        }
    }

    fn step_claim(&mut self, daemon: usize, may_fail: bool) {
        let now = self.now;
        let Some(write) = self.daemons[daemon].claimant.under_way else {
            if now >= self.daemons[daemon].claimant.next_at {
                self.ask(daemon);
            }
            return;
        };
        if now - write.sent_at > RENEW_EVERY {
            // Nothing was heard of it; it may arrive later.
            let at = &mut self.daemons[daemon].claimant;
            (at.under_way, at.next_at) = (None, now + RENEW_EVERY / 3);
            if write.answer == Answer::NotYet {
                self.broker.stray_claims.push(write);
            }
            self.count("claims not answered in time");
            return;
        }
        if may_fail && !self.choices.chance(if write.is_slow { 3 } else { 50 }) {
            return;
        }
        if write.answer == Answer::NotYet {
            let answer = self.compare_and_set(&write);
            let is_lost = may_fail && self.choices.chance(10);
            if let Some(under_way) = &mut self.daemons[daemon].claimant.under_way
                && !is_lost
            {
                under_way.answer = answer;
            }
            if is_lost {
                self.lose_answer(daemon);
            }
            return;
        }
        let counts_from = if self.is(Bug::ClaimFromAnswer) {
            now + MARGIN
        } else {
            write.sent_at
        };
        let at = &mut self.daemons[daemon].claimant;
        at.under_way = None;
        if let Answer::Taken(sequence) = write.answer {
            at.ours = Some(sequence);
            at.rival = None;
            let was_held = now < at.held_until;
            at.held_until = counts_from + TTL - MARGIN;
            at.next_at = now + RENEW_EVERY;
            at.was_held = true;
            if !was_held {
                self.trace
                    .note(format_args!("daemon {daemon} owns the input"));
                self.count("claims taken");
            }
        } else {
            (at.ours, at.next_at) = (None, now);
        }
    }

    fn lose_answer(&mut self, daemon: usize) {
        let at = &mut self.daemons[daemon].claimant;
        (at.under_way, at.next_at) = (None, self.now + RENEW_EVERY / 3);
        self.count("claims not answered in time");
    }

    /// Renews, or looks who has it and takes it when it may.
    fn ask(&mut self, daemon: usize) {
        let is_slow = self.choices.chance(30);
        let at = &self.daemons[daemon];
        let (process, store) = (at.process, at.store);
        let now = self.now;
        let write = |expected| Write {
            process,
            store,
            expected,
            sent_at: now,
            is_slow,
            answer: Answer::NotYet,
        };
        if let Some(sequence) = at.claimant.ours {
            self.daemons[daemon].claimant.under_way = Some(write(sequence));
            return;
        }
        let takes_at_once = self.is(Bug::ClaimTakenAtOnce);
        let claimed = self.broker.claim;
        let at = &mut self.daemons[daemon].claimant;
        let Some(claimed) = claimed else {
            at.under_way = Some(write(0));
            return;
        };
        let is_own_store = claimed.store == store && !at.was_held;
        if claimed.is_given_back || claimed.process == process || is_own_store {
            at.under_way = Some(write(claimed.sequence));
            return;
        }
        if now < at.held_until {
            self.trace
                .note(format_args!("daemon {daemon} has lost the input"));
        }
        at.held_until = 0;
        let seen_at = match at.rival {
            Some((sequence, seen_at)) if sequence == claimed.sequence => seen_at,
            Some(_) | None => now,
        };
        at.rival = Some((claimed.sequence, seen_at));
        let left = (seen_at + TTL).saturating_sub(now);
        if left == 0 || takes_at_once {
            at.under_way = Some(write(claimed.sequence));
        } else {
            at.next_at = now + left.min(RENEW_EVERY);
        }
    }

    fn compare_and_set(&mut self, write: &Write) -> Answer {
        let stands = self.broker.claim.map_or(0, |it| it.sequence);
        if stands != write.expected {
            return Answer::Refused;
        }
        self.broker.last_claim += 1;
        let sequence = self.broker.last_claim;
        self.broker.claim = Some(Claimed {
            sequence,
            process: write.process,
            store: write.store,
            is_given_back: false,
        });
        self.trace.remark(format_args!(
            "process {}'s claim stands as {sequence}",
            write.process
        ));
        Answer::Taken(sequence)
    }

    /// A clean stop gives the claim back, so that nobody waits for its end.
    pub(super) fn give_claim_back(&mut self, daemon: usize) {
        let ours = self.daemons[daemon].claimant.ours;
        self.daemons[daemon].claimant.held_until = 0;
        let Some(claim) = &mut self.broker.claim else {
            return;
        };
        if ours == Some(claim.sequence) {
            self.broker.last_claim += 1;
            (claim.sequence, claim.is_given_back) = (self.broker.last_claim, true);
        }
    }
}
