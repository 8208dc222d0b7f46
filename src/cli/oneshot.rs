//! What the client commands share: where the broker is, and one connection to it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::up::DEFAULT_FOLDER;
use super::{CliError, Settings};
use crate::app::broker::login;
use crate::app::up::URL_FILE;
use crate::bus::BusError;
use crate::bus::connection::{Connection, Connector};

/// Messages that a client command holds before it reads them.
const SUBSCRIPTION_CAPACITY: usize = 65_536;

#[derive(clap::Args, Debug)]
pub(super) struct Client {
    /// How long to wait for NATS and for an answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    timeout: u64,
    #[command(flatten)]
    settings: Settings,
}

impl Client {
    pub(super) const fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }

    /// Connects to the server that is named, else to that of the `up` that runs in this folder.
    pub(super) async fn connect(&self) -> Result<Connection, CliError> {
        let mut loaded = self.settings.load()?;
        let of_up = Path::new(DEFAULT_FOLDER).join(URL_FILE);
        if !loaded.names_a_server()
            && let Ok(url) = fs::read_to_string(of_up)
        {
            loaded = self.settings.load_with(vec![format!("nats.url={url}")])?;
        }
        let connector = Connector::new(login(&loaded.config.nats), Handle::current());
        let connecting = connector
            .connect_within(self.timeout(), "client", SUBSCRIPTION_CAPACITY)
            .await;
        connecting.map_err(|error| match error {
            BusError::Unavailable(why) => CliError::Unreachable(why),
            BusError::Configuration(why) => CliError::Usage(why),
        })
    }

    /// Publishes and waits for whoever answers: the stream that took it, or the daemon after its commit.
    pub(super) async fn publish(
        &self,
        connection: &Connection,
        subject: &'static str,
        payload: Bytes,
    ) -> Result<(), CliError> {
        let asked = connection.client().request(subject, payload);
        let answer = match timeout(self.timeout(), asked).await {
            Ok(Ok(answer)) => answer.payload,
            Ok(Err(error)) => {
                return Err(CliError::Unreachable(format!(
                    "nobody took the message on {subject}: {error}; start the daemon (tocsin up)"
                )));
            }
            Err(_) => {
                let limit = self.timeout();
                return Err(CliError::Unreachable(format!(
                    "no answer on {subject} within {limit:?}; is the daemon running?"
                )));
            }
        };
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        let of_daemon = answer.get("ok").and_then(Value::as_bool);
        let is_taken = of_daemon.unwrap_or_else(|| answer.get("seq").is_some());
        if is_taken {
            return Ok(());
        }
        Err(CliError::CheckFailed(format!(
            "the message on {subject} was refused: {answer}"
        )))
    }
}
