//! Writes what goes out, in exactly the bytes that others compare, and splits what the broker would not take.
//!
//! A message's size is its payload **and** its header block; a server that gets more than `max_payload` closes
//! the connection. What a part is called is in `core/parts.rs`.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use thiserror::Error;

use super::{
    CHANGE, DEAD_LETTER, DETAIL_HEADER, DIGEST, MESSAGE_ID_HEADER, PART_HEADER, REASON_HEADER,
    REQUEST, SUBJECT_HEADER,
};
use crate::bus::Outbound;
use crate::core::ids::{Id, MessageId};
use crate::core::outbox::DeadLetter;
use crate::core::parts::{Stored, part_id};
use crate::core::time::Timestamp;
use crate::domains::Command;
use crate::domains::alarms::{Digest, DigestEntry};

/// How much of a text from outside is put into a header, in bytes.
const MAX_HEADER_TEXT: usize = 256;

/// Not even the smallest part of a message is taken by the broker.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "a message needs {needed} bytes with its headers, the broker takes {max_payload}; raise its max_payload"
)]
pub struct TooLarge {
    /// How much the smallest part needs.
    pub needed: usize,
    /// What the broker takes.
    pub max_payload: usize,
}

/// The size of a message as `max_payload` counts it: payload and header block.
#[must_use]
pub fn message_bytes(message: &Outbound) -> usize {
    let headers = message.headers.iter();
    message.payload.len()
        + header_block_bytes(
            message.id.len(),
            headers.map(|(name, value)| (*name, value.len())),
        )
}

fn header_block_bytes<'a>(
    id_bytes: usize,
    headers: impl Iterator<Item = (&'a str, usize)>,
) -> usize {
    let line =
        |name: &str, value_bytes: usize| name.len() + ": ".len() + value_bytes + "\r\n".len();
    "NATS/1.0\r\n".len()
        + line(MESSAGE_ID_HEADER, id_bytes)
        + headers
            .map(|(name, bytes)| line(name, bytes))
            .sum::<usize>()
        + "\r\n".len()
}

/// The messages that carry what is not stored of a digest, in order: one, or as many as `max_payload` asks for; none
/// where all of it is stored.
///
/// # Errors
/// [`TooLarge`] when a single alarm does not fit.
pub fn split_digest(
    id: &MessageId,
    digest: &Digest,
    stored: &Stored,
    max_payload: usize,
) -> Result<Vec<Outbound>, TooLarge> {
    if stored.is_all_of(digest.alarms.len()) {
        return Ok(Vec::new());
    }
    let Whole {
        bytes: whole,
        head_bytes,
        ends,
    } = whole_digest(digest);
    let id = id.to_string();
    if stored.end == 0
        && whole.len() + header_block_bytes(id.len(), std::iter::empty()) <= max_payload
    {
        return Ok(vec![Outbound {
            subject: DIGEST,
            id,
            headers: Vec::new(),
            payload: whole.into(),
        }]);
    }
    let overhead = head_bytes + DIGEST_TAIL.len() + part_overhead(&id, ends.len(), &[]);
    let first = stored.end;
    let start = match first.checked_sub(1).and_then(|last| ends.get(last)) {
        Some(end) => end + ",".len(),
        None => head_bytes,
    };
    let left = ends.get(first..).unwrap_or_default();
    let ranges =
        pack(start, left, max_payload.checked_sub(overhead)).map_err(|bytes| TooLarge {
            needed: overhead + bytes,
            max_payload,
        })?;
    let head = whole.get(..head_bytes).unwrap_or_default();
    let num_parts = stored.num_parts + ranges.len();
    let parts = ranges.into_iter().zip(stored.num_parts + 1..);
    let parts = parts.map(|((entries, bytes), part)| {
        let body = whole.get(bytes).unwrap_or_default();
        Outbound {
            subject: DIGEST,
            id: part_id(&id, &(first + entries.start..first + entries.end)),
            headers: vec![(PART_HEADER, format!("{part}/{num_parts}"))],
            payload: [head, body, DIGEST_TAIL].concat().into(),
        }
    });
    Ok(parts.collect())
}

/// The bytes of a digest that is not split.
#[must_use]
pub fn encode_digest(digest: &Digest) -> Bytes {
    whole_digest(digest).bytes.into()
}

/// A digest's bytes: entry `i` ends at `ends[i]`, the first begins at `head_bytes`.
struct Whole {
    bytes: Vec<u8>,
    head_bytes: usize,
    ends: Vec<usize>,
}

fn whole_digest(digest: &Digest) -> Whole {
    let mut bytes = Vec::with_capacity(64 + digest.alarms.len() * 128);
    bytes.extend_from_slice(b"{\"UserID\":");
    put_id(&mut bytes, &digest.user.0);
    bytes.extend_from_slice(b",\"ActiveAlarms\":[");
    let head_bytes = bytes.len();
    let mut ends = Vec::with_capacity(digest.alarms.len());
    for entry in &digest.alarms {
        if !ends.is_empty() {
            bytes.push(b',');
        }
        put_entry(&mut bytes, entry);
        ends.push(bytes.len());
    }
    bytes.extend_from_slice(DIGEST_TAIL);
    Whole {
        bytes,
        head_bytes,
        ends,
    }
}

const DIGEST_TAIL: &[u8] = b"]}";

/// Ranges of entries, and of the bytes that hold them without the comma before them; or the size of an entry
/// that exceeds the room. Entry `i` ends at `ends[i]`; the first begins at `start`.
type Packed = Vec<(Range<usize>, Range<usize>)>;

fn pack(start: usize, ends: &[usize], room: Option<usize>) -> Result<Packed, usize> {
    let mut parts: Packed = Vec::new();
    let mut begin = start;
    for (i, &end) in ends.iter().enumerate() {
        let room = room.unwrap_or(0);
        match parts.last_mut() {
            Some((entries, bytes)) if end - bytes.start <= room => {
                entries.end = i + 1;
                bytes.end = end;
            }
            Some(_) | None if end - begin > room => return Err(end - begin),
            Some(_) | None => parts.push((i..i + 1, begin..end)),
        }
        begin = end + ",".len();
    }
    if parts.is_empty() { Err(0) } else { Ok(parts) }
}

/// At least what the headers of any part take: no number in them has more digits than the count.
fn part_overhead(id: &str, num_entries: usize, headers: &[(&'static str, String)]) -> usize {
    let digits = num_entries.to_string().len();
    let id_bytes = id.len() + ".".len() + digits + "-".len() + digits;
    let part = (PART_HEADER, digits + "/".len() + digits);
    let headers = headers.iter().map(|(name, value)| (*name, value.len()));
    header_block_bytes(id_bytes, headers.chain([part]))
}

/// The messages that carry what is not stored of a refused message's bytes, unchanged and in order.
///
/// # Errors
/// [`TooLarge`] when not even the headers fit.
pub fn split_dead_letter(
    id: &MessageId,
    letter: &DeadLetter,
    stored: &Stored,
    max_payload: usize,
) -> Result<Vec<Outbound>, TooLarge> {
    if stored.is_all_of(letter.payload.len()) {
        return Ok(Vec::new());
    }
    let id = id.to_string();
    let headers = vec![
        (REASON_HEADER, header_text(&letter.reason)),
        (SUBJECT_HEADER, header_text(&letter.subject)),
        (DETAIL_HEADER, header_text(&letter.detail)),
    ];
    let whole = Outbound {
        subject: DEAD_LETTER,
        id: id.clone(),
        headers: headers.clone(),
        payload: letter.payload.clone(),
    };
    if stored.end == 0 && message_bytes(&whole) <= max_payload {
        return Ok(vec![whole]);
    }
    let num_bytes = letter.payload.len();
    let overhead = part_overhead(&id, num_bytes, &headers);
    let room = max_payload.saturating_sub(overhead);
    if room == 0 || num_bytes == 0 {
        return Err(TooLarge {
            needed: overhead + 1,
            max_payload,
        });
    }
    let firsts = (stored.end..num_bytes).step_by(room);
    let num_parts = stored.num_parts + firsts.len();
    let parts = firsts.zip(stored.num_parts + 1..).map(|(first, part)| {
        let range = first..num_bytes.min(first + room);
        let mut headers = headers.clone();
        headers.push((PART_HEADER, format!("{part}/{num_parts}")));
        Outbound {
            subject: DEAD_LETTER,
            id: part_id(&id, &range),
            headers,
            payload: letter.payload.slice(range),
        }
    });
    Ok(parts.collect())
}

/// A text that a header can hold on one line: bounded, and without control characters.
fn header_text(text: &str) -> String {
    let mut clean = String::new();
    for char in text.chars() {
        if clean.len() + char.len_utf8() > MAX_HEADER_TEXT {
            break;
        }
        clean.push(if char.is_control() { ' ' } else { char });
    }
    clean.trim().to_owned()
}

/// The subject and payload of a command, as a publisher sends it.
#[must_use]
pub fn encode_command(command: &Command) -> (&'static str, Bytes) {
    let mut out = Vec::with_capacity(192);
    let subject = match command {
        Command::StatusChanged {
            user,
            alarm,
            status,
            changed_at,
        } => {
            out.extend_from_slice(b"{\"AlarmID\":");
            put_id(&mut out, &alarm.0);
            out.extend_from_slice(b",\"UserID\":");
            put_id(&mut out, &user.0);
            put_text_field(&mut out, "Status", status.as_str());
            put_text_field(&mut out, "ChangedAt", changed_at);
            CHANGE
        }
        Command::SendDigest { user } => {
            out.extend_from_slice(b"{\"UserID\":");
            put_id(&mut out, &user.0);
            REQUEST
        }
    };
    out.push(b'}');
    (subject, out.into())
}

/// The answer to a message with a reply subject: refused for a reason, or not.
#[must_use]
pub fn encode_reply(refused: Option<&str>) -> Bytes {
    #[derive(Serialize)]
    struct Refused<'a> {
        ok: bool,
        reason: &'a str,
    }
    match refused {
        None => Bytes::from_static(b"{\"ok\":true}"),
        Some(reason) => to_json(&Refused { ok: false, reason }),
    }
}

/// Who owns an input, or wants to: asked and answered on a server without streams. Ordered by precedence.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Owner {
    /// The random id of the store.
    pub store: String,
    /// The random id of the process that has it open.
    pub instance: String,
}

impl Owner {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        to_json(self)
    }

    /// Reads one; `None` for whatever is none.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok()
    }
}

/// What happened in a window: telemetry.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Aggregate {
    /// Which daemon.
    pub instance: String,
    /// When the window began.
    #[serde(serialize_with = "as_text")]
    pub from: Timestamp,
    /// When it ended.
    #[serde(serialize_with = "as_text")]
    pub to: Timestamp,
    /// What was measured in it.
    pub metrics: Vec<Metric>,
}

/// One metric of a window; what has no meaning for it is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metric {
    /// Its name, as the Prometheus metric's.
    pub name: String,
    /// What it is about, by sorted key.
    pub labels: BTreeMap<String, String>,
    /// How often, in the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The sum of what was observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sum: Option<f64>,
    /// The smallest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// The largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// What half of it did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// What 99 of 100 did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
    /// The value at the end of the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<f64>,
}

impl Aggregate {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        to_json(self)
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "`serialize_with` calls it with a reference"
)]
fn as_text<S: Serializer>(timestamp: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(timestamp)
}

fn put_entry(out: &mut Vec<u8>, entry: &DigestEntry) {
    out.extend_from_slice(b"{\"AlarmID\":");
    put_id(out, &entry.alarm.0);
    put_text_field(out, "Status", entry.status.as_str());
    put_text_field(out, "LatestChangedAt", entry.changed_at);
    out.push(b'}');
}

/// Appends a further field whose value needs no escaping.
fn put_text_field(out: &mut Vec<u8>, name: &str, value: impl std::fmt::Display) {
    use std::io::Write;
    write!(out, ",\"{name}\":\"{value}\"").expect("a vector takes every byte");
}

fn put_id(out: &mut Vec<u8>, id: &Id) {
    id.with_text(|text| serde_json::to_writer(out, text))
        .expect("a vector takes every text");
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value)
        .expect("strings and numbers are always JSON")
        .into()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::wire::{Limits, decode, decode_digest};
    use crate::core::ids::UserId;
    use crate::core::position::Cursor;
    use crate::domains::alarms::{AlarmId, Status};

    const ID: MessageId = MessageId::Stream {
        cursor: Cursor {
            generation: 0,
            sequence: 5,
        },
        timestamp: Timestamp::from_nanos(17),
    };
    const NOTHING: Stored = Stored {
        is_whole: false,
        num_parts: 0,
        end: 0,
        sequence: None,
    };

    fn new_id(text: &str) -> Id {
        Id::new(text).expect("an id")
    }

    fn digest(alarms: &[&str]) -> Digest {
        Digest {
            user: UserId(new_id("u\"1")),
            alarms: alarms
                .iter()
                .zip(0_u64..)
                .map(|(alarm, i)| DigestEntry {
                    alarm: AlarmId(new_id(alarm)),
                    status: if i % 2 == 0 {
                        Status::Critical
                    } else {
                        Status::Warning
                    },
                    changed_at: Timestamp::from_nanos(i * 1_500_000_000),
                })
                .collect(),
        }
    }

    fn letter(payload: Vec<u8>) -> DeadLetter {
        DeadLetter {
            reason: Cow::Borrowed("bad_json"),
            detail: "not\r\nJSON".to_owned(),
            subject: "AlarmStatusChanged.1".to_owned(),
            payload: payload.into(),
        }
    }

    #[test]
    fn a_digest_has_exactly_these_bytes() {
        let messages =
            split_digest(&ID, &digest(&["a<b>", "é"]), &NOTHING, 1 << 20).expect("it fits");
        assert_eq!(messages.len(), 1);
        let message = &messages[0];
        assert_eq!(
            message.payload,
            "{\"UserID\":\"u\\\"1\",\"ActiveAlarms\":[\
             {\"AlarmID\":\"a<b>\",\"Status\":\"CRITICAL\",\"LatestChangedAt\":\"1970-01-01T00:00:00Z\"},\
             {\"AlarmID\":\"é\",\"Status\":\"WARNING\",\"LatestChangedAt\":\"1970-01-01T00:00:01.5Z\"}]}"
        );
        assert_eq!((message.id.as_str(), message.headers.len()), ("5-17", 0));
        let empty = split_digest(&ID, &digest(&[]), &NOTHING, 1 << 20).expect("it fits");
        assert_eq!(
            empty[0].payload,
            "{\"UserID\":\"u\\\"1\",\"ActiveAlarms\":[]}"
        );
    }

    #[test]
    fn an_alarm_that_never_fits_is_an_error() {
        let one = digest(&["a"]);
        let whole = split_digest(&ID, &one, &NOTHING, 1 << 20).expect("it fits");
        let size = message_bytes(&whole[0]);
        assert!(split_digest(&ID, &one, &NOTHING, size).is_ok());
        let error = split_digest(&ID, &one, &NOTHING, size - 1).expect_err("too large");
        assert!(error.needed >= size && error.max_payload == size - 1);
        assert!(split_dead_letter(&ID, &letter(vec![7; 100]), &NOTHING, 100).is_err());
        assert!(split_dead_letter(&ID, &letter(Vec::new()), &NOTHING, 100).is_err());
    }

    #[test]
    fn a_dead_letters_headers_are_single_lines() {
        let whole = split_dead_letter(&ID, &letter(b"\0\xff".to_vec()), &NOTHING, 1 << 20)
            .expect("it fits");
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].payload, b"\0\xff".as_slice());
        assert_eq!(
            whole[0].headers,
            [
                (REASON_HEADER, "bad_json".to_owned()),
                (SUBJECT_HEADER, "AlarmStatusChanged.1".to_owned()),
                (DETAIL_HEADER, "not  JSON".to_owned()),
            ]
        );
        assert!(header_text(&"é".repeat(300)).len() <= MAX_HEADER_TEXT);
    }

    #[test]
    fn a_metric_leaves_out_what_has_no_meaning() {
        let aggregate = Aggregate {
            instance: "host-1".to_owned(),
            from: Timestamp::from_seconds(0),
            to: Timestamp::from_seconds(10),
            metrics: vec![Metric {
                name: "tocsin_changes_total".to_owned(),
                labels: BTreeMap::from([
                    ("b".to_owned(), "2".to_owned()),
                    ("a".to_owned(), "1".to_owned()),
                ]),
                count: Some(3),
                ..Metric::default()
            }],
        };
        assert_eq!(
            aggregate.encode(),
            r#"{"Instance":"host-1","From":"1970-01-01T00:00:00Z","To":"1970-01-01T00:00:10Z","Metrics":[{"Name":"tocsin_changes_total","Labels":{"a":"1","b":"2"},"Count":3}]}"#
        );
    }

    #[test]
    fn an_answer_says_yes_or_why_not() {
        assert_eq!(encode_reply(None), r#"{"ok":true}"#);
        assert_eq!(
            encode_reply(Some("bad_json")),
            r#"{"ok":false,"reason":"bad_json"}"#
        );
    }

    fn check_parts(parts: &[Outbound], max_payload: usize) -> Result<(), TestCaseError> {
        for (i, part) in parts.iter().enumerate() {
            prop_assert!(message_bytes(part) <= max_payload);
            let header = part.headers.iter().find(|(name, _)| *name == PART_HEADER);
            let expected = format!("{}/{}", i + 1, parts.len());
            prop_assert_eq!(
                header.map(|(_, value)| value),
                (parts.len() > 1 || part.id != "5-17").then_some(&expected)
            );
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn parts_of_a_digest_fit_and_make_the_whole(alarms in prop::collection::vec("\\PC{1,20}", 1..60), max_payload in 150_usize..4000) {
            let alarms: Vec<_> = alarms.iter().map(String::as_str).collect();
            let whole = digest(&alarms);
            let Ok(parts) = split_digest(&ID, &whole, &NOTHING, max_payload) else {
                prop_assert!(max_payload < 500);
                return Ok(());
            };
            check_parts(&parts, max_payload)?;
            let mut joined = Vec::new();
            for part in &parts {
                let read = decode_digest(&part.payload).expect("a digest");
                prop_assert_eq!(&read.user, &whole.user);
                let range = format!("5-17.{}-{}", joined.len(), joined.len() + read.alarms.len());
                prop_assert!(part.id == range || parts.len() == 1);
                joined.extend(read.alarms);
            }
            prop_assert_eq!(joined, whole.alarms);
        }

        #[test]
        fn parts_of_a_dead_letter_fit_and_make_the_whole(payload: Vec<u8>, max_payload in 200_usize..400) {
            let Ok(parts) = split_dead_letter(&ID, &letter(payload.clone()), &NOTHING, max_payload) else {
                prop_assert!(max_payload < 230);
                return Ok(());
            };
            check_parts(&parts, max_payload)?;
            let joined: Vec<u8> = parts.iter().flat_map(|part| part.payload.to_vec()).collect();
            prop_assert_eq!(joined, payload);
        }

        #[test]
        fn what_is_left_of_a_digest_may_be_cut_in_another_way(num_alarms in 1_usize..40, cuts in prop::collection::vec((300_usize..4000, 1_usize..4), 1..6)) {
            let alarms: Vec<_> = (0..num_alarms).map(|i| format!("alarm {i}")).collect();
            let whole = digest(&alarms.iter().map(String::as_str).collect::<Vec<_>>());
            let (mut stored, mut joined, mut last_header) = (NOTHING, Vec::new(), String::new());
            // Of each cut so many parts are stored, of the last all.
            for (max_payload, num_stored) in cuts.into_iter().chain([(1 << 20, usize::MAX)]) {
                let parts = split_digest(&ID, &whole, &stored, max_payload).expect("an alarm fits");
                for part in parts.iter().take(num_stored) {
                    prop_assert!(message_bytes(part) <= max_payload);
                    stored.add([(part.id.as_str(), None)]);
                    joined.extend(decode_digest(&part.payload).expect("a digest").alarms);
                    last_header = part.headers.first().map(|(_, text)| text.clone()).unwrap_or_default();
                    if !stored.is_whole {
                        let number = format!("{}/", stored.num_parts);
                        prop_assert!(last_header.starts_with(&number));
                    }
                }
            }
            prop_assert_eq!(&joined, &whole.alarms);
            prop_assert!(split_digest(&ID, &whole, &stored, 1000).is_ok_and(|left| left.is_empty()));
            if !stored.is_whole {
                prop_assert_eq!(last_header, format!("{0}/{0}", stored.num_parts));
            }
        }

        #[test]
        fn what_is_left_of_a_dead_letter_may_be_cut_in_another_way(payload in prop::collection::vec(any::<u8>(), 1..2000), first in 250_usize..400, then in 250_usize..1000) {
            let letter = letter(payload.clone());
            let (mut stored, mut joined) = (NOTHING, Vec::new());
            for (max_payload, num_stored) in [(first, 1), (then, usize::MAX)] {
                for part in split_dead_letter(&ID, &letter, &stored, max_payload).expect("a byte fits").iter().take(num_stored) {
                    stored.add([(part.id.as_str(), None)]);
                    joined.extend_from_slice(&part.payload);
                }
            }
            prop_assert_eq!(joined, payload);
            prop_assert!(split_dead_letter(&ID, &letter, &stored, then).is_ok_and(|left| left.is_empty()));
        }

        #[test]
        fn what_is_sent_is_read_back(user in "\\PC{1,60}", alarm in "\\PC{1,60}", status in 0_usize..3, nanos in 0_u64..2_000_000_000_000_000_000) {
            let user = UserId(new_id(&user));
            for command in [
                Command::StatusChanged {
                    user: user.clone(),
                    alarm: AlarmId(new_id(&alarm)),
                    status: Status::ALL[status],
                    changed_at: Timestamp::from_nanos(nanos),
                },
                Command::SendDigest { user },
            ] {
                let (subject, payload) = encode_command(&command);
                let at = Timestamp::from_nanos(nanos);
                prop_assert_eq!(decode(subject, &payload, at, &Limits::default()), Ok(command));
            }
        }
    }
}
