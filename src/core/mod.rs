//! The pure core: the no-loss protocol and what it speaks of. Knows no alarm.
//!
//! | file | what it holds |
//! |---|---|
//! | `time` | instants, strictly read and shortest printed |
//! | `ids` | users, partitions, stores, epochs, commit numbers, message ids |
//! | `position` | where the input was read up to, and whether that history still stands |
//! | `rows` | the bytes of absolute rows: what a commit, a journal and a snapshot carry |
//! | `outbox` | messages that are owed to the broker, in order per lane |
//! | `attempts` | when one of them may be sent, and when it is looked for in the output first |
//! | `parts` | a message in parts: what they are called, and how much of it is stored |
//! | `partition` | the whole no-loss protocol, sans-IO |
//! | `invariants` | what must hold after every step, by number |
//!
//! Nothing here is async, reads a clock, draws a random number, logs or does I/O: time and ids come in
//! with the message.

pub mod attempts;
pub mod ids;
pub mod invariants;
pub mod outbox;
pub mod partition;
pub mod parts;
pub mod position;
pub mod rows;
pub mod time;
