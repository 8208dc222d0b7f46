//! Everything with no configuration: the daemon, and a nats-server of its own where none is named.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use crate::bus::Bus;
use crate::bus::server::{NatsServer, Port, Settings, find_program};
use crate::config::Config;

use super::{AppError, serve};

/// The subcommand that becomes the child nats-server.
pub const LAUNCH_COMMAND: &str = "__nats-server";
/// The file in the data folder that holds the URL in use: client commands read it.
pub const URL_FILE: &str = "url";
/// The file in the data folder that is held locked while an `up` runs.
const LOCK_FILE: &str = "up.lock";
/// Where the child nats-server listens, if that is free.
const PREFERRED_PORT: u16 = 4222;
/// How long the child may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The folder of one `up`, and of no other: two nats-servers would write the same streams.
pub struct DataFolder {
    path: PathBuf,
    _lock: File,
}

impl DataFolder {
    /// Makes it, and takes it for as long as this lives.
    ///
    /// # Errors
    /// [`AppError::InUse`] when another `up` has it, [`AppError::Unwritable`] when it cannot be written.
    pub fn take(path: &Path) -> Result<Self, AppError> {
        let unwritable = |error| AppError::Unwritable {
            path: path.to_owned(),
            error,
        };
        fs::create_dir_all(path).map_err(unwritable)?;
        let lock = File::create(path.join(LOCK_FILE)).map_err(unwritable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(AppError::InUse {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(unwritable(error)),
        }
    }
}

/// A nats-server that lives as long as `up` does.
pub struct Broker {
    server: NatsServer,
}

impl Broker {
    /// Starts it with its data below a folder.
    ///
    /// # Errors
    /// [`AppError::Server`] when it is not found or does not start.
    pub async fn start(folder: &DataFolder) -> Result<Self, AppError> {
        let own = std::env::current_exe().map_err(|error| AppError::System {
            action: "find this program",
            error,
        })?;
        let settings = Settings {
            program: find_program()?,
            launcher: vec![own.into(), LAUNCH_COMMAND.into()],
            folder: folder.path.join("nats"),
            port: Port::From(PREFERRED_PORT),
            has_jetstream: true,
            config: String::new(),
        };
        Ok(Self {
            server: NatsServer::start(settings).await?,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Starts it again whenever it ends; resolves when that fails.
    async fn keep_alive(&mut self) -> AppError {
        loop {
            let how = self.server.ended().await;
            warn!(how, "nats-server ended, it is started again");
            if let Err(error) = self.server.restart().await {
                return error.into();
            }
        }
    }
}

/// Runs the daemon with what `config` says, and the broker beside it until the daemon has stopped; `ready` is
/// called once input flows.
///
/// # Errors
/// [`AppError`] when either ends by itself.
pub async fn up(
    config: &Config,
    folder: DataFolder,
    broker: Option<Broker>,
    ready: impl FnOnce(&dyn Bus),
) -> Result<(), AppError> {
    let url_file = UrlFile::write(&folder, &config.nats.url.expose().join(","))?;
    let result = match broker {
        None => serve(config, ready).await,
        Some(mut broker) => {
            let result = tokio::select! {
                result = serve(config, ready) => result,
                error = broker.keep_alive() => Err(error),
            };
            broker.server.stop(STOP_TIMEOUT).await;
            result
        }
    };
    drop(url_file);
    result
}

/// The file with the URL in use, for as long as it is true.
struct UrlFile(PathBuf);

impl UrlFile {
    fn write(folder: &DataFolder, url: &str) -> Result<Self, AppError> {
        let path = folder.path.join(URL_FILE);
        fs::write(&path, url).map_err(|error| AppError::Unwritable {
            path: path.clone(),
            error,
        })?;
        Ok(Self(path))
    }
}

impl Drop for UrlFile {
    fn drop(&mut self) {
        // Left behind it only makes a client command wait for nothing.
        fs::remove_file(&self.0).ok();
    }
}
