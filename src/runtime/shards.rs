//! Which worker owns a partition, and which router feeds a worker: worker = partition % N, router = worker % R.

use crate::core::ids::PartitionId;

/// Which worker owns a partition, and which router feeds a worker.
#[derive(Clone, Copy, Debug)]
pub struct Shards {
    /// Partitions of the store.
    pub num_partitions: u16,
    /// Workers that share them.
    pub num_workers: usize,
    /// Routers that share the workers.
    pub num_routers: usize,
}

impl Shards {
    /// The worker that owns a partition.
    #[must_use]
    pub fn worker_of(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) % self.num_workers
    }

    /// Where a partition stands among those of its worker.
    #[must_use]
    pub fn place_in_worker(&self, partition: PartitionId) -> usize {
        usize::from(partition.0) / self.num_workers
    }

    /// The router that feeds a worker.
    #[must_use]
    pub const fn router_of(&self, worker: usize) -> usize {
        worker % self.num_routers
    }

    /// Where a worker stands among those of its router.
    #[must_use]
    pub const fn place_in_router(&self, worker: usize) -> usize {
        worker / self.num_routers
    }

    /// The partitions of a worker, in the order of [`Shards::place_in_worker`].
    pub fn partitions_of(&self, worker: usize) -> impl Iterator<Item = PartitionId> {
        let first = u16::try_from(worker).unwrap_or(u16::MAX);
        (first..self.num_partitions)
            .step_by(self.num_workers)
            .map(PartitionId)
    }

    /// The workers of a router, in the order of [`Shards::place_in_router`].
    pub fn workers_of(&self, router: usize) -> impl Iterator<Item = usize> {
        (router..self.num_workers).step_by(self.num_routers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_shards() -> impl Strategy<Value = Shards> {
        (1u16..=300).prop_flat_map(|num_partitions| {
            (1..=usize::from(num_partitions)).prop_flat_map(move |num_workers| {
                (1..=num_workers).prop_map(move |num_routers| Shards {
                    num_partitions,
                    num_workers,
                    num_routers,
                })
            })
        })
    }

    proptest! {
        #[test]
        fn each_partition_has_one_worker_and_one_place_there(shards in any_shards()) {
            let mut num_owned = 0;
            for worker in 0..shards.num_workers {
                let owned: Vec<_> = shards.partitions_of(worker).collect();
                prop_assert!(!owned.is_empty(), "worker {worker} has nothing to do");
                for (place, &partition) in owned.iter().enumerate() {
                    prop_assert_eq!(shards.worker_of(partition), worker);
                    prop_assert_eq!(shards.place_in_worker(partition), place);
                }
                num_owned += owned.len();
            }
            prop_assert_eq!(num_owned, usize::from(shards.num_partitions));
        }

        #[test]
        fn each_worker_has_one_router_and_one_place_there(shards in any_shards()) {
            let mut num_fed = 0;
            for router in 0..shards.num_routers {
                let fed: Vec<_> = shards.workers_of(router).collect();
                prop_assert!(!fed.is_empty(), "router {router} has nothing to do");
                for (place, &worker) in fed.iter().enumerate() {
                    prop_assert_eq!(shards.router_of(worker), router);
                    prop_assert_eq!(shards.place_in_router(worker), place);
                }
                num_fed += fed.len();
            }
            prop_assert_eq!(num_fed, shards.num_workers);
        }
    }
}
