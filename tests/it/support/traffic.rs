//! Messages for tests, and publishers that wait for their confirmation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Client;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// `SplitMix64`: a seed gives one history.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// A change at so many seconds after the beginning of 2026.
pub(crate) fn change(user: &str, alarm: &str, status: &str, second: u64) -> String {
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!(
        "{{\"AlarmID\":\"{alarm}\",\"UserID\":\"{user}\",\"Status\":\"{status}\",\"ChangedAt\":\"2026-01-01T{hour:02}:{minute:02}:{second:02}Z\"}}"
    )
}

/// A request for a digest.
pub(crate) fn request(user: &str) -> String {
    format!("{{\"UserID\":\"{user}\"}}")
}

/// Publishes and waits for whoever answers: the stream, or the daemon after its commit.
pub(crate) async fn publish(
    client: &Client,
    subject: &str,
    payload: impl Into<bytes::Bytes>,
) -> String {
    let answer = client.request(subject.to_owned(), payload.into());
    let answer = timeout(Duration::from_secs(30), answer)
        .await
        .expect("an answer in time");
    String::from_utf8_lossy(&answer.expect("an answer").payload).into_owned()
}

/// Publishes a message that must be taken.
pub(crate) async fn publish_taken(
    client: &Client,
    subject: &str,
    payload: impl Into<bytes::Bytes>,
) {
    let answer = publish(client, subject, payload).await;
    assert!(
        answer == "{\"ok\":true}" || answer.contains("\"seq\":"),
        "{answer}"
    );
}

/// Publishes a change, then a request for that user's digest; both must be taken.
pub(crate) async fn change_and_request(
    client: &Client,
    user: &str,
    alarm: &str,
    status: &str,
    second: u64,
) {
    let changed = change(user, alarm, status, second);
    publish_taken(client, "AlarmStatusChanged", changed).await;
    publish_taken(client, "SendAlarmDigest", request(user)).await;
}

/// One random message: mostly changes, out of order and repeated; requests; now and then junk.
fn random_message(random: &mut Random) -> (String, String) {
    let user = random.below(40);
    let twin = |random: &mut Random, base: &str| match random.below(3) {
        0 => format!("{base}.{}", random.below(3)),
        _ => base.to_owned(),
    };
    match random.below(20) {
        0 => (
            twin(random, "AlarmStatusChanged"),
            format!("{{\"UserID\":\"{user}\" junk {}", random.next()),
        ),
        1..=4 => (
            twin(random, "SendAlarmDigest"),
            format!("{{\"UserID\":\"user {user}\"}}"),
        ),
        _ => {
            let alarm = random.below(12);
            let status = ["CLEARED", "WARNING", "CRITICAL"][random.below(3) as usize];
            let (minute, second, milli) = (random.below(60), random.below(60), random.below(1000));
            let payload = format!(
                "{{\"AlarmID\":\"alarm {alarm}\",\"UserID\":\"user {user}\",\"Status\":\"{status}\",\"ChangedAt\":\"2026-01-01T10:{minute:02}:{second:02}.{milli:03}Z\"}}"
            );
            (twin(random, "AlarmStatusChanged"), payload)
        }
    }
}

/// Many alarms and few requests: digests that a small `max_payload` splits.
pub(crate) fn message_for_large_digests(random: &mut Random) -> (String, String) {
    let user = format!("user {}", random.below(6));
    if random.below(40) == 0 {
        return ("SendAlarmDigest".to_owned(), request(&user));
    }
    let (alarm, at) = (format!("alarm {}", random.below(200)), random.below(3600));
    let status = ["WARNING", "CRITICAL"][random.below(2) as usize];
    (
        "AlarmStatusChanged".to_owned(),
        change(&user, &alarm, status, at),
    )
}

/// Makes the next message of a history: its subject and its bytes.
type MakeMessage = fn(&mut Random) -> (String, String);

/// Publishes confirmed messages until it is told to stop; a message without confirmation is sent again.
async fn publish_traffic(
    make: MakeMessage,
    client: Client,
    seed: u64,
    stop: Arc<AtomicBool>,
    num: Arc<AtomicU64>,
) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let burst: Vec<_> = (0..50).map(|_| make(&mut random)).collect();
        for (subject, payload) in burst {
            while !is_confirmed(&client, &subject, &payload).await {}
            num.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn is_confirmed(client: &Client, subject: &str, payload: &str) -> bool {
    let answer = client.request(subject.to_owned(), payload.to_owned().into());
    match timeout(Duration::from_secs(2), answer).await {
        Ok(Ok(answer)) => String::from_utf8_lossy(&answer.payload).contains("\"seq\":"),
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Publishers of confirmed messages, at work until they are told to stop.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    num: Arc<AtomicU64>,
    publishers: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Four publishers of everything there is; the seeds give their messages.
    pub(crate) fn start(client: &Client, first_seed: u64) -> Self {
        Self::start_with(client, first_seed, random_message)
    }

    /// Four publishers of these messages.
    pub(crate) fn start_with(client: &Client, first_seed: u64, make: MakeMessage) -> Self {
        let (stop, num) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let publishers = (first_seed..first_seed + 4).map(|seed| {
            let publishing = publish_traffic(
                make,
                client.clone(),
                seed,
                Arc::clone(&stop),
                Arc::clone(&num),
            );
            tokio::spawn(publishing)
        });
        let publishers = publishers.collect();
        Self {
            stop,
            num,
            publishers,
        }
    }

    /// Waits until so many more messages were published.
    pub(crate) async fn after(&self, more: u64) {
        let until = self.num.load(Ordering::Relaxed) + more;
        super::eventually("traffic", async || {
            self.num.load(Ordering::Relaxed) >= until
        })
        .await;
    }

    /// Waits for the last confirmations.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for publisher in self.publishers {
            publisher.await.expect("the publisher ends");
        }
    }
}
