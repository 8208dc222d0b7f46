//! The actor that reads messages: bytes to deliveries, nothing else.
//!
//! Owns: nothing. Mailbox: bounded by the permits inside the batches. Dies of: nothing that a message can
//! hold. Stops: with its arbiter, after the reader has stopped and the permits are back.
//!
//! Any number of listeners read batches side by side; the routers put them back in order by number.

use std::sync::Arc;

use actix::prelude::*;

use crate::bus::RawMessage;
use crate::core::ids::{PartitionId, placement_hash};
use crate::core::partition::{Delivered, Delivery, Domain};
use crate::core::position::Cursor;

use super::delivery::{Read, Route};
use super::router::Router;
use super::{Lifeline, Shared};

/// Reads batches for all routers.
pub(super) struct Listener<D: Domain> {
    shared: Arc<Shared<D>>,
    routers: Vec<Addr<Router<D>>>,
    _lifeline: Lifeline,
}

impl<D: Domain> Listener<D> {
    pub(super) fn new(shared: Arc<Shared<D>>, routers: Vec<Addr<Router<D>>>) -> Self {
        Self {
            _lifeline: shared.faults.clone().lifeline("listener"),
            shared,
            routers,
        }
    }
}

/// Reads one message: what cannot be used becomes a dead letter of the partition of its bytes.
pub(super) fn read<D: Domain>(
    shared: &Shared<D>,
    generation: u32,
    raw: &RawMessage,
) -> (PartitionId, Delivery<D::Command>) {
    let (placement, body) = match (shared.codec.decode)(raw, &shared.settings.limits) {
        Ok((placement, command)) => (placement, Delivered::Command(command)),
        Err(letter) => (
            placement_hash(&raw.payload),
            Delivered::Refused(Box::new(letter)),
        ),
    };
    let delivery = Delivery {
        cursor: Cursor {
            generation,
            sequence: raw.sequence,
        },
        timestamp: raw.timestamp,
        placement,
        body,
        reply_to: raw.reply_to.clone(),
    };
    (
        PartitionId::of(placement, shared.shards.num_partitions),
        delivery,
    )
}

impl<D: Domain> Actor for Listener<D> {
    type Context = Context<Self>;
}

impl<D: Domain> Handler<Read> for Listener<D> {
    type Result = ();

    fn handle(&mut self, read_batch: Read, _ctx: &mut Self::Context) {
        let Read { number, batch } = read_batch;
        let raw = &batch.raw;
        let share = raw.messages.len() / self.routers.len().max(1) + 1;
        let mut by_router: Vec<Vec<_>> = self
            .routers
            .iter()
            .map(|_| Vec::with_capacity(share))
            .collect();
        for message in &raw.messages {
            let (partition, delivery) = read(&self.shared, raw.generation, message);
            let shards = self.shared.shards;
            let router = shards.router_of(shards.worker_of(partition));
            if let Some(deliveries) = by_router.get_mut(router) {
                deliveries.push((partition, delivery));
            }
        }
        for (router, deliveries) in self.routers.iter().zip(by_router) {
            let batch = Arc::clone(&batch);
            self.shared.faults.send(
                router,
                Route {
                    number,
                    batch,
                    deliveries,
                },
            );
        }
    }
}
