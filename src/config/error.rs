//! What can be wrong with a configuration, each in one line.

use std::fmt;
use std::path::PathBuf;

use thiserror::Error;

use super::sources::Origin;

/// Why there is no configuration: one line that names the place and what is allowed there.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum ConfigError {
    /// A configuration file that cannot be used at all.
    #[error("configuration file {}{}: {reason}", path.display(), Place(*place))]
    File {
        /// The file.
        path: PathBuf,
        /// Line and column, where there is one place.
        place: Option<(usize, usize)>,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A key that does not exist.
    #[error("unknown key {} ({origin}); {hint}", key.escape_debug())]
    UnknownKey {
        /// The key as it was written.
        key: String,
        /// Who wrote it.
        origin: Origin,
        /// The nearest known key.
        hint: String,
    },
    /// A value that its key does not allow.
    #[error("{key} is {found} ({origin}); must be {allowed}")]
    Invalid {
        /// The key.
        key: String,
        /// Who set it.
        origin: Origin,
        /// What was found; a secret is not shown.
        found: String,
        /// What is allowed.
        allowed: String,
    },
    /// A file named by a key that cannot be read.
    #[error("{key} ({origin}): cannot read {}: {reason}", path.display())]
    Unreadable {
        /// The key.
        key: String,
        /// Who set it.
        origin: Origin,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A variable or an argument whose form cannot be right.
    #[error("{given}: {reason}")]
    Malformed {
        /// What was given.
        given: String,
        /// What is expected.
        reason: String,
    },
}

/// A place behind the name of its file.
struct Place(Option<(usize, usize)>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.0.map(|(line, column)| write!(f, ":{line}:{column}"));
        place.unwrap_or(Ok(()))
    }
}
