//! Everything that needs a real broker, disk or process: one binary, one module a subject.
//!
//! | file | subject | rows of the evidence |
//! |---|---|---|
//! | `bad_input.rs` | messages that cannot be used: refused, counted, dead letters with their bytes | |
//! | `bad_link.rs` | a broker behind a link that is slow, silent, reset or cut | `bad-link`, `silent-link` |
//! | `burst.rs` | more than the queue of core NATS holds, and stops within a burst | `core-counted` |
//! | `bus_contract.rs` | the contract of `src/bus/mod.rs`, on every bus | |
//! | `bus_core.rs` | the core NATS bus on a real server | |
//! | `bus_jetstream.rs` | the bus over streams on a real server | |
//! | `cli.rs` | the command line: what is printed where, and how the program ends | |
//! | `clock.rs` | wrong clocks and clocks that jump, by libfaketime | `wrong-clock` |
//! | `cluster.rs` | three nats-servers that lose the leader of a stream | `cluster` |
//! | `compose.rs` | `docker/compose.yaml`, read by Docker's own loader | |
//! | `config.rs` | the configuration: every mistake is one line that says what to do | |
//! | `connection.rs` | connecting: secrets, TLS, waiting | |
//! | `container.rs` | the static program in an empty root that cannot be written | |
//! | `crash.rs` | kill -9 and SIGTERM of the daemon, kill -9 of nats-server, under traffic | `daemon-killed`, `broker-killed`, `both-killed`, `stopped`, `split-digests`, `core-answered` |
//! | `damage.rs` | bytes, lengths and files of a store changed at rest | `damage` |
//! | `demo.rs` | `tocsin up --demo`: its story, against what was published | |
//! | `digest.rs` | what a digest says, on both inputs | |
//! | `disk.rs` | disks that are full, refuse or are slow under the daemon | `disk-fails`, `disk-full`, `disk-slow` |
//! | `documents.rs` | what the documents name exists | |
//! | `emulate.rs` | `tocsin emulate`, and services that do one thing wrong | |
//! | `freeze.rs` | SIGSTOP of the daemon and of nats-server | `frozen` |
//! | `fuzz.rs` | what `make fuzz` checks, on the corpus of each target | |
//! | `help.rs` | help, completions and manual pages of every command | |
//! | `history.rs` | streams rolled back, purged, deleted; a second store that stands by | `history-rewritten`, `streams-deleted` |
//! | `hostile.rs` | everything that a publisher can write, beside good messages | `hostile-messages` |
//! | `memory.rs` | a limit on the daemon's memory | `little-memory` |
//! | `metrics.rs` | `MetricAggregate`: once a window, and counts that are right | |
//! | `notify.rs` | what the service manager is told, and the signals that it sends | |
//! | `outage.rs` | brokers that are away or refuse, stores that cannot be used | |
//! | `overload.rs` | ten times what the daemon can take, one user who takes too much | `overload`, `greedy-user` |
//! | `owed.rs` | what is owed: bounded, in order, found again, split | |
//! | `permissions.rs` | the users of `config/nats.conf` | |
//! | `pictures.rs` | the terminal pictures of the README | |
//! | `power_loss.rs` | power cuts at every call of the store, and under the daemon | `core-answered`, `power-cut` |
//! | `predecessor.rs` | publishers and readers of the Go service before this one | |
//! | `readme.rs` | every block of the documents, executed in order | |
//! | `refusals.rs` | a broker that refuses: streams full, messages too large, permissions taken away | `broker-refuses` |
//! | `runtime.rs` | the actors between a real broker and a real store, when parts of them panic or fail | |
//! | `schema.rs` | the JSON Schema, against a validator of others | |
//! | `server.rs` | the child nats-server | |
//! | `soak.rs` | one process, and one store, for long | `soak` |
//! | `store_commands.rs` | `tocsin store` | |
//! | `store_contract.rs` | the contract of `trait Store`, on every store | |
//! | `store_faults.rs` | the embedded store: a crash at every byte, a flipped bit in every byte, failed writes | `damage` |
//! | `systemd.rs` | the unit, run by a real systemd | |
//! | `tail.rs` | `tocsin tail` | |
//! | `verify.rs` | `tocsin verify`, and services that do one thing wrong | |
//! | `zombie.rs` | daemons that wake up when another owns the input | `store-takes-over` |
//!
//! What they share is in `support/`.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking, wherever it stands"
)]

mod bad_input;
mod bad_link;
mod burst;
mod bus_contract;
mod bus_core;
mod bus_jetstream;
mod cli;
mod clock;
mod cluster;
mod compose;
mod config;
mod connection;
mod container;
mod crash;
mod damage;
mod demo;
mod digest;
mod disk;
mod documents;
mod emulate;
mod freeze;
mod fuzz;
mod help;
mod history;
mod hostile;
mod memory;
mod metrics;
mod notify;
mod outage;
mod overload;
mod owed;
mod permissions;
mod pictures;
mod power_loss;
mod predecessor;
mod readme;
mod refusals;
mod runtime;
mod schema;
mod server;
mod soak;
mod store_commands;
mod store_contract;
mod store_faults;
mod support;
mod systemd;
mod tail;
mod verify;
mod zombie;
