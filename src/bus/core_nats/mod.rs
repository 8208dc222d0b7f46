//! NATS without streams: what reached this process is kept, what did not is lost, and how much is said.
//!
//! | connection | what goes over it |
//! |---|---|
//! | input | only the input subjects, so that every message it ever received is accounted for |
//! | output | publishes and their echoes, answers, telemetry: nothing of it later than it was given up |
//! | owner | who owns the input |
//!
//! The server numbers nothing and keeps nothing. Messages are numbered here in the order of receipt, every
//! start is a generation of its own, and a message is stamped once, when it is received. A publish is
//! confirmed by an echo. Subjects come with the settings: nothing here knows an alarm.

mod claim;
mod input;
mod output;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::warn;

use self::claim::CoreClaim;
use self::input::CoreInput;
use self::output::CoreOutput;
use super::connection::Connector;
use super::{Bus, BusError, Claim, Input, Mode, Output, Start, wall_clock};
use crate::core::ids::StoreId;
use crate::core::position::{Cursor, Origin, Position};

/// What is read, and what is bounded.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Subjects whose messages are taken as they come.
    pub plain: Vec<&'static str>,
    /// Subjects whose messages wait until every plain message that has arrived is taken.
    pub barrier: Vec<&'static str>,
    /// Where it is asked who owns the input.
    pub owner: &'static str,
    /// Whether a store that was filled from a stream may be opened: its stream would be applied a second time
    /// later.
    pub allow_stream_positions: bool,
    /// How many messages the client buffers of each subscription: many only when the process is starved.
    pub max_buffered: usize,
    /// How many received messages wait here; what exceeds it is dropped, counted and said.
    pub max_waiting: usize,
    /// How many bytes of them.
    pub max_waiting_bytes: usize,
    /// How long a confirmation is waited for.
    pub confirm_within: Duration,
    /// How long another owner's answer is waited for.
    pub claim_window: Duration,
}

impl Settings {
    /// The usual bounds.
    #[must_use]
    pub fn new(plain: &[&'static str], barrier: &[&'static str], owner: &'static str) -> Self {
        Self {
            plain: plain.to_vec(),
            barrier: barrier.to_vec(),
            owner,
            allow_stream_positions: false,
            max_buffered: (1 << 20) + (1 << 16),
            max_waiting: 1 << 20,
            max_waiting_bytes: 512 << 20,
            confirm_within: Duration::from_secs(5),
            claim_window: Duration::from_millis(500),
        }
    }
}

/// A server without streams, or used as if it had none.
pub struct CoreNats {
    settings: Settings,
    connector: Connector,
    output: Arc<CoreOutput>,
}

impl CoreNats {
    /// Connects, and waits for the server for as long as it takes.
    ///
    /// # Errors
    /// [`BusError::Configuration`] for what only the operator can change.
    pub async fn connect(connector: Connector, settings: Settings) -> Result<Self, BusError> {
        let line = connector.connect_line("output", 1 << 16).await?;
        let output = CoreOutput::new(line, settings.confirm_within);
        Ok(Self {
            settings,
            connector,
            output: Arc::new(output),
        })
    }

    /// Where reading begins: a generation after the highest stored one.
    fn begin(&self, positions: &[Option<Position>]) -> Result<Position, BusError> {
        let is_of_stream = |it: &Position| matches!(it.origin, Origin::Stream { .. });
        let known = || positions.iter().flatten();
        if known().any(is_of_stream) {
            if !self.settings.allow_stream_positions {
                return Err(BusError::Configuration(
                    "failed to open the input over core NATS: the store was filled from a JetStream stream, which would be applied a second time later; give it a server with JetStream, or set input.mode = \"core\" to accept that".to_owned(),
                ));
            }
            warn!(
                "the store was filled from a stream; when it is read from that stream again, the history since counts as rewritten"
            );
        }
        let highest = known().map(|position| position.cursor.generation).max();
        Ok(Position {
            origin: Origin::Session,
            cursor: Cursor {
                generation: highest.map_or(0, |generation| generation + 1),
                sequence: 0,
            },
            timestamp: wall_clock(),
            fingerprint: None,
        })
    }
}

impl Bus for CoreNats {
    fn mode(&self) -> Mode {
        Mode::Core
    }

    fn claim(&self, store: StoreId) -> BoxFuture<'static, Result<Arc<dyn Claim>, BusError>> {
        let (connector, settings) = (self.connector.clone(), self.settings.clone());
        let claiming = async move {
            let connection = connector.connect("owner", 1 << 16).await?;
            let claim = CoreClaim::take(connection, store, &settings).await?;
            let claim: Arc<dyn Claim> = Arc::new(claim);
            Ok(claim)
        };
        claiming.boxed()
    }

    fn open_input(
        &self,
        positions: Vec<Option<Position>>,
        _: Start,
    ) -> BoxFuture<'static, Result<Box<dyn Input>, BusError>> {
        let (connector, settings) = (self.connector.clone(), self.settings.clone());
        let begin = self.begin(&positions);
        let opening = async move {
            let begin = begin?;
            let connection = connector.connect("input", settings.max_buffered).await?;
            let input = CoreInput::open(connection, &settings, begin).await?;
            let input: Box<dyn Input> = Box::new(input);
            Ok(input)
        };
        opening.boxed()
    }

    fn output(&self) -> Arc<dyn Output> {
        self.output.clone()
    }

    fn duplicate_window(&self) -> Option<Duration> {
        None
    }
}

/// What only happens when the client has ended, which lasts as long as its connection.
fn ended(what: &str, error: &dyn std::error::Error) -> BusError {
    BusError::Unavailable(format!("failed to {what}: {error}; the connection ended"))
}
