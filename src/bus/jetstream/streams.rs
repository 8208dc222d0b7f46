//! The streams: created when missing, and compared with what we rely on when present.
//!
//! | what differs | what follows |
//! |---|---|
//! | a field on which the no-loss protocol stands (subjects, retention, storage, age, duplicates …) | refused, naming stream, field, found, wanted and what to type |
//! | room, copies, the size of a message | said, and accepted: a digest that is too large goes in parts |
//!
//! What the server says it has is compared after a creation too: an older server silently drops what it does
//! not know. Nothing of an existing stream is ever changed here: it is the operator's.

use std::time::Duration;

use tracing::{info, warn};

use super::api::{Api, ApiError, StreamConfig, StreamInfo, code};
use crate::bus::BusError;

/// Below this, a stream is too small to be of use.
const MIN_BYTES: i64 = 16 << 20;

/// What a stream is for: it decides which differences matter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// It is read, in order, by us.
    Input,
    /// We publish to it, and look ids up in it.
    Output,
    /// It holds one message: who owns the input.
    Claim,
}

/// A stream as we want it.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) purpose: Purpose,
    pub(super) config: StreamConfig,
}

impl Wanted {
    pub(super) fn new(
        purpose: Purpose,
        name: &str,
        subjects: Vec<String>,
        replicas: usize,
    ) -> Self {
        let config = StreamConfig {
            name: name.to_owned(),
            subjects,
            retention: "limits".to_owned(),
            discard: "old".to_owned(),
            storage: "file".to_owned(),
            max_bytes: -1,
            max_msgs: -1,
            max_msgs_per_subject: if purpose == Purpose::Claim { 1 } else { -1 },
            max_msg_size: -1,
            num_replicas: replicas.max(1),
            ..StreamConfig::default()
        };
        Self { purpose, config }
    }
}

/// Creates the stream when it is missing, and compares it with what is wanted.
///
/// # Errors
/// [`BusError::Configuration`] when it is not what we rely on; [`BusError::Unavailable`] when the broker does
/// not say.
pub(super) async fn ensure(api: &Api, wanted: &Wanted) -> Result<StreamInfo, BusError> {
    let name = &wanted.config.name;
    let found = match api.stream(name).await {
        Err(ApiError::Refused {
            code: code::STREAM_NOT_FOUND,
            ..
        }) => create(api, wanted).await?,
        Err(error) => return Err(unavailable("look at", name, &error)),
        Ok(found) => found,
    };
    for field in differences(&wanted.config, &found.config, wanted.purpose) {
        if field.is_relied_on {
            return Err(BusError::Configuration(field.describe(name)));
        }
        info!(
            stream = name,
            field = field.name,
            found = field.found,
            wanted = field.wanted,
            "the stream differs from what is configured, and is used as it is"
        );
    }
    Ok(found)
}

/// The largest message with headers that the stream takes, in bytes.
pub(super) fn max_message_size(stream: &StreamInfo) -> usize {
    let limit = usize::try_from(stream.config.max_msg_size).unwrap_or_default();
    if limit == 0 { usize::MAX } else { limit }
}

async fn create(api: &Api, wanted: &Wanted) -> Result<StreamInfo, BusError> {
    let name = &wanted.config.name;
    let mut config = wanted.config.clone();
    clamp(api, &mut config).await?;
    let clamped = config.max_bytes;
    loop {
        let error = match api.create(&config).await {
            Ok(created) if config.max_bytes < clamped => {
                return leave_room(api, wanted, config, created).await;
            }
            Ok(created) => {
                info!(
                    stream = name,
                    max_bytes = config.max_bytes,
                    "stream created"
                );
                return Ok(created);
            }
            Err(error) => error,
        };
        let ApiError::Refused { code, .. } = &error else {
            return Err(unavailable("create", name, &error));
        };
        match *code {
            // The server's own store is smaller than what the account may have, and says not how small.
            code::STORAGE_EXCEEDED | code::RESOURCES_EXCEEDED | code::INSUFFICIENT_RESOURCES
                if config.max_bytes / 2 >= MIN_BYTES =>
            {
                config.max_bytes /= 2;
            }
            // Someone else was faster.
            code::STREAM_NAME_IN_USE => {
                let found = api.stream(name).await;
                return found.map_err(|error| unavailable("look at", name, &error));
            }
            code::SUBJECTS_OVERLAP => {
                return Err(BusError::Configuration(format!(
                    "failed to create stream {name} over {}: another stream has such a subject; see `nats stream ls --subject={}`, and edit or remove it",
                    config.subjects.join(", "),
                    config.subjects.first().map_or("", String::as_str),
                )));
            }
            _ => return Err(unavailable("create", name, &error)),
        }
    }
}

/// Halves a stream that took most of what was left, so that the next ones find room.
async fn leave_room(
    api: &Api,
    wanted: &Wanted,
    mut config: StreamConfig,
    created: StreamInfo,
) -> Result<StreamInfo, BusError> {
    let name = &config.name;
    let half = config.max_bytes / 2;
    if half < MIN_BYTES {
        return Ok(created);
    }
    warn!(
        stream = name,
        wanted = wanted.config.max_bytes,
        max_bytes = half,
        "the broker has no room for what is configured, the stream gets half of what fits"
    );
    config.max_bytes = half;
    let updated = api.update(&config).await;
    updated.map_err(|error| unavailable("halve", &config.name, &error))
}

/// Holds the stream at half of what the account may still store.
async fn clamp(api: &Api, config: &mut StreamConfig) -> Result<(), BusError> {
    let account = api.account().await;
    let account = account.map_err(|error| unavailable("ask for room for", &config.name, &error))?;
    let tier = account.tiers.get(&format!("R{}", config.num_replicas));
    let tier = tier.unwrap_or(&account.all);
    // Zero or less: no limit.
    let Some(allowed) = u64::try_from(tier.limits.max_storage)
        .ok()
        .filter(|&max| max > 0)
    else {
        return Ok(());
    };
    let half = allowed.saturating_sub(tier.reserved_storage) / 2;
    let half = i64::try_from(half).unwrap_or(i64::MAX).max(MIN_BYTES);
    if config.max_bytes > half {
        warn!(
            stream = config.name,
            wanted = config.max_bytes,
            max_bytes = half,
            "the account may store less than is configured, the stream gets half of what is left"
        );
        config.max_bytes = half;
    }
    Ok(())
}

fn unavailable(action: &str, name: &str, error: &ApiError) -> BusError {
    BusError::Unavailable(format!("failed to {action} stream {name}: {error}"))
}

/// A field, and what follows when it is not as wanted.
#[derive(Debug)]
struct Field {
    name: &'static str,
    found: String,
    wanted: String,
    is_relied_on: bool,
    /// How the command line tool edits it; `None` where the server lets nobody.
    flag: Option<String>,
}

impl Field {
    /// A field that we rely on.
    fn new(name: &'static str, found: String, wanted: String) -> Self {
        Self {
            name,
            found,
            wanted,
            is_relied_on: true,
            flag: None,
        }
    }

    fn flag(name: &'static str, found: bool) -> Self {
        Self::new(name, found.to_string(), false.to_string())
    }

    fn limit(name: &'static str, found: i64, wanted: i64) -> Self {
        let shown = |limit: i64| match limit {
            ..=0 => "unlimited".to_owned(),
            limit => limit.to_string(),
        };
        Self::new(name, shown(found), shown(wanted))
    }

    fn duration(name: &'static str, found: Duration, wanted: Duration) -> Self {
        Self::new(name, seconds(found), seconds(wanted))
    }

    fn relied_on_if(self, is_relied_on: bool) -> Self {
        Self {
            is_relied_on,
            ..self
        }
    }

    fn edited_by(self, flag: String) -> Self {
        Self {
            flag: Some(flag),
            ..self
        }
    }

    fn describe(&self, stream: &str) -> String {
        let remedy = self.flag.as_ref().map_or_else(
            || format!("keep what it holds with `nats stream backup {stream} DIR`, then type `nats stream rm {stream}`: it is created anew"),
            |flag| format!("type `nats stream edit {stream} {flag}`, or configure what it has"),
        );
        format!(
            "stream {stream} has {} {}, but {} is needed; {remedy}",
            self.name, self.found, self.wanted
        )
    }
}

/// Every field in which a stream differs from what is wanted.
fn differences(wanted: &StreamConfig, found: &StreamConfig, purpose: Purpose) -> Vec<Field> {
    let is_input = purpose == Purpose::Input;
    let is_output = purpose == Purpose::Output;
    let text =
        |name, found: &str, wanted: &str| Field::new(name, found.to_owned(), wanted.to_owned());
    let subjects = sorted(&wanted.subjects);
    let per_subject = wanted.max_msgs_per_subject;
    let window = (found.duplicate_window, wanted.duplicate_window);
    let mut fields = vec![
        text("subjects", &sorted(&found.subjects), &subjects)
            .edited_by(format!("--subjects={subjects}")),
        text("retention", &found.retention, &wanted.retention),
        text("storage", &found.storage, &wanted.storage),
        // New alarms must never be refused: who publishes without waiting is not told.
        text("discard", &found.discard, &wanted.discard)
            .relied_on_if(is_input)
            .edited_by(format!("--discard={}", wanted.discard)),
        Field::limit(
            "max_msgs_per_subject",
            found.max_msgs_per_subject,
            per_subject,
        )
        .edited_by(format!("--max-msgs-per-subject={per_subject}")),
        // An input that keeps longer outlives the tombstones; one that keeps less loses what is unread.
        Field::duration("max_age", found.max_age, wanted.max_age)
            .relied_on_if(is_input || (is_output && is_shorter(found.max_age, wanted.max_age)))
            .edited_by(format!("--max-age={}s", wanted.max_age.as_secs())),
        Field::flag("no_ack", found.no_ack).edited_by("--ack".to_owned()),
        Field::flag("sealed", found.sealed),
        Field::flag("subject_transform", found.subject_transform.is_some()),
        Field::flag("mirror", found.mirror.is_some()),
        Field::limit("max_bytes", found.max_bytes, wanted.max_bytes).relied_on_if(false),
        Field::limit("max_msgs", found.max_msgs, wanted.max_msgs).relied_on_if(false),
        Field::limit("max_msg_size", found.max_msg_size, wanted.max_msg_size).relied_on_if(false),
        text(
            "num_replicas",
            &found.num_replicas.to_string(),
            &wanted.num_replicas.to_string(),
        )
        .relied_on_if(false),
    ];
    if is_output {
        let flag = format!("--dupe-window={}s", window.1.as_secs());
        fields.push(
            Field::duration("duplicate_window", window.0, window.1)
                .relied_on_if(window.0 < window.1)
                .edited_by(flag),
        );
    }
    fields.retain(|field| field.found != field.wanted);
    fields
}

fn sorted(subjects: &[String]) -> String {
    let mut subjects = subjects.to_vec();
    subjects.sort_unstable();
    subjects.join(",")
}

fn seconds(duration: Duration) -> String {
    if duration.is_zero() {
        "unlimited".to_owned()
    } else {
        format!("{}s", duration.as_secs_f64())
    }
}

/// Whether an age limit is shorter than another; zero is none.
fn is_shorter(found: Duration, wanted: Duration) -> bool {
    !found.is_zero() && (wanted.is_zero() || found < wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(purpose: Purpose) -> StreamConfig {
        let mut wanted =
            Wanted::new(purpose, "S", vec!["a".to_owned(), "a.*".to_owned()], 1).config;
        wanted.max_age = Duration::from_secs(100);
        wanted.duplicate_window = Duration::from_secs(10);
        wanted
    }

    /// The fields that differ after a change, those that are relied on first.
    fn seen(
        purpose: Purpose,
        change: impl Fn(&mut StreamConfig),
    ) -> (Vec<&'static str>, Vec<&'static str>) {
        let mut found = wanted(purpose);
        change(&mut found);
        let differences = differences(&wanted(purpose), &found, purpose);
        let names = |is_relied_on| {
            let fields = differences
                .iter()
                .filter(|field| field.is_relied_on == is_relied_on);
            fields.map(|field| field.name).collect()
        };
        (names(true), names(false))
    }

    #[test]
    fn what_the_protocol_stands_on_must_be_so() {
        type Change = fn(&mut StreamConfig);
        let changes: [(&str, Change); 9] = [
            ("subjects", |found| found.subjects.push("b".to_owned())),
            ("retention", |found| {
                found.retention = "workqueue".to_owned();
            }),
            ("storage", |found| found.storage = "memory".to_owned()),
            ("discard", |found| found.discard = "new".to_owned()),
            ("max_msgs_per_subject", |found| {
                found.max_msgs_per_subject = 1;
            }),
            ("max_age", |found| found.max_age = Duration::from_secs(99)),
            ("no_ack", |found| found.no_ack = true),
            ("sealed", |found| found.sealed = true),
            ("mirror", |found| {
                found.mirror = Some(serde_json::Value::Null);
            }),
        ];
        for (field, change) in changes {
            assert_eq!(seen(Purpose::Input, change), (vec![field], vec![]));
        }
    }

    #[test]
    fn room_and_copies_are_the_operators_choice() {
        let roomier = |found: &mut StreamConfig| {
            found.max_bytes = 7;
            found.num_replicas = 3;
        };
        let expected = (vec![], vec!["max_bytes", "num_replicas"]);
        assert_eq!(seen(Purpose::Input, roomier), expected);
    }

    #[test]
    fn an_output_may_remember_longer_and_never_shorter() {
        let longer = |found: &mut StreamConfig| {
            found.duplicate_window = Duration::from_secs(11);
            found.max_age = Duration::ZERO;
        };
        let expected = (vec![], vec!["max_age", "duplicate_window"]);
        assert_eq!(seen(Purpose::Output, longer), expected);
        let shorter = |found: &mut StreamConfig| {
            found.duplicate_window = Duration::from_secs(9);
            found.max_age = Duration::from_secs(99);
        };
        let expected = (vec!["max_age", "duplicate_window"], vec![]);
        assert_eq!(seen(Purpose::Output, shorter), expected);
    }

    #[test]
    fn a_difference_says_what_to_type() {
        let mut found = wanted(Purpose::Input);
        found.max_age = Duration::from_secs(7);
        found.storage = "memory".to_owned();
        let said: Vec<_> = differences(&wanted(Purpose::Input), &found, Purpose::Input)
            .iter()
            .map(|field| field.describe("S"))
            .collect();
        assert_eq!(
            said,
            [
                "stream S has storage memory, but file is needed; keep what it holds with `nats stream backup S DIR`, then type `nats stream rm S`: it is created anew",
                "stream S has max_age 7s, but 100s is needed; type `nats stream edit S --max-age=100s`, or configure what it has",
            ]
        );
    }
}
