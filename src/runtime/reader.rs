//! The task that pulls batches in: the one place where the daemon waits for its own bounds.
//!
//! Before a batch goes on, the claim is held, no more is owed than `producers.owed`, and there is a permit for
//! each of its messages, for a large one several. Batches are numbered from 1; the listeners take turns. An empty batch says where a
//! generation begins: every partition commits that before the generation's first message is taken.

use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use futures::FutureExt;
use tokio::sync::{Semaphore, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::bus::{Input, RawBatch, RawMessage};
use crate::core::partition::Domain;
use crate::core::position::Origin;

use super::delivery::{Batch, Read};
use super::listener::Listener;
use super::metrics::{Aggregator, Metric, Observation, Observed, Source};
use super::{Lifeline, Shared};

/// How many messages a batch holds at the most.
const MAX_BATCH: usize = 4096;
/// How much of a message one permit is for.
const BYTES_PER_PERMIT: usize = 1024;
/// How often the reader reports.
const REPORT: Duration = Duration::from_secs(1);

/// Pulls batches in.
pub(super) struct Reader<D: Domain> {
    input: Box<dyn Input>,
    shared: Arc<Shared<D>>,
    listeners: Vec<Addr<Listener<D>>>,
    permits: Arc<Semaphore>,
    aggregator: Addr<Aggregator>,
    number: u64,
    _lifeline: Lifeline,
}

impl<D: Domain> Reader<D> {
    pub(super) fn new(
        input: Box<dyn Input>,
        shared: Arc<Shared<D>>,
        listeners: Vec<Addr<Listener<D>>>,
        permits: Arc<Semaphore>,
        aggregator: Addr<Aggregator>,
    ) -> Self {
        Self {
            _lifeline: shared.faults.clone().lifeline("reader"),
            input,
            shared,
            listeners,
            permits,
            aggregator,
            number: 0,
        }
    }

    /// Makes every partition commit where reading begins, so that all of them have a position.
    pub(super) async fn begin(&mut self) {
        let watermark = self.input.begin();
        let (origin, generation) = (watermark.origin, watermark.cursor.generation);
        let messages = Vec::new();
        self.forward(RawBatch {
            origin,
            generation,
            messages,
            watermark,
        })
        .await;
    }

    /// Reads until it is told to stop. What was pulled and not forwarded is read again after the next start.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut report = interval(REPORT);
        report.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let max_messages = MAX_BATCH.min(self.shared.settings.in_flight);
        loop {
            tokio::select! {
                biased;
                () = told(&mut stop) => break,
                _ = report.tick() => self.report(),
                batch = self.input.next(max_messages) => match batch.origin {
                    Origin::Session => self.forward(batch).await,
                    // The stream keeps it: it is read again.
                    Origin::Stream { .. } => tokio::select! {
                        biased;
                        () = told(&mut stop) => break,
                        () = self.forward(batch) => {}
                    },
                },
            }
        }
        self.input.close().await;
        self.forward_arrived(max_messages).await;
        self.report();
    }

    /// Forwards what the broker keeps no copy of, to the last message: the input is closed.
    async fn forward_arrived(&mut self, max_messages: usize) {
        while self.input.begin().origin == Origin::Session
            && let Some(batch) = self.input.next(max_messages).now_or_never()
        {
            self.forward(batch).await;
        }
    }

    async fn forward(&mut self, raw: RawBatch) {
        let settings = self.shared.settings;
        self.shared.edges.claim.held().await;
        self.shared
            .owed
            .at_most(settings.owed_rows, settings.owed_bytes)
            .await;
        let Ok(permit) = Arc::clone(&self.permits)
            .acquire_many_owned(num_permits(&raw.messages, settings.in_flight))
            .await
        else {
            return;
        };
        let is_beginning = raw.messages.is_empty();
        self.number += 1;
        let read = Read {
            number: self.number,
            batch: Arc::new(Batch { raw, permit }),
        };
        let turn = self.number % u64::try_from(self.listeners.len()).unwrap_or(1).max(1);
        if let Some(listener) = self
            .listeners
            .get(usize::try_from(turn).unwrap_or_default())
        {
            self.shared.faults.send(listener, read);
        }
        if is_beginning {
            let all = u32::try_from(settings.in_flight).unwrap_or(u32::MAX);
            // All permits are back when everything before is committed, the beginning included.
            drop(self.permits.acquire_many(all).await);
        }
    }

    fn report(&mut self) {
        let stats = self.input.take_stats();
        let in_flight = self.shared.settings.in_flight - self.permits.available_permits();
        let (owed, owed_bytes) = self.shared.owed.now();
        let observations = vec![
            Observation::level(Metric::InputLag, stats.lag as f64),
            Observation::count(Metric::InputLost, stats.missing).with("how", "missing"),
            Observation::count(Metric::InputLost, stats.dropped).with("how", "dropped"),
            Observation::count(Metric::InputRewrites, stats.rewrites),
            Observation::level(Metric::InFlight, in_flight as f64),
            Observation::level(Metric::Owed, owed as f64),
            Observation::level(Metric::OwedBytes, owed_bytes as f64),
        ];
        // Telemetry may be lost.
        drop(self.aggregator.try_send(Observed {
            source: Source::Reader,
            observations,
        }));
    }
}

/// What a batch weighs: a permit for each KiB that a message begins. One that weighs more than there is goes alone.
fn num_permits(messages: &[RawMessage], in_flight: usize) -> u32 {
    let weights = messages.iter().map(|message| {
        let num_bytes = message.subject.len() + message.payload.len();
        num_bytes.div_ceil(BYTES_PER_PERMIT).max(1)
    });
    let weight = weights.sum::<usize>().clamp(1, in_flight);
    u32::try_from(weight).unwrap_or(u32::MAX)
}

/// Resolves when the reader is told to stop.
async fn told(stop: &mut watch::Receiver<bool>) {
    // The sender lives as long as the runtime; without it there is nobody left to read for.
    drop(stop.wait_for(|stop| *stop).await);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::time::Timestamp;

    #[test]
    fn a_batch_weighs_what_its_messages_take() {
        let message = |num_bytes: usize| RawMessage {
            sequence: 1,
            timestamp: Timestamp::EPOCH,
            subject: "1234".into(),
            payload: vec![0; num_bytes].into(),
            reply_to: None,
        };
        let weighs = |sizes: &[usize], in_flight| {
            let messages: Vec<_> = sizes.iter().map(|&size| message(size)).collect();
            num_permits(&messages, in_flight)
        };
        assert_eq!(weighs(&[], 100), 1);
        assert_eq!(weighs(&[0, 100, 1020], 100), 3);
        assert_eq!(weighs(&[1021, 100_000], 1000), 2 + 98);
        assert_eq!(weighs(&[100_000], 10), 10, "it goes alone");
    }
}
