//! What is published: changes of random alarms, and requests.

use crate::draws::{Random, uuid};

/// The subjects of the daemon's input.
pub(crate) const CHANGE: &str = "AlarmStatusChanged";
pub(crate) const REQUEST: &str = "SendAlarmDigest";
/// Alarms of a user.
pub(crate) const ALARMS_PER_USER: u64 = 10;

/// One message to publish.
pub(crate) struct Message {
    pub(crate) subject: &'static str,
    pub(crate) payload: String,
}

impl Message {
    /// A change; `at` makes the instant, later for more.
    pub(crate) fn change(user: &str, alarm: &str, status: &str, at: u64) -> Self {
        let (minute, second, nano) = (at / 60_000_000 % 60, at / 1_000_000 % 60, at % 1_000_000);
        let hour = at / 3_600_000_000 % 24;
        Self {
            subject: CHANGE,
            payload: format!(
                r#"{{"AlarmID":"{alarm}","UserID":"{user}","Status":"{status}","ChangedAt":"2026-01-01T{hour:02}:{minute:02}:{second:02}.{nano:06}000Z"}}"#
            ),
        }
    }

    pub(crate) fn request(user: &str) -> Self {
        Self {
            subject: REQUEST,
            payload: format!(r#"{{"UserID":"{user}"}}"#),
        }
    }
}

/// How ids look.
#[derive(Clone, Copy)]
pub(crate) enum Ids {
    Uuids,
    /// 20 bytes.
    Texts,
}

impl Ids {
    pub(crate) fn user(self, number: u64) -> String {
        match self {
            Self::Uuids => uuid(number),
            Self::Texts => format!("user-{number:015}"),
        }
    }

    pub(crate) fn alarm(self, number: u64) -> String {
        match self {
            Self::Uuids => uuid(number + (1 << 40)),
            Self::Texts => format!("alarm-{number:014}"),
        }
    }
}

const STATUSES: [&str; 3] = ["CLEARED", "WARNING", "CRITICAL"];
const UNKNOWN: u8 = 3;
const REPORTED: u8 = 4;

/// Random changes, and a request now and then; what of it is answered by a digest is known.
pub(crate) struct Mixed {
    random: Random,
    num_users: u64,
    /// One message in so many is a request; 0: none is.
    request_every: u64,
    at: u64,
    left: u64,
    /// The status of each alarm, and whether it was reported.
    alarms: Vec<u8>,
    /// Requests that a digest answers, so far.
    pub(crate) num_digests: u64,
}

impl Mixed {
    pub(crate) fn new(seed: u64, num_messages: u64, num_users: u64, request_every: u64) -> Self {
        let num_alarms = num_users * ALARMS_PER_USER;
        Self {
            random: Random(seed),
            num_users,
            request_every,
            at: 0,
            left: num_messages,
            alarms: vec![UNKNOWN; usize::try_from(num_alarms).expect("a 64-bit machine")],
            num_digests: 0,
        }
    }

    fn request(&mut self, user: u64) -> Message {
        let first = (user * ALARMS_PER_USER) as usize;
        let mut is_due = false;
        for alarm in &mut self.alarms[first..first + ALARMS_PER_USER as usize] {
            if matches!(*alarm, 1 | 2) {
                is_due = true;
                *alarm |= REPORTED;
            }
        }
        self.num_digests += u64::from(is_due);
        Message::request(&Ids::Uuids.user(user))
    }

    fn change(&mut self, user: u64) -> Message {
        let alarm = user * ALARMS_PER_USER + self.random.below(ALARMS_PER_USER);
        let status = self.random.below(3);
        let known = &mut self.alarms[alarm as usize];
        if *known != status as u8 | REPORTED {
            *known = status as u8;
        }
        let ids = Ids::Uuids;
        let status = STATUSES[status as usize];
        Message::change(&ids.user(user), &ids.alarm(alarm), status, self.at)
    }
}

impl Iterator for Mixed {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        self.left = self.left.checked_sub(1)?;
        self.at += 1;
        let user = self.random.below(self.num_users);
        let is_request = self.request_every > 0 && self.at.is_multiple_of(self.request_every);
        Some(if is_request {
            self.request(user)
        } else {
            self.change(user)
        })
    }
}

/// Each alarm of so many users once, the users in another order than their numbers'; the instants begin after `from`.
pub(crate) fn every_alarm(
    ids: Ids,
    num_users: u64,
    alarms_per_user: u64,
    from: u64,
) -> impl Iterator<Item = Message> {
    // An odd factor visits every number below a power of two once.
    let room = num_users.next_power_of_two();
    let users = move || {
        (0..room)
            .map(move |it| it.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (room - 1))
            .filter(move |&user| user < num_users)
    };
    let alarms = (0..alarms_per_user)
        .flat_map(move |alarm| users().map(move |user| (user, user * alarms_per_user + alarm)));
    alarms.zip(from + 1..).map(move |((user, alarm), at)| {
        Message::change(&ids.user(user), &ids.alarm(alarm), "CRITICAL", at)
    })
}
