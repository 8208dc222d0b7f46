//! What a key allows, said once: a value is checked against it, an error says it in words, the schema shows it.

use std::fmt;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::values::{DURATION_UNITS, SIZE_UNITS, Units, servers_pattern};

/// The characters of any text.
const PRINTABLE_PATTERN: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";
/// A subject of NATS without wildcards and spaces.
const SUBJECT_PATTERN: &str =
    r"^[^\s.*>\u0000-\u001f\u007f-\u009f]+(\.[^\s.*>\u0000-\u001f\u007f-\u009f]+)*$";
/// What may stand in `input.start`: two words, or an instant as `Timestamp::parse` reads it.
const START_PATTERN: &str = r"^(first|new|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2}))$";

/// What a key allows. `Display` says it in words that follow "must be".
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Allowed {
    /// Any text without control characters, or nothing.
    Text,
    /// A text that must be there.
    Required(&'static str),
    /// The path of a file that can be opened, or nothing.
    File,
    /// A text that is never shown, or nothing.
    Secret,
    /// Addresses of NATS servers, with commas between them.
    Servers,
    /// A subject that means one subject.
    Subject,
    /// A whole number.
    Count(RangeInclusive<usize>),
    /// Milliseconds, written with a unit.
    Duration(RangeInclusive<u64>),
    /// Bytes, written with a unit.
    Size(RangeInclusive<u64>),
    /// One of some words.
    Choice(Vec<&'static str>),
    /// Where reading begins.
    Start,
    /// Directives of the log.
    LogFilter,
}

impl Allowed {
    /// What JSON Schema says of it: whatever it refuses is refused here, too. Bounds of durations and sizes,
    /// and what only the system knows, it cannot say: they are in words.
    pub(super) fn schema(&self) -> Map<String, Value> {
        let text_or_nothing = || ("type", ["string", "null"].as_slice().into());
        let text = || ("type", "string".into());
        let pattern = |pattern: &str| ("pattern", pattern.into());
        match self {
            Self::Text | Self::File => fields([text_or_nothing(), pattern(PRINTABLE_PATTERN)]),
            // Whatever a secret may be is none of the schema's business.
            Self::Secret => fields([text_or_nothing()]),
            Self::Required(_) => {
                fields([text(), ("minLength", 1.into()), pattern(PRINTABLE_PATTERN)])
            }
            Self::Servers => fields([text(), pattern(&servers_pattern())]),
            Self::Subject => fields([text(), pattern(SUBJECT_PATTERN)]),
            Self::Count(range) => fields([
                ("type", "integer".into()),
                ("minimum", (*range.start()).into()),
                ("maximum", (*range.end()).into()),
            ]),
            Self::Duration(_) => fields([text(), pattern(&DURATION_UNITS.pattern())]),
            Self::Size(_) => fields([text(), pattern(&SIZE_UNITS.pattern())]),
            Self::Choice(names) => fields([text(), ("enum", names.as_slice().into())]),
            Self::Start => fields([text(), pattern(START_PATTERN)]),
            Self::LogFilter => fields([text(), ("minLength", 1.into())]),
        }
    }
}

/// A JSON object.
pub(super) fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    let owned = fields.map(|(name, value)| (name.to_owned(), value));
    owned.into_iter().collect()
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text | Self::Secret => f.write_str("a text"),
            Self::Required(what) => f.write_str(what),
            Self::File => f.write_str("the path of a file that can be read"),
            Self::Servers => {
                f.write_str("nats://host:port or tls://host:port, several with commas between them")
            }
            Self::Subject => {
                f.write_str("a subject without wildcards and spaces, such as _INBOX_tocsin")
            }
            Self::Count(range) => {
                write!(
                    f,
                    "a whole number from {} to {}",
                    range.start(),
                    range.end()
                )
            }
            Self::Duration(millis) => within(f, &DURATION_UNITS, millis),
            Self::Size(bytes) => within(f, &SIZE_UNITS, bytes),
            Self::Choice(names) => {
                let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
                write!(f, "one of {}", names.join(", "))
            }
            Self::Start => f.write_str("\"first\", \"new\" or a time such as 2026-01-31T00:00:00Z"),
            Self::LogFilter => f.write_str(
                "a level (off, error, warn, info, debug, trace) and target=level pairs, such as \
                 info,tocsin=debug",
            ),
        }
    }
}

fn within(f: &mut fmt::Formatter<'_>, units: &Units, range: &RangeInclusive<u64>) -> fmt::Result {
    let (least, most) = (units.print(*range.start()), units.print(*range.end()));
    let (kind, examples) = (units.kind, units.examples);
    write!(f, "{kind} from {least} to {most}, such as {examples}")
}
