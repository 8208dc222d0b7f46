//! What lies on the disk of an embedded store, and why it must stay.
//!
//! ```text
//! journal   [ 7 ][ 8 ][ 9 ][ 10 active ]        a segment goes when every partition has a snapshot
//! snapshots  p0: 8     p1: 9     p2: 10 …       beyond its last commit there, oldest segment first
//! ```
//!
//! When the journal has outgrown the snapshots, the partitions that pin its oldest segment are asked for
//! new ones, a few at a time: about twice the state lies on the disk, whatever the traffic. Nothing goes
//! while a claim reads. Pure: the journal and the snapshot thread share it behind one lock and do the I/O.

use std::collections::VecDeque;

use crate::core::ids::{CommitNumber, PartitionId};
use crate::core::partition::Header;

/// How many snapshots are asked for before one of them is finished.
const MAX_SNAPSHOTS_AT_ONCE: usize = 4;

/// A segment of the journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) num_bytes: u64,
    /// Each partition's last commit in it; 0 where it has none.
    pub(super) last: Vec<CommitNumber>,
}

/// A snapshot in place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct InPlace {
    /// Recovery reads the commits after this one; 0 where there is no snapshot.
    pub(super) number: CommitNumber,
    pub(super) num_bytes: u64,
}

#[derive(Debug)]
pub(super) struct Ledger {
    /// What is durable of every partition.
    heads: Vec<Header>,
    /// Oldest first; commits go to the last.
    segments: VecDeque<Segment>,
    snapshots: Vec<InPlace>,
    /// How many snapshots of each partition are being written.
    under_way: Vec<usize>,
    num_claims: usize,
    min_journal_bytes: u64,
}

impl Ledger {
    pub(super) fn new(
        heads: Vec<Header>,
        segments: VecDeque<Segment>,
        snapshots: Vec<InPlace>,
        min_journal_bytes: u64,
    ) -> Self {
        Self {
            under_way: vec![0; heads.len()],
            heads,
            segments,
            snapshots,
            num_claims: 0,
            min_journal_bytes,
        }
    }

    pub(super) fn heads(&self) -> &[Header] {
        &self.heads
    }

    pub(super) fn head(&self, partition: PartitionId) -> Header {
        self.heads
            .get(usize::from(partition.0))
            .copied()
            .unwrap_or_default()
    }

    pub(super) const fn segments(&self) -> &VecDeque<Segment> {
        &self.segments
    }

    pub(super) fn snapshot(&self, partition: PartitionId) -> InPlace {
        self.snapshots
            .get(usize::from(partition.0))
            .copied()
            .unwrap_or_default()
    }

    /// The active segment is so long now, and these partitions moved.
    pub(super) fn wrote(&mut self, num_bytes: u64, moved: &[(PartitionId, Header)]) {
        let Some(active) = self.segments.back_mut() else {
            return;
        };
        active.num_bytes = num_bytes;
        for (partition, header) in moved {
            let at = usize::from(partition.0);
            if let Some(head) = self.heads.get_mut(at) {
                // A claim moves the epoch alone: its number pins nothing.
                if head.number != header.number
                    && let Some(last) = active.last.get_mut(at)
                {
                    *last = header.number;
                }
                *head = *header;
            }
        }
    }

    /// Commits go to a new segment.
    pub(super) fn rotated(&mut self, number: u64, num_bytes: u64) {
        self.segments.push_back(Segment {
            number,
            num_bytes,
            last: vec![CommitNumber::default(); self.heads.len()],
        });
    }

    /// Which of these partitions should be written anew; `num_asked` counts them over the calls of a write.
    pub(super) fn due(
        &self,
        partitions: &[PartitionId],
        num_asked: &mut usize,
    ) -> Vec<PartitionId> {
        let mut due = Vec::new();
        if self.segments.len() < 2 || self.journal_bytes() <= self.max_journal_bytes() {
            return due;
        }
        let num_under_way: usize = self.under_way.iter().sum();
        for &partition in partitions {
            if num_under_way + *num_asked >= MAX_SNAPSHOTS_AT_ONCE {
                break;
            }
            let is_idle = self.under_way.get(usize::from(partition.0)) == Some(&0);
            if is_idle && self.pins_oldest(partition) && !due.contains(&partition) {
                due.push(partition);
                *num_asked += 1;
            }
        }
        due
    }

    fn journal_bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.num_bytes).sum()
    }

    fn max_journal_bytes(&self) -> u64 {
        let snapshots = self.snapshots.iter().map(|in_place| in_place.num_bytes);
        snapshots.sum::<u64>().max(self.min_journal_bytes)
    }

    fn pins_oldest(&self, partition: PartitionId) -> bool {
        self.segments
            .front()
            .and_then(|oldest| oldest.last.get(usize::from(partition.0)))
            .is_some_and(|&last| last > self.snapshot(partition).number)
    }

    pub(super) fn begin_snapshot(&mut self, partition: PartitionId) {
        if let Some(num) = self.under_way.get_mut(usize::from(partition.0)) {
            *num += 1;
        }
    }

    pub(super) fn end_snapshot(&mut self, partition: PartitionId) {
        if let Some(num) = self.under_way.get_mut(usize::from(partition.0)) {
            *num = num.saturating_sub(1);
        }
    }

    pub(super) fn installed(&mut self, partition: PartitionId, in_place: InPlace) {
        if let Some(snapshot) = self.snapshots.get_mut(usize::from(partition.0)) {
            *snapshot = in_place;
        }
    }

    pub(super) const fn begin_claim(&mut self) {
        self.num_claims += 1;
    }

    pub(super) const fn end_claim(&mut self) {
        self.num_claims = self.num_claims.saturating_sub(1);
    }

    /// Forgets the oldest segment if nobody needs it; the caller removes it and asks again.
    pub(super) fn take_unneeded(&mut self) -> Option<u64> {
        let is_pinned = |ledger: &Self, oldest: &Segment| {
            oldest
                .last
                .iter()
                .zip(&ledger.snapshots)
                .any(|(&last, in_place)| last > in_place.number)
        };
        let oldest = self.segments.front()?;
        if self.num_claims > 0 || self.segments.len() < 2 || is_pinned(self, oldest) {
            return None;
        }
        self.segments.pop_front().map(|oldest| oldest.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P0: PartitionId = PartitionId(0);
    const P1: PartitionId = PartitionId(1);

    fn at(number: u64) -> Header {
        Header {
            number: CommitNumber(number),
            ..Header::default()
        }
    }

    fn in_place(number: u64, num_bytes: u64) -> InPlace {
        InPlace {
            number: CommitNumber(number),
            num_bytes,
        }
    }

    /// Two partitions; segment 1 holds their first commits, segment 2 is active.
    fn two_segments() -> Ledger {
        let mut ledger = Ledger::new(
            vec![Header::default(); 2],
            VecDeque::new(),
            vec![InPlace::default(); 2],
            100,
        );
        ledger.rotated(1, 10);
        ledger.wrote(90, &[(P0, at(1)), (P1, at(1))]);
        ledger.rotated(2, 10);
        ledger
    }

    #[test]
    fn nothing_is_asked_for_while_the_journal_is_small() {
        let mut ledger = two_segments();
        assert_eq!(ledger.due(&[P0, P1], &mut 0), vec![]);
        ledger.wrote(11, &[(P0, at(2))]);
        assert_eq!(ledger.due(&[P0, P1], &mut 0), vec![P0, P1]);
        ledger.installed(P1, in_place(0, 200));
        assert_eq!(ledger.due(&[P0, P1], &mut 0), vec![]);
    }

    #[test]
    fn only_what_pins_the_oldest_segment_is_asked_for_and_a_few_at_a_time() {
        let mut ledger = two_segments();
        ledger.wrote(50, &[(P0, at(2))]);
        ledger.installed(P1, in_place(1, 1));
        assert_eq!(ledger.due(&[P0, P1], &mut 0), vec![P0]);
        ledger.begin_snapshot(P0);
        assert_eq!(ledger.due(&[P0], &mut 0), vec![]);
        ledger.end_snapshot(P0);
        assert_eq!(
            ledger.due(&[P0], &mut { MAX_SNAPSHOTS_AT_ONCE }),
            vec![],
            "enough was asked for"
        );
        assert_eq!(ledger.due(&[P0], &mut 0), vec![P0]);
    }

    #[test]
    fn a_segment_goes_when_no_partition_and_no_claim_needs_it() {
        let mut ledger = two_segments();
        assert_eq!(ledger.take_unneeded(), None);
        ledger.installed(P0, in_place(1, 1));
        assert_eq!(ledger.take_unneeded(), None);
        ledger.installed(P1, in_place(1, 1));
        ledger.begin_claim();
        assert_eq!(ledger.take_unneeded(), None);
        ledger.end_claim();
        assert_eq!(ledger.take_unneeded(), Some(1));
        assert_eq!(ledger.take_unneeded(), None, "the active segment stays");
    }

    #[test]
    fn a_claim_pins_nothing() {
        let mut ledger = two_segments();
        let claimed = Header {
            epoch: crate::core::ids::Epoch(1),
            ..at(1)
        };
        ledger.wrote(20, &[(P0, claimed)]);
        assert_eq!(
            ledger.segments().back().map(|active| active.last.clone()),
            Some(vec![CommitNumber(0); 2])
        );
        assert_eq!(ledger.head(P0), claimed);
    }
}
