//! `tocsin serve`: the daemon as systemd or a container runs it; never starts a broker.

use super::arguments::ConfigArgs;
use super::{EXIT_STATUSES, Exit, Failure, threads};
use crate::app;
use crate::config::Config;
use crate::telemetry;

/// The arguments of `tocsin serve`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_STATUSES)]
pub struct Args {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// What ended it otherwise.
pub fn run(args: Args) -> Result<Exit, Failure> {
    let loaded = Config::load(&args.config.into_sources())?;
    telemetry::init_logging(&loaded.config.log)?;
    let threads = threads()?;
    let served = threads.block_on(app::serve(&loaded.config, |_| {}));
    // Whatever still waits for the broker must not hold up the end.
    threads.shutdown_background();
    served?;
    Ok(Exit::Well)
}
