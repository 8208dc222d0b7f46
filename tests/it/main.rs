//! Everything that needs a real broker, disk or process: one binary, one module a subject.

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
