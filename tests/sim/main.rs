//! The main proof: thousands of seeded worlds in which everything fails, judged by an oracle that shares no
//! code with the domain, and planted faults that must all be noticed.
//!
//! | run | does |
//! |---|---|
//! | `cargo test --test sim` | 2,000 seeds, and every planted fault |
//! | `SIM_SEEDS=n` | so many seeds |
//! | `SIM_SEED=7 cargo test --test sim -- --nocapture` | replays one seed with its trace |

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a world that indexes wrongly is a failed test"
)]

mod oracle;
mod planted;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use tocsin::domains::alarms::Alarms;

use planted::{Bug, Flipping, Observed};
use world::{Failure, World};

/// A planted fault is noticed within so many seeds.
const SEEDS_TO_NOTICE: u64 = 400;
const LINES_OF_TRACE: usize = 60;

thread_local! {
    /// Whether a panic of this thread is a finding of the world under way, which reports it itself.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

fn play<D: Observed>(seed: u64, bug: Option<Bug>) -> (Vec<String>, Result<(), Failure>) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                usual(panic);
            }
        }));
    });
    let mut world = World::<D>::new(seed, bug);
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
    (world.trace, result)
}

fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
    )
}

#[test]
fn nothing_is_lost_in_any_world() {
    let one = number_from("SIM_SEED");
    let seeds = match one {
        Some(seed) => seed..seed + 1,
        None => 0..number_from("SIM_SEEDS").unwrap_or(2000),
    };
    let mut num_actions = 0;
    for seed in seeds {
        let (trace, result) = play::<Alarms>(seed, None);
        num_actions += trace.len();
        let shown = if one.is_some() {
            trace.len()
        } else {
            LINES_OF_TRACE
        };
        let tail = trace[trace.len().saturating_sub(shown)..].join("\n");
        if let Err(Failure { check, detail }) = result {
            panic!("{tail}\nseed {seed} breaks {check}\n{detail}\nreplay it with SIM_SEED={seed}");
        }
        if one.is_some() {
            println!("{tail}");
        }
    }
    println!("{num_actions} actions");
}

#[test]
fn the_same_seed_plays_the_same_world() {
    for seed in 0..20 {
        assert_eq!(
            play::<Alarms>(seed, None).0,
            play::<Alarms>(seed, None).0,
            "seed {seed}"
        );
    }
}

#[test]
fn every_planted_fault_is_noticed_by_a_named_check() {
    let mut unnoticed = Vec::new();
    for bug in Bug::ALL {
        let noticed = (0..SEEDS_TO_NOTICE).find_map(|seed| {
            let result = if bug == Bug::DeltaRows {
                play::<Flipping>(seed, Some(bug)).1
            } else {
                play::<Alarms>(seed, Some(bug)).1
            };
            result.err().map(|failure| (seed, failure.check))
        });
        match noticed {
            Some((_, check)) if check.starts_with("panic") => unnoticed.push(bug),
            Some((seed, check)) => println!("{bug:?}: {check}, after {} seeds", seed + 1),
            None => unnoticed.push(bug),
        }
    }
    assert!(
        unnoticed.is_empty(),
        "not noticed in {SEEDS_TO_NOTICE} seeds: {unnoticed:?}"
    );
}
