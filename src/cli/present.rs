//! How statuses, ages and digests look as text: the same in every command.
//!
//! Ids are chosen by publishers: what would move the cursor or change colours is printed escaped.

use std::fmt;
use std::time::Duration;

use anstyle::Style;

use super::style::{CLEARED, CRITICAL, DIM, HEADING, WARNING};
use crate::core::time::Timestamp;
use crate::domains::alarms::{Digest, Status};

/// The style of a status.
pub(super) const fn style_of(status: Status) -> Style {
    match status {
        Status::Cleared => CLEARED,
        Status::Warning => WARNING,
        Status::Critical => CRITICAL,
    }
}

/// A status in its colour, padded to the widest.
pub(super) fn status(status: Status) -> String {
    let style = style_of(status);
    format!("{style}{:<8}{style:#}", status.as_str())
}

/// How long ago, in the two largest units that say something: `45s`, `2h 5m`, `3d 4h`.
pub(super) fn age(age: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "m"), (1, "s")];
    let seconds = age.as_secs();
    let largest = UNITS.iter().position(|(size, _)| seconds >= *size);
    let mut units = UNITS.iter().skip(largest.unwrap_or(UNITS.len() - 1));
    let (size, unit) = units.next().copied().unwrap_or((1, "s"));
    let whole = format!("{}{unit}", seconds / size);
    match units.next() {
        // Seconds beside minutes say nothing.
        Some((next, name)) if *next > 1 && seconds % size >= *next => {
            format!("{whole} {}{name}", seconds % size / next)
        }
        Some(_) | None => whole,
    }
}

/// How long before `now` an instant lies; one that lies ahead, by another's clock or on purpose, says so.
pub(super) fn age_at(instant: Timestamp, now: Timestamp) -> String {
    if instant <= now {
        age(now.since(instant))
    } else {
        format!("in {}", age(instant.since(now)))
    }
}

/// `1 alarm`, `2 alarms`.
pub(super) fn counted(num: usize, noun: &str) -> String {
    let plural = if num == 1 { "" } else { "s" };
    format!("{num} {noun}{plural}")
}

/// An instant in UTC to the second, as people write it: `2026-11-21 09:30:00Z`.
pub(super) fn instant(instant: Timestamp) -> String {
    const NANOS: u64 = 1_000_000_000;
    let seconds = Timestamp::from_seconds(instant.as_nanos() / NANOS);
    seconds.to_string().replace('T', " ")
}

/// A text from outside, on one line and without what a terminal would obey.
pub(super) fn shown(text: impl fmt::Display) -> String {
    let text = text.to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars()
        .map(|char| {
            if char.is_control() {
                char.escape_default().to_string()
            } else {
                char.to_string()
            }
        })
        .collect()
}

/// A line for each alarm of a digest: status, alarm, age at an instant, and a note beside each.
pub(super) fn alarms(digest: &Digest, at: Timestamp, notes: &[String]) -> String {
    let rows = digest.alarms.iter().enumerate().map(|(i, entry)| {
        let note = notes.get(i).map_or("", String::as_str);
        (
            entry,
            shown(&entry.alarm.0),
            age_at(entry.changed_at, at),
            note,
        )
    });
    let rows: Vec<_> = rows.collect();
    let width = |of: &dyn Fn(&str, &str) -> usize| {
        let widths = rows.iter().map(|(_, alarm, age, _)| of(alarm, age));
        widths.max().unwrap_or_default()
    };
    let alarm_width = width(&|alarm, _| alarm.chars().count());
    let age_width = width(&|_, age| age.len());
    let lines = rows.iter().map(|(entry, alarm, age, note)| {
        let status = status(entry.status);
        if note.is_empty() {
            format!("  {status}  {alarm:<alarm_width$}  {DIM}{age}{DIM:#}\n")
        } else {
            format!("  {status}  {alarm:<alarm_width$}  {DIM}{age:<age_width$}{DIM:#}  {note}\n")
        }
    });
    lines.collect()
}

/// A user's digest under a heading.
pub(super) fn digest(digest: &Digest, at: Timestamp) -> String {
    let num_alarms = counted(digest.alarms.len(), "alarm");
    let user = shown(&digest.user);
    format!(
        "{HEADING}{num_alarms} for {user}{HEADING:#}\n{}",
        alarms(digest, at, &[])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ids::{Id, UserId};
    use crate::domains::alarms::{AlarmId, DigestEntry};

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn an_age_has_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (119, "1m"),
            (3599, "59m"),
            (3600, "1h"),
            (7500, "2h 5m"),
            (86_400, "1d"),
            (86_460, "1d"),
            (273_600, "3d 4h"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text, "{seconds}");
        }
        let (early, late) = (Timestamp::from_seconds(5), Timestamp::from_seconds(65));
        assert_eq!(age_at(early, late), "1m");
        assert_eq!(age_at(late, early), "in 1m");
    }

    #[test]
    fn an_instant_is_printed_to_the_second() {
        let nanos = Timestamp::from_nanos(1_767_225_600_999_999_999);
        assert_eq!(instant(nanos), "2026-01-01 00:00:00Z");
    }

    #[test]
    fn an_id_cannot_move_the_cursor_or_break_the_line() {
        assert_eq!(shown("disk é"), "disk é");
        assert_eq!(
            shown("a\u{1b}[31mb\r\n\u{9b}"),
            "a\\u{1b}[31mb\\r\\n\\u{9b}"
        );
    }

    #[test]
    fn a_digest_is_a_heading_and_a_line_an_alarm_aligned() {
        let entry = |alarm: &str, status, second| DigestEntry {
            alarm: AlarmId(Id::new(alarm).unwrap()),
            status,
            changed_at: Timestamp::from_seconds(second),
        };
        let mut two = Digest {
            user: UserId(Id::new("ann").unwrap()),
            alarms: vec![
                entry("disk", Status::Critical, 0),
                entry("é long one", Status::Warning, 7000),
            ],
        };
        let now = Timestamp::from_seconds(7200);
        let expected = "2 alarms for ann\n  CRITICAL  disk        2h\n  WARNING   é long one  3m\n";
        assert_eq!(plain(&digest(&two, now)), expected);
        assert!(digest(&two, now).contains("\u{1b}[1m\u{1b}[31mCRITICAL\u{1b}[0m"));
        let noted = alarms(&two, now, &["new".to_owned(), "again".to_owned()]);
        let expected = "  CRITICAL  disk        2h  new\n  WARNING   é long one  3m  again\n";
        assert_eq!(plain(&noted), expected);
        two.alarms.pop();
        assert!(plain(&digest(&two, now)).starts_with("1 alarm for ann\n"));
    }
}
