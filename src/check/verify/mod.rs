//! Whether a running digest service does what the specification says, seen from outside over core NATS.
//!
//! | file | what it is |
//! |---|---|
//! | `scenario` | a short history of messages, written as data, and what each means |
//! | `play` | one scenario as it is played: what to send next, and whether what came is right; pure |
//! | `session` | the connection: many plays at once, each digest to the play of its user |
//! | `rules` | every rule by name |
//! | `behaviour` | the scenarios of the rules on alarms and digests |
//! | `forms` | the scenarios of the rules on messages |
//! | `refusals` | the scenarios of the rules on what must change nothing |
//! | `history` | random histories from a seed, and how one that went wrong is made shorter |
//! | `verifier` | the run: smoke test, rules, random histories |
//! | `report` | verdicts, for people and programs |
//!
//! How it is known that nothing comes: behind a request with nothing due, the same user gets another alarm, a
//! **sentinel**, and asks again. The digest that answers must be exactly that one; nothing is waited for a fixed
//! time. Every request is followed to its end before the user's next message is sent, because on core NATS a
//! change that is published behind a request may be in its digest. For the same reason changes of a user that are under
//! way together are on one subject, wherever their order matters. Every user is new in every run.

mod behaviour;
mod forms;
mod history;
mod play;
mod refusals;
mod report;
mod rules;
mod scenario;
mod session;
mod verifier;

pub use report::{Problem, Report, RuleReport, Verdict};
pub use rules::{RULES, Rule};
pub use session::Lost;
pub use verifier::{Event, Options, verify};
