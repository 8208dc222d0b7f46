//! What was counted, and the actor that publishes it once a window.
//!
//! Owns: the series of the window. Mailbox: bounded; what does not fit is not counted, for telemetry may be lost
//! and alarms may not. Dies of: nothing. Stops: with its arbiter, after a last aggregate.
//!
//! A counter gives `Count` of the window, a level `Last`, `Min` and `Max`, samples all of them. An idle window is
//! published too: silence must mean that the daemon is down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::prelude::*;
use hdrhistogram::Histogram;
use tracing::info;

use crate::bus::{Output, wire};
use crate::core::time::Timestamp;

/// How many reports the aggregator's mailbox holds.
pub(super) const MAILBOX: usize = 4096;
/// Samples are kept to the microsecond, and to three digits.
const SAMPLES_PER_UNIT: f64 = 1e6;

/// Everything that is measured. Names and units are those of the Prometheus metrics.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Metric {
    /// Changes that were recorded, by status.
    StatusChanges,
    /// Changes older than what is on record.
    StaleChanges,
    /// Changes that repeat what is on record.
    DuplicateChanges,
    /// Messages that were refused, by reason.
    Refusals,
    /// Digests that the broker has confirmed.
    DigestsPublished,
    /// Requests for which nothing was due.
    DigestsSkipped,
    /// Alarms of a digest.
    AlarmsPerDigest,
    /// Active alarms on record, by status.
    ActiveAlarms,
    /// Users with an alarm on record.
    Users,
    /// From the request's timestamp to the confirmation of its digest.
    RequestToPublished,
    /// Messages that wait at the broker.
    InputLag,
    /// Messages that the input no longer held, or that a bound of ours dropped.
    InputLost,
    /// How often the input's history was seen to be rewritten.
    InputRewrites,
    /// Messages accepted and not yet committed.
    InFlight,
    /// Messages owed to the broker.
    Owed,
    /// Bytes of messages owed to the broker.
    OwedBytes,
    /// Dead letters that the broker has confirmed.
    DeadLettersPublished,
    /// Attempts to publish that were repeated.
    PublishRepeats,
    /// First attempts that the broker took for a repeat.
    FalseDuplicates,
    /// Messages that the broker refused for good.
    Parked,
    /// Workers that were started again.
    WorkerRestarts,
}

impl Metric {
    /// What the runtime counts and samples itself, without a label.
    const OF_THE_RUNTIME: [Self; 8] = [
        Self::DigestsPublished,
        Self::RequestToPublished,
        Self::InputRewrites,
        Self::DeadLettersPublished,
        Self::PublishRepeats,
        Self::FalseDuplicates,
        Self::Parked,
        Self::WorkerRestarts,
    ];

    /// Its name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::StatusChanges => "tocsin_status_changes_total",
            Self::StaleChanges => "tocsin_stale_changes_total",
            Self::DuplicateChanges => "tocsin_duplicate_changes_total",
            Self::Refusals => "tocsin_refusals_total",
            Self::DigestsPublished => "tocsin_digests_published_total",
            Self::DigestsSkipped => "tocsin_digests_skipped_total",
            Self::AlarmsPerDigest => "tocsin_alarms_per_digest",
            Self::ActiveAlarms => "tocsin_active_alarms",
            Self::Users => "tocsin_users",
            Self::RequestToPublished => "tocsin_request_to_published_seconds",
            Self::InputLag => "tocsin_input_lag",
            Self::InputLost => "tocsin_input_lost_total",
            Self::InputRewrites => "tocsin_input_rewrites_total",
            Self::InFlight => "tocsin_in_flight",
            Self::Owed => "tocsin_owed",
            Self::OwedBytes => "tocsin_owed_bytes",
            Self::DeadLettersPublished => "tocsin_dead_letters_published_total",
            Self::PublishRepeats => "tocsin_publish_repeats_total",
            Self::FalseDuplicates => "tocsin_false_duplicates_total",
            Self::Parked => "tocsin_parked_total",
            Self::WorkerRestarts => "tocsin_worker_restarts_total",
        }
    }
}

/// A label of a closed set: its name and value.
pub type Label = Option<(&'static str, &'static str)>;

/// Something that was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// What.
    pub metric: Metric,
    /// Of which kind.
    pub label: Label,
    /// How much.
    pub value: Value,
}

/// How much was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// So many more.
    Count(u64),
    /// So many now; the levels of one source add up.
    Level(f64),
    /// One sample.
    Sample(f64),
}

impl Observation {
    /// So many more.
    #[must_use]
    pub const fn count(metric: Metric, count: u64) -> Self {
        Self {
            metric,
            label: None,
            value: Value::Count(count),
        }
    }

    /// So many now.
    #[must_use]
    pub const fn level(metric: Metric, level: f64) -> Self {
        Self {
            metric,
            label: None,
            value: Value::Level(level),
        }
    }

    /// One sample.
    #[must_use]
    pub const fn sample(metric: Metric, sample: f64) -> Self {
        Self {
            metric,
            label: None,
            value: Value::Sample(sample),
        }
    }

    /// No sample yet.
    #[must_use]
    pub const fn none(metric: Metric) -> Self {
        Self::count(metric, 0)
    }

    /// The same, of a kind.
    #[must_use]
    pub const fn with(self, name: &'static str, value: &'static str) -> Self {
        Self {
            label: Some((name, value)),
            ..self
        }
    }
}

/// What one source measured since it last reported.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Observed {
    /// Whose levels these replace.
    pub source: Source,
    /// What was measured.
    pub observations: Vec<Observation>,
}

/// Who measures.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Source {
    /// The reader.
    Reader,
    /// A worker, by its number.
    Worker(usize),
    /// A producer or a router: they report no levels.
    Other,
}

/// Publish what there is of the window now: the daemon stops.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct PublishNow;

type Key = (Metric, Label);

/// One metric in one window.
#[derive(Default)]
struct Series {
    count: u64,
    levels: BTreeMap<Source, f64>,
    bounds: Option<(f64, f64)>,
    samples: Option<Samples>,
}

struct Samples {
    histogram: Histogram<u64>,
    sum: f64,
    min: f64,
    max: f64,
}

impl Series {
    fn add(&mut self, value: Value) {
        match value {
            Value::Count(count) => self.count += count,
            Value::Level(_) => {}
            Value::Sample(sample) => {
                let samples = self.samples.get_or_insert_with(|| Samples {
                    histogram: Histogram::new(3).expect("three digits are allowed"),
                    sum: 0.0,
                    min: sample,
                    max: sample,
                });
                samples
                    .histogram
                    .saturating_record((sample * SAMPLES_PER_UNIT) as u64);
                samples.sum += sample;
                samples.min = samples.min.min(sample);
                samples.max = samples.max.max(sample);
            }
        }
    }

    fn set_level(&mut self, source: Source, level: f64) {
        self.levels.insert(source, level);
        let total = self.levels.values().sum::<f64>();
        let (min, max) = self.bounds.unwrap_or((total, total));
        self.bounds = Some((min.min(total), max.max(total)));
    }

    /// What the window held; a level stays, the rest begins anew.
    fn take(&mut self, (metric, label): Key) -> wire::Metric {
        let labels = label.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut taken = wire::Metric {
            name: metric.as_str().to_owned(),
            labels: labels.into_iter().collect(),
            ..wire::Metric::default()
        };
        if let Some((min, max)) = self.bounds.take() {
            let last = self.levels.values().sum::<f64>();
            (taken.last, taken.min, taken.max) = (Some(last), Some(min), Some(max));
            self.bounds = Some((last, last));
        } else if let Some(samples) = self.samples.take() {
            let quantile = |q| samples.histogram.value_at_quantile(q) as f64 / SAMPLES_PER_UNIT;
            let within = |value: f64| Some(value.clamp(samples.min, samples.max));
            taken.count = Some(samples.histogram.len());
            taken.sum = Some(samples.sum);
            (taken.min, taken.max) = (Some(samples.min), Some(samples.max));
            (taken.p50, taken.p99) = (within(quantile(0.5)), within(quantile(0.99)));
        } else {
            taken.count = Some(std::mem::take(&mut self.count));
        }
        taken
    }
}

/// Adds up what is reported, and publishes it once a window.
pub struct Aggregator {
    output: Arc<dyn Output>,
    instance: String,
    interval: Duration,
    from: Timestamp,
    series: BTreeMap<Key, Series>,
}

impl Aggregator {
    /// `known` is what the domains will count.
    pub(super) fn new(
        output: Arc<dyn Output>,
        instance: String,
        interval: Duration,
        known: Vec<Observation>,
    ) -> Self {
        let mut aggregator = Self {
            output,
            instance,
            interval,
            from: now(),
            series: BTreeMap::new(),
        };
        let own = Metric::OF_THE_RUNTIME.map(Observation::none);
        let lost =
            ["missing", "dropped"].map(|how| Observation::none(Metric::InputLost).with("how", how));
        aggregator.add(Observed {
            source: Source::Other,
            observations: [known, own.to_vec(), lost.to_vec()].concat(),
        });
        aggregator
    }

    fn add(&mut self, observed: Observed) {
        let mut levels: BTreeMap<Key, f64> = BTreeMap::new();
        for Observation {
            metric,
            label,
            value,
        } in observed.observations
        {
            self.series.entry((metric, label)).or_default().add(value);
            if let Value::Level(level) = value {
                *levels.entry((metric, label)).or_default() += level;
            }
        }
        for (key, level) in levels {
            self.series
                .entry(key)
                .or_default()
                .set_level(observed.source, level);
        }
    }

    fn publish(&mut self) {
        let to = now();
        let metrics = self
            .series
            .iter_mut()
            .map(|(&key, series)| series.take(key))
            .collect();
        let from = std::mem::replace(&mut self.from, to);
        let aggregate = wire::Aggregate {
            instance: self.instance.clone(),
            from,
            to,
            metrics,
        };
        self.output
            .send(wire::METRICS.to_owned(), aggregate.encode());
    }
}

/// The time of this machine: telemetry is stamped with it, alarms never are.
fn now() -> Timestamp {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::EPOCH.plus(since_1970)
}

impl Actor for Aggregator {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        info!(interval = ?self.interval, subject = wire::METRICS, "metric aggregates begin");
        ctx.run_interval(self.interval, |aggregator, _| aggregator.publish());
    }
}

impl Handler<Observed> for Aggregator {
    type Result = ();

    fn handle(&mut self, observed: Observed, _ctx: &mut Self::Context) {
        self.add(observed);
    }
}

impl Handler<PublishNow> for Aggregator {
    type Result = ();

    fn handle(&mut self, _now: PublishNow, _ctx: &mut Self::Context) {
        self.publish();
    }
}
