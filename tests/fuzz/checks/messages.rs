//! A subject, a line feed and a payload: read as the specification says, by the daemon's reader and by one that
//! shares no code with it; what is read is written and read again; what is refused becomes a whole dead letter.

use std::collections::BTreeSet;
use std::time::Duration;

use tocsin::bus::Outbound;
use tocsin::bus::wire::{
    Joiner, Limits, MESSAGE_ID_HEADER, PART_HEADER, Reject, decode, decode_digest, decode_reply,
    encode_command, encode_digest, message_bytes, split_dead_letter, split_digest,
};
use tocsin::check::messages as stranger;
use tocsin::core::ids::MessageId;
use tocsin::core::parts::Stored;
use tocsin::core::position::Cursor;
use tocsin::core::time::Timestamp;
use tocsin::domains::Command;
use tocsin::domains::alarms::Digest;

use super::reading::{self, Said};

/// When every message arrives: 2026-11-20T10:00:00Z.
const ARRIVED: Timestamp = Timestamp::from_seconds(1_795_168_800);
const ID: MessageId = MessageId::Stream {
    cursor: Cursor {
        generation: 0,
        sequence: 7,
    },
    timestamp: ARRIVED,
};
/// What brokers take: the default, what splits, and what is too little for anything.
const MAX_PAYLOADS: [usize; 3] = [1 << 20, 700, 64];

/// Returns whether the message, or the digest that it may be, was taken.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let subject = parts.next().unwrap_or_default();
    let payload = parts.next().unwrap_or_default();
    let Ok(subject) = std::str::from_utf8(subject) else {
        return false;
    };
    drop(decode_reply(payload));
    let digest = decode_digest(payload);
    if let Ok(digest) = &digest {
        check_digest(digest);
    }
    let limits = Limits {
        max_future: Duration::from_hours(24),
    };
    let read = decode(subject, payload, ARRIVED, &limits);
    let said = read.as_ref().ok().map(said);
    let arrived = i128::from(ARRIVED.as_nanos());
    assert_eq!(
        said,
        reading::read(subject, payload, arrived),
        "{subject}: {payload:?}"
    );
    match read {
        Ok(command) => {
            let (subject, written) = encode_command(&command);
            let again = decode(subject, &written, ARRIVED, &limits);
            assert_eq!(again.as_ref(), Ok(&command));
            true
        }
        Err(reject) => {
            check_refused(reject, subject, payload);
            digest.is_ok()
        }
    }
}

fn said(command: &Command) -> Said {
    match command {
        Command::StatusChanged {
            user,
            alarm,
            status,
            changed_at,
        } => Said::Change {
            user: user.0.to_string(),
            alarm: alarm.0.to_string(),
            status: status.as_str(),
            at: i128::from(changed_at.as_nanos()),
        },
        Command::SendDigest { user } => Said::Request {
            user: user.0.to_string(),
        },
    }
}

fn check_refused(reject: Reject, subject: &str, payload: &[u8]) {
    assert!(Reject::CODES.contains(&reject.code()));
    let shown = reject.to_string();
    // What was found is cut after 64 characters; escaped, each may take ten.
    assert!(!shown.is_empty() && shown.len() < 1024, "{shown}");
    let letter = reject.into_dead_letter(subject, payload);
    for max_payload in MAX_PAYLOADS {
        let Ok(parts) = split_dead_letter(&ID, &letter, &Stored::default(), max_payload) else {
            assert!(max_payload < 1 << 20, "the headers leave room for a part");
            continue;
        };
        check_parts(&parts, max_payload);
        let joined: Vec<u8> = parts
            .iter()
            .flat_map(|part| part.payload.to_vec())
            .collect();
        assert_eq!(joined, payload);
    }
}

fn check_digest(digest: &Digest) {
    let whole = encode_digest(digest);
    assert_eq!(decode_digest(&whole).as_ref(), Ok(digest));
    let theirs = stranger::Digest::read(&whole).expect("a stranger reads it");
    assert!(theirs.is_exact && theirs.has_exact_times, "{whole:?}");
    assert_eq!(theirs.user, digest.user.0.to_string());
    assert_eq!(theirs.entries.len(), digest.alarms.len());
    for max_payload in MAX_PAYLOADS {
        let Ok(parts) = split_digest(&ID, digest, &Stored::default(), max_payload) else {
            continue;
        };
        check_parts(&parts, max_payload);
        let mut joiner = Joiner::default();
        let taken = parts.iter().filter_map(|part| {
            let of_header = part.headers.iter().find(|(name, _)| *name == PART_HEADER);
            let number = of_header.map(|(_, value)| value.as_str());
            let taken = joiner.take(Some(&part.id), number, part.payload.clone());
            taken.expect("a part is a digest")
        });
        let taken: Vec<_> = taken.collect();
        assert_eq!(taken.len(), 1, "the last part makes it whole");
        assert_eq!((&taken[0].digest, &taken[0].payload), (digest, &whole));
    }
}

/// Each fits, has an id of its own, and headers of one line.
fn check_parts(parts: &[Outbound], max_payload: usize) {
    let ids: BTreeSet<_> = parts.iter().map(|part| &part.id).collect();
    assert_eq!(ids.len(), parts.len(), "{MESSAGE_ID_HEADER} names one part");
    for part in parts {
        assert!(message_bytes(part) <= max_payload);
        for (name, value) in &part.headers {
            assert!(!value.contains(char::is_control), "{name}: {value:?}");
        }
    }
}
