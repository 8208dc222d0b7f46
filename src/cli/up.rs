//! `tocsin up`: everything with no configuration, its own nats-server included.

use std::path::{Path, PathBuf};

use tracing::warn;

use super::arguments::ConfigArgs;
use super::{Exit, Failure, help, threads};
use crate::app::up::{Broker, DataFolder, up};
use crate::config::{Config, Loaded};
use crate::telemetry;

/// The folder for everything where `--data` names none.
pub(super) const DEFAULT_FOLDER: &str = "./tocsin-data";

const EXITS: [Exit; 5] = [
    Exit::Well,
    Exit::NotTaken,
    Exit::Unusable,
    Exit::Defect,
    Exit::WriteFailed,
];

const EXAMPLES: &str = "\
  tocsin up                                # a broker of its own, data in ./tocsin-data
  tocsin up --data /srv/tocsin
  tocsin up --set nats.url=nats://broker:4222";

/// The arguments of `tocsin up`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &EXITS))]
pub struct Args {
    /// The folder for the store, the broker's streams and the URL in use.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub data: PathBuf,
    /// Where the configuration comes from.
    #[command(flatten)]
    pub config: ConfigArgs,
}

/// Runs the daemon, and a broker beside it where none is named, until it is told to stop.
///
/// # Errors
/// What ended either otherwise.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let named = Config::load(&args.config.clone().into_sources())?;
    telemetry::init_logging(&named.config.log)?;
    for warning in &named.warnings {
        warn!("{warning}");
    }
    let threads = threads()?;
    let result = threads.block_on(run_here(args, &named));
    threads.shutdown_background();
    result
}

async fn run_here(args: &Args, named: &Loaded) -> Result<Exit, Failure> {
    let folder = DataFolder::take(&args.data)?;
    let broker = if named.is_named("nats.url") {
        None
    } else {
        Some(Broker::start(&folder).await?)
    };
    let mut config = args.config.clone();
    let mut sets = defaults(&args.data, named, broker.as_ref());
    sets.append(&mut config.set);
    config.set = sets;
    let loaded = Config::load(&config.into_sources())?;
    up(&loaded.config, folder, broker).await?;
    Ok(Exit::Well)
}

/// What `up` sets where nobody else did.
fn defaults(folder: &Path, named: &Loaded, broker: Option<&Broker>) -> Vec<String> {
    let url = broker.map(|broker| format!("nats.url={}", broker.url()));
    let store = format!("store.path={}", folder.join("store").display());
    let store = Some(store).filter(|_| !named.is_named("store.path"));
    url.into_iter().chain(store).collect()
}
