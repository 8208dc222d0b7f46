//! What every digest of a run must hold, pure.
//!
//! The judge is told each message as it is published and each digest as it comes, and says at the first digest
//! that is not exactly what was due. Three things make that possible for any service, on both kinds of input:
//!
//! - **A user whose digest is owed waits.** What the traffic has for this user is held back until the digest came,
//!   so nothing that is published later can be in it, and the digests of a user come in the order they were asked
//!   for. Other users go on: with many of them this costs no rate.
//! - **Nothing due is nothing to wait for.** A request that nothing is due for is answered by no digest or by an
//!   empty one, so nobody can wait for it. From a stream it is read in its place all the same. On core NATS a
//!   change that was published after it may be taken before it (due ⊆ digest ⊆ active), and its digest then holds
//!   what had become due by then: the next digest of this user may therefore be what was due after any of the
//!   changes since, and what it left out must be in the one after it.
//! - **An id is a digest.** The same bytes under an id that this user has just had are a redelivery, and only
//!   counted; other bytes under it, or the same alarms under another id, are wrong.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::messages::{Digest, Entry};
use super::super::oracle::{Alarms, Fate};
use super::super::traffic::{Change, Message, Names, What};

/// How many ids of a user are known again.
const NUM_RECENT_IDS: usize = 8;

/// A digest that must come.
#[derive(Debug)]
struct Owed {
    number: u64,
    since: Duration,
    entries: Vec<Entry<u32>>,
}

/// Requests without anything due that may be read late: what was on record at the first, and what came since.
#[derive(Debug)]
struct Straggler {
    alarms: Alarms<u32>,
    changes: Vec<Change>,
}

/// What is known of a user.
#[derive(Debug, Default)]
struct User {
    alarms: Alarms<u32>,
    num_published: u32,
    owed: Option<Box<Owed>>,
    /// Requests that nothing was due for and that were not answered.
    num_empty: u32,
    straggler: Option<Box<Straggler>>,
    held: VecDeque<Message>,
    parts: Vec<Entry<String>>,
    num_parts: u32,
    /// Hashes of ids, and of what came under them.
    recent: VecDeque<(u64, u64)>,
}

/// What became of a published message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// A change.
    Changed(Fate),
    /// A request; whether a digest must come.
    Asked {
        /// Whether anything was due.
        is_owed: bool,
    },
    /// Nothing.
    Refused,
}

/// A digest that is right.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is what was owed, since so long.
    Answers {
        /// How many alarms are in it, or in its last part.
        alarms: u64,
        /// From the request to the digest.
        after: Duration,
    },
    /// It is what a request without anything due may get.
    Allowed {
        /// How many alarms are in it, or in its last part.
        alarms: u64,
    },
    /// A part; more must come.
    Part {
        /// How many alarms are in it.
        alarms: u64,
    },
    /// It came before, under this id.
    Repeat,
    /// It is of nobody of this run.
    Foreign,
}

/// What a digest came as.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Its bytes.
    pub payload: &'a [u8],
    /// Its `Nats-Msg-Id`, where it has one.
    pub id: Option<&'a str>,
    /// Its `Tocsin-Part`, where it has one.
    pub part: Option<&'a str>,
    /// When it came, since the start.
    pub at: Duration,
}

/// What a digest is to its user.
enum Settled {
    /// It was owed.
    Owed { since: Duration },
    /// A request that nothing was due for was read late.
    Late,
    /// It must not be.
    Wrong,
}

/// The first thing that was wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wrong {
    /// Whose digest; `None` when that cannot be read.
    pub user: Option<u32>,
    /// What is wrong, in words.
    pub what: String,
    /// The number of the message that asked for the digest; `None` when nobody did.
    pub asked: Option<u64>,
    /// What was due.
    pub expected: Vec<Entry<String>>,
    /// What came; `None` when nothing did.
    pub found: Option<Vec<Entry<String>>>,
    /// How many messages of this user had been published.
    pub num_published: u32,
}

/// Knows what is due to whom.
#[derive(Debug)]
pub struct Judge {
    names: Names,
    /// Whether a change may be taken before a request that was published before it.
    can_overtake: bool,
    users: Vec<User>,
    /// The users to whom a digest is owed, by the numbers of their requests.
    owed: BTreeMap<u64, u32>,
    num_held: usize,
    last_answered: u64,
}

impl Judge {
    /// Of so many users. `can_overtake`: the service reads core NATS, where a change may be taken before a
    /// request that was published before it.
    #[must_use]
    pub fn new(names: Names, num_users: u32, can_overtake: bool) -> Self {
        let mut users = Vec::new();
        users.resize_with(num_users as usize, User::default);
        Self {
            names,
            can_overtake,
            users,
            owed: BTreeMap::new(),
            num_held: 0,
            last_answered: 0,
        }
    }

    /// How many digests are owed.
    #[must_use]
    pub fn num_owed(&self) -> usize {
        self.owed.len()
    }

    /// Since when the digest is owed that is owed for longest.
    #[must_use]
    pub fn owed_since(&self) -> Option<Duration> {
        let (_, user) = self.owed.first_key_value()?;
        let user = self.users.get(*user as usize)?;
        user.owed.as_ref().map(|owed| owed.since)
    }

    /// How many messages are held back.
    #[must_use]
    pub const fn num_held(&self) -> usize {
        self.num_held
    }

    /// The number of the newest request that was answered.
    #[must_use]
    pub const fn last_answered(&self) -> u64 {
        self.last_answered
    }

    /// Holds a message back if its user must wait; `true` when it did.
    pub fn hold(&mut self, message: Message) -> bool {
        let user = self.user(message.user);
        let must_wait = user.owed.is_some() || !user.held.is_empty();
        if must_wait {
            user.held.push_back(message);
            self.num_held += 1;
        }
        must_wait
    }

    /// The next message of a user who need not wait any more.
    pub fn release(&mut self, user: u32) -> Option<Message> {
        let user = self.user(user);
        if user.owed.is_some() {
            return None;
        }
        let message = user.held.pop_front()?;
        self.num_held -= 1;
        Some(message)
    }

    /// Takes a message as it is published, the `number`-th of the run.
    pub fn publish(&mut self, message: &Message, number: u64, at: Duration) -> Effect {
        let can_overtake = self.can_overtake;
        let user = self.user(message.user);
        user.num_published += 1;
        match message.what {
            What::Junk(_) => Effect::Refused,
            What::Change(change) => {
                if let Some(straggler) = &mut user.straggler {
                    straggler.changes.push(change);
                }
                Effect::Changed(user.alarms.change(change.alarm, change.status, change.at))
            }
            What::Request => {
                let entries = user.alarms.request();
                let is_owed = !entries.is_empty();
                if is_owed {
                    user.owed = Some(Box::new(Owed {
                        number,
                        since: at,
                        entries,
                    }));
                    self.owed.insert(number, message.user);
                } else {
                    user.num_empty += 1;
                    if can_overtake && user.straggler.is_none() {
                        user.straggler = Some(Box::new(Straggler {
                            alarms: user.alarms.clone(),
                            changes: Vec::new(),
                        }));
                    }
                }
                Effect::Asked { is_owed }
            }
        }
    }

    /// Takes a digest, or a part of one; says of whom it is, and what it was.
    ///
    /// # Errors
    /// When it is wrong.
    pub fn receive(&mut self, arrival: &Arrival<'_>) -> Result<(Option<u32>, Verdict), Box<Wrong>> {
        let digest = match Digest::read(arrival.payload) {
            Ok(digest) => digest,
            // What cannot be read is ours where it speaks of a user of ours.
            Err(why) if contains(arrival.payload, self.names.prefix()) => {
                return Err(self.wrong(None, why, None).into());
            }
            Err(_) => return Ok((None, Verdict::Foreign)),
        };
        let Some(user) = self.names.read_user(&digest.user) else {
            if digest.user.starts_with(self.names.prefix()) {
                let what = format!("a digest of {}, who never had an alarm", digest.user);
                return Err(self.wrong(None, what, Some(digest.entries)).into());
            }
            return Ok((None, Verdict::Foreign));
        };
        let verdict = self.judge(user, digest.entries, arrival)?;
        Ok((Some(user), verdict))
    }

    /// What is wrong when nothing more comes: the digest that is owed for longest.
    #[must_use]
    pub fn missing(&self, waited: Duration) -> Option<Wrong> {
        let (_, user) = self.owed.first_key_value()?;
        let what = format!("no digest came within {waited:?}");
        Some(self.wrong(Some(*user), what, None))
    }

    fn user(&mut self, user: u32) -> &mut User {
        self.users
            .get_mut(user as usize)
            .expect("traffic and names know no other users")
    }

    fn judge(
        &mut self,
        number: u32,
        entries: Vec<Entry<String>>,
        arrival: &Arrival<'_>,
    ) -> Result<Verdict, Box<Wrong>> {
        let user = self.user(number);
        if let Some(id) = arrival.id {
            let (id, content) = (hash(id.as_bytes()), hash(arrival.payload));
            match user.recent.iter().find(|(known, _)| *known == id) {
                Some((_, known)) if *known == content => return Ok(Verdict::Repeat),
                Some(_) => {
                    let what = "another digest came under an id that was used before".to_owned();
                    return Err(self.wrong(Some(number), what, Some(entries)).into());
                }
                None => {}
            }
            if user.recent.len() == NUM_RECENT_IDS {
                user.recent.pop_front();
            }
            user.recent.push_back((id, content));
        }
        let alarms = entries.len() as u64;
        let entries = match user.join(entries, arrival.part) {
            Ok(Some(whole)) => whole,
            Ok(None) => return Ok(Verdict::Part { alarms }),
            Err((what, entries)) => {
                return Err(self.wrong(Some(number), what, Some(entries)).into());
            }
        };
        if entries.is_empty() {
            if user.num_empty > 0 {
                user.num_empty -= 1;
                return Ok(Verdict::Allowed { alarms });
            }
            let what = "an empty digest that nobody asked for".to_owned();
            return Err(self.wrong(Some(number), what, Some(entries)).into());
        }
        let found: Option<Vec<_>> = entries
            .iter()
            .map(|entry| {
                Some(Entry {
                    alarm: self.names.read_alarm(&entry.alarm)?,
                    status: entry.status,
                    at: entry.at,
                })
            })
            .collect();
        let before = self.user(number).owed_number();
        let settled = found.map_or(Settled::Wrong, |found| self.user(number).settle(&found));
        let after = self.user(number).owed_number();
        if let Some(before) = before
            && after.is_none()
        {
            self.owed.remove(&before);
            self.last_answered = self.last_answered.max(before);
        }
        match settled {
            Settled::Owed { since } => Ok(Verdict::Answers {
                alarms,
                after: arrival.at.saturating_sub(since),
            }),
            Settled::Late => Ok(Verdict::Allowed { alarms }),
            Settled::Wrong => {
                let what = if before.is_some() {
                    "the digest is not what was due"
                } else {
                    "a digest that nobody asked for"
                };
                Err(self
                    .wrong(Some(number), what.to_owned(), Some(entries))
                    .into())
            }
        }
    }

    fn wrong(&self, user: Option<u32>, what: String, found: Option<Vec<Entry<String>>>) -> Wrong {
        let known = user.and_then(|user| self.users.get(user as usize));
        let owed = known.and_then(|user| user.owed.as_ref());
        let expected = owed.map(|owed| owed.entries.as_slice()).unwrap_or_default();
        let named = expected.iter().map(|entry| Entry {
            alarm: self.names.alarm(entry.alarm),
            status: entry.status,
            at: entry.at,
        });
        Wrong {
            user,
            what,
            asked: owed.map(|owed| owed.number),
            expected: named.collect(),
            found,
            num_published: known.map_or(0, |user| user.num_published),
        }
    }
}

impl User {
    fn owed_number(&self) -> Option<u64> {
        self.owed.as_ref().map(|owed| owed.number)
    }

    /// Joins the parts of a digest that was split; `None` until the last came.
    #[expect(
        clippy::type_complexity,
        reason = "what is wrong, and the entries that were"
    )]
    fn join(
        &mut self,
        mut entries: Vec<Entry<String>>,
        part: Option<&str>,
    ) -> Result<Option<Vec<Entry<String>>>, (String, Vec<Entry<String>>)> {
        let wanted = self.num_parts + 1;
        let Some(part) = part else {
            if wanted > 1 {
                return Err((
                    format!("a whole digest came in place of part {wanted}"),
                    entries,
                ));
            }
            return Ok(Some(entries));
        };
        let numbers = part.split_once('/');
        let numbers = numbers.and_then(|(i, of)| Some((i.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((i, of)) if i == wanted && i <= of => {
                self.parts.append(&mut entries);
                self.num_parts = i;
                if i < of {
                    return Ok(None);
                }
                self.num_parts = 0;
                Ok(Some(std::mem::take(&mut self.parts)))
            }
            Some(_) | None => Err((
                format!("part {part} came in place of part {wanted}"),
                entries,
            )),
        }
    }

    /// Takes a digest that is not empty.
    fn settle(&mut self, found: &[Entry<u32>]) -> Settled {
        if let Some(owed) = self.owed.take_if(|owed| owed.entries == found) {
            if let Some(straggler) = &mut self.straggler {
                // This may have been the answer to a request before: then the owed one finds nothing due now.
                straggler.alarms = self.alarms.clone();
                straggler.changes.clear();
            }
            return Settled::Owed { since: owed.since };
        }
        self.settle_late(found)
            .map_or(Settled::Wrong, |()| Settled::Late)
    }

    /// Whether a request without anything due was read so late that it got this.
    fn settle_late(&mut self, found: &[Entry<u32>]) -> Option<()> {
        let straggler = self.straggler.as_mut()?;
        let mut then = straggler.alarms.clone();
        let place = straggler.changes.iter().position(|change| {
            then.change(change.alarm, change.status, change.at);
            then.clone().request() == found
        })?;
        then.request();
        straggler.alarms = then.clone();
        straggler.changes.drain(..=place);
        for change in &straggler.changes {
            then.change(change.alarm, change.status, change.at);
        }
        if let Some(owed) = &mut self.owed {
            owed.entries = then.request();
            if owed.entries.is_empty() {
                self.owed = None;
            }
        }
        self.alarms = then;
        Some(())
    }
}

fn contains(payload: &[u8], text: &str) -> bool {
    payload
        .windows(text.len().max(1))
        .any(|window| window == text.as_bytes())
}

fn hash(bytes: &[u8]) -> u64 {
    twox_hash::XxHash3_64::oneshot(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::super::messages::{self, Instant, Status};
    use super::super::super::traffic::{Asking, Recipe, Share};
    use super::*;

    const ANN: u32 = 0;
    const BEN: u32 = 1;

    struct Scene {
        judge: Judge,
        number: u64,
    }

    impl Scene {
        fn new(can_overtake: bool) -> Self {
            let recipe = Recipe {
                seed: 0,
                start: Instant(0),
                step: Duration::ZERO,
                prefix: "u".to_owned(),
                users: 2,
                alarms: 9,
                disorder: Share::default(),
                max_delay: Duration::ZERO,
                duplicates: Share::default(),
                junk: Share::default(),
                twins: Share::default(),
                asking: Asking::Every(1),
            };
            let judge = Judge::new(Names::new(&recipe), 2, can_overtake);
            Self { judge, number: 0 }
        }

        fn publish(&mut self, user: u32, what: What) -> Effect {
            self.number += 1;
            let message = Message { user, what };
            self.judge.publish(&message, self.number, Duration::ZERO)
        }

        fn change(&mut self, user: u32, alarm: u32, status: Status, at: u64) {
            self.publish(user, change(alarm, status, at));
        }

        /// Whether a digest is owed then.
        fn ask(&mut self, user: u32) -> bool {
            self.publish(user, What::Request) == Effect::Asked { is_owed: true }
        }

        fn receive(&mut self, digest: &str, id: Option<&str>) -> Result<Verdict, String> {
            self.receive_part(digest, id, None)
        }

        fn receive_part(
            &mut self,
            digest: &str,
            id: Option<&str>,
            part: Option<&str>,
        ) -> Result<Verdict, String> {
            let arrival = Arrival {
                payload: digest.as_bytes(),
                id,
                part,
                at: Duration::from_millis(5),
            };
            let received = self.judge.receive(&arrival);
            received.map(|(_, verdict)| verdict).map_err(|it| it.what)
        }
    }

    fn change(alarm: u32, status: Status, at: u64) -> What {
        What::Change(Change {
            alarm,
            status,
            at: Instant(at),
            is_repeat: false,
            is_late: false,
        })
    }

    fn digest(user: u32, alarms: &[(u32, Status, u64)]) -> String {
        let entries: Vec<_> = alarms
            .iter()
            .map(|(alarm, status, at)| Entry {
                alarm: format!("alarm-{alarm}"),
                status: *status,
                at: Instant(*at),
            })
            .collect();
        messages::digest(&format!("u{user}"), &entries)
    }

    const fn answers(alarms: u64) -> Verdict {
        let after = Duration::from_millis(5);
        Verdict::Answers { alarms, after }
    }

    const fn allowed(alarms: u64) -> Verdict {
        Verdict::Allowed { alarms }
    }

    use Status::{Cleared, Critical, Warning};

    #[test]
    fn what_was_due_answers_and_nothing_else_does() {
        for wrong in [
            digest(ANN, &[(1, Warning, 5)]),
            digest(ANN, &[(2, Critical, 6), (1, Warning, 5)]),
            digest(ANN, &[(1, Critical, 5), (2, Critical, 6)]),
            digest(ANN, &[(1, Warning, 4), (2, Critical, 6)]),
            digest(ANN, &[(1, Warning, 5), (2, Critical, 6), (3, Warning, 7)]),
            digest(BEN, &[(1, Warning, 5), (2, Critical, 6)]),
            digest(ANN, &[]),
        ] {
            let mut scene = Scene::new(false);
            scene.change(ANN, 2, Critical, 6);
            scene.change(ANN, 1, Warning, 5);
            assert!(scene.ask(ANN));
            assert!(scene.receive(&wrong, None).is_err(), "{wrong}");
            let right = digest(ANN, &[(1, Warning, 5), (2, Critical, 6)]);
            assert_eq!(scene.receive(&right, None), Ok(answers(2)));
            assert_eq!(scene.judge.num_owed(), 0);
        }
    }

    #[test]
    fn who_is_owed_waits_and_then_goes_on_in_order() {
        let mut scene = Scene::new(false);
        scene.change(ANN, 1, Warning, 1);
        scene.ask(ANN);
        let later = [change(1, Cleared, 2), What::Request].map(|what| Message { user: ANN, what });
        assert!(later.iter().all(|it| scene.judge.hold(*it)));
        let other = Message {
            user: BEN,
            what: What::Request,
        };
        assert!(!scene.judge.hold(other));
        assert_eq!(scene.judge.release(ANN), None);
        scene
            .receive(&digest(ANN, &[(1, Warning, 1)]), None)
            .unwrap();
        assert_eq!(scene.judge.release(ANN), Some(later[0]));
        // One of its messages still waits, so a new one does.
        assert!(scene.judge.hold(later[0]));
        assert_eq!(scene.judge.release(ANN), Some(later[1]));
        assert_eq!(scene.judge.num_held(), 1);
    }

    #[test]
    fn a_repeat_keeps_its_id_and_an_id_its_bytes() {
        let mut scene = Scene::new(false);
        scene.change(ANN, 1, Warning, 1);
        scene.ask(ANN);
        let first = digest(ANN, &[(1, Warning, 1)]);
        assert_eq!(scene.receive(&first, Some("a")), Ok(answers(1)));
        assert_eq!(scene.receive(&first, Some("a")), Ok(Verdict::Repeat));
        let again = scene.receive(&first, Some("b")).unwrap_err();
        assert_eq!(again, "a digest that nobody asked for");
        let other = digest(ANN, &[(1, Critical, 2)]);
        let other = scene.receive(&other, Some("a")).unwrap_err();
        assert_eq!(
            other,
            "another digest came under an id that was used before"
        );
    }

    #[test]
    fn without_anything_due_an_empty_digest_may_come_once() {
        let mut scene = Scene::new(false);
        let empty = digest(ANN, &[]);
        assert!(scene.receive(&empty, None).is_err());
        assert!(!scene.ask(ANN));
        assert_eq!(scene.receive(&empty, None), Ok(allowed(0)));
        assert!(scene.receive(&empty, None).is_err());
    }

    #[test]
    fn parts_are_one_digest_in_order() {
        let mut scene = Scene::new(false);
        for alarm in 1..4 {
            scene.change(ANN, alarm, Warning, 1);
        }
        scene.ask(ANN);
        let part = |alarm| digest(ANN, &[(alarm, Warning, 1)]);
        let second = scene.receive_part(&part(2), None, Some("2/3")).unwrap_err();
        assert_eq!(second, "part 2/3 came in place of part 1");
        let mut receive = |alarm, name| scene.receive_part(&part(alarm), None, name);
        assert_eq!(receive(1, Some("1/3")), Ok(Verdict::Part { alarms: 1 }));
        assert!(receive(2, None).is_err());
        assert_eq!(receive(2, Some("2/3")), Ok(Verdict::Part { alarms: 1 }));
        assert_eq!(receive(3, Some("3/3")), Ok(answers(1)));
    }

    #[test]
    fn a_change_may_overtake_a_request_that_nothing_was_due_for_only_without_a_stream() {
        for can_overtake in [true, false] {
            let mut scene = Scene::new(can_overtake);
            assert!(!scene.ask(ANN));
            scene.change(ANN, 1, Warning, 1);
            scene.change(ANN, 2, Critical, 2);
            let early = scene.receive(&digest(ANN, &[(1, Warning, 1)]), None);
            if !can_overtake {
                assert!(early.is_err());
                continue;
            }
            assert_eq!(early, Ok(allowed(1)));
            assert!(scene.ask(ANN));
            assert!(
                scene
                    .receive(&digest(ANN, &[(1, Warning, 1), (2, Critical, 2)]), None)
                    .is_err()
            );
            assert_eq!(
                scene.receive(&digest(ANN, &[(2, Critical, 2)]), None),
                Ok(answers(1))
            );
        }
    }

    #[test]
    fn what_overtook_leaves_nothing_owed_and_its_own_request_late() {
        let mut scene = Scene::new(true);
        assert!(!scene.ask(ANN));
        scene.change(ANN, 1, Warning, 1);
        assert!(scene.ask(ANN));
        // It answers the first request; the second may then get what comes after it.
        assert_eq!(
            scene.receive(&digest(ANN, &[(1, Warning, 1)]), None),
            Ok(answers(1))
        );
        scene.change(ANN, 2, Critical, 2);
        assert_eq!(
            scene.receive(&digest(ANN, &[(2, Critical, 2)]), None),
            Ok(allowed(1))
        );
        assert!(!scene.ask(ANN));
        assert!(
            scene
                .receive(&digest(ANN, &[(2, Critical, 2)]), None)
                .is_err()
        );
    }

    #[test]
    fn an_owed_digest_may_have_come_in_two_halves() {
        let mut scene = Scene::new(true);
        assert!(!scene.ask(ANN));
        scene.change(ANN, 1, Warning, 1);
        scene.change(ANN, 2, Critical, 2);
        scene.change(ANN, 1, Critical, 3);
        assert!(scene.ask(ANN));
        assert_eq!(
            scene.receive(&digest(ANN, &[(1, Warning, 1)]), None),
            Ok(allowed(1))
        );
        assert_eq!(scene.judge.num_owed(), 1);
        let rest = digest(ANN, &[(2, Critical, 2), (1, Critical, 3)]);
        assert_eq!(scene.receive(&rest, None), Ok(answers(2)));
        assert_eq!(scene.judge.num_owed(), 0);
    }

    #[test]
    fn what_is_missing_is_the_digest_owed_for_longest() {
        let mut scene = Scene::new(false);
        assert_eq!(scene.judge.missing(Duration::from_secs(5)), None);
        for user in [BEN, ANN] {
            scene.change(user, 1, Warning, 1);
            scene.ask(user);
        }
        let wrong = scene.judge.missing(Duration::from_secs(5)).unwrap();
        assert_eq!((wrong.user, wrong.asked), (Some(BEN), Some(2)));
        assert_eq!(wrong.what, "no digest came within 5s");
        assert_eq!((wrong.expected.len(), wrong.found), (1, None));
        scene
            .receive(&digest(BEN, &[(1, Warning, 1)]), None)
            .unwrap();
        assert_eq!(scene.judge.last_answered(), 2);
        assert_eq!(scene.judge.missing(Duration::ZERO).unwrap().user, Some(ANN));
    }

    #[test]
    fn other_peoples_digests_are_left_alone_and_broken_ones_of_ours_are_not() {
        let mut scene = Scene::new(false);
        let foreign = messages::digest::<String>("someone", &[]);
        assert_eq!(scene.receive(&foreign, None), Ok(Verdict::Foreign));
        assert_eq!(scene.receive("{", None), Ok(Verdict::Foreign));
        assert!(scene.receive("{\"UserID\":\"u1\"}", None).is_err());
        let never = messages::digest::<String>("u7", &[]);
        let never = scene.receive(&never, None).unwrap_err();
        assert_eq!(never, "a digest of u7, who never had an alarm");
    }
}
