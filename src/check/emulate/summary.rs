//! What a run did, as numbers: shown while it lasts, and at its end.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::messages::Entry;
use super::judge::Wrong;

/// The longest latency that is told apart from longer ones.
const MAX_LATENCY: Duration = Duration::from_hours(1);

/// How messages reach the service.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Input {
    /// Through a stream.
    JetStream,
    /// Over core NATS.
    Core,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing was checked.
    Unchecked,
    /// Every digest was what it had to be.
    Right,
    /// One was not.
    Wrong,
    /// Something of ours may have been lost on the way, so nobody can say.
    Unknown,
}

/// Messages by kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Published {
    /// All of them.
    pub total: u64,
    /// Changes, sent for the first time.
    pub changes: u64,
    /// Of these, how many were late.
    pub late: u64,
    /// Changes that were sent again.
    pub duplicates: u64,
    /// Requests for a digest.
    pub requests: u64,
    /// Messages that nobody can use.
    pub junk: u64,
    /// Of all, how many were on numbered subjects.
    pub numbered: u64,
}

/// What came back.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Received {
    /// Digests of this run's users, each once.
    pub digests: u64,
    /// Alarms in them.
    pub alarms: u64,
    /// Digests that came again under the same id.
    pub repeats: u64,
    /// Digests that must come and have not yet; where nothing is checked, requests that no digest followed.
    pub owed: u64,
}

/// Changes that must make no difference, by the specification.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Absorbed {
    /// Older than what was on record.
    pub stale: u64,
    /// Seen before.
    pub duplicates: u64,
    /// Requests without anything due.
    pub empty: u64,
}

/// What went wrong between us and the broker.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Broker {
    /// How often a connection was made again.
    pub reconnects: u64,
    /// Messages that the stream did not take, at least.
    pub lost: u64,
}

/// From the request to its digest, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half were faster.
    pub p50: f64,
    /// 99 of 100 were faster.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

/// One alarm in a digest.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Alarm {
    /// Its id.
    pub alarm: String,
    /// Its status.
    pub status: &'static str,
    /// Since when, in RFC 3339.
    pub at: String,
}

/// A message of the user whose digest was wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Sent {
    /// Which message of the traffic it is, from 1 on.
    pub number: u64,
    /// Where it was published.
    pub subject: String,
    /// Its bytes.
    pub payload: String,
}

/// The first thing that was wrong.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What, in words.
    pub what: String,
    /// Whose digest, where that is known.
    pub user: Option<String>,
    /// Which published message asked for it, from 1 on, where one did.
    pub asked: Option<u64>,
    /// What was due.
    pub expected: Vec<Alarm>,
    /// What came, where anything did.
    pub found: Option<Vec<Alarm>>,
    /// The last messages of this user.
    pub messages: Vec<Sent>,
}

impl Finding {
    pub(super) fn new(wrong: Wrong, user: Option<String>, messages: Vec<Sent>) -> Self {
        Self {
            what: wrong.what,
            user,
            asked: wrong.asked,
            expected: shown(&wrong.expected),
            found: wrong.found.as_deref().map(shown),
            messages,
        }
    }
}

fn shown(entries: &[Entry<String>]) -> Vec<Alarm> {
    let shown = entries.iter().map(|entry| Alarm {
        alarm: entry.alarm.clone(),
        status: entry.status.as_str(),
        at: entry.at.to_string(),
    });
    shown.collect()
}

/// A run, until now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// What it came to.
    pub verdict: Verdict,
    /// Why it ended before its time or without a verdict, in words.
    pub why: Option<String>,
    /// How messages reach the service.
    pub input: Input,
    /// The seed.
    pub seed: u64,
    /// When the first change happened, in RFC 3339.
    pub start: String,
    /// What the name of every user begins with.
    pub prefix: String,
    /// From the first message to the last.
    pub seconds: f64,
    /// Messages a second.
    pub rate: f64,
    /// Messages a second that were asked for; none: as many as the broker takes.
    pub asked_rate: Option<f64>,
    /// How many messages it will have, where that is known.
    pub planned: Option<u64>,
    /// What was published.
    pub published: Published,
    /// What came back.
    pub received: Received,
    /// What made no difference; known where digests are checked.
    pub absorbed: Option<Absorbed>,
    /// From requests to digests; none before the first.
    pub latency: Option<Latency>,
    /// What went wrong between us and the broker.
    pub broker: Broker,
    /// What was wrong, where something was.
    pub wrong: Option<Finding>,
}

/// Latencies as they come.
#[derive(Clone, Debug)]
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(super) fn new() -> Self {
        let max = MAX_LATENCY.as_micros() as u64;
        Self(Histogram::new_with_bounds(1, max, 3).expect("1 µs to 1 h are bounds"))
    }

    pub(super) fn add(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros);
    }

    pub(super) fn read(&self) -> Option<Latency> {
        let seconds = |micros: u64| micros as f64 / 1e6;
        (!self.0.is_empty()).then(|| Latency {
            p50: seconds(self.0.value_at_quantile(0.5)),
            p99: seconds(self.0.value_at_quantile(0.99)),
            max: seconds(self.0.max()),
        })
    }
}
