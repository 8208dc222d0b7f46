//! The faults that are planted in the world around the partition: what a shell could get wrong. Each breaks
//! one rule of the no-loss protocol, and each must be noticed by a check that has a name.

use tocsin::core::ids::UserId;
use tocsin::core::partition::{Decision, Domain};
use tocsin::core::rows::{CorruptRow, Reader, Rows};
use tocsin::core::time::Timestamp;
use tocsin::domains::alarms::{
    AlarmId, AlarmRow, Alarms, Change, Command, Digest, Settings, Tally,
};

/// A fault of the shell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bug {
    /// Rule 10: the partition is told of a commit before the store has it.
    ReleasedBeforeDurable,
    /// Rule 10: the position is written on its own, before the rows.
    PositionBeforeCommit,
    /// Rule 10: the position is written on its own, after the rows.
    PositionAfterCommit,
    /// An owed message is taken for published when it is sent.
    RemovedAtSend,
    /// Rule 2: one position for all partitions.
    OneGlobalPosition,
    /// Rule 2: reading starts again at the highest position instead of the lowest.
    ResumedAtHighest,
    /// Rule 2: the watermark is raised before the messages below it are delivered.
    WatermarkTooEarly,
    /// Rule 7: messages are judged by a clock that shows another time at a replay.
    WallClock,
    /// Rule 8: the mark "reported" is written as a difference.
    DeltaRows,
    /// Rule 9: a message at which workers die is skipped without a dead letter.
    PoisonSkipped,
    /// Rule 9: without a stream, the router forgets a batch once it is handed over.
    BatchForgotten,
    /// Rule 10: the store applies commits of earlier owners.
    StaleCommitApplied,
    /// Rule 12: a snapshot is put in place as soon as it is written.
    SnapshotTooEarly,
    /// Rule 12: the journal is cut at the newest commit instead of where the snapshot began.
    JournalCutTooFar,
    /// Rule 13: ids come from a counter that begins anew with the process.
    IdsFromCounter,
    /// Rule 14: an old message is sent again without looking for it.
    NoLookup,
    /// Rule 15: all that is owed to a user is under way at once.
    TwoInFlight,
    /// Rule 1: reading goes on by sequence, whatever happened to the stream.
    RewriteUnnoticed,
}

impl Bug {
    pub(crate) const ALL: [Self; 18] = [
        Self::ReleasedBeforeDurable,
        Self::PositionBeforeCommit,
        Self::PositionAfterCommit,
        Self::RemovedAtSend,
        Self::OneGlobalPosition,
        Self::ResumedAtHighest,
        Self::WatermarkTooEarly,
        Self::WallClock,
        Self::DeltaRows,
        Self::PoisonSkipped,
        Self::BatchForgotten,
        Self::StaleCommitApplied,
        Self::SnapshotTooEarly,
        Self::JournalCutTooFar,
        Self::IdsFromCounter,
        Self::NoLookup,
        Self::TwoInFlight,
        Self::RewriteUnnoticed,
    ];
}

/// A domain whose state the world can look at.
pub(crate) trait Observed:
    Domain<Command = Command, Outgoing = Digest, Tally = Tally, Settings = Settings>
{
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)>;
}

impl Observed for Alarms {
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)> {
        Self::rows(self)
    }
}

/// The alarms, but the mark "reported" is written as a flip of what was there: [`Bug::DeltaRows`].
pub(crate) struct Flipping(Alarms);

/// A row, or that its mark flips.
pub(crate) struct Flip {
    change: Change,
    is_flip: bool,
}

impl Observed for Flipping {
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)> {
        self.0.rows()
    }
}

impl Domain for Flipping {
    type Command = Command;
    type Change = Flip;
    type Outgoing = Digest;
    type Tally = Tally;
    type Settings = Settings;

    fn new(settings: Settings) -> Self {
        Self(Alarms::new(settings))
    }

    fn decide(&self, at: Timestamp, command: &Command, decision: &mut Decision<Self>) {
        let mut inner = Decision::default();
        self.0.decide(at, command, &mut inner);
        decision.publish = inner.publish;
        let is_flip = matches!(command, Command::SendDigest { .. });
        let flips = inner
            .changes
            .into_iter()
            .map(|change| Flip { change, is_flip });
        decision.changes.extend(flips);
    }

    fn evolve(&mut self, flip: Flip) {
        let mut change = flip.change;
        if flip.is_flip {
            let Some(row) = self.0.row(&change.user, &change.alarm) else {
                return;
            };
            let is_reported = !row.is_reported;
            change.row = Some(AlarmRow { is_reported, ..row });
        }
        self.0.evolve(change);
    }

    fn encode(flip: &Flip, rows: &mut Rows) {
        if !flip.is_flip {
            return Alarms::encode(&flip.change, rows);
        }
        let mut whole = Rows::default();
        Alarms::encode(&flip.change, &mut whole);
        let (key, _) = whole.iter().next().expect("one row").expect("a whole row");
        rows.push(key, Some(b"flip"));
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Flip, CorruptRow> {
        let is_flip = value == Some(b"flip");
        let change = Alarms::decode(key, value.filter(|_| !is_flip))?;
        Ok(Flip { change, is_flip })
    }

    fn encode_outgoing(digest: &Digest, out: &mut Vec<u8>) {
        Alarms::encode_outgoing(digest, out);
    }

    fn decode_outgoing(reader: &mut Reader<'_>) -> Result<Digest, CorruptRow> {
        Alarms::decode_outgoing(reader)
    }

    fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize> {
        self.0.snapshot(from, max_bytes, rows)
    }

    fn expire(&self, now: Timestamp, from: usize, changes: &mut Vec<Flip>) -> usize {
        let mut expired = Vec::new();
        let next = self.0.expire(now, from, &mut expired);
        let is_flip = false;
        changes.extend(expired.into_iter().map(|change| Flip { change, is_flip }));
        next
    }
}
