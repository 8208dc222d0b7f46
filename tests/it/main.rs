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
mod config;
mod connection;
mod crash;
mod digest;
mod documents;
mod history;
mod metrics;
mod notify;
mod outage;
mod owed;
mod runtime;
mod server;
mod slow_link;
mod store_contract;
mod store_faults;
mod support;
mod verify;
mod zombie;
