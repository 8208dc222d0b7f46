//! Reads what comes in: one JSON object, strictly, or a [`Reject`] that names what was found.
//!
//! The whole payload is checked to be UTF-8 first. Values of known fields are kept as slices of it and judged
//! only at the end, so that a repeated field takes its last value whatever stood before; values are skipped
//! without recursion, so depth costs no stack. A message of UUIDs is read without an allocation, and an object of
//! plain strings, as every publisher of ours sends it, at a glance (`plain`).

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use thiserror::Error;

use super::{CHANGE, REQUEST, plain};
use crate::core::ids::{Id, MAX_ID_BYTES, UserId};
use crate::core::outbox::DeadLetter;
use crate::core::time::{TimeError, Timestamp};
use crate::domains::Command;
use crate::domains::alarms::{AlarmId, Digest, DigestEntry, Status};

/// How much of a value that was found is shown, in characters.
const MAX_SHOWN: usize = 64;

/// Bounds that the configuration sets.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How far a change may lie ahead of its message's timestamp.
    pub max_future: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_future: Duration::from_hours(24),
        }
    }
}

/// Why a message is refused. [`Reject::code`] is stable; the text says what was found, and is bounded.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Reject {
    /// The payload is not UTF-8.
    #[error("not UTF-8 from byte {valid_up_to} on")]
    BadUtf8 {
        /// How many bytes are.
        valid_up_to: usize,
    },
    /// The payload is not exactly one JSON value.
    #[error("not JSON: {0}")]
    BadJson(String),
    /// The payload is JSON, but not an object.
    #[error("{found} instead of an object")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field is not there.
    #[error("{field} is missing")]
    MissingField {
        /// Which field.
        field: &'static str,
    },
    /// A field is not a string.
    #[error("{field} is {found} instead of a string")]
    WrongType {
        /// Which field.
        field: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field is the empty string.
    #[error("{field} is empty")]
    EmptyField {
        /// Which field.
        field: &'static str,
    },
    /// An id is too long.
    #[error("{field} has {num_bytes} bytes, more than {MAX_ID_BYTES}")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// How many bytes it has.
        num_bytes: usize,
    },
    /// A status that does not exist, in exactly this case.
    #[error("Status is {found:?} instead of CLEARED, WARNING or CRITICAL")]
    UnknownStatus {
        /// The beginning of what was found.
        found: String,
    },
    /// A time that is not RFC 3339.
    #[error("{field} is {found:?}, not an RFC 3339 date-time with at most nine fractional digits")]
    BadTime {
        /// Which field.
        field: &'static str,
        /// The beginning of what was found.
        found: String,
    },
    /// A time before 1970.
    #[error("{field} is {found:?}, before 1970")]
    Before1970 {
        /// Which field.
        field: &'static str,
        /// The beginning of what was found.
        found: String,
    },
    /// A time too far ahead of the message's timestamp.
    #[error("{field} is {found}, {} s ahead of the message's arrival", ahead.as_secs())]
    InFuture {
        /// Which field.
        field: &'static str,
        /// The instant.
        found: Timestamp,
        /// How far ahead it lies.
        ahead: Duration,
    },
    /// A subject that says nothing to us.
    #[error("nothing is expected on {found:?}")]
    UnknownSubject {
        /// The beginning of the subject.
        found: String,
    },
    /// The message could not be processed, by a fault of ours.
    #[error("{0}")]
    Internal(String),
}

impl Reject {
    /// The stable code: part of the interface.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadUtf8 { .. } => "bad_utf8",
            Self::BadJson(_) => "bad_json",
            Self::NotAnObject { .. } => "not_an_object",
            Self::MissingField { .. } => "missing_field",
            Self::WrongType { .. } => "wrong_type",
            Self::EmptyField { .. } => "empty_field",
            Self::TooLong { .. } => "too_long",
            Self::UnknownStatus { .. } => "unknown_status",
            Self::BadTime { .. } => "bad_time",
            Self::Before1970 { .. } => "before_1970",
            Self::InFuture { .. } => "in_future",
            Self::UnknownSubject { .. } => "unknown_subject",
            Self::Internal(_) => "internal",
        }
    }

    /// Every code there is.
    pub const CODES: [&'static str; 13] = [
        "bad_utf8",
        "bad_json",
        "not_an_object",
        "missing_field",
        "wrong_type",
        "empty_field",
        "too_long",
        "unknown_status",
        "bad_time",
        "before_1970",
        "in_future",
        "unknown_subject",
        "internal",
    ];

    /// The dead letter of the message that was refused. It may be owed for long: it has its bytes, and no slice
    /// of a buffer that holds others.
    #[must_use]
    pub fn into_dead_letter(self, subject: &str, payload: &[u8]) -> DeadLetter {
        DeadLetter {
            reason: Cow::Borrowed(self.code()),
            detail: self.to_string(),
            subject: subject.to_owned(),
            payload: Bytes::copy_from_slice(payload),
        }
    }
}

/// Reads a message; `at` is its broker's timestamp.
///
/// # Errors
/// [`Reject`] for whatever is not exactly a message of that subject.
pub fn decode(
    subject: &str,
    payload: &[u8],
    at: Timestamp,
    limits: &Limits,
) -> Result<Command, Reject> {
    let (base, token) = subject
        .split_once('.')
        .map_or((subject, None), |(base, token)| (base, Some(token)));
    let is_numbered_well = token.is_none_or(|token| !token.is_empty() && !token.contains('.'));
    let is_change = base == CHANGE;
    if !is_numbered_well || !(is_change || base == REQUEST) {
        let found = clip(subject);
        return Err(Reject::UnknownSubject { found });
    }
    let fields = read_object(payload)?;
    let user = UserId(id("UserID", fields.user)?);
    if !is_change {
        return Ok(Command::SendDigest { user });
    }
    let alarm = AlarmId(id("AlarmID", fields.alarm)?);
    let status = status(fields.status)?;
    let changed_at = time("ChangedAt", fields.changed_at)?;
    if changed_at > at.plus(limits.max_future) {
        return Err(Reject::InFuture {
            field: "ChangedAt",
            found: changed_at,
            ahead: changed_at.since(at),
        });
    }
    Ok(Command::StatusChanged {
        user,
        alarm,
        status,
        changed_at,
    })
}

/// Reads a digest, as `AlarmDigest` carries it.
///
/// # Errors
/// [`Reject`] for whatever is none.
pub fn decode_digest(payload: &[u8]) -> Result<Digest, Reject> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct DigestShape<'a> {
        #[serde(rename = "UserID", borrow)]
        user: Option<&'a RawValue>,
        #[serde(borrow)]
        active_alarms: Vec<EntryShape<'a>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct EntryShape<'a> {
        #[serde(rename = "AlarmID", borrow)]
        alarm: Option<&'a RawValue>,
        #[serde(borrow)]
        status: Option<&'a RawValue>,
        #[serde(borrow)]
        latest_changed_at: Option<&'a RawValue>,
    }

    let read: DigestShape<'_> = serde_json::from_str(utf8(payload)?).map_err(bad_json)?;
    let entry = |entry: EntryShape<'_>| {
        Ok(DigestEntry {
            alarm: AlarmId(id("AlarmID", entry.alarm.map(RawValue::get))?),
            status: status(entry.status.map(RawValue::get))?,
            changed_at: time(
                "LatestChangedAt",
                entry.latest_changed_at.map(RawValue::get),
            )?,
        })
    };
    Ok(Digest {
        user: UserId(id("UserID", read.user.map(RawValue::get))?),
        alarms: read
            .active_alarms
            .into_iter()
            .map(entry)
            .collect::<Result<_, Reject>>()?,
    })
}

/// Reads the answer to a message: `None` when it is none of ours, else that it was taken or why it was refused.
#[must_use]
pub fn decode_reply(payload: &[u8]) -> Option<Result<(), String>> {
    #[derive(Deserialize)]
    struct Reply {
        ok: bool,
        #[serde(default)]
        reason: String,
    }
    let reply: Reply = serde_json::from_slice(payload).ok()?;
    Some(if reply.ok { Ok(()) } else { Err(reply.reason) })
}

/// The last value of each known field, as it stands in the payload.
#[derive(Debug, Default, PartialEq)]
struct Fields<'a> {
    user: Option<&'a str>,
    alarm: Option<&'a str>,
    status: Option<&'a str>,
    changed_at: Option<&'a str>,
}

impl<'a> Fields<'a> {
    /// Where the value of a key belongs; `None` when nobody asks for it.
    const fn slot(&mut self, key: &Key) -> Option<&mut Option<&'a str>> {
        match key {
            Key::User => Some(&mut self.user),
            Key::Alarm => Some(&mut self.alarm),
            Key::Status => Some(&mut self.status),
            Key::ChangedAt => Some(&mut self.changed_at),
            Key::Unknown => None,
        }
    }
}

fn read_object(payload: &[u8]) -> Result<Fields<'_>, Reject> {
    let text = utf8(payload)?;
    read_plain(text).map_or_else(|| read_strictly(text), Ok)
}

/// Reads an object of plain strings; `None` for everything else, right or wrong.
fn read_plain(text: &str) -> Option<Fields<'_>> {
    let mut fields = Fields::default();
    plain::members(text, |name, value| {
        if let Some(slot) = fields.slot(&Key::of(name)) {
            *slot = Some(value);
        }
    })
    .then_some(fields)
}

fn read_strictly(text: &str) -> Result<Fields<'_>, Reject> {
    let value = text.trim_start_matches([' ', '\t', '\n', '\r']);
    if !value.starts_with('{') {
        // Junk is junk; only what is JSON deserves to be called something else than an object.
        serde_json::from_str::<IgnoredAny>(text).map_err(bad_json)?;
        return Err(Reject::NotAnObject { found: kind(value) });
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let fields = json.deserialize_map(ObjectVisitor).map_err(bad_json)?;
    json.end().map_err(bad_json)?;
    Ok(fields)
}

fn utf8(payload: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(payload).map_err(|error| Reject::BadUtf8 {
        valid_up_to: error.valid_up_to(),
    })
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "it is used as `map_err(bad_json)`"
)]
fn bad_json(error: serde_json::Error) -> Reject {
    Reject::BadJson(clip(&error.to_string()))
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match fields.slot(&key) {
                Some(slot) => *slot = Some(map.next_value::<&RawValue>()?.get()),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

enum Key {
    User,
    Alarm,
    Status,
    ChangedAt,
    Unknown,
}

impl Key {
    fn of(name: &str) -> Self {
        match name {
            "UserID" => Self::User,
            "AlarmID" => Self::Alarm,
            "Status" => Self::Status,
            "ChangedAt" => Self::ChangedAt,
            _ if name.eq_ignore_ascii_case("UserID") => Self::User,
            _ if name.eq_ignore_ascii_case("AlarmID") => Self::Alarm,
            _ if name.eq_ignore_ascii_case("Status") => Self::Status,
            _ if name.eq_ignore_ascii_case("ChangedAt") => Self::ChangedAt,
            _ => Self::Unknown,
        }
    }
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key, E> {
        Ok(Key::of(name))
    }
}

fn id(field: &'static str, value: Option<&str>) -> Result<Id, Reject> {
    let text = text(field, value)?;
    Id::new(&text).ok_or(Reject::TooLong {
        field,
        num_bytes: text.len(),
    })
}

fn status(value: Option<&str>) -> Result<Status, Reject> {
    let name = text("Status", value)?;
    Status::parse(&name).ok_or_else(|| Reject::UnknownStatus { found: clip(&name) })
}

fn time(field: &'static str, value: Option<&str>) -> Result<Timestamp, Reject> {
    let text = text(field, value)?;
    Timestamp::parse(&text).map_err(|error| {
        let found = clip(&text);
        match error {
            TimeError::Malformed => Reject::BadTime { field, found },
            TimeError::Before1970 => Reject::Before1970 { field, found },
        }
    })
}

/// The text of a field: there, a string, and not empty.
fn text<'a>(field: &'static str, value: Option<&'a str>) -> Result<Cow<'a, str>, Reject> {
    let raw = value.ok_or(Reject::MissingField { field })?;
    let Some(quoted) = raw.strip_prefix('"') else {
        let found = kind(raw);
        return Err(Reject::WrongType { field, found });
    };
    let text = if quoted.as_bytes().contains(&b'\\') {
        Cow::Owned(serde_json::from_str(raw).map_err(bad_json)?)
    } else {
        let inner = quoted.strip_suffix('"');
        Cow::Borrowed(inner.ok_or_else(|| bad_json(serde_json::Error::custom("open string")))?)
    };
    if text.is_empty() {
        return Err(Reject::EmptyField { field });
    }
    Ok(text)
}

/// What a JSON value is, told by its first byte.
fn kind(value: &str) -> &'static str {
    match value.bytes().next() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'n') => "null",
        Some(b't' | b'f') => "a boolean",
        _ => "a number",
    }
}

/// The beginning of a text.
fn clip(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: Timestamp = Timestamp::from_seconds(1_800_000_000);

    fn read(subject: &str, payload: impl AsRef<[u8]>) -> Result<Command, Reject> {
        decode(subject, payload.as_ref(), AT, &Limits::default())
    }

    fn change(payload: impl AsRef<[u8]>) -> Result<Command, Reject> {
        read("AlarmStatusChanged", payload)
    }

    fn code(payload: impl AsRef<[u8]>) -> &'static str {
        let refused = change(payload).expect_err("a refusal");
        let detail = refused.to_string();
        assert!(
            !detail.is_empty() && detail.chars().count() < 256,
            "{detail}"
        );
        assert!(Reject::CODES.contains(&refused.code()), "{refused}");
        refused.code()
    }

    fn status_changed(user: &str, alarm: &str, status: Status, changed_at: &str) -> Command {
        Command::StatusChanged {
            user: UserId(Id::new(user).expect("an id")),
            alarm: AlarmId(Id::new(alarm).expect("an id")),
            status,
            changed_at: Timestamp::parse(changed_at).expect("a time"),
        }
    }

    /// A change whose fields are given as JSON.
    fn with(alarm: &str, user: &str, status: &str, changed_at: &str) -> String {
        format!(
            r#"{{"AlarmID":{alarm},"UserID":{user},"Status":{status},"ChangedAt":{changed_at}}}"#
        )
    }

    const GOOD: [&str; 4] = [
        r#""a""#,
        r#""u""#,
        r#""CRITICAL""#,
        r#""2026-01-02T03:04:05Z""#,
    ];

    fn good() -> Command {
        status_changed("u", "a", Status::Critical, "2026-01-02T03:04:05Z")
    }

    #[test]
    fn what_go_producers_send_is_read() {
        let [alarm, user, status, time] = GOOD;
        assert_eq!(change(with(alarm, user, status, time)), Ok(good()));
        for payload in [
            r#"{"alarmId":"a","userId":"u","status":"CRITICAL","changedAt":"2026-01-02T03:04:05Z"}"#,
            "\n\t {\"ALARMID\" : \"a\" ,\"userid\":\"u\",\r\n\"Status\":\"CRITICAL\",\"changedat\":\"2026-01-02T05:04:05+02:00\"} \n",
            r#"{"Extra":[{"deep":[null,1e999]}],"AlarmID":"a","UserID":"u","Status":"CRITICAL","ChangedAt":"2026-01-02T03:04:05.000Z","":{}}"#,
            r#"{"\u0041larmID":"\u0061","UserID":"u","Status":"CRITI\u0043AL","ChangedAt":"2026-01-02t03:04:05z"}"#,
        ] {
            assert_eq!(change(payload), Ok(good()), "{payload}");
        }
    }

    #[test]
    fn a_repeated_field_takes_its_last_value() {
        let [alarm, user, status, time] = GOOD;
        let last = with(alarm, user, status, time);
        let repeated = last.replacen('{', r#"{"USERID":null,"AlarmID":1e999,"status":"x","#, 1);
        assert_eq!(change(repeated), Ok(good()));
        let spoiled = last.replace('}', r#","userid":null}"#);
        assert_eq!(code(spoiled), "wrong_type");
    }

    #[test]
    fn ids_are_opaque() {
        let longest = "x".repeat(256);
        for text in [
            "1",
            "userID-1",
            "a.b",
            " ",
            "\u{1F514}",
            "\0",
            &longest,
            "0f8fad5b-d9cb-469f-a165-70867728950e",
        ] {
            let json = serde_json::to_string(text).expect("a text");
            let payload = with(&json, &json, GOOD[2], GOOD[3]);
            let expected = status_changed(text, text, Status::Critical, "2026-01-02T03:04:05Z");
            assert_eq!(change(payload), Ok(expected));
        }
    }

    #[test]
    fn every_kind_of_refusal_has_its_code() {
        let [alarm, user, status, time] = GOOD;
        let too_long = format!("\"{}\"", "é".repeat(129));
        let long_status = format!("\"{}\"", "x".repeat(1 << 20));
        for (expected, payload) in [
            ("bad_json", String::new()),
            ("bad_json", " ".to_owned()),
            ("bad_json", "{".to_owned()),
            ("bad_json", "hello".to_owned()),
            ("bad_json", "[1".to_owned()),
            ("bad_json", "{\"UserID\":\"u\",}".to_owned()),
            (
                "bad_json",
                format!("{}{{}}", with(alarm, user, status, time)),
            ),
            (
                "bad_json",
                format!("\u{FEFF}{}", with(alarm, user, status, time)),
            ),
            ("bad_json", with("\"\\ud800\"", user, status, time)),
            ("bad_json", with("\"a\nb\"", user, status, time)),
            ("bad_json", with("01", user, status, time)),
            ("not_an_object", "[]".to_owned()),
            ("not_an_object", " null".to_owned()),
            ("not_an_object", "\"{}\"".to_owned()),
            ("not_an_object", "7".to_owned()),
            ("missing_field", "{}".to_owned()),
            (
                "missing_field",
                r#"{"UserID":"u","AlarmID":"a","Status":"CRITICAL"}"#.to_owned(),
            ),
            ("wrong_type", with("null", user, status, time)),
            ("wrong_type", with(alarm, "7", status, time)),
            ("wrong_type", with(alarm, user, "[\"CRITICAL\"]", time)),
            ("wrong_type", with(alarm, user, status, "1767323045")),
            ("wrong_type", with(alarm, user, "true", time)),
            ("wrong_type", with(alarm, "{}", status, time)),
            ("empty_field", with("\"\"", user, status, time)),
            ("empty_field", with(alarm, user, "\"\"", time)),
            ("too_long", with(alarm, &too_long, status, time)),
            ("unknown_status", with(alarm, user, "\"critical\"", time)),
            ("unknown_status", with(alarm, user, &long_status, time)),
            (
                "bad_time",
                with(alarm, user, status, "\"2026-01-02 03:04:05Z\""),
            ),
            (
                "bad_time",
                with(alarm, user, status, "\"2026-01-02T03:04:60Z\""),
            ),
            (
                "before_1970",
                with(alarm, user, status, "\"1969-12-31T23:59:59Z\""),
            ),
            (
                "in_future",
                with(alarm, user, status, "\"9999-01-01T00:00:00Z\""),
            ),
        ] {
            assert_eq!(code(&payload), expected, "{payload:.80}");
        }
        assert_eq!(code(b"{\"UserID\":\"\xff\"}"), "bad_utf8");
        assert_eq!(code(b"{}\xc3"), "bad_utf8");
        assert_eq!(Reject::Internal(String::new()).code(), "internal");
    }

    #[test]
    fn a_change_may_lie_exactly_max_future_ahead() {
        let limit = AT.plus(Limits::default().max_future);
        let payload = |time: Timestamp| with(GOOD[0], GOOD[1], GOOD[2], &format!("\"{time}\""));
        assert!(change(payload(limit)).is_ok());
        let beyond = limit.plus(Duration::from_nanos(1));
        assert_eq!(code(payload(beyond)), "in_future");
    }

    #[test]
    fn numbered_twins_are_accepted_and_nothing_else() {
        let request = Ok(Command::SendDigest {
            user: UserId(Id::new("u").expect("an id")),
        });
        let payload = r#"{"UserID":"u","Status":7}"#;
        for subject in [
            "SendAlarmDigest",
            "SendAlarmDigest.1",
            "SendAlarmDigest.any-token",
        ] {
            assert_eq!(read(subject, payload), request, "{subject}");
        }
        for subject in [
            "",
            "SendAlarmDigest.",
            "SendAlarmDigest.1.2",
            "sendalarmdigest",
            "AlarmDigest",
            "SendAlarmDigests",
        ] {
            let refused = read(subject, payload).expect_err("a refusal");
            assert_eq!(refused.code(), "unknown_subject", "{subject}");
        }
    }

    #[test]
    fn depth_and_junk_cost_no_stack() {
        let deep = |num: usize| "[".repeat(num) + &"]".repeat(num);
        assert_eq!(code("[".repeat(5000)), "bad_json");
        assert_eq!(code("{\"a\":".repeat(5000)), "bad_json");
        assert_eq!(code(deep(500_000)), "not_an_object");
        assert_eq!(
            code(with(&deep(5000), GOOD[1], GOOD[2], GOOD[3])),
            "wrong_type"
        );
        assert_eq!(code(vec![b'x'; 1 << 20]), "bad_json");
        assert_eq!(code(vec![b'"'; 1 << 20]), "bad_json");
        assert_eq!(code(vec![0xff; 1 << 20]), "bad_utf8");
    }

    #[test]
    fn a_dead_letter_keeps_the_bytes() {
        let payload = b"\xff\0\r\n";
        let refused = change(payload).expect_err("a refusal");
        let letter = refused.into_dead_letter("AlarmStatusChanged", payload);
        assert_eq!(
            (letter.reason.as_ref(), letter.payload.as_ref()),
            ("bad_utf8", payload.as_slice())
        );
        assert_eq!(letter.detail, "not UTF-8 from byte 0 on");
    }

    #[test]
    fn what_publishers_send_is_read_at_a_glance() {
        let [alarm, user, status, time] = GOOD;
        let sent = with(alarm, user, status, time);
        for text in [
            sent.as_str(),
            &sent.replace(',', "\t,\r\n "),
            " { } ",
            "{\"UserID\":\"\u{7f}\u{1F514}\",\"Other\":\"\",\"UserID\":\"u\"}",
        ] {
            assert!(read_plain(text).is_some(), "{text}");
        }
        for text in [
            "",
            "{",
            "{\"UserID\":\"u\\n\"}",
            "{\"UserID\":\"\u{1f}\"}",
            "{\"UserID\":7}",
            "{\"UserID\":\"u\",}",
        ] {
            assert_eq!(read_plain(text), None, "{text}");
        }
    }

    /// Pieces of which right and wrong objects are made.
    fn piece() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec![
            "{",
            "}",
            ":",
            ",",
            " ",
            "\n",
            "\"",
            "\\",
            "\"UserID\"",
            "\"userid\"",
            "\"Status\"",
            "\"x\"",
            "\"\"",
            "\"UserID\":\"u\"",
            ",\"AlarmID\":\"a-long-name-of-an-alarm\"",
            ",\"ChangedAt\":\"t\"",
            "\"\\u0041\"",
            "\"\u{1f}\"",
            "\"\u{7f}é\"",
            "7",
            "null",
            "[]",
            "{}",
        ])
    }

    proptest! {
        #[test]
        fn a_glance_sees_what_the_strict_reader_reads(
            pieces in prop::collection::vec(piece(), 0..12),
            is_wrapped: bool,
        ) {
            let text = pieces.concat();
            let text = if is_wrapped { format!("{{{text}}}") } else { text };
            if let Some(fields) = read_plain(&text) {
                prop_assert_eq!(Ok(fields), read_strictly(&text), "{}", text);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(payload: Vec<u8>, subject in "\\PC{0,30}|SendAlarmDigest|AlarmStatusChanged") {
            prop_assert!(read(&subject, &payload).is_err());
            prop_assert!(decode_digest(&payload).is_err());
        }

        #[test]
        fn a_damaged_message_never_panics(at in 0_usize..90, byte: u8) {
            let mut payload = with(GOOD[0], GOOD[1], GOOD[2], GOOD[3]).into_bytes();
            let at = at % payload.len();
            payload[at] = byte;
            if let Err(refused) = change(&payload) {
                prop_assert!(refused.to_string().chars().count() < 256);
            }
        }
    }
}
