//! `tocsin up`: everything with no configuration, its own nats-server included.

use std::path::PathBuf;

use super::EXIT_STATUSES;
use super::arguments::ConfigArgs;

/// The arguments of `tocsin up`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_STATUSES)]
pub struct Args {
    /// The folder for the store, the broker's streams and the URL in use.
    #[arg(long, value_name = "DIR", default_value = "./tocsin-data")]
    pub data: PathBuf,
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}
