//! The configuration: what every key means, resolved once into final types.
//!
//! | file | what it holds |
//! |---|---|
//! | `settings` | [`Config`] and its sections: what the rest of the program sees |
//! | `sources` | compiled-in defaults, file, environment and `--set`, laid over one another |
//! | `file` | one file: its format, and its parser's complaints with their place |
//! | `values` | how a duration, a size, a choice or an address is written |
//! | `allowed` | what a key allows, for its check, its error and the schema |
//! | `reader` | takes one key: its bounds, what is in force, who set it |
//! | `resolve` | from texts to [`Config`], section by section, with every rule between two keys |
//! | `schema` | the JSON Schema for editors, made of the defaults and of what keys allow |
//! | `error` | one line each: the key, where it was set, what was found, what is allowed |
//!
//! `config/default.toml` is the list of known keys: it is compiled in, and a key that is not in it is
//! refused with the nearest one that is. Every value keeps its [`Origin`]. Secrets are never printed.

mod allowed;
mod error;
mod file;
mod reader;
mod resolve;
mod schema;
mod settings;
mod sources;
mod values;

pub use allowed::Allowed;
pub use error::ConfigError;
pub use reader::Setting;
pub use resolve::Loaded;
pub use settings::{
    Alarms, Config, Digest, Input, InputMode, InputStart, Log, LogFormat, Metrics, Nats, Output,
    Owed, Producers, Secret, ServerUrls, Shutdown, Store, StoreKind, WhenEmpty, Workers,
};
pub use sources::{ConfigFile, NamedBy, Origin, Sources};
pub use values::parse_duration;

/// The compiled-in defaults: every key, its default and a sentence.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");
