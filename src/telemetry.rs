//! The log: text for a terminal, JSON for everything else.
//!
//! Fields first, messages in lower case. ERROR: data is at risk, or the operator must act. WARN: recovered, worth a
//! look. INFO: the life-cycle. What is measured is in `runtime/metrics.rs`.

use std::fs::OpenOptions;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Mutex;

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Log, LogFormat};

/// Why nothing can be logged.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter is not one.
    #[error(
        "log.filter is {filter:?}; must be directives such as info or tocsin::bus=debug: {reason}"
    )]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The file cannot be appended to.
    #[error("failed to open {} (log.file): {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Begins to log as the configuration says. Where a log has begun already, nothing changes.
///
/// # Errors
/// [`LogError`] for a filter or a file that cannot be used.
pub fn init_logging(log: &Log) -> Result<(), LogError> {
    // The client speaks of each connection; a filter that names it has the last word.
    let filter =
        EnvFilter::try_new(format!("async_nats=warn,{}", log.filter)).map_err(|error| {
            LogError::Filter {
                filter: log.filter.clone(),
                reason: error.to_string(),
            }
        })?;
    let is_terminal = log.file.is_none() && std::io::stderr().is_terminal();
    let writer = match &log.file {
        None => BoxMakeWriter::new(std::io::stderr),
        Some(path) => {
            let opened = OpenOptions::new().create(true).append(true).open(path);
            let file = opened.map_err(|error| LogError::File {
                path: path.clone(),
                error,
            })?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    };
    let is_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(is_terminal);
    let begun = if is_json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.try_init()
    };
    // A log that has begun already goes on: several daemons of one process share it.
    drop(begun);
    Ok(())
}
