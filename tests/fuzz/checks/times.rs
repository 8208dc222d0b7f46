//! A text as a time: read and printed as another parser, held to the specification, reads and prints it.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tocsin::core::time::{TimeError, Timestamp};

use super::reading;

/// Returns whether the text is a time.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let theirs = reading::instant(text);
    match Timestamp::parse(text) {
        Ok(ours) => {
            let theirs = theirs.expect("what is read is a time");
            let last = i128::from(Timestamp::MAX.as_nanos());
            assert_eq!(i128::from(ours.as_nanos()), theirs.min(last), "{text:?}");
            let printed = ours.to_string();
            assert_eq!(Timestamp::parse(&printed), Ok(ours), "{text:?}");
            let nanos = i128::from(ours.as_nanos());
            let as_theirs = OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("before 9999");
            let as_theirs = as_theirs.format(&Rfc3339).expect("of four digits");
            assert_eq!(as_theirs, printed, "{text:?}");
            true
        }
        Err(TimeError::Before1970) => {
            assert!(theirs.is_some_and(|theirs| theirs < 0), "{text:?}");
            false
        }
        Err(TimeError::Malformed) => {
            assert_eq!(theirs, None, "{text:?}");
            false
        }
    }
}
