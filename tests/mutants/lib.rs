//! The pure part of tocsin alone: what builds in seconds, so that each of its mutants can be.

pub mod bus;
pub mod core;
pub mod domains;

/// What is durable: here only its bytes.
pub mod store {
    pub mod format;
}
