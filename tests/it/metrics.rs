//! `MetricAggregate`: once a window, idle or not, with zeros from the first on, and counts that are what was sent.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use crate::support::daemon::Setup;
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::traffic::{change, publish, publish_taken, request};

/// How long an aggregate may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Counters: everything that the daemon will ever count.
const COUNTERS: [&str; 28] = [
    "tocsin_dead_letters_published_total",
    "tocsin_digests_published_total",
    "tocsin_digests_skipped_total",
    "tocsin_duplicate_changes_total",
    "tocsin_false_duplicates_total",
    "tocsin_input_lost_total how=dropped",
    "tocsin_input_lost_total how=missing",
    "tocsin_input_rewrites_total",
    "tocsin_parked_total",
    "tocsin_publish_repeats_total",
    "tocsin_refusals_total reason=bad_json",
    "tocsin_refusals_total reason=bad_time",
    "tocsin_refusals_total reason=bad_utf8",
    "tocsin_refusals_total reason=before_1970",
    "tocsin_refusals_total reason=empty_field",
    "tocsin_refusals_total reason=in_future",
    "tocsin_refusals_total reason=internal",
    "tocsin_refusals_total reason=missing_field",
    "tocsin_refusals_total reason=not_an_object",
    "tocsin_refusals_total reason=too_long",
    "tocsin_refusals_total reason=unknown_status",
    "tocsin_refusals_total reason=unknown_subject",
    "tocsin_refusals_total reason=wrong_type",
    "tocsin_stale_changes_total",
    "tocsin_status_changes_total status=CLEARED",
    "tocsin_status_changes_total status=CRITICAL",
    "tocsin_status_changes_total status=WARNING",
    "tocsin_worker_restarts_total",
];
/// What is sampled.
const SAMPLED: [&str; 2] = [
    "tocsin_alarms_per_digest",
    "tocsin_request_to_published_seconds",
];
/// What is measured now and then.
const LEVELS: [&str; 7] = [
    "tocsin_active_alarms status=CRITICAL",
    "tocsin_active_alarms status=WARNING",
    "tocsin_in_flight",
    "tocsin_input_lag",
    "tocsin_owed",
    "tocsin_owed_bytes",
    "tocsin_users",
];

/// One aggregate: its window, and each metric under its name and labels.
struct Aggregate {
    from: OffsetDateTime,
    to: OffsetDateTime,
    metrics: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Aggregate {
    /// Reads one, and demands that its bytes are exactly those of the documented shape.
    fn read(payload: &[u8]) -> Self {
        let text = std::str::from_utf8(payload).expect("an aggregate is UTF-8");
        let json: Value = serde_json::from_str(text).expect("an aggregate is JSON");
        assert_eq!(text, in_documented_shape(&json));
        let instant = |name: &str| {
            let text = json[name].as_str().expect("an instant is a text");
            OffsetDateTime::parse(text, &Rfc3339).expect("an instant is RFC 3339")
        };
        let metrics = json["Metrics"].as_array().expect("metrics are a list");
        let named = metrics.iter().map(|metric| {
            let fields = metric.as_object().expect("a metric is an object");
            let numbers = fields
                .iter()
                .filter_map(|(field, value)| Some((field.clone(), value.as_f64()?)));
            (name(metric), numbers.collect())
        });
        Self {
            from: instant("From"),
            to: instant("To"),
            metrics: named.collect(),
        }
    }

    fn get(&self, metric: &str, field: &str) -> Option<f64> {
        self.metrics.get(metric)?.get(field).copied()
    }
}

/// A metric's name, and its labels behind it.
fn name(metric: &Value) -> String {
    let mut name = metric["Name"].as_str().expect("a name").to_owned();
    for (label, value) in metric["Labels"].as_object().expect("labels") {
        let value = value.as_str().expect("a label is a text");
        write!(name, " {label}={value}").expect("a text grows");
    }
    name
}

/// What the documented shape makes of the same values.
fn in_documented_shape(json: &Value) -> String {
    const NUMBERS: [&str; 7] = ["Count", "Sum", "Min", "Max", "P50", "P99", "Last"];
    let metrics = json["Metrics"].as_array().expect("metrics are a list");
    let metrics = metrics.iter().map(|metric| {
        let mut shaped = format!(
            "{{\"Name\":{},\"Labels\":{}",
            metric["Name"], metric["Labels"]
        );
        for field in NUMBERS {
            if let Some(number) = metric.get(field) {
                write!(shaped, ",\"{field}\":{number}").expect("a text grows");
            }
        }
        shaped + "}"
    });
    format!(
        "{{\"Instance\":{},\"From\":{},\"To\":{},\"Metrics\":[{}]}}",
        json["Instance"],
        json["From"],
        json["To"],
        metrics.collect::<Vec<_>>().join(",")
    )
}

async fn subscribe(client: &Client) -> Subscriber {
    let aggregates = client.subscribe("MetricAggregate").await;
    client.flush().await.expect("the server answers");
    aggregates.expect("a subscription")
}

async fn next(aggregates: &mut Subscriber) -> Aggregate {
    let message = timeout(DEADLINE, aggregates.next()).await;
    let message = message.expect("an aggregate in time");
    Aggregate::read(&message.expect("the subscription lasts").payload)
}

/// Adds the counts of windows up until they say what is expected; then they must say exactly that.
async fn demand_counts(aggregates: &mut Subscriber, expected: &[(&str, f64)]) {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let aggregate = next(aggregates).await;
        for (name, fields) in aggregate.metrics {
            *sums.entry(name).or_default() += fields.get("Count").copied().unwrap_or_default();
        }
        let is_there = |&(name, count): &(&str, f64)| sums.get(name).copied() >= Some(count);
        if expected.iter().all(is_there) {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "expected {expected:#?}, counted {sums:#?}"
        );
    }
    // What nothing was sent for stays at zero.
    for counter in COUNTERS.iter().chain(&SAMPLED) {
        let count = expected.iter().find(|(name, _)| name == counter);
        let count = count.map_or(0.0, |(_, count)| *count);
        assert_eq!(sums.get(*counter), Some(&count), "{counter}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_publishes_every_window_with_zeros_from_the_first_on() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut aggregates = subscribe(&client).await;
    let setup = Setup::new(&nats).set("metrics.aggregate_interval=1s");
    let daemon = setup.start_ready();
    let first = next(&mut aggregates).await;
    let mut last = first.to;
    for counter in COUNTERS.iter().chain(&SAMPLED) {
        let fields = first.metrics.get(*counter);
        let zero = BTreeMap::from([("Count".to_owned(), 0.0)]);
        assert_eq!(fields, Some(&zero), "{counter}");
    }
    for _ in 0..3 {
        let aggregate = next(&mut aggregates).await;
        assert_eq!(aggregate.from, last, "windows leave no gap");
        let took = aggregate.to - aggregate.from;
        assert!(took > time::Duration::milliseconds(500), "{took}");
        last = aggregate.to;
        let mut known: Vec<_> = COUNTERS.iter().chain(&SAMPLED).chain(&LEVELS).collect();
        known.sort_unstable();
        let found: Vec<_> = aggregate.metrics.keys().collect();
        assert_eq!(found, known);
        for level in LEVELS {
            let fields = ["Last", "Max", "Min"].map(|field| (field.to_owned(), 0.0));
            assert_eq!(aggregate.metrics.get(level), Some(&BTreeMap::from(fields)));
        }
    }
    assert!(daemon.stop().success());
    let farewell = next(&mut aggregates).await;
    assert!(farewell.to >= last);
}

async fn counts_are_what_was_sent(has_jetstream: bool) {
    let nats = Nats::start_with(has_jetstream, "").await;
    let client = nats.connect().await.client().clone();
    let mut aggregates = subscribe(&client).await;
    let setup = Setup::new(&nats)
        .actors(2)
        .set("metrics.aggregate_interval=1s");
    let daemon = setup.start_ready();
    for user in 0..5 {
        let user = format!("user {user}");
        let on_change = async |payload: String| {
            publish(&client, "AlarmStatusChanged", payload).await;
        };
        on_change(change(&user, "a", "WARNING", 10)).await;
        on_change(change(&user, "b", "CRITICAL", 11)).await;
        on_change(change(&user, "c", "CRITICAL", 12)).await;
        on_change(change(&user, "c", "CLEARED", 13)).await;
        // Older, and the same again.
        on_change(change(&user, "b", "WARNING", 5)).await;
        on_change(change(&user, "a", "WARNING", 10)).await;
        on_change(change(&user, "a", "WARNING", 10)).await;
        publish_taken(&client, "SendAlarmDigest", request(&user)).await;
        publish_taken(&client, "SendAlarmDigest", request(&user)).await;
        on_change("{\"UserID\":".to_owned()).await;
        on_change(change(&user, "d", "critical", 10)).await;
    }
    let expected = [
        ("tocsin_status_changes_total status=WARNING", 5.0),
        ("tocsin_status_changes_total status=CRITICAL", 10.0),
        ("tocsin_status_changes_total status=CLEARED", 5.0),
        ("tocsin_stale_changes_total", 5.0),
        ("tocsin_duplicate_changes_total", 10.0),
        ("tocsin_digests_published_total", 5.0),
        ("tocsin_digests_skipped_total", 5.0),
        ("tocsin_alarms_per_digest", 5.0),
        ("tocsin_request_to_published_seconds", 5.0),
        ("tocsin_refusals_total reason=bad_json", 5.0),
        ("tocsin_refusals_total reason=unknown_status", 5.0),
        ("tocsin_dead_letters_published_total", 10.0),
    ];
    demand_counts(&mut aggregates, &expected).await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let levels = [
        ("tocsin_active_alarms status=WARNING", 5.0),
        ("tocsin_active_alarms status=CRITICAL", 5.0),
        ("tocsin_users", 5.0),
        ("tocsin_in_flight", 0.0),
        ("tocsin_input_lag", 0.0),
        ("tocsin_owed", 0.0),
        ("tocsin_owed_bytes", 0.0),
    ];
    loop {
        let aggregate = next(&mut aggregates).await;
        let is_so = |(level, last): (&str, f64)| aggregate.get(level, "Last") == Some(last);
        if levels.into_iter().all(is_so) {
            break;
        }
        let is_in_time = tokio::time::Instant::now() < deadline;
        assert!(is_in_time, "{:#?}", aggregate.metrics);
    }
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_what_was_sent_on_jetstream() {
    counts_are_what_was_sent(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_what_was_sent_on_core_nats() {
    counts_are_what_was_sent(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_have_every_field_and_lie_between_their_bounds() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut aggregates = subscribe(&client).await;
    let setup = Setup::new(&nats).set("metrics.aggregate_interval=1s");
    let daemon = setup.start_ready();
    for (user, num_alarms) in [("ann", 1), ("bob", 7)] {
        for alarm in 0..num_alarms {
            let payload = change(user, &format!("alarm {alarm}"), "CRITICAL", 1);
            publish_taken(&client, "AlarmStatusChanged", payload).await;
        }
        publish_taken(&client, "SendAlarmDigest", request(user)).await;
    }
    judge::judge(&client).await;
    let (mut num_digests, mut sum_of_alarms) = (0.0, 0.0);
    while num_digests < 2.0 {
        let aggregate = next(&mut aggregates).await;
        for sampled in SAMPLED {
            let field = |name| aggregate.get(sampled, name);
            if field("Count") == Some(0.0) {
                assert_eq!(aggregate.metrics.get(sampled).map(BTreeMap::len), Some(1));
                continue;
            }
            let number = |name| field(name).unwrap_or_else(|| panic!("{sampled} has no {name}"));
            assert_eq!(field("Last"), None);
            let in_order = [
                number("Min"),
                number("P50"),
                number("P99"),
                number("Max"),
                number("Sum"),
            ];
            assert!(in_order.is_sorted(), "{sampled}: {in_order:?}");
            if sampled == "tocsin_alarms_per_digest" {
                num_digests += number("Count");
                sum_of_alarms += number("Sum");
            } else {
                assert!(number("Min") > 0.0 && number("Max") < 30.0, "{in_order:?}");
            }
        }
    }
    assert_eq!((num_digests, sum_of_alarms), (2.0, 8.0));
    assert!(daemon.stop().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_aggregate_of_a_daemon_that_stops_holds_what_was_decided_last() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let mut aggregates = subscribe(&client).await;
    // No window ends before the daemon does.
    let setup = Setup::new(&nats).set("metrics.aggregate_interval=1h");
    let daemon = setup.start_ready();
    let payload = change("ann", "disk", "WARNING", 1);
    publish_taken(&client, "AlarmStatusChanged", payload).await;
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    judge::judge(&client).await;
    assert!(daemon.stop().success());
    let expected = [
        ("tocsin_status_changes_total status=WARNING", 1.0),
        ("tocsin_digests_published_total", 1.0),
        ("tocsin_alarms_per_digest", 1.0),
        ("tocsin_request_to_published_seconds", 1.0),
    ];
    demand_counts(&mut aggregates, &expected).await;
}
