//! What travels between the actors: numbered batches in, commits and confirmations back.
//!
//! A batch's permit rides in [`Batch`] itself: it returns when the last router has let go of the batch, that
//! is when every worker has committed its part, or when all of it was dropped. So nothing queues without a
//! permit, and no path can forget one.

use std::sync::Arc;

use actix::prelude::*;
use tokio::sync::OwnedSemaphorePermit;

use crate::bus::wire::Limits;
use crate::bus::{Outbound, RawBatch, RawMessage};
use crate::core::ids::PartitionId;
use crate::core::outbox::{DeadLetter, OutboxKey, Owed};
use crate::core::partition::{Delivery, Domain};
use crate::core::parts::Stored;
use crate::core::position::{Cursor, Origin, Position};

use super::metrics::Observation;

/// Messages as they came, and the permits for them.
pub struct Batch {
    /// The messages.
    pub raw: RawBatch,
    /// Returned when the batch is dropped: everywhere committed, or given up.
    pub permit: OwnedSemaphorePermit,
}

/// Reads a message: its user's placement hash and what it says, or why it is refused.
pub type Decode<D> = fn(&RawMessage, &Limits) -> Result<(u64, <D as Domain>::Command), DeadLetter>;
/// Writes what is owed and not stored as messages, each no larger with its headers than so many bytes, in order.
pub type Encode<D> =
    fn(&Owed<<D as Domain>::Outgoing>, &Stored, usize) -> Result<Vec<Outbound>, String>;

/// How the domain's messages look outside: everything that the runtime needs to know of them.
pub struct Codec<D: Domain> {
    /// Bytes to commands.
    pub decode: Decode<D>,
    /// What is owed to bytes.
    pub encode: Encode<D>,
    /// Names everything that is ever counted, none of it yet: an operator wants to see zeros.
    pub counters: fn(&mut Vec<Observation>),
    /// Names what was counted.
    pub observe: fn(D::Tally, &mut Vec<Observation>),
    /// Names what a state holds now.
    pub observe_state: fn(&D, &mut Vec<Observation>),
}

impl<D: Domain> Clone for Codec<D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Domain> Copy for Codec<D> {}

/// A batch for a listener to read.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Read {
    /// Its number: the first is 1, and each follows the one before.
    pub number: u64,
    /// The batch.
    pub batch: Arc<Batch>,
}

/// A batch that was read, with the deliveries for one router.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Route<C: Send + 'static> {
    /// The batch's number.
    pub number: u64,
    /// The batch itself, kept until its commits.
    pub batch: Arc<Batch>,
    /// The deliveries for this router's partitions, in order.
    pub deliveries: Vec<(PartitionId, Delivery<C>)>,
}

/// Deliveries for one worker.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Work<C: Send + 'static> {
    /// The batch's number.
    pub number: u64,
    /// What numbered the messages.
    pub origin: Origin,
    /// Everything up to here was delivered with this batch.
    pub watermark: Position,
    /// The deliveries, in order.
    pub deliveries: Vec<(PartitionId, Delivery<C>)>,
    /// Whether the watermark is to be committed even without a delivery.
    pub must_commit: bool,
}

/// A worker's commit is durable: its part of every batch up to this number is done.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Committed {
    /// Which worker.
    pub worker: usize,
    /// Which incarnation of it.
    pub incarnation: u32,
    /// Up to which batch.
    pub number: u64,
}

/// A worker is gone without having been told to stop.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WorkerDown {
    /// Which worker.
    pub worker: usize,
    /// Which incarnation of it.
    pub incarnation: u32,
    /// The message at which it panicked, if it was applying one.
    pub at: Option<Cursor>,
}

/// An owed message for a producer.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Publish<M: Send + Sync + 'static> {
    /// Whose it is.
    pub partition: PartitionId,
    /// The message.
    pub owed: Arc<Owed<M>>,
}

/// What became of an owed message.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settled {
    /// Whose it is.
    pub partition: PartitionId,
    /// Which message.
    pub key: OutboxKey,
    /// What became of it.
    pub outcome: Outcome,
    /// The producer's room for one message, free again when the worker has heard of it.
    pub slot: OwnedSemaphorePermit,
}

/// What became of an owed message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The broker has confirmed it, at this sequence of the output stream if there is one.
    Published(Option<u64>),
    /// The broker refuses it for good; it is tried again now and then.
    Parked,
}

/// Commit whatever waits, and answer when it is durable.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Flush;
