//! Digests as they were published, whatever became of the stream that should keep them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_nats::Client;
use futures::StreamExt;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::judge::{Demand, Stored};

/// Everything published on `AlarmDigest` since it listens: id and bytes.
pub(crate) struct Heard {
    digests: Arc<Mutex<Digests>>,
    _listening: AbortOnDropHandle<()>,
}

#[derive(Clone, Default)]
struct Digests {
    by_id: BTreeMap<String, Digest>,
    /// Whether nothing keeps what is published.
    is_lost: bool,
}

/// What was heard under one id.
#[derive(Clone, Default)]
struct Digest {
    text: String,
    num_published: u64,
    /// Where a stream kept it: sequence and nanosecond.
    kept_at: BTreeSet<(u64, i128)>,
    /// How often it may come again, because nothing keeps it.
    num_lost: u64,
}

impl Digest {
    /// How often it came again.
    fn num_repeats(&self) -> u64 {
        let num = self.num_published.max(self.kept_at.len() as u64);
        num.saturating_sub(1)
    }
}

impl Heard {
    /// Listens over a connection that outlives the broker's restarts.
    pub(crate) async fn start(client: &Client) -> Self {
        let mut subscription = client
            .subscribe("AlarmDigest")
            .await
            .expect("a subscription");
        client.flush().await.expect("the server answers");
        let digests = Arc::<Mutex<Digests>>::default();
        let hearing = Arc::clone(&digests);
        let listening = tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                let headers = message.headers.as_ref();
                let id = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
                let id = id.map(ToString::to_string).unwrap_or_default();
                lock(&hearing).published(&id, &message.payload);
            }
        });
        Self {
            digests,
            _listening: AbortOnDropHandle::new(listening),
        }
    }

    /// Hears what a stream holds, too: what was published while the connection was made anew.
    pub(crate) fn hear(&self, output: &[Stored]) {
        let mut digests = lock(&self.digests);
        for stored in output {
            digests.kept(stored);
        }
    }

    /// The output stream is about to be lost with what it keeps: each may come again, once. So may what is
    /// published until a stream keeps it again, as often as that is.
    pub(crate) fn lose(&self, output: &[Stored]) {
        self.hear(output);
        let mut digests = lock(&self.digests);
        digests.is_lost = true;
        for stored in output {
            digests.digest(&stored.id, &stored.payload).num_lost += 1;
        }
    }

    /// A stream keeps again what is published.
    pub(crate) fn is_kept_again(&self) {
        lock(&self.digests).is_lost = false;
    }

    /// Whether everything demanded was heard.
    pub(crate) fn has_all(&self, demand: &Demand) -> bool {
        let digests = lock(&self.digests);
        let ids: BTreeSet<&str> = digests.by_id.keys().map(|id| of_request(id)).collect();
        demand
            .digests
            .iter()
            .all(|(_, id, _)| ids.contains(id.as_str()))
    }

    /// Demands exactly these digests, none again but what a lost stream had kept; returns how many were repeated.
    ///
    /// A request of a rewritten history may be answered under the id of its new generation.
    pub(crate) fn demand(&self, demand: &Demand) -> u64 {
        let heard = lock(&self.digests).by_id.clone();
        let found: BTreeSet<(String, &str, &str)> = heard
            .iter()
            .map(|(id, digest)| {
                let json: Value = serde_json::from_str(&digest.text).expect("a digest is JSON");
                let user = json["UserID"].as_str().expect("a digest has a user");
                (user.to_owned(), of_request(id), digest.text.as_str())
            })
            .collect();
        let demanded: BTreeSet<(String, &str, &str)> = demand
            .digests
            .iter()
            .map(|(user, id, text)| (user.clone(), id.as_str(), text.as_str()))
            .collect();
        let lost: Vec<_> = demanded.difference(&found).collect();
        let wrong: Vec<_> = found.difference(&demanded).collect();
        assert!(
            lost.is_empty() && wrong.is_empty(),
            "demanded and not heard: {lost:?}; heard and not demanded: {wrong:?}"
        );
        assert_eq!(found.len(), heard.len(), "a request was answered twice");
        for (id, digest) in &heard {
            let (num, num_lost) = (digest.num_repeats(), digest.num_lost);
            assert!(
                num <= num_lost,
                "{id} was heard again {num} times, and lost {num_lost} times"
            );
        }
        heard.values().map(Digest::num_repeats).sum()
    }
}

impl Digests {
    fn digest(&mut self, id: &str, payload: &[u8]) -> &mut Digest {
        let text = String::from_utf8_lossy(payload);
        let digest = self.by_id.entry(id.to_owned()).or_default();
        if digest.text.is_empty() {
            digest.text = text.into_owned();
        } else {
            assert_eq!(digest.text, text, "two digests under id {id}");
        }
        digest
    }

    fn published(&mut self, id: &str, payload: &[u8]) {
        let num_lost = u64::from(self.is_lost);
        let digest = self.digest(id, payload);
        digest.num_published += 1;
        digest.num_lost += num_lost;
    }

    fn kept(&mut self, stored: &Stored) {
        let at = (stored.sequence, stored.nanos);
        let digest = self.digest(&stored.id, &stored.payload);
        digest.kept_at.insert(at);
    }
}

fn lock(digests: &Mutex<Digests>) -> MutexGuard<'_, Digests> {
    digests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The id without its generation.
fn of_request(id: &str) -> &str {
    match id.match_indices('-').nth(1) {
        Some((at, _)) => &id[..at],
        None => id,
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::demand;
    use super::super::traffic::{change, request};
    use super::*;

    fn stored(sequence: u64, subject: &str, payload: &str) -> Stored {
        Stored::of(sequence, 1_767_225_660_000_000_000, subject, payload)
    }

    /// A digest that was published and kept once; how many repeats are found after more of it.
    fn repeats_after(more: impl FnOnce(&Heard, &Stored)) -> u64 {
        let input = [
            stored(1, "AlarmStatusChanged", &change("u", "a", "CRITICAL", 1)),
            stored(2, "SendAlarmDigest", &request("u")),
        ];
        let demand = demand(&input, |_| false);
        let (_, id, text) = &demand.digests[0];
        let digest = Stored {
            id: id.clone(),
            ..stored(1, "AlarmDigest", text)
        };
        let heard = Heard {
            digests: Arc::default(),
            _listening: AbortOnDropHandle::new(tokio::spawn(async {})),
        };
        publish(&heard, &digest);
        heard.hear(std::slice::from_ref(&digest));
        more(&heard, &digest);
        heard.demand(&demand)
    }

    fn publish(heard: &Heard, digest: &Stored) {
        lock(&heard.digests).published(&digest.id, &digest.payload);
    }

    fn at_another_place(digest: &Stored) -> Stored {
        Stored {
            sequence: 2,
            ..digest.clone()
        }
    }

    #[tokio::test]
    async fn a_digest_that_is_read_again_from_its_stream_is_no_repeat() {
        assert_eq!(
            repeats_after(|heard, it| heard.hear(std::slice::from_ref(it))),
            0
        );
    }

    #[tokio::test]
    #[should_panic(expected = "was heard again 4 times, and lost 0 times")]
    async fn a_digest_that_is_published_again_and_again_is_said() {
        repeats_after(|heard, digest| (0..4).for_each(|_| publish(heard, digest)));
    }

    #[tokio::test]
    #[should_panic(expected = "was heard again 1 times, and lost 0 times")]
    async fn a_digest_that_a_stream_keeps_twice_is_said() {
        repeats_after(|heard, digest| heard.hear(&[at_another_place(digest)]));
    }

    #[tokio::test]
    async fn what_a_lost_stream_had_kept_may_come_again_once() {
        let num_repeats = repeats_after(|heard, digest| {
            heard.lose(std::slice::from_ref(digest));
            // Before a stream keeps it: that one is lost, too.
            publish(heard, digest);
            heard.is_kept_again();
            publish(heard, digest);
            heard.hear(&[at_another_place(digest)]);
        });
        assert_eq!(num_repeats, 2);
    }

    #[tokio::test]
    #[should_panic(expected = "was heard again 2 times, and lost 1 times")]
    async fn what_a_lost_stream_had_kept_may_not_come_again_twice() {
        repeats_after(|heard, digest| {
            heard.lose(std::slice::from_ref(digest));
            heard.is_kept_again();
            publish(heard, digest);
            publish(heard, digest);
        });
    }
}
