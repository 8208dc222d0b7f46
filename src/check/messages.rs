//! The three messages as a stranger writes and reads them.
//!
//! Written strictly: the exact bytes that the specification asks for. Read leniently: a service that spells a
//! name in another letter case is different, not wrong, and [`Digest::is_exact`] tells which.

use std::fmt;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What an alarm can be.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Status {
    /// Not active.
    Cleared,
    /// Active.
    Warning,
    /// Active.
    Critical,
}

impl Status {
    /// Each once.
    pub const ALL: [Self; 3] = [Self::Cleared, Self::Warning, Self::Critical];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cleared => "CLEARED",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }

    /// Whether a digest may hold it.
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Warning | Self::Critical)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Nanoseconds since 1970 in UTC.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Instant(pub u64);

impl Instant {
    /// What this machine's clock says.
    #[must_use]
    pub fn now() -> Self {
        let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
        Self(u64::try_from(nanos).unwrap_or_default())
    }

    /// Reads an RFC 3339 date-time.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp_nanos()).ok().map(Self)
    }
}

/// RFC 3339 in UTC with `Z`, and as many fractional digits as are needed.
impl fmt::Display for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0));
        let text = at.ok().and_then(|at| at.format(&Rfc3339).ok());
        f.pad(&text.ok_or(fmt::Error)?)
    }
}

/// One alarm of a digest; `A` names it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry<A> {
    /// Which alarm.
    pub alarm: A,
    /// What it is.
    pub status: Status,
    /// Since when.
    pub at: Instant,
}

/// The bytes of a change.
#[must_use]
pub fn change(user: &str, alarm: &str, status: Status, at: Instant) -> String {
    format!(
        "{{\"AlarmID\":{},\"UserID\":{},\"Status\":\"{status}\",\"ChangedAt\":\"{at}\"}}",
        Value::from(alarm),
        Value::from(user),
    )
}

/// The bytes of a request.
#[must_use]
pub fn request(user: &str) -> String {
    format!("{{\"UserID\":{}}}", Value::from(user))
}

/// The bytes that a digest of these alarms must have.
#[must_use]
pub fn digest<A: AsRef<str>>(user: &str, entries: &[Entry<A>]) -> String {
    let alarms: Vec<_> = entries
        .iter()
        .map(|entry| {
            format!(
                "{{\"AlarmID\":{},\"Status\":\"{}\",\"LatestChangedAt\":\"{}\"}}",
                Value::from(entry.alarm.as_ref()),
                entry.status,
                entry.at,
            )
        })
        .collect();
    format!(
        "{{\"UserID\":{},\"ActiveAlarms\":[{}]}}",
        Value::from(user),
        alarms.join(",")
    )
}

/// A digest as it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Digest {
    /// Whose.
    pub user: String,
    /// Its alarms, as they stand in it.
    pub entries: Vec<Entry<String>>,
    /// Whether its bytes are those that [`digest()`] writes.
    pub is_exact: bool,
    /// Whether its times are printed as [`digest()`] prints them.
    pub has_exact_times: bool,
}

impl Digest {
    /// Reads a digest, whatever the letter case of its names.
    ///
    /// # Errors
    /// What is missing or of the wrong type, in words.
    pub fn read(payload: &[u8]) -> Result<Self, String> {
        let json: Value = serde_json::from_slice(payload)
            .map_err(|error| format!("a digest is not JSON: {error}"))?;
        let user = text(&json, "UserID")?.to_owned();
        let list = field(&json, "ActiveAlarms")?;
        let alarms = match list.as_array() {
            Some(alarms) => alarms.as_slice(),
            // What Go makes of a list that was never filled.
            None if list.is_null() => &[],
            None => return Err(format!("ActiveAlarms is no list: {list}")),
        };
        let entries: Vec<_> = alarms.iter().map(read_entry).collect::<Result<_, _>>()?;
        let is_time_exact = |(json, entry): (&Value, &Entry<String>)| {
            text(json, "LatestChangedAt").is_ok_and(|text| text == entry.at.to_string())
        };
        let has_exact_times = alarms.iter().zip(&entries).all(is_time_exact);
        let is_exact = digest(&user, &entries).as_bytes() == payload;
        Ok(Self {
            user,
            entries,
            is_exact,
            has_exact_times,
        })
    }
}

fn read_entry(json: &Value) -> Result<Entry<String>, String> {
    let status = text(json, "Status")?;
    let at = text(json, "LatestChangedAt")?;
    Ok(Entry {
        alarm: text(json, "AlarmID")?.to_owned(),
        status: Status::ALL
            .into_iter()
            .find(|known| known.as_str() == status)
            .ok_or_else(|| format!("Status is none that exists: {status:?}"))?,
        at: Instant::parse(at)
            .ok_or_else(|| format!("LatestChangedAt is no RFC 3339 time: {at:?}"))?,
    })
}

fn field<'a>(json: &'a Value, name: &str) -> Result<&'a Value, String> {
    let fields = json
        .as_object()
        .ok_or_else(|| format!("not an object: {json}"))?;
    let named = fields.iter().find(|(it, _)| it.eq_ignore_ascii_case(name));
    named
        .map(|(_, value)| value)
        .ok_or_else(|| format!("{name} is missing: {json}"))
}

fn text<'a>(json: &'a Value, name: &str) -> Result<&'a str, String> {
    let value = field(json, name)?;
    value
        .as_str()
        .ok_or_else(|| format!("{name} is no text: {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "{\"UserID\":\"ann \\\"a\\\"\",\"ActiveAlarms\":[\
        {\"AlarmID\":\"disk\",\"Status\":\"CRITICAL\",\"LatestChangedAt\":\"2026-01-01T00:00:00.05Z\"}]}";

    #[test]
    fn what_is_written_is_read_and_known_to_be_exact() {
        let read = Digest::read(DIGEST.as_bytes()).unwrap();
        assert!(read.is_exact && read.has_exact_times);
        assert_eq!(read.user, "ann \"a\"");
        assert_eq!(read.entries[0].at, Instant(1_767_225_600_050_000_000));
        assert_eq!(digest(&read.user, &read.entries), DIGEST);
    }

    #[test]
    fn another_letter_case_or_a_space_is_different_and_not_wrong() {
        for other in [
            DIGEST.replace("UserID", "userId"),
            DIGEST.replace(":[", ": ["),
            DIGEST.replace("00.05Z", "00.050Z"),
        ] {
            let read = Digest::read(other.as_bytes()).unwrap();
            assert!(!read.is_exact, "{other}");
            assert_eq!(read.entries.len(), 1);
            assert_eq!(read.has_exact_times, !other.contains("00.050Z"), "{other}");
        }
        let empty = Digest::read(b"{\"UserID\":\"ann\",\"ActiveAlarms\":null}").unwrap();
        assert_eq!((empty.entries.len(), empty.is_exact), (0, false));
    }

    #[test]
    fn what_is_no_digest_says_what_is_wrong_with_it() {
        for (payload, why) in [
            ("{", "not JSON"),
            ("[]", "not an object"),
            ("{\"UserID\":\"ann\"}", "ActiveAlarms is missing"),
            ("{\"UserID\":7,\"ActiveAlarms\":[]}", "UserID is no text"),
            (&DIGEST.replace("CRITICAL", "critical"), "none that exists"),
            (
                &DIGEST.replace("2026-01-01T", "2026-01-01 at "),
                "no RFC 3339",
            ),
        ] {
            let error = Digest::read(payload.as_bytes()).unwrap_err();
            assert!(error.contains(why), "{payload}: {error}");
        }
    }
}
