//! Connecting: secrets, TLS, waiting, and what only the operator can change.
