//! Snapshots: one file a partition, written by a thread of its own while commits go on.
//!
//! ```text
//! begin ─► snapshot-0003.7.tmp: head        the number that recovery reads on from
//! write ─► one frame of rows each           false while the thread has enough to do: offered again later
//! install ─► end, fsync, rename to snapshot-0003, fsync the folder ─► segments that nobody needs are removed
//! drop ─► the temporary file is removed
//! ```
//!
//! The owner decides when a snapshot is installed (I-08). One that is older than what is in place is dropped:
//! the journal before the newer one may be gone. A failed write poisons the store.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::files::{self, FileError};
use super::format::{
    END_BYTES, FileKind, Frame, FrameKind, Salt, SnapshotEnd, StoreFile, decode_snapshot_head,
    encode_snapshot_head,
};
use super::ledger::InPlace;
use super::reader::{FileReader, FrameError};
use super::shared::{Shared, Thread};
use super::{SnapshotWriter, StoreError};
use crate::core::ids::PartitionId;
use crate::core::partition::SnapshotHead;
use crate::core::rows::Rows;

/// Rows that wait for the thread: beyond this, writers are told to come again.
const MAX_WAITING_BYTES: usize = 8 * 1024 * 1024;
/// What a snapshot may leave to the fsync at its end: a long one delays the journal's.
const SYNC_BYTES: u64 = 8 * 1024 * 1024;

/// The way to the thread that writes snapshots; dropped, it ends when everything sent is done.
pub(super) struct Snapshots {
    queue: Arc<Queue>,
    thread: Thread,
}

impl Snapshots {
    pub(super) fn start(shared: &Arc<Shared>) -> Result<Self, FileError> {
        let queue = Arc::new(Queue::default());
        let writing = Writing {
            shared: Arc::clone(shared),
            open: HashMap::new(),
        };
        let messages = Arc::clone(&queue);
        let thread = Thread::start("store-snapshot", &shared.folder, move || {
            writing.run(&messages);
        })?;
        Ok(Self { queue, thread })
    }

    pub(super) fn begin(&self, head: SnapshotHead) -> Box<dyn SnapshotWriter> {
        Box::new(Writer {
            token: self.queue.begin(head),
            queue: Arc::clone(&self.queue),
            is_finished: false,
        })
    }

    /// Removes the segments that nobody needs any more.
    pub(super) fn collect(&self) {
        self.queue.push(Message::Collect);
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.queue.close();
        self.thread.join();
    }
}

enum Message {
    Begin(u64, SnapshotHead),
    Rows(u64, Rows),
    Install(u64),
    Drop(u64),
    Collect,
}

/// Bounded by the bytes of the rows; everything else comes once or twice a snapshot and must not be refused.
#[derive(Default)]
struct Queue {
    waiting: Mutex<WaitingMessages>,
    has_news: Condvar,
}

#[derive(Default)]
struct WaitingMessages {
    messages: VecDeque<Message>,
    num_bytes: usize,
    last_token: u64,
    is_closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, WaitingMessages> {
        self.waiting
            .lock()
            .expect("nobody panics while holding the queue")
    }

    fn begin(&self, head: SnapshotHead) -> u64 {
        let mut waiting = self.lock();
        waiting.last_token += 1;
        let token = waiting.last_token;
        waiting.messages.push_back(Message::Begin(token, head));
        self.has_news.notify_one();
        token
    }

    fn push(&self, message: Message) {
        self.lock().messages.push_back(message);
        self.has_news.notify_one();
    }

    fn offer(&self, token: u64, rows: &Rows) -> bool {
        let mut waiting = self.lock();
        if waiting.num_bytes > MAX_WAITING_BYTES {
            return false;
        }
        waiting.num_bytes += rows.as_bytes().len();
        waiting
            .messages
            .push_back(Message::Rows(token, rows.clone()));
        self.has_news.notify_one();
        true
    }

    fn close(&self) {
        self.lock().is_closed = true;
        self.has_news.notify_one();
    }

    /// The next message; `None` when it is closed and empty.
    fn next(&self) -> Option<Message> {
        let mut waiting = self.lock();
        loop {
            match waiting.messages.pop_front() {
                Some(Message::Rows(token, rows)) => {
                    waiting.num_bytes -= rows.as_bytes().len();
                    return Some(Message::Rows(token, rows));
                }
                Some(message) => return Some(message),
                None if waiting.is_closed => return None,
                None => {
                    waiting = self
                        .has_news
                        .wait(waiting)
                        .expect("nobody panics while holding the queue");
                }
            }
        }
    }
}

struct Writer {
    queue: Arc<Queue>,
    token: u64,
    is_finished: bool,
}

impl SnapshotWriter for Writer {
    fn write(&mut self, rows: &Rows) -> bool {
        rows.is_empty() || self.queue.offer(self.token, rows)
    }

    fn install(mut self: Box<Self>) {
        self.is_finished = true;
        self.queue.push(Message::Install(self.token));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.is_finished {
            self.queue.push(Message::Drop(self.token));
        }
    }
}

/// The thread's side.
struct Writing {
    shared: Arc<Shared>,
    open: HashMap<u64, OpenSnapshot>,
}

struct OpenSnapshot {
    head: SnapshotHead,
    path: PathBuf,
    file: File,
    salt: Salt,
    num_bytes: u64,
    num_unsynced: u64,
    end: SnapshotEnd,
    frame: Vec<u8>,
}

impl Writing {
    fn run(mut self, queue: &Queue) {
        while let Some(message) = queue.next() {
            if self.shared.check().is_ok()
                && let Err(error) = self.take(message)
            {
                self.shared.poison(error);
            }
        }
    }

    fn take(&mut self, message: Message) -> Result<(), FileError> {
        match message {
            Message::Begin(token, head) => {
                let snapshot = OpenSnapshot::create(&self.shared, token, head)?;
                self.open.insert(token, snapshot);
                Ok(())
            }
            Message::Rows(token, rows) => match self.open.get_mut(&token) {
                Some(snapshot) => snapshot.write_rows(&rows),
                None => Ok(()),
            },
            Message::Install(token) => match self.open.remove(&token) {
                Some(snapshot) => self.install(snapshot),
                None => Ok(()),
            },
            Message::Drop(token) => match self.open.remove(&token) {
                Some(snapshot) => self.discard(&snapshot),
                None => Ok(()),
            },
            Message::Collect => self.collect(),
        }
    }

    fn install(&self, mut snapshot: OpenSnapshot) -> Result<(), FileError> {
        let SnapshotHead { partition, header } = snapshot.head;
        let (in_place, stored) = {
            let ledger = self.shared.ledger();
            (ledger.snapshot(partition), ledger.head(partition))
        };
        if in_place.number > header.number {
            return self.discard(&snapshot);
        }
        snapshot.end.durable = stored.number;
        snapshot.write_end()?;
        let path = files::snapshot_path(&self.shared.folder, partition);
        files::put_in_place(&snapshot.path, &snapshot.file, &path)?;
        let mut ledger = self.shared.ledger();
        ledger.installed(
            partition,
            InPlace {
                number: header.number,
                num_bytes: snapshot.num_bytes,
            },
        );
        ledger.end_snapshot(partition);
        drop(ledger);
        self.collect()
    }

    fn discard(&self, snapshot: &OpenSnapshot) -> Result<(), FileError> {
        self.shared.ledger().end_snapshot(snapshot.head.partition);
        files::remove(&snapshot.path)
    }

    /// The oldest first, each durably before the next: what is left is without a gap.
    fn collect(&self) -> Result<(), FileError> {
        loop {
            let unneeded = self.shared.ledger().take_unneeded();
            let Some(number) = unneeded else {
                return Ok(());
            };
            files::remove(&files::segment_path(&self.shared.folder, number))?;
        }
    }
}

impl OpenSnapshot {
    fn create(shared: &Shared, token: u64, head: SnapshotHead) -> Result<Self, FileError> {
        let path = files::snapshot_temp_path(&shared.folder, head.partition, token);
        let mut snapshot = Self {
            head,
            file: files::create_temp(&path)?,
            path,
            salt: Salt::of_snapshot(shared.store.id, head.partition),
            num_bytes: 0,
            num_unsynced: 0,
            end: SnapshotEnd::default(),
            frame: encode_snapshot_head(shared.store.id, &head),
        };
        snapshot.flush()?;
        Ok(snapshot)
    }

    fn write_rows(&mut self, rows: &Rows) -> Result<(), FileError> {
        self.end.num_blocks += 1;
        self.end.num_bytes += rows.as_bytes().len() as u64;
        Frame::begin(&mut self.frame);
        self.frame.extend_from_slice(rows.as_bytes());
        self.finish(FrameKind::Rows)
    }

    fn write_end(&mut self) -> Result<(), FileError> {
        Frame::begin(&mut self.frame);
        self.end.encode(&mut self.frame);
        self.finish(FrameKind::End)
    }

    fn finish(&mut self, kind: FrameKind) -> Result<(), FileError> {
        Frame::finish(kind, self.salt, self.num_bytes, &mut self.frame);
        self.flush()
    }

    fn flush(&mut self) -> Result<(), FileError> {
        files::write(&mut self.file, &self.path, &self.frame)?;
        self.num_bytes += self.frame.len() as u64;
        self.num_unsynced += self.frame.len() as u64;
        self.frame.clear();
        if self.num_unsynced > SYNC_BYTES {
            files::sync(&self.file, &self.path)?;
            self.num_unsynced = 0;
        }
        Ok(())
    }
}

/// A snapshot that lies in its place.
pub(super) struct StoredSnapshot {
    reader: FileReader,
    salt: Salt,
    pub(super) head: SnapshotHead,
}

impl StoredSnapshot {
    pub(super) fn open(
        shared_folder: &std::path::Path,
        store: StoreFile,
        partition: PartitionId,
    ) -> Result<Self, StoreError> {
        let path = files::snapshot_path(shared_folder, partition);
        let (reader, body) = FileReader::open(path, FileKind::Snapshot)?;
        let (id, head) = decode_snapshot_head(&body)
            .map_err(|error| files::malformed(reader.path(), 0, &error))?;
        if id != store.id {
            return Err(files::damaged(
                reader.path(),
                0,
                "it belongs to another store",
            ));
        }
        if head.partition != partition {
            return Err(files::damaged(
                reader.path(),
                0,
                "it belongs to another partition",
            ));
        }
        Ok(Self {
            reader,
            salt: Salt::of_snapshot(store.id, partition),
            head,
        })
    }

    pub(super) const fn num_bytes(&self) -> u64 {
        self.reader.num_bytes()
    }

    /// Reads the end alone: what was written last is there.
    pub(super) fn end(mut self) -> Result<SnapshotEnd, StoreError> {
        let begin = self.reader.offset();
        let offset = self.reader.num_bytes().saturating_sub(END_BYTES as u64);
        self.reader.seek(offset.max(begin))?;
        let path = self.reader.path().to_owned();
        match self.reader.frame(self.salt) {
            Ok(Some((FrameKind::End, _, body))) => {
                SnapshotEnd::decode(body).map_err(|error| files::malformed(&path, offset, &error))
            }
            Ok(_) => Err(files::damaged(&path, offset, "its end is missing")),
            Err(error) => Err(error.damaged(&path)),
        }
    }

    /// Reads everything, checked; hands the rows of each frame on.
    pub(super) fn read(
        mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let path = self.reader.path().to_owned();
        let mut seen = SnapshotEnd::default();
        loop {
            let offset = self.reader.offset();
            let frame = self
                .reader
                .frame(self.salt)
                .map_err(|error: FrameError| error.damaged(&path))?;
            match frame {
                Some((FrameKind::Rows, _, rows)) => {
                    seen.num_blocks += 1;
                    seen.num_bytes += rows.len() as u64;
                    take(rows)?;
                }
                Some((FrameKind::End, _, body)) => {
                    let end = SnapshotEnd::decode(body)
                        .map_err(|error| files::malformed(&path, offset, &error))?;
                    let is_whole = (end.num_blocks, end.num_bytes)
                        == (seen.num_blocks, seen.num_bytes)
                        && self.reader.offset() == self.reader.num_bytes();
                    if is_whole {
                        return Ok(());
                    }
                    return Err(files::damaged(
                        &path,
                        offset,
                        "it does not hold what its end says",
                    ));
                }
                Some((FrameKind::Record, ..)) | None => {
                    return Err(files::damaged(&path, offset, "its end is missing"));
                }
            }
        }
    }
}
