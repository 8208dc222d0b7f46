//! tocsin: one daemon that turns the noisy status of many machines, URLs and jobs into few, ordered,
//! never-lost alarm digests, over NATS.
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | the no-loss protocol, pure |
//! | [`domains`] | the state machines, pure |
//! | [`store`] | what is durable |
//! | [`bus`] | NATS |
//! | [`runtime`] | the actors around the core |
//! | [`config`] | every setting, its bounds and its origin |
//! | [`app`] | the daemon from its configuration to its end |
//! | [`check`] | what a digest service must do, seen from outside |
//! | [`cli`] | the command line |
//! | [`telemetry`] | the log |

pub mod app;
pub mod bus;
pub mod check;
pub mod cli;
pub mod config;
pub mod core;
pub mod domains;
pub mod runtime;
pub mod store;
pub mod telemetry;
