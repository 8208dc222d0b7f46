//! The input: publishers, the stream and what harms it, and the reader that follows it.

use super::*;

impl<D: Observed> World<D> {
    pub(super) fn publish(&mut self) {
        let user = USERS[self.rng.place(USERS.len())];
        let now_s = self.now / SECOND;
        let kind = match self.rng.below(100) {
            0..66 => Kind::Change {
                user,
                alarm: ALARMS[self.rng.place(ALARMS.len())],
                status: ["CLEARED", "WARNING", "CRITICAL"][self.rng.place(3)],
                at_s: (now_s + 2).saturating_sub(self.rng.below(6)),
            },
            66..94 => Kind::Request { user },
            94..99 => Kind::Junk,
            _ => Kind::Poison,
        };
        let repeats = self.input.messages.len();
        let again = self.rng.chance(15) && repeats > 0;
        let repeated = again.then(|| self.rng.place(repeats));
        let repeated = repeated.and_then(|place| self.input.messages.values().nth(place).cloned());
        let mut message = repeated.unwrap_or_else(|| {
            let is_users = matches!(kind, Kind::Change { .. } | Kind::Request { .. });
            let bytes = format!("{kind:?}");
            let placed = if is_users { user } else { bytes.as_str() };
            let lane = placement_hash(placed.as_bytes());
            let num_partitions = u16::try_from(self.stored.len()).expect("few partitions");
            let partition = usize::from(PartitionId::of(lane, num_partitions).0);
            let (uid, timestamp) = (0, 0);
            Message {
                uid,
                timestamp,
                partition,
                lane,
                kind,
                bytes,
            }
        });
        if !self.plan.has_stream && !self.is_connected {
            return;
        }
        self.next_uid += 1;
        (message.uid, message.timestamp) = (self.next_uid, self.now);
        self.input.last += 1;
        let at = self.input.last;
        self.note(format!(
            "publish {at} (#{}) p{} {}",
            message.uid, message.partition, message.bytes
        ));
        self.input.messages.insert(at, message);
    }

    pub(super) fn origin(&self) -> Origin {
        if self.plan.has_stream {
            let created = Timestamp::from_nanos(self.input.created);
            Origin::Stream { created }
        } else {
            Origin::Session
        }
    }

    pub(super) fn position(&self, sequence: u64, timestamp: u64) -> Position {
        let message = self.input.messages.get(&sequence);
        Position {
            origin: self.origin(),
            cursor: Cursor {
                generation: self.generation,
                sequence,
            },
            timestamp: Timestamp::from_nanos(message.map_or(timestamp, |it| it.timestamp)),
            fingerprint: message.map(|it| placement_hash(it.bytes.as_bytes())),
        }
    }

    /// Decides where to read on, from what the store holds and what was read.
    pub(super) fn connect(&mut self) {
        if !self.is_up || self.is_connected || self.workers.iter().any(Option::is_none) {
            return;
        }
        self.is_connected = true;
        let mut positions: Vec<_> = self.stored.iter().map(|it| it.header.position).collect();
        if !self.plan.has_stream {
            let last = positions
                .iter()
                .flatten()
                .map(|it| it.cursor.generation)
                .max();
            self.generation = last.map_or(0, |last| last + 1);
            self.input = Stream::new(self.now);
            // A process that committed nothing leaves its generation to the next.
            (0..self.stored.len()).for_each(|it| self.oracle.forget_uncovered(it));
            self.begin(1, self.now, true);
            return;
        }
        positions.push(self.highest);
        let verified = position_to_verify(&positions).map_or(0, |it| it.cursor.sequence);
        let view = StreamView {
            created: Timestamp::from_nanos(self.input.created),
            first_sequence: self.input.first,
            last_sequence: self.input.last,
            at_position: self.input.messages.get(&verified).map(|message| {
                let hash = placement_hash(message.bytes.as_bytes());
                (Timestamp::from_nanos(message.timestamp), hash)
            }),
        };
        let mut resumed = resume(&positions, &view);
        let highest = position_to_verify(&positions);
        match (&mut resumed, highest) {
            (Resume::Continue { after, .. }, Some(highest)) if self.is(Bug::ResumedAtHighest) => {
                *after = highest;
            }
            (Resume::Rewritten { .. }, Some(after)) if self.is(Bug::RewriteUnnoticed) => {
                resumed = Resume::Continue { after, missing: 0 };
            }
            _ => {}
        }
        match resumed {
            Resume::Fresh => self.begin(self.input.first, 0, false),
            Resume::Continue { after, missing } => {
                self.note(format!(
                    "read on after {:?}, {missing} missing",
                    after.cursor
                ));
                self.generation = after.cursor.generation;
                self.next = after.cursor.sequence + 1;
                let known = self.highest.filter(|known| known.cursor > after.cursor);
                self.highest = Some(known.unwrap_or(after));
                self.hand_out(&[], after);
            }
            Resume::Rewritten {
                generation,
                from,
                why,
            } => {
                self.note(format!("generation {generation}: {}", why.as_str()));
                self.generation = generation;
                let from = from.as_nanos();
                let mut held = self.input.messages.iter();
                let first = held.find(|(_, message)| message.timestamp >= from);
                self.begin(first.map_or(self.input.last + 1, |(&at, _)| at), from, true);
            }
        }
    }

    pub(super) fn begin(&mut self, first: u64, timestamp: u64, is_new: bool) {
        let watermark = Position {
            fingerprint: None,
            ..self.position(first - 1, timestamp)
        };
        let watermark = Position {
            timestamp: Timestamp::from_nanos(timestamp),
            ..watermark
        };
        self.note(format!(
            "begin before {first} in generation {}",
            self.generation
        ));
        self.next = first;
        self.highest = Some(watermark);
        for worker in self
            .workers
            .iter_mut()
            .flatten()
            .filter(|it| it.is_fresh && is_new)
        {
            worker.begins_at.fill(self.generation);
        }
        self.hand_out(&[], watermark);
    }

    pub(super) fn hand_out(&mut self, messages: &[(u64, Message)], watermark: Position) {
        let num_workers = self.plan.num_workers;
        for number in 0..num_workers {
            let own = messages
                .iter()
                .filter(|(_, it)| it.partition % num_workers == number);
            let messages = Arc::new(own.cloned().collect());
            let batch = Batch {
                generation: self.generation,
                messages,
                watermark,
            };
            if !self.plan.has_stream {
                self.retained[number].push_back(batch.clone());
            }
            if let Some(worker) = &mut self.workers[number] {
                worker.is_fresh = false;
                worker.mailbox.push_back(batch);
            }
        }
    }

    pub(super) fn read(&mut self) {
        let has_begun = self.stored.iter().all(|it| it.header.position.is_some());
        if !self.is_connected || !has_begun || self.next > self.input.last {
            return;
        }
        let num_messages = 1 + self.rng.place(5);
        let batch: Vec<_> = self
            .input
            .messages
            .range(self.next..)
            .take(num_messages)
            .map(|(&at, message)| (at, message.clone()))
            .collect();
        let last = batch.last().map_or(self.input.last, |(at, _)| *at);
        for (at, message) in &batch {
            self.oracle.read(self.generation, *at, message);
        }
        let watermark = self.position(last, self.now);
        self.note(format!(
            "read {}..={last} in generation {}",
            self.next, self.generation
        ));
        self.next = last + 1;
        if self
            .highest
            .is_none_or(|highest| highest.cursor < watermark.cursor)
        {
            self.highest = Some(watermark);
        }
        self.hand_out(&batch, watermark);
    }

    pub(super) fn harm_stream(&mut self) {
        if !self.plan.has_stream {
            return;
        }
        let lowest = self
            .stored
            .iter()
            .map(|it| it.header.position.map_or(0, |it| it.cursor.sequence));
        let lowest = lowest.min().unwrap_or(0);
        match self.rng.below(3) {
            0 if self.plan.is_rewritten => {
                let lost = (1 + self.rng.below(20)).min(self.input.last + 1 - self.input.first);
                self.input.last -= lost;
                let _ = self.input.messages.split_off(&(self.input.last + 1));
                self.is_connected = false;
                self.note(format!("the stream is rolled back to {}", self.input.last));
            }
            1 if self.plan.is_rewritten && self.rng.chance(30) => {
                self.input = Stream::new(self.now);
                self.is_connected = false;
                self.note("the stream is made anew");
            }
            2 => {
                // What a process has in hand is not purged under it; what nobody has read may be.
                let bound = if self.is_up {
                    lowest.min(self.input.last)
                } else {
                    self.input.last
                };
                let to = self
                    .input
                    .first
                    .max(bound.saturating_sub(self.rng.below(6)) + 1);
                self.input.first = to;
                self.input.messages = self.input.messages.split_off(&to);
                self.note(format!("the stream is purged up to {to}"));
            }
            _ => {}
        }
    }

    pub(super) fn wait(&mut self) {
        let most = match self.rng.below(4) {
            0 if self.plan.is_rewritten => 900,
            0 => 9000,
            _ => 100,
        };
        let seconds = self.rng.below(most);
        self.now += seconds * SECOND;
        self.note(format!("{seconds} s pass"));
    }
}
