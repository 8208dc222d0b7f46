//! The command line: one file a subcommand, one enum of exit statuses, one line an error.
//!
//! | status | [`Exit`] |
//! |---|---|
//! | 0 | well |
//! | 1 | a message was refused or not committed in time, or a check failed |
//! | 2 | usage, configuration, or a store that cannot be used |
//! | 3 | the broker cannot be reached, or nobody answers |
//! | 70 | a defect |
//! | 74 | a write or fsync failed |
//!
//! What a command prints for reading goes to standard output through [`print()`]; standard error gets
//! logs, and at most one line of ours. Nothing here decides anything: commands call the library.

pub mod arguments;
pub mod change;
pub mod completions;
pub mod config;
mod demo;
pub mod digest;
pub mod emulate;
pub mod help;
pub mod man;
pub mod nats_server;
mod oneshot;
mod present;
pub mod serve;
pub mod store;
pub mod style;
pub mod tail;
pub mod up;
pub mod verify;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::panic::{self, PanicHookInfo};
use std::process::{self, ExitCode};
use std::thread;

use clap::error::ErrorKind as UsageKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::app::AppError;
use crate::app::up::LAUNCH_COMMAND;
use crate::bus::BusError;
use crate::config::ConfigError;
use crate::store::StoreError;
use crate::telemetry::LogError;

/// Every exit status; help texts show those that their command has.
pub const EXIT_STATUSES: &str = "\
Exit status:
  0   well
  1   a message was refused or not committed in time, or a check failed
  2   usage, configuration, or a store that cannot be used
  3   the broker cannot be reached, or nobody answers
  70  a defect of tocsin
  74  a write or fsync failed";

/// How the program ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Well.
    Well = 0,
    /// A message was refused or not committed in time, or a check failed.
    NotTaken = 1,
    /// Usage, configuration, or a store that cannot be used.
    Unusable = 2,
    /// The broker cannot be reached.
    Unreachable = 3,
    /// A defect.
    Defect = 70,
    /// A write or fsync failed.
    WriteFailed = 74,
}

impl Exit {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Well,
        Self::NotTaken,
        Self::Unusable,
        Self::Unreachable,
        Self::Defect,
        Self::WriteFailed,
    ];
    /// Those of a command that speaks with no broker.
    pub const OF_LOCAL: [Self; 4] = [Self::Well, Self::Unusable, Self::Defect, Self::WriteFailed];
    /// Those of the daemon, which waits for its broker.
    pub const OF_DAEMON: [Self; 5] = [
        Self::Well,
        Self::NotTaken,
        Self::Unusable,
        Self::Defect,
        Self::WriteFailed,
    ];
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command ended otherwise than well: one line for standard error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The status to end with.
    pub exit: Exit,
    /// What failed, on what, what to do.
    pub line: String,
}

impl Failure {
    /// A failure with the line that its error prints.
    pub fn new(exit: Exit, error: &dyn Display) -> Self {
        let line = error.to_string();
        Self { exit, line }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Unusable, &error)
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::new(Exit::Unusable, &error)
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        let exit = match &error {
            AppError::Undrained { .. } => Exit::NotTaken,
            AppError::Bus(BusError::Unavailable(_)) => Exit::Unreachable,
            AppError::Bus(BusError::Configuration(_))
            | AppError::Server(_)
            | AppError::InUse { .. }
            | AppError::Unwritable { .. }
            | AppError::Rewind(_)
            | AppError::Store(
                StoreError::Unusable { .. }
                | StoreError::Locked { .. }
                | StoreError::Missing { .. }
                | StoreError::NewerFormat { .. }
                | StoreError::Damaged { .. }
                | StoreError::Corrupt { .. },
            ) => Exit::Unusable,
            AppError::Store(StoreError::Poisoned { .. }) => Exit::WriteFailed,
            AppError::Store(StoreError::Fenced { .. })
            | AppError::Defect(_)
            | AppError::System { .. } => Exit::Defect,
        };
        Self::new(exit, &error)
    }
}

/// The threads of a command: the client of NATS lives on several of its own.
fn threads() -> Result<tokio::runtime::Runtime, AppError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("nats")
        .enable_all()
        .build()
        .map_err(|error| AppError::System {
            action: "start the threads",
            error,
        })
}

const EXAMPLES: &str = "\
  tocsin up                                # everything on this machine, with no configuration
  tocsin change ann disk CRITICAL          # an alarm of user ann rings
  tocsin digest ann                        # what is new for her
  tocsin tail                              # digests as they come
  tocsin serve --config /etc/tocsin/tocsin.toml";

/// Turns the noisy status of many machines, URLs and jobs into few, ordered, never-lost alarm digests.
#[derive(Debug, Parser)]
#[command(
    name = "tocsin",
    version,
    about,
    max_term_width = 100,
    styles = style::HELP,
    after_help = help::SHORT,
    after_long_help = help::epilog(EXAMPLES, &Exit::ALL)
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon and, where none is named, a nats-server of its own: everything with no configuration.
    Up(up::Args),
    /// Runs the daemon as systemd or a container does; never starts a broker.
    Serve(serve::Args),
    /// Publishes one change of an alarm.
    Change(change::Args),
    /// Asks for a user's digest and prints it.
    Digest(digest::Args),
    /// Prints digests as they come.
    Tail(tail::Args),
    /// Checks whether any running digest service does what the specification says.
    Verify(verify::Args),
    /// Publishes realistic traffic; with --check it proves every digest.
    Emulate(emulate::Args),
    /// Shows or checks the effective configuration, or prints its schema.
    Config(config::Args),
    /// Looks into the store of a daemon that is stopped, or has its input read again.
    Store(store::Args),
    /// Prints the completion script of a shell.
    Completions(completions::Args),
    /// Prints the manual page of a command, or writes all of them.
    Man(man::Args),
    /// Becomes nats-server, for `up`.
    #[command(name = LAUNCH_COMMAND, hide = true)]
    NatsServer(nats_server::Args),
}

/// The whole command line, as `--help`, completions and manual pages show it.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program.
#[must_use]
pub fn run() -> ExitCode {
    panic::set_hook(Box::new(on_panic));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return on_usage(&error).into(),
    };
    let outcome = match cli.command {
        Command::Up(args) => up::run(&args),
        Command::Serve(args) => serve::run(args),
        Command::Change(args) => change::run(&args),
        Command::Digest(args) => digest::run(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Emulate(args) => emulate::run(&args),
        Command::Config(args) => config::run(args),
        Command::Store(args) => store::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::NatsServer(args) => Err(nats_server::run(args)),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(&failure.line);
            failure.exit.into()
        }
    }
}

/// Writes to standard output, in colours where it is a terminal and `NO_COLOR` is not set. A reader that went away, as `head` does, is no failure.
///
/// # Errors
/// When standard output cannot be written, for example on a full disk.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let line = format!("failed to write to standard output: {error}");
            Err(Failure::new(Exit::WriteFailed, &line))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes one line to standard error; that it may be closed must not matter.
fn complain(line: &str) {
    let line = one_line(line);
    drop(writeln!(io::stderr(), "tocsin: {line}"));
}

/// A text without what would break the line.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split(char::is_control).map(str::trim).collect();
    words.join(" ").trim().to_owned()
}

/// Prints help where help was asked for, else the first paragraph of what is wrong.
fn on_usage(error: &clap::Error) -> Exit {
    if !error.use_stderr() || error.kind() == UsageKind::DisplayHelpOnMissingArgumentOrSubcommand {
        drop(error.print());
        return if error.use_stderr() {
            Exit::Unusable
        } else {
            Exit::Well
        };
    }
    let report = error.to_string();
    let report = report.strip_prefix("error: ").unwrap_or(&report);
    let problem = report.split("\n\nUsage:").next().unwrap_or(report);
    let problem = problem.split("\n\nFor more").next().unwrap_or(problem);
    let lines: Vec<_> = problem
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    complain(&format!("{}; see --help", lines.join(" ")));
    Exit::Unusable
}

/// One line for every panic. That of the main thread is the end; that of a worker unwinds to its router.
fn on_panic(info: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let what = info.payload_as_str().unwrap_or("panicked");
    let place = info
        .location()
        .map(|place| format!(" at {place}"))
        .unwrap_or_default();
    complain(&format!("defect in thread {name}{place}: {what}"));
    if name == "main" {
        process::exit(i32::from(Exit::Defect as u8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn control_characters_do_not_break_the_line() {
        assert_eq!(one_line("failed to read \n a\tb\r\n"), "failed to read a b");
    }
}
