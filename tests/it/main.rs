//! Everything that needs a real broker, disk or process: one binary, one module a subject.

mod bus_jetstream;
mod connection;
mod server;
mod support;
