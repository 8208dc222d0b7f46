//! Requests to the broker about its streams, and the shapes of its answers.
//!
//! | answer | becomes |
//! |---|---|
//! | what was asked for | the value |
//! | an error that the broker names by number | [`ApiError::Refused`]: the caller decides what it means |
//! | that our user may not ask | [`ApiError::Forbidden`]: try again, somebody may grant it |
//! | none in time, none that would answer, not to be read | [`ApiError::NoAnswer`]: try again |
//!
//! The shapes are our own, so that a field that a server does not send, or that only a newer one knows, is
//! never a reason to fail; what was asked for is compared with what the server says it has (`streams`).

use std::time::Duration;

use async_nats::client::Request;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::bus::connection::{Connection, Violation};
use crate::core::ids::placement_hash;
use crate::core::time::Timestamp;

/// How long one answer is waited for.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Why a request gave nothing.
#[derive(Clone, Debug, Error)]
pub(super) enum ApiError {
    /// The broker refused it.
    #[error("{description} (error {code})")]
    Refused {
        /// The broker's number for it.
        code: u64,
        /// The broker's words.
        description: String,
    },
    /// Our user may not ask for it.
    #[error("{0}; grant it, as config/nats.conf does")]
    Forbidden(Violation),
    /// Nothing came, or nothing that can be read.
    #[error("{0}")]
    NoAnswer(String),
}

/// The error numbers that are decided on.
pub(super) mod code {
    pub(crate) const NOT_ENABLED_FOR_ACCOUNT: u64 = 10_039;
    pub(crate) const NOT_ENABLED: u64 = 10_076;
    pub(crate) const STREAM_NOT_FOUND: u64 = 10_059;
    pub(crate) const STREAM_NAME_IN_USE: u64 = 10_058;
    pub(crate) const SUBJECTS_OVERLAP: u64 = 10_065;
    pub(crate) const STORAGE_EXCEEDED: u64 = 10_047;
    pub(crate) const RESOURCES_EXCEEDED: u64 = 10_002;
    pub(crate) const INSUFFICIENT_RESOURCES: u64 = 10_023;
    pub(crate) const MESSAGE_TOO_LARGE: u64 = 10_054;
    pub(crate) const HEADERS_TOO_LARGE: u64 = 10_097;
    pub(crate) const MESSAGE_NOT_FOUND: u64 = 10_037;
    pub(crate) const WRONG_LAST_SEQUENCE: u64 = 10_071;
}

#[derive(Deserialize)]
struct Failure {
    error: FailureCause,
}

#[derive(Deserialize)]
struct FailureCause {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// What a stream is told to be, and what it says it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub(super) struct StreamConfig {
    pub(super) name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(super) subjects: Vec<String>,
    pub(super) retention: String,
    pub(super) discard: String,
    pub(super) storage: String,
    #[serde(with = "nanoseconds", default)]
    pub(super) max_age: Duration,
    #[serde(default)]
    pub(super) max_bytes: i64,
    #[serde(default)]
    pub(super) max_msgs: i64,
    #[serde(default)]
    pub(super) max_msgs_per_subject: i64,
    #[serde(default)]
    pub(super) max_msg_size: i64,
    #[serde(default)]
    pub(super) num_replicas: usize,
    #[serde(with = "nanoseconds", default)]
    pub(super) duplicate_window: Duration,
    #[serde(default)]
    pub(super) allow_direct: bool,
    #[serde(default)]
    pub(super) no_ack: bool,
    #[serde(default)]
    pub(super) sealed: bool,
    #[serde(default, skip_serializing)]
    pub(super) subject_transform: Option<Value>,
    #[serde(default, skip_serializing)]
    pub(super) mirror: Option<Value>,
}

/// What a stream holds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamState {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) first_seq: u64,
    pub(super) last_seq: u64,
    #[serde(default, deserialize_with = "instant_or_none")]
    pub(super) last_ts: Timestamp,
}

/// A stream.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    #[serde(deserialize_with = "instant")]
    pub(super) created: Timestamp,
    pub(super) state: StreamState,
    /// The broker's clock; servers before 2.10 do not send it.
    #[serde(default, rename = "ts", deserialize_with = "some_instant")]
    pub(super) now: Option<Timestamp>,
}

/// What an account may store.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Limits {
    #[serde(default)]
    pub(super) max_storage: i64,
}

/// What an account may store in so many copies, and what its streams were promised.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Tier {
    #[serde(default)]
    pub(super) reserved_storage: u64,
    #[serde(default)]
    pub(super) limits: Limits,
}

/// The account.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Account {
    #[serde(flatten)]
    pub(super) all: Tier,
    #[serde(default)]
    pub(super) tiers: std::collections::HashMap<String, Tier>,
}

/// A stored message, looked at by itself: its headers are bytes, because not every publisher's can be read.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Stored {
    pub(super) subject: String,
    #[serde(rename = "seq")]
    pub(super) sequence: u64,
    #[serde(rename = "time", deserialize_with = "instant")]
    pub(super) timestamp: Timestamp,
    #[serde(rename = "hdrs", default, deserialize_with = "bytes_of_base64")]
    pub(super) headers: Bytes,
    #[serde(rename = "data", default, deserialize_with = "bytes_of_base64")]
    pub(super) payload: Bytes,
}

#[derive(Deserialize)]
struct Found {
    message: Stored,
}

impl Stored {
    pub(super) fn fingerprint(&self) -> u64 {
        placement_hash(&self.payload)
    }
}

/// The broker's interface for its streams, over one connection.
#[derive(Clone, Debug)]
pub(super) struct Api {
    connection: Connection,
}

impl Api {
    pub(super) const fn new(connection: Connection) -> Self {
        Self { connection }
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Asks, and reads the answer.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).map_err(no_answer)?;
        let request = Request::new()
            .payload(body.into())
            .timeout(Some(ANSWER_WITHIN));
        let subject = format!("$JS.API.{what}");
        let mut violations = self.connection.violations();
        let client = self.connection.client();
        let answer = tokio::select! {
            answer = client.send_request(subject.clone(), request) => answer,
            refused = refusal(&mut violations, subject) => return Err(ApiError::Forbidden(refused)),
        };
        let answer = answer.map_err(|error| no_answer(format!("{what}: {error}")))?;
        if let Ok(Failure { error }) = serde_json::from_slice(&answer.payload) {
            // A request that is not understood has no number of its own.
            let code = if error.err_code == 0 {
                error.code
            } else {
                error.err_code
            };
            return Err(ApiError::Refused {
                code,
                description: error.description,
            });
        }
        serde_json::from_slice(&answer.payload)
            .map_err(|error| no_answer(format!("{what}: {error}")))
    }

    pub(super) async fn account(&self) -> Result<Account, ApiError> {
        self.call("INFO", &()).await
    }

    pub(super) async fn stream(&self, name: &str) -> Result<StreamInfo, ApiError> {
        self.call(&format!("STREAM.INFO.{name}"), &()).await
    }

    pub(super) async fn create(&self, config: &StreamConfig) -> Result<StreamInfo, ApiError> {
        self.call(&format!("STREAM.CREATE.{}", config.name), config)
            .await
    }

    pub(super) async fn update(&self, config: &StreamConfig) -> Result<StreamInfo, ApiError> {
        self.call(&format!("STREAM.UPDATE.{}", config.name), config)
            .await
    }

    /// The message of that sequence; `None` when the stream holds none.
    pub(super) async fn message(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Option<Stored>, ApiError> {
        self.stored(stream, &json!({"seq": sequence})).await
    }

    /// The first message from that sequence on; `None` when the stream holds none.
    pub(super) async fn message_from(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Option<Stored>, ApiError> {
        let body = json!({"seq": sequence, "next_by_subj": ">"});
        self.stored(stream, &body).await
    }

    /// The last message of that subject; `None` when the stream holds none.
    pub(super) async fn last_message(
        &self,
        stream: &str,
        subject: &str,
    ) -> Result<Option<Stored>, ApiError> {
        self.stored(stream, &json!({"last_by_subj": subject})).await
    }

    async fn stored(&self, stream: &str, body: &Value) -> Result<Option<Stored>, ApiError> {
        let found: Result<Found, _> = self.call(&format!("STREAM.MSG.GET.{stream}"), body).await;
        match found {
            Ok(found) => Ok(Some(found.message)),
            Err(ApiError::Refused {
                code: code::MESSAGE_NOT_FOUND,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Resolves when we are told that we may not publish to the subject; a refusal that is missed is an answer that
/// does not come.
async fn refusal(violations: &mut broadcast::Receiver<Violation>, subject: String) -> Violation {
    let ours = Violation::Publish(subject);
    loop {
        match violations.recv().await {
            Ok(violation) if violation == ours => return ours,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "what it is mapped over is handed over"
)]
pub(super) fn no_answer(error: impl ToString) -> ApiError {
    ApiError::NoAnswer(error.to_string())
}

/// Reads an instant, which must be one.
fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    let error = |error| D::Error::custom(format!("{text:?}: {error}"));
    Timestamp::parse(&text).map_err(error)
}

/// Reads an instant; the zero instant of an empty stream is 1970.
fn instant_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(Timestamp::parse(&text).unwrap_or_default())
}

fn some_instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| Timestamp::parse(&text).ok()))
}

fn bytes_of_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    let bytes = BASE64_STANDARD.decode(text);
    bytes.map(Bytes::from).map_err(D::Error::custom)
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

mod nanoseconds {
    use super::{Deserialize, Deserializer, Duration};

    pub(super) fn serialize<S: serde::Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let nanos = i64::deserialize(deserializer)?;
        Ok(Duration::from_nanos(
            u64::try_from(nanos).unwrap_or_default(),
        ))
    }
}
