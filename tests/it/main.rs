//! Everything that needs a real broker, disk or process: one binary, one module a subject.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking, wherever it stands"
)]

mod bad_input;
mod burst;
mod bus_contract;
mod bus_core;
mod bus_jetstream;
mod cli;
mod compose;
mod config;
mod connection;
mod container;
mod crash;
mod demo;
mod digest;
mod documents;
mod emulate;
mod fuzz;
mod help;
mod history;
mod hostile;
mod metrics;
mod notify;
mod outage;
mod owed;
mod permissions;
mod pictures;
mod predecessor;
mod readme;
mod runtime;
mod schema;
mod server;
mod slow_link;
mod store_commands;
mod store_contract;
mod store_faults;
mod support;
mod systemd;
mod tail;
mod verify;
mod zombie;
