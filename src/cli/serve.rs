//! `tocsin serve`: the daemon.

use super::{CliError, Settings, runtime};
use crate::app;
use crate::telemetry;

pub(super) fn run(settings: &Settings) -> Result<(), CliError> {
    let loaded = settings.load()?;
    telemetry::init_logging(&loaded.config.log)?;
    let runtime = runtime()?;
    let served = runtime.block_on(app::serve(&loaded.config, |_| {}));
    // Whatever still waits for the broker must not hold up the end.
    runtime.shutdown_background();
    Ok(served?)
}
