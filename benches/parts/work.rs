//! The parts of a change's way, each with what it is given.

use bytes::Bytes;
use tocsin::bus::wire::{self, Limits};
use tocsin::core::ids::{CommitNumber, Epoch, PartitionId, StoreId};
use tocsin::core::partition::{Commit, Delivered, Delivery, Domain, Header, Partition};
use tocsin::core::position::{Cursor, Origin, Position};
use tocsin::core::rows::Rows;
use tocsin::core::time::Timestamp;
use tocsin::domains::Command;
use tocsin::domains::alarms::{Alarms, Settings};

use crate::draws::{Random, uuid};

/// When everything is stored.
const AT: Timestamp = Timestamp::from_seconds(1_800_000_000);
const ORIGIN: Origin = Origin::Stream { created: AT };
const ALARMS_PER_USER: u64 = 10;

/// Changes of random alarms of so many users, as publishers send them.
pub(crate) fn changes(seed: u64, num: u64, num_users: u64) -> Vec<Bytes> {
    let mut random = Random(seed);
    (0..num)
        .map(|at| {
            let user = random.below(num_users);
            let alarm = user * ALARMS_PER_USER + random.below(ALARMS_PER_USER);
            let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
            let (second, nano) = (at / 1_000_000_000, at % 1_000_000_000);
            let (user, alarm) = (uuid(user), uuid(alarm + (1 << 40)));
            format!(
                r#"{{"AlarmID":"{alarm}","UserID":"{user}","Status":"{status}","ChangedAt":"2026-01-01T00:00:{second:02}.{nano:09}Z"}}"#
            )
            .into()
        })
        .collect()
}

/// Reads one message.
pub(crate) fn decode(payload: &[u8]) -> Command {
    wire::decode(wire::CHANGE, payload, AT, &Limits::default()).expect("a change")
}

/// A partition, and how far it was fed.
pub(crate) struct Fed {
    pub(crate) partition: Partition<Alarms>,
    sequence: u64,
}

impl Fed {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let mut partition = Partition::new(StoreId([1; 16]), PartitionId(0), Settings::default());
        partition.recovered(Header {
            epoch: Epoch(1),
            number: CommitNumber(0),
            position: None,
        });
        Self {
            partition,
            sequence: 0,
        }
    }

    /// Applies messages, as a worker does.
    pub(crate) fn apply(&mut self, commands: Vec<Command>) {
        const APPROACHED: usize = 32;
        let first = self.sequence + 1;
        self.sequence += commands.len() as u64;
        let deliveries: Vec<_> = (first..)
            .zip(commands)
            .map(|(sequence, command)| delivery(sequence, command))
            .collect();
        let mut deliveries = deliveries.into_iter();
        while !deliveries.as_slice().is_empty() {
            let mut places = [0; APPROACHED];
            for step in 0..Alarms::STEPS {
                for (soon, place) in deliveries.as_slice().iter().zip(&mut places) {
                    *place = self.partition.approach(soon, step, *place);
                }
            }
            for delivery in deliveries.by_ref().take(APPROACHED) {
                self.partition.deliver(ORIGIN, delivery);
            }
        }
        self.partition.advance(Position {
            origin: ORIGIN,
            cursor: cursor(self.sequence),
            timestamp: AT,
            fingerprint: Some(0),
        });
    }

    /// Takes the commit of what was applied, which is durable at once.
    pub(crate) fn commit(&mut self) -> Commit {
        let commit = self.partition.commit().expect("something was applied");
        self.partition.committed(commit.number);
        while self.partition.poll().is_some() {}
        commit
    }

    /// A whole snapshot.
    pub(crate) fn snapshot(&mut self) -> Rows {
        let mut rows = Rows::default();
        self.partition.begin_snapshot().expect("none is under way");
        while self.partition.write_snapshot(256 * 1024, &mut rows) {}
        rows
    }
}

/// A partition that holds the rows of another.
pub(crate) fn restored(rows: &Rows) -> Fed {
    let mut fed = Fed::new();
    for row in rows {
        let (key, value) = row.expect("a row");
        fed.partition.restore(key, value).expect("a row of ours");
    }
    fed
}

const fn cursor(sequence: u64) -> Cursor {
    Cursor {
        generation: 0,
        sequence,
    }
}

fn delivery(sequence: u64, command: Command) -> Delivery<Command> {
    Delivery {
        cursor: cursor(sequence),
        timestamp: AT,
        placement: command.user().placement(),
        body: Delivered::Command(command),
        reply_to: None,
    }
}
