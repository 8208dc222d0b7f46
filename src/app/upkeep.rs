//! What is done with an embedded store while no daemon uses it: counting, checking, rewinding.

use std::path::Path;

use super::AppError;
use crate::core::ids::{Epoch, PartitionId, StoreId};
use crate::core::partition::{Commit, Header, Partition};
use crate::core::position::{Position, RewindTo, position_to_verify, rewind};
use crate::core::rows::{CorruptRow, Rows};
use crate::domains::State;
use crate::domains::alarms::{Settings, Status};
use crate::store::inspect::{self, CheckedFile, Files, Inspection, TornTail};
use crate::store::{Recovery, Store, StoreError};

/// What a store holds, counted.
#[derive(Clone, Debug)]
pub struct Stats {
    /// The random id drawn when it was created.
    pub id: StoreId,
    /// The format of its files.
    pub format: u32,
    /// Its partitions.
    pub num_partitions: usize,
    /// Users with an alarm on record.
    pub num_users: usize,
    /// Alarms on record, by [`Status`] number; cleared ones are tombstones.
    pub num_alarms: [u64; 3],
    /// Alarms that the next digest of their user will report.
    pub num_due: usize,
    /// Messages that the broker has not confirmed.
    pub num_owed: usize,
    /// Their bytes.
    pub owed_bytes: usize,
    /// How far the input was read: the least and the most of all partitions; `None` before anything was.
    pub read_up_to: Option<(Position, Position)>,
    /// The least and the most often that a partition was claimed: about once a start.
    pub epochs: (Epoch, Epoch),
    /// The segments of the journal.
    pub journal: Files,
    /// The snapshots.
    pub snapshots: Files,
    /// What the next start cuts, after a crash.
    pub torn_tail: Option<TornTail>,
}

impl Stats {
    /// How many alarms of a status are on record.
    #[must_use]
    pub fn num_of(&self, status: Status) -> u64 {
        self.num_alarms
            .get(status as usize)
            .copied()
            .unwrap_or_default()
    }
}

/// Counts what a store holds; changes nothing.
///
/// # Errors
/// When there is no store, a process uses it, or it cannot be read.
pub fn stats(folder: &Path) -> Result<Stats, StoreError> {
    let inspection = Inspection::open(folder)?;
    let headers = inspection.headers();
    let mut contents = Contents::default();
    inspection.read(&mut contents)?;
    let partitions = &contents.partitions;
    let epochs = || headers.iter().map(|header| header.epoch);
    let (journal, snapshots) = inspection.files();
    Ok(Stats {
        id: inspection.id(),
        format: inspection.format(),
        num_partitions: headers.len(),
        num_users: partitions.iter().map(|it| it.state().num_users()).sum(),
        num_alarms: Status::ALL.map(|status| {
            let by_status = partitions.iter().map(|it| it.state().num_by_status());
            by_status
                .filter_map(|nums| nums.get(status as usize).copied())
                .sum()
        }),
        num_due: partitions.iter().map(|it| it.state().num_due()).sum(),
        num_owed: partitions.iter().map(|it| it.outbox().num_rows()).sum(),
        owed_bytes: partitions.iter().map(|it| it.outbox().num_bytes()).sum(),
        read_up_to: read_up_to(&positions(&headers)),
        epochs: (
            epochs().min().unwrap_or_default(),
            epochs().max().unwrap_or_default(),
        ),
        journal,
        snapshots,
        torn_tail: inspection.torn_tail().cloned(),
    })
}

/// What was found in a store.
#[derive(Clone, Debug)]
pub struct Verification {
    /// Every file.
    pub files: Vec<CheckedFile>,
    /// How many rows were read as the next start would read them.
    pub num_rows: u64,
    /// The first thing that keeps the store from being used.
    pub damage: Option<StoreError>,
}

/// Reads every byte of a store, checks every checksum, and reads the rows as the domain does; changes nothing.
///
/// # Errors
/// When there is no store, or a process uses it; damage is no error here.
pub fn verify(folder: &Path) -> Result<Verification, StoreError> {
    let mut contents = Contents::default();
    let (files, damage) = inspect::verify(folder, &mut contents)?;
    Ok(Verification {
        files,
        num_rows: contents.num_rows,
        damage,
    })
}

/// A rewind that is possible, and not done yet; the store is held.
pub struct Rewind {
    inspection: Inspection,
    headers: Vec<Header>,
    /// How far the input was read: the least and the most of all partitions.
    pub read_up_to: (Position, Position),
    /// What every partition takes.
    pub base: Position,
}

impl Rewind {
    /// Looks whether the input can be read again from there; changes nothing.
    ///
    /// # Errors
    /// When there is no store, a process uses it, or the input cannot be read again from there.
    pub fn plan(folder: &Path, to: RewindTo) -> Result<Self, AppError> {
        let inspection = Inspection::open(folder)?;
        let headers = inspection.headers();
        let positions = positions(&headers);
        let base = rewind(&positions, to)?;
        Ok(Self {
            inspection,
            headers,
            read_up_to: read_up_to(&positions).unwrap_or((base, base)),
            base,
        })
    }

    /// How many partitions it moves.
    #[must_use]
    pub fn num_partitions(&self) -> usize {
        self.headers.len()
    }

    /// Does it: one commit of all partitions, in one write, so that a crash leaves all of it or nothing.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn commit(self) -> Result<(), StoreError> {
        let commits = (0..).map(PartitionId).zip(&self.headers);
        let commits = commits.map(|(partition, header)| Commit {
            partition,
            // The store is held: nobody else can own the partition meanwhile.
            epoch: header.epoch,
            number: header.number.next(),
            position: Some(self.base),
            rows: Rows::default(),
        });
        let commits = commits.collect();
        let store = self.inspection.into_store()?;
        store.commit(commits).await?;
        Ok(())
    }
}

fn positions(headers: &[Header]) -> Vec<Option<Position>> {
    headers.iter().map(|header| header.position).collect()
}

/// The lowest and the highest position.
fn read_up_to(positions: &[Option<Position>]) -> Option<(Position, Position)> {
    let known = positions.iter().flatten().copied();
    let lowest = known.min_by_key(|position| position.cursor);
    lowest.zip(position_to_verify(positions))
}

/// Every partition as the next start would have it.
#[derive(Default)]
struct Contents {
    partitions: Vec<Partition<State>>,
    num_rows: u64,
}

impl Recovery for Contents {
    fn row(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), CorruptRow> {
        let at = usize::from(partition.0);
        while self.partitions.len() <= at {
            let id = PartitionId(u16::try_from(self.partitions.len()).unwrap_or(u16::MAX));
            // Neither the store's id nor the settings have a part in reading rows.
            let empty = Partition::new(StoreId([0; 16]), id, Settings::default());
            self.partitions.push(empty);
        }
        self.num_rows += 1;
        self.partitions
            .get_mut(at)
            .expect("it was made just now")
            .restore(key, value)
    }
}
