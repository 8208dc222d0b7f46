//! The judge: what `TOCSIN_IN` holds decides what `TOCSIN_OUT` and `TOCSIN_DEAD_LETTER` must hold.
//!
//! Written from the specification alone: it shares no code with the daemon. It reads the whole input in order,
//! keeps for each user and alarm what is on record, and demands exactly the digests that follow: the bytes, the
//! id, each once, in order per user; a split one joined from its parts. A message that is to be refused must be among the
//! dead letters, with its id, its subject and its bytes, joined from its parts, too.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, pull};
use futures::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use super::daemon::Daemon;
use super::evidence::Row;
use super::reading::{Said, read};
use super::traffic::{Confirmed, Traffic};

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
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Refused {
    pub(crate) id: String,
    pub(crate) subject: String,
    pub(crate) payload: Vec<u8>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let payload = String::from_utf8_lossy(&self.payload);
        write!(f, "{} of {}: {payload}", self.id, self.subject)
    }
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

/// What was judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Judged {
    /// Messages of the input.
    pub(crate) messages: u64,
    /// Digests, a split one counted once.
    pub(crate) digests: u64,
    /// Messages that were refused.
    pub(crate) dead_letters: u64,
    /// Messages whose publishers were told that they are in the stream.
    pub(crate) confirmed: u64,
    /// Messages of the output: digests, or parts of them.
    pub(crate) published: u64,
    /// Dead letters, or parts of them.
    pub(crate) published_letters: u64,
}

impl Judged {
    /// Ends the daemon of a row: nothing may be published afterwards.
    pub(crate) async fn conclude(self, mut row: Row, client: &async_nats::Client, daemon: Daemon) {
        assert!(daemon.stop().success(), "the daemon does not end well");
        self.stays(client).await;
        row.count("messages in the input", self.messages);
        row.count("messages confirmed to their publishers", self.confirmed);
        row.count("digests checked", self.digests);
        row.count("dead letters checked", self.dead_letters);
        row.close();
    }

    /// Demands that nothing was published after it: there is no daemon any more that could.
    pub(crate) async fn stays(&self, client: &async_nats::Client) {
        let jetstream = async_nats::jetstream::new(client.clone());
        let num_messages = async |name| {
            let mut stream = jetstream.get_stream(name).await.expect("the stream exists");
            stream.info().await.expect("an answer").state.messages
        };
        let published = num_messages("TOCSIN_OUT").await;
        assert_eq!(published, self.published, "published after all was there");
        let letters = num_messages("TOCSIN_DEAD_LETTER").await;
        assert_eq!(
            letters, self.published_letters,
            "refused after all was there"
        );
    }
}

/// Waits until every demanded digest and dead letter is there, then demands that there is nothing else.
pub(crate) async fn judge(client: &async_nats::Client) -> Judged {
    judge_with(client, &Confirmed::default(), |_| false).await
}

/// The same, where more must be refused than what cannot be read.
pub(crate) async fn judge_refusing(
    client: &async_nats::Client,
    is_refused: impl Fn(&Stored) -> bool,
) -> Judged {
    judge_with(client, &Confirmed::default(), is_refused).await
}

/// The same, and the input must hold what was confirmed to its publishers.
pub(crate) async fn judge_confirmed(client: &async_nats::Client, confirmed: &Confirmed) -> Judged {
    judge_with(client, confirmed, |_| false).await
}

/// Ends the traffic and the daemon of a row: all must be published then, nothing twice, and nothing afterwards.
/// A row that was judged otherwise, or in rounds, ends with [`Judged::conclude`].
pub(crate) async fn conclude(
    mut row: Row,
    client: &async_nats::Client,
    traffic: Traffic,
    daemon: Daemon,
) {
    let confirmed = traffic.stop().await;
    let published_at = Instant::now();
    let judged = judge_confirmed(client, &confirmed).await;
    let took = published_at.elapsed().as_secs_f64();
    row.fact(
        "from the last message to the verdict",
        format!("{took:.1} s"),
    );
    judged.conclude(row, client, daemon).await;
}

async fn judge_with(
    client: &async_nats::Client,
    confirmed: &Confirmed,
    is_refused: impl Fn(&Stored) -> bool,
) -> Judged {
    /// That long nothing new may come while something is missing.
    const SILENCE: Duration = Duration::from_secs(30);
    let mut input = Follower::new(client, "TOCSIN_IN");
    let mut grown_at = Instant::now();
    // A cluster that chooses a leader cannot be read for a while.
    while let Err(error) = input.read_on().await {
        let is_over = grown_at.elapsed() > SILENCE;
        assert!(!is_over, "TOCSIN_IN cannot be read: {error}");
        sleep(Duration::from_millis(10)).await;
    }
    let input = input.stored;
    let demand = demand(&input, is_refused);
    let mut output = Follower::new(client, "TOCSIN_OUT");
    let mut letters = Follower::new(client, "TOCSIN_DEAD_LETTER");
    loop {
        let num_before = output.stored.len() + letters.stored.len();
        // What cannot be read now may be later; without it, the verdict says what is missing.
        output.read_on().await.ok();
        letters.read_on().await.ok();
        if output.stored.len() + letters.stored.len() > num_before {
            grown_at = Instant::now();
        }
        let is_there = num_whole(&output.stored) >= demand.digests.len()
            && num_whole(&letters.stored) >= demand.refused.len();
        if is_there || grown_at.elapsed() > SILENCE {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    if let Some(missing) = confirmed.missing_in(&input) {
        panic!("{missing}");
    }
    let verdict = verdict(&demand, &output.stored, &letters.stored);
    verdict.unwrap_or_else(|wrong| panic!("{wrong}"));
    Judged {
        messages: input.len() as u64,
        digests: demand.digests.len() as u64,
        dead_letters: demand.refused.len() as u64,
        confirmed: confirmed.num(),
        published: output.stored.len() as u64,
        published_letters: letters.stored.len() as u64,
    }
}

/// Says what is wrong first.
fn verdict(demand: &Demand, output: &[Stored], letters: &[Stored]) -> Result<(), String> {
    demand_exactly(demand, output)?;
    if let Some(letter) = letters.iter().find(|it| it.reason.is_empty()) {
        return Err(format!("the dead letter {} has no reason", letter.id));
    }
    let mut left: HashMap<&Refused, i64> = HashMap::new();
    for refused in &demand.refused {
        *left.entry(refused).or_default() += 1;
    }
    let whole = join_dead_letters(letters)?;
    for letter in &whole {
        *left.entry(letter).or_default() -= 1;
    }
    match left.into_iter().find(|(_, num)| *num != 0) {
        Some((refused, num)) if num > 0 => Err(format!("no dead letter {refused}")),
        Some((letter, _)) => Err(format!("a dead letter too many: {letter}")),
        None => Ok(()),
    }
}

/// Whole dead letters: the parts of each come in order, those of others between them.
fn join_dead_letters(letters: &[Stored]) -> Result<Vec<Refused>, String> {
    let mut whole: Vec<Refused> = Vec::new();
    let mut unfinished: BTreeMap<String, Unfinished> = BTreeMap::new();
    for letter in letters {
        let refused = |id: &str, payload| Refused {
            id: id.to_owned(),
            subject: letter.original_subject.clone(),
            payload,
        };
        if letter.part.is_empty() {
            whole.push(refused(&letter.id, letter.payload.clone()));
            continue;
        }
        let part = named_part_of(letter, letter.payload.len())?;
        let so_far = unfinished.entry(part.id.to_owned()).or_default();
        so_far.add(&part)?;
        so_far.joined.extend(&letter.payload);
        if part.is_last {
            let finished = unfinished.remove(part.id);
            whole.extend(finished.map(|it| refused(part.id, it.joined)));
        }
    }
    match unfinished.keys().next() {
        Some(id) => Err(format!("the dead letter {id} lacks its last part")),
        None => Ok(whole),
    }
}

fn demand_exactly(demand: &Demand, output: &[Stored]) -> Result<(), String> {
    let mut demanded: HashMap<&str, VecDeque<(&str, &str)>> = HashMap::new();
    for (user, id, bytes) in &demand.digests {
        demanded.entry(user).or_default().push_back((id, bytes));
    }
    let mut unfinished: BTreeMap<String, Unfinished> = BTreeMap::new();
    for message in output {
        let text = std::str::from_utf8(&message.payload).map_err(|_| "a digest is no UTF-8")?;
        let json: Value = serde_json::from_str(text).map_err(|_| "a digest is no JSON")?;
        let user = json["UserID"].as_str().ok_or("a digest has no user")?;
        let whole = if message.part.is_empty() {
            if unfinished.contains_key(user) {
                return Err(format!("{} comes between parts", message.id));
            }
            Some((message.id.clone(), text.to_owned()))
        } else {
            let num_alarms = json["ActiveAlarms"].as_array().map_or(0, Vec::len);
            let part = named_part_of(message, num_alarms)?;
            join(&mut unfinished, user, &part, text)?
        };
        let Some((id, text)) = whole else { continue };
        match demanded.get_mut(user).and_then(VecDeque::pop_front) {
            Some(next) if next == (&*id, &*text) => {}
            Some((next, bytes)) => {
                return Err(format!(
                    "user {user} got the digest {id}, {text}\nwhere {next} was due, {bytes}"
                ));
            }
            None => return Err(format!("nothing demands the digest {id}, {text}")),
        }
    }
    if let Some(user) = unfinished.keys().next() {
        return Err(format!("a digest of user {user} lacks its last part"));
    }
    let missing = demanded.into_iter().find_map(|(user, left)| {
        let num = left.len();
        let (id, bytes) = left.front()?;
        Some(format!(
            "user {user} lacks {num} digests, the first is {id}, {bytes}"
        ))
    });
    missing.map_or(Ok(()), Err)
}

/// A split message of which not every part was seen.
#[derive(Debug, Default)]
struct Unfinished {
    id: String,
    num_seen: usize,
    /// Up to where its whole was seen.
    end: usize,
    joined: Vec<u8>,
}

impl Unfinished {
    /// Notes a part, which must follow those before without gap or overlap.
    fn add(&mut self, part: &Part<'_>) -> Result<(), String> {
        if self.num_seen == 0 {
            part.id.clone_into(&mut self.id);
        }
        let next = (&*self.id, self.num_seen + 1, self.end);
        if next != (part.id, part.number, part.first) {
            return Err(format!(
                "part {} of {}, from {} on, came after part {} of {}, up to {}",
                part.number, part.id, part.first, self.num_seen, self.id, self.end
            ));
        }
        (self.num_seen, self.end) = (part.number, part.end);
        Ok(())
    }
}

/// Joins a part to those before it, which must be its digest's; returns the digest with its last part.
fn join(
    unfinished: &mut BTreeMap<String, Unfinished>,
    user: &str,
    part: &Part<'_>,
    text: &str,
) -> Result<Option<(String, String)>, String> {
    let so_far = unfinished.entry(user.to_owned()).or_default();
    so_far.add(part)?;
    if part.number == 1 {
        so_far.joined.extend(text.bytes());
    } else {
        let (_, entries) = text.split_once(":[").ok_or("a part lists no alarms")?;
        so_far.joined.truncate(so_far.joined.len() - "]}".len());
        so_far.joined.push(b',');
        so_far.joined.extend(entries.bytes());
    }
    if !part.is_last {
        return Ok(None);
    }
    let whole = unfinished.remove(user);
    Ok(whole.map(|it| {
        let text = String::from_utf8(it.joined);
        (it.id, text.expect("joined of texts"))
    }))
}

/// Its number and that of all parts; `None` for a message in one.
fn part_of(message: &Stored) -> Option<(usize, usize)> {
    let (part, num_parts) = message.part.split_once('/')?;
    Some((part.parse().ok()?, num_parts.parse().ok()?))
}

/// What a message says of itself as a part: by its id, `<id of the whole>.<first>-<end>`, and its header, `2/3`.
struct Part<'a> {
    id: &'a str,
    number: usize,
    is_last: bool,
    first: usize,
    end: usize,
}

/// Reads what a part that holds so much of its whole says of itself.
///
/// How many parts there are may change from one to the next: the whole may be cut in another way where it goes on.
fn named_part_of(message: &Stored, num_held: usize) -> Result<Part<'_>, String> {
    let named = message.id.rsplit_once('.').and_then(|(id, range)| {
        let (first, end) = range.split_once('-')?;
        Some((id, first.parse::<usize>().ok()?, end.parse().ok()?))
    });
    let (id, first, end) = named.ok_or("the id of a part names no range")?;
    if num_held == 0 || first + num_held != end {
        return Err(format!("the part {} holds {num_held}", message.id));
    }
    let (number, num_parts) = part_of(message).ok_or("a part has no number")?;
    Ok(Part {
        id,
        number,
        is_last: number == num_parts,
        first,
        end,
    })
}

/// How many messages are there to their last part.
fn num_whole(output: &[Stored]) -> usize {
    let is_last = |message: &&Stored| {
        let part = part_of(message);
        part.is_none_or(|(part, num_parts)| part == num_parts)
    };
    output.iter().filter(is_last).count()
}

/// Everything that a stream holds, in order.
pub(crate) async fn read_stream(client: &async_nats::Client, name: &str) -> Vec<Stored> {
    let mut reader = Follower::new(client, name);
    let read = reader.read_on().await;
    read.unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
    reader.stored
}

/// Reads a stream, and later goes on where it stopped.
struct Follower {
    jetstream: async_nats::jetstream::Context,
    name: String,
    consumer: Option<Consumer<pull::Config>>,
    stored: Vec<Stored>,
}

impl Follower {
    fn new(client: &async_nats::Client, name: &str) -> Self {
        Self {
            jetstream: async_nats::jetstream::new(client.clone()),
            name: name.to_owned(),
            consumer: None,
            stored: Vec::new(),
        }
    }

    fn last(&self) -> u64 {
        self.stored.last().map_or(0, |stored| stored.sequence)
    }

    /// Reads everything that is there by now.
    async fn read_on(&mut self) -> Result<(), async_nats::Error> {
        let mut stream = self.jetstream.get_stream(&self.name).await?;
        let state = stream.info().await?.state.clone();
        while state.messages > 0 && self.last() < state.last_sequence {
            let consumer = match self.consumer.take() {
                Some(consumer) => consumer,
                None => stream.create_consumer(self.config()).await?,
            };
            let batch = consumer
                .fetch()
                .max_messages(2000)
                .expires(Duration::from_secs(5));
            let mut messages = batch.messages().await?;
            let num_before = self.stored.len();
            while let Some(message) = messages.next().await {
                self.stored.push(Stored::from_message(&message?));
            }
            if self.stored.len() == num_before {
                return Err(format!("nothing after message {}", self.last()).into());
            }
            self.consumer = Some(consumer);
        }
        Ok(())
    }

    fn config(&self) -> pull::Config {
        pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.last() + 1,
            },
            ack_policy: AckPolicy::None,
            inactive_threshold: Duration::from_mins(1),
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        }
    }
}

impl Stored {
    /// As if it had been read: at this sequence, without headers.
    pub(crate) fn of(sequence: u64, nanos: i128, subject: &str, payload: &str) -> Self {
        Self {
            sequence,
            nanos,
            id: String::new(),
            part: String::new(),
            original_subject: String::new(),
            reason: String::new(),
            payload: payload.into(),
            subject: subject.to_owned(),
        }
    }

    fn from_message(message: &async_nats::jetstream::Message) -> Self {
        let info = message.info().expect("a stream's message has a position");
        let header = |name: &str| {
            let headers = message.headers.as_ref();
            let value = headers.and_then(|headers| headers.get(name));
            value.map(ToString::to_string).unwrap_or_default()
        };
        Self {
            sequence: info.stream_sequence,
            nanos: info.published.unix_timestamp_nanos(),
            id: header("Nats-Msg-Id"),
            part: header("Tocsin-Part"),
            original_subject: header("Tocsin-Subject"),
            reason: header("Tocsin-Reason"),
            payload: message.payload.to_vec(),
            subject: message.subject.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::traffic::{change, request};
    use super::*;

    /// A minute of 2026, in nanoseconds.
    const ARRIVED: i128 = 1_767_225_660_000_000_000;

    fn message(sequence: u64, subject: &str, payload: &str) -> Stored {
        Stored::of(sequence, ARRIVED, subject, payload)
    }

    fn changed(alarm: &str, status: &str, at: u64) -> String {
        change("u", alarm, status, at)
    }

    #[test]
    fn the_judge_demands_what_the_specification_shows() {
        let input = [
            message(1, "AlarmStatusChanged", &changed("b", "CRITICAL", 2)),
            message(2, "AlarmStatusChanged.7", &changed("a", "WARNING", 1)),
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
        let letters = [
            part("5-7.0-2", "1/2", "ab"),
            part("6-7", "", "whole"),
            part("5-7.2-3", "2/2", "c"),
        ];
        let joined = join_dead_letters(&letters).unwrap();
        let joined: Vec<_> = joined.into_iter().map(|it| (it.id, it.payload)).collect();
        let expected = [("6-7", "whole"), ("5-7", "abc")];
        assert_eq!(
            joined,
            expected.map(|(id, payload)| (id.to_owned(), payload.into()))
        );
    }

    /// Three digests of one user, one of another, two refused: what is demanded and what answers it.
    fn answered() -> (Demand, Vec<Stored>, Vec<Stored>) {
        let mut input = Vec::new();
        for at in 1..=3 {
            let number = at * 2;
            let alarm = changed(&format!("a{at}"), "CRITICAL", at);
            input.push(message(number - 1, "AlarmStatusChanged", &alarm));
            input.push(message(number, "SendAlarmDigest", &request("u")));
        }
        let other = change("v", "a", "WARNING", 1);
        input.push(message(7, "AlarmStatusChanged", &other));
        input.push(message(8, "SendAlarmDigest", &request("v")));
        input.push(message(9, "SendAlarmDigest", "junk"));
        input.push(message(10, "SendAlarmDigest", "{}"));
        let demand = demand(&input, |_| false);
        let digests = demand.digests.iter().map(|(_, id, bytes)| Stored {
            id: id.clone(),
            ..message(0, "AlarmDigest", bytes)
        });
        let refused = demand.refused.iter();
        let letters = refused.map(|refused| Stored {
            id: refused.id.clone(),
            original_subject: refused.subject.clone(),
            reason: "malformed".to_owned(),
            ..message(0, "", &String::from_utf8_lossy(&refused.payload))
        });
        let (digests, letters) = (digests.collect(), letters.collect());
        (demand, digests, letters)
    }

    /// The verdict after something was done to the output and the dead letters.
    fn after(plant: impl FnOnce(&mut Vec<Stored>, &mut Vec<Stored>)) -> String {
        let (demand, mut output, mut letters) = answered();
        plant(&mut output, &mut letters);
        verdict(&demand, &output, &letters)
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn a_planted_loss_repeat_or_swap_is_said() {
        let said = [
            after(|_, _| {}),
            after(|output, _| drop(output.remove(0))),
            after(|output, _| drop(output.remove(2))),
            after(|output, _| drop(output.pop())),
            after(|output, _| output.insert(1, output[0].clone())),
            after(|output, _| output.push(output[2].clone())),
            after(|output, _| output.swap(0, 1)),
            after(|output, _| output[1].id = "4-8".to_owned()),
            after(|output, _| output[1].payload = output[0].payload.clone()),
            after(|output, _| output[3].payload.truncate(20)),
            after(|_, letters| drop(letters.pop())),
            after(|_, letters| letters.push(letters[0].clone())),
        ];
        let begins: Vec<&str> = said.iter().map(|it| it.get(..20).unwrap_or(it)).collect();
        let wanted = [
            "",
            "user u got the diges",
            "user u lacks 1 diges",
            "user v lacks 1 diges",
            "user u got the diges",
            "nothing demands the ",
            "user u got the diges",
            "user u got the diges",
            "user u got the diges",
            "a digest is no JSON",
            "no dead letter 10-17",
            "a dead letter too ma",
        ];
        assert_eq!(begins, wanted);
        // Between users there is no order.
        assert_eq!(after(|output, _| output.swap(2, 3)), "");
    }

    /// A digest of two alarms in two parts.
    fn in_parts(plant: impl FnOnce(&mut Vec<Stored>)) -> String {
        let input = [
            message(1, "AlarmStatusChanged", &changed("a", "CRITICAL", 1)),
            message(2, "AlarmStatusChanged", &changed("b", "CRITICAL", 2)),
            message(3, "SendAlarmDigest", &request("u")),
        ];
        let demand = demand(&input, |_| false);
        let (_, id, bytes) = &demand.digests[0];
        let at = bytes.find(",{\"AlarmID\":\"b\"").expect("b comes last");
        let part = |number: u64, text: &str| Stored {
            id: format!("{id}.{}-{number}", number - 1),
            part: format!("{number}/2"),
            ..message(0, "AlarmDigest", text)
        };
        let mut output = vec![
            part(1, &format!("{}]}}", &bytes[..at])),
            part(
                2,
                &format!("{{\"UserID\":\"u\",\"ActiveAlarms\":[{}", &bytes[at + 1..]),
            ),
        ];
        plant(&mut output);
        verdict(&demand, &output, &[]).err().unwrap_or_default()
    }

    #[test]
    fn a_part_that_is_lost_repeated_or_swapped_is_said() {
        assert_eq!(in_parts(|_| {}), "");
        let lost = in_parts(|output| drop(output.pop()));
        assert_eq!(lost, "a digest of user u lacks its last part");
        let id = format!("3-{ARRIVED}");
        let second_first = format!("part 2 of {id}, from 1 on, came after part 0 of {id}, up to 0");
        let lost = in_parts(|output| drop(output.remove(0)));
        assert_eq!(lost, second_first);
        let swapped = in_parts(|output| output.swap(0, 1));
        assert_eq!(swapped, second_first);
        let repeated = in_parts(|output| output.insert(1, output[0].clone()));
        assert_eq!(
            repeated,
            format!("part 1 of {id}, from 0 on, came after part 1 of {id}, up to 1")
        );
    }

    #[test]
    fn a_part_whose_id_names_other_alarms_is_said() {
        let id = format!("3-{ARRIVED}");
        let second_from_0 =
            format!("part 2 of {id}, from 0 on, came after part 1 of {id}, up to 1");
        let under_one_id = in_parts(|output| output[1].id = output[0].id.clone());
        assert_eq!(under_one_id, second_from_0);
        let too_many = in_parts(|output| output[1].id = format!("{id}.0-2"));
        assert_eq!(too_many, format!("the part {id}.0-2 holds 1"));
        let swapped = in_parts(|output| {
            let first = std::mem::take(&mut output[0].id);
            output[0].id = std::mem::replace(&mut output[1].id, first);
        });
        let first_from_1 = format!("part 1 of {id}, from 1 on, came after part 0 of {id}, up to 0");
        assert_eq!(swapped, first_from_1);
        let after_a_gap = in_parts(|output| output[1].id = format!("{id}.2-3"));
        let second_from_2 =
            format!("part 2 of {id}, from 2 on, came after part 1 of {id}, up to 1");
        assert_eq!(after_a_gap, second_from_2);
    }

    #[test]
    fn a_digest_may_go_on_in_another_cut() {
        let recut = in_parts(|output| output[0].part = "1/7".to_owned());
        assert_eq!(recut, "");
        let whole_behind = in_parts(|output| {
            output[1].id = output[1].id.replace(".1-2", "");
            output[1].part.clear();
        });
        assert_eq!(whole_behind, format!("3-{ARRIVED} comes between parts"));
    }

    #[test]
    fn a_confirmed_message_that_is_gone_or_another_is_said() {
        let input = [message(3, "a", "one"), message(5, "a", "two")];
        let missing = |confirmed: &[(u64, &str)]| Confirmed::of(confirmed).missing_in(&input);
        assert_eq!(missing(&[(3, "one"), (5, "two")]), None);
        let said = Some("message 4 was confirmed, and is not there".to_owned());
        assert_eq!(missing(&[(3, "one"), (4, "two")]), said);
        let said = Some("message 5 was confirmed, and is not there".to_owned());
        assert_eq!(missing(&[(3, "one"), (5, "other")]), said);
    }
}
