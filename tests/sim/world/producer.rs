//! Producers: what is owed goes out in parts, is looked for where it may be stored already, and is sent again
//! until it is confirmed; what the broker refuses for good is parked.

use tocsin::bus::Outbound;
use tocsin::bus::wire::{split_dead_letter, split_digest};
use tocsin::core::attempts::Attempts;
use tocsin::core::parts::Stored;
use tocsin::core::time::Timestamp;

use super::*;

/// How long a message that is refused for good waits before it is tried again.
const PARKED_PAUSE: u64 = 5 * SECOND;

/// One owed message.
pub(super) struct Task {
    partition: usize,
    owed: Arc<Owed<Digest>>,
    id: String,
    attempts: Attempts,
    /// What is known to be stored.
    stored: Stored,
    /// When it was last looked for; 0 before that.
    looked_at: output::Moment,
    state: State,
    was_parked: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Idle,
    /// The attempt of this token is under way.
    Sent(u64),
    ParkedUntil(u64),
}

/// What the broker says of an attempt.
pub(super) struct Answer {
    pub(super) token: u64,
    pub(super) part: String,
    pub(super) said: Said,
    /// Whether the broker took a first attempt for a repeat.
    pub(super) is_false_repeat: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Said {
    StoredAt(Option<u64>),
    Refused,
}

/// What a worker is told of an owed message.
#[derive(Clone, Copy)]
pub(super) struct Settled {
    partition: usize,
    key: OutboxKey,
    lane: u64,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Published(Option<u64>),
    Parked,
}

impl<D: Observed> World<D> {
    /// A partition wants something published: it must be durable, and nobody be at it already.
    pub(super) fn owe(
        &mut self,
        daemon: usize,
        partition: usize,
        owed: Arc<Owed<Digest>>,
    ) -> Checked {
        let stored = &self.stores[self.daemons[daemon].store][partition];
        demand(
            "I-03 nothing is published before it is durable",
            stored.ever_owed.contains(&owed.key),
            || format!("p{partition} publishes {:?}", owed.key),
        )?;
        let mut all = vec![owed];
        if self.is(Bug::TwoInFlight) {
            let owed = stored.shadow.outbox().rows_from(OutboxKey(0));
            all = owed.cloned().collect();
        }
        let window = self.window();
        let (steady, wall) = (
            Duration::from_nanos(self.now),
            clock(self.now, self.daemons[daemon].clock),
        );
        let bug = self.bug;
        let at = &mut self.daemons[daemon];
        for owed in all {
            let is_same = |it: &Task| it.partition == partition && it.owed.key == owed.key;
            if at.tasks.iter().any(is_same) {
                continue;
            }
            at.num_ids += 1;
            let id = owed.id.to_string();
            let id = match bug {
                Some(Bug::IdsFromCounter) => format!("count-{}", at.num_ids),
                Some(Bug::IdsWithoutGeneration) => {
                    id.split('-').take(2).collect::<Vec<_>>().join("-")
                }
                _ => id,
            };
            let attempts = if owed.is_recovered {
                Attempts::again(window)
            } else {
                let age = wall.saturating_sub(owed.since.as_nanos());
                Attempts::first(window, Duration::from_nanos(age), steady)
            };
            at.tasks.push(Task {
                partition,
                owed,
                id,
                attempts,
                stored: Stored::default(),
                looked_at: 0,
                state: State::Idle,
                was_parked: false,
            });
        }
        Ok(())
    }

    fn window(&self) -> Option<Duration> {
        self.plan.has_stream.then(|| Duration::from_nanos(WINDOW))
    }

    /// The next step of some message: looked for, sent, or done.
    pub(super) fn send(&mut self, daemon: usize) -> Checked {
        let now = self.now;
        let is_ready = |task: &Task| match task.state {
            State::Idle => true,
            State::Sent(_) => false,
            State::ParkedUntil(until) => until <= now,
        };
        let at = &self.daemons[daemon];
        let ready: Vec<_> = (0..at.tasks.len())
            .filter(|&place| is_ready(&at.tasks[place]))
            .collect();
        if ready.is_empty() || !at.reader.is_connected {
            return Ok(());
        }
        let place = ready[self.choices.place(ready.len())];
        if !self.holds_claim(daemon) && !self.is(Bug::ZombiePublishes) {
            self.count("sends held back by a lost claim");
            return Ok(());
        }
        let (window, no_lookup) = (self.window(), self.is(Bug::NoLookup));
        let at = &mut self.daemons[daemon];
        if at.tasks[place].state != State::Idle {
            at.tasks[place].state = State::Idle;
            at.tasks[place].attempts = Attempts::again(window);
        }
        let task = &mut at.tasks[place];
        let Ok(missing) = split(&task.owed, &task.stored, at.max_payload) else {
            self.park(daemon, place);
            return Ok(());
        };
        if missing.is_empty() {
            self.finish(daemon, place);
            return Ok(());
        }
        let ids = missing.iter().map(|part| part.id.as_str());
        task.attempts.plan(ids);
        let steady = Duration::from_nanos(now);
        if task.attempts.must_look(steady) && !no_lookup {
            self.look(daemon, place);
            return Ok(());
        }
        self.send_part(daemon, place, missing)
    }

    fn look(&mut self, daemon: usize, place: usize) {
        let task = &self.daemons[daemon].tasks[place];
        let output = self.output_of(&task.owed.body);
        let is_digest = matches!(task.owed.body, Body::Message(_));
        let from = if is_digest { task.owed.search_from } else { 0 };
        let (from, since) = if self.is(Bug::SearchedTooLate) {
            (from + 3, Timestamp::MAX)
        } else {
            (from, task.owed.since)
        };
        let found = output.find(&task.owed.id.to_string(), from, since);
        self.trace.note(format_args!(
            "daemon {daemon} looks for {} after {from}: {found:?}",
            task.id
        ));
        let (steady, looked_at) = (Duration::from_nanos(self.now), self.moment());
        let task = &mut self.daemons[daemon].tasks[place];
        task.looked_at = looked_at;
        let found = found.iter().map(|(id, at)| (id.as_str(), Some(*at)));
        task.stored.add(found);
        task.attempts.looked(steady, steady);
        self.count("messages looked for in the output");
    }

    fn send_part(&mut self, daemon: usize, place: usize, missing: Vec<Outbound>) -> Checked {
        let at = &self.daemons[daemon];
        let task = &at.tasks[place];
        let num_parts = task.stored.num_parts + missing.len();
        let is_split = num_parts > 1;
        let mut missing = (task.stored.num_parts..).zip(missing);
        let next = if self.bug == Some(Bug::PartsBackwards) {
            missing.last()
        } else {
            missing.next()
        };
        let (number, part) = next.expect("something is missing");
        // What was confirmed, and is sent again because its worker died meanwhile, holds nobody up.
        let is_unconfirmed = |task: &Task| {
            let output = self.output_of(&task.owed.body);
            !task.was_parked && !output.was_confirmed(&task.id)
        };
        let is_beside = |other: &Task| {
            other.partition == task.partition
                && other.owed.lane == task.owed.lane
                && other.owed.key != task.owed.key
                && matches!(other.state, State::Sent(_))
                && is_unconfirmed(other)
        };
        demand(
            "I-05 one of a lane is under way",
            !is_unconfirmed(task) || !at.tasks.iter().any(is_beside),
            || format!("{} is sent beside another of its lane", task.id),
        )?;
        let other_holders = (0..self.daemons.len()).filter(|&it| it != daemon);
        let is_rivals = self.plan.deployment == Deployment::TwoStores
            && other_holders.into_iter().any(|it| self.holds_claim(it));
        demand("only the holder of the claim publishes", !is_rivals, || {
            format!("daemon {daemon} publishes, and another owns the input")
        })?;
        let begun_at = self.moment();
        let at = &mut self.daemons[daemon];
        at.num_tokens += 1;
        let (token, process) = (at.num_tokens, at.process);
        let task = &mut at.tasks[place];
        task.state = State::Sent(token);
        let is_first = task.attempts.begin(&part.id);
        let attempt = output::Attempt::new(
            (daemon, process, token),
            self.now,
            &task.owed,
            &task.id,
            &part,
            is_first,
            (task.looked_at, begun_at),
        );
        self.trace.note(format_args!(
            "daemon {daemon} sends {} ({} of {num_parts})",
            attempt.id,
            number + 1
        ));
        let settled = Settled {
            partition: task.partition,
            key: task.owed.key,
            lane: task.owed.lane,
            outcome: Outcome::Published(None),
        };
        self.network.push(attempt);
        self.count(if is_split {
            "parts of split messages sent"
        } else {
            "messages sent"
        });
        if self.is(Bug::RemovedAtSend) {
            self.daemons[daemon].settled.push(settled);
        }
        Ok(())
    }

    /// All parts are stored: the worker is told.
    fn finish(&mut self, daemon: usize, place: usize) {
        let at = &mut self.daemons[daemon];
        let task = at.tasks.swap_remove(place);
        at.settled.push(Settled {
            partition: task.partition,
            key: task.owed.key,
            lane: task.owed.lane,
            outcome: Outcome::Published(task.stored.sequence),
        });
        self.trace.note(format_args!("{} is confirmed", task.id));
        self.output_of_mut(&task.owed.body).confirm(task.id);
    }

    fn park(&mut self, daemon: usize, place: usize) {
        let (is_forgotten, now) = (self.is(Bug::ParkedForgotten), self.now);
        let pause = if self.is_resting { 0 } else { PARKED_PAUSE };
        let at = &mut self.daemons[daemon];
        let task = &mut at.tasks[place];
        (task.state, task.was_parked) = (State::ParkedUntil(now + pause), true);
        at.settled.push(Settled {
            partition: task.partition,
            key: task.owed.key,
            lane: task.owed.lane,
            outcome: if is_forgotten {
                Outcome::Published(None)
            } else {
                Outcome::Parked
            },
        });
        self.trace.note(format_args!("{} is parked", task.id));
        let (id, body) = (task.id.clone(), task.owed.body.clone());
        self.output_of_mut(&body).park(id);
        self.count("messages parked");
    }

    /// The broker takes everything again: what is parked need not wait for its time.
    pub(super) fn try_parked_again(&mut self, daemon: usize) {
        for task in &mut self.daemons[daemon].tasks {
            if let State::ParkedUntil(until) = &mut task.state {
                *until = self.now;
            }
        }
    }

    /// A producer hears what the broker says of an attempt, if it still waits for that.
    pub(super) fn hear_answer(&mut self, daemon: usize) -> Checked {
        if self.daemons[daemon].answers.is_empty() {
            return Ok(());
        }
        let place = self.choices.place(self.daemons[daemon].answers.len());
        let at = &mut self.daemons[daemon];
        let answer = at.answers.swap_remove(place);
        let sent = State::Sent(answer.token);
        let Some(place) = at.tasks.iter().position(|it| it.state == sent) else {
            return Ok(());
        };
        demand(
            "I-07 no first attempt is a repeat",
            !answer.is_false_repeat,
            || answer.part.clone(),
        )?;
        match answer.said {
            Said::Refused => self.park(daemon, place),
            Said::StoredAt(sequence) => {
                let task = &mut at.tasks[place];
                task.state = State::Idle;
                task.stored.add([(answer.part.as_str(), sequence)]);
                task.attempts.confirmed(&answer.part);
                self.trace
                    .note(format_args!("daemon {daemon} hears of {}", task.id));
            }
        }
        Ok(())
    }

    /// A worker hears what became of an owed message; it may be another one than owed it.
    pub(super) fn settle(&mut self, daemon: usize, may_fail: bool) -> Checked {
        if self.daemons[daemon].settled.is_empty() {
            return Ok(());
        }
        let place = self.choices.place(self.daemons[daemon].settled.len());
        // Now and then one is on its way for long, or is heard of twice.
        if may_fail && place % 2 == 1 && self.choices.chance(90) {
            return Ok(());
        }
        let is_repeated = may_fail && self.choices.chance(15);
        let is_by_lane = self.is(Bug::ConfirmedByLane);
        let at = &mut self.daemons[daemon];
        let settled = if is_repeated {
            self.counts.add("confirmations heard of twice", 1);
            at.settled[place]
        } else {
            at.settled.swap_remove(place)
        };
        let Settled {
            partition,
            mut key,
            lane,
            outcome,
        } = settled;
        let number = partition % at.workers.len();
        let Some(owner) = at.live_mut(partition) else {
            return Ok(());
        };
        if is_by_lane {
            let mut rows = owner.outbox().rows_from(OutboxKey(0));
            key = rows.find(|it| it.lane == lane).map_or(key, |it| it.key);
        }
        match outcome {
            Outcome::Published(sequence) => owner.published(key, sequence),
            Outcome::Parked => owner.parked(key),
        }
        self.trace.note(format_args!(
            "p{partition} hears that {key:?} is {outcome:?}"
        ));
        self.poll(daemon, number)
    }

    /// A producer gives up waiting for one answer and will send again.
    pub(super) fn time_out(&mut self, daemon: usize) {
        let at = &mut self.daemons[daemon];
        if at.tasks.is_empty() {
            return;
        }
        let place = self.choices.place(at.tasks.len());
        let task = &mut at.tasks[place];
        if let State::Sent(_) = task.state {
            task.state = State::Idle;
            self.trace
                .note(format_args!("nothing is heard of {}", task.id));
            self.count("messages sent again");
        }
    }
}

/// The messages that carry what is owed, as the daemon splits them.
fn split(
    owed: &Owed<Digest>,
    stored: &Stored,
    max_payload: usize,
) -> Result<Vec<Outbound>, String> {
    let parts = match &owed.body {
        Body::Message(digest) => split_digest(&owed.id, digest, stored, max_payload),
        Body::DeadLetter(letter) => split_dead_letter(&owed.id, letter, stored, max_payload),
    };
    parts.map_err(|error| error.to_string())
}
