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

use std::cell::Cell;
use std::hash::BuildHasher;
use std::hint::black_box;

use crate::core::ids::{Id, UserId};
use crate::core::partition::{Decision, Domain};
use crate::core::rows::{CorruptRow, Reader, Rows, id_len, put_id, put_timestamp, put_varint};
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
            tombstone_retention: Duration::from_hours(14 * 24),
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
const EXPIRY_SLACK: Duration = Duration::from_hours(1);
/// How many users one call of `expire` looks at.
const USERS_PER_EXPIRY: usize = 256;

/// The alarms of the users of one partition.
pub struct Alarms {
    settings: Settings,
    hasher: DefaultHashBuilder,
    index: HashTable<IndexEntry>,
    /// A user keeps its place for as long as it has alarms: snapshots go by it.
    users: Slab<User>,
    num_by_status: [u64; 3],
    /// Where the last search ended: `decide` finds an alarm, and `evolve` needs the same one. Only a hint: whoever
    /// goes by it compares the ids.
    last: Cell<Hint>,
}

/// Where a user may stand. Its tag stands beside the place, so that a search need not go there to see that it is
/// another's.
#[derive(Clone, Copy)]
struct IndexEntry {
    tag: u32,
    /// In `users`.
    place: u32,
}

impl IndexEntry {
    const fn hash(self) -> u64 {
        hash_of(self.tag)
    }
}

/// The index's hash of a tag, of which the table looks at the lowest and at the seven highest bits: both must depend on
/// all of the tag. Fibonacci hashing, Knuth, The Art of Computer Programming, 6.4.
const fn hash_of(tag: u32) -> u64 {
    (tag as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(32)
}

/// Where no user stands.
const NOWHERE: u32 = u32::MAX;

/// Where a user and an alarm of its may stand.
#[derive(Clone, Copy, Default)]
struct Hint {
    /// In `users`.
    user: u32,
    /// In the user's `alarms`.
    alarm: usize,
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
        let place = self.place_of(user)?;
        let alarms = &self.users.get(place as usize)?.alarms;
        alarms.get(self.find(alarms, alarm).ok()?).map(Alarm::row)
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

    /// How many alarms the next digests will report.
    #[must_use]
    pub fn num_due(&self) -> usize {
        let alarms = self.users.iter().flat_map(|(_, user)| &user.alarms);
        alarms.filter(|alarm| alarm.row().is_due()).count()
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
        self.users.get(self.place_of(user)? as usize)
    }

    /// The place of a user in `users`.
    fn place_of(&self, user: &UserId) -> Option<u32> {
        let last = self.last.get();
        if self.is_at(user, last.user) {
            return Some(last.user);
        }
        let place = self.search(user)?;
        self.last.set(Hint {
            user: place,
            ..last
        });
        Some(place)
    }

    fn search(&self, user: &UserId) -> Option<u32> {
        let tag = self.tag(user);
        let is_user = |entry: &IndexEntry| entry.tag == tag && self.is_at(user, entry.place);
        Some(self.index.find(hash_of(tag), is_user)?.place)
    }

    fn tag(&self, user: &UserId) -> u32 {
        self.hasher.hash_one(user) as u32
    }

    fn is_at(&self, user: &UserId, place: u32) -> bool {
        self.users
            .get(place as usize)
            .is_some_and(|known| known.id == *user)
    }

    /// Where an alarm stands among those of its user, or would stand.
    fn find(&self, alarms: &[Alarm], alarm: &AlarmId) -> Result<usize, usize> {
        let last = self.last.get();
        if alarms
            .get(last.alarm)
            .is_some_and(|known| known.id == *alarm)
        {
            return Ok(last.alarm);
        }
        let found = alarms.binary_search_by(|known| known.id.cmp(alarm))?;
        self.last.set(Hint {
            alarm: found,
            ..last
        });
        Ok(found)
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
        let place = self.place_of(&user).unwrap_or_else(|| self.add(user));
        let found = self
            .users
            .get(place as usize)
            .map_or(Err(0), |user| self.find(&user.alarms, &alarm));
        let Self {
            users,
            num_by_status,
            ..
        } = self;
        let Some(User { alarms, .. }) = users.get_mut(place as usize) else {
            return;
        };
        count(num_by_status, row.status, 1);
        match found {
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

    /// A place for a user who has none.
    fn add(&mut self, id: UserId) -> u32 {
        let tag = self.tag(&id);
        let alarms = Vec::new();
        let place = u32::try_from(self.users.insert(User { id, alarms }))
            .expect("a partition has fewer than 2^32 users");
        let entry = IndexEntry { tag, place };
        self.index
            .insert_unique(entry.hash(), entry, |entry| entry.hash());
        place
    }

    fn remove(&mut self, user: &UserId, alarm: &AlarmId) {
        let tag = self.tag(user);
        let users = &mut self.users;
        let is_user = |entry: &IndexEntry| {
            let known = users.get(entry.place as usize);
            entry.tag == tag && known.is_some_and(|known| known.id == *user)
        };
        let Ok(entry) = self.index.find_entry(hash_of(tag), is_user) else {
            return;
        };
        let place = entry.get().place as usize;
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
            last: Cell::default(),
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

    const STEPS: usize = 3;

    /// The index, the user, the user's alarms.
    fn approach(&self, command: &Command, step: usize, place: u32) -> u32 {
        if step == 0 {
            let tag = self.tag(command.user());
            let entry = self.index.find(hash_of(tag), |entry| entry.tag == tag);
            return entry.map_or(NOWHERE, |entry| entry.place);
        }
        let alarms = self.users.get(place as usize).map(|user| &user.alarms);
        if step == 1 {
            black_box(alarms.map(Vec::len));
        } else if let Some(alarms) = alarms {
            // All the lines of memory that most users' alarms take.
            let lines = alarms.iter().step_by(2).take(8);
            black_box(lines.fold(0, |sum, alarm| sum ^ alarm.flags));
        }
        place
    }

    fn evolve(&mut self, change: Change) {
        match change.row {
            Some(row) => self.put(change.user, change.alarm, &row),
            None => self.remove(&change.user, &change.alarm),
        }
    }

    fn encode(change: &Change, rows: &mut Rows) {
        let key_len = 1 + id_len(&change.user.0) + id_len(&change.alarm.0);
        let value_len = change
            .row
            .map(|row| if row.status.is_active() { 9 } else { 13 });
        rows.push_sized(key_len, value_len, |out| {
            out.push(ALARM_TABLE);
            put_id(out, &change.user.0);
            put_id(out, &change.alarm.0);
            let Some(row) = &change.row else {
                return;
            };
            out.push(flags(row));
            put_timestamp(out, row.changed_at);
            if !row.status.is_active() {
                out.extend_from_slice(&row.cleared_at_s.to_be_bytes());
            }
        });
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
    const RETENTION_S: u64 = 14 * 24 * 3600;

    fn user(name: &str) -> UserId {
        UserId(Id::new(name).expect("a valid id"))
    }

    fn alarm(name: &str) -> AlarmId {
        AlarmId(Id::new(name).expect("a valid id"))
    }

    fn seconds(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    fn changed(whose: &str, which: &str, status: Status, changed_at: u64) -> Command {
        Command::StatusChanged {
            user: user(whose),
            alarm: alarm(which),
            status,
            changed_at: seconds(changed_at),
        }
    }

    fn request(whose: &str) -> Command {
        Command::SendDigest { user: user(whose) }
    }

    /// A state with the rows that it has written.
    struct Live {
        state: Alarms,
        written: Rows,
    }

    impl Live {
        fn new(settings: Settings) -> Self {
            let (state, written) = (Alarms::new(settings), Rows::default());
            Self { state, written }
        }

        fn apply(&mut self, at: Timestamp, command: &Command) -> Decision<Alarms> {
            let mut decision = Decision::default();
            self.state.decide(at, command, &mut decision);
            self.evolve(&decision.changes);
            decision
        }

        fn expire(&mut self, now: Timestamp, from: usize) -> usize {
            let mut changes = Vec::new();
            let next = self.state.expire(now, from, &mut changes);
            self.evolve(&changes);
            next
        }

        fn evolve(&mut self, changes: &[Change]) {
            for change in changes {
                Alarms::encode(change, &mut self.written);
                self.state.evolve(change.clone());
            }
        }

        /// `aC2` and so on: alarm, status, instant; `S` is a request. Everything arrives at once.
        fn play(&mut self, arrivals: &str) -> Vec<String> {
            let mut digests = Vec::new();
            for word in arrivals.split_whitespace() {
                let command = if word == "S" {
                    request("u")
                } else {
                    let status = match &word[1..2] {
                        "W" => Status::Warning,
                        "C" => Status::Critical,
                        "X" => Status::Cleared,
                        other => panic!("{other} is no status"),
                    };
                    changed("u", &word[..1], status, word[2..].parse().unwrap())
                };
                let decision = self.apply(seconds(100), &command);
                if word == "S" {
                    digests.push(
                        decision
                            .publish
                            .as_ref()
                            .map_or_else(|| "none".into(), print),
                    );
                }
            }
            digests
        }
    }

    fn print(digest: &Digest) -> String {
        let entries: Vec<_> = digest
            .alarms
            .iter()
            .map(|entry| {
                let letter = ["X", "W", "C"][entry.status as usize];
                let at = entry.changed_at.as_nanos() / 1_000_000_000;
                format!("{}{letter}{at}", entry.alarm.0)
            })
            .collect();
        format!("[{}]", entries.join(", "))
    }

    fn recovered(parts: &[&Rows]) -> Alarms {
        let mut state = Alarms::new(Settings::default());
        for row in parts.iter().flat_map(|rows| rows.iter()) {
            let (key, value) = row.expect("a whole row");
            state.evolve(Alarms::decode(key, value).expect("a row of ours"));
        }
        state
    }

    fn assert_counts_are_those_of_a_recount(state: &Alarms) {
        let rows = state.rows();
        let mut recount = [0; 3];
        for (_, _, row) in &rows {
            recount[row.status as usize] += 1;
        }
        assert_eq!(state.num_by_status(), recount);
        let users: BTreeSet<_> = rows.iter().map(|(user, _, _)| user).collect();
        assert_eq!(state.num_users(), users.len());
        let is_due = |(_, _, row): &&(UserId, AlarmId, AlarmRow)| row.is_due();
        assert_eq!(state.num_due(), state.rows().iter().filter(is_due).count());
    }

    #[test]
    fn the_examples_of_the_page_hold_row_by_row() {
        for (arrivals, expected) in [
            ("S", "none"),
            ("aC1 aW2 S", "[aW2]"),
            ("aC2 aW1 S", "[aC2]"),
            ("aC1 S S", "[aC1] none"),
            ("aC1 S aC2 S", "[aC1] none"),
            ("aC1 S aX2 aC3 S", "[aC1] [aC3]"),
            ("aW1 S aC2 aW3 S", "[aW1] [aW3]"),
            ("aC1 S aC3 aW2 S", "[aC1] none"),
            ("aX2 aC1 S", "none"),
            ("bC2 aW1 S", "[aW1, bC2]"),
            ("aC2 S bW1 S", "[aC2] [bW1]"),
            ("aC1 aX1 S", "none"),
            // Beyond the page's table: its rules, where an example makes them plain.
            ("aW1 S aC2 S", "[aW1] [aC2]"),
            ("aX1 aC1 S", "[aC1]"),
            ("aC1 aX1 aC1 S", "none"),
            ("aC1 S aW1 S aC1 S", "[aC1] [aW1] none"),
            ("aC1 S aC1 S", "[aC1] none"),
            ("aC1 S aX2 S aC3 S", "[aC1] none [aC3]"),
            ("bW1 aC1 S", "[aC1, bW1]"),
        ] {
            let digests = Live::new(Settings::default()).play(arrivals).join(" ");
            assert_eq!(digests, expected, "{arrivals}");
        }
    }

    #[test]
    fn an_empty_digest_is_sent_only_where_it_is_wanted() {
        let when_empty = WhenEmpty::Send;
        let mut live = Live::new(Settings {
            when_empty,
            ..Settings::default()
        });
        assert_eq!(live.play("S aC1 aX2 S"), ["[]", "[]"]);
        let decision = Live::new(Settings::default()).apply(seconds(1), &request("u"));
        assert_eq!((decision.tally.skipped, decision.publish), (1, None));
    }

    #[test]
    fn users_never_see_each_others_alarms() {
        let mut live = Live::new(Settings::default());
        live.apply(seconds(9), &changed("u", "a", Status::Critical, 1));
        live.apply(seconds(9), &changed("U", "a", Status::Warning, 2));
        let digest = live.apply(seconds(9), &request("U")).publish.unwrap();
        assert_eq!(
            (digest.user.clone(), print(&digest)),
            (user("U"), "[aW2]".into())
        );
        assert_eq!(
            print(&live.apply(seconds(9), &request("u")).publish.unwrap()),
            "[aC1]"
        );
    }

    #[test]
    fn a_digest_is_ordered_by_instant_and_then_by_the_bytes_of_the_id() {
        let mut live = Live::new(Settings::default());
        let by_bytes = [
            "0f8fad5b",
            UUID,
            "0f8fad5b-e",
            "1",
            "A",
            "a",
            "ä",
            "\u{1F514}",
        ];
        for name in by_bytes.iter().rev() {
            live.apply(seconds(9), &changed("u", name, Status::Warning, 5));
        }
        live.apply(seconds(9), &changed("u", "zz", Status::Warning, 4));
        let digest = live.apply(seconds(9), &request("u")).publish.unwrap();
        let names: Vec<_> = digest
            .alarms
            .iter()
            .map(|it| it.alarm.0.to_string())
            .collect();
        assert_eq!(names[0], "zz");
        assert_eq!(names[1..], by_bytes);
    }

    #[test]
    fn what_was_decided_is_counted() {
        let mut live = Live::new(Settings::default());
        let mut tally = Tally::default();
        for (status, at) in [
            (Status::Critical, 5),
            (Status::Warning, 4),
            (Status::Critical, 5),
            (Status::Cleared, 6),
        ] {
            let mut decision = Decision {
                tally,
                ..Decision::default()
            };
            live.state
                .decide(seconds(9), &changed("u", "a", status, at), &mut decision);
            live.evolve(&decision.changes);
            tally = decision.tally;
        }
        assert_eq!(
            (tally.recorded, tally.stale, tally.duplicate),
            ([1, 0, 1], 1, 1)
        );
    }

    #[test]
    fn a_tombstone_is_kept_for_14_days_after_the_later_of_change_and_arrival() {
        let day = 24 * 3600;
        for (cleared_at, arrived_at) in [(50 * day, 10 * day), (10 * day, 50 * day)] {
            let kept_until = 50 * day + RETENTION_S;
            for (late_arrival, is_heard) in [(kept_until, false), (kept_until + 1, true)] {
                let mut live = Live::new(Settings::default());
                let clear = changed("u", "a", Status::Cleared, cleared_at);
                live.apply(seconds(arrived_at), &clear);
                // It is judged by the late message's own timestamp, not by when it is looked at.
                let late = changed("u", "a", Status::Critical, 5 * day);
                live.apply(seconds(late_arrival), &late);
                let digest = live.apply(seconds(late_arrival), &request("u")).publish;
                assert_eq!(digest.is_some(), is_heard, "{cleared_at} {arrived_at}");
            }
        }
    }

    #[test]
    fn a_forgotten_tombstone_counts_as_unknown_before_it_is_removed() {
        let mut live = Live::new(Settings::default());
        live.apply(seconds(10), &changed("u", "a", Status::Cleared, 10));
        let later = seconds(11 + RETENTION_S);
        // The very same message again: unknown, so a tombstone of its own arrival.
        let repeat = live.apply(later, &changed("u", "a", Status::Cleared, 10));
        assert_eq!(
            (repeat.tally.duplicate, repeat.tally.recorded),
            (0, [1, 0, 0])
        );
        let row = live.state.row(&user("u"), &alarm("a")).unwrap();
        assert_eq!(u64::from(row.cleared_at_s), 11 + RETENTION_S);
    }

    #[test]
    fn an_active_alarm_is_never_forgotten() {
        let mut live = Live::new(Settings::default());
        live.apply(seconds(10), &changed("u", "a", Status::Critical, 10));
        live.expire(seconds(10_000 * 24 * 3600), 0);
        assert_eq!(
            print(&live.apply(Timestamp::MAX, &request("u")).publish.unwrap()),
            "[aC10]"
        );
    }

    #[test]
    fn expiry_removes_rows_and_empty_users_once_no_message_can_heed_them() {
        let mut live = Live::new(Settings::default());
        live.apply(seconds(10), &changed("u", "a", Status::Cleared, 10));
        live.apply(seconds(10), &changed("v", "a", Status::Cleared, 10));
        live.apply(seconds(10), &changed("v", "b", Status::Warning, 10));
        live.expire(seconds(10 + RETENTION_S + 3600), 0);
        assert_eq!(
            (live.state.num_users(), live.state.num_by_status()),
            (2, [2, 1, 0])
        );
        live.expire(seconds(11 + RETENTION_S + 3600), 0);
        assert_eq!(
            (live.state.num_users(), live.state.num_by_status()),
            (1, [0, 1, 0])
        );
        assert_eq!(live.state.row(&user("v"), &alarm("a")), None);
        assert_eq!(recovered(&[&live.written]).rows(), live.state.rows());
        // A user may come back.
        live.apply(seconds(20), &changed("u", "a", Status::Warning, 20));
        assert_counts_are_those_of_a_recount(&live.state);
    }

    #[test]
    fn users_of_one_tag_are_told_apart() {
        let mut live = Live::new(Settings::default());
        let mut names = HashMap::new();
        let (one, two) = (0..)
            .find_map(|number| {
                let name = format!("u{number}");
                let tag = live.state.tag(&user(&name));
                Some((names.insert(tag, name.clone())?, name))
            })
            .unwrap();
        let mut now = 10;
        for (cleared, active) in [(&one, &two), (&two, &one)] {
            live.apply(seconds(now), &changed(cleared, "a", Status::Cleared, now));
            live.apply(seconds(now), &changed(active, "a", Status::Warning, now));
            for (name, status) in [(cleared, Status::Cleared), (active, Status::Warning)] {
                // Nobody is found where the last search ended.
                live.apply(seconds(now), &changed("other", "a", Status::Warning, now));
                let row = live.state.row(&user(name), &alarm("a")).unwrap();
                assert_eq!(row.status, status, "{name}");
            }
            now += 1 + RETENTION_S + 3600;
            live.expire(seconds(now), 0);
            assert_eq!(live.state.row(&user(cleared), &alarm("a")), None);
            assert!(live.state.row(&user(active), &alarm("a")).is_some());
        }
    }

    #[test]
    fn expiry_reaches_every_user_a_bounded_part_at_a_time() {
        let mut live = Live::new(Settings::default());
        for i in 0..1000 {
            live.apply(
                seconds(10),
                &changed(&format!("u{i}"), "a", Status::Cleared, 10),
            );
        }
        let (mut from, mut before) = (0, live.state.num_users());
        for _ in 0..9 {
            from = live.expire(seconds(100 * RETENTION_S), from);
            assert!(before - live.state.num_users() <= USERS_PER_EXPIRY);
            before = live.state.num_users();
        }
        assert_eq!(before, 0);
    }

    #[test]
    fn rows_and_digests_have_these_bytes_for_ever() {
        let at = Timestamp::from_nanos(0x0102_0304_0506_0708);
        let mut rows = Rows::default();
        for (name, row) in [
            (
                UUID,
                Some(AlarmRow {
                    status: Status::Critical,
                    changed_at: at,
                    seen: 0b110,
                    is_reported: true,
                    cleared_at_s: 0,
                }),
            ),
            (
                "a",
                Some(AlarmRow {
                    status: Status::Cleared,
                    changed_at: at,
                    seen: 0b001,
                    is_reported: false,
                    cleared_at_s: 0x0a0b_0c0d,
                }),
            ),
            ("b", None),
        ] {
            Alarms::encode(
                &Change {
                    user: user("u"),
                    alarm: alarm(name),
                    row,
                },
                &mut rows,
            );
        }
        assert_eq!(
            rows.as_bytes(),
            b"\x14\x0a\x10\x01u\0\x0f\x8f\xad\x5b\xd9\xcb\x46\x9f\xa1\x65\x70\x86\x77\x28\x95\x0e\
              \x36\x01\x02\x03\x04\x05\x06\x07\x08\
              \x05\x0e\x10\x01u\x01a\x08\x01\x02\x03\x04\x05\x06\x07\x08\x0a\x0b\x0c\x0d\
              \x05\0\x10\x01u\x01b"
        );
        let digest = Digest {
            user: user("u"),
            alarms: vec![DigestEntry {
                alarm: alarm("a"),
                status: Status::Warning,
                changed_at: at,
            }],
        };
        let mut out = Vec::new();
        Alarms::encode_outgoing(&digest, &mut out);
        assert_eq!(out, b"\x01u\x01\x01a\x01\x01\x02\x03\x04\x05\x06\x07\x08");
        let mut reader = Reader::new(&out);
        assert_eq!(Alarms::decode_outgoing(&mut reader), Ok(digest));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn damaged_rows_are_refused() {
        let key = b"\x10\x01u\x01a";
        for (key, value) in [
            (&b"\x11\x01u\x01a"[..], None),
            (b"\x10\x01u", None),
            (b"\x10\x01u\x01ax", None),
            (key, Some(&b""[..])),
            (key, Some(b"\x03\0\0\0\0\0\0\0\0")),
            (key, Some(b"\x02\0\0\0\0\0\0\0")),
            (key, Some(b"\x02\0\0\0\0\0\0\0\0\0")),
            (key, Some(b"\x00\0\0\0\0\0\0\0\0\0\0\0")),
        ] {
            assert!(Alarms::decode(key, value).is_err(), "{key:?} {value:?}");
        }
    }

    /// The page's rules, written down a second time without the code's data structures.
    #[derive(Default)]
    struct Model(BTreeMap<(String, String), ModelAlarm>);

    #[derive(Clone)]
    struct ModelAlarm {
        instant: u64,
        /// In the order in which they were first seen at that instant: the last one decides.
        seen: Vec<&'static str>,
        last_reported: Option<&'static str>,
        forgotten_after: u64,
    }

    impl ModelAlarm {
        fn status(&self) -> &'static str {
            self.seen.last().copied().unwrap()
        }
    }

    impl Model {
        fn change(&mut self, at: u64, key: (String, String), status: &'static str, instant: u64) {
            let is_cleared = status == "CLEARED";
            let known = self.0.get(&key).cloned();
            let known = known.filter(|it| it.status() != "CLEARED" || at <= it.forgotten_after);
            let mut next = match known {
                Some(it)
                    if instant < it.instant
                        || instant == it.instant && it.seen.contains(&status) =>
                {
                    return;
                }
                Some(mut it) => {
                    if instant > it.instant {
                        it.seen.clear();
                    }
                    if it.last_reported != Some(status) {
                        it.last_reported = None;
                    }
                    it
                }
                None => ModelAlarm {
                    instant,
                    seen: Vec::new(),
                    last_reported: None,
                    forgotten_after: 0,
                },
            };
            next.instant = instant;
            next.seen.push(status);
            if is_cleared {
                next.forgotten_after = instant.max(at) + RETENTION_S;
            }
            self.0.insert(key, next);
        }

        fn digest(&mut self, whose: &str) -> Vec<(u64, String, &'static str)> {
            let mut due = Vec::new();
            for ((user, alarm), it) in &mut self.0 {
                if user == whose && it.status() != "CLEARED" && it.last_reported.is_none() {
                    it.last_reported = Some(it.status());
                    due.push((it.instant, alarm.clone(), it.status()));
                }
            }
            due.sort();
            due
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Change(usize, usize, Status, u64),
        Request(usize),
        /// Time goes on; by a negative amount, back.
        Wait(i64),
        Expire(usize),
    }

    const USERS: [&str; 3] = ["u", UUID, "userID-1"];
    const ALARMS: [&str; 4] = ["a", UUID, "0f8fad5b-d", "\u{1F514} 2"];

    fn status() -> impl Strategy<Value = Status> {
        prop::sample::select(Status::ALL.to_vec())
    }

    fn op() -> impl Strategy<Value = Op> {
        let day = 24 * 3600;
        prop_oneof![
            8 => (0..3_usize, 0..4_usize, status(), 0..8_u64)
                .prop_map(|(user, alarm, status, at)| Op::Change(user, alarm, status, at)),
            3 => (0..3_usize).prop_map(Op::Request),
            1 => (1..20_i64).prop_map(move |days| Op::Wait(days * day)),
            1 => Just(Op::Wait(-1800)),
            1 => (0..4_usize).prop_map(Op::Expire),
        ]
    }

    fn now_after(now: u64, newest: u64, seconds: i64) -> u64 {
        // A broker's clock may step back a little, but never far below the newest that was seen.
        now.saturating_add_signed(seconds)
            .max(newest.saturating_sub(3599))
    }

    proptest! {
        #[test]
        fn the_state_machine_agrees_with_the_page(ops in prop::collection::vec(op(), 0..60)) {
            let (mut live, mut model) = (Live::new(Settings::default()), Model::default());
            let (mut now, mut newest) = (100, 100);
            for op in ops {
                match op {
                    Op::Change(user, alarm, status, at) => {
                        let at = at + now / 100_000 * 5;
                        live.apply(seconds(now), &changed(USERS[user], ALARMS[alarm], status, at));
                        let key = (USERS[user].to_owned(), ALARMS[alarm].to_owned());
                        model.change(now, key, status.as_str(), at);
                    }
                    Op::Request(user) => {
                        let active: BTreeSet<_> = live.state.rows().into_iter()
                            .filter(|(whose, _, row)| whose.0.to_string() == USERS[user] && row.status.is_active())
                            .map(|(_, alarm, _)| alarm)
                            .collect();
                        let digest = live.apply(seconds(now), &request(USERS[user])).publish;
                        let alarms = digest.map(|digest| digest.alarms).unwrap_or_default();
                        prop_assert!(alarms.iter().all(|entry| active.contains(&entry.alarm)));
                        let ours: Vec<_> = alarms.iter().map(|entry| (
                            entry.changed_at.as_nanos() / 1_000_000_000,
                            entry.alarm.0.to_string(),
                            entry.status.as_str(),
                        )).collect();
                        prop_assert_eq!(ours, model.digest(USERS[user]));
                    }
                    Op::Wait(seconds) => now = now_after(now, newest, seconds),
                    Op::Expire(from) => { live.expire(seconds(newest), from); }
                }
                newest = newest.max(now);
                assert_counts_are_those_of_a_recount(&live.state);
            }
            // I-06: what was written, read back, is the live state.
            prop_assert_eq!(recovered(&[&live.written]).rows(), live.state.rows());
        }

        #[test]
        fn any_order_and_any_repeats_give_one_digest(
            history in prop::collection::btree_map((0..4_usize, 0..20_u64), status(), 0..20),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let history: Vec<_> = history.into_iter().collect();
            let change = |&((which, at), status): &((usize, u64), Status)| changed("u", ALARMS[which], status, at);
            let (mut one, mut two) = (Live::new(Settings::default()), Live::new(Settings::default()));
            for event in &history {
                one.apply(seconds(100), &change(event));
            }
            // Repeats in any order first; then the rest backwards, so that everything has come at least once.
            let repeats = order.iter().filter(|_| !history.is_empty()).map(|index| index.get(&history));
            for event in repeats.chain(history.iter().rev()) {
                two.apply(seconds(100), &change(event));
            }
            let one = one.apply(seconds(100), &request("u")).publish;
            prop_assert_eq!(one, two.apply(seconds(100), &request("u")).publish);
        }

        #[test]
        fn a_snapshot_in_slices_and_what_came_after_are_the_live_state(
            before in prop::collection::vec(op(), 0..40),
            during in prop::collection::vec(op(), 0..40),
            max_bytes in 1..80_usize,
        ) {
            let mut live = Live::new(Settings::default());
            let mut now = 100;
            let mut play = |live: &mut Live, op: &Op| match *op {
                Op::Change(user, alarm, status, at) => {
                    live.apply(seconds(now), &changed(USERS[user], ALARMS[alarm], status, at));
                }
                Op::Request(user) => { live.apply(seconds(now), &request(USERS[user])); }
                Op::Wait(seconds) => now = now.saturating_add_signed(seconds.max(0)),
                Op::Expire(from) => { live.expire(seconds(now), from); }
            };
            for op in &before {
                play(&mut live, op);
            }
            live.written = Rows::default();
            let (mut snapshot, mut next, mut during) = (Rows::default(), Some(0), during.iter());
            while let Some(from) = next {
                let mut slice = Rows::default();
                next = live.state.snapshot(from, max_bytes, &mut slice);
                snapshot.append(&slice);
                during.by_ref().take(3).for_each(|op| play(&mut live, op));
            }
            during.for_each(|op| play(&mut live, op));
            prop_assert_eq!(recovered(&[&snapshot, &live.written]).rows(), live.state.rows());
        }

        #[test]
        fn rows_round_trip(
            user in 0..3_usize, alarm in 0..4_usize, status in status(), nanos in any::<u64>(),
            seen in 0..8_u8, is_reported in any::<bool>(), cleared_at_s in any::<u32>(),
        ) {
            let cleared_at_s = if status.is_active() { 0 } else { cleared_at_s };
            let changed_at = Timestamp::from_nanos(nanos);
            let change = Change {
                user: UserId(Id::new(USERS[user]).unwrap()),
                alarm: AlarmId(Id::new(ALARMS[alarm]).unwrap()),
                row: Some(AlarmRow { status, changed_at, seen, is_reported, cleared_at_s }),
            };
            let mut rows = Rows::default();
            Alarms::encode(&change, &mut rows);
            let (key, value) = rows.iter().next().unwrap().unwrap();
            prop_assert_eq!(Alarms::decode(key, value), Ok(change));
        }

        #[test]
        fn junk_never_panics(key in prop::collection::vec(any::<u8>(), 0..40), value in prop::collection::vec(any::<u8>(), 0..40)) {
            drop(Alarms::decode(&key, Some(&value)));
            drop(Alarms::decode_outgoing(&mut Reader::new(&value)));
        }
    }
}
