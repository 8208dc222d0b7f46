//! What the threads of one embedded store share: the ledger, and whether the store is poisoned.
//!
//! | thread | does |
//! |---|---|
//! | `store-journal` | every write and fsync of commits and claims |
//! | `store-snapshot` | every snapshot, and the removal of segments |
//! | the callers' own | reading, in `claim` |
//!
//! The lock is held for a few loads and stores, never over I/O.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::{Builder, JoinHandle};

use super::StoreError;
use super::files::FileError;
use super::format::StoreFile;
use super::ledger::Ledger;

pub(super) struct Shared {
    pub(super) folder: PathBuf,
    pub(super) store: StoreFile,
    pub(super) segment_bytes: u64,
    ledger: Mutex<Ledger>,
    poison: OnceLock<StoreError>,
}

impl Shared {
    pub(super) const fn new(
        folder: PathBuf,
        store: StoreFile,
        segment_bytes: u64,
        ledger: Ledger,
    ) -> Self {
        Self {
            folder,
            store,
            segment_bytes,
            ledger: Mutex::new(ledger),
            poison: OnceLock::new(),
        }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger
            .lock()
            .expect("nobody panics while holding the ledger")
    }

    /// Fails once the store is poisoned.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.poison.get().cloned().map_or(Ok(()), Err)
    }

    /// Nothing is written any more; returns what every call fails with from now on.
    pub(super) fn poison(&self, error: FileError) -> StoreError {
        let error = self.poison.get_or_init(|| error.poisoned());
        tracing::error!(%error, "the store is poisoned");
        error.clone()
    }

    /// What a call fails with whose thread is gone.
    pub(super) fn is_gone(&self) -> StoreError {
        self.check().err().unwrap_or_else(|| StoreError::Poisoned {
            path: self.folder.clone(),
            error: Arc::new(io::Error::other("the thread that writes has ended")),
        })
    }
}

/// A thread of the store, to be waited for.
pub(super) struct Thread(Option<JoinHandle<()>>);

impl Thread {
    pub(super) fn start(
        name: &str,
        folder: &Path,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<Self, FileError> {
        Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map(|thread| Self(Some(thread)))
            .map_err(|error| FileError::new("start a thread for", folder, error))
    }

    /// Waits until it has ended. Its panic was reported when it happened.
    pub(super) fn join(&mut self) {
        if let Some(Err(_)) = self.0.take().map(JoinHandle::join) {
            tracing::error!("a thread of the store ended by a panic");
        }
    }
}
