//! A real nats-server for one test: a port and a folder of its own, gone with the guard.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tocsin::bus::connection::{Connection, Connector, Settings as Login};
use tocsin::bus::server::{NatsServer, Port, Settings, find_program};

/// A server and the folder that goes with it.
pub(crate) struct Nats {
    server: NatsServer,
    _folder: TempDir,
}

impl Nats {
    /// With streams.
    pub(crate) async fn start() -> Self {
        Self::start_with(true, "").await
    }

    /// With streams or without, and with further configuration.
    pub(crate) async fn start_with(has_jetstream: bool, config: &str) -> Self {
        say_what_happens();
        let folder = tempfile::tempdir().expect("a folder for the server");
        let settings = settings(folder.path(), has_jetstream, config);
        let server = NatsServer::start(settings).await;
        Self {
            server: server.unwrap_or_else(|error| panic!("{error}")),
            _folder: folder,
        }
    }

    /// Connects without any secret.
    pub(crate) fn connector(&self) -> Connector {
        Connector::new(self.login(), tokio::runtime::Handle::current())
    }

    /// The address, and no secret.
    pub(crate) fn login(&self) -> Login {
        Login {
            urls: vec![self.url()],
            name: "test".to_owned(),
            ..Login::default()
        }
    }

    /// A connection of the test's own.
    pub(crate) async fn connect(&self) -> Connection {
        let connecting = self.connector();
        connecting
            .connect_within(Duration::from_secs(30), "test", 1 << 20)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }
}

impl Deref for Nats {
    type Target = NatsServer;

    fn deref(&self) -> &NatsServer {
        &self.server
    }
}

impl DerefMut for Nats {
    fn deref_mut(&mut self) -> &mut NatsServer {
        &mut self.server
    }
}

/// Shows the log of a test that fails; the client library repeats what ours says.
pub(crate) fn say_what_happens() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_else(|_| "info,async_nats=off".to_owned());
    // The first test of a process sets it for all.
    let log = tracing_subscriber::fmt().with_env_filter(wanted);
    log.with_test_writer().try_init().ok();
}

/// A server on any port.
pub(crate) fn settings(folder: &Path, has_jetstream: bool, config: &str) -> Settings {
    Settings {
        program: find_program().unwrap_or_else(|error| panic!("{error}")),
        launcher: launcher(),
        folder: folder.to_owned(),
        port: Port::Any,
        has_jetstream,
        config: config.to_owned(),
    }
}

/// Set in a process that a test started from this same program, to what it is to do.
pub(crate) const ROLE: &str = "TOCSIN_TEST_ROLE";

/// This program as a launcher: a test run that is killed leaves no server behind.
pub(crate) fn launcher() -> Vec<OsString> {
    let program = std::env::current_exe().expect("this program");
    let mut launcher: Vec<OsString> =
        vec!["/usr/bin/env".into(), format!("{ROLE}=launcher").into()];
    launcher.push(program.into());
    let entry = [
        "--exact",
        "server::entry_of_the_launcher",
        "--nocapture",
        "--",
    ];
    launcher.extend(entry.map(OsString::from));
    launcher
}
