//! The journal's writer: one thread that makes whatever waits durable with one write and one fsync.
//!
//! ```text
//! commit ─┐                        ┌ fence: epoch equal, number + 1
//! commit ─┼─► bounded channel ─► take all ─► one record ─► write ─► fdatasync ─► ledger ─► answers
//! claim  ─┘                        └ epoch + 1                                     └ segment full: the next
//! ```
//!
//! One record a write, whatever it holds: the pages of one write reach the disk in any order, so a record
//! that is torn can have a valid one behind it only if an fsync lay between, and then it is damage.
//!
//! Its channel never fills in practice: every worker has one call in flight. A failed write or fsync poisons
//! the store; nothing is written after it. This file must not read what was written.

use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use super::files::{self, FileError};
use super::format::{Frame, FrameKind, RecordEncoder, Salt, SegmentHead};
use super::ledger::Segment;
use super::shared::{Shared, Thread};
use super::{Receipt, StoreError};
use crate::core::ids::{Epoch, PartitionId};
use crate::core::partition::{Commit, Header};

/// More calls than there are workers and claims.
const MAX_WAITING: usize = 1024;
/// A write takes no further call beyond this.
const MAX_WRITE_BYTES: usize = 16 * 1024 * 1024;

/// What a claim reads: everything up to here is durable, and nothing more will come in an older epoch.
pub(super) struct Claimed {
    pub(super) headers: Vec<Header>,
    pub(super) segments: VecDeque<Segment>,
}

enum Request {
    Commit {
        commits: Vec<Commit>,
        answer: oneshot::Sender<Result<Receipt, StoreError>>,
    },
    Claim {
        partitions: Vec<PartitionId>,
        answer: std::sync::mpsc::SyncSender<Result<Claimed, StoreError>>,
    },
}

/// The way to the writer; dropped, it ends when everything sent is written.
pub(super) struct Journal {
    shared: Arc<Shared>,
    requests: Option<mpsc::Sender<Request>>,
    thread: Thread,
}

impl Journal {
    /// Starts the writer, which appends to `active`.
    pub(super) fn start(shared: &Arc<Shared>, active: File) -> Result<Self, FileError> {
        let (requests, waiting) = mpsc::channel(MAX_WAITING);
        let writer = Writer::new(Arc::clone(shared), active);
        let thread = Thread::start("store-journal", &shared.folder, move || writer.run(waiting))?;
        Ok(Self {
            shared: Arc::clone(shared),
            requests: Some(requests),
            thread,
        })
    }

    fn requests(&self) -> &mpsc::Sender<Request> {
        self.requests
            .as_ref()
            .expect("the journal is in use until it is dropped")
    }

    /// Calls are taken in their order; only a full channel, which never is, is waited for by the future.
    pub(super) fn commit(
        &self,
        commits: Vec<Commit>,
    ) -> BoxFuture<'static, Result<Receipt, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let sent = self
            .requests()
            .try_send(Request::Commit { commits, answer });
        let full = match sent {
            Ok(()) | Err(TrySendError::Closed(_)) => None,
            Err(TrySendError::Full(request)) => Some((self.requests().clone(), request)),
        };
        let shared = Arc::clone(&self.shared);
        async move {
            if let Some((requests, request)) = full
                && requests.send(request).await.is_err()
            {
                return Err(shared.is_gone());
            }
            answered.await.unwrap_or_else(|_| Err(shared.is_gone()))
        }
        .boxed()
    }

    /// Raises the epochs durably. Blocks.
    pub(super) fn claim(&self, partitions: &[PartitionId]) -> Result<Claimed, StoreError> {
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let request = Request::Claim {
            partitions: partitions.to_vec(),
            answer,
        };
        match self.requests().try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Full(request)) => self
                .requests()
                .blocking_send(request)
                .map_err(|_| self.shared.is_gone())?,
            Err(TrySendError::Closed(_)) => return Err(self.shared.is_gone()),
        }
        answered
            .recv()
            .unwrap_or_else(|_| Err(self.shared.is_gone()))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.requests = None;
        self.thread.join();
    }
}

/// Who waits for the write.
enum Waiting {
    Commit {
        partitions: Vec<PartitionId>,
        fenced: Option<StoreError>,
        answer: oneshot::Sender<Result<Receipt, StoreError>>,
    },
    Claim {
        partitions: Vec<PartitionId>,
        answer: std::sync::mpsc::SyncSender<Result<Claimed, StoreError>>,
    },
}

struct Writer {
    shared: Arc<Shared>,
    active: Active,
    /// What is stored, once the record being made is written.
    heads: Vec<Header>,
    record: Vec<u8>,
    encoder: RecordEncoder,
    moved: Vec<(PartitionId, Header)>,
    waiting: Vec<Waiting>,
}

/// The segment that is appended to.
struct Active {
    number: u64,
    path: PathBuf,
    salt: Salt,
    file: File,
    num_bytes: u64,
}

impl Writer {
    fn new(shared: Arc<Shared>, file: File) -> Self {
        let ledger = shared.ledger();
        let (number, num_bytes) = ledger
            .segments()
            .back()
            .map(|active| (active.number, active.num_bytes))
            .expect("an open journal has an active segment");
        let heads = ledger.heads().to_vec();
        drop(ledger);
        Self {
            active: Active {
                number,
                path: files::segment_path(&shared.folder, number),
                salt: Salt::of_segment(shared.store.id, number),
                file,
                num_bytes,
            },
            shared,
            heads,
            record: Vec::new(),
            encoder: RecordEncoder::default(),
            moved: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(request) = requests.blocking_recv() {
            self.begin();
            self.take(request);
            while self.record.len() < MAX_WRITE_BYTES
                && let Ok(request) = requests.try_recv()
            {
                self.take(request);
            }
            let written = self.write();
            self.answer(&written);
            if written.is_ok() && self.active.num_bytes >= self.shared.segment_bytes {
                // Nobody waits for it: the next write finds the store poisoned.
                if let Err(error) = self.rotate() {
                    self.shared.poison(error);
                }
            }
        }
        self.seal();
    }

    fn begin(&mut self) {
        self.record.clear();
        self.record.shrink_to(MAX_WRITE_BYTES);
        self.moved.clear();
        self.encoder = RecordEncoder::default();
        Frame::begin(&mut self.record);
    }

    fn take(&mut self, request: Request) {
        let waiting = match request {
            Request::Commit { commits, answer } => {
                let mut fenced = None;
                for commit in &commits {
                    if let Err(error) = self.take_commit(commit) {
                        fenced.get_or_insert(error);
                    }
                }
                Waiting::Commit {
                    partitions: commits.iter().map(|commit| commit.partition).collect(),
                    fenced,
                    answer,
                }
            }
            Request::Claim { partitions, answer } => {
                for &partition in &partitions {
                    self.take_claim(partition);
                }
                Waiting::Claim { partitions, answer }
            }
        };
        self.waiting.push(waiting);
    }

    fn take_commit(&mut self, commit: &Commit) -> Result<(), StoreError> {
        let stored = self.heads.get_mut(usize::from(commit.partition.0));
        let header = super::fence(stored.as_deref().copied(), commit)?;
        if let Some(stored) = stored {
            *stored = header;
        }
        self.moved.push((commit.partition, header));
        self.encoder.commit(&mut self.record, commit);
        Ok(())
    }

    fn take_claim(&mut self, partition: PartitionId) {
        let Some(stored) = self.heads.get_mut(usize::from(partition.0)) else {
            return;
        };
        stored.epoch = Epoch(stored.epoch.0 + 1);
        self.moved.push((partition, *stored));
        self.encoder
            .claim(&mut self.record, partition, stored.epoch);
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.shared.check()?;
        if self.moved.is_empty() {
            return Ok(());
        }
        self.append().map_err(|error| self.shared.poison(error))
    }

    fn append(&mut self) -> Result<(), FileError> {
        let active = &mut self.active;
        Frame::finish(
            FrameKind::Record,
            active.salt,
            active.num_bytes,
            &mut self.record,
        );
        files::write(&mut active.file, &active.path, &self.record)?;
        files::sync(&active.file, &active.path)?;
        active.num_bytes += self.record.len() as u64;
        self.shared.ledger().wrote(active.num_bytes, &self.moved);
        Ok(())
    }

    /// Ends the journal of a store that is closed with an empty record. What was acknowledged last then has
    /// a valid record behind it: damage to it while the store rests cannot pass for a torn tail.
    fn seal(&mut self) {
        self.begin();
        if self.shared.check().is_ok()
            && let Err(error) = self.append()
        {
            self.shared.poison(error);
        }
    }

    fn answer(&mut self, written: &Result<(), StoreError>) {
        let mut num_asked = 0;
        for waiting in self.waiting.drain(..) {
            match waiting {
                Waiting::Commit {
                    partitions,
                    fenced,
                    answer,
                } => {
                    let result = match (written, fenced) {
                        (Err(error), _) => Err(error.clone()),
                        (Ok(()), Some(fenced)) => Err(fenced),
                        (Ok(()), None) => Ok(Receipt {
                            snapshot_due: self.shared.ledger().due(&partitions, &mut num_asked),
                        }),
                    };
                    // A caller that is gone reads at its next claim what was written.
                    drop(answer.send(result));
                }
                Waiting::Claim { partitions, answer } => {
                    let result = written.clone().map(|()| {
                        let ledger = self.shared.ledger();
                        Claimed {
                            headers: partitions
                                .iter()
                                .map(|&partition| ledger.head(partition))
                                .collect(),
                            segments: ledger.segments().clone(),
                        }
                    });
                    drop(answer.send(result));
                }
            }
        }
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        let number = self.active.number + 1;
        let head = SegmentHead {
            store: self.shared.store.id,
            number,
            base: self.heads.clone(),
        }
        .encode();
        let path = files::segment_path(&self.shared.folder, number);
        self.active = Active {
            number,
            salt: Salt::of_segment(self.shared.store.id, number),
            file: files::write_whole(&path, &mut head.as_slice())?,
            path,
            num_bytes: head.len() as u64,
        };
        self.shared.ledger().rotated(number, head.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{CommitNumber, StoreId};
    use crate::core::rows::Rows;
    use crate::store::format::StoreFile;
    use crate::store::ledger::{InPlace, Ledger};

    fn journal_on(device: &str) -> Journal {
        let mut ledger = Ledger::new(
            vec![Header::default()],
            VecDeque::new(),
            vec![InPlace::default()],
            0,
        );
        ledger.rotated(1, 0);
        let store = StoreFile {
            id: StoreId([0; 16]),
            partitions: 1,
        };
        let shared = Arc::new(Shared::new(PathBuf::from("folder"), store, 1 << 20, ledger));
        let active = File::options()
            .write(true)
            .open(device)
            .expect("every Linux has it");
        Journal::start(&shared, active).expect("a thread")
    }

    fn commit(number: u64) -> Commit {
        Commit {
            partition: PartitionId(0),
            epoch: Epoch(0),
            number: CommitNumber(number),
            position: None,
            rows: Rows::default(),
        }
    }

    /// `/dev/full` refuses the write, `/dev/null` the fsync; after either, nothing is tried again.
    #[tokio::test]
    async fn a_failed_write_or_fsync_poisons_everything_after_it() {
        for device in ["/dev/full", "/dev/null"] {
            let journal = journal_on(device);
            for number in [1, 1, 2] {
                let error = journal
                    .commit(vec![commit(number)])
                    .await
                    .expect_err("it cannot be durable");
                assert!(matches!(error, StoreError::Poisoned { .. }), "{error}");
                assert!(error.to_string().contains("journal-0000000000000001"));
            }
            assert!(matches!(
                journal.claim(&[PartitionId(0)]).err(),
                Some(StoreError::Poisoned { .. })
            ));
            let ledger = journal.shared.ledger();
            assert_eq!(ledger.heads(), [Header::default()], "nothing is durable");
        }
    }

    #[tokio::test]
    async fn calls_beyond_the_channels_bound_are_waited_for() {
        let journal = journal_on("/dev/full");
        let calls: Vec<_> = (0..3 * MAX_WAITING as u64)
            .map(|number| journal.commit(vec![commit(number)]))
            .collect();
        for call in calls {
            assert!(matches!(call.await, Err(StoreError::Poisoned { .. })));
        }
    }
}
