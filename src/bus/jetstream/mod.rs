//! The bus over a server with streams: every message applied once, every digest published until confirmed.
//!
//! | file | what it is |
//! |---|---|
//! | `api` | requests about streams, and the shapes of the answers |
//! | `streams` | what the streams must be |
//! | `pull` | an ordered consumer: without a gap, or broken |
//! | `singles` | the next messages without a consumer: past one that no client can read |
//! | `reader` | the input: verified against where we are, whatever happens |
//! | `publisher` | confirmed publishing, and finding what was published |
//! | `claim` | one store at a time |
//! | `follow` | a stream as it grows, for who only looks on |
//! | `monitor` | lag, room, clocks |
//!
//! Four connections: one that only reads, one that only publishes, one that looks through what was published, one
//! for everything else, so that a full socket of one, or what ends it, never delays a renewal of the claim.

mod api;
mod claim;
mod follow;
mod monitor;
mod publisher;
mod pull;
mod reader;
mod singles;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

pub use self::claim::{Holder, TTL as CLAIM_TTL, holder};
pub use self::follow::{Followed, Follower, Place as FollowFrom};

use self::api::{Api, ApiError, StreamConfig, StreamInfo, code};
use self::claim::{Place, StreamClaim};
use self::monitor::Monitor;
use self::publisher::{Publisher, Target};
use self::reader::Reader;
use self::streams::{Purpose, Wanted, ensure, max_message_size};
use super::connection::{Connection, Connector, jitter};
use super::{Bus, BusError, Claim, Input, Mode, Output, Start};
use crate::core::ids::StoreId;
use crate::core::position::Position;

/// Messages that a subscription holds before the client drops: far more than are ever asked for at once.
const SUBSCRIPTION_CAPACITY: usize = 1 << 16;

/// The stream that is read.
#[derive(Clone, Debug)]
pub struct InputStream {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub subjects: Vec<String>,
    /// How long it keeps a message.
    pub max_age: Duration,
    /// How many bytes it keeps, at most half of what the account may store.
    pub max_bytes: u64,
}

/// A stream that is published to.
#[derive(Clone, Debug)]
pub struct OutputStream {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub subject: String,
    /// How long it keeps a message.
    pub max_age: Duration,
    /// How many bytes it keeps.
    pub max_bytes: u64,
    /// How long it knows the id of a message.
    pub duplicate_window: Duration,
}

/// The stream that says who owns the input.
#[derive(Clone, Debug)]
pub struct ClaimStream {
    /// Its name.
    pub name: String,
    /// Its only subject.
    pub subject: String,
    /// How long a claim lasts without a renewal; [`CLAIM_TTL`].
    pub ttl: Duration,
}

/// The streams, and how many copies the broker keeps of each.
#[derive(Clone, Debug)]
pub struct Streams {
    /// What is read.
    pub input: InputStream,
    /// What is published to. Callers remember the sequences of the first; only in it is a search shortened.
    pub outputs: Vec<OutputStream>,
    /// Who owns the input.
    pub claim: ClaimStream,
    /// Copies of each message.
    pub replicas: usize,
}

impl Streams {
    fn wanted_input(&self) -> Wanted {
        let InputStream {
            name,
            subjects,
            max_age,
            max_bytes,
        } = &self.input;
        let mut wanted = Wanted::new(Purpose::Input, name, subjects.clone(), self.replicas);
        wanted.config.max_age = *max_age;
        wanted.config.max_bytes = room(*max_bytes);
        wanted
    }

    fn wanted_outputs(&self) -> impl Iterator<Item = Wanted> {
        self.outputs.iter().map(|output| {
            let subjects = vec![output.subject.clone()];
            let mut wanted = Wanted::new(Purpose::Output, &output.name, subjects, self.replicas);
            wanted.config = StreamConfig {
                max_age: output.max_age,
                max_bytes: room(output.max_bytes),
                duplicate_window: output.duplicate_window,
                ..wanted.config
            };
            wanted
        })
    }

    fn wanted_claim(&self) -> Wanted {
        let subjects = vec![self.claim.subject.clone()];
        let mut wanted = Wanted::new(Purpose::Claim, &self.claim.name, subjects, self.replicas);
        wanted.config.max_bytes = room(1 << 20);
        wanted
    }
}

fn room(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Whether the broker keeps streams for us.
///
/// Only a server or an account without them is a no: an answer that does not come, a missing leader or a
/// missing permission is waited for, because reading without streams what a stream keeps would lose it.
pub async fn has_streams(connection: &Connection) -> bool {
    let api = Api::new(connection.clone());
    let mut said = None;
    loop {
        connection.connected().await;
        if !connection.has_jetstream() {
            return false;
        }
        let why = match api.account().await {
            Ok(_) => return true,
            Err(ApiError::Refused {
                code: code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT,
                ..
            }) => return false,
            Err(error) => error.to_string(),
        };
        wait_for_streams(&mut said, why).await;
    }
}

async fn wait_for_streams(said: &mut Option<String>, why: String) {
    if said.as_ref() != Some(&why) {
        warn!(error = %why, "the broker's streams cannot be used yet, trying for ever");
        *said = Some(why);
    }
    sleep(Duration::from_secs(1).mul_f64(jitter(0.3, 1.0))).await;
}

/// The bus over streams.
pub struct JetStream {
    reading: Api,
    control: Api,
    publisher: Publisher,
    monitor: Arc<Monitor>,
    streams: Streams,
    _monitoring: AbortOnDropHandle<()>,
}

impl JetStream {
    /// Connects, and makes or compares the streams; waits for the broker for as long as it takes.
    ///
    /// # Errors
    /// [`BusError::Configuration`] when a stream is not what is relied on, or something else that only the
    /// operator can change.
    pub async fn open(connector: &Connector, streams: Streams) -> Result<Self, BusError> {
        let connect = |role| connector.connect(role, SUBSCRIPTION_CAPACITY);
        let control = Api::new(connect("control").await?);
        let reading = Api::new(connect("input").await?);
        let looks = Api::new(connect("looks").await?);
        let publishing = connector.connect_line("output", SUBSCRIPTION_CAPACITY);
        let publishing = publishing.await?;
        let input = streams.wanted_input();
        // The smallest first: room may lack.
        ensure_for_ever(&control, &streams.wanted_claim()).await?;
        ensure_for_ever(&control, &input).await?;
        let mut max_size = usize::MAX;
        for wanted in streams.wanted_outputs() {
            let found = ensure_for_ever(&control, &wanted).await?;
            max_size = max_size.min(max_message_size(&found));
        }
        let targets = streams.outputs.iter().zip(streams.wanted_outputs());
        let targets = targets.enumerate().map(|(i, (output, wanted))| Target {
            subject: output.subject.clone(),
            stream: wanted,
            is_searched_from: i == 0,
        });
        let targets = targets.collect();
        let (monitor, monitoring) = Monitor::start(control.clone(), input.config.name.clone());
        let publisher = Publisher::new(publishing, looks, targets, max_size, Arc::clone(&monitor));
        info!(stream = input.config.name, "the streams are ready");
        Ok(Self {
            reading,
            control,
            publisher,
            monitor,
            streams,
            _monitoring: monitoring,
        })
    }
}

async fn ensure_for_ever(api: &Api, wanted: &Wanted) -> Result<StreamInfo, BusError> {
    let mut said = None;
    loop {
        api.connection().connected().await;
        match ensure(api, wanted).await {
            Ok(found) => return Ok(found),
            Err(BusError::Configuration(why)) => return Err(BusError::Configuration(why)),
            Err(BusError::Unavailable(why)) => wait_for_streams(&mut said, why).await,
        }
    }
}

impl Bus for JetStream {
    fn mode(&self) -> Mode {
        Mode::JetStream
    }

    fn claim(&self, store: StoreId) -> BoxFuture<'static, Result<Arc<dyn Claim>, BusError>> {
        let ClaimStream { subject, ttl, .. } = self.streams.claim.clone();
        let place = Place {
            stream: self.streams.wanted_claim(),
            subject,
            ttl,
        };
        let claim = StreamClaim::start(self.control.clone(), place, store);
        async move {
            claim.held().await;
            Ok(Arc::new(claim) as Arc<dyn Claim>)
        }
        .boxed()
    }

    fn open_input(
        &self,
        positions: Vec<Option<Position>>,
        start: Start,
    ) -> BoxFuture<'static, Result<Box<dyn Input>, BusError>> {
        let (api, monitor) = (self.reading.clone(), Arc::clone(&self.monitor));
        let wanted = self.streams.wanted_input();
        async move {
            let reader = Reader::open(api, wanted, monitor, &positions, start).await?;
            Ok(Box::new(reader) as Box<dyn Input>)
        }
        .boxed()
    }

    fn output(&self) -> Arc<dyn Output> {
        Arc::new(self.publisher.clone())
    }

    fn duplicate_window(&self) -> Option<Duration> {
        let windows = self.streams.outputs.iter();
        windows.map(|output| output.duplicate_window).min()
    }
}
