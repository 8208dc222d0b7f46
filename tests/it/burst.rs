//! A burst on core NATS: everything is applied, or the loss is counted to the message and said.

use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::{FutureExt, StreamExt};
use serde_json::Value;
use tocsin::bus::connection::Connection;
use tokio::time::{Instant, timeout};

use crate::bus_contract::echo;
use crate::support::daemon::Setup;
use crate::support::evidence::{Rounds, Row};
use crate::support::nats::Nats;
use crate::support::pressure::{Caller, Overload, Publishers, median};
use crate::support::traffic::{change, publish_taken, request};
use crate::support::usage::MIB;

/// Users of an overload, and how many messages it has: more than the queue holds.
const USERS: u64 = 1000;
const NUM: u64 = 1_600_000;
/// Messages of it by which the daemon's rate is measured before.
const MEASURED: u64 = 20_000;
/// One in so many asks for an answer.
const ASKING_EVERY: u64 = 1000;
/// What the queue holds, and what the daemon may need for each message in it.
const MAX_WAITING: u64 = 1 << 20;
const BYTES_WAITING: u64 = 256;
/// What it may need for each alarm on record, and besides.
const BYTES_ON_RECORD: u64 = 128;
const BYTES_BESIDES: u64 = 64 * MIB;
/// The users of a daemon that is stopped in a burst.
const STOPPED_USERS: usize = 50;

/// How many messages the log says were dropped.
fn num_said_to_be_lost(log: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains("dropped"));
    let numbers = lines.filter_map(|line| {
        let (_, rest) = line.split_once("dropped=")?;
        rest.split_whitespace().next()?.parse::<u64>().ok()
    });
    numbers.sum()
}

/// What the daemon says of itself, once a second.
struct Told {
    aggregates: Subscriber,
    num_dropped: u64,
    lag: f64,
}

impl Told {
    async fn new(client: &Client) -> Self {
        let aggregates = client.subscribe("MetricAggregate").await;
        Self {
            aggregates: aggregates.expect("a subscription"),
            num_dropped: 0,
            lag: f64::MAX,
        }
    }

    /// Hears until nothing waits any more; what it said up to now is older.
    async fn hear_until_idle(&mut self) {
        // An aggregate for each second: these are the ones that nobody has heard yet.
        while timeout(Duration::from_millis(10), self.hear())
            .await
            .is_ok()
        {}
        self.lag = f64::MAX;
        while self.lag > 0.0 {
            self.hear().await;
        }
    }

    /// Hears the next second.
    async fn hear(&mut self) {
        let aggregate = timeout(Duration::from_secs(30), self.aggregates.next()).await;
        let aggregate = aggregate.expect("an aggregate in time");
        let aggregate = aggregate.expect("the subscription lasts").payload;
        let json: Value = serde_json::from_slice(&aggregate).expect("an aggregate is JSON");
        for metric in json["Metrics"].as_array().expect("metrics are a list") {
            match metric["Name"].as_str().expect("a name") {
                "tocsin_input_lag" => self.lag = metric["Last"].as_f64().unwrap_or(f64::MAX),
                "tocsin_input_lost_total" if metric["Labels"]["how"] == "dropped" => {
                    self.num_dropped += metric["Count"].as_u64().expect("a count");
                }
                _ => {}
            }
        }
    }
}

/// Every change of an overload is of an alarm of its own; some ask for an answer.
fn numbered(number: u64) -> (&'static str, String, Option<String>) {
    let (user, alarm) = (format!("u{}", number % USERS), format!("a{number}"));
    let payload = change(&user, &alarm, "CRITICAL", number / USERS);
    let reply_to = number
        .is_multiple_of(ASKING_EVERY)
        .then(|| format!("answers.{number}"));
    ("AlarmStatusChanged", payload, reply_to)
}

/// Asks for every user's digest: which numbers they report, each once.
async fn reported(client: &Client, digests: &mut Subscriber, num: u64) -> Vec<bool> {
    for user in 0..USERS {
        let asked = client.publish("SendAlarmDigest", request(&format!("u{user}")).into());
        asked.await.expect("published");
    }
    let mut reported = vec![false; num as usize];
    let mut num_digests = 0;
    while num_digests < USERS {
        let digest = timeout(Duration::from_mins(1), digests.next()).await;
        let digest = digest.expect("a digest for every user in time");
        let digest = digest.expect("the subscription lasts");
        let json: Value = serde_json::from_slice(&digest.payload).expect("a digest is JSON");
        if json["UserID"] == "caller" {
            continue;
        }
        num_digests += 1;
        for entry in json["ActiveAlarms"].as_array().expect("alarms are a list") {
            let alarm = entry["AlarmID"].as_str().expect("an alarm");
            let number: usize = alarm[1..].parse().expect("a number");
            assert!(!reported[number], "{alarm} was reported twice");
            reported[number] = true;
        }
    }
    reported
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_queue_cannot_hold_is_counted_to_the_message() {
    let mut row = Row::new(Rounds::in_test(1));
    // So few at once make the store slow, and leave the reader as quick as ever; fewer take minutes to catch up.
    let mut in_flight = 100;
    while row.goes_on() {
        overload(&mut row, in_flight).await;
        in_flight = 20;
    }
    row.close();
}

async fn overload(row: &mut Row, in_flight: u64) {
    let nats = Nats::start_with(false, "").await;
    let setup = Setup::new(&nats)
        .set(&format!("input.in_flight={in_flight}"))
        .set("metrics.aggregate_interval=1s");
    let daemon = setup.start_ready();
    let client = nats.connect().await.client().clone();
    let mut told = Told::new(&client).await;
    let mut answers = client.subscribe("answers.*").await.expect("a subscription");
    let mut digests = client
        .subscribe("AlarmDigest")
        .await
        .expect("a subscription");
    client.flush().await.expect("the server answers");
    let mut caller = Caller::new(&nats, "caller").await;
    let usual = median(&caller.ask_times(50).await);
    let publishers = Publishers::connect(&nats).await;

    let began = Instant::now();
    publishers.send(0..MEASURED, numbered).await;
    caller.ask().await;
    let rate = MEASURED as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    publishers.send(MEASURED..NUM, numbered).await;
    let times = (NUM - MEASURED) as f64 / began.elapsed().as_secs_f64() / rate;
    let stopped = Instant::now();
    told.hear_until_idle().await;
    let drained = stopped.elapsed();
    let (recovered, again) = caller.ask_until_usual(usual, Duration::from_secs(5)).await;
    let peak = daemon.usage().peak;
    let reported = reported(&client, &mut digests, NUM).await;
    told.hear().await;
    told.hear().await;
    let num_applied = reported.iter().filter(|is_reported| **is_reported).count() as u64;
    let num_lost = NUM - num_applied;
    assert!(num_lost > 0, "there was no overload");
    assert_eq!(told.num_dropped, num_lost, "counted and lost");
    assert_eq!(num_said_to_be_lost(&setup.log()), num_lost, "said and lost");
    let asking = reported.iter().step_by(ASKING_EVERY as usize);
    let num_applied_asking = asking.filter(|is_reported| **is_reported).count();
    for _ in 0..num_applied_asking {
        let answer = timeout(Duration::from_secs(30), answers.next()).await;
        let answer = answer.expect("an answer to whatever is applied");
        let answer = answer.expect("the subscription lasts");
        let number: usize = answer.subject["answers.".len()..]
            .parse()
            .expect("a number");
        assert_eq!(answer.payload, "{\"ok\":true}");
        assert!(
            reported[number],
            "{number} was answered and is in no digest"
        );
    }
    let is_over = answers.next().now_or_never().is_none();
    assert!(is_over, "an answer to what was not applied");
    let bound = MAX_WAITING * BYTES_WAITING + NUM * BYTES_ON_RECORD + BYTES_BESIDES;
    let overload = Overload {
        rate,
        peak,
        bound,
        drained,
        usual,
        recovered,
        again,
    };
    overload.judge(row);
    row.count("messages published", NUM);
    row.count("messages applied", num_applied);
    row.count("messages lost, and said to be lost", num_lost);
    row.count("requests for an answer", NUM / ASKING_EVERY);
    row.count("answers", num_applied_asking as u64);
    row.fact("rate of the overload", format!("{times:.1} times that"));
    assert!(daemon.stop().success());
}

/// Publishes changes of as many alarms, shared among the users, and waits until the server has taken them.
async fn publish_changes(connection: &Connection, num: usize, reply_to: &str) {
    let client = connection.client();
    for number in 0..num {
        let (user, alarm) = (format!("u{}", number % STOPPED_USERS), format!("a{number}"));
        let payload = change(&user, &alarm, "CRITICAL", 1);
        let published =
            client.publish_with_reply("AlarmStatusChanged", reply_to.to_owned(), payload.into());
        published.await.expect("published");
    }
    echo(connection).await;
}

/// Asks for every user's digest until all of the alarms were reported.
async fn see_reported(client: &Client, num: usize) {
    let subscribed = client.subscribe("AlarmDigest").await;
    let mut digests = subscribed.expect("a subscription");
    for user in 0..STOPPED_USERS {
        publish_taken(client, "SendAlarmDigest", request(&format!("u{user}"))).await;
    }
    let mut num_reported = 0;
    while num_reported < num {
        let digest = timeout(Duration::from_secs(10), digests.next()).await;
        let digest = digest.unwrap_or_else(|_| panic!("{num_reported} of {num} were reported"));
        let digest = digest.expect("the subscription lasts");
        num_reported += String::from_utf8_lossy(&digest.payload)
            .matches("AlarmID")
            .count();
    }
    assert_eq!(num_reported, num);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_applies_everything_that_the_server_had_taken_before_it() {
    const NUM: usize = 500_000;
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let client = connection.client();
    // So few at once make the store slow: most of it still waits for the reader.
    let setup = Setup::new(&nats).set("input.in_flight=200");
    let daemon = setup.start_ready();
    publish_changes(&connection, NUM, "nobody").await;
    assert!(daemon.stop().success());
    let _daemon = setup.start_ready();
    see_reported(client, NUM).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_answers_everything_that_it_applies() {
    const NUM: usize = 20_000;
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let client = connection.client();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let mut answers = client.subscribe("answers").await.expect("a subscription");
    publish_changes(&connection, NUM, "answers").await;
    assert!(daemon.stop().success());
    for number in 0..NUM {
        let answer = timeout(Duration::from_secs(10), answers.next()).await;
        let answer = answer.unwrap_or_else(|_| panic!("{number} of {NUM} were answered"));
        let answer = answer.expect("the subscription lasts").payload;
        assert_eq!(answer, "{\"ok\":true}");
    }
    let _daemon = setup.start_ready();
    see_reported(client, NUM).await;
}
