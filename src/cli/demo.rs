//! `tocsin up --demo`: a small fleet's day in ten seconds, played to the daemon that runs.
//!
//! Every message is published to the broker and every digest received from it, by a client of its own, for a
//! user that is new at every start. What is printed is counted from what was sent and what came; what must come
//! is decided by [`crate::check`], which shares nothing with the daemon.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use async_nats::Subscriber;
use bytes::Bytes;
use futures::StreamExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use super::present::{age, alarms, counted, status};
use super::style::{DIM, HEADING};
use super::{Exit, Failure, complain, oneshot, print};
use crate::bus::connection::Connection;
use crate::bus::{wall_clock, wire};
use crate::check::messages::{self, Entry, Status as Seen};
use crate::check::oracle::{Fate, Oracle};
use crate::config::Config;
use crate::core::ids::{Id, UserId};
use crate::core::time::Timestamp;
use crate::domains::alarms::Status;

/// How long a reader has for a line.
const PACE: Duration = Duration::from_millis(650);
/// How long the broker and the daemon have for an answer.
const WITHIN: Duration = Duration::from_secs(5);

/// Plays the day, until it is over or the program is told to stop. What goes wrong is one line; the daemon stays up.
pub(super) async fn run(config: Config, to_try: [String; 3]) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return complain("the demo was not played: signals cannot be listened for");
    };
    let played = tokio::select! {
        played = play(&config, &to_try) => played,
        _ = interrupt.recv() => return,
        _ = terminate.recv() => return,
    };
    if let Err(failure) = played {
        complain(&format!("the demo ended early: {}", failure.line));
    }
}

async fn play(config: &Config, to_try: &[String; 3]) -> Result<(), Failure> {
    let connection =
        oneshot::connect_to(&config.nats, WITHIN, oneshot::SUBSCRIPTION_CAPACITY).await?;
    let run = getrandom::u32().map_err(|error| defect(&format!("no random number: {error}")))?;
    let mut day = Day {
        user: format!("demo-ann-{:06x}", run >> 8),
        letters: oneshot::subscribe(&connection, wire::DEAD_LETTER).await?,
        connection,
        now: wall_clock(),
        oracle: Oracle::new(),
        newest: BTreeMap::new(),
        sent: HashSet::new(),
        tally: Tally::default(),
    };
    day.tell_the_changes().await?;
    day.ask().await?;
    day.ask_again().await?;
    let [tail, change, digest] = to_try;
    let width = to_try
        .iter()
        .map(|it| it.chars().count())
        .max()
        .unwrap_or_default();
    print(&format!(
        "\n{HEADING}Try next, in another terminal{HEADING:#} (Ctrl-C here stops everything):\n  \
         {tail:<width$}   {DIM}digests as they come{DIM:#}\n  \
         {change:<width$}   {DIM}raises an alarm of ann's{DIM:#}\n  \
         {digest:<width$}   {DIM}asks for what is new for ann{DIM:#}\n"
    ))
}

/// What was sent, each message counted once.
#[derive(Default)]
struct Tally {
    sent: usize,
    repeats: usize,
    late: usize,
    refused: usize,
    deciding: usize,
}

/// One change of the day: which alarm, what it became, how many seconds ago.
type Change = (&'static str, Status, u64);

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// A server that comes and goes.
const NUM_FLAPS: u64 = 21;
/// What a bad network delivers late, and twice.
const NUM_LATE: u64 = 8;
const NUM_REPEATS: u64 = 12;

struct Day {
    user: String,
    connection: Connection,
    letters: Subscriber,
    now: Timestamp,
    oracle: Oracle<String, &'static str>,
    /// What each alarm is, by the newest change that was sent.
    newest: BTreeMap<&'static str, Seen>,
    sent: HashSet<String>,
    tally: Tally,
}

impl Day {
    async fn tell_the_changes(&mut self) -> Result<(), Failure> {
        use Status::{Cleared, Critical, Warning};
        let user = &self.user;
        print(&format!(
            "\n{HEADING}A small fleet's day in ten seconds.{HEADING:#} Every line is published over NATS for user \
             {user}.\n"
        ))?;
        self.tell(&[("db-1 disk", Warning, 8 * HOUR)], "fills up")
            .await?;
        self.tell(&[("web-2 http", Critical, 6 * HOUR)], "is down")
            .await?;
        let queue = [
            ("mail queue", Warning, 5 * HOUR),
            ("mail queue", Cleared, 5 * HOUR - 20 * MINUTE),
        ];
        self.tell(&queue, "is clear again before anybody was told")
            .await?;
        let flaps: Vec<Change> = (0..NUM_FLAPS)
            .map(|i| {
                let status = if i % 2 == 0 { Critical } else { Cleared };
                ("lb-1 health", status, 3 * HOUR - i * 30)
            })
            .collect();
        let lasted = age(Duration::from_secs((NUM_FLAPS - 1) * 30));
        let remark = format!("flaps: {NUM_FLAPS} changes in {lasted}");
        self.tell(&flaps, &remark).await?;
        self.tell(&[("db-1 disk", Critical, 2 * HOUR)], "gets worse")
            .await?;
        self.tell_the_bad_network(&flaps).await?;
        self.tell_the_junk().await
    }

    /// Publishes changes; the line tells the last of them.
    async fn tell(&mut self, changes: &[Change], remark: &str) -> Result<(), Failure> {
        sleep(PACE).await;
        for change in changes {
            self.send(*change).await?;
        }
        let Some((alarm, is, ago)) = changes.last() else {
            return Ok(());
        };
        let (is, ago) = (status(*is), age(Duration::from_secs(*ago)));
        print(&format!(
            "  {ago:>7} ago  {is}  {alarm:<12} {DIM}{remark}{DIM:#}\n"
        ))
    }

    /// Newer before older, old ones that nobody saw in time, and many twice.
    async fn tell_the_bad_network(&mut self, seen: &[Change]) -> Result<(), Failure> {
        use Status::{Cleared, Critical, Warning};
        sleep(PACE).await;
        let num_before = self.tally.sent;
        self.send(("api latency", Critical, 15 * MINUTE)).await?;
        self.send(("cron backup", Warning, 40 * MINUTE)).await?;
        // The end overtakes the beginning.
        self.send(("cache memory", Cleared, 70 * MINUTE)).await?;
        self.send(("cache memory", Critical, 90 * MINUTE)).await?;
        for i in 0..NUM_LATE {
            self.send(("web-2 http", Warning, 7 * HOUR - i * MINUTE))
                .await?;
        }
        for change in seen.iter().rev().take(NUM_REPEATS as usize) {
            self.send(*change).await?;
        }
        let num = self.tally.sent - num_before;
        print(&format!(
            "  {:>7} ago  {num} messages  {DIM}arrive at once over a bad network: late, twice, the newest first{DIM:#}\n",
            age(Duration::from_secs(15 * MINUTE)),
        ))
    }

    async fn tell_the_junk(&mut self) -> Result<(), Failure> {
        sleep(PACE).await;
        let user = self.user.clone();
        let at = self.ago(MINUTE);
        let unknown = messages::change(&user, "db-1 disk", Seen::Critical, at);
        let junk = [
            format!("{user}: disk full!!"),
            unknown.replace("CRITICAL", "ON FIRE"),
            unknown.replace(&at.to_string(), "yesterday"),
        ];
        for payload in &junk {
            self.tally.sent += 1;
            let message = (wire::CHANGE, Bytes::from(payload.clone()));
            // A stream takes everything; without one the daemon says at once that it is refused.
            drop(oneshot::send(&self.connection, message, None, WITHIN).await?);
        }
        let mut reasons = Vec::new();
        let until = Instant::now() + WITHIN;
        while reasons.len() < junk.len() {
            let next = timeout_at(until, self.letters.next()).await;
            let letter = next.ok().flatten().ok_or_else(|| {
                let num = reasons.len();
                defect(&format!(
                    "{num} of {} unreadable messages were refused",
                    junk.len()
                ))
            })?;
            let is_ours = junk
                .iter()
                .any(|payload| payload.as_bytes() == letter.payload);
            let reason = letter
                .headers
                .and_then(|it| Some(it.get(wire::REASON_HEADER)?.to_string()));
            reasons.extend(reason.filter(|_| is_ours));
        }
        reasons.sort();
        self.tally.refused = reasons.len();
        let num = counted(reasons.len(), "message");
        print(&format!(
            "  {:>7} ago  {num:<11}  {DIM}refused, kept on {}: {}{DIM:#}\n",
            age(Duration::from_secs(MINUTE)),
            wire::DEAD_LETTER,
            reasons.join(", "),
        ))
    }

    fn ago(&self, seconds: u64) -> messages::Instant {
        messages::Instant(self.now.minus(Duration::from_secs(seconds)).as_nanos())
    }

    /// Publishes a change, waits until it is taken, and counts what it is.
    async fn send(&mut self, (alarm, status, ago): Change) -> Result<(), Failure> {
        let at = self.ago(ago);
        let seen = match status {
            Status::Cleared => Seen::Cleared,
            Status::Warning => Seen::Warning,
            Status::Critical => Seen::Critical,
        };
        let payload = messages::change(&self.user, alarm, seen, at);
        let message = (wire::CHANGE, Bytes::from(payload.clone()));
        oneshot::publish(&self.connection, message, WITHIN).await?;
        let fate = self.oracle.change(self.user.clone(), alarm, seen, at);
        let is_first = self.sent.insert(payload);
        self.tally.sent += 1;
        match fate {
            Fate::Decides => {
                self.tally.deciding += 1;
                self.newest.insert(alarm, seen);
            }
            Fate::Stale if is_first => self.tally.late += 1,
            Fate::Stale | Fate::Duplicate => self.tally.repeats += 1,
        }
        Ok(())
    }

    /// Asks for the digest, prints what came, and compares it with what must come.
    async fn ask(&mut self) -> Result<(), Failure> {
        sleep(PACE).await;
        print(&format!(
            "\n  {:>11}  {HEADING}What is new for {}?{HEADING:#}",
            "now", self.user
        ))?;
        let user = self.user_id()?;
        let asked = Instant::now();
        let digest = oneshot::ask(&self.connection, &user, WITHIN).await?;
        let took = asked.elapsed().as_millis();
        let Some(digest) = digest else {
            print("\n")?;
            return Err(defect("no digest came"));
        };
        let num_alarms = counted(digest.digest.alarms.len(), "alarm");
        print(&format!(
            "  {DIM}one digest of {num_alarms}, oldest first, after {took} ms{DIM:#}\n{}",
            alarms(&digest.digest, self.now, &[])
        ))?;
        let due: Vec<Entry<&str>> = self.oracle.request(&self.user);
        if digest.payload != messages::digest(&self.user, &due).as_bytes() {
            let must: Vec<_> = due.iter().map(|entry| entry.alarm).collect();
            let what = format!("the digest is wrong, it must hold: {}", must.join(", "));
            return Err(defect(&what));
        }
        sleep(PACE).await;
        self.print_absorbed(due.len())
    }

    /// What became of every message that was sent.
    fn print_absorbed(&self, num_alarms: usize) -> Result<(), Failure> {
        let Tally {
            sent,
            repeats,
            late,
            refused,
            deciding,
        } = self.tally;
        let is_cleared = |it: &&Seen| !it.is_active();
        let cleared = self.newest.values().filter(is_cleared).count();
        let overtaken = deciding - cleared - num_alarms;
        print(&format!(
            "  {HEADING}{sent} messages in{HEADING:#}: {repeats} repeats, {late} late, {overtaken} \
             overtaken, {cleared} cleared, {refused} refused {HEADING}→ 1 digest of {}{HEADING:#}\n",
            counted(num_alarms, "alarm")
        ))
    }

    /// Asks when nothing is new, and clears everything: the next day begins with nothing.
    async fn ask_again(&mut self) -> Result<(), Failure> {
        sleep(PACE).await;
        let digest = oneshot::ask(&self.connection, &self.user_id()?, WITHIN).await?;
        let told = match digest {
            None => "no message",
            // digest.when_empty = "send"
            Some(digest) if digest.digest.alarms.is_empty() => "an empty digest",
            Some(_) => return Err(defect("a second digest came, with nothing new to tell")),
        };
        let newest = self.newest.iter();
        let active: Vec<_> = newest
            .filter(|(_, it)| it.is_active())
            .map(|(alarm, _)| *alarm)
            .collect();
        for alarm in &active {
            self.send((alarm, Status::Cleared, 0)).await?;
        }
        print(&format!(
            "  {:>11}  asked again: nothing is new, {told}. {DIM}Then all {} are cleared, and the day is over.{DIM:#}\n",
            "now",
            active.len()
        ))
    }

    fn user_id(&self) -> Result<UserId, Failure> {
        let id = Id::new(&self.user).ok_or_else(|| defect("the user's id is too long"))?;
        Ok(UserId(id))
    }
}

fn defect(what: &str) -> Failure {
    Failure::new(Exit::Defect, &what)
}
