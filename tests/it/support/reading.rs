//! What a message of the input says, read from the specification alone: no code of the daemon, and no JSON
//! parser that it uses, either.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// How far ahead of its arrival a change may lie, by default.
pub(crate) const MAX_FUTURE_NANOS: i128 = 24 * 3600 * 1_000_000_000;
const MAX_ID_BYTES: usize = 256;

/// What a message says that is not to be refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Said {
    Change {
        user: String,
        alarm: String,
        status: &'static str,
        /// Nanoseconds since 1970.
        at: i128,
    },
    Request {
        user: String,
    },
}

/// Reads a message that arrived so many nanoseconds after 1970; `None` where it is to be refused.
pub(crate) fn read(subject: &str, payload: &[u8], arrived: i128) -> Option<Said> {
    let (name, twin) = match subject.split_once('.') {
        Some((name, twin)) => (name, Some(twin)),
        None => (subject, None),
    };
    let is_change = match name {
        "AlarmStatusChanged" => true,
        "SendAlarmDigest" => false,
        _ => return None,
    };
    if twin.is_some_and(|twin| twin.is_empty() || twin.contains('.')) {
        return None;
    }
    let fields = fields(std::str::from_utf8(payload).ok()?)?;
    // The last of those with that name, in whatever case.
    let text = |name: &str| {
        let mut named = fields.iter().rev();
        let (_, value) = named.find(|(it, _)| it.eq_ignore_ascii_case(name))?;
        unquoted(value).filter(|text| !text.is_empty())
    };
    let id = |name: &str| text(name).filter(|id| id.len() <= MAX_ID_BYTES);
    let user = id("UserID")?;
    if !is_change {
        return Some(Said::Request { user });
    }
    let alarm = id("AlarmID")?;
    let status = text("Status")?;
    let statuses = ["CLEARED", "WARNING", "CRITICAL"];
    let status = statuses.into_iter().find(|known| *known == status)?;
    let at = instant(&text("ChangedAt")?)?;
    let is_acceptable = at >= 0 && at <= arrived + MAX_FUTURE_NANOS;
    is_acceptable.then_some(Said::Change {
        user,
        alarm,
        status,
        at,
    })
}

/// The instant of an RFC 3339 date-time with at most nine fractional digits, in nanoseconds since 1970.
pub(crate) fn instant(text: &str) -> Option<i128> {
    // What that parser takes and the specification does not: a leap second, more digits, another separator.
    const SHAPE: &[u8] = b"dddd-dd-ddTdd:dd:dd";
    let (whole, rest) = text.as_bytes().split_at_checked(SHAPE.len())?;
    let is_of_shape = SHAPE.iter().zip(whole).all(|(shape, byte)| match shape {
        b'd' => byte.is_ascii_digit(),
        other => byte.eq_ignore_ascii_case(other),
    });
    let num_digits = rest.strip_prefix(b".").map_or(1, |fraction| {
        let digits = fraction.iter().take_while(|it| it.is_ascii_digit());
        digits.count()
    });
    let is_leap_second = whole.ends_with(b":60");
    if !is_of_shape || is_leap_second || !(1..=9).contains(&num_digits) {
        return None;
    }
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    Some(at.unix_timestamp_nanos())
}

/// The names of an object's fields and, as they stand there, their values; `None` for whatever is no object
/// in JSON as RFC 8259 has it.
fn fields(json: &str) -> Option<Vec<(String, &str)>> {
    let mut left = Left(json);
    left.space();
    left.sign('{')?;
    left.space();
    let mut fields = Vec::new();
    if left.sign('}').is_none() {
        loop {
            left.space();
            let name = unquoted(left.taken(Left::string)?)?;
            left.space();
            left.sign(':')?;
            left.space();
            fields.push((name, left.taken(Left::value)?));
            left.space();
            if left.sign(',').is_none() {
                break;
            }
        }
        left.sign('}')?;
    }
    left.space();
    left.0.is_empty().then_some(fields)
}

/// What is left to read.
struct Left<'a>(&'a str);

impl<'a> Left<'a> {
    /// What a rule reads, as it stands there.
    fn taken(&mut self, rule: fn(&mut Self) -> Option<()>) -> Option<&'a str> {
        let before = self.0;
        rule(self)?;
        before.get(..before.len() - self.0.len())
    }

    fn space(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn sign(&mut self, sign: char) -> Option<()> {
        self.word(sign.encode_utf8(&mut [0; 4]))
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.0 = self.0.strip_prefix(word)?;
        Some(())
    }

    /// A value of any depth: what is open lies on a stack of its own.
    fn value(&mut self) -> Option<()> {
        let mut open = Vec::new();
        loop {
            self.space();
            if self.sign('[').is_some() {
                open.push(']');
                self.space();
                if !self.0.starts_with(']') {
                    continue;
                }
            } else if self.sign('{').is_some() {
                open.push('}');
                self.space();
                if !self.0.starts_with('}') {
                    self.name()?;
                    continue;
                }
            } else {
                self.scalar()?;
            }
            // What was the last of its list or object closes it.
            loop {
                let Some(&close) = open.last() else {
                    return Some(());
                };
                self.space();
                if self.sign(close).is_some() {
                    open.pop();
                    continue;
                }
                self.sign(',')?;
                if close == '}' {
                    self.space();
                    self.name()?;
                }
                break;
            }
        }
    }

    fn name(&mut self) -> Option<()> {
        self.string()?;
        self.space();
        self.sign(':')
    }

    fn scalar(&mut self) -> Option<()> {
        match self.0.bytes().next()? {
            b'"' => self.string(),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    fn number(&mut self) -> Option<()> {
        self.sign('-').unwrap_or_default();
        if self.sign('0').is_none() {
            self.digits()?;
        }
        if self.sign('.').is_some() {
            self.digits()?;
        }
        if self.sign('e').or_else(|| self.sign('E')).is_some() {
            self.sign('+')
                .or_else(|| self.sign('-'))
                .unwrap_or_default();
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let left = self.0.trim_start_matches(|it: char| it.is_ascii_digit());
        let is_some = left.len() < self.0.len();
        self.0 = left;
        is_some.then_some(())
    }

    fn string(&mut self) -> Option<()> {
        self.sign('"')?;
        loop {
            self.0 = self
                .0
                .trim_start_matches(|it: char| it >= ' ' && it != '"' && it != '\\');
            if self.sign('"').is_some() {
                return Some(());
            }
            self.sign('\\')?;
            let escaped = self.0.chars().next()?;
            self.sign(escaped)?;
            match escaped {
                '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't' => {}
                'u' => {
                    let (digits, left) = self.0.split_at_checked(4)?;
                    digits
                        .bytes()
                        .all(|it| it.is_ascii_hexdigit())
                        .then_some(())?;
                    self.0 = left;
                }
                _ => return None,
            }
        }
    }
}

/// The text that a string means; `None` where it is no string, or means none: half of a surrogate pair.
fn unquoted(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"')?.strip_suffix('"')?;
    let mut units = Vec::new();
    let mut chars = quoted.chars();
    while let Some(char) = chars.next() {
        let char = if char == '\\' {
            match chars.next()? {
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&digits, 16).ok()?);
                    continue;
                }
                itself => itself,
            }
        } else {
            char
        };
        units.extend_from_slice(char.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_rfc_8259_has_it() {
        let names = |json: &str| {
            let fields = fields(json)?;
            Some(
                fields
                    .into_iter()
                    .map(|(name, value)| format!("{name}={value}")),
            )
            .map(|fields| fields.collect::<Vec<_>>().join(" "))
        };
        for (json, read) in [
            ("{}", ""),
            (" { } ", ""),
            (r#"{"a":1,"a":-0.5e+7}"#, "a=1 a=-0.5e+7"),
            (
                r#"{ "\u0061" : [ ] , "b":{"c":[[],{}, "x"]} }"#,
                r#"a=[ ] b={"c":[[],{}, "x"]}"#,
            ),
            (r#"{"a":"\ud800"}"#, r#"a="\ud800""#),
        ] {
            assert_eq!(names(json).as_deref(), Some(read), "{json}");
        }
        for json in [
            "",
            "[]",
            "{",
            "{}x",
            "{,}",
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":1.}"#,
            r#"{"a":.5}"#,
            r#"{"a":+1}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":[}"#,
            r#"{"a":{"b"}}"#,
            r#"{"a":NaN}"#,
            "{\"a\":\"\n\"}",
            r#"{"a":"\x"}"#,
            r#"{"a":"\u12g4"}"#,
            "\u{feff}{}",
            "{'a':1}",
            r#"{"\ud800":1}"#,
            "{\"a\":1}\u{a0}",
        ] {
            assert_eq!(names(json), None, "{json}");
        }
    }

    #[test]
    fn a_string_means_its_characters() {
        assert_eq!(
            unquoted(r#""\ud83d\udd14\/\u0000\t""#).as_deref(),
            Some("\u{1f514}/\0\t")
        );
        assert_eq!(unquoted(r#""\udd14""#), None);
        assert_eq!(unquoted("7"), None);
    }

    #[test]
    fn only_what_the_specification_takes_is_an_instant() {
        assert_eq!(instant("1970-01-01t01:00:00.5+01:00"), Some(500_000_000));
        for text in [
            "1970-01-01 00:00:00Z",
            "2016-12-31T23:59:60Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.1234567890Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:00:00",
        ] {
            assert_eq!(instant(text), None, "{text}");
        }
    }
}
