//! How the domains look outside: the one place where domain, wire and metrics meet.

use crate::bus::wire::{self, Limits};
use crate::bus::{Outbound, RawMessage};
use crate::core::outbox::{Body, DeadLetter, Owed};
use crate::core::partition::Domain;
use crate::core::parts::Stored;
use crate::domains::alarms::{Status, Tally};
use crate::domains::{Command, Outgoing, State};
use crate::runtime::delivery::Codec;
use crate::runtime::metrics::{Metric, Observation};

/// The domains as the runtime sees them.
#[must_use]
pub fn codec() -> Codec<State> {
    Codec {
        decode,
        encode,
        counters,
        observe,
        observe_state,
    }
}

fn decode(raw: &RawMessage, limits: &Limits) -> Result<(u64, Command), DeadLetter> {
    match wire::decode(&raw.subject, &raw.payload, raw.timestamp, limits) {
        Ok(command) => Ok((command.user().placement(), command)),
        Err(reject) => Err(reject.into_dead_letter(&raw.subject, &raw.payload)),
    }
}

fn encode(
    owed: &Owed<Outgoing>,
    stored: &Stored,
    max_payload: usize,
) -> Result<Vec<Outbound>, String> {
    match &owed.body {
        Body::Message(digest) => wire::split_digest(&owed.id, digest, stored, max_payload),
        Body::DeadLetter(letter) => wire::split_dead_letter(&owed.id, letter, stored, max_payload),
    }
    .map_err(|error| error.to_string())
}

fn counters(observations: &mut Vec<Observation>) {
    observe(Tally::default(), observations);
    for reason in wire::Reject::CODES {
        observations.push(Observation::count(Metric::Refusals, 0).with("reason", reason));
    }
    observations.push(Observation::none(Metric::AlarmsPerDigest));
}

fn observe(tally: Tally, observations: &mut Vec<Observation>) {
    for (status, count) in Status::ALL.into_iter().zip(tally.recorded) {
        let changes = Observation::count(Metric::StatusChanges, count);
        observations.push(changes.with("status", status.as_str()));
    }
    observations.push(Observation::count(Metric::StaleChanges, tally.stale));
    observations.push(Observation::count(
        Metric::DuplicateChanges,
        tally.duplicate,
    ));
    observations.push(Observation::count(Metric::DigestsSkipped, tally.skipped));
    for num_alarms in tally.digest_sizes {
        observations.push(Observation::sample(
            Metric::AlarmsPerDigest,
            f64::from(num_alarms),
        ));
    }
}

fn observe_state(state: &State, observations: &mut Vec<Observation>) {
    for (status, num) in Status::ALL.into_iter().zip(state.num_by_status()) {
        if status.is_active() {
            let active = Observation::level(Metric::ActiveAlarms, num as f64);
            observations.push(active.with("status", status.as_str()));
        }
    }
    observations.push(Observation::level(Metric::Users, state.num_users() as f64));
}

/// The settings of the domains.
pub type Settings = <State as Domain>::Settings;
