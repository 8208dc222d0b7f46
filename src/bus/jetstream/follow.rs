//! A stream as it grows, read for as long as somebody looks on.
//!
//! Nothing is missed while the broker is away: reading goes on behind the last message. A stream that was made
//! anew is read from its beginning; one that was only stamped anew (`core/position.rs`) is the same.

use std::collections::VecDeque;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::time::sleep;

use super::api::{Api, ApiError, code};
use super::pull::{Broken, From, Pull, Pulled};
use crate::bus::BusError;
use crate::bus::connection::{Connection, jitter};
use crate::core::time::Timestamp;

/// Messages that are taken at once.
const BATCH: usize = 1000;

/// Where following begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// With what is published from now on.
    Now,
    /// With the first message not before this instant.
    Since(Timestamp),
    /// So many messages before the end, or with the first.
    BeforeEnd(u64),
}

/// A message of the stream.
#[derive(Debug)]
pub struct Followed {
    /// When it was stored.
    pub timestamp: Timestamp,
    /// Its headers.
    pub headers: Option<HeaderMap>,
    /// Its bytes.
    pub payload: Bytes,
}

/// Follows one stream.
pub struct Follower {
    api: Api,
    stream: String,
    created: Timestamp,
    /// A message of the stream, by whose sequence and instant it is known again when the server stamps it anew.
    known: (u64, Timestamp),
    begin: From,
    last_sequence: u64,
    /// How many waited behind the last message.
    num_pending: Option<u64>,
    num_at_open: u64,
    pull: Option<Pull>,
    taken: VecDeque<Pulled>,
}

impl Follower {
    /// Looks where the stream begins and ends; `None` when there is no such stream.
    ///
    /// # Errors
    /// [`BusError::Unavailable`] when the broker does not answer, [`BusError::Configuration`] when our user may not
    /// read the stream.
    pub async fn open(
        connection: &Connection,
        stream: &str,
        place: Place,
    ) -> Result<Option<Self>, BusError> {
        if !connection.has_jetstream() {
            return Ok(None);
        }
        let api = Api::new(connection.clone());
        let failed = |error: ApiError| match error {
            ApiError::Forbidden(_) => BusError::Configuration(error.to_string()),
            ApiError::Refused { .. } | ApiError::NoAnswer(_) => BusError::Unavailable(format!(
                "failed to look at stream {stream}: {error}; try again"
            )),
        };
        let info = match api.stream(stream).await {
            Ok(info) => info,
            Err(ApiError::Refused {
                code: code::STREAM_NOT_FOUND | code::NOT_ENABLED | code::NOT_ENABLED_FOR_ACCOUNT,
                ..
            }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let last = info.state.last_seq;
        let begin = match place {
            Place::Now => From::Sequence(last + 1),
            Place::Since(instant) => From::Time(instant),
            Place::BeforeEnd(num) => From::Sequence(last.saturating_sub(num) + 1),
        };
        let pull = Pull::create(&api, stream, begin).await;
        Ok(Some(Self {
            pull: Some(pull.map_err(failed)?),
            api,
            stream: stream.to_owned(),
            created: info.created,
            known: (last, info.state.last_ts),
            begin,
            last_sequence: 0,
            num_pending: None,
            num_at_open: (last + 1).saturating_sub(info.state.first_seq),
            taken: VecDeque::new(),
        }))
    }

    /// How many messages the stream held when it was opened, counting those that were deleted.
    #[must_use]
    pub const fn num_at_open(&self) -> u64 {
        self.num_at_open
    }

    /// The next of the messages that are stored already; `None` once there are no more. Safe to cancel.
    pub async fn next_stored(&mut self) -> Option<Followed> {
        loop {
            if let Some(message) = self.next_taken() {
                return Some(message);
            }
            let was_empty = self.pull.as_ref().is_some_and(Pull::was_empty);
            if self.num_pending == Some(0) || (self.num_pending.is_none() && was_empty) {
                return None;
            }
            self.take().await;
        }
    }

    /// Waits for the next message, for ever. Safe to cancel.
    pub async fn next(&mut self) -> Followed {
        loop {
            if let Some(message) = self.next_taken() {
                return message;
            }
            self.take().await;
        }
    }

    fn next_taken(&mut self) -> Option<Followed> {
        let message = self.taken.pop_front()?;
        self.last_sequence = message.meta.sequence;
        self.known = (message.meta.sequence, message.meta.timestamp);
        self.num_pending = Some(message.meta.num_pending);
        Some(Followed {
            timestamp: message.meta.timestamp,
            headers: message.headers,
            payload: message.payload,
        })
    }

    /// Takes what has arrived; after a failure it waits for the broker, and begins behind the last message.
    async fn take(&mut self) {
        if self.try_take().await.is_err() {
            self.pull = None;
            sleep(Duration::from_secs(1).mul_f64(jitter(0.2, 0.5))).await;
            self.api.connection().connected().await;
        }
    }

    async fn try_take(&mut self) -> Result<(), Broken> {
        let pull = if let Some(pull) = &mut self.pull {
            pull
        } else {
            let created = self.create().await;
            let created = created.map_err(|error| Broken(error.to_string()))?;
            self.pull.insert(created)
        };
        let mut batch = Vec::new();
        let taken = pull.take(BATCH, &mut batch).await;
        self.taken.extend(batch);
        taken
    }

    async fn create(&mut self) -> Result<Pull, ApiError> {
        let info = self.api.stream(&self.stream).await?;
        let is_stamped = info.created != self.created;
        let is_other = info.state.last_seq < self.last_sequence
            || (is_stamped && !self.is_known_again().await?);
        self.created = info.created;
        if is_other {
            self.begin = From::Sequence(1);
            self.last_sequence = 0;
        }
        let from = match self.last_sequence {
            0 => self.begin,
            sequence => From::Sequence(sequence + 1),
        };
        Pull::create(&self.api, &self.stream, from).await
    }

    async fn is_known_again(&self) -> Result<bool, ApiError> {
        let (sequence, timestamp) = self.known;
        match self.api.message(&self.stream, sequence.max(1)).await {
            Ok(found) => Ok(found.is_some_and(|message| message.timestamp == timestamp)),
            // Better shown twice than not followed.
            Err(ApiError::Forbidden(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
