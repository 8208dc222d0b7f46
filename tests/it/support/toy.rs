//! A small digest service for tests of the check: right, with one fault planted in it, or only different.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a fault is planted at one place, and all others are right there"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message};
use futures::StreamExt;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;
use tocsin::bus::wire::{Limits, decode};
use tocsin::check::messages::{Entry, Instant, Status, digest};
use tocsin::core::time::Timestamp;
use tocsin::domains::Command;
use tokio_util::task::AbortOnDropHandle;

/// The fields of the input.
const NAMES: [&str; 4] = ["AlarmID", "UserID", "Status", "ChangedAt"];

/// What a toy does wrong, or otherwise.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    None,
    // What is only different.
    LikeGo,
    Spaces,
    OtherTimes,
    SendsEmpty,
    NoDeadLetters,
    Slow,
    // The state of an alarm.
    LastWins,
    FirstWinsAtTie,
    SeenForgotten,
    TombstoneDropped,
    RepeatsReported,
    DueAgainAtNewerTime,
    RaisedAgainNotDue,
    OtherStatusNotDue,
    StaleMakesUndue,
    LateNotDue,
    CopyMakesDue,
    UsersMixed,
    // The digest.
    OrderOfArrival,
    NoTieBreak,
    OrderOfUtf16,
    ClearedListed,
    FirstTimeShown,
    ListedTwice,
    SentTwice,
    EmptySentTwice,
    RequestOvertakes,
    CopiedRequestDropped,
    LargeCutOff,
    WrongTimePrinted,
    // What is read.
    TwinsIgnored,
    Milliseconds,
    OffsetIgnored,
    UsersIgnoreCase,
    AlarmsIgnoreCase,
    UuidsInLowerCase,
    IdsTrimmed,
    NamesInOneCase,
    UnknownFieldsRefused,
    FirstOfRepeated,
    WhitespaceRefused,
    // What is not refused.
    DiesOfJunk,
    Utf8Mended,
    ListTaken,
    MissingInherited,
    EmptyTaken,
    NumbersTaken,
    LongIdsCut,
    StatusTrimmed,
    StatusInLowerCase,
    SpaceInTime,
    Before1970Taken,
    FutureTaken,
    WrongSubjectInDeadLetter,
}

struct Register {
    at: u64,
    first_at: u64,
    status: Status,
    seen: HashSet<Status>,
    is_reported: bool,
    arrival: usize,
}

/// A running toy; gone with the guard.
pub(crate) struct Toy {
    _task: AbortOnDropHandle<()>,
}

impl Toy {
    /// Listens, and returns when the server knows it.
    pub(crate) async fn start(client: Client, fault: Fault) -> Self {
        // One subscription for all: the order is that of arrival.
        let mut messages = client.subscribe(">").await.expect("a subscription");
        let inbox = client.new_inbox();
        let echo = client.publish(inbox.clone(), "".into()).await;
        echo.expect("published");
        while messages.next().await.expect("an echo").subject.as_str() != inbox {}
        let mut service = Service::new(client, fault);
        let task = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                if !service.on_message(&message).await {
                    return;
                }
            }
        });
        Self {
            _task: AbortOnDropHandle::new(task),
        }
    }
}

struct Service {
    client: Client,
    fault: Fault,
    alarms: HashMap<String, BTreeMap<String, Register>>,
    num_arrived: usize,
    newest_told: HashMap<String, u64>,
    requests: HashSet<Vec<u8>>,
    previous: Vec<(String, Value)>,
    held_back: Option<(Command, bool)>,
}

impl Service {
    fn new(client: Client, fault: Fault) -> Self {
        Self {
            client,
            fault,
            alarms: HashMap::new(),
            num_arrived: 0,
            newest_told: HashMap::new(),
            requests: HashSet::new(),
            previous: Vec::new(),
            held_back: None,
        }
    }

    /// Whether it lives on.
    async fn on_message(&mut self, message: &Message) -> bool {
        let subject = message.subject.as_str();
        let base = subject.split('.').next().unwrap_or_default();
        let is_request = base == "SendAlarmDigest";
        if !is_request && base != "AlarmStatusChanged" {
            return true;
        }
        let is_copy = subject != base;
        if is_copy && self.fault == Fault::TwinsIgnored {
            return true;
        }
        let payload = message.payload.to_vec();
        let edited = self.edit(&payload);
        let limits = Limits {
            max_future: if self.fault == Fault::FutureTaken {
                Duration::MAX
            } else {
                Duration::from_hours(24)
            },
        };
        let decoded = edited.and_then(|edited| {
            let decoded = decode(
                subject,
                &edited,
                Timestamp::from_nanos(Instant::now().0),
                &limits,
            );
            decoded.map_err(|reject| reject.to_string())
        });
        match decoded {
            Ok(command) => {
                if is_request {
                    let is_new = self.requests.insert(payload);
                    if self.fault == Fault::CopiedRequestDropped && is_copy && !is_new {
                        return true;
                    }
                }
                self.on_command(command, is_copy).await;
            }
            Err(_) if self.fault == Fault::DiesOfJunk => return false,
            Err(reason) => self.on_refused(subject, &reason, payload).await,
        }
        true
    }

    async fn on_refused(&self, subject: &str, reason: &str, payload: Vec<u8>) {
        let subject = match self.fault {
            Fault::NoDeadLetters => return,
            Fault::WrongSubjectInDeadLetter => "somewhere",
            _ => subject,
        };
        let mut headers = HeaderMap::new();
        headers.insert("Tocsin-Subject", subject);
        headers.insert("Tocsin-Reason", reason.replace(char::is_control, " "));
        let sending =
            self.client
                .publish_with_headers("tocsin.dead_letter", headers, payload.into());
        sending.await.expect("published");
    }

    /// What a careless reader makes of a message before it is read.
    fn edit(&mut self, payload: &[u8]) -> Result<Vec<u8>, String> {
        let fault = self.fault;
        let mended = String::from_utf8_lossy(payload);
        match fault {
            Fault::Utf8Mended => return Ok(mended.as_bytes().to_vec()),
            Fault::WhitespaceRefused if mended.starts_with(char::is_whitespace) => {
                return Err("not compact".to_owned());
            }
            Fault::ListTaken => {
                let inner = mended.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
                return Ok(inner.unwrap_or(&mended).as_bytes().to_vec());
            }
            _ => {}
        }
        // What cannot be read at all is left to the reader.
        let Ok(Fields(mut fields)) = serde_json::from_slice(payload) else {
            return Ok(payload.to_vec());
        };
        match fault {
            Fault::MissingInherited => {
                for (name, value) in &self.previous {
                    if !fields.iter().any(|(it, _)| it.eq_ignore_ascii_case(name)) {
                        fields.push((name.clone(), value.clone()));
                    }
                }
                self.previous.clone_from(&fields);
            }
            Fault::NamesInOneCase if fields.iter().any(|(it, _)| !NAMES.contains(&it.as_str())) => {
                return Err("a name".to_owned());
            }
            Fault::UnknownFieldsRefused => {
                let is_known = |name: &str| NAMES.iter().any(|it| it.eq_ignore_ascii_case(name));
                if !fields.iter().all(|(name, _)| is_known(name)) {
                    return Err("an unknown field".to_owned());
                }
            }
            Fault::FirstOfRepeated => fields.reverse(),
            _ => {}
        }
        for (name, value) in &mut fields {
            self.edit_field(&name.to_ascii_lowercase(), value);
        }
        let fields = fields
            .iter()
            .map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
        Ok(format!("{{{}}}", fields.collect::<Vec<_>>().join(",")).into_bytes())
    }

    fn edit_field(&self, name: &str, value: &mut Value) {
        if self.fault == Fault::NumbersTaken && value.is_number() {
            *value = Value::from(value.to_string());
        }
        let Some(text) = value.as_str() else { return };
        let is_id = name.ends_with("id");
        let edited = match self.fault {
            Fault::EmptyTaken if text.is_empty() && is_id => "none".to_owned(),
            Fault::LongIdsCut if is_id && text.len() > 256 => text.chars().take(100).collect(),
            Fault::IdsTrimmed if is_id && !text.trim().is_empty() => text.trim().to_owned(),
            Fault::UsersIgnoreCase if name == "userid" => text.to_lowercase(),
            Fault::AlarmsIgnoreCase if name == "alarmid" => text.to_lowercase(),
            Fault::UuidsInLowerCase if text.len() == 36 => text.to_lowercase(),
            Fault::StatusTrimmed if name == "status" => text.trim().to_owned(),
            Fault::StatusInLowerCase if name == "status" => text.to_uppercase(),
            Fault::SpaceInTime if name == "changedat" => text.replace(' ', "T"),
            Fault::OffsetIgnored if name == "changedat" && text.len() > 6 => {
                let (begin, end) = text.split_at(text.len() - 6);
                if end.starts_with(['+', '-']) && end.contains(':') {
                    format!("{begin}Z")
                } else {
                    return;
                }
            }
            Fault::Before1970Taken if name == "changedat" && Timestamp::parse(text).is_err() => {
                match text.get(..4).and_then(|it| it.parse::<u32>().ok()) {
                    Some(..=1970) => "1970-01-01T00:00:00Z".to_owned(),
                    _ => return,
                }
            }
            _ => return,
        };
        *value = Value::from(edited);
    }

    async fn on_command(&mut self, command: Command, is_copy: bool) {
        if self.fault == Fault::RequestOvertakes {
            if matches!(command, Command::StatusChanged { .. }) {
                if let Some((held, is_copy)) = self.held_back.replace((command, is_copy)) {
                    self.change(held, is_copy);
                }
                return;
            }
            self.answer(command).await;
            if let Some((held, is_copy)) = self.held_back.take() {
                self.change(held, is_copy);
            }
            return;
        }
        match command {
            Command::StatusChanged { .. } => self.change(command, is_copy),
            Command::SendDigest { .. } => self.answer(command).await,
        }
    }

    fn change(&mut self, command: Command, is_copy: bool) {
        let Command::StatusChanged {
            user,
            alarm,
            status,
            changed_at,
        } = command
        else {
            return;
        };
        let fault = self.fault;
        let status = Status::ALL
            .into_iter()
            .find(|it| it.as_str() == status.as_str())
            .expect("a status");
        let mut at = changed_at.as_nanos();
        if fault == Fault::Milliseconds {
            at -= at % 1_000_000;
        }
        self.num_arrived += 1;
        let user = self.key(&user.to_string());
        let newest_told = self.newest_told.get(&user).copied().unwrap_or_default();
        let alarms = self.alarms.entry(user).or_default();
        let alarm = alarm.0.to_string();
        let Some(known) = alarms.get_mut(&alarm) else {
            let is_late = fault == Fault::LateNotDue && at < newest_told;
            let is_dropped = fault == Fault::TombstoneDropped && !status.is_active();
            if !is_late && !is_dropped {
                let register = Register {
                    at,
                    first_at: at,
                    status,
                    seen: HashSet::from([status]),
                    is_reported: false,
                    arrival: self.num_arrived,
                };
                alarms.insert(alarm, register);
            }
            return;
        };
        if at < known.at && fault != Fault::LastWins {
            if fault == Fault::StaleMakesUndue {
                known.is_reported = true;
            }
            return;
        }
        if at == known.at {
            if fault == Fault::CopyMakesDue && is_copy {
                known.is_reported = false;
            }
            let is_seen = match fault {
                Fault::FirstWinsAtTie => true,
                Fault::SeenForgotten => known.status == status,
                _ => known.seen.contains(&status),
            };
            if is_seen {
                return;
            }
        } else {
            known.seen.clear();
        }
        known.seen.insert(status);
        let is_due_again = match fault {
            Fault::DueAgainAtNewerTime => true,
            Fault::OtherStatusNotDue => !known.status.is_active() && status != known.status,
            Fault::RaisedAgainNotDue => known.status.is_active() && status.is_active(),
            _ => status != known.status,
        };
        if is_due_again {
            known.is_reported = false;
        }
        (known.at, known.status) = (at, status);
        if fault == Fault::TombstoneDropped && !status.is_active() {
            alarms.remove(&alarm);
        }
    }

    fn key(&self, user: &str) -> String {
        match self.fault {
            Fault::UsersMixed => user.rsplit_once('-').map_or("", |(all, _)| all).to_owned(),
            _ => user.to_owned(),
        }
    }

    async fn answer(&mut self, command: Command) {
        let Command::SendDigest { user } = command else {
            return;
        };
        let (user, fault) = (user.to_string(), self.fault);
        let key = self.key(&user);
        let mut due: Vec<(usize, Entry<String>)> = Vec::new();
        for (alarm, known) in self.alarms.entry(key.clone()).or_default() {
            let is_listed = known.status.is_active() || fault == Fault::ClearedListed;
            if !is_listed || known.is_reported {
                continue;
            }
            known.is_reported = fault != Fault::RepeatsReported;
            let newest = self.newest_told.entry(key.clone()).or_default();
            *newest = (*newest).max(known.at);
            let entry = Entry {
                alarm: alarm.clone(),
                status: known.status,
                at: Instant(match fault {
                    Fault::FirstTimeShown => known.first_at,
                    Fault::WrongTimePrinted => known.at - known.at % 1_000_000,
                    _ => known.at,
                }),
            };
            due.push((known.arrival, entry));
        }
        match fault {
            Fault::OrderOfArrival => due.sort_by_key(|(arrival, _)| *arrival),
            Fault::NoTieBreak => due.sort_by_key(|(arrival, entry)| (entry.at, *arrival)),
            Fault::OrderOfUtf16 => due.sort_by_cached_key(|(_, entry)| {
                (entry.at, entry.alarm.encode_utf16().collect::<Vec<_>>())
            }),
            // They come by name.
            _ => due.sort_by_key(|(_, entry)| entry.at),
        }
        let mut entries: Vec<_> = due.into_iter().map(|(_, entry)| entry).collect();
        match fault {
            Fault::LargeCutOff => entries.truncate(1000),
            Fault::ListedTwice if entries.len() > 1 => entries.push(entries[0].clone()),
            Fault::Slow => tokio::time::sleep(Duration::from_millis(2)).await,
            _ => {}
        }
        let sends_empty = [Fault::LikeGo, Fault::SendsEmpty, Fault::EmptySentTwice];
        if entries.is_empty() && !sends_empty.contains(&fault) {
            return;
        }
        let num_copies = match fault {
            Fault::SentTwice => 2,
            Fault::EmptySentTwice if entries.is_empty() => 2,
            _ => 1,
        };
        for _ in 0..num_copies {
            let payload = self.written(&user, &entries);
            let sending = self.client.publish("AlarmDigest", payload.into());
            sending.await.expect("published");
        }
    }

    fn written(&self, user: &str, entries: &[Entry<String>]) -> String {
        let exact = digest(user, entries);
        match self.fault {
            Fault::LikeGo => exact
                .replace("\"UserID\":", "\"userId\":")
                .replace("\"ActiveAlarms\":", "\"activeAlarms\":")
                .replace("\"AlarmID\":", "\"alarmId\":")
                .replace("\"LatestChangedAt\":", "\"latestChangedAt\":")
                .replace(":[]}", ":null}")
                .replace('<', "\\u003c"),
            Fault::Spaces => exact.replace("\":", "\": "),
            Fault::OtherTimes => exact.replace("Z\"}", "+00:00\"}"),
            _ => exact,
        }
    }
}

/// The fields of an object in their order.
struct Fields(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}
