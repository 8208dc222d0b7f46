//! Logging: one subscriber, set once, from section `log`.
//!
//! | `log.format` | on a terminal | elsewhere, and in a file |
//! |---|---|---|
//! | `auto` | text, in colour | JSON, one object a line |
//! | `text` | text, in colour | text |
//! | `json` | JSON | JSON |
//!
//! Lines go to standard error, or to the end of `log.file`. `NO_COLOR` is heeded. Standard output is left
//! to what commands print for reading.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tracing::subscriber::{SetGlobalDefaultError, set_global_default};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{Log, LogFormat};

/// Why logging cannot be set up.
#[derive(Debug, Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("log.filter cannot be used: {0}")]
    Filter(#[from] ParseError),
    /// The file cannot be opened.
    #[error("log.file: cannot open {} for appending: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was set up before.
    #[error("logging is set up twice: {0}")]
    Twice(#[from] SetGlobalDefaultError),
}

/// Sets logging up for the whole process.
///
/// # Errors
/// When the filter or the file cannot be used, or logging is set up already.
pub fn init_logging(log: &Log) -> Result<(), LogError> {
    // The client speaks of each connection; a filter that names it has the last word.
    let filter = EnvFilter::builder().parse(format!("async_nats=warn,{}", log.filter))?;
    let file = log.file.as_deref().map(|path| {
        open(path).map_err(|source| LogError::File {
            path: path.to_owned(),
            source,
        })
    });
    let (writer, is_terminal) = match file.transpose()? {
        Some(file) => (BoxMakeWriter::new(Arc::new(file)), false),
        None => (BoxMakeWriter::new(io::stderr), io::stderr().is_terminal()),
    };
    let has_colour = is_terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(has_colour);
    if is_json(log.format, is_terminal) {
        set_global_default(lines.json().flatten_event(true).finish())?;
    } else {
        set_global_default(lines.finish())?;
    }
    Ok(())
}

fn is_json(format: LogFormat, is_terminal: bool) -> bool {
    match format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    }
}

fn open(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_are_json_where_no_one_reads_along() {
        assert!(is_json(LogFormat::Auto, false));
        assert!(!is_json(LogFormat::Auto, true));
        assert!(is_json(LogFormat::Json, true));
        assert!(!is_json(LogFormat::Text, false));
    }

    #[test]
    fn a_log_file_is_created_appended_to_and_named_when_it_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tocsin.log");
        let mut log = Log {
            format: LogFormat::Auto,
            filter: "warn,tocsin::telemetry=info".to_owned(),
            file: Some(folder.path().join("missing/tocsin.log")),
        };
        let error = init_logging(&log).unwrap_err().to_string();
        assert!(
            error.starts_with("log.file: cannot open") && error.contains("missing/tocsin.log"),
            "{error}"
        );

        fs::write(&path, "an earlier line\n").unwrap();
        log.file = Some(path.clone());
        init_logging(&log).unwrap();
        tracing::info!(partition = 3, "recovered");
        tracing::debug!("not logged");
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[0], "an earlier line");
        let event: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(event["level"], "INFO");
        assert_eq!(event["message"], "recovered");
        assert_eq!(event["partition"], 3);

        assert!(matches!(init_logging(&log), Err(LogError::Twice(_))));
    }
}
