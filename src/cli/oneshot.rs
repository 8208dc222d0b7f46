//! What the client commands share: where the broker is, and one connection to it.

use std::fs;

use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::arguments::ClientArgs;
use super::{Exit, Failure};
use crate::app::broker::login;
use crate::app::up::URL_FILE;
use crate::bus::BusError;
use crate::bus::connection::{Connection, Connector};
use crate::config::Config;

/// Messages that a client command holds before it reads them.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

/// Connects to the server that is named, else to that of the `up` that runs in this folder.
pub(super) async fn connect(args: &ClientArgs) -> Result<Connection, Failure> {
    connect_with(args, SUBSCRIPTION_CAPACITY).await
}

/// The same, where each subscription holds so many messages before they are read.
pub(super) async fn connect_with(
    args: &ClientArgs,
    capacity: usize,
) -> Result<Connection, Failure> {
    let mut sources = args.config.clone().into_sources();
    let named = args.url.as_ref().map(|url| format!("nats.url={url}"));
    sources.sets.extend(named);
    let mut loaded = Config::load(&sources)?;
    let of_up = args.data.join(URL_FILE);
    if !loaded.is_named("nats.url")
        && let Ok(url) = fs::read_to_string(of_up)
    {
        sources.sets.push(format!("nats.url={url}"));
        loaded = Config::load(&sources)?;
    }
    let connector = Connector::new(login(&loaded.config.nats), Handle::current());
    let connecting = connector.connect_within(args.timeout, "client", capacity);
    connecting.await.map_err(|error| match &error {
        BusError::Unavailable(_) => Failure::new(Exit::Unreachable, &error),
        BusError::Configuration(_) => Failure::new(Exit::Unusable, &error),
    })
}

/// Publishes and waits for whoever answers: the stream that took it, or the daemon after its commit.
pub(super) async fn publish(
    args: &ClientArgs,
    connection: &Connection,
    subject: &'static str,
    payload: Bytes,
) -> Result<(), Failure> {
    let unreachable = |why: String| Failure::new(Exit::Unreachable, &why);
    let asked = connection.client().request(subject, payload);
    let answered = timeout(args.timeout, asked).await.map_err(|_| {
        unreachable(format!(
            "no answer on {subject} within {:?}; is the daemon running?",
            args.timeout
        ))
    })?;
    let answer = answered.map_err(|error| {
        unreachable(if error.kind() == RequestErrorKind::NoResponders {
            format!("nobody takes messages on {subject}; start the daemon (tocsin up)")
        } else {
            format!("failed to publish on {subject}: {error}")
        })
    })?;
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap_or_default();
    let of_daemon = answer.get("ok").and_then(Value::as_bool);
    if of_daemon.unwrap_or_else(|| answer.get("seq").is_some()) {
        return Ok(());
    }
    let line = format!("the message on {subject} was refused: {answer}");
    Err(Failure::new(Exit::NotTaken, &line))
}
