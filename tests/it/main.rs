//! Everything that needs a real broker, disk or process: one binary, one module a subject.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, helpers of tests too"
)]

mod bus_contract;
mod bus_core;
mod bus_jetstream;
mod connection;
mod server;
mod support;
