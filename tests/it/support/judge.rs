//! The judge: what `TOCSIN_IN` holds decides what `TOCSIN_OUT` and `TOCSIN_DEAD_LETTER` must hold.
//!
//! Written from the specification alone: it shares no code with the daemon. It reads the whole input in order,
//! keeps for each user and alarm what is on record, and demands exactly the digests that follow: the bytes, the
//! id, each once, in order per user; a split one joined from its parts. A message it cannot read must be among the dead letters, with its bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    /// The bytes of what must be refused, in order.
    pub(crate) refused: Vec<Vec<u8>>,
}

/// What the input demands, where more may be refused than what cannot be read.
pub(crate) fn demand(input: &[Stored], is_refused: impl Fn(&Stored) -> bool) -> Demand {
    let mut users: BTreeMap<String, BTreeMap<String, OnRecord>> = BTreeMap::new();
    let mut demand = Demand::default();
    for message in input {
        if is_refused(message) || apply(&mut users, message, &mut demand).is_none() {
            demand.refused.push(message.payload.clone());
        }
    }
    demand
}

/// Applies one message; `None` when it cannot be read.
fn apply(
    users: &mut BTreeMap<String, BTreeMap<String, OnRecord>>,
    message: &Stored,
    demand: &mut Demand,
) -> Option<()> {
    let json: Value = serde_json::from_slice(&message.payload).ok()?;
    let text = |name: &str| json.as_object()?.get(name)?.as_str().map(str::to_owned);
    let user = text("UserID").filter(|user| !user.is_empty())?;
    if message.subject.starts_with("SendAlarmDigest") {
        let alarms = users.entry(user.clone()).or_default();
        if let Some(bytes) = digest(&user, alarms) {
            demand.digests.push((
                user,
                format!("{}-{}", message.sequence, message.nanos),
                bytes,
            ));
        }
        return Some(());
    }
    let alarm = text("AlarmID").filter(|alarm| !alarm.is_empty())?;
    let status = text("Status")
        .filter(|status| ["CLEARED", "WARNING", "CRITICAL"].contains(&status.as_str()))?;
    let at = OffsetDateTime::parse(&text("ChangedAt")?, &Rfc3339)
        .ok()?
        .unix_timestamp_nanos();
    let alarms = users.entry(user).or_default();
    let fresh = OnRecord {
        at,
        status: status.clone(),
        seen_at_instant: BTreeSet::from([status.clone()]),
        is_reported: false,
    };
    let Some(known) = alarms.get_mut(&alarm) else {
        alarms.insert(alarm, fresh);
        return Some(());
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
    Some(())
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
        },
    )
    .await;
    let output = read_stream(client, "TOCSIN_OUT").await;
    demand_exactly(&demand, &output);
    let mut letters: Vec<_> = read_stream(client, "TOCSIN_DEAD_LETTER")
        .await
        .into_iter()
        .map(|it| it.payload)
        .collect();
    let mut refused = demand.refused;
    letters.sort();
    refused.sort();
    assert!(
        letters == refused,
        "{} dead letters for {num_refused} refused",
        letters.len()
    );
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
    let (part, num_parts) = message.part.split_once('/').expect("a part has a number");
    let (part, num_parts): (usize, usize) = (
        part.parse().expect("a number"),
        num_parts.parse().expect("a number"),
    );
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

/// How many digests are there to their last part.
fn num_whole(output: &[Stored]) -> usize {
    let is_last = |message: &&Stored| {
        let part = message.part.split_once('/');
        part.is_none_or(|(part, num_parts)| part == num_parts)
    };
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

    fn message(sequence: u64, subject: &str, payload: &str) -> Stored {
        Stored {
            sequence,
            nanos: 7,
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
        assert_eq!(demand.refused, vec![b"{}".to_vec()]);
        let digest = "{\"UserID\":\"u\",\"ActiveAlarms\":[\
            {\"AlarmID\":\"a\",\"Status\":\"WARNING\",\"LatestChangedAt\":\"2026-01-01T00:00:01Z\"},\
            {\"AlarmID\":\"b\",\"Status\":\"CRITICAL\",\"LatestChangedAt\":\"2026-01-01T00:00:02Z\"}]}";
        assert_eq!(
            demand.digests,
            vec![("u".to_owned(), "3-7".to_owned(), digest.to_owned())]
        );
    }
}
