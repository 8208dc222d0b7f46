//! The connection: many plays at once over one client, each digest to the play of its user.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use futures::StreamExt;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{broadcast, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::super::messages::Digest;
use super::play::{Arrived, Play};
use crate::bus::connection::{Connection, State, Violation};
use crate::bus::wire::{DEAD_LETTER, DIGEST, PART_HEADER, REASON_HEADER, SUBJECT_HEADER};

/// The connection did not last: what was right cannot be told from what was lost.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{0}")]
pub struct Lost(String);

/// A refused message as the service hands it on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct DeadLetter {
    pub(super) payload: Vec<u8>,
    /// Where it came on first, if that is said.
    pub(super) subject: Option<String>,
    /// Why it was refused, if that is said.
    pub(super) reason: Option<String>,
}

/// One connection on which everything is published and heard.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    digests: Subscriber,
    dead_letters: Subscriber,
    state: watch::Receiver<State>,
    /// The connection's number: another one may have missed something.
    epoch: u64,
    violations: broadcast::Receiver<Violation>,
    /// How long nothing may come while something is waited for.
    limit: Duration,
    letters: Vec<DeadLetter>,
}

impl Session {
    /// Listens, and returns when the server has taken the subscriptions: nothing that is published from now on is missed.
    pub(super) async fn open(connection: &Connection, limit: Duration) -> Result<Self, Lost> {
        let client = connection.client().clone();
        let (epoch, violations) = (connection.connected().await, connection.violations());
        let listen = |subject: String| {
            let client = client.clone();
            async move {
                let listening = client.subscribe(subject.clone()).await;
                listening.map_err(|error| Lost(format!("failed to listen on {subject}: {error}")))
            }
        };
        let digests = listen(DIGEST.to_owned()).await?;
        let dead_letters = listen(DEAD_LETTER.to_owned()).await?;
        let inbox = client.new_inbox();
        let mut echoes = listen(inbox.clone()).await?;
        let session = Self {
            client,
            digests,
            dead_letters,
            state: connection.state(),
            epoch,
            violations,
            limit,
            letters: Vec::new(),
        };
        session.publish(inbox, Vec::new()).await?;
        match timeout(limit, echoes.next()).await {
            Ok(Some(_)) => Ok(session),
            Ok(None) | Err(_) => Err(Lost(format!(
                "NATS did not answer within {limit:?}; is the network slow? wait longer (--timeout)"
            ))),
        }
    }

    /// Plays all of them at once, each to its end; `on_end` hears of each by its place.
    ///
    /// The wait is over when for the session's limit no play heard anything: a slow service is not a wrong one.
    pub(super) async fn play(
        &mut self,
        plays: &mut [Play],
        mut on_end: impl FnMut(usize, &Play),
    ) -> Result<(), Lost> {
        let mut places = HashMap::new();
        for (place, play) in plays.iter_mut().enumerate() {
            places.extend(play.all_users().map(|user| (user.clone(), place)));
            self.publish_all(play.advance()).await?;
        }
        let mut num_running = plays.len();
        let mut deadline = Instant::now() + self.limit;
        while num_running > 0 {
            let message = tokio::select! {
                message = self.digests.next() => message.ok_or_else(|| self.ended())?,
                letter = self.dead_letters.next() => {
                    let letter = letter.ok_or_else(|| self.ended())?;
                    self.letters.push(read_letter(&letter));
                    continue;
                }
                _ = self.state.changed() => {
                    if *self.state.borrow_and_update() != (State::Connected { epoch: self.epoch }) {
                        return Err(self.ended());
                    }
                    continue;
                }
                violation = self.violations.recv() => {
                    match violation.map(not_allowed) {
                        Ok(Some(lost)) => return Err(lost),
                        Ok(None) | Err(_) => continue,
                    }
                }
                () = sleep_until(deadline) => {
                    for (place, play) in plays.iter_mut().enumerate() {
                        if play.outcome().is_none() {
                            play.on_silence(self.limit);
                            on_end(place, play);
                        }
                    }
                    return Ok(());
                }
            };
            let Some((place, arrived)) = read_digest(&message, &places) else {
                continue;
            };
            let Some(play) = plays.get_mut(place).filter(|it| it.outcome().is_none()) else {
                continue;
            };
            deadline = Instant::now() + self.limit;
            let messages = play.on_digest(arrived);
            if play.outcome().is_some() {
                num_running -= 1;
                on_end(place, play);
            }
            self.publish_all(messages).await?;
        }
        Ok(())
    }

    /// Waits until this many dead letters fulfil the condition, or none came for the limit; returns all that came.
    pub(super) async fn letters(
        &mut self,
        is_enough: impl Fn(&[DeadLetter]) -> bool,
    ) -> Result<&[DeadLetter], Lost> {
        while !is_enough(&self.letters) {
            match timeout(self.limit, self.dead_letters.next()).await {
                Ok(Some(letter)) => self.letters.push(read_letter(&letter)),
                Ok(None) => return Err(self.ended()),
                Err(_) => break,
            }
        }
        Ok(&self.letters)
    }

    async fn publish_all(&self, messages: Vec<(String, Vec<u8>)>) -> Result<(), Lost> {
        for (subject, payload) in messages {
            self.publish(subject, payload).await?;
        }
        Ok(())
    }

    async fn publish(&self, subject: String, payload: Vec<u8>) -> Result<(), Lost> {
        let publishing = self.client.publish(subject.clone(), payload.into());
        publishing
            .await
            .map_err(|error| Lost(format!("failed to publish on {subject}: {error}")))
    }

    fn ended(&self) -> Lost {
        let why = match &*self.state.borrow() {
            State::Disconnected { why } => format!(": {why}"),
            State::Connected { .. } => String::new(),
        };
        Lost(format!(
            "the connection to NATS broke during the check{why}; repeat it"
        ))
    }
}

/// What the server must allow and does not; a service that keeps no dead letters can do without that subject.
fn not_allowed(violation: Violation) -> Option<Lost> {
    let (what, subject) = match violation {
        Violation::Publish(subject) => ("publish", subject),
        Violation::Subscribe(subject) => ("subscribe", subject),
    };
    (subject != DEAD_LETTER).then(|| {
        Lost(format!(
            "NATS does not let this user {what} to {subject}; give it the permission"
        ))
    })
}

/// The digest and whose play it belongs to; `None` for that of somebody else.
fn read_digest(message: &Message, places: &HashMap<String, usize>) -> Option<(usize, Arrived)> {
    let payload = message.payload.to_vec();
    let digest = Digest::read(&payload);
    let part = header(message, PART_HEADER).and_then(|part| {
        let (number, of) = part.split_once('/')?;
        Some((number.parse().ok()?, of.parse().ok()?))
    });
    let (user, place) = if let Ok(digest) = &digest {
        places.get_key_value(&digest.user)?
    } else {
        // Whose it is is only to be guessed; the longest id that is in it is the likeliest.
        let text = String::from_utf8_lossy(&payload);
        let quoted = |user: &str| text.contains(&Value::from(user).to_string());
        let named = places.iter().filter(|(user, _)| quoted(user));
        named.max_by_key(|(user, _)| user.len())?
    };
    let arrived = Arrived {
        user: user.clone(),
        payload,
        digest,
        part,
    };
    Some((*place, arrived))
}

fn read_letter(message: &Message) -> DeadLetter {
    DeadLetter {
        payload: message.payload.to_vec(),
        subject: header(message, SUBJECT_HEADER),
        reason: header(message, REASON_HEADER),
    }
}

fn header(message: &Message, name: &str) -> Option<String> {
    let value = message.headers.as_ref()?.get(name)?;
    Some(value.as_str().to_owned())
}
