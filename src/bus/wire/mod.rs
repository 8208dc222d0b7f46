//! Every subject of ours, and every JSON shape that others meet on NATS. Two are in `jetstream/`: the claim in its
//! stream, and the broker's own API.
//!
//! | subject | direction | shape |
//! |---|---|---|
//! | `AlarmStatusChanged`, `AlarmStatusChanged.<token>` | in | `{"AlarmID","UserID","Status","ChangedAt"}` |
//! | `SendAlarmDigest`, `SendAlarmDigest.<token>` | in | `{"UserID"}` |
//! | `AlarmDigest` | out | `{"UserID","ActiveAlarms":[{"AlarmID","Status","LatestChangedAt"}, …]}` |
//! | `MetricAggregate` | out | `{"Instance","From","To","Metrics":[…]}` |
//! | `tocsin.dead_letter` | out | a refused message's bytes, unchanged |
//! | `tocsin.owner` | both | `{"store","instance"}` |
//! | a reply subject (in a stream: [`REPLY_TO_HEADER`]) | out | `{"ok":true}` or `{"ok":false,"reason":"…"}` |
//!
//! [`decode`] reads what comes in and is total: any bytes give a command or a [`Reject`]. The encoders never
//! make a message larger than the broker takes, headers included. Nothing here waits or does I/O; the domains
//! know nothing of it.

mod decode;
mod encode;
mod join;
mod plain;

pub use decode::{Limits, Reject, decode, decode_digest, decode_reply};
pub use encode::{
    Aggregate, Metric, Owner, TooLarge, encode_command, encode_digest, encode_reply, message_bytes,
    split_dead_letter, split_digest,
};
pub use join::{Joined, Joiner};

/// A change of an alarm.
pub const CHANGE: &str = "AlarmStatusChanged";
/// A request for a user's digest.
pub const REQUEST: &str = "SendAlarmDigest";
/// Where changes come on.
pub const CHANGE_SUBJECTS: [&str; 2] = [CHANGE, "AlarmStatusChanged.*"];
/// Where requests come on.
pub const REQUEST_SUBJECTS: [&str; 2] = [REQUEST, "SendAlarmDigest.*"];
/// Everything that is read.
pub const INPUT_SUBJECTS: [&str; 4] = [
    CHANGE_SUBJECTS[0],
    CHANGE_SUBJECTS[1],
    REQUEST_SUBJECTS[0],
    REQUEST_SUBJECTS[1],
];
/// Digests.
pub const DIGEST: &str = "AlarmDigest";
/// What happened in the last window.
pub const METRICS: &str = "MetricAggregate";
/// Asks which store owns the input, on a server without streams.
pub const OWNER: &str = "tocsin.owner";
/// Refused messages.
pub const DEAD_LETTER: &str = "tocsin.dead_letter";
/// Holds the claim of the store that owns the input, on a server with streams.
pub const CLAIM: &str = "tocsin.claim";

/// The stream over [`INPUT_SUBJECTS`].
pub const INPUT_STREAM: &str = "TOCSIN_IN";
/// The stream over [`DIGEST`].
pub const OUTPUT_STREAM: &str = "TOCSIN_OUT";
/// The stream over [`DEAD_LETTER`].
pub const DEAD_LETTER_STREAM: &str = "TOCSIN_DEAD_LETTER";
/// The stream over [`CLAIM`].
pub const CLAIM_STREAM: &str = "TOCSIN_CLAIM";

/// The id by which the broker knows a repeat.
pub const MESSAGE_ID_HEADER: &str = "Nats-Msg-Id";
/// Which part of how many, `2/3`, of a message that was split.
pub const PART_HEADER: &str = "Tocsin-Part";
/// The stable code of a refusal.
pub const REASON_HEADER: &str = "Tocsin-Reason";
/// The subject a refused message came on.
pub const SUBJECT_HEADER: &str = "Tocsin-Subject";
/// What exactly was wrong with a refused message, in words.
pub const DETAIL_HEADER: &str = "Tocsin-Detail";
/// Where the publisher of a message to a stream waits for the daemon's answer: an inbox, `_INBOX.…`. The
/// server's own answer, which goes to the reply subject, only says that the message is in the stream.
pub const REPLY_TO_HEADER: &str = "Tocsin-Reply-To";
