//! The scenarios of the rules on messages: what must be read, and how a digest is written.

use super::super::messages::{
    self, Instant,
    Status::{self, Cleared, Critical, Warning},
};
use super::behaviour::play;
use super::refusals;
use super::scenario::{Names, Scenario, nano, second};
use crate::bus::wire::{CHANGE, REQUEST};

pub(super) fn exact_bytes(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = play(names, &["aC1 S", "bC2 aW1 S"]);
    // What some languages' JSON writers escape, and what must be escaped.
    for alarm in [
        "<a> & </a>",
        "\"quoted\" \\ back/slash",
        "tab\tand\nnewline\u{1}",
        "\u{e9}\u{2028}\u{1f514}",
    ] {
        let scenario = Scenario::new(format!("alarm {alarm:?}"), names.user());
        scenarios.push(scenario.change(alarm, Critical, second(1)).request());
    }
    scenarios
}

/// A change whose time is written in this form and is this instant.
fn timed(names: &mut Names, written: &str, at: Instant) -> Scenario {
    let user = names.user();
    let payload = refusals::written(&user, "a", "CRITICAL", written);
    Scenario::new(format!("ChangedAt {written}"), user)
        .change_written(CHANGE, payload, "a", Critical, at)
        .request()
}

fn timed_forms(names: &mut Names, forms: &[(&str, &str)]) -> Vec<Scenario> {
    let scenario = |(written, printed): &(&str, &str)| {
        let at = Instant::parse(printed).unwrap_or_default();
        timed(names, written, at)
    };
    forms.iter().map(scenario).collect()
}

pub(super) fn time_printed(names: &mut Names) -> Vec<Scenario> {
    timed_forms(
        names,
        &[
            ("2026-01-01T00:00:01.500Z", "2026-01-01T00:00:01.5Z"),
            ("2026-01-01T00:00:01.000000Z", "2026-01-01T00:00:01Z"),
            ("2026-01-01T01:00:01+01:00", "2026-01-01T00:00:01Z"),
            (
                "2026-01-01T00:00:01.120034500Z",
                "2026-01-01T00:00:01.1200345Z",
            ),
            (
                "2026-01-01T00:00:01.000000010Z",
                "2026-01-01T00:00:01.00000001Z",
            ),
        ],
    )
}

pub(super) fn time_forms(names: &mut Names) -> Vec<Scenario> {
    timed_forms(
        names,
        &[
            ("2026-01-01T00:00:01Z", "2026-01-01T00:00:01Z"),
            ("2026-01-01t00:00:01Z", "2026-01-01T00:00:01Z"),
            ("2026-01-01T00:00:01z", "2026-01-01T00:00:01Z"),
            ("2026-01-01T00:00:01+00:00", "2026-01-01T00:00:01Z"),
            ("2026-01-01T00:00:01-00:00", "2026-01-01T00:00:01Z"),
            ("2026-01-01T05:45:01+05:45", "2026-01-01T00:00:01Z"),
            ("2025-12-31T14:00:01-10:00", "2026-01-01T00:00:01Z"),
            ("2026-01-01t01:00:01.25+01:00", "2026-01-01T00:00:01.25Z"),
            ("2026-01-01T00:00:01.0Z", "2026-01-01T00:00:01Z"),
            ("2026-01-01T00:00:01.1Z", "2026-01-01T00:00:01.1Z"),
            ("2026-01-01T00:00:01.12Z", "2026-01-01T00:00:01.12Z"),
            ("2026-01-01T00:00:01.123Z", "2026-01-01T00:00:01.123Z"),
            ("2026-01-01T00:00:01.1234Z", "2026-01-01T00:00:01.1234Z"),
            ("2026-01-01T00:00:01.12345Z", "2026-01-01T00:00:01.12345Z"),
            ("2026-01-01T00:00:01.123456Z", "2026-01-01T00:00:01.123456Z"),
            (
                "2026-01-01T00:00:01.1234567Z",
                "2026-01-01T00:00:01.1234567Z",
            ),
            (
                "2026-01-01T00:00:01.12345678Z",
                "2026-01-01T00:00:01.12345678Z",
            ),
            (
                "2026-01-01T00:00:01.123456789Z",
                "2026-01-01T00:00:01.123456789Z",
            ),
            ("2024-02-29T23:59:59Z", "2024-02-29T23:59:59Z"),
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("1969-12-31T23:30:00-01:00", "1970-01-01T00:30:00Z"),
        ],
    )
}

pub(super) fn nanoseconds(names: &mut Names) -> Vec<Scenario> {
    let mut of = |title: &str, changes: &[(&str, Status, u64)]| {
        let scenario = Scenario::new(title, names.user());
        let add = |scenario: Scenario, (alarm, status, at): &(&str, Status, u64)| {
            scenario.change(alarm, *status, nano(*at))
        };
        changes.iter().fold(scenario, add).request()
    };
    vec![
        of(
            "one nanosecond newer",
            &[
                ("a", Critical, 2),
                ("a", Warning, 1),
                ("b", Warning, 123_456_788),
                ("b", Critical, 123_456_789),
            ],
        ),
        of(
            "one nanosecond between two alarms",
            &[("a", Critical, 999_999_999), ("b", Critical, 999_999_998)],
        ),
        of(
            "cleared one nanosecond later",
            &[("a", Cleared, 2), ("a", Critical, 1)],
        ),
    ]
}

/// Ids of every kind.
const IDS: [&str; 20] = [
    "1",
    "0",
    "01",
    "-1",
    "1e3",
    "userID-1",
    "a.b",
    "a..b.",
    "*",
    ">",
    " leading and trailing ",
    " ",
    "null",
    "true",
    "{}",
    "\"quoted\"\\",
    "\u{e9}",
    "e\u{301}",
    "\u{65e5}\u{672c} \u{1f514}",
    "\u{1}\t\n\u{7f}\u{200b}\u{feff}",
];

pub(super) fn opaque_ids(names: &mut Names) -> Vec<Scenario> {
    let mut ids: Vec<String> = IDS.map(str::to_owned).to_vec();
    let uuid = names.uuid();
    ids.push(format!("{{{uuid}}}"));
    ids.push(uuid.replace('-', ""));
    ids.push(uuid.to_uppercase());
    ids.push("00000000-0000-0000-0000-000000000000".to_owned());
    ids.push("x".repeat(256));
    ids.push("\u{e9}".repeat(128));
    ids.push(uuid);
    let mut users = vec![names.uuid(), names.uuid().to_uppercase(), names.number()];
    users.extend(IDS.map(|id| names.user_like(id)));
    let long = names.user_like("");
    users.push(long.clone() + &"x".repeat(256 - long.len()));
    let mut scenarios: Vec<_> = users
        .into_iter()
        .map(|user| Scenario::new(format!("user {user:?}"), user).then("aC1 S aX2 bW3 S"))
        .collect();
    let all_in_one = Scenario::new("alarms of every kind", names.user());
    let all_in_one = ids.iter().fold(all_in_one, |scenario, id| {
        scenario.change(id, Critical, second(1))
    });
    scenarios.push(all_in_one.request().request());
    scenarios
}

pub(super) fn case_sensitive_ids(names: &mut Names) -> Vec<Scenario> {
    let uuid = names.uuid();
    let plain = names.user();
    let mut scenarios = vec![
        Scenario::new("alarms disk and Disk", names.user())
            .change("disk", Critical, second(1))
            .change("Disk", Cleared, second(2))
            .change("DISK", Warning, second(3))
            .request(),
        Scenario::new("alarms that are UUIDs", names.user())
            .change(&uuid, Critical, second(1))
            .change(&uuid.to_uppercase(), Warning, second(2))
            .request(),
    ];
    let uuid = names.uuid();
    for (one, other) in [
        (format!("{plain}-ann"), format!("{plain}-Ann")),
        (uuid.clone(), uuid.to_uppercase()),
    ] {
        let scenario = Scenario::new(format!("users {one} and {other}"), one.clone());
        let scenario = scenario.then("aC1 bC2").user(&other).then("aX3 cW4 S");
        scenarios.push(scenario.user(&one).request());
    }
    scenarios
}

/// A change of alarm `a` to CRITICAL at second 1 in this form, then a request in that one; `@` stands for the user.
fn reshaped(names: &mut Names, title: &str, change: &str, request: &str) -> Scenario {
    let user = names.user();
    let (change, request) = (change.replace('@', &user), request.replace('@', &user));
    Scenario::new(title, user)
        .change_written(CHANGE, change, "a", Critical, second(1))
        .request_written(REQUEST, request)
}

pub(super) fn names_in_any_case(names: &mut Names) -> Vec<Scenario> {
    [
        ("alarmId", "userId", "status", "changedAt"),
        ("alarmid", "userid", "status", "changedat"),
        ("ALARMID", "USERID", "STATUS", "CHANGEDAT"),
        ("aLaRmId", "UserId", "sTATUS", "ChangedAT"),
    ]
    .into_iter()
    .map(|(alarm, user, status, changed_at)| {
        let title = format!("{alarm}, {user}, {status}, {changed_at}");
        let change = format!(
            "{{\"{alarm}\":\"a\",\"{user}\":\"@\",\"{status}\":\"CRITICAL\",\"{changed_at}\":\"2026-01-01T00:00:01Z\"}}"
        );
        reshaped(names, &title, &change, &format!("{{\"{user}\":\"@\"}}"))
    })
    .collect()
}

pub(super) fn unknown_fields_ignored(names: &mut Names) -> Vec<Scenario> {
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    vec![
        reshaped(
            names,
            "of every type",
            "{\"Version\":2,\"AlarmID\":\"a\",\"Tags\":[\"x\",{\"UserID\":\"y\"}],\"UserID\":\"@\",\"Status\":\"CRITICAL\",\"Source\":null,\"ChangedAt\":\"2026-01-01T00:00:01Z\",\"More\":{\"AlarmID\":\"b\"}}",
            "{\"UserID\":\"@\",\"Since\":\"2026-01-01T00:00:00Z\",\"All\":true,\"Id\":1.5e300}",
        ),
        reshaped(
            names,
            "deep",
            &format!(
                "{{\"Deep\":{deep},\"AlarmID\":\"a\",\"UserID\":\"@\",\"Status\":\"CRITICAL\",\"ChangedAt\":\"2026-01-01T00:00:01Z\"}}"
            ),
            &format!("{{\"UserID\":\"@\",\"Deep\":{deep}}}"),
        ),
    ]
}

pub(super) fn repeated_field_takes_last(names: &mut Names) -> Vec<Scenario> {
    let scenarios = [
        reshaped(
            names,
            "the same name twice",
            "{\"AlarmID\":\"x\",\"UserID\":\"@-x\",\"Status\":\"WARNING\",\"ChangedAt\":\"2026-01-01T00:00:09Z\",\"AlarmID\":\"a\",\"UserID\":\"@\",\"Status\":\"CRITICAL\",\"ChangedAt\":\"2026-01-01T00:00:01Z\"}",
            "{\"UserID\":\"@-x\",\"UserID\":\"@\"}",
        ),
        reshaped(
            names,
            "the same name in another letter case",
            "{\"Status\":\"WARNING\",\"AlarmID\":\"a\",\"UserID\":\"@\",\"status\":\"CLEARED\",\"ChangedAt\":\"2026-01-01T00:00:01Z\",\"STATUS\":\"CRITICAL\"}",
            "{\"userId\":\"@-x\",\"UserID\":\"@\"}",
        ),
    ];
    let with_stranger = |it: Scenario| {
        let stranger = it.users.concat() + "-x";
        it.stranger(stranger)
    };
    scenarios.into_iter().map(with_stranger).collect()
}

pub(super) fn any_json(names: &mut Names) -> Vec<Scenario> {
    vec![
        reshaped(
            names,
            "another order",
            "{\"ChangedAt\":\"2026-01-01T00:00:01Z\",\"Status\":\"CRITICAL\",\"UserID\":\"@\",\"AlarmID\":\"a\"}",
            "{\"UserID\":\"@\"}",
        ),
        reshaped(
            names,
            "whitespace",
            " \r\n{\t\"AlarmID\" : \"a\" ,\n \"UserID\":\"@\", \"Status\":\"CRITICAL\" ,\"ChangedAt\": \"2026-01-01T00:00:01Z\" }\n",
            "\t{ \"UserID\" :\n\"@\" } ",
        ),
        reshaped(
            names,
            "escapes",
            "{\"Alarm\\u0049D\":\"\\u0061\",\"UserID\":\"@\",\"Status\":\"\\u0043RITICAL\",\"ChangedAt\":\"2026-01-01T00:00:01\\u005a\"}",
            "{\"\\u0055serID\":\"@\"}",
        ),
    ]
}

pub(super) fn numbered_subjects(names: &mut Names) -> Vec<Scenario> {
    ["7", "0", "x", "a_b-c", "12345678901234567890", "\u{e9}"]
        .into_iter()
        .map(|token| {
            let user = names.user();
            let payload = messages::change(&user, "a", Critical, second(1));
            let subject = format!("{CHANGE}.{token}");
            Scenario::new(format!("{subject}, {REQUEST}.{token}"), user.clone())
                .change_written(&subject, payload, "a", Critical, second(1))
                .request_written(&format!("{REQUEST}.{token}"), messages::request(&user))
        })
        .collect()
}

pub(super) fn copied_change_is_duplicate(names: &mut Names) -> Vec<Scenario> {
    let twin = "AlarmStatusChanged.7";
    vec![
        Scenario::new("at once", names.user())
            .then("aC1")
            .copy_of_first(twin)
            .then("S bW2 S"),
        Scenario::new("after the digest", names.user())
            .then("aC1 S")
            .copy_of_first(twin)
            .then("S"),
        Scenario::new("after it was cleared", names.user())
            .then("aC1 aX2")
            .copy_of_first(twin)
            .then("S"),
        Scenario::new("after it was cleared at that instant", names.user())
            .then("aC1 aX1")
            .copy_of_first(twin)
            .then("S"),
    ]
}

pub(super) fn copied_request_is_second(names: &mut Names) -> Vec<Scenario> {
    let copied = |scenario: Scenario| {
        let request = messages::request(&scenario.users.concat());
        scenario.request_written("SendAlarmDigest.7", request)
    };
    let nothing_new = Scenario::new("with nothing new", names.user());
    let something_new = Scenario::new("with something new", names.user());
    vec![
        copied(nothing_new.then("aC1 S")).then("bW2 S"),
        copied(something_new.then("aC1 S bW2")).then("S"),
    ]
}
