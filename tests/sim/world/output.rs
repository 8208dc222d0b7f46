//! What goes out: the network, the two output streams with their duplicate window, and what harms them.

use std::collections::BTreeSet;

use tocsin::bus::Outbound;
use tocsin::bus::wire::{DEAD_LETTER, PART_HEADER, message_bytes};
use tocsin::core::parts::read_id;
use tocsin::core::position::REWRITE_MARGIN;
use tocsin::core::time::Timestamp;

use super::*;

/// What a broker takes that splits nothing.
pub(super) const LARGE: usize = 1 << 20;
/// What it may take: a few alarms, one, or all.
pub(super) const MAX_PAYLOADS: [usize; 4] = [LARGE, 600, 480, 360];

const REPEATS: &str = "repeats dropped by the broker";

/// One attempt at one message, or at a part of one, on its way to the broker.
pub(super) struct Attempt {
    daemon: usize,
    process: u64,
    token: u64,
    sent_at: u64,
    subject: &'static str,
    pub(super) id: String,
    /// The part's id, as its sender knows it.
    part: String,
    num_bytes: usize,
    is_first: bool,
    /// When its sender last looked at what is stored; 0 where it never did.
    looked_at: Moment,
    begun_at: Moment,
    piece: Piece,
}

/// Before and after, where the clock stands still.
pub(super) type Moment = u64;

/// A message of a stream.
struct Message {
    id: String,
    at: u64,
    /// The daemon and its process.
    sender: (usize, u64),
    begun_at: Moment,
    stored_at: Moment,
    piece: Piece,
}

/// A part of a message, or a whole one: from which to which entry, and what they say.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Piece {
    whole: String,
    lane: u64,
    head: String,
    separator: &'static str,
    from: usize,
    entries: Vec<String>,
}

impl Attempt {
    pub(super) fn new(
        (daemon, process, token): (usize, u64, u64),
        sent_at: u64,
        owed: &Owed<Digest>,
        whole: &str,
        part: &Outbound,
        is_first: bool,
        (looked_at, begun_at): (Moment, Moment),
    ) -> Self {
        let is_part = part.headers.iter().any(|(name, _)| *name == PART_HEADER);
        let range = part.id.rsplit_once('.').filter(|_| is_part);
        let from = range.and_then(|(_, range)| range.split_once('-'));
        let from = from.map_or(0, |(from, _)| from.parse().expect("a part names its range"));
        let (head, separator, entries) = match &owed.body {
            Body::Message(_) => {
                let (user, entries) = read_digest(&part.payload);
                (format!("{user}: "), ", ", entries)
            }
            Body::DeadLetter(letter) => {
                let text = String::from_utf8_lossy(&part.payload).into_owned();
                let entries = text.chars().map(String::from).collect();
                (format!("dead letter {} ", letter.reason), "", entries)
            }
        };
        let suffix = part.id.strip_prefix(&owed.id.to_string());
        Self {
            daemon,
            process,
            token,
            sent_at,
            subject: part.subject,
            id: format!("{whole}{}", suffix.unwrap_or_default()),
            part: part.id.clone(),
            num_bytes: message_bytes(part),
            is_first,
            looked_at,
            begun_at,
            piece: Piece {
                whole: whole.to_owned(),
                lane: owed.lane,
                head,
                separator,
                from,
                entries,
            },
        }
    }
}

/// The user and the alarms of a digest, read as any subscriber reads it.
fn read_digest(payload: &[u8]) -> (String, Vec<String>) {
    let digest: serde_json::Value = serde_json::from_slice(payload).expect("a digest is JSON");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let alarms = digest["ActiveAlarms"].as_array().into_iter().flatten();
    let entries = alarms.map(|alarm| {
        let at = Timestamp::parse(&text(&alarm["LatestChangedAt"]));
        let at_s = at.expect("an instant").as_nanos() / SECOND;
        format!(
            "{} {} {at_s}",
            text(&alarm["AlarmID"]),
            text(&alarm["Status"])
        )
    });
    (text(&digest["UserID"]), entries.collect())
}

/// A message as a subscriber joins it from what was stored.
pub(crate) struct Whole {
    pub(crate) id: String,
    pub(crate) lane: u64,
    /// The order in which the first parts were stored.
    pub(crate) turn: u64,
    head: String,
    separator: &'static str,
    entries: Vec<String>,
}

impl Whole {
    pub(crate) fn content(&self) -> String {
        format!("{}{}", self.head, self.entries.join(self.separator))
    }

    /// A subscriber takes a part: what it holds follows what was there, or repeats it.
    fn take(&mut self, piece: &Piece) -> Checked {
        demand(
            "I-05 parts come in order",
            piece.from <= self.entries.len(),
            || format!("{} from {} on", piece.whole, piece.from),
        )?;
        for (place, entry) in piece.entries.iter().enumerate() {
            let place = piece.from + place;
            match self.entries.get(place) {
                Some(known) => demand("I-07 one id is one message", known == entry, || {
                    format!("{}: {known} and {entry}", piece.whole)
                })?,
                None => self.entries.push(entry.clone()),
            }
        }
        Ok(())
    }
}

/// A stream of the broker, and everything that it ever held.
#[derive(Default)]
pub(super) struct OutputStream {
    /// The sequence is the place and 1.
    messages: Vec<Message>,
    places: BTreeMap<String, usize>,
    /// What was purged lies before.
    num_purged: usize,
    /// Messages of which something was purged, or rolled back: what is left of one does not follow, and it is sent
    /// again.
    torn: BTreeSet<String>,
    /// Whether it ever lost what it held.
    is_harmed: bool,
    wholes: BTreeMap<String, Whole>,
    parked: BTreeSet<String>,
    confirmed: BTreeSet<String>,
}

impl OutputStream {
    pub(super) fn wholes(&self) -> impl Iterator<Item = &Whole> {
        self.wholes.values()
    }

    pub(super) fn park(&mut self, id: String) {
        self.parked.insert(id);
    }

    pub(super) fn was_parked(&self, id: &str) -> bool {
        self.parked.contains(id)
    }

    /// A producer has heard that all of it is stored.
    pub(super) fn confirm(&mut self, id: String) {
        self.confirmed.insert(id);
    }

    pub(super) fn was_confirmed(&self, id: &str) -> bool {
        self.confirmed.contains(id)
    }

    /// Whether this was published, whole.
    pub(super) fn holds(&self, lane: u64, content: &str) -> bool {
        let mut wholes = self.wholes.values();
        wholes.any(|whole| whole.lane == lane && whole.content() == content)
    }

    /// The ids under which a message is held, whole or in parts, with their sequences, looked for behind another and
    /// among what was stored since an instant.
    pub(super) fn find(&self, whole: &str, after: u64, since: Timestamp) -> Vec<(String, u64)> {
        let since = since.minus(REWRITE_MARGIN).as_nanos();
        let held = self
            .ids_of(whole)
            .filter(|&(_, &place)| place >= self.num_purged);
        let seen =
            held.filter(|&(_, &place)| place as u64 >= after || self.messages[place].at >= since);
        seen.map(|(id, &place)| (id.clone(), place as u64 + 1))
            .collect()
    }

    /// The ids under which a message was stored, whole or in parts, and where.
    fn ids_of<'a>(&'a self, whole: &'a str) -> impl Iterator<Item = (&'a String, &'a usize)> {
        let ids = self.places.range(whole.to_owned()..);
        let ids = ids.take_while(move |(id, _)| id.starts_with(whole));
        ids.filter(move |(id, _)| read_id(id).0 == whole)
    }

    /// Under which other id it holds something of this, as the sender must know.
    fn holds_otherwise(&self, attempt: &Attempt) -> Option<&str> {
        let Attempt { id, piece, .. } = attempt;
        let others = self.ids_of(&piece.whole).filter(|(other, _)| *other != id);
        let others = others.filter_map(|(_, &place)| self.messages.get(place));
        let is_same = |other: &&Message| {
            let (from, end) = (
                other.piece.from,
                other.piece.from + other.piece.entries.len(),
            );
            from < piece.from + piece.entries.len() && piece.from < end
        };
        // It knows what was stored when it looked, and what it has sent itself since then.
        let is_known = |other: &&Message| {
            let is_its_own = other.sender == (attempt.daemon, attempt.process);
            let is_since = (attempt.looked_at..attempt.begun_at).contains(&other.begun_at);
            other.stored_at < attempt.looked_at || is_its_own && is_since
        };
        let mut known = others.filter(is_same).filter(is_known);
        known.next().map(|other| other.id.as_str())
    }

    fn push(&mut self, attempt: Attempt, at: u64, stored_at: Moment, turn: u64) -> Checked {
        let sender = (attempt.daemon, attempt.process);
        let Attempt {
            id,
            piece,
            begun_at,
            ..
        } = attempt;
        let whole = self.wholes.entry(piece.whole.clone());
        let whole = whole.or_insert_with(|| Whole {
            id: piece.whole.clone(),
            lane: piece.lane,
            turn,
            head: piece.head.clone(),
            separator: piece.separator,
            entries: Vec::new(),
        });
        whole.take(&piece)?;
        self.places.insert(id.clone(), self.messages.len());
        self.messages.push(Message {
            id,
            at,
            sender,
            begun_at,
            stored_at,
            piece,
        });
        Ok(())
    }

    fn purge(&mut self, num_kept: usize) {
        self.is_harmed = true;
        self.num_purged = self.messages.len().saturating_sub(num_kept);
        let purged = self.messages.iter().take(self.num_purged);
        self.torn.extend(purged.map(|it| it.piece.whole.clone()));
    }

    fn roll_back(&mut self, num_lost: usize) {
        self.is_harmed = true;
        let num_kept = self.messages.len().saturating_sub(num_lost);
        let lost = self.messages.drain(num_kept.max(self.num_purged)..);
        self.torn.extend(lost.map(|it| it.piece.whole));
        let kept = self.messages.iter().enumerate();
        self.places = kept.map(|(place, it)| (it.id.clone(), place)).collect();
    }
}

impl<D: Observed> World<D> {
    pub(super) fn output_of(&self, body: &Body<Digest>) -> &OutputStream {
        match body {
            Body::Message(_) => &self.broker.digests,
            Body::DeadLetter(_) => &self.broker.dead_letters,
        }
    }

    pub(super) fn output_of_mut(&mut self, body: &Body<Digest>) -> &mut OutputStream {
        match body {
            Body::Message(_) => &mut self.broker.digests,
            Body::DeadLetter(_) => &mut self.broker.dead_letters,
        }
    }

    pub(super) fn moment(&mut self) -> Moment {
        self.num_moments += 1;
        self.num_moments
    }

    /// An attempt reaches the broker, or is lost on the way there or back.
    pub(super) fn arrive(&mut self, may_fail: bool) -> Checked {
        let now = self.now;
        let is_on_its_way = |attempt: &Attempt| now - attempt.sent_at <= WINDOW / 4;
        self.network.retain(is_on_its_way);
        if self.network.is_empty() {
            return Ok(());
        }
        let place = self.choices.place(self.network.len());
        let attempt = self.network.swap_remove(place);
        let fate = if may_fail { self.choices.below(100) } else { 0 };
        if fate >= 90 {
            self.trace.note(format_args!("{} is lost", attempt.id));
            self.count("messages lost on the network");
            return Ok(());
        }
        let is_refused = self.broker.refused == Some(attempt.subject)
            || attempt.num_bytes > self.broker.max_payload;
        let (id, part, token) = (attempt.id.clone(), attempt.part.clone(), attempt.token);
        let (daemon, process) = (attempt.daemon, attempt.process);
        let (is_first, num_repeats) = (attempt.is_first, self.counts.of(REPEATS));
        let said = if is_refused {
            self.trace.note(format_args!("{id} is refused"));
            self.count("messages refused by the broker");
            producer::Said::Refused
        } else {
            producer::Said::StoredAt(self.store(attempt)?)
        };
        if fate >= 80 {
            self.count("confirmations lost");
            return Ok(());
        }
        // Another store may have been faster.
        let is_false_repeat = is_first
            && self.plan.deployment == Deployment::One
            && self.counts.of(REPEATS) > num_repeats;
        let at = &mut self.daemons[daemon];
        if at.is_up && at.process == process {
            at.answers.push(producer::Answer {
                token,
                part,
                said,
                is_false_repeat,
            });
        }
        Ok(())
    }

    /// Stores a message unless its id is remembered; returns the sequence that is told.
    fn store(&mut self, attempt: Attempt) -> Result<Option<u64>, Failure> {
        let (now, has_stream) = (self.now, self.plan.has_stream);
        let is_digest = attempt.subject == DIGEST;
        let stored_at = self.moment();
        let turn = (self.broker.digests.messages.len() + self.broker.dead_letters.messages.len())
            as u64
            + self.num_lost_outputs;
        let output = if is_digest {
            &mut self.broker.digests
        } else {
            &mut self.broker.dead_letters
        };
        let known = output.places.get(&attempt.id).copied();
        let known = known.filter(|_| has_stream);
        let Some(place) = known else {
            // Without a stream nothing can be looked for.
            let other = output.holds_otherwise(&attempt);
            let other = other.filter(|_| has_stream && !output.is_harmed);
            demand(
                "I-07 no alarm of a digest comes under two ids",
                other.is_none(),
                || format!("{} repeats what was stored as {other:?}", attempt.id),
            )?;
            let id = attempt.id.clone();
            output.push(attempt, now, stored_at, turn)?;
            let sequence = output.messages.len() as u64;
            self.trace
                .note(format_args!("{id} is stored at {sequence}"));
            self.count(if is_digest {
                "digests and parts stored"
            } else {
                "dead letters stored"
            });
            return Ok((has_stream && is_digest).then_some(sequence));
        };
        let Message { at, piece, .. } = &output.messages[place];
        let is_remembered = now - at <= WINDOW;
        demand(
            "I-07 one id is one message",
            *piece == attempt.piece,
            || format!("{}: {piece:?} and {:?}", attempt.id, attempt.piece),
        )?;
        if is_remembered {
            self.trace.note(format_args!("{} is a repeat", attempt.id));
            self.count(REPEATS);
            return Ok(is_digest.then_some(place as u64 + 1));
        }
        let is_torn = output.torn.contains(&attempt.piece.whole);
        demand("I-07 no id is stored twice", is_torn, || {
            format!("{} is stored again", attempt.id)
        })?;
        output.push(attempt, now, stored_at, turn)?;
        Ok(is_digest.then_some(output.messages.len() as u64))
    }

    /// The output loses its newest messages, as in a power cut of the broker, or its oldest.
    pub(super) fn harm_output(&mut self) {
        if !self.plan.has_stream {
            return;
        }
        let num_drawn = 1 + self.choices.place(5);
        let is_digests = self.choices.chance(70);
        let rolls_back = self.choices.chance(50);
        let output = if is_digests {
            &mut self.broker.digests
        } else {
            &mut self.broker.dead_letters
        };
        let what = if rolls_back {
            self.num_lost_outputs += num_drawn as u64;
            output.roll_back(num_drawn);
            "output streams rolled back"
        } else {
            output.purge(num_drawn);
            "output streams purged"
        };
        self.trace.note(format_args!("{what}"));
        self.count(what);
        self.disconnect_all();
    }

    /// The broker starts again: what was on its way may be lost, and everybody connects anew.
    pub(super) fn restart_broker(&mut self) {
        let keeps = self.choices.chance(50);
        if !keeps {
            self.network.clear();
        }
        let daemons = self.daemons.iter_mut();
        daemons.for_each(|it| it.answers.clear());
        self.trace.note(format_args!(
            "the broker starts again, what was sent arrives: {keeps}"
        ));
        self.count("restarts of the broker");
        self.disconnect_all();
    }

    pub(super) fn change_max_payload(&mut self) {
        self.broker.max_payload = MAX_PAYLOADS[self.choices.place(4)];
        self.trace.note(format_args!(
            "the broker takes {} bytes",
            self.broker.max_payload
        ));
        self.count("changes of max_payload");
        if self.choices.chance(50) {
            return self.disconnect_all();
        }
        // A server tells those who are connected.
        for daemon in self.daemons.iter_mut().filter(|it| !it.is_frozen) {
            daemon.max_payload = self.broker.max_payload;
        }
    }

    /// Nobody may publish digests any more, or dead letters; or everybody may.
    pub(super) fn change_permissions(&mut self) {
        self.broker.refused =
            [None, Some(DIGEST), Some(DEAD_LETTER), Some(DIGEST)][self.choices.place(4)];
        self.trace.note(format_args!(
            "nobody may publish: {:?}",
            self.broker.refused
        ));
        self.count("permissions taken away or given");
    }
}
