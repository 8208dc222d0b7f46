//! Digests as they were published, whatever became of the stream that should keep them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

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

/// Of each id the bytes, and how often they were heard.
type Digests = BTreeMap<String, (String, u64)>;

impl Heard {
    /// Listens over a connection that outlives the broker's restarts.
    pub(crate) async fn start(client: &Client) -> Self {
        let mut subscription = client
            .subscribe("AlarmDigest")
            .await
            .expect("a subscription");
        client.flush().await.expect("the server answers");
        let digests = Arc::new(Mutex::new(Digests::new()));
        let hearing = Arc::clone(&digests);
        let listening = tokio::spawn(async move {
            while let Some(message) = subscription.next().await {
                let headers = message.headers.as_ref();
                let id = headers.and_then(|headers| headers.get("Nats-Msg-Id"));
                let id = id.map(ToString::to_string).unwrap_or_default();
                let text = String::from_utf8_lossy(&message.payload).into_owned();
                note(&hearing, id, text, 1);
            }
        });
        Self {
            digests,
            _listening: AbortOnDropHandle::new(listening),
        }
    }

    /// Hears what a stream holds, too: what was published while the connection was made anew.
    pub(crate) fn hear(&self, output: &[Stored]) {
        for stored in output {
            let text = String::from_utf8_lossy(&stored.payload).into_owned();
            note(&self.digests, stored.id.clone(), text, 0);
        }
    }

    /// Whether everything demanded was heard.
    pub(crate) fn has_all(&self, demand: &Demand) -> bool {
        let heard = self.by_id();
        let ids: BTreeSet<&str> = heard.keys().map(|id| of_request(id)).collect();
        demand
            .digests
            .iter()
            .all(|(_, id, _)| ids.contains(id.as_str()))
    }

    /// Demands exactly these digests, however often each was heard under its id; returns how many were repeated.
    ///
    /// A request of a rewritten history may be answered under the id of its new generation.
    pub(crate) fn demand(&self, demand: &Demand) -> u64 {
        let heard = self.by_id();
        let num_repeats = heard.values().map(|(_, num)| num.saturating_sub(1)).sum();
        let found: BTreeSet<(String, &str, &str)> = heard
            .iter()
            .map(|(id, (text, _))| {
                let json: Value = serde_json::from_str(text).expect("a digest is JSON");
                let user = json["UserID"].as_str().expect("a digest has a user");
                (user.to_owned(), of_request(id), text.as_str())
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
        num_repeats
    }

    fn by_id(&self) -> Digests {
        let digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.clone()
    }
}

fn note(digests: &Mutex<Digests>, id: String, text: String, num: u64) {
    let mut digests = digests.lock().unwrap_or_else(PoisonError::into_inner);
    match digests.entry(id) {
        Entry::Vacant(unknown) => {
            unknown.insert((text, num));
        }
        Entry::Occupied(mut known) => {
            assert_eq!(known.get().0, text, "two digests under id {}", known.key());
            known.get_mut().1 += num;
        }
    }
}

/// The id without its generation.
fn of_request(id: &str) -> &str {
    match id.match_indices('-').nth(1) {
        Some((at, _)) => &id[..at],
        None => id,
    }
}
