//! The alarms with a fault in them.

use tocsin::core::ids::UserId;
use tocsin::core::partition::{Decision, Domain};
use tocsin::core::rows::{CorruptRow, Reader, Rows};
use tocsin::core::time::Timestamp;
use tocsin::domains::alarms::{
    AlarmId, AlarmRow, Alarms, Change, Command, Digest, Settings, Status, Tally,
};

use super::Bug;

/// A domain whose state the world can look at.
pub(crate) trait Observed:
    Domain<Command = Command, Outgoing = Digest, Tally = Tally>
{
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)>;

    /// Its settings, and what is planted in it.
    fn settings(settings: Settings, bug: Option<Bug>) -> Self::Settings;
}

impl Observed for Alarms {
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)> {
        Self::rows(self)
    }

    fn settings(settings: Settings, _: Option<Bug>) -> Settings {
        settings
    }
}

/// The alarms, with one fault planted.
pub(crate) struct Faulty {
    alarms: Alarms,
    bug: Option<Bug>,
}

/// A row that moves, or whose mark "reported" flips.
pub(crate) struct Slip {
    change: Change,
    is_flip: bool,
    is_read_back: bool,
}

impl Slip {
    const fn of(change: Change) -> Self {
        let (is_flip, is_read_back) = (false, false);
        Self {
            change,
            is_flip,
            is_read_back,
        }
    }
}

impl Observed for Faulty {
    fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)> {
        self.alarms.rows()
    }

    fn settings(settings: Settings, bug: Option<Bug>) -> Self::Settings {
        (settings, bug)
    }
}

impl Domain for Faulty {
    type Command = Command;
    type Change = Slip;
    type Outgoing = Digest;
    type Tally = Tally;
    type Settings = (Settings, Option<Bug>);

    fn new((settings, bug): Self::Settings) -> Self {
        let alarms = Alarms::new(settings);
        Self { alarms, bug }
    }

    fn decide(&self, at: Timestamp, command: &Command, decision: &mut Decision<Self>) {
        let mut inner = Decision::default();
        self.alarms.decide(at, command, &mut inner);
        decision.publish = inner.publish;
        let is_request = matches!(command, Command::SendDigest { .. });
        decision
            .changes
            .extend(inner.changes.into_iter().map(|mut change| {
                if let (Some(Bug::SeenForgotten), Some(row)) = (self.bug, &mut change.row) {
                    row.seen = 1 << row.status as u8;
                }
                Slip {
                    is_flip: is_request && self.bug == Some(Bug::DeltaRows),
                    ..Slip::of(change)
                }
            }));
        match (self.bug, &mut decision.publish) {
            (Some(Bug::MarkWithoutDigest), digest @ Some(_)) if at.as_nanos().is_multiple_of(4) => {
                *digest = None;
            }
            (Some(Bug::DigestByArrival), Some(digest)) => digest.alarms.reverse(),
            _ => {}
        }
    }

    fn evolve(&mut self, slip: Slip) {
        let mut change = slip.change;
        if slip.is_flip {
            let Some(row) = self.alarms.row(&change.user, &change.alarm) else {
                return;
            };
            let is_reported = !row.is_reported;
            change.row = Some(AlarmRow { is_reported, ..row });
        }
        if let (Some(Bug::DueForgottenAtRecovery), true, Some(row)) =
            (self.bug, slip.is_read_back, &mut change.row)
        {
            row.is_reported = true;
        }
        self.alarms.evolve(change);
    }

    fn encode(slip: &Slip, rows: &mut Rows) {
        if !slip.is_flip {
            return Alarms::encode(&slip.change, rows);
        }
        let mut whole = Rows::default();
        Alarms::encode(&slip.change, &mut whole);
        let (key, _) = whole.iter().next().expect("one row").expect("a whole row");
        rows.push(key, Some(b"flip"));
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Slip, CorruptRow> {
        let is_flip = value == Some(b"flip");
        let change = Alarms::decode(key, value.filter(|_| !is_flip))?;
        Ok(Slip {
            change,
            is_flip,
            is_read_back: true,
        })
    }

    fn encode_outgoing(digest: &Digest, out: &mut Vec<u8>) {
        Alarms::encode_outgoing(digest, out);
    }

    fn decode_outgoing(reader: &mut Reader<'_>) -> Result<Digest, CorruptRow> {
        Alarms::decode_outgoing(reader)
    }

    fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize> {
        self.alarms.snapshot(from, max_bytes, rows)
    }

    fn expire(&self, now: Timestamp, from: usize, changes: &mut Vec<Slip>) -> usize {
        let mut expired = Vec::new();
        let next = self.alarms.expire(now, from, &mut expired);
        if self.bug == Some(Bug::TombstoneDropped) {
            let cleared = self.alarms.rows().into_iter();
            let cleared = cleared.filter(|(_, _, row)| row.status == Status::Cleared);
            expired.extend(cleared.map(|(user, alarm, _)| Change {
                user,
                alarm,
                row: None,
            }));
        }
        changes.extend(expired.into_iter().map(Slip::of));
        next
    }
}
