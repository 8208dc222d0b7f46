//! Which bus the configuration and the server ask for.
