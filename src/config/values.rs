//! How values are written: durations, sizes, choices and addresses.
//!
//! | kind | written | not |
//! |---|---|---|
//! | duration | `250ms`, `10s`, `5m`, `24h`, `7d` | `10`, `1.5h`, `1h30m` |
//! | size | `512B`, `64KiB`, `256MiB`, `16GiB`, `1TiB` | `64`, `64KB`, `64k` |
//! | server | `nats://host:4222`, `tls://host`, `host:4222` | `http://host`, `nats://` |
//!
//! Everything here is a function of its text; who set it, and what else must hold, is `resolve`'s part.

use std::fmt;
use std::time::Duration;

use ::config::{Value, ValueKind};
use tracing_subscriber::EnvFilter;

/// A duration's units in milliseconds, the largest first.
pub(super) const DURATION_UNITS: Units = Units {
    table: &[
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ],
    kind: "a duration",
    examples: "250ms, 10s or 7d",
};

/// A size's units in bytes, the largest first.
pub(super) const SIZE_UNITS: Units = Units {
    table: &[
        ("PiB", 1 << 50),
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("B", 1),
    ],
    kind: "a size",
    examples: "64KiB, 256MiB or 16GiB",
};

/// Whole numbers with a unit behind them.
pub(super) struct Units {
    table: &'static [(&'static str, u64)],
    pub(super) kind: &'static str,
    pub(super) examples: &'static str,
}

impl Units {
    /// Reads digits and directly behind them a unit.
    pub(super) fn parse(&self, text: &str) -> Option<u64> {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let (digits, unit) = text.split_at_checked(end)?;
        let (_, factor) = self.table.iter().find(|(name, _)| *name == unit)?;
        digits.parse::<u64>().ok()?.checked_mul(*factor)
    }

    /// What JSON Schema says of such a number.
    pub(super) fn pattern(&self) -> String {
        let names: Vec<_> = self.table.iter().map(|(name, _)| *name).collect();
        format!("^[0-9]+({})$", names.join("|"))
    }

    /// Prints with the largest unit that leaves a whole number.
    pub(super) fn print(&self, value: u64) -> String {
        let fitting = self
            .table
            .iter()
            .find(|(_, factor)| value.is_multiple_of(*factor));
        let (name, factor) = fitting.copied().unwrap_or(("", 1));
        format!("{}{name}", value / factor)
    }
}

/// Reads a duration as it is written in a configuration: `250ms`, `10s`, `5m`, `24h`, `7d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    DURATION_UNITS.parse(text).map(Duration::from_millis)
}

/// A value as its source has it: files know numbers from texts, the environment and `--set` do not.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar {
    /// A text.
    Text(String),
    /// A whole number.
    Integer(i128),
    /// Anything else, as it is shown in an error.
    Other(String),
}

impl Scalar {
    /// A value that is not a table.
    pub(super) fn new(value: Value) -> Self {
        match value.kind {
            ValueKind::String(text) => Self::Text(text),
            ValueKind::I64(number) => Self::Integer(number.into()),
            ValueKind::I128(number) => Self::Integer(number),
            ValueKind::U64(number) => Self::Integer(number.into()),
            ValueKind::U128(number) => i128::try_from(number)
                .map_or_else(|_| Self::Other(number.to_string()), Self::Integer),
            ValueKind::Float(number) => Self::Other(number.to_string()),
            ValueKind::Boolean(truth) => Self::Other(truth.to_string()),
            ValueKind::Array(_) => Self::Other("a list".to_owned()),
            ValueKind::Table(_) => Self::Other("a section".to_owned()),
            // `key:` without a value in YAML, `null` in JSON: written down, and nothing there.
            ValueKind::Nil => Self::Text(String::new()),
        }
    }

    /// As it stands in a file.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) | Self::Other(text) => text.as_str().into(),
            Self::Integer(number) => {
                i64::try_from(*number).map_or_else(|_| number.to_string().into(), Into::into)
            }
        }
    }

    /// The whole number that it is or spells.
    pub(super) fn as_count(&self) -> Option<u64> {
        match self {
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Self::Integer(number) => u64::try_from(*number).ok(),
            Self::Text(_) | Self::Other(_) => None,
        }
    }

    /// The text that it is.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Integer(_) | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => write!(f, "{number}"),
            Self::Other(shown) => f.write_str(shown),
        }
    }
}

/// What JSON Schema says of addresses, with commas between them: what [`is_server_url`] says of each.
pub(super) fn servers_pattern() -> String {
    let login = "((?!://)[^,])*@";
    let host = r"(\[[^\[\]\s/,@]+\]|[^\[\]\s/,@:]+)";
    let port =
        "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]";
    let server = format!(r"\s*((nats|tls)://)?({login})?{host}(:0*({port}))?/?\s*");
    format!("^{server}(,{server})*$")
}

/// Whether a text is a subject that means one subject.
pub(super) fn is_plain_subject(subject: &str) -> bool {
    let is_bad = |c: char| c.is_whitespace() || c == '*' || c == '>';
    subject
        .split('.')
        .all(|token| !token.is_empty() && !token.contains(is_bad))
}

/// Whether a text can be one server's address.
pub(super) fn is_server_url(url: &str) -> bool {
    let rest = match url.split_once("://") {
        Some(("nats" | "tls", rest)) => rest,
        Some(_) => return false,
        None => url,
    };
    let address = rest.rsplit_once('@').map_or(rest, |(_, address)| address);
    let address = address.strip_suffix('/').unwrap_or(address);
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => match bracketed.split_once(']') {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':').or(Some(""))),
            None => return false,
        },
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let is_host = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
    is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Whether a text can filter logs.
///
/// A bare word that is no level would be taken for a target, and everything else be silenced: a level is
/// asked for everywhere.
pub(super) fn is_log_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // Commas inside a span's fields do not separate directives.
    let has_levels = text.contains('[')
        || text.split(',').all(|directive| {
            let level = directive.rsplit('=').next().unwrap_or(directive).trim();
            LEVELS.iter().any(|name| level.eq_ignore_ascii_case(name))
        });
    has_levels && EnvFilter::builder().parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_need_digits_and_one_known_unit() {
        for (text, millis) in [
            ("250ms", 250),
            ("10s", 10_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(DURATION_UNITS.parse(text), Some(millis), "{text}");
        }
        for (text, bytes) in [("512B", 512), ("64KiB", 65_536), ("16GiB", 17_179_869_184)] {
            assert_eq!(SIZE_UNITS.parse(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "10",
            "s",
            "10 s",
            " 10s",
            "10S",
            "1.5h",
            "1h30m",
            "-1s",
            "+1s",
            "10sec",
            "１s",
            "99999999999999999999d",
            "18446744073709551615d",
        ] {
            assert_eq!(DURATION_UNITS.parse(text), None, "{text:?}");
        }
        for text in ["64", "64k", "64KB", "64kib", "64 KiB", "KiB", "99999999PiB"] {
            assert_eq!(SIZE_UNITS.parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn units_are_printed_as_large_as_they_stay_whole() {
        for (millis, text) in [
            (1, "1ms"),
            (90_000, "90s"),
            (3_600_000, "1h"),
            (1_209_600_000, "14d"),
        ] {
            assert_eq!(DURATION_UNITS.print(millis), text);
        }
        assert_eq!(SIZE_UNITS.print(1 << 20), "1MiB");
        assert_eq!(SIZE_UNITS.print(1025), "1025B");
    }

    #[test]
    fn addresses_are_told_from_what_only_looks_like_one() {
        for url in [
            "nats://127.0.0.1:4222",
            "tls://broker.example",
            "localhost",
            "localhost:4222",
            "nats://[::1]:4222",
            "nats://[::1]",
            "nats://user:p@ss@host:4222",
            "nats://host:4222/",
        ] {
            assert!(is_server_url(url), "{url}");
        }
        for url in [
            "",
            "nats://",
            "http://host",
            "ws://host",
            "nats://host:port",
            "nats://host:0",
            "nats://host:70000",
            "nats://host:",
            "nats://a b",
            "nats://host/path",
            "nats://::1:4222",
            "nats://[::1",
            "nats://[::1]4222",
        ] {
            assert!(!is_server_url(url), "{url}");
        }
    }

    #[test]
    fn a_plain_subject_has_no_wildcard_and_no_empty_token() {
        for subject in ["_INBOX", "_INBOX_tocsin", "a.b-c"] {
            assert!(is_plain_subject(subject), "{subject}");
        }
        for subject in ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "a*"] {
            assert!(!is_plain_subject(subject), "{subject}");
        }
    }

    #[test]
    fn a_log_filter_names_levels() {
        for text in [
            "info",
            "WARN",
            "warn,tocsin=debug",
            "tocsin::store=trace, info",
            "off",
            "tocsin[commit{partition=3}]=debug",
        ] {
            assert!(is_log_filter(text), "{text}");
        }
        for text in [
            "",
            "inof",
            "tocsin",
            "tocsin=loud",
            "info,,debug",
            "tocsin[commit=debug",
        ] {
            assert!(!is_log_filter(text), "{text}");
        }
    }
}
