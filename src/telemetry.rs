//! Logging: one subscriber, set once, from section `log`.
//!
//! | `log.format` | on a terminal | to the journal | elsewhere, and in a file |
//! |---|---|---|---|
//! | `auto` | text, in colour | text | JSON, one object a line |
//! | `text` | text, in colour | text | text |
//! | `json` | JSON | JSON | JSON |
//!
//! Text for systemd's journal begins with its priority and has no time: the journal keeps both. Lines go to standard error, or to the end of `log.file`. `NO_COLOR` is heeded. Standard output is left
//! to what commands print for reading.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;
use tracing::subscriber::{SetGlobalDefaultError, set_global_default};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

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
    let (writer, reader) = match file.transpose()? {
        Some(file) => (BoxMakeWriter::new(Arc::new(file)), Reader::Program),
        None => (BoxMakeWriter::new(io::stderr), Reader::of_stderr()),
    };
    let has_colour =
        reader == Reader::Person && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(has_colour);
    if is_json(log.format, reader) {
        set_global_default(lines.json().flatten_event(true).finish())?;
    } else if reader == Reader::Journal {
        let text = tracing_subscriber::fmt::format().without_time();
        set_global_default(lines.event_format(ForJournal(text)).finish())?;
    } else {
        set_global_default(lines.finish())?;
    }
    Ok(())
}

/// Who reads the lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reader {
    /// At a terminal.
    Person,
    /// systemd's journal.
    Journal,
    /// Whatever else.
    Program,
}

impl Reader {
    fn of_stderr() -> Self {
        let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        if io::stderr().is_terminal() {
            Self::Person
        } else if rustix::fs::fstat(io::stderr()).is_ok_and(|it| journal == stream_name(&it)) {
            Self::Journal
        } else {
            Self::Program
        }
    }
}

/// A stream as `JOURNAL_STREAM` names it.
fn stream_name(stat: &rustix::fs::Stat) -> String {
    format!("{}:{}", stat.st_dev, stat.st_ino)
}

/// Text behind the priority that systemd takes from the beginning of a line.
struct ForJournal(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for ForJournal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        write!(writer, "<{priority}>")?;
        self.0.format_event(context, writer, event)
    }
}

fn is_json(format: LogFormat, reader: Reader) -> bool {
    match format {
        LogFormat::Auto => reader == Reader::Program,
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
        assert!(is_json(LogFormat::Auto, Reader::Program));
        assert!(!is_json(LogFormat::Auto, Reader::Journal));
        assert!(!is_json(LogFormat::Auto, Reader::Person));
        assert!(is_json(LogFormat::Json, Reader::Person));
        assert!(!is_json(LogFormat::Text, Reader::Program));
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
