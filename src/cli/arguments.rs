//! Arguments that several subcommands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use super::up::DEFAULT_FOLDER;
use crate::config::Sources;
use crate::core::ids::{Id, UserId};

const CONFIGURATION: &str = "Configuration";
const CONNECTION: &str = "Connection";

/// Where the configuration comes from.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// The configuration file.
    #[arg(
        long,
        help_heading = CONFIGURATION,
        value_name = "FILE",
        help = "The configuration file, TOML, YAML or JSON by its ending [default: $TOCSIN_CONFIG, \
                else /etc/tocsin/tocsin.{toml,yaml,json}]"
    )]
    pub config: Option<PathBuf>,
    /// Keys set over the file and the environment.
    #[arg(
        long,
        help_heading = CONFIGURATION,
        value_name = "KEY=VALUE",
        help = "Sets one key over the file and the environment, for example input.in_flight=1000"
    )]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// These arguments with the environment of this process.
    #[must_use]
    pub fn into_sources(self) -> Sources {
        Sources::of_process(self.config, self.set)
    }
}

/// Which broker a client command talks to, and for how long it waits.
#[derive(clap::Args, Clone, Debug)]
pub struct ClientArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// The servers, the same as `--set nats.url=…`.
    #[arg(
        long,
        help_heading = CONNECTION,
        value_name = "URL",
        help = "The NATS server, the same as --set nats.url=URL [default: what the configuration names, \
                else that of the `tocsin up` of this folder, else nats://127.0.0.1:4222]"
    )]
    pub url: Option<String>,
    /// The folder of a running `up`, whose broker is used where none is named.
    #[arg(long, help_heading = CONNECTION, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub data: PathBuf,
    /// How long to wait for the broker and the answer.
    #[arg(long, help_heading = CONNECTION, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// How to print what is for reading.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    pub output: OutputFormat,
}

/// Key `-o`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// A user's id, as an argument.
///
/// # Errors
/// When it is empty or too long.
pub fn parse_user(text: &str) -> Result<UserId, String> {
    parse_id(text).map(UserId)
}

/// Any id, as an argument.
///
/// # Errors
/// When it is empty or too long.
pub fn parse_id(text: &str) -> Result<Id, String> {
    Id::new(text).ok_or_else(|| "an id has 1 to 256 bytes".to_owned())
}

/// A duration above zero, as an argument.
///
/// # Errors
/// When it is none.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "must be a duration such as 500ms, 5s or 1m".to_owned())
}
