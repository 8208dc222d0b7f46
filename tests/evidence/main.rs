//! The evidence: what happens to the daemon under every fault that can be made here, as one table.
//!
//! | file | what lives there |
//! |---|---|
//! | `rows.rs` | the rows of the table: what is done, what has to hold, which tests show it |
//! | `row.rs` | a row as its test sees it; the tests of `tests/it/` and `tests/sim/` include it |
//! | `sources.rs` | what the result of a row depends on |
//! | `run.rs` | runs the rows, longer than a test run does, and keeps what they counted |
//! | `table.rs` | the table, and its place in the README |
//! | `protections.rs` | the lines of `src/` that protect, and the test that fails without each |
//!
//! `make evidence` takes an hour, `make evidence FULL=1` up to two and a half; what was stopped goes on where it
//! was. `make protections` takes each protection away in turn. By themselves these tests only hold the lists
//! against the tree.
//!
//! A new row is a test of `tests/it/` that makes a `Row`, with its faults, its counts and its verdict; an entry in
//! `rows.rs` that names it; and `make evidence ROW=name`: until that has held, `every_row_was_run_and_held` fails.
//! A new protection is an entry in `protections.rs`, and `make protections ONLY=name`: its test fails without it.

#![expect(
    clippy::panic,
    reason = "a test fails by panicking, wherever it stands"
)]

mod protections;
mod rows;
mod run;
mod sources;
mod table;

use std::fs;
use std::path::{Path, PathBuf};

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The file of a test: `crash::kills` is in `tests/it/crash.rs`, or below `tests/it/crash/`.
fn file_of(target: &str, test: &str) -> PathBuf {
    let (modules, _) = test.rsplit_once("::").unwrap_or(("main", test));
    let stem = modules.replace("::", "/");
    let folder = match target {
        "lib" => root().join("src"),
        other => root().join("tests").join(other),
    };
    let stem = stem.strip_suffix("/tests").unwrap_or(&stem);
    let (file, module) = (format!("{stem}.rs"), format!("{stem}/mod.rs"));
    let is_file = folder.join(&file).is_file();
    folder.join(if is_file { file } else { module })
}

/// Whether a target has a test of this name.
fn has_test(target: &str, test: &str) -> bool {
    let name = test.rsplit("::").next().unwrap_or_default();
    fs::read_to_string(file_of(target, test))
        .is_ok_and(|text| text.contains(&format!("fn {name}(")))
}

#[test]
fn every_row_is_shown_by_tests_that_exist() {
    let missing: Vec<String> = rows::ROWS
        .iter()
        .flat_map(|row| row.proofs.iter().map(move |proof| (row.name, proof)))
        .filter_map(|(row, proof)| match proof {
            rows::Proof::Test { target, test } if !has_test(target, test) => {
                Some(format!("{row}: {target} has no test {test}"))
            }
            rows::Proof::Test { .. } | rows::Proof::Fuzz => None,
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_result_depends_on_what_is_built_its_tests_and_what_they_use() {
    for row in rows::ROWS {
        let paths = sources::of(row);
        let missing = paths.iter().find(|path| !root().join(path).exists());
        assert_eq!(missing, None, "{}", row.name);
        assert!(paths.contains("src"));
        for proof in row.proofs {
            if let rows::Proof::Test { target, test } = proof {
                let file = file_of(target, test);
                let file = file.strip_prefix(root()).expect("a file of the project");
                let is_in_it = paths.iter().any(|path| file.starts_with(path));
                assert!(is_in_it, "{target} {test}");
            }
        }
    }
    let of = |name| {
        sources::of(
            rows::ROWS
                .iter()
                .find(|row| row.name == name)
                .expect("a row"),
        )
    };
    let damage = of("damage");
    for used in ["tests/it/power_loss.rs", "tests/it/store_contract.rs"] {
        assert!(damage.contains(used), "{damage:?}");
    }
    assert!(of("hostile-messages").contains("tests/it/hostile"));
    assert!(!of("simulation").contains("tests/it/support"));
}

/// The modules that a file declares.
fn modules(text: &str) -> impl Iterator<Item = &str> {
    let declared = |line| str::strip_suffix(line, ";")?.rsplit_once("mod ");
    text.lines()
        .filter(|line| !line.starts_with("//"))
        .filter_map(declared)
        .map(|(_, name)| name)
}

/// The rows that tests of a module show, as its table names them.
fn rows_of(module: &str) -> String {
    let is_of_module = |proof: &rows::Proof| match proof {
        rows::Proof::Test { target: "it", test } => test.split("::").next() == Some(module),
        rows::Proof::Test { .. } | rows::Proof::Fuzz => false,
    };
    let shown = rows::ROWS
        .iter()
        .filter(|row| row.proofs.iter().any(is_of_module));
    let shown: Vec<String> = shown.map(|row| format!("`{}`", row.name)).collect();
    shown.join(", ")
}

#[test]
fn every_file_of_the_tests_stands_in_a_table_with_its_rows() {
    let (it, support) = (read("tests/it/main.rs"), read("tests/it/support/mod.rs"));
    let stands = |text: &str, file: &str, end: &str| {
        let begin = format!("//! | `{file}.rs` | ");
        text.lines()
            .any(|line| line.starts_with(&begin) && line.ends_with(end))
    };
    for module in modules(&it).filter(|module| *module != "support") {
        let end = format!("| {} |", rows_of(module)).replace("  ", " ");
        assert!(
            stands(&it, module, &end),
            "tests/it/main.rs: {module} {end}"
        );
    }
    for module in modules(&support) {
        let file = if module == "evidence" {
            "../../evidence/row"
        } else {
            module
        };
        assert!(
            stands(&support, file, " |"),
            "tests/it/support/mod.rs: {file}"
        );
    }
}

#[test]
fn an_hour_and_two_and_a_half_are_enough() {
    let time_of = |seconds: fn(&rows::Seconds) -> u64| -> u64 {
        let alone = rows::ROWS
            .iter()
            .map(|row| (row.is_alone, seconds(&row.seconds)));
        let in_lanes = |(is_alone, seconds)| {
            if is_alone {
                seconds
            } else {
                seconds / run::NUM_LANES
            }
        };
        alone.map(in_lanes).sum()
    };
    let (hour, full) = (time_of(|it| it.hour), time_of(|it| it.full));
    // What is left is for the build, and for what a test has under way when its time is over.
    assert!(hour <= 57 * 60, "{hour} s");
    assert!(full <= 140 * 60, "{full} s");
}

#[test]
fn every_promise_of_the_readme_names_rows_that_show_it() {
    let readme = read("README.md");
    let (_, section) = readme
        .split_once("## What each input path promises\n")
        .expect("the README says what it promises");
    let (section, _) = section
        .split_once("\n## ")
        .expect("another section follows");
    let promises: Vec<&str> = section
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| path |"))
        .collect();
    assert!(promises.len() >= 3, "{promises:?}");
    for promise in promises {
        let named: Vec<&str> = promise.split('`').skip(1).step_by(2).collect();
        let is_row = |named: &&str| rows::ROWS.iter().any(|row| row.name == *named);
        assert!(named.iter().any(is_row), "no row shows: {promise}");
    }
}

#[test]
fn every_row_was_run_and_held() {
    let results = run::results();
    let missing: Vec<&str> = rows::ROWS
        .iter()
        .map(|row| row.name)
        .filter(|name| !results.get(*name).is_some_and(|earned| earned.is_well))
        .collect();
    assert!(
        missing.is_empty(),
        "run `make evidence ROW=…` for {missing:?}"
    );
}

#[test]
fn the_readme_shows_the_table_of_the_results() {
    let is_drawn = table::shown(&read("README.md")) == table::draw(&run::results());
    assert!(
        is_drawn,
        "the table is drawn by `make evidence`, never typed"
    );
}

#[test]
fn every_protection_stands_once_where_it_is_said_to_stand() {
    for protection in protections::PROTECTIONS {
        let text = read(protection.file);
        let num = text.matches(protection.line).count();
        assert_eq!(num, 1, "{}: {}", protection.file, protection.line);
        assert_ne!(protection.line, protection.without);
        assert!(
            has_test(protection.target, protection.test),
            "{} has no test {}",
            protection.target,
            protection.test
        );
    }
}

#[test]
#[ignore = "an hour, or two and a half: `make evidence`"]
fn the_table() {
    run::run();
}

#[test]
#[ignore = "two minutes each: `make protections`"]
fn nothing_protects_in_vain() {
    protections::replay();
}
