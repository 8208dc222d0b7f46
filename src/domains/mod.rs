//! The domains: pure state machines on the one runtime, and their unions.
//!
//! | domain | what it is |
//! |---|---|
//! | `alarms` | status changes of alarms, and the digests made from them |
//!
//! The runtime is generic over [`crate::core::partition::Domain`]; [`State`] is what the program runs. Today
//! the union has one member, so it is that member. Table bytes are persisted and never reused.

pub mod alarms;

/// Key: user, alarm. Value: flags, instant, and of a tombstone its age. Lives until a tombstone expires.
pub const ALARM_TABLE: u8 = 16;

/// The state of every domain of one partition.
pub type State = alarms::Alarms;
/// What a message asks of a domain.
pub type Command = alarms::Command;
/// A message that a domain publishes.
pub type Outgoing = alarms::Digest;
