//! `tocsin serve`: the daemon as systemd or a container runs it; never starts a broker.

use super::EXIT_STATUSES;
use super::arguments::ConfigArgs;

/// The arguments of `tocsin serve`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_STATUSES)]
pub struct Args {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}
