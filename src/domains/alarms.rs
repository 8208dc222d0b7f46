//! Alarms of users, and the digests made from them.
//!
//! | on record | newer change | same instant, status not seen at it | older change, or a repeat | `SendAlarmDigest` |
//! |---|---|---|---|---|
//! | nothing | recorded | | | nothing due |
//! | active, not reported | recorded | recorded | ignored | in the digest, then reported |
//! | active, reported | recorded; due again if the status differs | recorded, due again | ignored | not due |
//! | cleared | recorded | recorded | ignored | not due |
//! | cleared, and kept long enough | recorded | recorded | recorded: unknown again | not due |
//!
//! I-09: a digest runs from oldest to newest. I-10: due ⊆ digest ⊆ active. A cleared alarm stays on record as
//! a tombstone, because a late older `CRITICAL` would otherwise bring it back.

use std::time::Duration;

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

use std::hash::BuildHasher;

use crate::core::ids::{Id, UserId};
use crate::core::partition::{Decision, Domain};
use crate::core::rows::{CorruptRow, Reader, Rows, put_id, put_timestamp, put_varint};
use crate::core::time::Timestamp;

use super::ALARM_TABLE;

/// Severity of an alarm. The numbers are persisted.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum Status {
    /// Over.
    Cleared = 0,
    /// Worth a look.
    Warning = 1,
    /// Wakes someone.
    Critical = 2,
}

impl Status {
    /// Every status, in order of its number.
    pub const ALL: [Self; 3] = [Self::Cleared, Self::Warning, Self::Critical];

    /// Its name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cleared => "CLEARED",
            Self::Warning => "WARNING",
            Self::Critical => "CRITICAL",
        }
    }

    /// Reads its name on the wire, in exactly that case.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }

    /// Whether someone should know of it.
    #[must_use]
    pub fn is_active(self) -> bool {
        self != Self::Cleared
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Names an alarm among those of its user.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct AlarmId(pub Id);

/// What a message asks of this domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// An alarm's status changed.
    StatusChanged {
        /// Whose alarm.
        user: UserId,
        /// Which alarm.
        alarm: AlarmId,
        /// Its status from then on.
        status: Status,
        /// When it changed.
        changed_at: Timestamp,
    },
    /// A user wants everything that is due.
    SendDigest {
        /// Which user.
        user: UserId,
    },
}

impl Command {
    /// Whose it is.
    #[must_use]
    pub const fn user(&self) -> &UserId {
        match self {
            Self::StatusChanged { user, .. } | Self::SendDigest { user } => user,
        }
    }
}

/// What is on record for one alarm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct AlarmRow {
    /// The newest status.
    pub status: Status,
    /// When it changed to it.
    pub changed_at: Timestamp,
    /// The statuses seen at that instant, a bit each.
    pub seen: u8,
    /// Whether a digest has reported this status since it last changed.
    pub is_reported: bool,
    /// Of a tombstone: the later of change and arrival, in seconds since 1970, rounded up. Else 0.
    pub cleared_at_s: u32,
}

impl AlarmRow {
    /// Whether the next digest has to report it.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.status.is_active() && !self.is_reported
    }

    /// Whether it is a tombstone that a message of this instant need not heed any more.
    fn is_forgotten(&self, at: Timestamp, retention: Duration) -> bool {
        let kept_until = Timestamp::from_seconds(u64::from(self.cleared_at_s)).plus(retention);
        !self.status.is_active() && kept_until < at
    }
}

/// One row that moves.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Whose alarm.
    pub user: UserId,
    /// Which alarm.
    pub alarm: AlarmId,
    /// What is on record from now on; `None`: nothing.
    pub row: Option<AlarmRow>,
}

/// One alarm in a digest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DigestEntry {
    /// Which alarm.
    pub alarm: AlarmId,
    /// Its newest status: never cleared.
    pub status: Status,
    /// When it changed to it.
    pub changed_at: Timestamp,
}

/// Everything that was due for a user, from oldest to newest.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Digest {
    /// Whose alarms.
    pub user: UserId,
    /// The alarms, ordered by instant, then by the bytes of the id.
    pub alarms: Vec<DigestEntry>,
}

/// What is published for a request when nothing is due.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum WhenEmpty {
    /// Nothing.
    #[default]
    Skip,
    /// A digest without alarms.
    Send,
}

/// What this domain's configuration says.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long a cleared alarm stays on record after the later of its change and its arrival.
    pub tombstone_retention: Duration,
    /// What is published when nothing is due.
    pub when_empty: WhenEmpty,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tombstone_retention: Duration::from_secs(14 * 24 * 3600),
            when_empty: WhenEmpty::Skip,
        }
    }
}

/// Counts of what was decided.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tally {
    /// Changes that were recorded, by [`Status`] number.
    pub recorded: [u64; 3],
    /// Changes older than what is on record.
    pub stale: u64,
    /// Changes that repeat what was seen at that instant.
    pub duplicate: u64,
    /// The number of alarms of each digest that was decided.
    pub digest_sizes: Vec<u32>,
    /// Requests for which nothing was due and nothing is published.
    pub skipped: u64,
}

/// How long a forgotten tombstone is still kept: decisions go by each message's own timestamp, and a broker's
/// clock may step back.
const EXPIRY_SLACK: Duration = Duration::from_secs(3600);
/// How many users one call of `expire` looks at.
const USERS_PER_EXPIRY: usize = 256;

/// The alarms of the users of one partition.
pub struct Alarms {
    settings: Settings,
    hasher: DefaultHashBuilder,
    /// Places in `users`, found by the hash of the user's id.
    index: HashTable<u32>,
    /// A user keeps its place for as long as it has alarms: snapshots go by it.
    users: Slab<User>,
    num_by_status: [u64; 3],
}

struct User {
    id: UserId,
    /// In order of the alarm's id.
    alarms: Vec<Alarm>,
}

struct Alarm {
    id: AlarmId,
    changed_at: Timestamp,
    cleared_at_s: u32,
    /// The row's [`flags`].
    flags: u8,
}

impl Alarm {
    fn row(&self) -> AlarmRow {
        AlarmRow {
            status: status_of(self.flags).unwrap_or(Status::Critical),
            changed_at: self.changed_at,
            seen: self.flags >> 3 & 7,
            is_reported: self.flags & 4 != 0,
            cleared_at_s: self.cleared_at_s,
        }
    }

    fn set(&mut self, row: &AlarmRow) {
        self.changed_at = row.changed_at;
        self.cleared_at_s = row.cleared_at_s;
        self.flags = flags(row);
    }
}

/// A row's small fields in one byte, as they are stored: status (2 bits), reported (1), seen (3).
fn flags(row: &AlarmRow) -> u8 {
    row.status as u8 | u8::from(row.is_reported) << 2 | row.seen << 3
}

fn status_of(flags: u8) -> Option<Status> {
    Status::ALL.get(usize::from(flags & 3)).copied()
}

impl Alarms {
    /// What is on record for an alarm.
    #[must_use]
    pub fn row(&self, user: &UserId, alarm: &AlarmId) -> Option<AlarmRow> {
        let alarms = &self.user(user)?.alarms;
        let place = alarms.binary_search_by(|known| known.id.cmp(alarm)).ok()?;
        alarms.get(place).map(Alarm::row)
    }

    /// How many alarms are on record, by [`Status`] number.
    #[must_use]
    pub const fn num_by_status(&self) -> [u64; 3] {
        self.num_by_status
    }

    /// How many users have an alarm on record.
    #[must_use]
    pub fn num_users(&self) -> usize {
        self.users.len()
    }

    /// Every row on record, in order of user and alarm.
    #[must_use]
    pub fn rows(&self) -> Vec<(UserId, AlarmId, AlarmRow)> {
        let mut rows: Vec<_> = self
            .users
            .iter()
            .flat_map(|(_, user)| {
                user.alarms
                    .iter()
                    .map(|alarm| (user.id.clone(), alarm.id.clone(), alarm.row()))
            })
            .collect();
        rows.sort_by(|one, two| (&one.0, &one.1).cmp(&(&two.0, &two.1)));
        rows
    }

    fn user(&self, user: &UserId) -> Option<&User> {
        let hash = self.hasher.hash_one(user);
        let is_user = |&place: &u32| {
            self.users
                .get(place as usize)
                .is_some_and(|it| it.id == *user)
        };
        self.users.get(*self.index.find(hash, is_user)? as usize)
    }

    fn on_status_changed(
        &self,
        at: Timestamp,
        (user, alarm): (&UserId, &AlarmId),
        (status, changed_at): (Status, Timestamp),
        decision: &mut Decision<Self>,
    ) {
        let known = self
            .row(user, alarm)
            .filter(|row| !row.is_forgotten(at, self.settings.tombstone_retention));
        let (seen, is_reported) = match known {
            None => (status.bit(), false),
            Some(row) if changed_at < row.changed_at => {
                decision.tally.stale += 1;
                return;
            }
            Some(row) if changed_at == row.changed_at => {
                if row.seen & status.bit() != 0 {
                    decision.tally.duplicate += 1;
                    return;
                }
                (row.seen | status.bit(), false)
            }
            Some(row) => (status.bit(), row.is_reported && row.status == status),
        };
        let cleared_at_s = if status.is_active() {
            0
        } else {
            u32::try_from(changed_at.max(at).as_seconds_rounded_up()).unwrap_or(u32::MAX)
        };
        let row = AlarmRow {
            status,
            changed_at,
            seen,
            is_reported,
            cleared_at_s,
        };
        if let Some(count) = decision.tally.recorded.get_mut(status as usize) {
            *count += 1;
        }
        decision.changes.push(Change {
            user: user.clone(),
            alarm: alarm.clone(),
            row: Some(row),
        });
    }

    fn on_send_digest(&self, user: &UserId, decision: &mut Decision<Self>) {
        let known = self
            .user(user)
            .map(|user| user.alarms.as_slice())
            .unwrap_or_default();
        let due: Vec<_> = known
            .iter()
            .map(|alarm| (alarm, alarm.row()))
            .filter(|(_, row)| row.is_due())
            .collect();
        if due.is_empty() && self.settings.when_empty == WhenEmpty::Skip {
            decision.tally.skipped += 1;
            return;
        }
        decision
            .tally
            .digest_sizes
            .push(u32::try_from(due.len()).unwrap_or(u32::MAX));
        decision
            .changes
            .extend(due.iter().map(|(alarm, row)| Change {
                user: user.clone(),
                alarm: alarm.id.clone(),
                row: Some(AlarmRow {
                    is_reported: true,
                    ..*row
                }),
            }));
        let mut alarms: Vec<_> = due
            .into_iter()
            .map(|(alarm, row)| DigestEntry {
                alarm: alarm.id.clone(),
                status: row.status,
                changed_at: row.changed_at,
            })
            .collect();
        alarms.sort_by(|one, two| (one.changed_at, &one.alarm).cmp(&(two.changed_at, &two.alarm)));
        decision.publish = Some(Digest {
            user: user.clone(),
            alarms,
        });
    }

    fn put(&mut self, user: UserId, alarm: AlarmId, row: &AlarmRow) {
        let Self {
            hasher,
            index,
            users,
            num_by_status,
            ..
        } = self;
        let hash = hasher.hash_one(&user);
        let is_user = |&place: &u32| users.get(place as usize).is_some_and(|it| it.id == user);
        let place = if let Some(&place) = index.find(hash, is_user) {
            place
        } else {
            let place = u32::try_from(users.insert(User {
                id: user,
                alarms: Vec::new(),
            }))
            .expect("a partition has fewer than 2^32 users");
            let hash_of = |&place: &u32| {
                users
                    .get(place as usize)
                    .map_or(0, |user| hasher.hash_one(&user.id))
            };
            index.insert_unique(hash, place, hash_of);
            place
        };
        let Some(User { alarms, .. }) = users.get_mut(place as usize) else {
            return;
        };
        count(num_by_status, row.status, 1);
        match alarms.binary_search_by(|known| known.id.cmp(&alarm)) {
            Ok(place) => {
                if let Some(known) = alarms.get_mut(place) {
                    count(num_by_status, known.row().status, -1);
                    known.set(row);
                }
            }
            Err(place) => {
                // Most users have few alarms: growing by an eighth wastes less memory than doubling.
                if alarms.len() == alarms.capacity() {
                    alarms.reserve_exact(1 + alarms.len() / 8);
                }
                let (changed_at, cleared_at_s) = (row.changed_at, row.cleared_at_s);
                alarms.insert(
                    place,
                    Alarm {
                        id: alarm,
                        changed_at,
                        cleared_at_s,
                        flags: flags(row),
                    },
                );
            }
        }
    }

    fn remove(&mut self, user: &UserId, alarm: &AlarmId) {
        let hash = self.hasher.hash_one(user);
        let users = &mut self.users;
        let is_user = |&place: &u32| users.get(place as usize).is_some_and(|it| it.id == *user);
        let Ok(entry) = self.index.find_entry(hash, is_user) else {
            return;
        };
        let place = *entry.get() as usize;
        let Some(User { alarms, .. }) = users.get_mut(place) else {
            return;
        };
        if let Ok(known) = alarms.binary_search_by(|known| known.id.cmp(alarm)) {
            let removed = alarms.remove(known);
            count(&mut self.num_by_status, removed.row().status, -1);
        }
        if alarms.is_empty() {
            users.remove(place);
            entry.remove();
        }
    }
}

fn count(num_by_status: &mut [u64; 3], status: Status, change: i64) {
    if let Some(num) = num_by_status.get_mut(status as usize) {
        *num = num.saturating_add_signed(change);
    }
}

impl Domain for Alarms {
    type Command = Command;
    type Change = Change;
    type Outgoing = Digest;
    type Tally = Tally;
    type Settings = Settings;

    fn new(settings: Settings) -> Self {
        Self {
            settings,
            hasher: DefaultHashBuilder::default(),
            index: HashTable::new(),
            users: Slab::new(),
            num_by_status: [0; 3],
        }
    }

    fn decide(&self, at: Timestamp, command: &Command, decision: &mut Decision<Self>) {
        match command {
            Command::StatusChanged {
                user,
                alarm,
                status,
                changed_at,
            } => {
                self.on_status_changed(at, (user, alarm), (*status, *changed_at), decision);
            }
            Command::SendDigest { user } => self.on_send_digest(user, decision),
        }
    }

    fn evolve(&mut self, change: Change) {
        match change.row {
            Some(row) => self.put(change.user, change.alarm, &row),
            None => self.remove(&change.user, &change.alarm),
        }
    }

    fn encode(change: &Change, rows: &mut Rows) {
        let mut key = Vec::with_capacity(64);
        key.push(ALARM_TABLE);
        put_id(&mut key, &change.user.0);
        put_id(&mut key, &change.alarm.0);
        let Some(row) = &change.row else {
            return rows.push(&key, None);
        };
        let mut value = Vec::with_capacity(16);
        value.push(flags(row));
        put_timestamp(&mut value, row.changed_at);
        if !row.status.is_active() {
            value.extend_from_slice(&row.cleared_at_s.to_be_bytes());
        }
        rows.push(&key, Some(&value));
    }

    fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Change, CorruptRow> {
        let mut reader = Reader::new(key);
        if reader.byte()? != ALARM_TABLE {
            return Err(CorruptRow("its table is unknown"));
        }
        let user = reader.user()?;
        let alarm = AlarmId(reader.id()?);
        reader.finish()?;
        let row = value.map(decode_row).transpose()?;
        Ok(Change { user, alarm, row })
    }

    fn encode_outgoing(digest: &Digest, out: &mut Vec<u8>) {
        put_id(out, &digest.user.0);
        put_varint(out, digest.alarms.len() as u64);
        for entry in &digest.alarms {
            put_id(out, &entry.alarm.0);
            out.push(entry.status as u8);
            put_timestamp(out, entry.changed_at);
        }
    }

    fn decode_outgoing(reader: &mut Reader<'_>) -> Result<Digest, CorruptRow> {
        let user = reader.user()?;
        let num_alarms = reader.varint()?;
        let mut alarms = Vec::new();
        for _ in 0..num_alarms {
            let alarm = AlarmId(reader.id()?);
            let status = status_of(reader.byte()?).ok_or(CorruptRow("a status is unknown"))?;
            let changed_at = reader.timestamp()?;
            alarms.push(DigestEntry {
                alarm,
                status,
                changed_at,
            });
        }
        Ok(Digest { user, alarms })
    }

    fn snapshot(&self, from: usize, max_bytes: usize, rows: &mut Rows) -> Option<usize> {
        for place in from..self.users.capacity() {
            if rows.as_bytes().len() >= max_bytes {
                return Some(place);
            }
            let Some(user) = self.users.get(place) else {
                continue;
            };
            for alarm in &user.alarms {
                let (user, alarm, row) = (user.id.clone(), alarm.id.clone(), Some(alarm.row()));
                Self::encode(&Change { user, alarm, row }, rows);
            }
        }
        None
    }

    fn expire(&self, now: Timestamp, from: usize, changes: &mut Vec<Change>) -> usize {
        let now = now.minus(EXPIRY_SLACK);
        let retention = self.settings.tombstone_retention;
        let from = if from < self.users.capacity() {
            from
        } else {
            0
        };
        let to = self.users.capacity().min(from + USERS_PER_EXPIRY);
        for user in (from..to).filter_map(|place| self.users.get(place)) {
            let forgotten = user
                .alarms
                .iter()
                .filter(|alarm| alarm.row().is_forgotten(now, retention));
            changes.extend(forgotten.map(|alarm| Change {
                user: user.id.clone(),
                alarm: alarm.id.clone(),
                row: None,
            }));
        }
        to
    }
}

fn decode_row(value: &[u8]) -> Result<AlarmRow, CorruptRow> {
    let mut reader = Reader::new(value);
    let flags = reader.byte()?;
    let status = status_of(flags).ok_or(CorruptRow("a status is unknown"))?;
    let changed_at = reader.timestamp()?;
    let cleared_at_s = if status.is_active() {
        0
    } else {
        u32::from_be_bytes(reader.array()?)
    };
    reader.finish()?;
    let (seen, is_reported) = (flags >> 3 & 7, flags & 4 != 0);
    Ok(AlarmRow {
        status,
        changed_at,
        seen,
        is_reported,
        cleared_at_s,
    })
}
