//! What must change nothing: the rules of refused messages, each as scenarios in which a good change stands beside it.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::messages::{self, Instant, Status};
use super::scenario::{Names, Scenario, second};
use crate::bus::wire::{CHANGE, REQUEST};

/// The time of a refused change: newer than the good one beside it, so that it would decide.
const NEWER: &str = "2026-01-01T00:00:02Z";

/// A change with any text in its fields.
pub(super) fn written(user: &str, alarm: &str, status: &str, changed_at: &str) -> String {
    format!(
        "{{\"AlarmID\":{},\"UserID\":{},\"Status\":{},\"ChangedAt\":{}}}",
        Value::from(alarm),
        Value::from(user),
        Value::from(status),
        Value::from(changed_at),
    )
}

/// The change of another alarm than the good one's, as an object to spoil.
fn fields(user: &str) -> Value {
    json!({"AlarmID": "b", "UserID": user, "Status": "WARNING", "ChangedAt": NEWER})
}

/// A good change of alarm `a`, then a bad one, then a request: only the good one is due.
fn beside(title: impl Into<String>, user: &str, payload: impl Into<Vec<u8>>) -> Scenario {
    Scenario::new(title, user)
        .then("aC1")
        .refused(CHANGE, payload)
        .request()
}

/// The good change is due; a bad request does not take it away.
fn not_asked(title: impl Into<String>, user: &str, payload: impl Into<Vec<u8>>) -> Scenario {
    Scenario::new(title, user)
        .then("aC1 S bC2")
        .refused(REQUEST, payload)
        .then("cC3 S")
}

/// One scenario for each field of a change and of a request, spoilt.
fn spoilt(names: &mut Names, title: &str, spoil: fn(&mut Value, &str)) -> Vec<Scenario> {
    let mut scenarios: Vec<_> = ["AlarmID", "UserID", "Status", "ChangedAt"]
        .into_iter()
        .map(|field| {
            let user = names.user();
            let mut change = fields(&user);
            spoil(&mut change, field);
            beside(format!("{field} {title}"), &user, change.to_string())
        })
        .collect();
    let user = names.user();
    let mut request = json!({ "UserID": user });
    spoil(&mut request, "UserID");
    let title = format!("UserID of a request {title}");
    scenarios.push(not_asked(title, &user, request.to_string()));
    scenarios
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(place) = object.get_mut(field) {
        *place = value;
    }
}

/// How a good payload is made into one that is no JSON.
type Spoil = fn(&str) -> String;

const NOT_JSON: [(&str, Spoil); 9] = [
    ("cut off", |good| good.trim_end_matches('}').to_owned()),
    ("a comma at the end", |good| good.replace('}', ",}")),
    ("two objects", |good| good.repeat(2)),
    ("something behind it", |good| format!("{good} x")),
    ("single quotes", |good| good.replace('"', "'")),
    ("a name without quotes", |good| {
        good.replace("\"UserID\"", "UserID")
    }),
    ("a comment", |good| format!("{good} // so")),
    ("a bare line break in a text", |good| {
        good.replace("b\"", "b\n\"")
    }),
    ("a byte order mark", |good| format!("\u{feff}{good}")),
];

pub(super) fn bad_json(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (title, spoil) in NOT_JSON {
        let user = names.user();
        let payload = spoil(&written(&user, "b", "WARNING", NEWER));
        scenarios.push(beside(title, &user, payload));
    }
    for junk in ["", "junk", "{", "\0", "NaN"] {
        let title = format!("{junk:?} in place of a change");
        scenarios.push(beside(title, &names.user(), junk));
        let title = format!("{junk:?} in place of a request");
        scenarios.push(not_asked(title, &names.user(), junk));
    }
    let user = names.user();
    let request = messages::request(&user).replace('}', "");
    scenarios.push(not_asked("a request that is cut off", &user, request));
    scenarios
}

pub(super) fn bad_utf8(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (title, bytes) in [
        ("a byte that never occurs", &b"\xff"[..]),
        ("an encoded surrogate", b"\xed\xa0\x80"),
        ("a longer form than needed", b"\xc0\xaf"),
        ("a cut character", b"\xf0\x9f\x94"),
    ] {
        let user = names.user();
        let good = written(&user, "b", "WARNING", NEWER);
        let (begin, end) = good.split_once("b\"").unwrap_or_default();
        let payload = [begin.as_bytes(), b"b", bytes, b"\"", end.as_bytes()].concat();
        scenarios.push(beside(title, &user, payload));
    }
    let user = names.user();
    let good = messages::request(&user);
    let begin = good.trim_end_matches('}').as_bytes();
    let request = [begin, b",\"x\":\"\xff\"}"];
    scenarios.push(not_asked("in a request", &user, request.concat()));
    scenarios
}

pub(super) fn other_than_objects(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for json in ["null", "true", "7", "\"text\"", "[]"] {
        let title = format!("{json} in place of a change");
        scenarios.push(beside(title, &names.user(), json));
        let title = format!("{json} in place of a request");
        scenarios.push(not_asked(title, &names.user(), json));
    }
    let user = names.user();
    let list = format!("[{}]", fields(&user));
    scenarios.push(beside("a change in a list", &user, list));
    let user = names.user();
    let list = format!("[{}]", messages::request(&user));
    scenarios.push(not_asked("a request in a list", &user, list));
    let user = names.user();
    let name = Value::from(user.as_str()).to_string();
    scenarios.push(not_asked("a name in place of a request", &user, name));
    scenarios
}

pub(super) fn missing_fields(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = spoilt(names, "is missing", |object, field| {
        if let Some(fields) = object.as_object_mut() {
            fields.remove(field);
        }
    });
    scenarios.push(beside(
        "every field of a change is missing",
        &names.user(),
        "{}",
    ));
    scenarios
}

pub(super) fn empty_fields(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = spoilt(names, "is empty", |object, field| {
        set(object, field, Value::from(""));
    });
    // If anybody is told of a user without a name, it is wrong.
    if let Some(scenario) = scenarios.first_mut() {
        scenario.strangers.push(String::new());
    }
    scenarios
}

pub(super) fn wrong_types(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = spoilt(names, "is null", |object, field| {
        set(object, field, Value::Null);
    });
    scenarios.extend(spoilt(names, "is a number", |object, field| {
        set(object, field, Value::from(1));
    }));
    scenarios.extend(spoilt(names, "is true", |object, field| {
        set(object, field, Value::from(true));
    }));
    scenarios.extend(spoilt(names, "is in a list", |object, field| {
        if let Some(value) = object.get_mut(field) {
            *value = Value::from(vec![value.take()]);
        }
    }));
    scenarios
}

pub(super) fn long_ids(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for (title, id) in [
        ("257 letters", "x".repeat(257)),
        ("129 letters of two bytes each", "\u{e9}".repeat(129)),
        ("2,000 letters", "x".repeat(2000)),
    ] {
        let user = names.user();
        let payload = written(&user, &id, "WARNING", NEWER);
        scenarios.push(beside(format!("AlarmID: {title}"), &user, payload));
    }
    let user = names.user();
    let long = format!("{user}-{}", "x".repeat(256 - user.len()));
    let payload = written(&long, "b", "WARNING", NEWER);
    let scenario = beside("UserID: 257 letters", &user, payload);
    let asked = scenario.refused(REQUEST, messages::request(&long));
    scenarios.push(asked.stranger(long));
    scenarios
}

fn bad_status(names: &mut Names, all: &[&str]) -> Vec<Scenario> {
    let scenario = |status: &&str| {
        let user = names.user();
        // Of the good alarm itself, so that even a clear would be seen.
        let payload = written(&user, "a", status, NEWER);
        beside(format!("Status {status:?}"), &user, payload)
    };
    all.iter().map(scenario).collect()
}

pub(super) fn unknown_status(names: &mut Names) -> Vec<Scenario> {
    bad_status(
        names,
        &[
            "OK",
            "ALARM",
            "UNKNOWN",
            "WARN",
            "CLEAR",
            "RESOLVED",
            " WARNING",
            "WARNING ",
            "WARNING\n",
            "0",
            "2",
        ],
    )
}

pub(super) fn lower_case_status(names: &mut Names) -> Vec<Scenario> {
    bad_status(
        names,
        &[
            "warning", "cleared", "critical", "Warning", "Cleared", "wARNING",
        ],
    )
}

fn bad_times<T: AsRef<str>>(names: &mut Names, all: &[T]) -> Vec<Scenario> {
    let scenario = |time: &T| {
        let user = names.user();
        let payload = written(&user, "b", "WARNING", time.as_ref());
        beside(format!("ChangedAt {:?}", time.as_ref()), &user, payload)
    };
    all.iter().map(scenario).collect()
}

pub(super) fn other_times(names: &mut Names) -> Vec<Scenario> {
    bad_times(
        names,
        &[
            "2026-01-01 00:00:02Z",
            "2026-01-01_00:00:02Z",
            "2026-01-0100:00:02Z",
            "2026-01-01",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:02",
            "2026-01-01T000002Z",
            "20260101T000002Z",
            "2026-01-01T00:00:02,5Z",
            "2026-01-01T00:00:02.Z",
            "2026-01-01T00:00:02.1234567890Z",
            "2026-01-01T00:00:60Z",
            "2016-12-31T23:59:60Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:02Z[UTC]",
            "2026-01-01T00:00:02[Europe/Berlin]",
            "+2026-01-01T00:00:02Z",
            "-2026-01-01T00:00:02Z",
            "+002026-01-01T00:00:02Z",
            "26-01-01T00:00:02Z",
            "2026-1-1T0:0:2Z",
            "2026-01-01T00:00:02+0100",
            "2026-01-01T00:00:02+01",
            "2026-01-01T00:00:02+24:00",
            "2026-01-01T00:00:02+01:60",
            "2026-01-01T00:00:02 +01:00",
            "2026-01-01T00:00:02UTC",
            "2025-02-29T00:00:02Z",
            "2026-04-31T00:00:02Z",
            "2026-00-01T00:00:02Z",
            "2026-13-01T00:00:02Z",
            "2026-01-00T00:00:02Z",
            " 2026-01-01T00:00:02Z",
            "2026-01-01T00:00:02Z ",
            "2026-01-01T00:00:02Z\n",
            "2026-W01-4T00:00:02Z",
            "1767225602",
            "now",
            "Thu, 01 Jan 2026 00:00:02 GMT",
        ],
    )
}

pub(super) fn before_1970(names: &mut Names) -> Vec<Scenario> {
    bad_times(
        names,
        &[
            "1969-12-31T23:59:59.999999999Z",
            "1970-01-01T00:59:59+01:00",
            "1900-01-01T00:00:00Z",
            // What Go prints for a time that was never set.
            "0001-01-01T00:00:00Z",
            "0000-01-01T00:00:00Z",
        ],
    )
}

pub(super) fn far_future(names: &mut Names) -> Vec<Scenario> {
    let ahead = |hours: u64| {
        let ahead = Duration::from_hours(hours).as_nanos();
        Instant(Instant::now().0 + u64::try_from(ahead).unwrap_or_default())
    };
    let far = [
        ahead(25).to_string(),
        ahead(24 * 3660).to_string(),
        "9999-12-31T23:59:59.999999999Z".to_owned(),
    ];
    let mut scenarios = bad_times(names, &far);
    let near = Scenario::new("23 hours ahead", names.user());
    let near = near.change("a", Status::Critical, ahead(23)).request();
    scenarios.push(near.change("a", Status::Cleared, second(1)).request());
    scenarios
}

/// What a random history may have in it of this kind.
pub(super) fn junk(user: &str, random: &mut fastrand::Rng) -> (&'static str, String) {
    let request = messages::request(user);
    let kinds = [
        (CHANGE, String::new()),
        (CHANGE, written(user, "a", "warning", NEWER)),
        (
            CHANGE,
            written(user, "a", "CRITICAL", "2026-01-01 00:00:02Z"),
        ),
        (CHANGE, written(user, "", "CRITICAL", NEWER)),
        (
            CHANGE,
            written(user, "a", "CRITICAL", NEWER).replace("ChangedAt", "Changed"),
        ),
        (CHANGE, written(user, "a", "CRITICAL", NEWER) + "}"),
        (REQUEST, request.replace('}', "")),
        (REQUEST, format!("[{request}]")),
        (REQUEST, "{}".to_owned()),
    ];
    let number = random.usize(..kinds.len());
    let [first, ..] = kinds.clone();
    kinds.into_iter().nth(number).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::super::scenario::Meaning;
    use super::*;

    #[test]
    fn no_junk_is_good_and_each_has_something_good_beside_it() {
        let all: [fn(&mut Names) -> Vec<Scenario>; 12] = [
            bad_json,
            bad_utf8,
            other_than_objects,
            missing_fields,
            empty_fields,
            wrong_types,
            long_ids,
            unknown_status,
            lower_case_status,
            other_times,
            before_1970,
            far_future,
        ];
        let names = &mut Names::new(1, 2);
        for scenario in all.iter().flat_map(|of| of(names)) {
            for message in &scenario.messages {
                if !matches!(message.meaning, Meaning::Refused) {
                    continue;
                }
                let text = String::from_utf8_lossy(&message.payload);
                let whole: Option<Value> = serde_json::from_slice(&message.payload).ok();
                let is_good = whole.as_ref().is_some_and(|json| {
                    let text_of = |name| json[name].as_str().filter(|it| !it.is_empty());
                    let is_short = |id: &str| id.len() <= 256;
                    text_of("UserID").is_some_and(is_short)
                        && (message.subject == REQUEST
                            || text_of("AlarmID").is_some_and(is_short)
                                && text_of("Status").is_some_and(|it| {
                                    Status::ALL.iter().any(|known| known.as_str() == it)
                                })
                                && text_of("ChangedAt") == Some(NEWER))
                });
                assert!(!is_good, "{}: {text}", scenario.title);
            }
            let num_good = scenario.messages.len();
            assert!(num_good >= 3, "{}", scenario.title);
        }
    }
}
