//! `tocsin up`: everything with no configuration, its own nats-server included.

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::arguments::ConfigArgs;
use super::{Exit, Failure, demo, help, print, threads};
use crate::app::up::{Broker, DataFolder, up};
use crate::bus::{Bus, Mode};
use crate::config::{Config, Loaded};
use crate::telemetry;

/// The folder for everything where `--data` names none.
pub(super) const DEFAULT_FOLDER: &str = "./tocsin-data";

const EXAMPLES: &str = "\
  tocsin up                                # a broker of its own, data in ./tocsin-data
  tocsin up --demo                         # and a small fleet's day, played in ten seconds
  tocsin up --data /srv/tocsin
  tocsin up --set nats.url=nats://broker:4222";

/// What there is to try first.
const CHANGE: &str = "change ann disk CRITICAL";
/// What there is to try then.
const DIGEST: &str = "digest ann";

/// The arguments of `tocsin up`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::OF_DAEMON))]
pub struct Args {
    /// The folder for the store, the broker's streams and the URL in use.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_FOLDER)]
    pub data: PathBuf,
    /// Plays a small fleet's day in ten seconds first.
    #[arg(
        long,
        help = "Plays a small fleet's day in ten seconds, for a user whose id begins with demo-, then stays up"
    )]
    pub demo: bool,
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
    let mut log = named.config.log.clone();
    // On a terminal somebody reads what we print; only what is wrong may come between.
    if io::stderr().is_terminal() && log.file.is_none() && !named.is_named("log.filter") {
        "warn".clone_into(&mut log.filter);
    }
    telemetry::init_logging(&log)?;
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
    let config = Config::load(&config.into_sources())?.config;
    let mut playing = None;
    let ready = |bus: &dyn Bus| {
        // Whoever closed our standard output does not want to read it.
        drop(print(&announcement(bus.mode(), &config, &args.data)));
        if args.demo {
            let [change, digest, tail] = [CHANGE, DIGEST, "tail"].map(|it| typed(it, &args.data));
            let play = demo::run(config.clone(), [tail, change, digest]);
            playing = Some(AbortOnDropHandle::new(tokio::spawn(play)));
        } else {
            let [change, digest] = [CHANGE, DIGEST].map(|it| typed(it, &args.data));
            let config = typed("config print", Path::new(DEFAULT_FOLDER));
            drop(print(&format!(
                "try:\n  {change}\n  {digest}\n  {config}\n"
            )));
        }
    };
    up(&config, folder, broker, ready).await?;
    drop(playing);
    Ok(Exit::Well)
}

/// What `up` sets where nobody else did.
fn defaults(folder: &Path, named: &Loaded, broker: Option<&Broker>) -> Vec<String> {
    let url = broker.map(|broker| format!("nats.url={}", broker.url()));
    let store = format!("store.path={}", folder.join("store").display());
    let store = Some(store).filter(|_| !named.is_named("store.path"));
    url.into_iter().chain(store).collect()
}

fn announcement(mode: Mode, config: &Config, folder: &Path) -> String {
    let promise = match mode {
        Mode::JetStream => {
            "every change in the stream is applied exactly once, every digest published until confirmed"
        }
        Mode::Core => {
            "no JetStream: what reaches this process is kept, what the network loses is lost;\n         \
             a publisher that waits for the reply and repeats loses nothing"
        }
        Mode::Memory => "a broker inside the process: nothing outlives it",
    };
    let (url, folder) = (&config.nats.url, folder.display());
    format!("tocsin is up on {url}, data in {folder}\npromise: {promise}\n")
}

/// A command as it can be typed in the same place.
fn typed(arguments: &str, folder: &Path) -> String {
    // As we were: where it is not in PATH, `tocsin` alone would not be found.
    let program = std::env::args_os().next();
    let program = program.map_or_else(|| PathBuf::from("tocsin"), PathBuf::from);
    let program = program.display();
    if folder == Path::new(DEFAULT_FOLDER) {
        format!("{program} {arguments}")
    } else {
        format!("{program} {arguments} --data {}", folder.display())
    }
}
