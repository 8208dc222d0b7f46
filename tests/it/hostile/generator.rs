//! Hostile messages by seed: whatever a publisher by mistake or in anger may send.

use async_nats::HeaderMap;
use serde_json::Value;

use crate::support::random::Random;

/// What is published.
#[derive(Clone, Debug)]
pub(super) struct Hostile {
    pub(super) subject: String,
    pub(super) headers: HeaderMap,
    pub(super) payload: Vec<u8>,
}

/// Times of which each part is at an edge.
const DATES: [&str; 22] = [
    "1970-01-01",
    "1969-12-31",
    "0000-01-01",
    "0001-01-01",
    "9999-12-31",
    "2554-07-21",
    "2554-07-22",
    "2026-02-28",
    "2026-02-29",
    "2024-02-29",
    "1900-02-29",
    "2000-02-29",
    "2026-13-01",
    "2026-00-10",
    "2026-04-31",
    "2026-11-00",
    "2026-1-1",
    "20260101",
    "+2026-01-01",
    "-2026-01-01",
    "10000-01-01",
    "２026-01-01",
];
const CLOCKS: [&str; 14] = [
    "00:00:00", "23:59:59", "23:59:60", "24:00:00", "12:60:00", "12:00:61", "12:00", "120000",
    "1:02:03", "12:00:-1", "12.00.00", "00:00:60", "99:99:99", "",
];
const OFFSETS: [&str; 18] = [
    "Z",
    "z",
    "",
    "+00:00",
    "-00:00",
    "+23:59",
    "-23:59",
    "+24:00",
    "+12:60",
    "+1:00",
    "+0100",
    "+01",
    "UTC",
    "Z ",
    "ZZ",
    "[UTC]",
    "\u{2212}01:00",
    " +01:00",
];

/// Ids that look like others, like nothing, or like something else.
const IDS: [&str; 30] = [
    "",
    " ",
    "a",
    "A",
    "\u{430}",
    "\u{1d41a}",
    "a\u{200b}",
    "\u{200d}a",
    "\u{202e}a\u{202c}",
    "\u{5d0}",
    "e\u{301}",
    "\u{e9}",
    "\u{0}",
    "a\u{0}b",
    "\u{7f}",
    "\u{feff}a",
    "\u{1f514}",
    "\u{10ffff}",
    "\\",
    "\"",
    "a.b",
    "a.*",
    "a.>",
    "null",
    "7",
    "{}",
    "0F8FAD5B-D9CB-469F-A165-70867728950E",
    "0f8fad5b-d9cb-469f-a165-70867728950e",
    "0f8fad5bd9cb469fa16570867728950e",
    "{0f8fad5b-d9cb-469f-a165-70867728950e}",
];

/// What stands where a text is expected.
const VALUES: [&str; 34] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "7",
    "1e999999999",
    "-1E+400",
    "0.1e-9999",
    "01",
    "1.",
    ".5",
    "+1",
    "NaN",
    "Infinity",
    "0x10",
    "[]",
    "{}",
    "[\"a\"]",
    "{\"a\":\"b\"}",
    "\"\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\udd14\"",
    "\"\\u0000\"",
    "\"\\x41\"",
    "\"\\u00\"",
    "\"open",
    "'single'",
    "\"tab\tinside\"",
    "\"\\/\\b\\f\\n\\r\\t\"",
    "\"\\u0043RITICAL\"",
    "undefined",
    "",
];

const TOKENS: [&str; 14] = [
    "0",
    "1",
    "18446744073709551616",
    "-1",
    "ü",
    "\u{202e}",
    "a-b",
    "_",
    "$SYS",
    "{{x}}",
    "%2e",
    "\u{1f514}",
    "*",
    ">",
];

fn one_of<'a>(random: &mut Random, list: &[&'a str]) -> &'a str {
    list[random.below(list.len() as u64) as usize]
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// A string of which every character is escaped.
fn escaped(text: &str) -> String {
    let units: Vec<_> = text
        .encode_utf16()
        .map(|unit| format!("\\u{unit:04X}"))
        .collect();
    format!("\"{}\"", units.concat())
}

fn id(random: &mut Random) -> String {
    let text = match random.below(16) {
        0 => {
            // At the longest that is taken, and beyond.
            let char = ["x", "\u{e9}", "\u{1f514}", "\u{0}"][random.below(4) as usize];
            let num = (254 + random.below(5) as usize) / char.len();
            char.repeat(num)
        }
        1 => return one_of(random, &VALUES).to_owned(),
        2..=11 => format!("user {}", random.below(20)),
        _ => one_of(random, &IDS).to_owned(),
    };
    if random.below(6) == 0 {
        escaped(&text)
    } else {
        quoted(&text)
    }
}

fn time(random: &mut Random) -> String {
    if random.below(20) == 0 {
        return one_of(random, &VALUES).to_owned();
    }
    let is_mostly_good = random.below(5) > 0;
    let date = if is_mostly_good {
        "2026-01-02"
    } else {
        one_of(random, &DATES)
    };
    let clock = if random.below(6) > 0 {
        "03:04:05"
    } else {
        one_of(random, &CLOCKS)
    };
    let offset = if random.below(4) > 0 {
        "Z"
    } else {
        one_of(random, &OFFSETS)
    };
    let fraction = match random.below(4) {
        0 => {
            let digits: String = (0..random.below(31))
                .map(|_| random.below(10).to_string())
                .collect();
            format!("{}{digits}", one_of(random, &[".", ".", ".", ",", ":"]))
        }
        _ => String::new(),
    };
    let between = if random.below(12) == 0 {
        one_of(random, &["t", " ", "", "_", "TT"])
    } else {
        "T"
    };
    quoted(&format!("{date}{between}{clock}{fraction}{offset}"))
}

fn status(random: &mut Random) -> String {
    let statuses = ["CLEARED", "WARNING", "CRITICAL"];
    match random.below(20) {
        0 => one_of(random, &VALUES).to_owned(),
        1 => quoted(one_of(
            random,
            &[
                "critical",
                "Critical",
                "CRITICAL ",
                "OK",
                "ALARM",
                "CRITICA\u{13f}",
                "\u{421}RITICAL",
            ],
        )),
        2 => escaped(one_of(random, &statuses)),
        _ => quoted(one_of(random, &statuses)),
    }
}

/// A field's name, mostly in its own letter case.
fn name(random: &mut Random, name: &str) -> String {
    match random.below(30) {
        0 => quoted(&name.to_lowercase()),
        1 => quoted(&name.to_uppercase()),
        2 => escaped(name),
        3 => quoted(&name.replacen('s', "\u{17f}", 1)),
        4 => quoted(&format!("{name} ")),
        _ => quoted(name),
    }
}

/// The fields of a message in any order: missing, repeated, beside others.
fn fields(random: &mut Random, is_change: bool) -> Vec<(String, String)> {
    let mut fields = vec![(name(random, "UserID"), id(random))];
    if is_change {
        fields.push((name(random, "AlarmID"), id(random)));
        fields.push((name(random, "Status"), status(random)));
        fields.push((name(random, "ChangedAt"), time(random)));
    }
    for _ in 0..random.below(4) / 2 {
        // One that was there, before or behind itself.
        let again = fields[random.below(fields.len() as u64) as usize].0.clone();
        let value = if random.below(2) == 0 {
            id(random)
        } else {
            time(random)
        };
        fields.push((again, value));
    }
    if random.below(6) == 0 {
        fields.push((
            quoted(one_of(random, &IDS)),
            one_of(random, &VALUES).to_owned(),
        ));
    }
    if random.below(12) == 0 {
        let depth = random.below(400) as usize;
        let (open, close) = [("[", "]"), ("{\"a\":", "}")][random.below(2) as usize];
        let inmost = one_of(random, &["1", "[]", "{}", ""]);
        fields.push((
            "\"deep\"".to_owned(),
            open.repeat(depth) + inmost + &close.repeat(depth),
        ));
    }
    for at in (1..fields.len()).rev() {
        fields.swap(at, random.below(at as u64 + 1) as usize);
    }
    if random.below(20) == 0 {
        fields.pop();
    }
    fields
}

fn object(random: &mut Random, is_change: bool) -> Vec<u8> {
    let space = one_of(random, &["", "", "", " ", "\n\t", "\u{a0}", "\u{b}"]);
    let fields = fields(random, is_change);
    let fields: Vec<_> = fields
        .into_iter()
        .map(|(name, value)| format!("{name}:{space}{value}"))
        .collect();
    format!("{{{space}{}{space}}}", fields.join(",")).into_bytes()
}

/// What is done to the bytes of a message.
fn damaged(random: &mut Random, payload: &[u8]) -> Vec<u8> {
    let at = random.below(payload.len() as u64 + 1) as usize;
    let utf16 = |payload: &[u8], bytes_of: fn(u16) -> [u8; 2]| -> Vec<u8> {
        String::from_utf8_lossy(payload)
            .encode_utf16()
            .flat_map(bytes_of)
            .collect()
    };
    match random.below(14) {
        0 => payload[..at].to_vec(),
        1 => [&b"\xef\xbb\xbf"[..], payload].concat(),
        2 => [
            payload,
            one_of(random, &["x", "{}", ",", "\0", "\n", "//", "]"]).as_bytes(),
        ]
        .concat(),
        3 => utf16(payload, u16::to_le_bytes),
        4 => utf16(payload, u16::to_be_bytes),
        5 => [&payload[..at], &[random.below(256) as u8], &payload[at..]].concat(),
        // Overlong, half a surrogate pair, beyond the last character.
        6 => [&payload[..at], b"\xc0\x80", &payload[at..]].concat(),
        7 => [&payload[..at], b"\xed\xa0\x80", &payload[at..]].concat(),
        8 => [&payload[..at], b"\xf4\x90\x80\x80", &payload[at..]].concat(),
        9 => Vec::new(),
        10 => b" \n\t\r ".to_vec(),
        11 => [b"[", payload, b"]"].concat(),
        12 => payload.iter().rev().copied().collect(),
        _ => quoted(&String::from_utf8_lossy(payload)).into_bytes(),
    }
}

/// As large as the broker takes, headers of its own included.
fn huge(random: &mut Random, payload: Vec<u8>, room: usize) -> Vec<u8> {
    let pad = room.saturating_sub(payload.len());
    let text = String::from_utf8_lossy(&payload).into_owned();
    let inside = |fill: String| text.replacen('{', &format!("{{{fill},"), 1).into_bytes();
    match random.below(6) {
        0 => [payload, vec![b' '; pad]].concat(),
        1 => inside(format!("\"x\":\"{}\"", "x".repeat(pad.saturating_sub(8)))),
        2 => inside(format!("\"x\":{}", "9".repeat(pad.saturating_sub(8)))),
        3 => {
            let depth = pad.saturating_sub(8) / 2;
            inside(format!("\"x\":{}{}", "[".repeat(depth), "]".repeat(depth)))
        }
        4 => {
            let field = "\"UserID\":7,";
            [
                b"{",
                field.repeat(pad.saturating_sub(2) / field.len()).as_bytes(),
                &payload[1..],
            ]
            .concat()
        }
        _ => (0..room).map(|_| random.below(256) as u8).collect(),
    }
}

fn headers(random: &mut Random) -> HeaderMap {
    let mut headers = HeaderMap::new();
    match random.below(60) {
        0 => {
            for number in 0..200 {
                headers.append("Many", format!("value {number}"));
                headers.insert(format!("X-{number}").as_str(), "");
            }
        }
        1 => headers.insert("Huge", "x".repeat(30_000)),
        2 => {
            let inboxes = [
                "",
                ">",
                "AlarmDigest",
                "TOCSIN",
                "_INBOX.>",
                "_INBOX.",
                "$JS.API.STREAM.PURGE.TOCSIN_IN",
                "_INBOX.a b",
            ];
            headers.insert("Tocsin-Reply-To", one_of(random, &inboxes));
        }
        3 => headers.insert("Tocsin-Part", "7/3"),
        4 => headers.insert("Tocsin-Reason", "none"),
        5 => headers.insert("Nats-Msg-Id", random.below(50).to_string()),
        6 => headers.insert("Nats-Expected-Last-Sequence", "1"),
        7 => headers.insert("Nats-TTL", "1s"),
        8 => headers.insert("Nats-Rollup", "all"),
        9 => headers.insert("Status", "503"),
        _ => {}
    }
    headers
}

/// The message of that number; among any few thousand are some of every kind.
pub(super) fn hostile(random: &mut Random, number: u64) -> Hostile {
    const MAX_PAYLOAD: usize = 1 << 20;
    let is_change = random.below(4) > 0;
    let base = if is_change {
        "AlarmStatusChanged"
    } else {
        "SendAlarmDigest"
    };
    let subject = match random.below(4) {
        0 => format!("{base}.{}", one_of(random, &TOKENS)),
        1 if random.below(20) == 0 => format!("{base}.{}", "x".repeat(2000)),
        _ => base.to_owned(),
    };
    let payload = object(random, is_change);
    // Few: each is a mebibyte in the stream, and another in the dead letters.
    if number % 1000 == 7 {
        let room = MAX_PAYLOAD - random.below(3) as usize;
        return Hostile {
            subject,
            headers: HeaderMap::new(),
            payload: huge(random, payload, room),
        };
    }
    let payload = if random.below(8) == 0 {
        damaged(random, &payload)
    } else {
        payload
    };
    Hostile {
        subject,
        headers: headers(random),
        payload,
    }
}
