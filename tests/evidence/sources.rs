//! What the result of a row depends on: what is built, its tests, and what they share. When some of it is another,
//! the row is run again.

use std::collections::BTreeSet;
use std::fs;

use crate::root;
use crate::rows::{Proof, Row};
use crate::run::git;

/// What is built, and how a row counts.
const EVERY_ROW: [&str; 3] = ["src", "Cargo.lock", "tests/evidence/row.rs"];

/// The files and folders that a row depends on.
pub(crate) fn of(row: &Row) -> BTreeSet<String> {
    let mut paths: BTreeSet<_> = EVERY_ROW.map(str::to_owned).into();
    for proof in row.proofs {
        match proof {
            Proof::Test { target: "it", test } => {
                paths.insert("tests/it/support".to_owned());
                let module = test.split("::").next().unwrap_or_default();
                add_module(module, &mut paths);
            }
            Proof::Test { target, .. } => {
                paths.insert(format!("tests/{target}"));
            }
            Proof::Fuzz => {
                paths.insert("tests/fuzz".to_owned());
            }
        }
    }
    paths
}

/// Adds a module of the integration tests, and those that it uses.
fn add_module(module: &str, paths: &mut BTreeSet<String>) {
    let file = format!("tests/it/{module}.rs");
    let Ok(text) = fs::read_to_string(root().join(&file)) else {
        return;
    };
    if !paths.insert(file) {
        return;
    }
    let folder = format!("tests/it/{module}");
    if root().join(&folder).is_dir() {
        paths.insert(folder);
    }
    for way in ["crate::", "super::"] {
        for used in text.split(way).skip(1) {
            let end = used.find(|it: char| !it.is_ascii_alphanumeric() && it != '_');
            add_module(
                used.get(..end.unwrap_or(used.len())).unwrap_or_default(),
                paths,
            );
        }
    }
}

/// What of it git has: a row of the same version has the same result.
///
/// # Panics
/// When some of it is not committed: the evidence names a commit.
pub(crate) fn version(row: &Row) -> String {
    let paths = of(row);
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(paths.iter().map(String::as_str));
    let changed = git(&status);
    assert!(
        changed.is_empty(),
        "the evidence names a commit; commit this first:\n{changed}"
    );
    let objects: Vec<_> = paths
        .iter()
        .map(|path| git(&["rev-parse", "--short=12", &format!("HEAD:{path}")]))
        .collect();
    objects.join("-")
}
