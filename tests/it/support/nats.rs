//! A real nats-server for one test: a port and a folder of its own, gone with the guard.

use std::ffi::OsString;
use std::net::TcpListener;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::stream::{self, ClusterInfo, PeerInfo};
use tempfile::TempDir;
use tocsin::bus::connection::{Connection, Connector, Settings as Login};
use tocsin::bus::server::{NatsServer, Port, Settings, find_program};

use super::eventually;
use super::program::wait_until_frozen;

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

    /// kill -9; it must have been at work until then.
    pub(crate) async fn kill(&mut self) {
        self.server.kill().await;
        let ended = self.server.ended().await;
        assert!(ended.contains("SIGKILL"), "ended before: {ended}");
    }

    /// Lets it stand still, and waits until it does.
    pub(crate) fn pause(&self) {
        self.server.pause();
        wait_until_frozen(self.server.pid());
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

/// Three servers that know each other, gone with the guard.
pub(crate) struct Cluster {
    nodes: Vec<Nats>,
}

impl Cluster {
    /// Started, and with a leader.
    pub(crate) async fn start() -> Self {
        say_what_happens();
        let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let ports = listeners.map(|it| it.local_addr().expect("an address").port());
        let routes = ports.map(|port| format!("nats://127.0.0.1:{port}"));
        let mut nodes = Vec::new();
        for port in ports {
            let config = format!(
                "ping_interval: \"2s\"\ncluster {{ name: alarms, listen: \"127.0.0.1:{port}\", routes: {routes:?} }}"
            );
            nodes.push(Nats::start_with(true, &config).await);
        }
        let cluster = Self { nodes };
        let client = cluster.connect().await.client().clone();
        let jetstream = jetstream::new(client);
        eventually("a leader of the cluster", async || {
            jetstream.query_account().await.is_ok()
        })
        .await;
        cluster
    }

    /// The addresses, with commas between them.
    pub(crate) fn urls(&self) -> String {
        let urls: Vec<_> = self.nodes.iter().map(|node| node.url()).collect();
        urls.join(",")
    }

    /// A connection of the test's own, to whichever node answers.
    pub(crate) async fn connect(&self) -> Connection {
        let urls = self.nodes.iter().map(|node| node.url()).collect();
        let login = Login {
            urls,
            name: "test".to_owned(),
            ..Login::default()
        };
        let connecting = Connector::new(login, tokio::runtime::Handle::current());
        connecting
            .connect_within(Duration::from_secs(30), "test", 1 << 20)
            .await
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Waits until a stream has a leader and every copy of it is up to date; returns the leader's node.
    pub(crate) async fn leader_of(&self, client: &Client, stream: &str) -> usize {
        self.leader_where(client, stream, |_, cluster| {
            let is_whole = |it: &PeerInfo| it.current && !it.offline;
            cluster.replicas.len() == self.nodes.len() - 1 && cluster.replicas.iter().all(is_whole)
        })
        .await
    }

    /// Waits until another node than this leads a stream.
    pub(crate) async fn next_leader_of(
        &self,
        client: &Client,
        stream: &str,
        former: usize,
    ) -> usize {
        self.leader_where(client, stream, |leader, _| leader != former)
            .await
    }

    async fn leader_where(
        &self,
        client: &Client,
        stream: &str,
        is_wanted: impl Fn(usize, &ClusterInfo) -> bool,
    ) -> usize {
        let jetstream = jetstream::new(client.clone());
        let found = AtomicUsize::new(0);
        eventually(&format!("a leader of {stream}"), async || {
            let Ok(stream) = jetstream.get_stream(stream).await else {
                return false;
            };
            let Some(cluster) = &stream.cached_info().cluster else {
                return false;
            };
            let name = cluster.leader.as_deref().unwrap_or_default();
            let leader = self.nodes.iter().position(|node| node.name() == name);
            found.store(leader.unwrap_or_default(), Ordering::Relaxed);
            leader.is_some_and(|leader| is_wanted(leader, cluster))
        })
        .await;
        found.into_inner()
    }

    /// One of its servers.
    pub(crate) fn node(&mut self, number: usize) -> &mut Nats {
        &mut self.nodes[number]
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

/// How many messages a stream holds; none when there is no such stream, or nobody to ask.
pub(crate) async fn num_messages(client: &Client, name: &str) -> u64 {
    let stream = jetstream::new(client.clone()).get_stream(name).await;
    stream.map_or(0, |stream| stream.cached_info().state.messages)
}

/// Lets a stream take no more than so many messages, and refuse others; or any number again where it is negative.
pub(crate) async fn limit_stream(client: &Client, name: &str, max_messages: i64) {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream(name).await.expect("the stream exists");
    let config = stream.cached_info().config.clone();
    let limited = stream::Config {
        max_messages,
        discard: if max_messages < 0 {
            stream::DiscardPolicy::Old
        } else {
            stream::DiscardPolicy::New
        },
        ..config
    };
    context
        .update_stream(&limited)
        .await
        .expect("the stream can be changed");
}
