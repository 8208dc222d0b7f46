//! Messages for tests, and publishers that wait for their confirmation.

use std::time::Duration;

use async_nats::Client;
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
