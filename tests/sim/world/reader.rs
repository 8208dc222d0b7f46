//! The reader of a daemon: where it begins, what it verifies, and what it waits for before a batch goes on.

use tocsin::core::ids::placement_hash;
use tocsin::core::position::{Origin, Resume, StreamView, position_to_verify, resume};
use tocsin::core::time::Timestamp;

use crate::oracle::Message;

use super::*;

#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts that are true or not, each on its own"
)]
pub(super) struct Reader {
    /// Whether this process has decided where it begins.
    is_open: bool,
    pub(super) is_connected: bool,
    /// The last watermark that was handed out.
    pub(super) last: Option<Position>,
    /// The highest position of any partition when it began: verified until it was read again.
    highest: Option<Position>,
    /// The sequence to read next.
    next: u64,
    /// A generation begins: every partition commits that before its first message is taken.
    begins: bool,
    is_waiting_for_all: bool,
    num_batches: u64,
}

/// Messages on their way to the workers. None: a generation begins.
pub(super) struct Batch {
    pub(super) number: u64,
    pub(super) origin: Origin,
    pub(super) generation: u32,
    pub(super) messages: Vec<(u64, Arc<Message>)>,
    pub(super) watermark: Position,
}

impl<D: Observed> World<D> {
    fn origin(&self) -> Origin {
        if self.plan.has_stream {
            let created = Timestamp::from_nanos(self.broker.input.created);
            Origin::Stream { created }
        } else {
            Origin::Session
        }
    }

    /// Where reading begins: by number, or by time where there is none yet.
    fn base(&self, generation: u32, from: u64) -> Position {
        Position {
            origin: self.origin(),
            cursor: Cursor {
                generation,
                sequence: 0,
            },
            timestamp: Timestamp::from_nanos(from),
            fingerprint: None,
        }
    }

    fn begin(&mut self, daemon: usize, base: Position) {
        let cursor = base.cursor;
        self.trace
            .note(format_args!("daemon {daemon} begins after {cursor:?}"));
        let reader = &mut self.daemons[daemon].reader;
        reader.last = Some(base);
        reader.highest = None;
        reader.begins = true;
    }

    /// Decides where to read on: after the stored positions at first, after what was read later.
    pub(super) fn connect(&mut self, daemon: usize) {
        let at = &self.daemons[daemon];
        if !at.is_up || at.reader.is_connected {
            return;
        }
        if !at.reader.is_open && at.workers.iter().any(Option::is_none) {
            return;
        }
        let stored = self.stores[at.store].iter().map(|it| it.header.position);
        let (is_first, process) = (!at.reader.is_open, at.process);
        let positions: Vec<_> = if is_first {
            stored.collect()
        } else {
            vec![at.reader.last, at.reader.highest]
        };
        let reader = &mut self.daemons[daemon].reader;
        (reader.is_open, reader.is_connected) = (true, true);
        self.daemons[daemon].max_payload = self.broker.max_payload;
        if !self.plan.has_stream {
            if is_first {
                let generations = positions.iter().flatten().map(|it| it.cursor.generation);
                let generation = generations.max().map_or(0, |last| last + 1);
                self.broker.input = input::Stream::new(self.now);
                let from = clock(self.now, self.daemons[daemon].clock);
                self.begin(daemon, self.base(generation, from));
            }
            return;
        }
        match self.resume(&positions) {
            Resume::Fresh => {
                let base = self.base(0, 0);
                self.begin(daemon, base);
            }
            Resume::Continue { after, missing } => {
                self.trace.note(format_args!(
                    "daemon {daemon} (process {process}) reads on after {:?}, {missing} missing",
                    after.cursor
                ));
                let reader = &mut self.daemons[daemon].reader;
                if is_first {
                    let highest = position_to_verify(&positions);
                    reader.highest = highest.filter(|it| it.cursor > after.cursor);
                    reader.last = Some(after);
                    reader.begins = true;
                }
            }
            Resume::Rewritten {
                generation,
                from,
                why,
            } => {
                self.trace.note(format_args!(
                    "daemon {daemon} begins generation {generation}: {}",
                    why.as_str()
                ));
                let base = self.base(generation, from.as_nanos());
                self.begin(daemon, base);
                self.count("rewritten inputs noticed");
            }
        }
        self.seek(daemon);
    }

    /// What the real decision says of the stream as it is now.
    fn resume(&self, positions: &[Option<Position>]) -> Resume {
        let input = &self.broker.input;
        let verified = position_to_verify(positions).map_or(0, |it| it.cursor.sequence);
        let view = StreamView {
            created: Timestamp::from_nanos(input.created),
            first_sequence: input.first,
            last_sequence: input.last,
            at_position: input.messages.get(&verified).map(|message| {
                let hash = placement_hash(message.bytes.as_bytes());
                (Timestamp::from_nanos(message.timestamp), hash)
            }),
        };
        let resumed = resume(positions, &view);
        match (&resumed, position_to_verify(positions)) {
            (Resume::Continue { missing, .. }, Some(after)) if self.is(Bug::ResumedAtHighest) => {
                let missing = *missing;
                Resume::Continue { after, missing }
            }
            (Resume::Rewritten { .. }, Some(after)) if self.is(Bug::RewriteUnnoticed) => {
                Resume::Continue { after, missing: 0 }
            }
            _ => resumed,
        }
    }

    /// The consumer begins behind the last watermark, or at an instant where that has no number.
    fn seek(&mut self, daemon: usize) {
        let last = self.daemons[daemon].reader.last.expect("it is open");
        let input = &self.broker.input;
        let next = if last.cursor.sequence > 0 {
            last.cursor.sequence + 1
        } else {
            let from = last.timestamp.as_nanos();
            let mut held = input.messages.iter();
            let first = held.find(|(_, message)| message.timestamp >= from);
            first.map_or(input.last + 1, |(&at, _)| at)
        };
        self.daemons[daemon].reader.next = next;
    }

    /// Takes what the stream holds next, once everything allows it.
    pub(super) fn read(&mut self, daemon: usize) {
        let at = &self.daemons[daemon];
        if !at.reader.is_connected || !self.holds_claim(daemon) {
            return;
        }
        if at.num_owed() > MAX_OWED && !self.is(Bug::OwedUnbounded) {
            self.count("reads held back by what is owed");
            return;
        }
        if self.daemons[daemon].reader.is_waiting_for_all {
            return;
        }
        let num_messages = 1 + self.choices.place(5);
        let at = &self.daemons[daemon];
        let begins = at.reader.begins;
        let messages: Vec<_> = if begins {
            Vec::new()
        } else {
            let held = self.broker.input.messages.range(at.reader.next..);
            let held = held.take(num_messages);
            held.map(|(&at, message)| (at, Arc::clone(message)))
                .collect()
        };
        if messages.is_empty() && !begins {
            return;
        }
        let num_permits = messages.len().max(1);
        if at.permits < num_permits && !self.is(Bug::NoPermits) {
            self.count("reads held back by permits");
            return;
        }
        self.forward(daemon, messages, num_permits);
    }

    fn forward(&mut self, daemon: usize, messages: Vec<(u64, Arc<Message>)>, num_permits: usize) {
        let is_counted = !self.is(Bug::NoPermits);
        let at = &mut self.daemons[daemon];
        let (reader, process) = (&mut at.reader, at.process);
        let mut watermark = reader.last.expect("it is open");
        let generation = watermark.cursor.generation;
        if let Some((sequence, message)) = messages.last() {
            watermark.cursor.sequence = *sequence;
            watermark.timestamp = Timestamp::from_nanos(message.timestamp);
            watermark.fingerprint = Some(placement_hash(message.bytes.as_bytes()));
            reader.next = sequence + 1;
        }
        reader.last = Some(watermark);
        let is_ahead = |highest: &Position| highest.cursor > watermark.cursor;
        reader.highest = reader.highest.filter(is_ahead);
        (reader.is_waiting_for_all, reader.begins) = (reader.begins, false);
        reader.num_batches += 1;
        let number = reader.num_batches;
        for (sequence, message) in &messages {
            let cursor = Cursor {
                generation,
                sequence: *sequence,
            };
            self.oracle.read(process, cursor, message);
        }
        self.trace.note(format_args!(
            "daemon {daemon} reads {} messages up to {:?} as batch {number}",
            messages.len(),
            watermark.cursor
        ));
        if is_counted {
            at.permits -= num_permits;
        }
        let num_permits = if is_counted { num_permits } else { 0 };
        at.in_hand.insert(number, (num_permits, at.routers.len()));
        let batch = Arc::new(Batch {
            number,
            origin: watermark.origin,
            generation,
            messages,
            watermark,
        });
        for router in 0..at.routers.len() {
            at.routes.push((router, Arc::clone(&batch)));
        }
    }

    /// A router has let go of a batch: the last one returns its permits.
    pub(super) fn let_go(&mut self, daemon: usize, number: u64) {
        let at = &mut self.daemons[daemon];
        let Some((permits, num_routers)) = at.in_hand.get_mut(&number) else {
            return;
        };
        *num_routers -= 1;
        if *num_routers == 0 {
            at.permits += *permits;
            at.in_hand.remove(&number);
        }
        if at.in_hand.is_empty() {
            at.reader.is_waiting_for_all = false;
        }
    }

    pub(super) fn disconnect(&mut self, daemon: usize) {
        // Without a stream there is no other process that keeps what arrives meanwhile.
        if self.daemons[daemon].reader.is_connected && self.plan.has_stream {
            self.daemons[daemon].reader.is_connected = false;
            self.trace
                .note(format_args!("daemon {daemon} loses its connection"));
            self.count("connections lost");
        }
    }

    pub(super) fn disconnect_all(&mut self) {
        (0..self.daemons.len()).for_each(|daemon| self.disconnect(daemon));
    }
}
