//! The faults that are planted in the world around the partition: what a shell, a store or a domain could get
//! wrong. Each must be noticed by a check that has a name.
//!
//! A new one is a variant, its words, and the place in `world/` or `domain.rs` where it goes wrong; then
//! `cargo test --test sim planted -- --nocapture` must say which check notices it.

mod domain;

pub(crate) use domain::{Faulty, Observed};

/// A planted fault, and the invariant that it breaks or what else of the protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Bug {
    /// I-03: the partition is told of a commit before the store has it.
    ReleasedBeforeDurable,
    /// I-03: a publisher is answered when its message is delivered.
    AnsweredAtDelivery,
    /// I-02: the position is written on its own, before the rows.
    PositionBeforeCommit,
    /// I-02: the position is written on its own, after the rows.
    PositionAfterCommit,
    /// I-02: one position for all partitions.
    OneGlobalPosition,
    /// I-02: the watermark is raised before the messages below it are delivered.
    WatermarkTooEarly,
    /// I-04: an owed message is taken for published when it is sent.
    RemovedAtSend,
    /// I-04: what the broker refuses for good is taken for done.
    ParkedForgotten,
    /// I-04: a confirmation removes whatever the lane waits for, not the message that it names.
    ConfirmedByLane,
    /// I-05: all that is owed to a user is under way at once.
    TwoInFlight,
    /// I-05: the parts of a digest are sent last first.
    PartsBackwards,
    /// I-06: the mark "reported" is written as a difference.
    DeltaRows,
    /// I-06: an alarm that is due is read back as reported.
    DueForgottenAtRecovery,
    /// I-07: ids come from a counter that begins anew with the process.
    IdsFromCounter,
    /// I-07: a history that is read again gives the ids that it gave before.
    IdsWithoutGeneration,
    /// I-07: what may be stored long ago is sent without looking for it.
    NoLookup,
    /// I-07: what may be stored is looked for behind where it is.
    SearchedTooLate,
    /// I-08: a snapshot is put in place as soon as it is written.
    SnapshotTooEarly,
    /// I-08: the journal is cut at the newest commit instead of where the snapshot began.
    JournalCutTooFar,
    /// I-09: a digest lists the alarms as they came.
    DigestByArrival,
    /// I-10: alarms are marked as reported, and nothing is published.
    MarkWithoutDigest,
    /// I-10: which statuses were seen at one instant is forgotten.
    SeenForgotten,
    /// I-10: a cleared alarm is forgotten at once, and a late older message brings it back.
    TombstoneDropped,
    /// I-10: messages are judged by a clock that shows another time at a replay.
    WallClock,
    /// I-11: reading starts again at the highest position instead of the lowest.
    ResumedAtHighest,
    /// I-11: reading goes on by sequence, whatever happened to the stream.
    RewriteUnnoticed,
    /// I-11: the router forgets a batch once it is handed over.
    BatchForgotten,
    /// I-11: a message at which workers die is skipped without a dead letter.
    PoisonSkipped,
    /// I-11: what cannot be read is skipped without a dead letter.
    JunkSkipped,
    /// Batches that overtake each other on their way to a router are handed over as they arrive.
    BatchesByArrival,
    /// A user's partition follows from the number of workers, which changes.
    PlacementByWorkers,
    /// I-01: the store applies commits of earlier owners.
    StaleCommitApplied,
    /// A batch's permits are lost when its worker dies.
    PermitLeaked,
    /// Batches are read without a permit.
    NoPermits,
    /// Reading goes on however much is owed.
    OwedUnbounded,
    /// A claim that is not renewed is taken over at once.
    ClaimTakenAtOnce,
    /// A claim is held from when its renewal was answered, not from when it was sent.
    ClaimFromAnswer,
    /// A process publishes although its claim has expired.
    ZombiePublishes,
}

/// All there are, from the words for each: one without is an error of the compiler.
macro_rules! in_words {
    ($(Self::$bug:ident => $words:literal,)+) => {
        impl Bug {
            pub(crate) const ALL: [Self; [$(Self::$bug),+].len()] = [$(Self::$bug),+];

            /// In words that need no knowledge of the code.
            pub(crate) const fn words(self) -> &'static str {
                match self {
                    $(Self::$bug => $words,)+
                }
            }
        }
    };
}

in_words! {
    Self::ReleasedBeforeDurable => "acknowledged before the commit",
    Self::AnsweredAtDelivery => "publisher answered before the commit",
    Self::PositionBeforeCommit => "input position stored before the commit",
    Self::PositionAfterCommit => "input position stored after the commit",
    Self::OneGlobalPosition => "one input position for all partitions",
    Self::WatermarkTooEarly => "input position ahead of what was applied",
    Self::RemovedAtSend => "owed digest removed when it is sent",
    Self::ParkedForgotten => "refused digest taken for published",
    Self::ConfirmedByLane => "late confirmation removes another digest",
    Self::TwoInFlight => "two digests of one user under way",
    Self::PartsBackwards => "parts of a digest in the wrong order",
    Self::DeltaRows => "stored as differences, not as values",
    Self::DueForgottenAtRecovery => "due alarm forgotten at recovery",
    Self::IdsFromCounter => "message ids from a counter",
    Self::IdsWithoutGeneration => "same ids after a rewritten input",
    Self::NoLookup => "sent again without looking for it",
    Self::SearchedTooLate => "looked for behind where it is stored",
    Self::SnapshotTooEarly => "snapshot in place before its commits are durable",
    Self::JournalCutTooFar => "journal cut beyond the snapshot",
    Self::DigestByArrival => "digest in order of arrival",
    Self::MarkWithoutDigest => "alarm marked as reported without a digest",
    Self::SeenForgotten => "statuses seen at one instant forgotten",
    Self::TombstoneDropped => "cleared alarm forgotten too early",
    Self::WallClock => "messages judged by the wall clock",
    Self::ResumedAtHighest => "reading resumed at the highest position",
    Self::RewriteUnnoticed => "rewritten input not noticed",
    Self::BatchForgotten => "batch forgotten before its commit",
    Self::PoisonSkipped => "poisonous message skipped",
    Self::JunkSkipped => "unreadable message skipped",
    Self::BatchesByArrival => "batches applied in order of arrival",
    Self::PlacementByWorkers => "user's partition depends on the number of workers",
    Self::StaleCommitApplied => "commit of an earlier owner accepted",
    Self::PermitLeaked => "permits lost with a worker",
    Self::NoPermits => "input read without permits",
    Self::OwedUnbounded => "input read however much is owed",
    Self::ClaimTakenAtOnce => "claim taken over without waiting",
    Self::ClaimFromAnswer => "claim counted from the answer",
    Self::ZombiePublishes => "publishes after its claim expired",
}

impl Bug {
    /// Whether it is the domain that goes wrong.
    pub(crate) const fn is_of_the_domain(self) -> bool {
        matches!(
            self,
            Self::DeltaRows
                | Self::DueForgottenAtRecovery
                | Self::DigestByArrival
                | Self::MarkWithoutDigest
                | Self::SeenForgotten
                | Self::TombstoneDropped
        )
    }
}
