//! What must hold after every step, by number: checked in debug builds, in the simulation and by the tests.

/// Something that must always hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Invariant {
    /// I-01: a partition's commits are numbered without a gap, and one is in flight at the most.
    CommitsFollow,
    /// I-02: a commit's position covers every message in it, and no position goes back.
    PositionCoversCommit,
    /// I-03: nothing is released, answered or published before its commit is durable.
    CommitBeforeEffect,
    /// I-04: an owed message stays in the store until the broker has confirmed it.
    OwedUntilConfirmed,
    /// I-05: one message of a lane is unconfirmed at the most.
    OneInFlightPerLane,
    /// I-06: the state read back from the store is the state that was live when it was written.
    RecoveredIsLive,
    /// I-07: one message has one id, and one id is one message.
    OneIdPerMessage,
    /// I-08: a snapshot is put in place only when every commit that it may contain is durable.
    SnapshotIsDurable,
    /// I-09: a digest runs from oldest to newest, ties by the bytes of the alarm's id, each alarm once.
    DigestInOrder,
    /// I-10: due ⊆ digest ⊆ active, for every request.
    DigestIsDue,
    /// I-11: every message of the input is applied, and a repeat changes nothing.
    AppliedOnce,
}

impl Invariant {
    /// Every invariant, in order of its number.
    pub const ALL: [Self; 11] = [
        Self::CommitsFollow,
        Self::PositionCoversCommit,
        Self::CommitBeforeEffect,
        Self::OwedUntilConfirmed,
        Self::OneInFlightPerLane,
        Self::RecoveredIsLive,
        Self::OneIdPerMessage,
        Self::SnapshotIsDurable,
        Self::DigestInOrder,
        Self::DigestIsDue,
        Self::AppliedOnce,
    ];

    /// Its number, as the documents name it.
    #[must_use]
    pub fn number(self) -> usize {
        1 + Self::ALL
            .iter()
            .position(|&other| other == self)
            .expect("ALL lists every invariant")
    }
}

/// Panics in debug builds when an invariant does not hold.
macro_rules! check {
    ($invariant:expr, $holds:expr) => {
        debug_assert!(
            $holds,
            "invariant I-{:02} is broken: {:?}",
            $invariant.number(),
            $invariant
        )
    };
}
pub(crate) use check;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_run_from_one() {
        let numbers: Vec<_> = Invariant::ALL.into_iter().map(Invariant::number).collect();
        assert_eq!(numbers, (1..=11).collect::<Vec<_>>());
    }
}
