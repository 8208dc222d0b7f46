//! NATS: the trait and its contract. One suite (`tests/it/bus_contract.rs`) runs on every bus.
//!
//! | file | what it is |
//! |---|---|
//! | `wire` | every subject, and every JSON shape that others meet |
//! | `connection` | connecting, reconnecting and credentials, on a runtime of its own |
//! | `jetstream` | streams, the ordered reader, confirmed publishing, the claim |
//! | `core_nats` | the same over a server without streams |
//! | `memory` | a broker inside the process |
//! | `server` | the child nats-server of `up` and the tests |
//!
//! The contract:
//!
//! 1. **In order.** An [`Input`] yields the messages of one publisher connection in the order it sent them,
//!    in batches whose cursors rise without a repeat. On core NATS, changes that have arrived come before a
//!    request that has.
//! 2. **Never silently skipped.** A batch's watermark covers exactly what was yielded so far. What is missing
//!    (purged, or dropped by a bound of ours) is counted to the message and said. A history that was rewritten
//!    begins a new generation.
//! 3. **For ever.** An input and an output wait for a broker that is away; they never give up.
//! 4. **Confirmed.** `publish` resolves with success only when the broker has stored the message (core NATS:
//!    has processed it). An unknown outcome is [`PublishError::Unconfirmed`]: send again under the same id; what
//!    was given up does not leave this process much later.
//! 5. **Owned.** One store reads an input at a time; see [`Claim`].

pub mod connection;
pub mod core_nats;
pub mod jetstream;
pub mod memory;
pub mod server;
pub mod wire;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;

use crate::core::ids::StoreId;
use crate::core::position::{Origin, Position};
use crate::core::time::Timestamp;

/// What this machine's clock says.
pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = since.unwrap_or_default().as_nanos();
    Timestamp::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A clock that never goes back, and also counts while the machine sleeps.
pub(crate) fn steady_clock() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    Duration::from_secs(seconds)
        + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or_default())
}

/// One message as it came.
#[derive(Clone, Debug)]
pub struct RawMessage {
    /// Its sequence within the batch's generation.
    pub sequence: u64,
    /// The broker's timestamp; on core NATS the time of receipt.
    pub timestamp: Timestamp,
    /// The subject it came on.
    pub subject: Arc<str>,
    /// Its bytes.
    pub payload: Bytes,
    /// Where its publisher waits for our answer: its reply subject on core NATS, else what its header says.
    pub reply_to: Option<Box<str>>,
}

/// Messages in order, and how far they go.
#[derive(Clone, Debug)]
pub struct RawBatch {
    /// What numbered the messages.
    pub origin: Origin,
    /// The generation of every message in it.
    pub generation: u32,
    /// The messages, their sequences rising.
    pub messages: Vec<RawMessage>,
    /// Everything up to here was yielded, with this batch.
    pub watermark: Position,
}

/// Where to begin when the store has no position.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Start {
    /// With the first message there is.
    First,
    /// With what is published from now on.
    New,
    /// With the first message not before this instant.
    At(Timestamp),
}

/// What happened to the input beside its messages, for the log and the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputStats {
    /// Messages that the stream no longer held when they were to be read.
    pub missing: u64,
    /// Messages that a bound of ours dropped before they were read (core NATS).
    pub dropped: u64,
    /// How often the history was seen to be rewritten.
    pub rewrites: u64,
    /// How often the reader began anew at its own position (a gap, an error, a reconnect).
    pub restarts: u64,
    /// Messages that wait at the broker.
    pub lag: u64,
    /// How much of what the stream may hold (bytes, messages, age) is unread: 0.0 to 1.0. At 1.0 the broker
    /// drops what was not read. (0.0 where unbounded.)
    pub fill: f64,
}

/// The messages of the daemon's input subjects, in order.
pub trait Input: Send {
    /// The position that reading begins after. Every partition commits it before the first batch is taken.
    fn begin(&self) -> Position;

    /// Waits for the next messages: at least one and at most `max_messages`, unless the watermark moves alone
    /// (a new generation begins with an empty batch). Safe to cancel: nothing is lost by dropping the future.
    fn next(&mut self, max_messages: usize) -> BoxFuture<'_, RawBatch>;

    /// Ends the input, a bounded time: where the broker keeps no copy, everything that it had taken until now is
    /// ready for [`Input::next`], and nothing comes after it. Elsewhere there is nothing to do.
    fn close(&mut self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }

    /// What happened since the last call.
    fn take_stats(&mut self) -> InputStats;
}

/// A message to publish, confirmed.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// Where to.
    pub subject: &'static str,
    /// The value of `Nats-Msg-Id`.
    pub id: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// The bytes.
    pub payload: Bytes,
}

/// What the broker said of a confirmed message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Confirmation {
    /// Its sequence in the output stream; `None` where there is no stream.
    pub sequence: Option<u64>,
    /// Whether the broker had stored a message of that id before.
    pub is_duplicate: bool,
}

/// Why a message is not confirmed.
#[derive(Clone, Debug, Error)]
pub enum PublishError {
    /// The outcome is unknown, or the broker refuses for now: send it again under the same id.
    #[error("not confirmed: {0}")]
    Unconfirmed(String),
    /// The broker will refuse it every time (payload, permission): park it, and say so.
    #[error("refused for good: {0}")]
    Refused(String),
}

/// Where digests, dead letters, answers and telemetry go.
pub trait Output: Send + Sync {
    /// The largest payload **with headers** that the broker takes now, and every output stream, in bytes.
    fn max_payload(&self) -> usize;

    /// Publishes one message and waits for its confirmation, a bounded time.
    fn publish(&self, message: Outbound) -> BoxFuture<'static, Result<Confirmation, PublishError>>;

    /// Which of these messages the output stream holds, whole or in parts: the ids under which it holds them, with
    /// their sequences. Looked through is what lies beyond a sequence, and what was stored since an instant, a margin
    /// of clocks before it included: a stream made anew, or rolled back, gives sequences out again, and a clock that was
    /// set back by more than the margin instants. Always empty where there is no stream.
    ///
    /// # Errors
    /// [`PublishError::Unconfirmed`] when the stream could not be read to its end: try again.
    fn find(
        &self,
        subject: &'static str,
        ids: HashSet<String>,
        after: u64,
        since: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<(String, u64)>, PublishError>>;

    /// The time by which messages are stamped as they come; `None` while the broker has not told it yet.
    fn now(&self) -> Option<Timestamp> {
        Some(wall_clock())
    }

    /// Publishes without confirmation: answers and telemetry.
    fn send(&self, subject: String, payload: Bytes);

    /// Resolves when the broker has processed what was given to [`Output::send`] before, or after a bounded time:
    /// the process may end. Where nothing is sent later there is nothing to wait for.
    fn flush(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// The right to read an input and to publish for it, held by one store at a time.
///
/// It is renewed in the background. `is_held` compares this process's monotonic clock with the instant at which
/// the claim may have expired: a process that was paused too long sees `false` before it does anything.
pub trait Claim: Send + Sync {
    /// Whether this process may commit and publish now.
    fn is_held(&self) -> bool;

    /// Resolves when it is held (again).
    fn held(&self) -> BoxFuture<'static, ()>;

    /// Gives it back, a bounded time: the next one need not wait. It is not taken again. Where it ends with the
    /// process there is nothing to do.
    fn give_back(&self) -> BoxFuture<'static, ()> {
        ready(()).boxed()
    }
}

/// What a bus promises, said at start.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Streams: every message in the input stream is applied exactly once, every digest published until
    /// confirmed.
    JetStream,
    /// No streams: what reached the process is committed before anything depends on it; what the network or a
    /// crash before the commit loses is lost, unless the publisher waits for the answer and repeats.
    Core,
    /// A broker inside the process.
    Memory,
}

/// What went wrong with a bus at start.
#[derive(Clone, Debug, Error)]
pub enum BusError {
    /// Something that only the operator can change; waiting does not help.
    #[error("{0}")]
    Configuration(String),
    /// The broker cannot be reached or is not ready; trying again helps.
    #[error("{0}")]
    Unavailable(String),
}

/// A broker.
pub trait Bus: Send + Sync {
    /// What it promises.
    fn mode(&self) -> Mode;

    /// Claims the input for a store; waits for as long as another holds it, and says who.
    ///
    /// # Errors
    /// [`BusError::Configuration`] when it can never be had.
    fn claim(&self, store: StoreId) -> BoxFuture<'static, Result<Arc<dyn Claim>, BusError>>;

    /// Opens the input after the positions of all partitions; waits until the broker can be read.
    ///
    /// # Errors
    /// [`BusError::Configuration`] when the positions do not belong to this kind of input.
    fn open_input(
        &self,
        positions: Vec<Option<Position>>,
        start: Start,
    ) -> BoxFuture<'static, Result<Box<dyn Input>, BusError>>;

    /// Where messages go.
    fn output(&self) -> Arc<dyn Output>;

    /// The broker's duplicate window: an id that is older is stored again. `None`: there is none.
    fn duplicate_window(&self) -> Option<Duration>;
}
