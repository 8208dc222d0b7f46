//! Realistic traffic, pure: a seed and a recipe in, messages out.
//!
//! The same recipe gives the same messages, byte for byte: the numbers come from a generator written here, which
//! no update of a library can change, and the times from the recipe's start and step, never from a clock. So a
//! run needs no record: [`Traffic`] played again is its record.
//!
//! | what arrives | how it is made |
//! |---|---|
//! | late | the change happened up to `max_delay` before the messages around it |
//! | twice | one of the last [`NUM_RECENT`] changes, the same bytes on the same subject |
//! | on a numbered subject | all messages of some alarms, and all requests of some users |
//! | unusable | one of eight kinds that every service must refuse |
//!
//! An alarm stays on its subject, because core NATS keeps the order within one subject only, and what an alarm is
//! reported as may hang on the order. Times are whole milliseconds, as most producers stamp them: at high rates
//! two changes of an alarm share an instant.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use time::OffsetDateTime;

use super::messages::{Instant, Status};

/// How many changes are remembered to be sent twice.
pub const NUM_RECENT: usize = 1024;
/// Numbered subjects end with 1 to this.
pub const NUM_TWINS: u8 = 9;
const NANOS_PER_MILLI: u64 = 1_000_000;
/// Kinds of junk; the last is a request.
const NUM_JUNK: u64 = 8;

/// `SplitMix64`: eight lines that never change.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product: no division, and no bias worth a name.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn chance(&mut self, share: Share) -> bool {
        share.takes(self.next())
    }
}

const fn mixed(number: u64) -> u64 {
    let once = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let twice = (once ^ (once >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    twice ^ (twice >> 31)
}

/// A part of the whole, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share(f64);

impl Share {
    /// A share; `None` when it is not from 0 to 1.
    #[must_use]
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    /// The number, from 0 to 1.
    #[must_use]
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether a random number is among those that this share of all numbers has.
    fn takes(self, random: u64) -> bool {
        // 53 bits, as many as the number has: below 1, so that a share of 1 takes all.
        ((random >> 11) as f64) < self.0 * (1_u64 << 53) as f64
    }
}

/// When digests are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Asking {
    /// One message in so many, at random, asks for a random user's digest.
    Every(u32),
    /// Each user asks once in so long, one user after the other.
    Interval(Duration),
}

/// What traffic is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// Where the random numbers begin.
    pub seed: u64,
    /// When the first change happens.
    pub start: Instant,
    /// How much later each message is than the one before.
    pub step: Duration,
    /// What the name of every user begins with.
    pub prefix: String,
    /// How many users.
    pub users: u32,
    /// How many alarms each user has.
    pub alarms: u32,
    /// How many of the changes are late.
    pub disorder: Share,
    /// By how much a late change is late at the most.
    pub max_delay: Duration,
    /// How many of the messages are changes sent again.
    pub duplicates: Share,
    /// How many of the messages are unusable.
    pub junk: Share,
    /// How many of the alarms, and of the users' requests, use numbered subjects.
    pub twins: Share,
    /// When digests are asked for.
    pub asking: Asking,
}

impl Recipe {
    /// A prefix that no other seed and start have.
    #[must_use]
    pub fn default_prefix(seed: u64, start: Instant) -> String {
        format!("emulate-{:08x}-", mixed(seed ^ mixed(start.0)) >> 32)
    }
}

/// What a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// An alarm changed.
    Change(Change),
    /// The user's digest is wanted.
    Request,
    /// Nothing that can be used; the number is its kind.
    Junk(u8),
}

/// A change of one alarm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Change {
    /// Which alarm of its user.
    pub alarm: u32,
    /// What it became.
    pub status: Status,
    /// When.
    pub at: Instant,
    /// Whether it was sent before.
    pub is_repeat: bool,
    /// Whether it is late.
    pub is_late: bool,
}

/// A message, and whose it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Message {
    /// Whose.
    pub user: u32,
    /// What it is.
    pub what: What,
}

impl Message {
    /// Whether it goes where requests go.
    #[must_use]
    pub const fn is_on_request_subject(&self) -> bool {
        match self.what {
            What::Change(_) => false,
            What::Request => true,
            What::Junk(kind) => kind as u64 == NUM_JUNK - 1,
        }
    }
}

/// The messages of a recipe, without end.
#[derive(Clone, Debug)]
pub struct Traffic {
    recipe: Recipe,
    random: Random,
    num_made: u64,
    num_asked: u64,
    recent: Vec<(u32, Change)>,
}

impl Traffic {
    /// From the first message on.
    #[must_use]
    pub fn new(recipe: Recipe) -> Self {
        Self {
            random: Random(recipe.seed),
            recipe,
            num_made: 0,
            num_asked: 0,
            recent: Vec::with_capacity(NUM_RECENT),
        }
    }

    fn make(&mut self) -> Message {
        let since_start = nanos(self.recipe.step).saturating_mul(self.num_made);
        self.num_made += 1;
        if let Some(user) = self.asks(since_start) {
            return Message {
                user,
                what: What::Request,
            };
        }
        if self.random.chance(self.recipe.junk) {
            return Message {
                user: self.user(),
                what: What::Junk(self.random.below(NUM_JUNK) as u8),
            };
        }
        if self.random.chance(self.recipe.duplicates)
            && let Some((user, change)) = self.one_of_recent()
        {
            return Message {
                user,
                what: What::Change(Change {
                    is_repeat: true,
                    ..change
                }),
            };
        }
        let (user, change) = (self.user(), self.change(since_start));
        self.remember(user, change);
        Message {
            user,
            what: What::Change(change),
        }
    }

    fn user(&mut self) -> u32 {
        self.random.below(u64::from(self.recipe.users)) as u32
    }

    /// Who asks for a digest now.
    fn asks(&mut self, since_start: u64) -> Option<u32> {
        match self.recipe.asking {
            Asking::Every(num) => (self.random.below(u64::from(num)) == 0).then(|| self.user()),
            Asking::Interval(interval) => {
                let users = u64::from(self.recipe.users);
                let due = u128::from(nanos(interval)) * u128::from(self.num_asked + 1);
                (due <= u128::from(since_start) * u128::from(users)).then(|| {
                    self.num_asked += 1;
                    ((self.num_asked - 1) % users) as u32
                })
            }
        }
    }

    fn change(&mut self, since_start: u64) -> Change {
        let alarm = self.random.below(u64::from(self.recipe.alarms)) as u32;
        let status = match self.random.below(5) {
            0 | 1 => Status::Cleared,
            2 | 3 => Status::Warning,
            _ => Status::Critical,
        };
        let is_late = self.random.chance(self.recipe.disorder);
        let delay = if is_late {
            self.random.below(nanos(self.recipe.max_delay).max(1)) + 1
        } else {
            0
        };
        let at = (self.recipe.start.0 + since_start).saturating_sub(delay);
        Change {
            alarm,
            status,
            at: Instant(at - at % NANOS_PER_MILLI),
            is_repeat: false,
            is_late,
        }
    }

    fn one_of_recent(&mut self) -> Option<(u32, Change)> {
        let place = self.random.below(self.recent.len() as u64);
        self.recent.get(place as usize).copied()
    }

    fn remember(&mut self, user: u32, change: Change) {
        let place = self.num_made as usize % NUM_RECENT;
        match self.recent.get_mut(place) {
            Some(oldest) => *oldest = (user, change),
            None => self.recent.push((user, change)),
        }
    }
}

impl Iterator for Traffic {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        Some(self.make())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How users, alarms and subjects are written.
///
/// Every number has as many digits as the largest, so that the bytes of two names compare as their numbers do.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
    users: u32,
    user_digits: usize,
    alarm_digits: usize,
    alarms: u32,
    twins: Share,
    seed: u64,
}

const ALARM_PREFIX: &str = "alarm-";

impl Names {
    /// Those of a recipe.
    #[must_use]
    pub fn new(recipe: &Recipe) -> Self {
        Self {
            prefix: recipe.prefix.clone(),
            users: recipe.users,
            user_digits: num_digits(recipe.users.saturating_sub(1)),
            alarm_digits: num_digits(recipe.alarms.saturating_sub(1)),
            alarms: recipe.alarms,
            twins: recipe.twins,
            seed: recipe.seed,
        }
    }

    /// What the name of every user begins with.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A user's name.
    #[must_use]
    pub fn user(&self, user: u32) -> String {
        format!("{}{user:0width$}", self.prefix, width = self.user_digits)
    }

    /// An alarm's name.
    #[must_use]
    pub fn alarm(&self, alarm: u32) -> String {
        format!("{ALARM_PREFIX}{alarm:0width$}", width = self.alarm_digits)
    }

    /// Which user this is the name of.
    #[must_use]
    pub fn read_user(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(&self.prefix)?;
        read_number(digits, self.user_digits).filter(|user| *user < self.users)
    }

    /// Which alarm this is the name of.
    #[must_use]
    pub fn read_alarm(&self, name: &str) -> Option<u32> {
        let digits = name.strip_prefix(ALARM_PREFIX)?;
        read_number(digits, self.alarm_digits).filter(|alarm| *alarm < self.alarms)
    }

    /// The number at the end of a message's subject; 0 where it has none.
    #[must_use]
    pub fn twin(&self, message: &Message) -> u8 {
        let of = match message.what {
            What::Change(change) => u64::from(change.alarm) << 1,
            What::Request => 1,
            What::Junk(_) => return 0,
        };
        let random = mixed(self.seed ^ mixed(u64::from(message.user) ^ (of << 32)));
        if self.twins.takes(random) {
            1 + (random % u64::from(NUM_TWINS)) as u8
        } else {
            0
        }
    }

    /// Writes the bytes of a message behind what is there.
    pub fn write(&self, message: &Message, out: &mut BytesMut) {
        match message.what {
            What::Change(change) => self.write_change(message.user, change, out),
            What::Request => {
                out.put_slice(b"{\"UserID\":\"");
                self.write_user(message.user, out);
                out.put_slice(b"\"}");
            }
            What::Junk(kind) => self.write_junk(message.user, kind, out),
        }
    }

    fn write_change(&self, user: u32, change: Change, out: &mut BytesMut) {
        out.put_slice(b"{\"AlarmID\":\"");
        out.put_slice(ALARM_PREFIX.as_bytes());
        write_number(change.alarm, self.alarm_digits, out);
        out.put_slice(b"\",\"UserID\":\"");
        self.write_user(user, out);
        out.put_slice(b"\",\"Status\":\"");
        out.put_slice(change.status.as_str().as_bytes());
        out.put_slice(b"\",\"ChangedAt\":\"");
        write_time(change.at, out);
        out.put_slice(b"\"}");
    }

    fn write_user(&self, user: u32, out: &mut BytesMut) {
        out.put_slice(self.prefix.as_bytes());
        write_number(user, self.user_digits, out);
    }

    fn write_junk(&self, user: u32, kind: u8, out: &mut BytesMut) {
        let user = self.user(user);
        let change = |alarm: &str, user: &str, status: &str, at: &str| {
            format!(
                "{{\"AlarmID\":\"{alarm}\",\"UserID\":\"{user}\",\"Status\":\"{status}\",\"ChangedAt\":\"{at}\"}}"
            )
        };
        let at = "2026-01-01T00:00:00Z";
        let text = match kind {
            0 => format!("{{\"UserID\":\"{user}\" junk"),
            1 => format!("{{\"UserID\":\"{user}\",\"Status\":\"WARNING\",\"ChangedAt\":\"{at}\"}}"),
            2 => change("junk", &user, "RED", at),
            3 => change("junk", &user, "WARNING", "2026-01-01 00:00:00Z"),
            4 => change("", &user, "WARNING", at),
            5 => format!("[\"{user}\"]"),
            6 => {
                // No UTF-8.
                out.put_slice(b"{\"UserID\":\"\xff\xfe");
                format!("{user}\"}}")
            }
            _ => format!("{{\"User\":\"{user}\"}}"),
        };
        out.put_slice(text.as_bytes());
    }
}

fn num_digits(number: u32) -> usize {
    number.checked_ilog10().unwrap_or(0) as usize + 1
}

fn read_number(digits: &str, num_digits: usize) -> Option<u32> {
    let is_number = digits.len() == num_digits && digits.bytes().all(|it| it.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

fn write_number(number: u32, num_digits: usize, out: &mut BytesMut) {
    for place in (0..num_digits as u32).rev() {
        out.put_u8(b'0' + (number / 10_u32.pow(place) % 10) as u8);
    }
}

/// RFC 3339 with milliseconds.
fn write_time(at: Instant, out: &mut BytesMut) {
    let seconds = i64::try_from(at.0 / 1_000_000_000).unwrap_or(i64::MAX);
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let milli = (at.0 / NANOS_PER_MILLI % 1000) as u32;
    write_number(time.year().unsigned_abs(), 4, out);
    for (sign, number) in [
        (b'-', time.month() as u8),
        (b'-', time.day()),
        (b'T', time.hour()),
        (b':', time.minute()),
        (b':', time.second()),
    ] {
        out.put_u8(sign);
        write_number(u32::from(number), 2, out);
    }
    out.put_u8(b'.');
    write_number(milli, 3, out);
    out.put_u8(b'Z');
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::check::messages;

    fn recipe() -> Recipe {
        let share = |number| Share::new(number).unwrap();
        Recipe {
            seed: 7,
            start: Instant::parse("2026-11-21T10:00:00Z").unwrap(),
            step: Duration::from_micros(100),
            prefix: "u-".to_owned(),
            users: 1000,
            alarms: 10,
            disorder: share(0.1),
            max_delay: Duration::from_secs(30),
            duplicates: share(0.05),
            junk: share(0.02),
            twins: share(0.25),
            asking: Asking::Every(20),
        }
    }

    fn bytes(names: &Names, message: &Message) -> Vec<u8> {
        let mut out = BytesMut::new();
        names.write(message, &mut out);
        out.to_vec()
    }

    fn hash(recipe: Recipe, num: usize) -> u64 {
        let names = Names::new(&recipe);
        Traffic::new(recipe)
            .take(num)
            .flat_map(|message| bytes(&names, &message))
            .fold(0, |hash, byte| mixed(hash ^ u64::from(byte)))
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_in_every_version() {
        assert_eq!(hash(recipe(), 10_000), GOLDEN);
        let other = Recipe {
            seed: 8,
            ..recipe()
        };
        assert_ne!(hash(other, 10_000), GOLDEN);
    }

    /// What changes it makes every printed seed worthless.
    const GOLDEN: u64 = 3_805_612_609_680_459_509;

    #[test]
    fn prefix_and_start_change_the_names_and_times_alone() {
        let other = Recipe {
            prefix: "other-".to_owned(),
            start: Instant(recipe().start.0 + 3_600_000_000_000),
            ..recipe()
        };
        let both = Traffic::new(recipe()).zip(Traffic::new(other));
        for (one, other) in both.take(10_000) {
            let (What::Change(mut was), What::Change(is)) = (one.what, other.what) else {
                assert_eq!(one, other);
                continue;
            };
            was.at.0 += 3_600_000_000_000;
            assert_eq!((one.user, was), (other.user, is));
        }
    }

    #[test]
    fn shares_hold() {
        let num = 200_000;
        let names = Names::new(&recipe());
        let messages: Vec<_> = Traffic::new(recipe()).take(num).collect();
        let share = |is: &dyn Fn(&Message) -> bool| {
            messages.iter().filter(|it| is(it)).count() as f64 / num as f64
        };
        let near = |found: f64, wanted: f64| (found - wanted).abs() < 0.005;
        let requests = share(&|it| it.what == What::Request);
        assert!(near(requests, 1.0 / 20.0), "{requests}");
        let junk = share(&|it| matches!(it.what, What::Junk(_)));
        assert!(near(junk, 0.95 * 0.02), "{junk}");
        let repeats = share(&|it| matches!(it.what, What::Change(it) if it.is_repeat));
        assert!(near(repeats, 0.95 * 0.98 * 0.05), "{repeats}");
        let late = share(&|it| matches!(it.what, What::Change(it) if it.is_late && !it.is_repeat));
        assert!(near(late, 0.95 * 0.98 * 0.95 * 0.1), "{late}");
        let twins = share(&|it| names.twin(it) > 0);
        assert!(near(twins, 0.98 * 0.25), "{twins}");
    }

    #[test]
    fn an_alarm_and_a_users_requests_stay_on_their_subject() {
        let names = Names::new(&recipe());
        let mut subjects = HashMap::new();
        for message in Traffic::new(recipe()).take(100_000) {
            let of = match message.what {
                What::Change(change) => Some(change.alarm),
                What::Request => None,
                What::Junk(_) => continue,
            };
            let twin = names.twin(&message);
            let known = *subjects.entry((message.user, of)).or_insert(twin);
            assert_eq!(known, twin);
        }
    }

    #[test]
    fn every_user_asks_once_an_interval() {
        let recipe = Recipe {
            users: 50,
            asking: Asking::Interval(Duration::from_secs(1)),
            ..recipe()
        };
        // Two seconds and a bit of messages.
        let mut asked = vec![0; 50];
        for message in Traffic::new(recipe).take(20_001) {
            if message.what == What::Request {
                asked[message.user as usize] += 1;
            }
        }
        assert_eq!(asked, vec![2; 50]);
    }

    #[test]
    fn messages_are_those_of_the_specification_and_junk_is_not() {
        let names = Names::new(&recipe());
        let mut kinds = [0; NUM_JUNK as usize];
        for message in Traffic::new(recipe()).take(50_000) {
            let written = bytes(&names, &message);
            let user = names.user(message.user);
            assert_eq!(names.read_user(&user), Some(message.user));
            match message.what {
                What::Request => assert_eq!(written, messages::request(&user).into_bytes()),
                What::Change(change) => {
                    let alarm = names.alarm(change.alarm);
                    assert_eq!(names.read_alarm(&alarm), Some(change.alarm));
                    let whole = messages::change(&user, &alarm, change.status, change.at);
                    let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
                    let at = read["ChangedAt"].as_str().unwrap();
                    assert_eq!(Instant::parse(at), Some(change.at));
                    // The specification's writer leaves zeros at the end of a second away.
                    let shortest = String::from_utf8(written).unwrap();
                    let shortest = shortest.replace(at, &change.at.to_string());
                    assert_eq!(shortest, whole);
                }
                What::Junk(kind) => {
                    kinds[kind as usize] += 1;
                    let shown = String::from_utf8_lossy(&written);
                    assert!(!is_usable(&written), "{shown}");
                }
            }
        }
        assert!(kinds.iter().all(|num| *num > 0), "{kinds:?}");
    }

    /// Whether anything of the specification could be read from it.
    fn is_usable(payload: &[u8]) -> bool {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(payload) else {
            return false;
        };
        let text = |name: &str| json.get(name)?.as_str().filter(|it| !it.is_empty());
        let is_change = text("AlarmID").is_some()
            && text("Status").is_some_and(|it| Status::ALL.iter().any(|s| s.as_str() == it))
            // The reader takes a space in place of the T; the specification does not.
            && text("ChangedAt").is_some_and(|at| at.contains('T') && Instant::parse(at).is_some());
        // Those that go where changes go are no requests.
        text("UserID").is_some() && is_change
    }

    #[test]
    fn a_foreign_name_is_nobodys() {
        let names = Names::new(&recipe());
        for name in ["u-1", "u-0001", "u-+01", "v-001", "u-", "u-00x"] {
            assert_eq!(names.read_user(name), None, "{name}");
        }
        let few = Names::new(&Recipe {
            users: 5,
            ..recipe()
        });
        assert_eq!(
            (few.read_user("u-4"), few.read_user("u-5")),
            (Some(4), None)
        );
    }

    proptest! {
        #[test]
        fn names_are_ordered_as_their_numbers(one in 0_u32..5000, other in 0_u32..5000) {
            let names = Names::new(&Recipe { alarms: 5000, users: 5000, ..recipe() });
            prop_assert_eq!(one.cmp(&other), names.alarm(one).cmp(&names.alarm(other)));
            prop_assert_eq!(one.cmp(&other), names.user(one).cmp(&names.user(other)));
        }

        #[test]
        fn times_do_not_leave_the_bounds(seed: u64, delay in 0_u64..100_000) {
            let recipe = Recipe { seed, max_delay: Duration::from_millis(delay), ..recipe() };
            let (start, step) = (recipe.start.0, nanos(recipe.step));
            for (i, message) in (0..500).zip(Traffic::new(recipe)) {
                if let What::Change(change) = message.what && !change.is_repeat {
                    let (at, now) = (change.at.0, start + i * step);
                    let earliest = now.saturating_sub(delay * NANOS_PER_MILLI + 1) - NANOS_PER_MILLI;
                    prop_assert!(at <= now && at >= earliest);
                    prop_assert!(change.is_late || now - at < NANOS_PER_MILLI);
                }
            }
        }
    }
}
