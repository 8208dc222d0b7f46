//! What the embedded store costs: `cargo bench --bench store -- [rows]` (default 1,000,000).
//!
//! | line | measures |
//! |---|---|
//! | one at a time | calls of one row, each waiting for the one before: what an fsync costs here |
//! | four workers | calls of 1,000 rows in 16 partitions each: what a row costs |
//! | open, claim | the state of both read again: checksums of the journal, then all rows on two threads |

use std::fs;
use std::time::{Duration, Instant};

use tocsin::core::ids::PartitionId;
use tocsin::core::partition::{Commit, Header, SnapshotHead};
use tocsin::core::rows::{CorruptRow, Rows};
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::{Recovery, Store};

const NUM_WORKERS: u16 = 4;
const PARTITIONS_PER_WORKER: u16 = 16;
const ROWS_PER_CALL: u64 = 1000;

#[derive(Default)]
struct Count {
    rows: u64,
    bytes: usize,
}

impl Recovery for Count {
    fn row(&mut self, _: PartitionId, key: &[u8], value: Option<&[u8]>) -> Result<(), CorruptRow> {
        self.rows += 1;
        self.bytes += key.len() + value.map_or(0, <[u8]>::len);
        Ok(())
    }
}

/// The future is resolved by another thread: wait for it on this one.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    RUNTIME.with(|runtime| runtime.block_on(future))
}

thread_local! {
    static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
}

fn row(rows: &mut Rows, number: u64) {
    let mut key = [16; 33];
    let spread = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    key.iter_mut()
        .skip(1)
        .zip(spread)
        .for_each(|(to, from)| *to = from);
    rows.push(&key, Some(&[7; 16]));
}

fn claim(store: &Embedded, worker: u16, count: &mut Count) -> Vec<(PartitionId, Header)> {
    let ids: Vec<_> = (0..PARTITIONS_PER_WORKER)
        .map(|i| PartitionId(worker * PARTITIONS_PER_WORKER + i))
        .collect();
    let headers = store.claim(&ids, count).expect("a claim");
    ids.into_iter().zip(headers).collect()
}

/// One call of so many rows, spread over the partitions.
fn call(owned: &mut [(PartitionId, Header)], num_rows: u64, from: u64) -> Vec<Commit> {
    let per_partition = num_rows.div_ceil(owned.len() as u64);
    owned
        .iter_mut()
        .zip(0..)
        .map(|((partition, header), i)| {
            header.number = header.number.next();
            let mut rows = Rows::default();
            for k in 0..per_partition {
                row(&mut rows, from + i * per_partition + k);
            }
            Commit {
                partition: *partition,
                epoch: header.epoch,
                number: header.number,
                position: header.position,
                rows,
            }
        })
        .collect()
}

/// User and system time of this process: its clock ticks are hundredths of a second.
fn cpu_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").expect("this is Linux");
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace();
    let ticks = fields
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok());
    Duration::from_millis(10 * ticks.sum::<u64>())
}

fn report(what: &str, count: u64, unit: &str, begin: Instant, cpu: Duration) {
    let (wall, cpu) = (
        begin.elapsed().as_secs_f64(),
        cpu_time().saturating_sub(cpu).as_secs_f64(),
    );
    #[expect(clippy::cast_precision_loss, reason = "it is printed")]
    let count_f = count as f64;
    println!(
        "{what:<14} {count:>10} {unit:<5} {wall:>7.2} s  {:>12.0} {unit}/s  {:>8.3} us cpu/{unit}",
        count_f / wall,
        cpu * 1e6 / count_f,
    );
}

fn one_at_a_time(store: &Embedded, num_calls: u64) {
    let mut owned = claim(store, 0, &mut Count::default());
    owned.truncate(1);
    let (begin, cpu) = (Instant::now(), cpu_time());
    for i in 0..num_calls {
        block_on(store.commit(call(&mut owned, 1, i))).expect("a commit");
    }
    report("one at a time", num_calls, "call", begin, cpu);
}

fn four_workers(store: &Embedded, num_rows: u64) {
    let calls = num_rows / u64::from(NUM_WORKERS) / ROWS_PER_CALL;
    // The rows are made before, and cloned: what is measured is the store and one copy.
    let mut made: Vec<Vec<Commit>> = Vec::new();
    for worker in 0..NUM_WORKERS {
        let mut owned = claim(store, worker, &mut Count::default());
        made.extend((0..calls).map(|i| {
            let from = (u64::from(worker) * calls + i) * ROWS_PER_CALL;
            call(&mut owned, ROWS_PER_CALL, from)
        }));
    }
    let num_written: usize = made
        .iter()
        .flatten()
        .map(|commit| commit.rows.iter().count())
        .sum();
    let (begin, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        let calls = usize::try_from(calls).expect("it fits");
        let mut made = made.into_iter();
        for _ in 0..NUM_WORKERS {
            let of_worker: Vec<_> = made.by_ref().take(calls).collect();
            scope.spawn(move || {
                for commits in of_worker {
                    block_on(store.commit(commits)).expect("a commit");
                }
            });
        }
    });
    report("four workers", num_written as u64, "row", begin, cpu);
}

/// Half of the recovery is read from snapshots, as in life.
fn snapshot_half(store: &Embedded) {
    for id in 0..store.num_partitions() / 2 {
        let mut rows = Rewrite::default();
        let partition = PartitionId(id);
        let headers = store.claim(&[partition], &mut rows).expect("a claim");
        let header = headers.first().copied().unwrap_or_default();
        let head = SnapshotHead { partition, header };
        let mut writer = store.begin_snapshot(head).expect("a writer");
        for slice in rows.0 {
            while !writer.write(&slice) {
                std::thread::yield_now();
            }
        }
        writer.install();
    }
}

#[derive(Default)]
struct Rewrite(Vec<Rows>);

impl Recovery for Rewrite {
    fn row(&mut self, _: PartitionId, key: &[u8], value: Option<&[u8]>) -> Result<(), CorruptRow> {
        if self
            .0
            .last()
            .is_none_or(|rows| rows.as_bytes().len() > 64 * 1024)
        {
            self.0.push(Rows::default());
        }
        if let Some(rows) = self.0.last_mut() {
            rows.push(key, value);
        }
        Ok(())
    }
}

fn main() {
    let num_rows = std::env::args().find_map(|argument| argument.parse().ok());
    let num_rows = num_rows.unwrap_or(1_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let open = || Embedded::open(folder.path(), Options::default()).expect("a store");
    let store = open();
    one_at_a_time(&store, 2000);
    four_workers(&store, num_rows);
    snapshot_half(&store);
    drop(store);

    let (begin, cpu) = (Instant::now(), cpu_time());
    let store = open();
    report("open", num_rows, "row", begin, cpu);
    let (begin, cpu) = (Instant::now(), cpu_time());
    let num_read: u64 = std::thread::scope(|scope| {
        let store = &store;
        let threads: Vec<_> = [[0, 1], [2, 3]]
            .into_iter()
            .map(|workers| {
                scope.spawn(move || {
                    let mut count = Count::default();
                    for worker in workers {
                        claim(store, worker, &mut count);
                    }
                    count.rows
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a thread"))
            .sum()
    });
    report("claim", num_read, "row", begin, cpu);
}
