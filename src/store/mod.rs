//! What is durable: the trait and its contract. One suite (`tests/it/store_contract.rs`) runs on every store.
//!
//! A store keeps, for each of a fixed number of partitions, a header (epoch, commit number, position) and a
//! map of opaque rows. The contract:
//!
//! 1. **Atomic.** A commit's rows and header become durable together or not at all. `commit` resolves only
//!    after they are.
//! 2. **Fenced.** A commit is applied only if its epoch is the stored one and its number is the stored one
//!    plus 1; else [`StoreError::Fenced`], and nothing of that call is applied for that partition. The other
//!    partitions of the call are not held back; its answer is the first refusal.
//! 3. **Ordered.** Commits of one partition are applied in the order of the calls; the commits of one call
//!    (of different partitions) share one write.
//! 4. **Claimed.** `claim` raises the epoch of the partitions, durably, before it reads them: whatever an
//!    earlier owner still has in flight is either in what is read, or refused.
//! 5. **Folded.** `claim` hands every row to the caller, oldest first; folded in that order they are the last
//!    committed state. A key may come several times, and may come as gone without ever having been there.
//! 6. **Poisoned.** After a failed write or fsync every call fails with [`StoreError::Poisoned`]: nothing is
//!    ever retried on a disk whose state is unknown. The process ends; what the disk holds is read at start.
//! 7. **Snapshots.** A store may ask for snapshots in [`Receipt::snapshot_due`]. The owner writes the rows in
//!    slices while commits go on, and installs it when every commit that it may contain is durable. A snapshot
//!    that is dropped without `install` never happened.

pub mod embedded;
mod files;
pub mod format;
pub mod inspect;
mod journal;
mod ledger;
pub mod memory;
mod reader;
mod recovery;
mod shared;
mod snapshot;

use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use thiserror::Error;

use crate::core::ids::{PartitionId, StoreId};
use crate::core::partition::{Commit, Header, SnapshotHead};
use crate::core::rows::{CorruptRow, Rows};

/// What went wrong with a store. Each message says what failed, on what, and what to do.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// The folder or a file in it cannot be created, read or written: a matter for the operator.
    #[error("failed to {action} {}: {error}; {remedy}", path.display())]
    Unusable {
        /// What was tried, as in "create".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: Arc<std::io::Error>,
        /// What to do.
        remedy: &'static str,
    },
    /// Another process uses the folder.
    #[error("store {} is in use by another process; stop it first, or give this one a folder of its own (store.path)", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// There is no store, and none is to be created.
    #[error("there is no store in {}; name its folder with --set store.path=DIR", path.display())]
    Missing {
        /// The folder.
        path: PathBuf,
    },
    /// A newer version of the program wrote it.
    #[error("{} has format {found}, and this program reads up to {known}; run the version that wrote it, or a newer one", path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that is known.
        known: u32,
    },
    /// Stored bytes are not what was written.
    #[error("{} is damaged at byte {offset}: {what}; {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
        /// What to do.
        remedy: &'static str,
    },
    /// Somebody else owns the partition now: a commit of an older epoch, or out of turn.
    #[error(
        "commit {number} of partition {partition} in epoch {epoch} is refused: the store is at commit {stored_number} of epoch {stored_epoch}"
    )]
    Fenced {
        /// Whose commit.
        partition: PartitionId,
        /// Its epoch.
        epoch: u64,
        /// Its number.
        number: u64,
        /// The epoch that is stored.
        stored_epoch: u64,
        /// The number that is stored.
        stored_number: u64,
    },
    /// A write or an fsync failed: nothing more is written by this process.
    #[error("failed to write {}: {error}; the process ends, because what the disk holds is unknown until it is read again", path.display())]
    Poisoned {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: Arc<std::io::Error>,
    },
    /// A row that a caller could not read back.
    #[error(
        "partition {partition}: {error}; the store was written by another version or is damaged"
    )]
    Corrupt {
        /// Whose row.
        partition: PartitionId,
        /// What is wrong.
        error: CorruptRow,
    },
}

/// What a store says of a commit that is durable.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Receipt {
    /// Partitions of the call whose snapshot should be written anew.
    pub snapshot_due: Vec<PartitionId>,
}

/// Takes the rows of claimed partitions, oldest first.
pub trait Recovery {
    /// Takes one row of a partition: a new value, or gone.
    ///
    /// # Errors
    /// [`CorruptRow`] when it cannot be read; the claim then fails with [`StoreError::Corrupt`].
    fn row(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), CorruptRow>;
}

/// A snapshot being written.
pub trait SnapshotWriter: Send {
    /// Takes the next rows. They are written by another thread, which is never far behind: `false` means that
    /// it still has enough to do, and the rows must be offered again later.
    fn write(&mut self, rows: &Rows) -> bool;

    /// Puts the snapshot in place: every commit that it may contain is durable. A failure poisons the store.
    fn install(self: Box<Self>);
}

/// What is durable. See the module for the contract.
pub trait Store: Send + Sync {
    /// The random id drawn when the store was created.
    fn id(&self) -> StoreId;

    /// How many partitions it has, fixed when it was created.
    fn num_partitions(&self) -> u16;

    /// What is stored of each partition, by its number: the position of all, before any is claimed.
    fn headers(&self) -> Vec<Header>;

    /// Raises the epoch of the partitions and reads them; returns their headers in the order asked for.
    /// Blocks: call it from a thread of your own. Different threads may claim different partitions at once.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] or [`StoreError::Corrupt`] when it cannot be read, [`StoreError::Poisoned`].
    fn claim(
        &self,
        partitions: &[PartitionId],
        recovery: &mut dyn Recovery,
    ) -> Result<Vec<Header>, StoreError>;

    /// Makes the commits durable, all of them in one write; resolves when they are.
    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<Receipt, StoreError>>;

    /// Begins to write a snapshot that was asked for; `None` where the store has no use for one.
    fn begin_snapshot(&self, head: SnapshotHead) -> Option<Box<dyn SnapshotWriter>>;
}

/// The fence of every store: what is stored after a commit, if it is the owner's and the next.
fn fence(stored: Option<Header>, commit: &Commit) -> Result<Header, StoreError> {
    match stored {
        Some(stored) if commit.epoch == stored.epoch && commit.number == stored.number.next() => {
            Ok(Header {
                epoch: commit.epoch,
                number: commit.number,
                position: commit.position,
            })
        }
        _ => {
            let stored = stored.unwrap_or_default();
            Err(StoreError::Fenced {
                partition: commit.partition,
                epoch: commit.epoch.0,
                number: commit.number.0,
                stored_epoch: stored.epoch.0,
                stored_number: stored.number.0,
            })
        }
    }
}
