//! What `make fuzz` checks, on the corpus of each target: seeds made of real messages, files and settings, and what a
//! fuzzer found worth keeping.

#[path = "../fuzz/checks/configuration.rs"]
mod configuration;
#[path = "../fuzz/checks/messages.rs"]
mod messages;
#[path = "../fuzz/checks/store.rs"]
mod store;
#[path = "../fuzz/checks/times.rs"]
mod times;

use std::fs;
use std::path::Path;

use crate::support::reading;

/// Checks every seed of a target; some must be taken, and some must not, or the corpus shows little.
fn check_corpus(target: &str, check: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let seeds = fs::read_dir(folder.join(target)).expect("a folder of seeds");
    let mut num_taken = 0;
    let mut num_refused = 0;
    for seed in seeds {
        let path = seed.expect("an entry").path();
        println!("{}", path.display());
        if check(&fs::read(&path).expect("a seed")) {
            num_taken += 1;
        } else {
            num_refused += 1;
        }
    }
    assert!(
        num_taken >= 5 && num_refused >= 5,
        "{target}: {num_taken} taken, {num_refused} refused"
    );
}

#[test]
fn messages_are_read_as_a_stranger_reads_them() {
    check_corpus("messages", messages::check);
}

#[test]
fn stores_are_refused_unchanged_or_read_twice_the_same() {
    check_corpus("store", store::check);
}

#[test]
fn configurations_mean_the_same_in_each_format() {
    check_corpus("configuration", configuration::check);
}

#[test]
fn times_are_read_as_a_stranger_reads_them() {
    check_corpus("times", times::check);
}
