//! The JetStream bus.
