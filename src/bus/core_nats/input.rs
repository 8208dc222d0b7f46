//! Reads the input subjects of a server without streams, and accounts for every message received.
//!
//! ```text
//! plain subscriptions ───┐ all that has arrived, then
//! barrier subscriptions ─┴─► pump ─► the queue, bounded ─► next
//! ```
//!
//! The pump is a task of its own on the connection's runtime: it empties the client's buffers whatever the
//! reader does, so the order of taking is close to that of arrival, and a stalled reader loses nothing before
//! the queue is full. It first takes barrier messages and then drains every plain subscription: the client
//! fills its buffers in the order of receipt, so a plain message that came before a barrier message is there
//! by then. At the end an echo says that all that the server had taken has arrived. Lost is what the queue
//! refused, to the message, and what the client received less what was taken from it: nothing else comes over
//! this connection.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::task::coop::unconstrained;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error};

use super::{Settings, ended};
use crate::bus::connection::{Connection, Violation};
use crate::bus::{BusError, Input, InputStats, RawBatch, RawMessage, wall_clock};
use crate::core::ids::placement_hash;
use crate::core::position::{Origin, Position};

/// How many messages are moved at once.
const CHUNK: usize = 1024;
/// How often losses and the connection are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// How long the echo of an opening is waited for before another is sent.
const ECHO_WITHIN: Duration = Duration::from_secs(2);
/// Tells the last echo from those of the opening.
const LAST_ECHO: Bytes = Bytes::from_static(b"end");

/// The input of a server without streams.
pub(super) struct CoreInput {
    begin: Position,
    queue: Arc<Queue>,
    max_waiting: usize,
    closing: Arc<Notify>,
    /// `None` once it has ended.
    pump: Option<AbortOnDropHandle<()>>,
}

impl CoreInput {
    /// Subscribes, and returns when the server has processed it.
    pub(super) async fn open(
        connection: Connection,
        settings: &Settings,
        begin: Position,
    ) -> Result<Self, BusError> {
        let queue = Arc::new(Queue {
            waiting: Mutex::default(),
            arrived: Notify::new(),
        });
        let runtime = connection.runtime().clone();
        let mut pump = Pump::open(connection, settings, queue.clone()).await?;
        pump.settle().await?;
        let closing = Arc::<Notify>::default();
        let running = runtime.spawn(pump.run(Arc::clone(&closing)));
        Ok(Self {
            begin,
            queue,
            max_waiting: settings.max_waiting,
            closing,
            pump: Some(AbortOnDropHandle::new(running)),
        })
    }

    fn take(&self, max_messages: usize) -> Option<RawBatch> {
        let messages: Vec<_> = {
            let mut waiting = self.queue.lock();
            let num_taken = max_messages.min(waiting.messages.len());
            let messages: Vec<_> = waiting.messages.drain(..num_taken).collect();
            waiting.num_bytes -= messages.iter().map(num_bytes).sum::<usize>();
            messages
        };
        let last = messages.last()?;
        let mut watermark = self.begin;
        watermark.cursor.sequence = last.sequence;
        watermark.timestamp = last.timestamp;
        watermark.fingerprint = Some(placement_hash(&last.payload));
        Some(RawBatch {
            origin: Origin::Session,
            generation: self.begin.cursor.generation,
            messages,
            watermark,
        })
    }
}

impl Input for CoreInput {
    fn begin(&self) -> Position {
        self.begin
    }

    fn next(&mut self, max_messages: usize) -> BoxFuture<'_, RawBatch> {
        let reading = async move {
            loop {
                if let Some(batch) = self.take(max_messages) {
                    return batch;
                }
                // What arrives between the look and the wait leaves its permit.
                self.queue.arrived.notified().await;
            }
        };
        reading.boxed()
    }

    fn close(&mut self) -> BoxFuture<'_, ()> {
        let closing = async move {
            self.closing.notify_one();
            if let Some(pump) = &mut self.pump
                && let Err(error) = pump.await
            {
                error!(%error, "the input did not end well");
            }
            self.pump = None;
        };
        closing.boxed()
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a share of some million needs no more than 52 bits"
    )]
    fn take_stats(&mut self) -> InputStats {
        let mut waiting = self.queue.lock();
        let lag = waiting.messages.len();
        InputStats {
            dropped: std::mem::take(&mut waiting.dropped),
            restarts: std::mem::take(&mut waiting.restarts),
            lag: lag as u64,
            fill: lag as f64 / self.max_waiting.max(1) as f64,
            ..InputStats::default()
        }
    }
}

/// Messages on their way from the pump to the reader.
struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Default)]
struct Waiting {
    messages: VecDeque<RawMessage>,
    num_bytes: usize,
    last_sequence: u64,
    dropped: u64,
    restarts: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds the lock can panic.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn num_bytes(message: &RawMessage) -> usize {
    message.subject.len() + message.payload.len()
}

struct Source {
    subject: &'static str,
    name: Arc<str>,
    subscriber: Subscriber,
    /// Whether it was seen empty since the held messages were taken.
    is_clear: bool,
    /// Whether the server refused the subscription.
    is_refused: bool,
}

struct Pump {
    connection: Connection,
    max_waiting: usize,
    max_waiting_bytes: usize,
    queue: Arc<Queue>,
    plain: Vec<Source>,
    barrier: Vec<Source>,
    inbox: String,
    echoes: Subscriber,
    violations: Receiver<Violation>,
    /// Barrier messages that wait for every plain subscription to be seen empty.
    held: Vec<RawMessage>,
    /// Messages taken from the client.
    num_taken: u64,
    /// Messages that the client is known to have dropped.
    num_lost: u64,
    /// Messages that the queue had no room for.
    num_refused: u64,
    /// Dropped messages that the log knows of.
    num_said: u64,
    /// What the client had received at the last look.
    num_received: u64,
    epoch: u64,
    /// Whether the last echo came: what the server took before it has arrived.
    is_at_end: bool,
}

impl Pump {
    async fn open(
        connection: Connection,
        settings: &Settings,
        queue: Arc<Queue>,
    ) -> Result<Self, BusError> {
        let client = connection.client().clone();
        let violations = connection.violations();
        let inbox = client.new_inbox();
        let subscribe = async |subject: &str| {
            let subscribed = client.subscribe(subject.to_owned()).await;
            subscribed.map_err(|error| ended("subscribe", &error))
        };
        let sources = async |subjects: &[&'static str]| {
            let mut sources = Vec::new();
            for &subject in subjects {
                sources.push(Source {
                    subject,
                    name: subject.into(),
                    subscriber: subscribe(subject).await?,
                    is_clear: false,
                    is_refused: false,
                });
            }
            Ok::<_, BusError>(sources)
        };
        Ok(Self {
            echoes: subscribe(&inbox).await?,
            plain: sources(&settings.plain).await?,
            barrier: sources(&settings.barrier).await?,
            max_waiting: settings.max_waiting,
            max_waiting_bytes: settings.max_waiting_bytes,
            queue,
            inbox,
            violations,
            held: Vec::new(),
            num_taken: 0,
            num_lost: 0,
            num_refused: 0,
            num_said: 0,
            num_received: 0,
            epoch: connection.connected().await,
            connection,
            is_at_end: false,
        })
    }

    /// Waits until the server has processed the subscriptions: an echo comes after them.
    async fn settle(&mut self) -> Result<(), BusError> {
        loop {
            let sent = self.connection.client();
            sent.publish(self.inbox.clone(), Bytes::new())
                .await
                .map_err(|error| ended("publish", &error))?;
            if let Ok(Some(_)) = timeout(ECHO_WITHIN, self.echoes.next()).await {
                self.num_taken += 1;
                return Ok(());
            }
        }
    }

    /// Moves messages until it is told to end, and then what is still on its way.
    async fn run(mut self, closing: Arc<Notify>) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut end_by = None;
        while !self.is_at_end && end_by.is_none_or(|end_by| Instant::now() < end_by) {
            tokio::select! {
                biased;
                () = closing.notified() => {
                    end_by = Some(Instant::now() + ECHO_WITHIN);
                    self.ask_for_end().await;
                }
                _ = look.tick() => self.look().await,
                // Unconstrained as in `take_chunk`.
                chunk = unconstrained(poll_fn(|cx| self.poll_chunk(cx))) => {
                    self.push(chunk);
                    tokio::task::yield_now().await;
                }
            }
        }
        self.take_rest().await;
    }

    /// Asks for the last echo. Without a connection nothing is on its way, and none will come.
    async fn ask_for_end(&mut self) {
        let client = self.connection.client();
        let is_connected = client.connection_state() == State::Connected;
        let sent = client.publish(self.inbox.clone(), LAST_ECHO).await;
        self.is_at_end = !is_connected || sent.is_err();
    }

    /// Unsubscribes, and takes what is in the client's buffers.
    async fn take_rest(mut self) {
        // Requests first: none is taken whose change came too late.
        for source in self.barrier.iter_mut().chain(&mut self.plain) {
            if let Err(error) = source.subscriber.unsubscribe().await {
                debug!(%error, "the client ended before its subscriptions");
            }
        }
        while let Poll::Ready(chunk) = self.take_chunk().await
            && !chunk.is_empty()
        {
            self.push(chunk);
        }
        self.say_dropped();
    }

    /// Takes what has arrived, in an order that keeps the barrier.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Vec<RawMessage>> {
        while let Poll::Ready(Some(echo)) = self.echoes.poll_next_unpin(cx) {
            self.num_taken += 1;
            self.is_at_end |= echo.payload == LAST_ECHO;
        }
        if self.held.is_empty() {
            for source in &mut self.barrier {
                source.take(cx, CHUNK, &mut self.held);
            }
            self.num_taken += self.held.len() as u64;
            for source in &mut self.plain {
                source.is_clear = false;
            }
        }
        let mut chunk = Vec::new();
        for source in &mut self.plain {
            // Room for each, so that none waits for ever behind another.
            let is_empty = source.take(cx, chunk.len() + CHUNK, &mut chunk);
            source.is_clear |= is_empty;
        }
        self.num_taken += chunk.len() as u64;
        if self.plain.iter().all(|source| source.is_clear) {
            chunk.append(&mut self.held);
        }
        if chunk.is_empty() && !self.is_at_end {
            return Poll::Pending;
        }
        let now = wall_clock();
        for message in &mut chunk {
            message.timestamp = now;
        }
        Poll::Ready(chunk)
    }

    /// Takes what has arrived, without waiting for more.
    async fn take_chunk(&mut self) -> Poll<Vec<RawMessage>> {
        let now = || Context::from_waker(Waker::noop());
        let taking = poll_fn(|_| Poll::Ready(self.poll_chunk(&mut now())));
        // A budget that ends would make a full subscription look empty.
        unconstrained(taking).await
    }

    fn push(&mut self, chunk: Vec<RawMessage>) {
        {
            let mut waiting = self.queue.lock();
            for mut message in chunk {
                let size = num_bytes(&message);
                let is_full = waiting.messages.len() >= self.max_waiting
                    || waiting.num_bytes + size > self.max_waiting_bytes;
                if is_full {
                    waiting.dropped += 1;
                    self.num_refused += 1;
                    continue;
                }
                // A slice of the client's buffer would keep what arrived around it, dropped or not.
                message.payload = Bytes::copy_from_slice(&message.payload);
                waiting.last_sequence += 1;
                waiting.num_bytes += size;
                message.sequence = waiting.last_sequence;
                waiting.messages.push_back(message);
            }
        }
        self.queue.arrived.notify_one();
    }

    /// Sees what the client lost, what the server refused, and whether the connection was another one.
    async fn look(&mut self) {
        let num_received = self.received();
        if let Poll::Ready(chunk) = self.take_chunk().await {
            self.push(chunk);
        } else {
            // The client counts a message just before it buffers it, so the last may still be on its way.
            let is_settled = num_received == self.num_received;
            let handled = num_received.saturating_sub(u64::from(!is_settled));
            let num_lost = handled.saturating_sub(self.num_taken);
            self.queue.lock().dropped += num_lost.saturating_sub(self.num_lost);
            self.num_lost = num_lost.max(self.num_lost);
        }
        self.say_dropped();
        self.num_received = num_received;
        self.see_connection();
        while let Ok(violation) = self.violations.try_recv() {
            for source in self.plain.iter_mut().chain(&mut self.barrier) {
                source.is_refused |= violation == Violation::Subscribe(source.subject.to_owned());
            }
        }
        for source in self.plain.iter_mut().chain(&mut self.barrier) {
            if std::mem::take(&mut source.is_refused) {
                // Refused again, it comes back here: tried until it is granted.
                if let Ok(again) = self.connection.client().subscribe(source.subject).await {
                    source.subscriber = again;
                }
            }
        }
    }

    fn received(&self) -> u64 {
        let statistics = self.connection.client().statistics();
        statistics.in_messages.load(Ordering::Acquire)
    }

    /// Says what was dropped since the last look, by the client or by the queue.
    fn say_dropped(&mut self) {
        let num_dropped = self.num_refused + self.num_lost - self.num_said;
        if num_dropped > 0 {
            self.num_said += num_dropped;
            error!(
                num_dropped,
                "messages were dropped: more arrived than could be kept; make the store faster or the publishers slower"
            );
        }
    }

    fn see_connection(&mut self) {
        let statistics = self.connection.client().statistics();
        let epoch = statistics.connects.load(Ordering::Acquire);
        let num_new = epoch.saturating_sub(self.epoch);
        if num_new > 0 {
            self.epoch = epoch;
            self.queue.lock().restarts += num_new;
            error!(
                num_new,
                "the connection of the input was lost and made again: what was published in between is lost, and how much is not known; repeat what was not answered"
            );
        }
    }
}

impl Source {
    /// Appends what has arrived, until `into` has so many; returns whether nothing is left.
    fn take(&mut self, cx: &mut Context<'_>, until: usize, into: &mut Vec<RawMessage>) -> bool {
        while into.len() < until {
            match self.subscriber.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => into.push(raw(message, &self.name)),
                // It ends with the client, and then nothing comes any more.
                Poll::Ready(None) | Poll::Pending => return true,
            }
        }
        false
    }
}

fn raw(message: Message, name: &Arc<str>) -> RawMessage {
    let subject = if *message.subject == **name {
        name.clone()
    } else {
        message.subject.as_str().into()
    };
    RawMessage {
        sequence: 0,
        timestamp: crate::core::time::Timestamp::EPOCH,
        subject,
        payload: message.payload,
        reply_to: message.reply.map(|reply| reply.as_str().into()),
    }
}
