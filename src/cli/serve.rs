//! `tocsin serve`: the daemon as systemd or a container runs it; never starts a broker.

use tracing::warn;

use super::arguments::ConfigArgs;
use super::{Exit, Failure, help, threads};
use crate::app;
use crate::config::Config;
use crate::telemetry;

const EXAMPLES: &str = "\
  tocsin serve                             # with /etc/tocsin/tocsin.toml, if it is there
  tocsin serve --config tocsin.yaml --set log.filter=debug
  TOCSIN__NATS__URL=nats://broker:4222 tocsin serve";

/// The arguments of `tocsin serve`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::OF_DAEMON))]
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
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let threads = threads()?;
    let served = threads.block_on(app::serve(&loaded.config, |_| {}));
    // Whatever still waits for the broker must not hold up the end.
    threads.shutdown_background();
    served?;
    Ok(Exit::Well)
}
