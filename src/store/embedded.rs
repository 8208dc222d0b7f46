//! The embedded store: a journal and one snapshot a partition in a folder of its own.
//!
//! ```text
//! commit ─► journal (one write, one fsync for all that wait) ─► answered
//! journal outgrows the snapshots ─► Receipt::snapshot_due ─► snapshots ─► old segments are removed
//! open ─► every checksum of the journal, the torn tail cut ─► headers
//! claim ─► epochs raised ─► snapshot rows, then the commits after them, in any number of threads
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `format` | every byte at rest |
//! | `files` | how files come to be, and what cannot be done with them |
//! | `journal`, `snapshot` | the two threads that write |
//! | `ledger`, `shared` | what lies on the disk and why it must stay; poison |
//! | `reader`, `recovery` | everything that reads |
//! | `inspect` | looking into a store that nobody uses, without changing it |

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::files::FolderLock;
use super::journal::Journal;
use super::shared::Shared;
use super::snapshot::Snapshots;
use super::{Receipt, Recovery, SnapshotWriter, Store, StoreError, files, recovery};
use crate::core::ids::{PartitionId, StoreId};
use crate::core::partition::{Commit, Header, SnapshotHead};

/// How an embedded store is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Options {
    /// How many partitions a new store gets, 1 at least. A store that exists keeps its own.
    pub partitions: u16,
    /// The journal goes on in a new segment after so many bytes.
    pub segment_bytes: u64,
    /// No snapshot is asked for while the journal is shorter, however small the state.
    pub min_journal_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            partitions: 64,
            segment_bytes: 64 * 1024 * 1024,
            min_journal_bytes: 64 * 1024 * 1024,
        }
    }
}

/// A store in a folder. Dropped, it writes what was handed to it and lets the folder go.
pub struct Embedded {
    // Dropped in this order: the threads end before the lock goes.
    journal: Journal,
    snapshots: Snapshots,
    shared: Arc<Shared>,
    _lock: FolderLock,
}

impl Embedded {
    /// Opens the store in a folder; creates both where they are missing.
    ///
    /// # Errors
    /// Every [`StoreError`] but those of commits. Nothing was changed, unless the folder was empty.
    pub fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        files::create_folder(path)?;
        Self::open_locked(path, options, files::lock(path)?)
    }

    /// The same, where the folder is there and this process has it.
    pub(super) fn open_locked(
        path: &Path,
        options: Options,
        lock: FolderLock,
    ) -> Result<Self, StoreError> {
        let opened = recovery::open(path, &options)?;
        let shared = Arc::new(Shared::new(
            path.to_owned(),
            opened.store,
            options.segment_bytes,
            opened.ledger,
        ));
        let snapshots = Snapshots::start(&shared)?;
        // A crash may have come between a snapshot and the removal of what it made unneeded.
        snapshots.collect();
        Ok(Self {
            journal: Journal::start(&shared, opened.active)?,
            snapshots,
            shared,
            _lock: lock,
        })
    }
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded")
            .field("folder", &self.shared.folder)
            .finish_non_exhaustive()
    }
}

impl Store for Embedded {
    fn id(&self) -> StoreId {
        self.shared.store.id
    }

    fn num_partitions(&self) -> u16 {
        self.shared.store.partitions
    }

    fn headers(&self) -> Vec<Header> {
        self.shared.ledger().heads().to_vec()
    }

    fn claim(
        &self,
        partitions: &[PartitionId],
        recovery: &mut dyn Recovery,
    ) -> Result<Vec<Header>, StoreError> {
        let is_ours = |partition: &PartitionId| partition.0 < self.num_partitions();
        assert!(
            partitions.iter().all(is_ours),
            "a claimed partition is one of the store's"
        );
        let _reading = Reading::begin(self);
        let claimed = self.journal.claim(partitions)?;
        recovery::read(&self.shared, partitions, &claimed, recovery)?;
        Ok(claimed.headers)
    }

    fn commit(&self, commits: Vec<Commit>) -> BoxFuture<'static, Result<Receipt, StoreError>> {
        self.journal.commit(commits)
    }

    fn begin_snapshot(&self, head: SnapshotHead) -> Option<Box<dyn SnapshotWriter>> {
        self.shared.check().ok()?;
        self.shared.ledger().begin_snapshot(head.partition);
        Some(self.snapshots.begin(head))
    }
}

/// While a claim reads, no segment is removed.
struct Reading<'a>(&'a Embedded);

impl<'a> Reading<'a> {
    fn begin(store: &'a Embedded) -> Self {
        store.shared.ledger().begin_claim();
        Self(store)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.shared.ledger().end_claim();
        self.0.snapshots.collect();
    }
}
