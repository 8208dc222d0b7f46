//! Everything that needs a real broker, disk or process: one binary, one module a subject.

mod bus_jetstream;
mod connection;
mod crash;
mod digest;
mod server;
mod store_contract;
mod store_faults;
mod support;
