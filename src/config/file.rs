//! One configuration file: TOML, YAML or JSON by its ending, read into a table, and what is wrong with it.
//!
//! A parser's report becomes one line with the place in front, and never repeats the file: it may hold a secret.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use ::config::{FileFormat, Format, Map, Value};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::ConfigError;

const ENDINGS: &str = ".toml, .yaml, .yml or .json";

/// What to do about a text without quotes.
const QUOTES: &str = "texts, durations and sizes stand in quotes, such as \"20s\"";
/// What parsers say of mistakes that newcomers make, and what to do about them.
const ADVICE: [(&str, &str); 12] = [
    ("string values must be quoted", QUOTES),
    (
        "key with no value",
        "in TOML a key is followed by = and its value",
    ),
    (
        "tabs disallowed",
        "YAML is indented with spaces, not with tabs",
    ),
    ("invalid float", QUOTES),
    ("invalid boolean", QUOTES),
    ("expected nothing", QUOTES),
    (
        "invalid basic string",
        "a text ends on its line with the quote that it began with",
    ),
    (
        "EOF while parsing",
        "the end is missing: a quote, } or ] that closes what is open",
    ),
    (
        "key must be a string",
        "names stand in double quotes, such as \"nats\"",
    ),
    ("trailing comma", "no comma may stand behind the last key"),
    ("duplicated key", "a key stands twice; keep one of them"),
    ("duplicate key", "a key stands twice; keep one of them"),
];

/// Reads a file; returns its text, to find lines in, and its table.
pub(super) fn read(path: &Path) -> Result<(String, Map<String, Value>), ConfigError> {
    let refuse = |place, reason| ConfigError::File {
        path: path.to_owned(),
        place,
        reason,
    };
    let text = fs::read_to_string(path)
        .map_err(|error| refuse(None, format!("cannot be read: {}", why_unreadable(&error))))?;
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("toml") => FileFormat::Toml,
        Some("yaml" | "yml") => FileFormat::Yaml,
        Some("json") => FileFormat::Json,
        _ => return Err(refuse(None, format!("its name must end in {ENDINGS}"))),
    };
    // Editors of other systems put a mark of the encoding first.
    let text = text.trim_start_matches('\u{feff}').to_owned();
    if format == FileFormat::Json && text.trim().is_empty() {
        return Err(refuse(None, "is empty; write {} to set nothing".to_owned()));
    }
    let parsed = if format == FileFormat::Json {
        // The parser below keeps the last of two equal keys, and whatever was set in the first is gone.
        serde_json::from_str::<NoKeyTwice>(&text).map_err(|error| error.to_string())
    } else {
        Ok(NoKeyTwice)
    };
    let parsed = parsed.and_then(|_| {
        let table = format.parse(None, &text);
        table.map_err(|error| error.to_string())
    });
    match parsed {
        Ok(table) => Ok((text, table)),
        Err(report) => {
            let (place, reason) = in_one_line(&report);
            Err(refuse(place, format!("cannot be parsed: {reason}")))
        }
    }
}

/// What stopped a file from being read.
pub(super) fn why_unreadable(error: &io::Error) -> String {
    const KNOWN: [(ErrorKind, &str); 4] = [
        (ErrorKind::NotFound, "there is no such file"),
        (ErrorKind::InvalidData, "it is not UTF-8 text"),
        (ErrorKind::IsADirectory, "it is a folder"),
        (
            ErrorKind::PermissionDenied,
            "permission denied; let the user that runs tocsin read it",
        ),
    ];
    let known = KNOWN.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, why)| (*why).to_owned())
}

/// Line and column of a parser's report, and what it says without what it quotes of the file.
fn in_one_line(report: &str) -> (Option<(usize, usize)>, String) {
    if report.starts_with("invalid type") {
        return (None, "it holds no sections with keys".to_owned());
    }
    let is_drawing = |line: &&str| {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c.is_whitespace());
        !line.starts_with('|')
    };
    let lines: Vec<_> = report.lines().filter(is_drawing).map(str::trim).collect();
    let report = lines.join(": ");
    let number_behind = |word: &str| -> Option<usize> {
        let (_, rest) = report.rsplit_once(word)?;
        let end = rest.find(|c: char| !c.is_ascii_digit());
        rest.get(..end.unwrap_or(rest.len()))?.parse().ok()
    };
    let place = number_behind("line ").zip(number_behind("column "));
    let advice = ADVICE.iter().find(|(said, _)| report.contains(said));
    let reason = match (advice, place) {
        (Some((_, advice)), _) => (*advice).to_owned(),
        (None, Some(_)) => without_place(&report),
        (None, None) => report,
    };
    (place, reason)
}

/// A report without where it is: TOML says so in front, YAML and JSON at the end.
fn without_place(report: &str) -> String {
    let reason = match report.strip_prefix("TOML parse error at ") {
        Some(report) => report.split_once(": ").map_or(report, |(_, reason)| reason),
        None => report
            .rsplit_once(" at line ")
            .map_or(report, |(reason, _)| reason),
    };
    let reason = reason
        .rsplit_once(" at byte ")
        .map_or(reason, |(reason, _)| reason);
    reason.to_owned()
}

/// The line that sets a key, if its last name begins one line and no other.
pub(super) fn line_of(text: &str, key: &str) -> Option<usize> {
    let name = key.rsplit('.').next()?;
    let is_setting = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let Some(rest) = line.strip_prefix(key).or_else(|| line.strip_prefix(name)) else {
            return false;
        };
        rest.trim_start_matches(['"', '\''])
            .trim_start()
            .starts_with(['=', ':'])
    };
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| is_setting(line));
    let (number, _) = lines.next()?;
    lines.next().is_none().then_some(number)
}

/// Any JSON in which no object has a key twice.
struct NoKeyTwice;

impl<'de> Deserialize<'de> for NoKeyTwice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = NoKeyTwice;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NoKeyTwice, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("duplicate key"));
            }
            map.next_value::<NoKeyTwice>()?;
        }
        Ok(NoKeyTwice)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NoKeyTwice, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(NoKeyTwice)
    }

    fn visit_bool<E>(self, _: bool) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_i64<E>(self, _: i64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_u64<E>(self, _: u64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_f64<E>(self, _: f64) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_str<E>(self, _: &str) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }

    fn visit_unit<E>(self) -> Result<NoKeyTwice, E> {
        Ok(NoKeyTwice)
    }
}
