//! `tocsin up`: everything with no configuration.

use std::path::{Path, PathBuf};

use super::{CliError, Settings, runtime};
use crate::app::up::{self, Broker};
use crate::config::Loaded;
use crate::telemetry;

/// The folder for everything where `--data` names none.
pub(super) const DEFAULT_FOLDER: &str = "tocsin-data";

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Where everything is kept.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    data: PathBuf,
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let named = args.settings.load()?;
    telemetry::init_logging(&named.config.log)?;
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let broker = if named.names_a_server() {
            None
        } else {
            Some(Broker::start(&args.data).await?)
        };
        let loaded = args
            .settings
            .load_with(defaults(&args.data, &named, broker.as_ref()))?;
        Ok(up::up(&loaded.config, &args.data, broker).await?)
    });
    runtime.shutdown_background();
    result
}

/// What `up` sets where nobody else did.
fn defaults(folder: &Path, named: &Loaded, broker: Option<&Broker>) -> Vec<String> {
    let mut sets = Vec::new();
    if let Some(broker) = broker {
        sets.push(format!("nats.url={}", broker.url()));
    }
    if !named.is_named("store.path") {
        sets.push(format!("store.path={}", folder.join("store").display()));
    }
    sets
}
