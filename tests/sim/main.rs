//! The main proof: thousands of seeded worlds in which everything fails, judged by an oracle that shares no
//! code with the domain, and planted faults that must all be noticed.
//!
//! | run | does |
//! |---|---|
//! | `cargo test --test sim` | 500 seeds that are always the same, 1,500 that follow from the commit, and every planted fault |
//! | `SIM_COMMIT=…` | the commit, where git cannot say it |
//! | `SIM_SEED=7 cargo test --test sim -- --nocapture` | replays one seed with its trace |
//!
//! A seed that fails is played again and again with fewer and smaller steps, until the shortest trace is found at
//! which the same check fails: that one is printed.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a world that indexes wrongly is a failed test"
)]

mod choices;
mod oracle;
mod planted;
#[path = "../it/support/random.rs"]
mod random;
#[path = "../evidence/row.rs"]
mod row;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Once;
use std::thread;

use tocsin::core::ids::placement_hash;
use tocsin::domains::alarms::Alarms;

use choices::{Choices, Counts, Tape, shrink};
use planted::{Bug, Faulty, Observed};
use random::Random;
use row::{Rounds, Row};
use world::{Failure, World};

/// Seeds that are played at every run.
const NUM_FIXED: u64 = 500;
/// Seeds that are others at every commit, and in every round of the evidence.
const NUM_FRESH: u64 = 1500;
/// A planted fault is noticed within so many seeds.
const SEEDS_TO_NOTICE: u64 = 8000;
/// Worlds are played on so many threads; what they do does not depend on it.
const NUM_THREADS: usize = 2;

thread_local! {
    /// Whether a panic of this thread is a finding of the world under way, which reports it itself.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// How one world ended.
struct Played {
    result: Result<(), Failure>,
    trace: Vec<String>,
    tape: Tape,
    counts: Counts,
}

fn play_as<D: Observed>(choices: Choices, bug: Option<Bug>, is_traced: bool) -> Played {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                usual(panic);
            }
        }));
    });
    let mut world = World::<D>::new(choices, bug, is_traced);
    IS_QUIET.set(true);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    IS_QUIET.set(false);
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
        Err(Failure::new(
            format!("panic: {}", text.unwrap_or_default()),
            "",
        ))
    });
    let counts = world.counts.clone();
    let (trace, choices) = world.into_trace();
    Played {
        result,
        trace,
        tape: choices.into_tape(),
        counts,
    }
}

fn play(choices: Choices, bug: Option<Bug>, is_traced: bool) -> Played {
    if bug.is_some_and(Bug::is_of_the_domain) {
        play_as::<Faulty>(choices, bug, is_traced)
    } else {
        play_as::<Alarms>(choices, bug, is_traced)
    }
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
    )
}

/// Plays these seeds, and counts what happened in them; or tells of the first that fails, as short as it gets.
fn play_all(seeds: &[u64]) -> Result<Counts, String> {
    let play_share = |share: usize| {
        let mut counts = Counts::default();
        for &seed in seeds.iter().skip(share).step_by(NUM_THREADS) {
            let played = play(Choices::from_seed(seed), None, false);
            counts.merge(&played.counts);
            if let Err(failure) = played.result {
                return Err((seed, failure, played.tape));
            }
        }
        Ok(counts)
    };
    let shares: Vec<_> = thread::scope(|scope| {
        let shares = (0..NUM_THREADS).map(|share| scope.spawn(move || play_share(share)));
        let shares: Vec<_> = shares.collect();
        let ended = shares.into_iter().map(|it| it.join().expect("it catches"));
        ended.collect()
    });
    let mut counts = Counts::default();
    let mut first = None;
    for share in shares {
        match share {
            Ok(share) => counts.merge(&share),
            Err(failed) => {
                let is_earlier = |known: &(u64, _, _)| {
                    let place = |seed| seeds.iter().position(|&it| it == seed);
                    place(failed.0) < place(known.0)
                };
                if first.as_ref().is_none_or(is_earlier) {
                    first = Some(failed);
                }
            }
        }
    }
    let Some((seed, Failure { check, detail }, tape)) = first else {
        return Ok(counts);
    };
    let num_steps = tape.len();
    let shrunk = shrink(tape, |tape| fails(tape, None, &check));
    let shortest = play(Choices::from_tape(&shrunk), None, true);
    let detail = shortest.result.err().map_or(detail, |it| it.detail);
    Err(format!(
        "{}\n\nseed {seed} breaks {check}\n{detail}\nabove are the {} of its {num_steps} steps that it takes; replay it with SIM_SEED={seed}",
        shortest.trace.join("\n"),
        shrunk.len()
    ))
}

/// Whether this check does not hold at these choices.
fn fails(tape: &Tape, bug: Option<Bug>, check: &str) -> bool {
    let result = play(Choices::from_tape(tape), bug, false).result;
    result.is_err_and(|failure| failure.check == check)
}

/// What the seeds of this commit begin with: the same for everybody who plays it.
fn fresh_from_commit() -> u64 {
    let from_git = || {
        let git = Command::new("git").args(["rev-parse", "HEAD"]).output();
        let output = git.ok().filter(|it| it.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = std::env::var("SIM_COMMIT").ok().or_else(from_git);
    let named = commit.as_deref().unwrap_or("unknown");
    let first = placement_hash(named.as_bytes()) >> 1;
    println!("the seeds of commit {named} begin with {first}");
    first
}

#[test]
fn nothing_is_lost_in_any_world() {
    if let Some(seed) = number_from("SIM_SEED") {
        let played = play(Choices::from_seed(seed), None, true);
        println!("{}", played.trace.join("\n"));
        return drop(play_all(&[seed]).unwrap_or_else(|failure| panic!("{failure}")));
    }
    let mut row = Row::new(Rounds::in_test(1));
    let commit = fresh_from_commit();
    let mut fresh = Random(row.seed());
    let mut seeds: Vec<_> = (0..NUM_FIXED).chain(commit..commit + NUM_FRESH).collect();
    while row.goes_on() {
        let counts = play_all(&seeds).unwrap_or_else(|failure| panic!("{failure}"));
        for (what, num) in counts.iter() {
            row.count(what, num);
        }
        row.count("simulated worlds", seeds.len() as u64);
        let first = fresh.next() >> 1;
        seeds = (first..first + NUM_FIXED + NUM_FRESH).collect();
    }
    row.close();
}

#[test]
fn the_same_seed_plays_the_same_world() {
    for seed in 0..20 {
        let one = play(Choices::from_seed(seed), None, true);
        let two = play(Choices::from_seed(seed), None, true);
        assert_eq!(one.trace.join("\n"), two.trace.join("\n"), "seed {seed}");
        assert_eq!(one.counts, two.counts, "seed {seed}");
        let replayed = play(Choices::from_tape(&one.tape), None, true);
        assert_eq!(one.trace, replayed.trace, "seed {seed} from its choices");
    }
}

/// The first seed at which a planted fault is noticed, and by which check.
fn notice(bug: Bug) -> Option<(u64, Failure, Tape)> {
    (0..SEEDS_TO_NOTICE).find_map(|seed| {
        let played = play(Choices::from_seed(seed), Some(bug), false);
        let failure = played.result.err()?;
        Some((seed, failure, played.tape))
    })
}

#[test]
fn every_planted_fault_is_noticed_by_a_named_check() {
    let mut row = Row::new(Rounds::in_test(1));
    assert!(row.goes_on());
    let noticed: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..NUM_THREADS)
            .map(|share| {
                let bugs = Bug::ALL.into_iter().skip(share).step_by(NUM_THREADS);
                scope.spawn(move || bugs.map(|bug| (bug, notice(bug))).collect::<Vec<_>>())
            })
            .collect();
        let shares = threads.into_iter().map(|it| it.join().expect("it catches"));
        shares.flatten().collect()
    });
    let mut unnoticed = Vec::new();
    for bug in Bug::ALL {
        let found = noticed.iter().find(|(other, _)| *other == bug);
        match found.and_then(|(_, found)| found.as_ref()) {
            Some((seed, failure, _)) if !failure.check.starts_with("panic") => {
                let by = format!("{}, after {} seeds", failure.check, seed + 1);
                println!("{}: {by}", bug.words());
                row.fact(&format!("planted: {}", bug.words()), by);
                row.count("planted faults noticed", 1);
            }
            Some((_, failure, _)) => unnoticed.push((bug, failure.check.clone())),
            None => unnoticed.push((bug, String::new())),
        }
    }
    assert!(
        unnoticed.is_empty(),
        "not noticed by a named check in {SEEDS_TO_NOTICE} seeds: {unnoticed:?}"
    );
    row.close();
}

#[test]
fn a_failing_world_is_shrunk_to_a_trace_that_can_be_read() {
    for bug in [Bug::RemovedAtSend, Bug::BatchForgotten] {
        let (_, failure, tape) = notice(bug).expect("it is noticed");
        let num_steps = tape.len();
        let shrunk = shrink(tape, |tape| fails(tape, Some(bug), &failure.check));
        let shortest = play(Choices::from_tape(&shrunk), Some(bug), true);
        let trace = shortest.trace.join("\n");
        println!(
            "{bug:?}: {num_steps} steps, then {}\n{trace}\n",
            shrunk.len()
        );
        let check = shortest.result.err().map(|it| it.check);
        assert_eq!(check.as_ref(), Some(&failure.check), "{bug:?}");
        assert!(shrunk.len() <= 40, "{bug:?} takes {} steps", shrunk.len());
        assert!(shortest.trace.len() <= 120, "{bug:?}\n{trace}");
    }
}
