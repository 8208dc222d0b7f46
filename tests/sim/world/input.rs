//! The input: publishers, those who wait for an answer and repeat, the stream, and what harms it.

use tocsin::core::ids::placement_hash;
use tocsin::core::partition::Reply;

use crate::oracle::{Kind, Message};

use super::*;

const USERS: [&str; 4] = [
    "anna",
    "0f8fad5b-d9cb-469f-a165-70867728950e",
    "userID-1",
    "\u{1F514}",
];
const ALARMS: [&str; 6] = [
    "disk",
    "11111111-2222-3333-4444-555555555555",
    "cpu 1",
    "a\"b",
    "22222222-2222-3333-4444-555555555555",
    "\u{E9}",
];

/// The input: a stream of the broker, or what a process without one has received.
pub(super) struct Stream {
    pub(super) created: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) messages: BTreeMap<u64, Arc<Message>>,
}

impl Stream {
    pub(super) fn new(created: u64) -> Self {
        let (first, last, messages) = (1, 0, BTreeMap::new());
        Self {
            created,
            first,
            last,
            messages,
        }
    }
}

/// A publisher without a stream that repeats its message until it is answered.
pub(super) struct Waiting {
    message: Message,
    /// The copies that it has sent.
    uids: Vec<u64>,
    /// The process that the last one reached.
    reached: u64,
}

impl<D: Observed> World<D> {
    pub(super) fn publish(&mut self) {
        let mut message = self.draw_message();
        let has_reply = self
            .choices
            .chance(if self.plan.has_stream { 10 } else { 40 });
        message.has_reply = has_reply;
        let uid = self.receive(message.clone());
        if !self.plan.has_stream && has_reply {
            self.waiting.push(Waiting {
                message,
                uids: uid.into_iter().collect(),
                reached: self.daemons[0].process,
            });
        }
    }

    fn draw_message(&mut self) -> Message {
        let user = USERS[self.choices.place(USERS.len())];
        let alarm = ALARMS[self.choices.place(ALARMS.len())];
        let status = ["CRITICAL", "WARNING", "CLEARED"][self.choices.place(3)];
        let now_s = self.now / SECOND;
        let at_s = (now_s + 2).saturating_sub(self.choices.below(6));
        let kind = match self.choices.below(100) {
            0..74 => Kind::Change {
                user,
                alarm,
                status,
                at_s,
            },
            74..94 => Kind::Request { user },
            94..99 => Kind::Junk,
            _ => Kind::Poison,
        };
        let num_held = self.broker.input.messages.len();
        if self.choices.chance(15) && num_held > 0 {
            self.count("messages published again");
            let place = self.choices.place(num_held);
            let held = self.broker.input.messages.values().nth(place);
            return Message::clone(held.expect("a place among them"));
        }
        let bytes = match &kind {
            Kind::Change { .. } => format!("{user} {alarm:?} {status} {at_s}"),
            Kind::Request { .. } => format!("{user} asks"),
            Kind::Junk => format!("junk {at_s} {alarm:?}"),
            Kind::Poison => format!("poison {at_s} {alarm:?}"),
        };
        let is_users = matches!(kind, Kind::Change { .. } | Kind::Request { .. });
        let placed = if is_users { user } else { bytes.as_str() };
        let lane = placement_hash(placed.as_bytes());
        let num_partitions = u16::try_from(self.plan.num_partitions).expect("few partitions");
        Message {
            uid: 0,
            timestamp: 0,
            partition: usize::from(PartitionId::of(lane, num_partitions).0),
            lane,
            kind,
            bytes,
            has_reply: false,
        }
    }

    /// The broker stores a message; without a stream it reaches whoever listens, or nobody.
    fn receive(&mut self, mut message: Message) -> Option<u64> {
        let clock_offset = if self.plan.has_stream {
            self.broker.clock
        } else {
            let daemon = &self.daemons[0];
            if !daemon.reader.is_connected || daemon.is_frozen {
                return None;
            }
            daemon.clock
        };
        self.next_uid += 1;
        message.uid = self.next_uid;
        message.timestamp = clock(self.now, clock_offset);
        let input = &mut self.broker.input;
        input.last += 1;
        self.trace.note(format_args!(
            "publish {} (#{}) p{} {}",
            input.last, message.uid, message.partition, message.bytes
        ));
        input.messages.insert(input.last, Arc::new(message));
        self.count("messages published");
        Some(self.next_uid)
    }

    /// One who waits has lost patience, or the process that it had reached.
    pub(super) fn publish_unanswered(&mut self, is_impatient: bool) {
        if self.waiting.is_empty() || self.plan.has_stream {
            return;
        }
        let place = self.choices.place(self.waiting.len());
        let process = self.daemons[0].process;
        let is_unheard = |it: &Waiting| it.reached != process || it.uids.is_empty();
        for place in if is_impatient {
            place..place + 1
        } else {
            0..self.waiting.len()
        } {
            if !is_impatient && !is_unheard(&self.waiting[place]) {
                continue;
            }
            let message = self.waiting[place].message.clone();
            if let Some(uid) = self.receive(message) {
                self.waiting[place].uids.push(uid);
                self.waiting[place].reached = process;
                self.count("messages published again");
            }
        }
    }

    /// Publishers are answered: what they asked for must be in the state.
    pub(super) fn answer(&mut self, daemon: usize, replies: &[Reply]) -> Checked {
        let store = self.daemons[daemon].store;
        for reply in replies {
            let uid: u64 = reply.to.parse().expect("a number of ours");
            demand(
                "I-03 an answered message is durable",
                self.oracle.is_applied(store, uid),
                || format!("#{uid} is answered and not in the state"),
            )?;
            self.trace.note(format_args!("#{uid} is answered"));
            self.waiting.retain(|it| !it.uids.contains(&uid));
            self.count("publishers answered");
        }
        Ok(())
    }

    /// The stream is rolled back, made anew, or purged.
    pub(super) fn harm_input(&mut self) {
        if !self.plan.has_stream {
            return;
        }
        match self.choices.below(3) {
            0 if self.plan.is_rewritten => {
                let input = &mut self.broker.input;
                let most = input.last + 1 - input.first;
                input.last -= (1 + self.choices.below(20)).min(most);
                let kept = input.last;
                drop(input.messages.split_off(&(kept + 1)));
                self.trace
                    .note(format_args!("the stream is rolled back to {kept}"));
                self.count("input streams rolled back");
                self.disconnect_all();
            }
            1 if self.plan.is_rewritten && self.choices.chance(30) => {
                self.broker.input = Stream::new(self.now);
                self.trace.note(format_args!("the stream is made anew"));
                self.count("input streams made anew");
                self.disconnect_all();
            }
            // Another store would begin without what is gone.
            2 if self.plan.deployment != Deployment::TwoStores => {
                // What a process has in hand is not purged under it; what nobody has read may be.
                let is_read = self.daemons.iter().any(|it| it.is_up);
                let positions = self.stores[0].iter().map(|it| it.header.position);
                let lowest = positions.map(|it| it.map_or(0, |it| it.cursor.sequence));
                let last = self.broker.input.last;
                let bound = if is_read {
                    lowest.min().unwrap_or(0).min(last)
                } else {
                    last
                };
                let spared = self.choices.below(6);
                let input = &mut self.broker.input;
                input.first = input.first.max(bound.saturating_sub(spared) + 1);
                input.messages = input.messages.split_off(&input.first);
                self.trace
                    .note(format_args!("the stream is purged up to {}", input.first));
                self.count("input streams purged");
            }
            _ => {}
        }
    }

    /// Time passes in which nothing moves.
    pub(super) fn wait(&mut self) {
        let most = match self.choices.below(4) {
            3 if self.plan.is_rewritten => 900,
            3 => 9000,
            _ => 100,
        };
        let seconds = self.choices.below(most);
        self.pass(seconds * SECOND);
        self.trace.note(format_args!("{seconds} s pass"));
        if seconds * SECOND > WINDOW {
            self.count("outages longer than the duplicate window");
        }
    }

    /// The broker's clock, or a daemon's, jumps forwards or back.
    pub(super) fn step_clock(&mut self, daemon: usize) {
        let is_lonely = self.plan.deployment == Deployment::One;
        let is_brokers = self.choices.chance(50);
        let most: i64 = match (is_lonely, is_brokers) {
            // Which of two stores sends first is told by age: a wrong clock is shouted long before this.
            (false, _) => 10,
            (true, true) => 300,
            (true, false) if !self.plan.has_stream => 300,
            (true, false) => 7200,
        };
        let range = u64::try_from(2 * most + 1).expect("a positive range");
        let drawn = i64::try_from(self.choices.below(range)).expect("a small number");
        let offset = (drawn - most) * 1_000_000_000;
        if is_brokers {
            self.broker.clock = offset;
            self.trace
                .note(format_args!("the broker's clock is {} s off", drawn - most));
        } else {
            self.daemons[daemon].clock = offset;
            self.trace.note(format_args!(
                "daemon {daemon}'s clock is {} s off",
                drawn - most
            ));
        }
        self.count("clock steps");
    }
}
