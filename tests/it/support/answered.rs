//! Publishers on core NATS that wait for their answers: what was answered must be in a digest, whatever happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::daemon::Daemon;
use super::eventually;
use super::evidence::Row;
use super::traffic::{change, request};

const USERS: u64 = 4;

/// Publishers of changes, each of an alarm of its own, until they are stopped.
pub(crate) struct Publishers {
    client: Client,
    digests: Subscriber,
    is_over: Arc<AtomicBool>,
    num_answered: Arc<AtomicU64>,
    /// How many of the user's changes were answered.
    users: Vec<JoinHandle<u64>>,
}

impl Publishers {
    /// Starts them; each asks for a digest after so many changes, or at its end alone.
    pub(crate) async fn start(client: &Client, asking_every: Option<u64>) -> Self {
        let digests = client.subscribe("AlarmDigest").await;
        let digests = digests.expect("a subscription");
        client.flush().await.expect("the server answers");
        let is_over = Arc::new(AtomicBool::new(false));
        let num_answered = Arc::new(AtomicU64::new(0));
        let users = (0..USERS).map(|user| {
            let (client, is_over) = (client.clone(), Arc::clone(&is_over));
            let num_answered = Arc::clone(&num_answered);
            tokio::spawn(async move {
                let user = name_of(user);
                let mut alarm = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let payload = change(&user, &format!("a{alarm}"), "CRITICAL", 1);
                    publish_until_answered(&client, "AlarmStatusChanged", &payload).await;
                    alarm += 1;
                    num_answered.fetch_add(1, Ordering::Relaxed);
                    if asking_every.is_some_and(|every| alarm % every == 0) {
                        publish_until_answered(&client, "SendAlarmDigest", &request(&user)).await;
                    }
                }
                alarm
            })
        });
        let users = users.collect();
        Self {
            client: client.clone(),
            digests,
            is_over,
            num_answered,
            users,
        }
    }

    /// Waits until so many more changes were answered.
    pub(crate) async fn after(&self, num: u64) {
        let until = self.num_answered.load(Ordering::Relaxed) + num;
        eventually("answers to changes", async || {
            self.num_answered.load(Ordering::Relaxed) >= until
        })
        .await;
    }

    /// Ends them and the daemon of a row: every change that was answered must be in a digest.
    pub(crate) async fn conclude(mut self, mut row: Row, daemon: Daemon) {
        self.is_over.store(true, Ordering::Relaxed);
        let mut answered = BTreeSet::new();
        for (user, publisher) in (0..).zip(self.users) {
            let num_alarms = publisher.await.expect("the publisher ends");
            answered.extend((0..num_alarms).map(|alarm| (name_of(user), format!("a{alarm}"))));
            let request = request(&name_of(user));
            publish_until_answered(&self.client, "SendAlarmDigest", &request).await;
        }
        row.count("answered changes found in digests", answered.len() as u64);
        while !answered.is_empty() {
            let digest = timeout(Duration::from_secs(30), self.digests.next()).await;
            let digest = digest.unwrap_or_else(|_| panic!("in no digest: {answered:?}"));
            let payload = digest.expect("the subscription lasts").payload;
            let json: serde_json::Value =
                serde_json::from_slice(&payload).expect("a digest is JSON");
            let user = json["UserID"].as_str().expect("a user");
            for entry in json["ActiveAlarms"].as_array().expect("alarms") {
                let alarm = entry["AlarmID"].as_str().expect("an alarm");
                answered.remove(&(user.to_owned(), alarm.to_owned()));
            }
            row.count("digests checked", 1);
        }
        assert!(daemon.stop().success(), "the daemon does not end well");
        row.close();
    }
}

fn name_of(user: u64) -> String {
    format!("user {user}")
}

/// Repeats the message until the daemon says that it has committed it.
async fn publish_until_answered(client: &Client, subject: &str, payload: &str) {
    loop {
        let asked = client.request(subject.to_owned(), payload.to_owned().into());
        if let Ok(Ok(answer)) = timeout(Duration::from_secs(1), asked).await
            && answer.payload == "{\"ok\":true}"
        {
            return;
        }
    }
}
