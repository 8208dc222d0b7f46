//! Everything that needs a real broker, disk or process: one binary, one module a subject.

mod bad_input;
mod bus_jetstream;
mod connection;
mod crash;
mod digest;
mod history;
mod outage;
mod server;
mod store_contract;
mod store_faults;
mod support;
