//! tocsin: one daemon that turns the noisy status of many machines, URLs and jobs into few, ordered,
//! never-lost alarm digests, over NATS.
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | the no-loss protocol, pure |
//! | [`domains`] | the state machines, pure |
//! | [`store`] | what is durable |
//! | [`bus`] | NATS |

pub mod app;
pub mod bus;
pub mod core;
pub mod domains;
pub mod runtime;
pub mod store;
