//! Everything that looks at a digest service from outside: what it must do, and whether it does.
//!
//! | file | what it is |
//! |---|---|
//! | `messages` | the three JSON messages, written and read once more |
//! | `emulate` | a run of realistic traffic, judged |
//! | `oracle` | what a user's alarms are, and which digest a request must get |
//! | `traffic` | realistic messages from a seed, pure |
//! | `verify` | whether a running service keeps every rule |
//!
//! It is written from the specification alone. Of the rest of the program it uses the subjects' names and the
//! connection to NATS, and neither the domain nor the code that reads and writes its messages: a mistake there
//! would else be made here, too, and go unseen.

pub mod emulate;
pub mod messages;
pub mod oracle;
pub mod traffic;
pub mod verify;
