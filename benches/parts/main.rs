//! What each part of a change's way takes: `cargo bench --bench parts`.

#![expect(clippy::indexing_slicing, reason = "a bench that cannot go on ends")]

#[path = "../draws.rs"]
mod draws;
mod work;

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};

use work::{Fed, changes, decode, restored};

const NUM_USERS: u64 = 500_000;
/// What a batch brings to a partition at once.
const BATCH: usize = 1000;

fn decoding(criterion: &mut Criterion<CpuTime>) {
    let payloads = changes(1, BATCH as u64, NUM_USERS);
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("changes", |bencher| {
        bencher.iter(|| {
            for payload in &payloads {
                black_box(decode(payload));
            }
        });
    });
    group.finish();
}

fn partition(criterion: &mut Criterion<CpuTime>) {
    let commands: Vec<_> = changes(2, 2_000_000, NUM_USERS)
        .iter()
        .map(|it| decode(it))
        .collect();
    let mut fed = Fed::new();
    for batch in commands.chunks(BATCH) {
        fed.apply(batch.to_vec());
        fed.commit();
    }
    let later: Vec<_> = changes(3, 1_000_000, NUM_USERS)
        .iter()
        .map(|it| decode(it))
        .collect();
    let mut batches = later.chunks(BATCH).cycle();
    let mut group = criterion.benchmark_group("partition");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("deliver and commit", |bencher| {
        bencher.iter_batched(
            || batches.next().expect("it goes on for ever").to_vec(),
            |batch| {
                fed.apply(batch);
                fed.commit()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();

    let mut group = criterion.benchmark_group("state");
    group.sample_size(10);
    let snapshot = fed.snapshot();
    let num_rows = snapshot.iter().count();
    group.throughput(Throughput::Elements(num_rows as u64));
    group.bench_function("snapshot", |bencher| bencher.iter(|| restored(&snapshot)));
    group.finish();
}

/// The processor's time of this thread: what others do on the machine counts less.
struct CpuTime;

impl Measurement for CpuTime {
    type Intermediate = Duration;
    type Value = Duration;

    fn start(&self) -> Duration {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
    }

    fn end(&self, began: Duration) -> Duration {
        self.start().saturating_sub(began)
    }

    fn add(&self, one: &Duration, two: &Duration) -> Duration {
        *one + *two
    }

    fn zero(&self) -> Duration {
        Duration::ZERO
    }

    fn to_f64(&self, value: &Duration) -> f64 {
        value.as_nanos() as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        WallTime.formatter()
    }
}

criterion_group! {
    name = parts;
    config = Criterion::default().with_measurement(CpuTime);
    targets = decoding, partition
}
criterion_main!(parts);
