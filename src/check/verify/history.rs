//! Random histories from a seed, and how one that went wrong is made shorter.

use super::super::messages::{self, Instant, Status};
use super::refusals;
use super::scenario::{Scenario, nano, second};
use crate::bus::wire::{CHANGE, REQUEST};

/// How many users a run has.
pub(super) const NUM_USERS: usize = 50;
/// How many messages each of them gets.
const NUM_STEPS: usize = 40;
/// Few, so that they meet again; ordered otherwise by bytes than by letter.
const ALARMS: [&str; 4] = ["a", "B", "aa", "\u{e9}"];

/// A message of no particular user.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Change {
        subject: String,
        alarm: &'static str,
        status: Status,
        at: Instant,
    },
    Request {
        subject: String,
    },
    Junk {
        seed: u64,
    },
}

/// One user's history: disorder, ties, copies on other subjects, junk, and requests.
///
/// Between two requests, all changes are on one subject, because order holds within a subject only on core NATS. A
/// copy of what came before the last request changes nothing at any place, and may be on any subject.
pub(super) fn random(random: &mut fastrand::Rng) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut subject = twin(random, CHANGE);
    let mut last_request = 0;
    while steps.len() < NUM_STEPS {
        let step = match random.u8(..20) {
            0..=2 => {
                last_request = steps.len();
                subject = twin(random, CHANGE);
                Step::Request {
                    subject: twin(random, REQUEST),
                }
            }
            3 => Step::Junk {
                seed: random.u64(..),
            },
            4..=6 => {
                let (place, copied) = match random.choice(steps.iter().enumerate()) {
                    Some((
                        place,
                        Step::Change {
                            alarm, status, at, ..
                        },
                    )) => (place, (*alarm, *status, *at)),
                    Some(_) | None => continue,
                };
                let of_copy = if place < last_request {
                    twin(random, CHANGE)
                } else {
                    subject.clone()
                };
                change(of_copy, copied)
            }
            _ => {
                let alarm = random.choice(ALARMS).unwrap_or("a");
                let status = random.choice(Status::ALL).unwrap_or(Status::Cleared);
                let at = random_instant(random, steps.len());
                change(subject.clone(), (alarm, status, at))
            }
        };
        steps.push(step);
    }
    steps
}

fn change(subject: String, (alarm, status, at): (&'static str, Status, Instant)) -> Step {
    Step::Change {
        subject,
        alarm,
        status,
        at,
    }
}

/// Later on the whole, and often earlier than the one before it or at the same instant.
fn random_instant(random: &mut fastrand::Rng, num_before: usize) -> Instant {
    let around = num_before as u64 / 4;
    match random.u8(..4) {
        0 => nano(around * 1_000_000_000 + random.u64(..3)),
        _ => second(around + random.u64(..5)),
    }
}

fn twin(random: &mut fastrand::Rng, subject: &str) -> String {
    match random.u8(..6) {
        number @ 0..=1 => format!("{subject}.{number}"),
        _ => subject.to_owned(),
    }
}

/// The same history of this user.
pub(super) fn scenario(steps: &[Step], title: &str, user: &str) -> Scenario {
    let scenario = Scenario::new(title, user);
    steps.iter().fold(scenario, |scenario, step| match step {
        Step::Change {
            subject,
            alarm,
            status,
            at,
        } => {
            let payload = messages::change(user, alarm, *status, *at);
            scenario.change_written(subject, payload, alarm, *status, *at)
        }
        Step::Request { subject } => scenario.request_written(subject, messages::request(user)),
        Step::Junk { seed } => {
            let mut random = fastrand::Rng::with_seed(*seed);
            let (subject, payload) = refusals::junk(user, &mut random);
            scenario.refused(subject, payload)
        }
    })
}

/// The history without each run of so many steps in turn, where what is left has an order.
pub(super) fn without_each(steps: &[Step], num_steps: usize) -> Vec<Vec<Step>> {
    let starts = (0..steps.len()).step_by(num_steps.max(1));
    let without = starts.map(|start| {
        let kept = steps.iter().enumerate();
        let kept = kept.filter(|(place, _)| !(start..start + num_steps).contains(place));
        kept.map(|(_, step)| step.clone()).collect::<Vec<_>>()
    });
    without.filter(|steps| has_order(steps)).collect()
}

/// Whether all changes between two requests are on one subject, but for copies of what came before.
fn has_order(steps: &[Step]) -> bool {
    let mut known = Vec::new();
    let mut new: Vec<(&String, (&str, Status, Instant))> = Vec::new();
    for step in steps {
        match step {
            Step::Request { .. } => known.extend(new.drain(..).map(|(_, change)| change)),
            Step::Junk { .. } => {}
            Step::Change {
                subject,
                alarm,
                status,
                at,
            } => {
                let change = (*alarm, *status, *at);
                if known.contains(&change) {
                    continue;
                }
                if new.first().is_some_and(|(first, _)| *first != subject) {
                    return false;
                }
                new.push((subject, change));
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_seed(seed: u64) -> Vec<Step> {
        random(&mut fastrand::Rng::with_seed(seed))
    }

    #[test]
    fn a_seed_is_one_history() {
        let payloads = |seed| {
            let scenario = scenario(&of_seed(seed), "", "u");
            let messages = scenario.messages.into_iter();
            messages.map(|it| it.payload).collect::<Vec<_>>()
        };
        assert_eq!(payloads(7), payloads(7));
        assert_ne!(payloads(7), payloads(8));
        assert_eq!(payloads(7).len(), NUM_STEPS);
    }

    #[test]
    fn histories_have_everything_in_them() {
        let steps: Vec<_> = (0..50).flat_map(of_seed).collect();
        let num = |is: fn(&Step) -> bool| steps.iter().filter(|it| is(it)).count();
        assert!(num(|it| matches!(it, Step::Request { .. })) > 200);
        assert!(num(|it| matches!(it, Step::Junk { .. })) > 50);
        assert!(num(|it| matches!(it, Step::Change { subject, .. } if subject != CHANGE)) > 200);
    }

    #[test]
    fn every_history_and_every_shorter_one_has_an_order() {
        for seed in 0..200 {
            let steps = of_seed(seed);
            assert!(has_order(&steps), "{steps:?}");
        }
        let change =
            |subject: &str, at| change(subject.to_owned(), ("a", Status::Critical, second(at)));
        let request = Step::Request {
            subject: REQUEST.to_owned(),
        };
        let steps = [change("x", 1), request, change("y", 2), change("x", 1)];
        assert!(has_order(&steps));
        // Without the first change, its copy is new; without the request, two subjects are in flight together.
        let lengths: Vec<_> = without_each(&steps, 1).iter().map(Vec::len).collect();
        assert_eq!(lengths, [3, 3]);
    }

    #[test]
    fn shorter_histories_lack_each_step_once() {
        let request = |number| Step::Request {
            subject: format!("{REQUEST}.{number}"),
        };
        let steps: Vec<_> = (0..40).map(request).collect();
        let shorter = without_each(&steps, 15);
        let lengths: Vec<_> = shorter.iter().map(Vec::len).collect();
        assert_eq!(lengths, [25, 25, 30]);
    }
}
