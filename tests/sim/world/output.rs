//! What goes out: producers, the network, the output stream with its duplicate window.

use super::*;

impl<D: Observed> World<D> {
    pub(super) fn poll(&mut self, number: usize) -> Checked {
        let mut outputs = Vec::new();
        if let Some(worker) = &mut self.workers[number] {
            for partition in &mut worker.partitions {
                let id = usize::from(partition.id().0);
                outputs.extend(std::iter::from_fn(|| partition.poll()).map(|output| (id, output)));
            }
        }
        for (partition, output) in outputs {
            match output {
                Output::Release { position, .. } => {
                    let stored = self.stored[partition].position.map(|it| it.cursor);
                    let released = position.map(|it| it.cursor);
                    demand(
                        "I-03 nothing is released before it is durable",
                        released <= stored,
                        || format!("partition {partition} releases {released:?} at {stored:?}"),
                    )?;
                }
                Output::Publish(owed) => self.owe(partition, owed)?,
                Output::InstallSnapshot(head) => self.install(number, head)?,
            }
        }
        Ok(())
    }

    pub(super) fn owe(&mut self, partition: usize, owed: Arc<Owed<Digest>>) -> Checked {
        let mut rows = self.stored[partition].shadow.outbox().rows_from(owed.key);
        let is_stored = rows.next().is_some_and(|it| it.key == owed.key);
        demand(
            "I-03 nothing is published before it is durable",
            is_stored,
            || format!("partition {partition} publishes {:?}", owed.key),
        )?;
        drop(rows);
        let mut all = vec![owed];
        if self.is(Bug::TwoInFlight) {
            all = self.stored[partition]
                .shadow
                .outbox()
                .rows_from(OutboxKey(0))
                .cloned()
                .collect();
        }
        for owed in all {
            let is_new = |task: &Task| task.partition != partition || task.owed.key != owed.key;
            if !self.tasks.iter().all(is_new) {
                continue;
            }
            self.num_ids += 1;
            let id = if self.is(Bug::IdsFromCounter) {
                format!("count-{}", self.num_ids)
            } else {
                owed.id.to_string()
            };
            // Attempts of an earlier owner are as old as the message may be.
            let first = owed.is_recovered.then(|| owed.since.as_nanos());
            self.tasks.push(Task {
                partition,
                owed,
                id,
                first,
                is_sent: false,
            });
        }
        Ok(())
    }

    pub(super) fn send(&mut self) -> Checked {
        let waiting: Vec<_> = (0..self.tasks.len())
            .filter(|&i| !self.tasks[i].is_sent)
            .collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let at = waiting[self.rng.place(waiting.len())];
        let (now, looks) = (self.now, !self.is(Bug::NoLookup));
        let task = &self.tasks[at];
        let (partition, key, lane) = (task.partition, task.owed.key, task.owed.lane);
        let alone = |other: &Task| {
            other.partition != partition
                || other.owed.lane != lane
                || other.owed.key == key
                || !other.is_sent
        };
        demand(
            "I-05 one of a lane is under way",
            self.tasks.iter().all(alone),
            || format!("partition {partition} sends {key:?} beside another of its lane"),
        )?;
        let task = &mut self.tasks[at];
        if looks
            && task
                .first
                .is_some_and(|first| now.saturating_sub(first) > WINDOW / 2)
        {
            let from = usize::try_from(task.owed.search_from).expect("a short output");
            let found = self
                .output
                .iter()
                .skip(from)
                .position(|it| it.id == task.id);
            if let Some(found) = found {
                task.is_sent = true;
                let sequence = (from + found + 1) as u64;
                self.confirmations
                    .push((partition, key, sequence, self.process));
                self.note(format!("p{partition} finds {key:?} in the output"));
                return Ok(());
            }
            task.first = Some(now);
        }
        *self.num_sent.entry((partition, key)).or_default() += 1;
        let is_first = task.first.is_none();
        task.first.get_or_insert(now);
        task.is_sent = true;
        let published = Published {
            id: task.id.clone(),
            lane,
            content: content(&task.owed.body),
            at: now,
        };
        let confirms_to = self.process;
        self.note(format!("p{partition} sends {key:?} as {}", published.id));
        self.network.push(Attempt {
            partition,
            key,
            published,
            is_first,
            confirms_to,
        });
        if self.is(Bug::RemovedAtSend) {
            self.confirmations.push((partition, key, 0, self.process));
        }
        Ok(())
    }

    /// An attempt reaches the broker, or is lost on the way there or back.
    pub(super) fn arrive(&mut self, may_lose: bool) -> Checked {
        let now = self.now;
        self.network
            .retain(|attempt| now - attempt.published.at <= WINDOW / 4);
        if self.network.is_empty() {
            return Ok(());
        }
        let attempt = self.network.swap_remove(self.rng.place(self.network.len()));
        let fate = if may_lose { self.rng.below(100) } else { 99 };
        if fate < 10 {
            self.note(format!("{} is lost", attempt.published.id));
            return Ok(());
        }
        let known = self
            .output
            .iter()
            .rposition(|it| it.id == attempt.published.id);
        let is_known = known.is_some_and(|place| now - self.output[place].at <= WINDOW);
        demand(
            "I-07 no id is stored twice",
            known.is_none() || is_known,
            || format!("{} is stored again", attempt.published.id),
        )?;
        let num_sent = self.num_sent.get(&(attempt.partition, attempt.key));
        let is_fresh_repeat = is_known && attempt.is_first && num_sent == Some(&1);
        demand(
            "I-07 no first attempt is a repeat",
            !is_fresh_repeat,
            || attempt.published.id.clone(),
        )?;
        let place = if let Some(place) = known {
            demand(
                "I-07 one id is one message",
                self.output[place].content == attempt.published.content,
                || attempt.published.id.clone(),
            )?;
            place
        } else {
            self.output.push(Published {
                at: now,
                ..attempt.published.clone()
            });
            self.output.len() - 1
        };
        self.note(format!(
            "{} is stored at {}",
            attempt.published.id,
            place + 1
        ));
        if fate >= 20 {
            let (partition, key) = (attempt.partition, attempt.key);
            self.confirmations
                .push((partition, key, place as u64 + 1, attempt.confirms_to));
        }
        Ok(())
    }

    pub(super) fn confirm(&mut self, may_dally: bool) {
        if self.confirmations.is_empty() {
            return;
        }
        let at = self.rng.place(self.confirmations.len());
        let (partition, key, sequence, process) = self.confirmations[at];
        // Now and then one is on its way for so long that the partition has another owner by then.
        if may_dally && sequence % 4 == 0 && self.rng.chance(96) {
            return;
        }
        self.confirmations.swap_remove(at);
        if process != self.process || !self.is_up {
            return;
        }
        self.tasks
            .retain(|task| task.partition != partition || task.owed.key != key);
        self.note(format!("p{partition} hears that {key:?} is published"));
        // It may have been meant for an earlier owner of the partition.
        if let Some(owner) = self.live_mut(partition) {
            owner.published(key, Some(sequence));
            let number = partition % self.plan.num_workers;
            self.poll(number)
                .expect("a confirmation only publishes what is durable");
        }
    }

    /// A producer gives up waiting for one confirmation and will send again.
    pub(super) fn time_out(&mut self) {
        if self.tasks.is_empty() {
            return;
        }
        let at = self.rng.place(self.tasks.len());
        let (partition, key) = (self.tasks[at].partition, self.tasks[at].owed.key);
        if self.tasks[at].is_sent {
            self.tasks[at].is_sent = false;
            self.note(format!("p{partition} waited too long for {key:?}"));
        }
    }
}
