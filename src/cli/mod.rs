//! The command line: what was typed, which command runs, and what the process says at its end.
//!
//! One file a subcommand. What is wrong is one line on standard error: what failed, on what, what to do.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | well |
//! | 1 | a check failed |
//! | 2 | usage, configuration, or a store that cannot be used |
//! | 3 | NATS cannot be reached (one-shot commands) |
//! | 70 | a defect of tocsin |
//! | 74 | a write or fsync failed |

mod change;
mod config;
mod digest;
mod oneshot;
mod serve;
mod up;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::AppError;
use crate::bus::BusError;
use crate::bus::server::exec_nats_server;
use crate::config::{Config, ConfigError, Loaded, Sources};
use crate::store::StoreError;
use crate::telemetry::LogError;

const AFTER_HELP: &str = "\
Exit status: 0 well; 1 a check failed; 2 usage, configuration, or a store that cannot be used;
3 NATS cannot be reached (one-shot commands); 70 a defect of tocsin; 74 a write or fsync failed.";

/// Turns the noisy status of many machines, URLs and jobs into few, ordered, never-lost alarm digests,
/// over NATS.
#[derive(Debug, Parser)]
#[command(name = "tocsin", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the daemon and, where none is named, a nats-server of its own: everything with no configuration.
    Up(up::Args),
    /// Runs the daemon as systemd or a container does; never starts a broker.
    Serve(Settings),
    /// Publishes one change of an alarm.
    Change(change::Args),
    /// Asks for a user's digest and prints it.
    Digest(digest::Args),
    /// Shows or checks the configuration.
    Config(config::Args),
    /// Becomes nats-server, for `up`.
    #[command(name = crate::app::up::LAUNCH_COMMAND, hide = true)]
    NatsServer {
        /// Process id of the parent, program, its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

/// Where settings come from, beside the environment.
#[derive(Args, Clone, Debug, Default)]
struct Settings {
    /// Configuration file: TOML, YAML or JSON by its ending. Else TOCSIN_CONFIG, else
    /// /etc/tocsin/tocsin.{toml,yaml,json}.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets one key, as in --set store.path=/var/lib/tocsin. Can be repeated; wins over everything else.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    fn load(&self) -> Result<Loaded, ConfigError> {
        self.load_with(Vec::new())
    }

    /// Loads with further settings, which those of the command line override.
    fn load_with(&self, mut sets: Vec<String>) -> Result<Loaded, ConfigError> {
        sets.extend(self.set.iter().cloned());
        Config::load(&Sources::of_process(self.config.clone(), sets))
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    CheckFailed(String),
    #[error("{0}")]
    Unreachable(String),
}

impl CliError {
    fn exit_status(&self) -> u8 {
        match self {
            Self::CheckFailed(_) => 1,
            Self::Config(_) | Self::Log(_) | Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::App(error) => match error {
                AppError::Undrained { .. } => 1,
                AppError::Bus(BusError::Unavailable(_)) => 3,
                AppError::Store(StoreError::Poisoned { .. }) => 74,
                AppError::Store(StoreError::Fenced { .. })
                | AppError::Defect(_)
                | AppError::System { .. } => 70,
                AppError::Bus(BusError::Configuration(_))
                | AppError::Server(_)
                | AppError::Store(
                    StoreError::Unusable { .. }
                    | StoreError::Locked { .. }
                    | StoreError::NewerFormat { .. }
                    | StoreError::Damaged { .. }
                    | StoreError::Corrupt { .. },
                ) => 2,
            },
        }
    }
}

/// Runs what the command line of this process asks for.
#[must_use]
pub fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(args) => up::run(&args),
        Command::Serve(settings) => serve::run(&settings),
        Command::Change(args) => change::run(&args),
        Command::Digest(args) => digest::run(&args),
        Command::Config(args) => config::run(&args),
        Command::NatsServer { args } => {
            let error = exec_nats_server(args.into_iter());
            Err(CliError::Usage(format!(
                "failed to become nats-server: {error}"
            )))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever closed our standard error does not want to know.
            writeln!(std::io::stderr(), "tocsin: {error}").ok();
            ExitCode::from(error.exit_status())
        }
    }
}

/// Prints lines for reading; whoever closed our standard output does not want more.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .ok();
}

/// The runtime of a command: the client of NATS lives on several threads of its own.
fn runtime() -> Result<tokio::runtime::Runtime, AppError> {
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
