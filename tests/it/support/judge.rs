//! The judge: what `TOCSIN_IN` holds decides what `TOCSIN_OUT` and `TOCSIN_DEAD_LETTER` must hold.
//!
//! Written from the specification alone: it shares no code with the daemon. It reads the whole input in order,
//! keeps for each user and alarm what is on record, and demands exactly the digests that follow: the bytes, the
//! id, each once, in order per user; a split one joined from its parts. A message that is to be refused must be among the
//! dead letters, with its id, its subject and its bytes, joined from its parts, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::reading::{Said, read};

/// One stored message.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) sequence: u64,
    pub(crate) nanos: i128,
    pub(crate) id: String,
    pub(crate) part: String,
    pub(crate) original_subject: String,
    pub(crate) reason: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) subject: String,
}

#[derive(Clone)]
struct OnRecord {
    at: i128,
    status: String,
    seen_at_instant: BTreeSet<String>,
    is_reported: bool,
}

/// What must be published for some input.
#[derive(Default)]
pub(crate) struct Demand {
    /// In order of their requests: the user, the id, the bytes.
    pub(crate) digests: Vec<(String, String, String)>,
    /// What must be refused, in order.
    pub(crate) refused: Vec<Refused>,
}

/// A dead letter: the id of the message that was refused, its subject as a header shows it, and its bytes.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Refused {
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
}

/// What the input demands, where more may be refused than what cannot be read.
pub(crate) fn demand(input: &[Stored], is_refused: impl Fn(&Stored) -> bool) -> Demand {
    let mut users: BTreeMap<String, BTreeMap<String, OnRecord>> = BTreeMap::new();
    let mut demand = Demand::default();
    for message in input {
        let said = read(&message.subject, &message.payload, message.nanos);
        match said.filter(|_| !is_refused(message)) {
            Some(said) => apply(&mut users, said, message, &mut demand),
            None => demand.refused.push(Refused {
                id: id_of(message),
                subject: shown_in_a_header(&message.subject),
                payload: message.payload.clone(),
            }),
        }
    }
    demand
}

/// The id of what is published for a message.
fn id_of(message: &Stored) -> String {
    format!("{}-{}", message.sequence, message.nanos)
}

/// The beginning of a text, on one line.
fn shown_in_a_header(text: &str) -> String {
    let mut shown = text.replace(|it: char| it.is_control(), " ");
    shown.truncate(shown.floor_char_boundary(256));
    shown.trim().to_owned()
}

fn apply(
    users: &mut BTreeMap<String, BTreeMap<String, OnRecord>>,
    said: Said,
    message: &Stored,
    demand: &mut Demand,
) {
    let (user, alarm, status, at) = match said {
        Said::Change {
            user,
            alarm,
            status,
            at,
        } => (user, alarm, status.to_owned(), at),
        Said::Request { user } => {
            let alarms = users.entry(user.clone()).or_default();
            if let Some(bytes) = digest(&user, alarms) {
                demand.digests.push((user, id_of(message), bytes));
            }
            return;
        }
    };
    let alarms = users.entry(user).or_default();
    let fresh = OnRecord {
        at,
        status: status.clone(),
        seen_at_instant: BTreeSet::from([status.clone()]),
        is_reported: false,
    };
    let Some(known) = alarms.get_mut(&alarm) else {
        alarms.insert(alarm, fresh);
        return;
    };
    if at > known.at {
        let is_reported = known.is_reported && known.status == status;
        *known = OnRecord {
            is_reported,
            ..fresh
        };
    } else if at == known.at && known.seen_at_instant.insert(status.clone()) {
        known.status = status;
        known.is_reported = false;
    }
}

/// The digest of everything that is due, which then is not due any more.
fn digest(user: &str, alarms: &mut BTreeMap<String, OnRecord>) -> Option<String> {
    let mut due: Vec<(&String, &mut OnRecord)> = alarms
        .iter_mut()
        .filter(|(_, it)| it.status != "CLEARED" && !it.is_reported)
        .collect();
    if due.is_empty() {
        return None;
    }
    due.sort_by(|one, two| (one.1.at, one.0.as_bytes()).cmp(&(two.1.at, two.0.as_bytes())));
    let entries: Vec<String> = due
        .iter_mut()
        .map(|(alarm, it)| {
            it.is_reported = true;
            let at = OffsetDateTime::from_unix_timestamp_nanos(it.at).expect("it was parsed");
            format!(
                "{{\"AlarmID\":{},\"Status\":\"{}\",\"LatestChangedAt\":\"{}\"}}",
                Value::from(alarm.as_str()),
                it.status,
                at.format(&Rfc3339).expect("it was parsed"),
            )
        })
        .collect();
    let user = Value::from(user);
    Some(format!(
        "{{\"UserID\":{user},\"ActiveAlarms\":[{}]}}",
        entries.join(",")
    ))
}

/// Waits until every demanded digest and dead letter is there, then demands that there is nothing else.
pub(crate) async fn judge(client: &async_nats::Client) {
    judge_refusing(client, |_| false).await;
}

/// The same, where more must be refused than what cannot be read.
pub(crate) async fn judge_refusing(
    client: &async_nats::Client,
    is_refused: impl Fn(&Stored) -> bool,
) {
    let input = read_stream(client, "TOCSIN_IN").await;
    let demand = demand(&input, is_refused);
    let num_digests = demand.digests.len();
    let num_refused = demand.refused.len();
    super::eventually(
        &format!("{num_digests} digests, {num_refused} dead letters"),
        async || {
            num_messages(client, "TOCSIN_OUT").await >= num_digests as u64
                && num_messages(client, "TOCSIN_DEAD_LETTER").await >= num_refused as u64
                && num_whole(&read_stream(client, "TOCSIN_OUT").await) >= num_digests
                && num_whole(&read_stream(client, "TOCSIN_DEAD_LETTER").await) >= num_refused
        },
    )
    .await;
    let output = read_stream(client, "TOCSIN_OUT").await;
    demand_exactly(&demand, &output);
    let letters = read_stream(client, "TOCSIN_DEAD_LETTER").await;
    let without_reason = letters.iter().filter(|it| it.reason.is_empty()).count();
    assert_eq!(without_reason, 0, "dead letters without a reason");
    let mut letters = join_dead_letters(letters);
    let mut refused = demand.refused;
    letters.sort();
    refused.sort();
    let differing = letters.iter().zip(&refused).find(|(one, two)| one != two);
    assert!(
        letters == refused,
        "{} dead letters for {num_refused} refused; the first that differ: {differing:?}",
        letters.len()
    );
}

/// Whole dead letters: the parts of each come in order, those of others between them.
pub(crate) fn join_dead_letters(letters: Vec<Stored>) -> Vec<Refused> {
    let mut whole: Vec<Refused> = Vec::new();
    let mut unfinished: BTreeMap<String, (usize, Refused)> = BTreeMap::new();
    for letter in letters {
        let Some((part, num_parts)) = part_of(&letter) else {
            whole.push(Refused {
                id: letter.id,
                subject: letter.original_subject,
                payload: letter.payload,
            });
            continue;
        };
        let (id, _range) = letter.id.rsplit_once('.').expect("a part names its range");
        let fresh = || {
            let (id, subject) = (id.to_owned(), letter.original_subject.clone());
            let payload = Vec::new();
            (
                0,
                Refused {
                    id,
                    subject,
                    payload,
                },
            )
        };
        let (num_seen, so_far) = unfinished.entry(id.to_owned()).or_insert_with(fresh);
        *num_seen += 1;
        assert_eq!(
            *num_seen, part,
            "the parts of dead letter {id} are out of order"
        );
        so_far.payload.extend(&letter.payload);
        if part == num_parts {
            whole.extend(unfinished.remove(id).map(|(_, letter)| letter));
        }
    }
    assert!(
        unfinished.is_empty(),
        "dead letters without their last part: {:?}",
        unfinished.keys()
    );
    whole
}

/// Which part of how many a message is.
fn part_of(message: &Stored) -> Option<(usize, usize)> {
    let (part, num_parts) = message.part.split_once('/')?;
    Some((
        part.parse().expect("a number"),
        num_parts.parse().expect("a number"),
    ))
}

fn demand_exactly(demand: &Demand, output: &[Stored]) {
    let mut by_user: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (user, id, bytes) in &demand.digests {
        by_user.entry(user).or_default().push((id, bytes));
    }
    let mut found: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut unfinished: BTreeMap<String, Unfinished> = BTreeMap::new();
    for message in output {
        let text = String::from_utf8(message.payload.clone()).expect("a digest is UTF-8");
        let json: Value = serde_json::from_str(&text).expect("a digest is JSON");
        let user = json["UserID"]
            .as_str()
            .expect("a digest has a user")
            .to_owned();
        let whole = if message.part.is_empty() {
            assert!(
                !unfinished.contains_key(&user),
                "{} comes between parts",
                message.id
            );
            Some((message.id.clone(), text))
        } else {
            join(&mut unfinished, &user, message, &text)
        };
        found.entry(user).or_default().extend(whole);
    }
    assert!(
        unfinished.is_empty(),
        "digests without their last part: {unfinished:?}"
    );
    for (user, demanded) in &by_user {
        let found = found.remove(*user).unwrap_or_default();
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(id, text)| (id.as_str(), text.as_str()))
            .collect();
        assert_eq!(&found, demanded, "digests of user {user}");
    }
    assert!(found.is_empty(), "digests that nothing demands: {found:?}");
}

/// A split digest of which not every part was seen.
#[derive(Debug)]
struct Unfinished {
    id: String,
    num_seen: usize,
    text: String,
}

/// Joins a part to those before it, which must be its digest's; returns the digest with its last part.
fn join(
    unfinished: &mut BTreeMap<String, Unfinished>,
    user: &str,
    message: &Stored,
    text: &str,
) -> Option<(String, String)> {
    let (id, _range) = message
        .id
        .rsplit_once('.')
        .expect("the id of a part names its range");
    let (part, num_parts) = part_of(message).expect("a part has a number");
    let so_far = unfinished
        .entry(user.to_owned())
        .or_insert_with(|| Unfinished {
            id: id.to_owned(),
            num_seen: 0,
            text: String::new(),
        });
    assert_eq!(
        (so_far.id.as_str(), so_far.num_seen + 1),
        (id, part),
        "parts of user {user} are out of order"
    );
    so_far.num_seen = part;
    if part == 1 {
        text.clone_into(&mut so_far.text);
    } else {
        let (_, entries) = text.split_once(":[").expect("a digest lists alarms");
        so_far.text.truncate(so_far.text.len() - "]}".len());
        so_far.text.push(',');
        so_far.text.push_str(entries);
    }
    (part == num_parts).then(|| {
        let whole = unfinished.remove(user).expect("it was joined just now");
        (whole.id, whole.text)
    })
}

/// How many messages are there to their last part.
fn num_whole(output: &[Stored]) -> usize {
    let is_last =
        |message: &&Stored| part_of(message).is_none_or(|(part, num_parts)| part == num_parts);
    output.iter().filter(is_last).count()
}

async fn num_messages(client: &async_nats::Client, stream: &str) -> u64 {
    let jetstream = async_nats::jetstream::new(client.clone());
    match jetstream.get_stream(stream).await {
        Ok(mut stream) => stream.info().await.map_or(0, |info| info.state.messages),
        Err(_) => 0,
    }
}

/// Everything that a stream holds, in order.
pub(crate) async fn read_stream(client: &async_nats::Client, name: &str) -> Vec<Stored> {
    use async_nats::jetstream::consumer::{AckPolicy, pull};
    let jetstream = async_nats::jetstream::new(client.clone());
    let mut stream = jetstream.get_stream(name).await.expect("the stream exists");
    let num = stream
        .info()
        .await
        .expect("the stream answers")
        .state
        .messages;
    let config = pull::Config {
        ack_policy: AckPolicy::None,
        ..pull::Config::default()
    };
    let consumer = stream
        .create_consumer(config)
        .await
        .expect("a consumer can be made");
    let mut stored = Vec::new();
    while (stored.len() as u64) < num {
        let batch = consumer
            .fetch()
            .max_messages(2000)
            .expires(Duration::from_secs(5));
        let mut messages = batch.messages().await.expect("the stream can be read");
        while let Some(message) = messages.next().await {
            let message = message.expect("the stream can be read");
            let info = message.info().expect("a stream's message has a position");
            let header = |name: &str| {
                let headers = message.headers.as_ref();
                let value = headers.and_then(|headers| headers.get(name));
                value.map(ToString::to_string).unwrap_or_default()
            };
            stored.push(Stored {
                sequence: info.stream_sequence,
                nanos: info.published.unix_timestamp_nanos(),
                id: header("Nats-Msg-Id"),
                part: header("Tocsin-Part"),
                original_subject: header("Tocsin-Subject"),
                reason: header("Tocsin-Reason"),
                payload: message.payload.to_vec(),
                subject: message.subject.to_string(),
            });
        }
    }
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minute of 2026, in nanoseconds.
    const ARRIVED: i128 = 1_767_225_660_000_000_000;

    fn message(sequence: u64, subject: &str, payload: &str) -> Stored {
        Stored {
            sequence,
            nanos: ARRIVED,
            id: String::new(),
            part: String::new(),
            original_subject: String::new(),
            reason: String::new(),
            payload: payload.into(),
            subject: subject.to_owned(),
        }
    }

    #[test]
    fn the_judge_demands_what_the_specification_shows() {
        let change = |alarm: &str, status: &str, at: u64| {
            format!(
                "{{\"AlarmID\":\"{alarm}\",\"UserID\":\"u\",\"Status\":\"{status}\",\"ChangedAt\":\"2026-01-01T00:00:0{at}Z\"}}"
            )
        };
        let input = [
            message(1, "AlarmStatusChanged", &change("b", "CRITICAL", 2)),
            message(2, "AlarmStatusChanged.7", &change("a", "WARNING", 1)),
            message(3, "SendAlarmDigest", "{\"UserID\":\"u\"}"),
            message(4, "SendAlarmDigest", "{\"UserID\":\"u\"}"),
            message(5, "SendAlarmDigest", "{}"),
        ];
        let demand = demand(&input, |_| false);
        let refused = Refused {
            id: format!("5-{ARRIVED}"),
            subject: "SendAlarmDigest".to_owned(),
            payload: b"{}".to_vec(),
        };
        assert_eq!(demand.refused, vec![refused]);
        let digest = "{\"UserID\":\"u\",\"ActiveAlarms\":[\
            {\"AlarmID\":\"a\",\"Status\":\"WARNING\",\"LatestChangedAt\":\"2026-01-01T00:00:01Z\"},\
            {\"AlarmID\":\"b\",\"Status\":\"CRITICAL\",\"LatestChangedAt\":\"2026-01-01T00:00:02Z\"}]}";
        assert_eq!(
            demand.digests,
            vec![("u".to_owned(), format!("3-{ARRIVED}"), digest.to_owned())]
        );
    }

    #[test]
    fn dead_letters_are_joined_from_their_parts() {
        let part = |id: &str, part: &str, payload: &str| Stored {
            id: id.to_owned(),
            part: part.to_owned(),
            ..message(1, "tocsin.dead_letter", payload)
        };
        let letters = vec![
            part("5-7.0-2", "1/2", "ab"),
            part("6-7", "", "whole"),
            part("5-7.2-3", "2/2", "c"),
        ];
        let joined = join_dead_letters(letters);
        let joined: Vec<_> = joined.into_iter().map(|it| (it.id, it.payload)).collect();
        let expected = [("6-7", "whole"), ("5-7", "abc")];
        assert_eq!(
            joined,
            expected.map(|(id, payload)| (id.to_owned(), payload.into()))
        );
    }
}
