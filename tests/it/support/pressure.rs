//! Many messages fast: publishers that do not wait for one confirmation before the next message, histories
//! whose outcome is arithmetic, and how long a user waits meanwhile.

use std::ops::Range;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use tocsin::bus::connection::Connection;
use tokio::time::{Instant, timeout};

use super::evidence::Row;
use super::judge::{Judged, read_stream};
use super::nats::Nats;
use super::random::Random;
use super::traffic::{change, request};
use super::usage::mib;
use crate::bus_contract::echo;

/// How many connections publish at once.
const PUBLISHERS: u64 = 4;
/// How many messages of one connection may wait for their confirmation.
const WINDOW: u64 = 4000;
/// How much slower than twice as slow as usual an answer may be and still count as usual: the machine is shared.
const SLACK: Duration = Duration::from_millis(20);
/// Into how many parts a second of a pace is cut.
const SLICES: u64 = 4;
/// How long one confirmation, or one digest, may take.
const DEADLINE: Duration = Duration::from_mins(5);

/// A subject, and what is published on it.
pub(crate) type Message = (&'static str, String);

/// Connections that publish at once.
pub(crate) struct Publishers(Vec<Connection>);

impl Publishers {
    pub(crate) async fn connect(nats: &Nats) -> Self {
        let mut connections = Vec::new();
        for _ in 0..PUBLISHERS {
            connections.push(nats.connect().await);
        }
        Self(connections)
    }

    /// Publishes the messages of these numbers, and waits until the stream has confirmed each. One connection
    /// publishes one share of them in order; the shares are published at once.
    pub(crate) async fn publish<M>(&self, numbers: Range<u64>, make: M)
    where
        M: Fn(u64) -> Message + Clone + Send + 'static,
    {
        let num = numbers.end - numbers.start;
        let share = |of: u64| numbers.start + num * of / PUBLISHERS;
        let publishing = (0..).zip(&self.0).map(|(publisher, connection)| {
            let (client, make) = (connection.client().clone(), make.clone());
            let own = share(publisher)..share(publisher + 1);
            tokio::spawn(async move { publish_share(&client, own, make).await })
        });
        let publishing: Vec<_> = publishing.collect();
        for publisher in publishing {
            publisher.await.expect("the publisher ends");
        }
    }

    /// Publishes so many a second for so many seconds, from this number on; how long it really took.
    pub(crate) async fn publish_at<M>(
        &self,
        per_second: u64,
        seconds: u64,
        from: u64,
        make: M,
    ) -> Duration
    where
        M: Fn(u64) -> Message + Clone + Send + 'static,
    {
        let began = Instant::now();
        for slice in 0..seconds * SLICES {
            let until = |slice: u64| from + per_second * slice / SLICES;
            self.publish(until(slice)..until(slice + 1), make.clone())
                .await;
            let wanted = Duration::from_millis(1000 * (slice + 1) / SLICES);
            // The pace itself, not a wait for something to be seen.
            tokio::time::sleep_until(began + wanted).await;
        }
        began.elapsed()
    }

    /// Publishes without a confirmation, as on core NATS, and waits until the server has taken all of it.
    pub(crate) async fn send<M>(&self, numbers: Range<u64>, make: M)
    where
        M: Fn(u64) -> (&'static str, String, Option<String>) + Clone + Send + 'static,
    {
        let num = numbers.end - numbers.start;
        let share = |of: u64| numbers.start + num * of / PUBLISHERS;
        let sending = (0..).zip(&self.0).map(|(publisher, connection)| {
            let (connection, make) = (connection.clone(), make.clone());
            let own = share(publisher)..share(publisher + 1);
            tokio::spawn(async move {
                for number in own {
                    let (subject, payload, reply_to) = make(number);
                    let client = connection.client();
                    let sent = match reply_to {
                        Some(inbox) => {
                            client
                                .publish_with_reply(subject, inbox, payload.into())
                                .await
                        }
                        None => client.publish(subject, payload.into()).await,
                    };
                    sent.expect("published");
                }
                echo(&connection).await;
            })
        });
        let sending: Vec<_> = sending.collect();
        for publisher in sending {
            publisher.await.expect("the publisher ends");
        }
    }
}

async fn publish_share(client: &Client, numbers: Range<u64>, make: impl Fn(u64) -> Message) {
    let inbox = client.new_inbox();
    let mut confirmations = client
        .subscribe(inbox.clone())
        .await
        .expect("a subscription");
    let mut num_waiting = 0;
    for number in numbers {
        let (subject, payload) = make(number);
        let published = client.publish_with_reply(subject, inbox.clone(), payload.into());
        published.await.expect("published");
        num_waiting += 1;
        while num_waiting >= WINDOW {
            confirmed(&mut confirmations).await;
            num_waiting -= 1;
        }
    }
    for _ in 0..num_waiting {
        confirmed(&mut confirmations).await;
    }
}

async fn confirmed(confirmations: &mut Subscriber) {
    let confirmation = timeout(DEADLINE, confirmations.next()).await;
    let confirmation = confirmation.expect("a confirmation in time");
    let confirmation = confirmation.expect("the subscription lasts").payload;
    let text = String::from_utf8_lossy(&confirmation);
    assert!(text.contains("\"seq\":"), "{text}");
}

/// A change, or one time in a hundred a request, of a hundred users with twenty alarms each.
pub(crate) fn mixed(number: u64) -> Message {
    let mut random = Random(number);
    let user = format!("user {}", random.below(100));
    if random.below(100) == 0 {
        return ("SendAlarmDigest", request(&user));
    }
    let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
    let alarm = format!("alarm {}", random.below(20));
    let changed = change(&user, &alarm, status, random.below(80_000));
    ("AlarmStatusChanged", changed)
}

/// A history of any length whose outcome needs no memory of it: its messages visit the alarms in a fixed order,
/// so that the last visit of each is among the last messages, and the time of each change is its number.
///
/// Published by several connections at once it arrives far out of order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cycle {
    pub(crate) num_users: u64,
    pub(crate) alarms_per_user: u64,
}

impl Cycle {
    /// A prime: it visits every alarm before any again.
    const STRIDE: u64 = 7_919;

    fn num_alarms(self) -> u64 {
        self.num_users * self.alarms_per_user
    }

    /// Whose alarm, and which, a message is about.
    fn place(self, number: u64) -> (u64, u64) {
        let at = number * Self::STRIDE % self.num_alarms();
        (at % self.num_users, at / self.num_users)
    }

    fn status(number: u64) -> &'static str {
        ["CLEARED", "WARNING", "CRITICAL"][Random(number).below(3) as usize]
    }

    fn user(user: u64) -> String {
        format!("user {user}")
    }

    /// The change of this number.
    pub(crate) fn change(self, number: u64) -> String {
        let (user, alarm) = self.place(number);
        let changed = change(
            &Self::user(user),
            &format!("alarm {alarm}"),
            Self::status(number),
            number / 1000,
        );
        // Thousandths of a second.
        changed.replace("Z\"}", &format!(".{:03}Z\"}}", number % 1000))
    }

    /// A request for the digest of that user.
    pub(crate) fn request(user: u64) -> String {
        request(&Self::user(user))
    }

    /// The digest of each user after so many messages of which none was reported before.
    fn digests(self, num_messages: u64) -> Vec<String> {
        let mut entries = vec![Vec::new(); self.num_users as usize];
        for number in num_messages.saturating_sub(self.num_alarms())..num_messages {
            let ((user, alarm), status) = (self.place(number), Self::status(number));
            if status != "CLEARED" {
                let second = number / 1000;
                let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
                let fraction = format!(".{:03}", number % 1000);
                let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
                entries[user as usize].push(format!(
                    "{{\"AlarmID\":\"alarm {alarm}\",\"Status\":\"{status}\",\"LatestChangedAt\":\"2026-01-01T{hour:02}:{minute:02}:{second:02}{fraction}Z\"}}"
                ));
            }
        }
        let digest = |(user, entries): (usize, Vec<String>)| {
            let (user, entries) = (Self::user(user as u64), entries.join(","));
            format!("{{\"UserID\":\"{user}\",\"ActiveAlarms\":[{entries}]}}")
        };
        entries.into_iter().enumerate().map(digest).collect()
    }

    /// Waits for the digests that were asked for behind so many messages, one a user, and demands exactly what
    /// arithmetic says.
    pub(crate) async fn judge(self, client: &Client, num_messages: u64) -> Judged {
        let mut expected = self.digests(num_messages);
        let context = async_nats::jetstream::new(client.clone());
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut output = context
                .get_stream("TOCSIN_OUT")
                .await
                .expect("the stream exists");
            let state = &output.info().await.expect("the stream answers").state;
            if state.messages >= self.num_users {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{} of {} digests came",
                state.messages,
                self.num_users
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let output = read_stream(client, "TOCSIN_OUT").await;
        let mut found: Vec<String> = output
            .into_iter()
            .map(|digest| String::from_utf8(digest.payload).expect("a digest is UTF-8"))
            .collect();
        found.sort();
        expected.sort();
        assert_eq!(found.len(), expected.len(), "one digest for each user");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected);
        }
        Judged {
            messages: num_messages + self.num_users,
            digests: self.num_users,
            dead_letters: 0,
            confirmed: num_messages + self.num_users,
            published: self.num_users,
            published_letters: 0,
        }
    }
}

/// How a daemon has come through an overload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Overload {
    /// How many messages a second it takes.
    pub(crate) rate: f64,
    /// Its largest memory, and how much it may be.
    pub(crate) peak: u64,
    pub(crate) bound: u64,
    /// Until it had worked off what waited.
    pub(crate) drained: Duration,
    /// From request to digest, before.
    pub(crate) usual: Duration,
    /// As [`Caller::ask_until_usual`] says.
    pub(crate) recovered: Duration,
    pub(crate) again: Duration,
}

impl Overload {
    /// Demands that its memory was bounded, and says the rest.
    pub(crate) fn judge(&self, row: &mut Row) {
        let memory = format!("{} of {}", mib(self.peak), mib(self.bound));
        assert!(self.peak < self.bound, "{memory}");
        let seconds = |it: Duration| format!("{:.1} s", it.as_secs_f64());
        let rate = format!("{:.0} messages a second", self.rate);
        let again = format!("{:.1?}, {:.1?} (median)", self.usual, self.again);
        row.fact("rate of the daemon", rate);
        row.fact("largest memory, and its bound", memory);
        row.fact("backlog worked off within", seconds(self.drained));
        row.fact(
            "usual latency again within",
            format!("{} more", seconds(self.recovered)),
        );
        row.fact("request to digest before, and then", again);
    }
}

/// A user who asks and waits.
pub(crate) struct Caller {
    client: Client,
    digests: Subscriber,
    user: String,
    num_asked: u64,
}

impl Caller {
    pub(crate) async fn new(nats: &Nats, user: &str) -> Self {
        let client = nats.connect().await.client().clone();
        let digests = client
            .subscribe("AlarmDigest")
            .await
            .expect("a subscription");
        client.flush().await.expect("the server answers");
        Self {
            client,
            digests,
            user: user.to_owned(),
            num_asked: 0,
        }
    }

    /// Changes an alarm, asks, and waits for the digest: how long that took.
    pub(crate) async fn ask(&mut self) -> Duration {
        self.num_asked += 1;
        let alarm = format!("alarm {:06}", self.num_asked);
        let changed = change(&self.user, &alarm, "CRITICAL", 1);
        let began = Instant::now();
        for (subject, payload) in [
            ("AlarmStatusChanged", changed),
            ("SendAlarmDigest", request(&self.user)),
        ] {
            let published = self.client.publish(subject, payload.into());
            published.await.expect("published");
        }
        let of_user = format!("{{\"UserID\":\"{}\"", self.user);
        let answered = async {
            while let Some(digest) = self.digests.next().await {
                if digest.payload.starts_with(of_user.as_bytes())
                    && String::from_utf8_lossy(&digest.payload).contains(&alarm)
                {
                    return;
                }
            }
            panic!("the subscription ended");
        };
        timeout(DEADLINE, answered).await.expect("a digest in time");
        began.elapsed()
    }

    /// Asks until the answers come as quickly as usual again, which must be within a time; how long that took,
    /// and how quickly they come.
    pub(crate) async fn ask_until_usual(
        &mut self,
        usual: Duration,
        within: Duration,
    ) -> (Duration, Duration) {
        let began = Instant::now();
        loop {
            let now = median(&self.ask_times(20).await);
            if now <= 2 * usual + SLACK {
                return (began.elapsed(), now);
            }
            assert!(
                began.elapsed() < within,
                "{now:?} after {within:?}, {usual:?} before"
            );
        }
    }

    /// Asks for as long as something else goes on: from the quickest to the slowest.
    pub(crate) async fn ask_during<T>(
        &mut self,
        other: &tokio::task::JoinHandle<T>,
    ) -> Vec<Duration> {
        let mut waited = Vec::new();
        while !other.is_finished() {
            waited.push(self.ask().await);
            // A user, not a second load.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        waited.sort();
        waited
    }

    /// So many times, one after the other: from the quickest to the slowest.
    pub(crate) async fn ask_times(&mut self, num: usize) -> Vec<Duration> {
        let mut waited = Vec::new();
        for _ in 0..num {
            waited.push(self.ask().await);
        }
        waited.sort();
        waited
    }
}

/// How many messages of the stream no daemon was given yet.
pub(crate) async fn num_waiting(client: &Client) -> u64 {
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream("TOCSIN_IN").await;
    let stream = stream.expect("the stream exists");
    let mut consumers = stream.consumers();
    // Those of processes that were killed are forgotten after a while.
    let mut fewest = u64::MAX;
    while let Some(consumer) = consumers.next().await {
        let consumer = consumer.expect("the broker lists its consumers");
        fewest = fewest.min(consumer.num_pending);
    }
    fewest
}

/// The time below which 99 of 100 are.
pub(crate) fn p99(sorted: &[Duration]) -> Duration {
    sorted[sorted.len() * 99 / 100]
}

/// The middle of what is in order.
pub(crate) fn median<T: Copy>(sorted: &[T]) -> T {
    sorted[sorted.len() / 2]
}
