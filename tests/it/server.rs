//! The child nats-server.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tocsin::bus::server::{NatsServer, Port, ServerError, exec_nats_server};

use crate::support::eventually;
use crate::support::nats::{Nats, ROLE, settings};

fn exists(pid: u32) -> bool {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process id");
    test_kill_process(pid).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_keeps_its_streams_over_a_kill_and_a_restart() {
    let mut nats = Nats::start().await;
    let port = nats.port();
    let connection = nats.connect().await;
    let context = async_nats::jetstream::new(connection.client().clone());
    let config = async_nats::jetstream::stream::Config {
        name: "KEPT".to_owned(),
        ..Default::default()
    };
    context.create_stream(config).await.expect("a stream");
    nats.kill().await;
    nats.restart().await.expect("a second start");
    assert_eq!(nats.port(), port);
    let context = async_nats::jetstream::new(nats.connect().await.client().clone());
    context
        .get_stream("KEPT")
        .await
        .expect("the stream is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_is_gone_and_a_frozen_one_too() {
    let mut nats = Nats::start().await;
    nats.stop(Duration::from_secs(20)).await;
    assert!(!exists(nats.pid()));
    nats.restart().await.expect("a second start");
    nats.pause();
    nats.stop(Duration::from_secs(20)).await;
    assert!(!exists(nats.pid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_passed_over_or_refused() {
    let nats = Nats::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut second = settings(folder.path(), false, "");
    second.port = Port::Exactly(nats.port());
    let refused = NatsServer::start(second.clone()).await;
    let Err(ServerError::NotReady { why, .. }) = refused else {
        panic!("a taken port was not refused: {refused:?}");
    };
    assert!(why.contains("address already in use"), "{why}");
    second.port = Port::From(nats.port());
    let started = NatsServer::start(second).await.expect("the next port");
    assert!(started.port() > nats.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_read_is_said_with_the_servers_own_words() {
    let folder = tempfile::tempdir().expect("a folder");
    let refused = NatsServer::start(settings(folder.path(), false, "nonsense: {")).await;
    let Err(error) = refused else {
        panic!("nonsense was taken");
    };
    assert!(error.to_string().contains("Parse error"), "{error}");
}

/// Not a test of its own: what every server is started by, as by `tocsin __nats-server`.
#[test]
fn entry_of_the_launcher() {
    if std::env::var(ROLE).as_deref() == Ok("launcher") {
        let args = std::env::args_os().skip_while(|arg| arg != "--").skip(1);
        panic!("{}", exec_nats_server(args));
    }
}

/// Not a test of its own: a parent that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn entry_of_the_parent() {
    if std::env::var(ROLE).as_deref() != Ok("parent") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let settings = settings(folder.path(), true, "");
    let server = NatsServer::start(settings).await.expect("a server");
    println!("\nserver {}", server.pid());
    server.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_parent_takes_its_server_with_it() {
    let mut parent = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "server::entry_of_the_parent", "--nocapture"])
        .env(ROLE, "parent")
        .stdout(Stdio::piped())
        .spawn()
        .expect("a parent");
    let output = BufReader::new(parent.stdout.take().expect("its output"));
    let server: u32 = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("server ")?.parse().ok())
        .expect("the server's process id");
    assert!(exists(server));
    let pid = Pid::from_raw(parent.id().cast_signed()).expect("a process id");
    kill_process(pid, Signal::KILL).expect("a kill");
    parent.wait().expect("its end");
    eventually("the server is gone", async || !exists(server)).await;
}
