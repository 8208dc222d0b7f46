//! A store that forgets: `store.kind = "memory"`. Everything is gone when the process ends.
//!
//! It keeps every promise of the contract but one: durable means in this process. A worker that panics finds
//! its partitions as they were last committed; a restarted daemon finds nothing and reads the input again.
//!
//! Each partition's rows are a map behind a lock of its own, so workers do not wait for one another. It has
//! no use for snapshots.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{self, BoxFuture};

use super::{Receipt, Recovery, SnapshotWriter, Store, StoreError};
use crate::core::ids::{Epoch, PartitionId, StoreId};
use crate::core::partition::{Commit, Header, SnapshotHead};
use crate::core::rows::CorruptRow;

/// A store in memory.
pub struct Memory {
    id: StoreId,
    partitions: Vec<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    header: Header,
    rows: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

impl Memory {
    /// An empty store of so many partitions, 1 at least.
    #[must_use]
    pub fn new(id: StoreId, partitions: u16) -> Self {
        Self {
            id,
            partitions: (0..partitions.max(1)).map(|_| Mutex::default()).collect(),
        }
    }

    fn kept(&self, partition: PartitionId) -> Option<MutexGuard<'_, Kept>> {
        let kept = self.partitions.get(usize::from(partition.0))?;
        // A panic of a caller's recovery leaves what is kept as it was.
        Some(kept.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn apply(&self, commit: &Commit) -> Result<(), StoreError> {
        let mut kept = self.kept(commit.partition);
        let header = super::fence(kept.as_ref().map(|kept| kept.header), commit)?;
        let Some(kept) = &mut kept else {
            return Ok(());
        };
        let corrupt = |error| StoreError::Corrupt {
            partition: commit.partition,
            error,
        };
        // Read before anything is applied: all of a commit or nothing.
        let rows: Vec<_> = commit
            .rows
            .iter()
            .collect::<Result<_, CorruptRow>>()
            .map_err(corrupt)?;
        for (key, value) in rows {
            match value {
                Some(value) => kept.rows.insert(key.into(), value.into()),
                None => kept.rows.remove(key),
            };
        }
        kept.header = header;
        Ok(())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Store for Memory {
    fn id(&self) -> StoreId {
        self.id
    }

    fn num_partitions(&self) -> u16 {
        u16::try_from(self.partitions.len()).expect("partitions are numbered by u16")
    }

    fn headers(&self) -> Vec<Header> {
        (0..self.num_partitions())
            .filter_map(|partition| self.kept(PartitionId(partition)))
            .map(|kept| kept.header)
            .collect()
    }

    fn claim(
        &self,
        partitions: &[PartitionId],
        recovery: &mut dyn Recovery,
    ) -> Result<Vec<Header>, StoreError> {
        let mut headers = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            let mut kept = self
                .kept(partition)
                .expect("a claimed partition is one of the store's");
            kept.header.epoch = Epoch(kept.header.epoch.0 + 1);
            for (key, value) in &kept.rows {
                recovery
                    .row(partition, key, Some(value))
                    .map_err(|error| StoreError::Corrupt { partition, error })?;
            }
            headers.push(kept.header);
        }
        Ok(headers)
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<Receipt, StoreError>> {
        let mut result = Ok(Receipt::default());
        for commit in &commits {
            if let Err(error) = self.apply(commit)
                && result.is_ok()
            {
                result = Err(error);
            }
        }
        future::ready(result).boxed()
    }

    fn begin_snapshot(&self, _head: SnapshotHead) -> Option<Box<dyn SnapshotWriter>> {
        None
    }
}
