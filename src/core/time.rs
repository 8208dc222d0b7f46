//! Instants: nanoseconds since 1970 in UTC, strictly read and shortest printed.
//!
//! [`Timestamp::parse`] takes exactly the `date-time` of RFC 3339 section 5.6 with 0 to 9 fractional
//! digits; what lenient parsers also take is refused. [`Timestamp`] prints as Go's `RFC3339Nano` does:
//! `Z`, and as many fractional digits as are needed.

use std::fmt;
use std::time::Duration;

use thiserror::Error;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// An instant: nanoseconds since 1970-01-01T00:00:00Z, up to the year 2554.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(u64);

/// Why a text is not a [`Timestamp`].
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TimeError {
    /// Not exactly RFC 3339 section 5.6 with at most nine fractional digits.
    #[error("not an RFC 3339 date-time with at most nine fractional digits")]
    Malformed,
    /// Before 1970-01-01T00:00:00Z.
    #[error("before 1970")]
    Before1970,
}

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// The last instant that fits; what lies beyond reads as this one.
    pub const MAX: Self = Self(u64::MAX);

    /// An instant from nanoseconds since 1970.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// An instant from whole seconds since 1970.
    #[must_use]
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(NANOS_PER_SECOND))
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The first whole second that is not before this instant.
    #[must_use]
    pub const fn as_seconds_rounded_up(self) -> u64 {
        self.0.div_ceil(NANOS_PER_SECOND)
    }

    /// This instant moved forwards, held at [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(duration)))
    }

    /// This instant moved backwards, held at 1970.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(duration)))
    }

    /// How long after `earlier` this instant lies; zero when it does not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Reads exactly an RFC 3339 `date-time`.
    ///
    /// # Errors
    /// [`TimeError::Malformed`] for any other text, [`TimeError::Before1970`] for an earlier instant.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let mut scan = Scan(text.as_bytes());
        let year = scan.digits(4)?;
        scan.one_of(b"-")?;
        let month = scan.digits(2)?;
        scan.one_of(b"-")?;
        let day = scan.digits(2)?;
        scan.one_of(b"Tt")?;
        let hour = scan.digits(2)?;
        scan.one_of(b":")?;
        let minute = scan.digits(2)?;
        scan.one_of(b":")?;
        let second = scan.digits(2)?;
        let nanos = scan.fraction()?;
        let offset_minutes = scan.offset()?;
        let is_in_range = (1..=12).contains(&month)
            && (1..=days_in_month(year, month)).contains(&day)
            && hour < 24
            && minute < 60
            && second < 60;
        if !is_in_range || !scan.0.is_empty() {
            return Err(TimeError::Malformed);
        }
        let seconds = days_from_civil(year, month, day) * SECONDS_PER_DAY
            + hour * 3600
            + minute * 60
            + second
            - offset_minutes * 60;
        let seconds = u64::try_from(seconds).map_err(|_| TimeError::Before1970)?;
        let whole = seconds.checked_mul(NANOS_PER_SECOND);
        Ok(whole
            .and_then(|whole| whole.checked_add(nanos))
            .map_or(Self::MAX, Self))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / NANOS_PER_SECOND;
        let nanos = self.0 % NANOS_PER_SECOND;
        let (days, of_day) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )?;
        if nanos > 0 {
            let digits = format!("{nanos:09}");
            write!(f, ".{}", digits.trim_end_matches('0'))?;
        }
        f.write_str("Z")
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What is left to read of a text.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn next(&mut self) -> Result<u8, TimeError> {
        let (first, rest) = self.0.split_first().ok_or(TimeError::Malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    fn one_of(&mut self, allowed: &[u8]) -> Result<u8, TimeError> {
        let byte = self.next()?;
        if allowed.contains(&byte) {
            Ok(byte)
        } else {
            Err(TimeError::Malformed)
        }
    }

    fn digits(&mut self, count: usize) -> Result<i64, TimeError> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.next()?;
            if !byte.is_ascii_digit() {
                return Err(TimeError::Malformed);
            }
            value = value * 10 + i64::from(byte - b'0');
        }
        Ok(value)
    }

    /// Reads `.` and one to nine digits, or nothing: nanoseconds.
    fn fraction(&mut self) -> Result<u64, TimeError> {
        if self.0.first() != Some(&b'.') {
            return Ok(0);
        }
        self.next()?;
        let (mut nanos, mut num_digits) = (0, 0);
        while let Some(digit) = self.0.first().filter(|byte| byte.is_ascii_digit()) {
            nanos = nanos * 10 + u64::from(digit - b'0');
            num_digits += 1;
            if num_digits > 9 {
                return Err(TimeError::Malformed);
            }
            self.next()?;
        }
        if num_digits == 0 {
            return Err(TimeError::Malformed);
        }
        Ok(nanos * 10_u64.pow(9 - num_digits))
    }

    /// Reads `Z` or `+hh:mm` or `-hh:mm`: minutes east of UTC.
    fn offset(&mut self) -> Result<i64, TimeError> {
        let sign = match self.one_of(b"Zz+-")? {
            b'+' => 1,
            b'-' => -1,
            _ => return Ok(0),
        };
        let hours = self.digits(2)?;
        self.one_of(b":")?;
        let minutes = self.digits(2)?;
        if hours >= 24 || minutes >= 60 {
            return Err(TimeError::Malformed);
        }
        Ok(sign * (hours * 60 + minutes))
    }
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar
/// (`days_from_civil` of Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The date that lies so many days after 1970-01-01: the inverse of [`days_from_civil`].
const fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn exactly_rfc_3339_is_read() {
        for (text, printed) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            (
                "2026-11-20t23:59:59.000000001z",
                "2026-11-20T23:59:59.000000001Z",
            ),
            ("2024-02-29T12:00:00.5+02:00", "2024-02-29T10:00:00.5Z"),
            ("2000-02-29T23:59:59Z", "2000-02-29T23:59:59Z"),
            ("2000-03-01T01:00:00+01:01", "2000-02-29T23:59:00Z"),
            ("2026-01-01T00:30:00-00:45", "2026-01-01T01:15:00Z"),
            ("1970-01-01T01:00:00.120+01:00", "1970-01-01T00:00:00.12Z"),
            (
                "2100-12-31T23:59:59.999999999-23:59",
                "2101-01-01T23:58:59.999999999Z",
            ),
        ] {
            assert_eq!(
                Timestamp::parse(text).map(|it| it.to_string()),
                Ok(printed.into()),
                "{text}"
            );
        }
        assert_eq!(Timestamp::parse("9999-12-31T23:59:59Z"), Ok(Timestamp::MAX));
    }

    #[test]
    fn what_lenient_parsers_take_is_refused() {
        for text in [
            "",
            "2026-11-20",
            "2026-11-20 10:00:00Z",
            "2026-11-2010:00:00Z",
            "2026-11-20T10:00Z",
            "2026-11-20T10:00:00",
            "2026-11-20T10:00:60Z",
            "2026-11-20T24:00:00Z",
            "2026-11-20T10:00:00,5Z",
            "2026-11-20T10:00:00.Z",
            "2026-11-20T10:00:00.1234567890Z",
            "+2026-11-20T10:00:00Z",
            "-026-11-20T10:00:00Z",
            "2026-11-20T10:00:00+0100",
            "2026-11-20T10:00:00+24:00",
            "2026-11-20T10:00:00+01:60",
            "2026-11-20T100000Z",
            "2026-11-20T10:00:00Z[UTC]",
            "2026-02-29T10:00:00Z",
            "2100-02-29T10:00:00Z",
            "2026-00-10T10:00:00Z",
            "2026-13-10T10:00:00Z",
            "2026-04-31T10:00:00Z",
            "2026-11-00T10:00:00Z",
            "2026-11-20T10:00:00ZZ",
            " 2026-11-20T10:00:00Z",
            "2026-11-20T10:00:00\u{2212}01:00",
            "２026-11-20T10:00:00Z",
            "2026-11-20T10:60:00Z",
            "1795000000",
        ] {
            assert_eq!(
                Timestamp::parse(text),
                Err(TimeError::Malformed),
                "{text:?}"
            );
        }
        for text in [
            "1969-12-31T23:59:59.999999999Z",
            "1970-01-01T00:00:00+00:01",
            "0000-01-01T00:00:00Z",
        ] {
            assert_eq!(Timestamp::parse(text), Err(TimeError::Before1970), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(nanos in any::<u64>()) {
            let instant = Timestamp::from_nanos(nanos);
            prop_assert_eq!(Timestamp::parse(&instant.to_string()), Ok(instant));
        }

        #[test]
        fn the_calendar_is_that_of_the_time_crate(nanos in any::<u64>()) {
            let ours = Timestamp::from_nanos(nanos).to_string();
            let theirs = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).expect("in range");
            let (year, month, day) = theirs.to_calendar_date();
            let (hour, minute, second, nano) = theirs.to_hms_nano();
            let expected = format!(
                "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}", u8::from(month));
            let expected = expected.trim_end_matches('0').trim_end_matches('.').to_owned();
            let ours_trimmed = ours.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
            prop_assert_eq!(ours_trimmed, expected);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            if let Ok(instant) = Timestamp::parse(&text) {
                prop_assert_eq!(Timestamp::parse(&instant.to_string()), Ok(instant));
            }
        }
    }
}
