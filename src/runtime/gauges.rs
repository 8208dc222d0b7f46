//! What the workers tell the rest of the process: what is owed, and that they live.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// What is owed to the broker by all workers: at its bound the input pauses. What a worker owed that died counts
/// until the one that follows it has read it back.
#[derive(Debug)]
pub struct OwedGauge {
    workers: Vec<Owed>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Owed {
    rows: AtomicUsize,
    bytes: AtomicUsize,
}

impl OwedGauge {
    pub(super) fn new(num_workers: usize) -> Self {
        Self {
            workers: (0..num_workers).map(|_| Owed::default()).collect(),
            changed: Notify::new(),
        }
    }

    /// Owed messages and their bytes.
    #[must_use]
    pub fn now(&self) -> (usize, usize) {
        let sum = |part: fn(&Owed) -> &AtomicUsize| {
            let parts = self.workers.iter().map(part);
            parts.map(|part| part.load(Ordering::Relaxed)).sum()
        };
        (sum(|it| &it.rows), sum(|it| &it.bytes))
    }

    pub(super) fn set(&self, worker: usize, (rows, bytes): (usize, usize)) {
        let Some(owed) = self.workers.get(worker) else {
            return;
        };
        let rows_before = owed.rows.swap(rows, Ordering::Relaxed);
        let bytes_before = owed.bytes.swap(bytes, Ordering::Relaxed);
        if rows < rows_before || bytes < bytes_before {
            self.changed.notify_waiters();
        }
    }

    /// Waits until no more than this is owed.
    pub(super) async fn at_most(&self, rows: usize, bytes: usize) {
        loop {
            let changed = self.changed.notified();
            let (owed_rows, owed_bytes) = self.now();
            if owed_rows <= rows && owed_bytes <= bytes {
                return;
            }
            changed.await;
        }
    }
}

/// When each worker was last seen to work: seconds since the runtime began.
#[derive(Debug)]
pub struct Pulse {
    began: Instant,
    beats: Vec<AtomicU64>,
    is_recovered: Vec<AtomicBool>,
    recovery: Notify,
}

impl Pulse {
    pub(super) fn new(num_workers: usize) -> Self {
        Self {
            began: Instant::now(),
            beats: (0..num_workers).map(|_| AtomicU64::new(0)).collect(),
            is_recovered: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            recovery: Notify::new(),
        }
    }

    pub(super) fn beat(&self, worker: usize) {
        if let Some(beat) = self.beats.get(worker) {
            beat.store(self.began.elapsed().as_secs(), Ordering::Relaxed);
        }
    }

    pub(super) fn set_recovered(&self, worker: usize, recovered: bool) {
        if let Some(is_recovered) = self.is_recovered.get(worker) {
            is_recovered.store(recovered, Ordering::Release);
            self.recovery.notify_waiters();
        }
    }

    /// Waits until every worker has read its part of the store.
    pub(super) async fn recovered(&self) {
        loop {
            let mut changed = std::pin::pin!(self.recovery.notified());
            changed.as_mut().enable();
            if self
                .is_recovered
                .iter()
                .all(|it| it.load(Ordering::Acquire))
            {
                return;
            }
            changed.await;
        }
    }

    /// The longest time since a worker was seen to work; a worker that reads its store does work.
    #[must_use]
    pub fn oldest_beat(&self) -> Duration {
        let now = self.began.elapsed().as_secs();
        let silent = self
            .beats
            .iter()
            .zip(&self.is_recovered)
            .map(|(beat, is_recovered)| {
                let is_recovered = is_recovered.load(Ordering::Acquire);
                if is_recovered {
                    now.saturating_sub(beat.load(Ordering::Relaxed))
                } else {
                    0
                }
            });
        Duration::from_secs(silent.max().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_oldest_beat_is_that_of_the_most_silent_worker_that_has_recovered() {
        let mut pulse = Pulse::new(2);
        let began = pulse.began.checked_sub(Duration::from_secs(30));
        pulse.began = began.expect("the machine is up for longer");
        assert_eq!(pulse.oldest_beat(), Duration::ZERO);
        pulse.set_recovered(0, true);
        pulse.beat(0);
        pulse.set_recovered(1, true);
        assert!(pulse.oldest_beat() >= Duration::from_secs(30));
        pulse.beat(1);
        assert!(pulse.oldest_beat() < Duration::from_secs(2));
    }

    #[test]
    fn an_owed_gauge_adds_up_what_the_workers_tell() {
        let gauge = OwedGauge::new(2);
        gauge.set(0, (3, 300));
        gauge.set(1, (1, 100));
        assert_eq!(gauge.now(), (4, 400));
        gauge.set(0, (2, 500));
        assert_eq!(gauge.now(), (3, 600));
        gauge.set(0, (0, 0));
        gauge.set(1, (0, 0));
        assert_eq!(gauge.now(), (0, 0));
    }

    #[tokio::test]
    async fn who_waits_for_less_owed_is_woken_by_either_count() {
        let gauge = Arc::new(OwedGauge::new(1));
        gauge.set(0, (5, 500));
        let waiting = Arc::clone(&gauge);
        let woken = tokio::spawn(async move { waiting.at_most(5, 100).await });
        tokio::task::yield_now().await;
        // Fewer bytes in more rows.
        gauge.set(0, (6, 100));
        tokio::task::yield_now().await;
        gauge.set(0, (5, 90));
        tokio::time::timeout(Duration::from_secs(10), woken)
            .await
            .expect("it is woken")
            .expect("it does not panic");
    }
}
