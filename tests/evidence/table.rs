//! The table: drawn from what the rows counted, never typed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use crate::rows::{NOT_MADE, ROWS};
use crate::run::{Earned, Results};
use crate::{read, root};

const BEGIN: &str = "<!-- drawn by make evidence -->\n";
const END: &str = "<!-- until here -->\n";
/// What a fact is called that belongs into the table of planted faults.
const PLANTED: &str = "planted: ";

/// What stands before the table, the table, and what stands behind it.
fn parts(readme: &str) -> (&str, &str, &str) {
    let (before, rest) = readme
        .split_once(BEGIN)
        .expect("the README has a place for the table");
    let (drawn, after) = rest.split_once(END).expect("the place has an end");
    (before, drawn, after)
}

/// The table as a README shows it.
pub(crate) fn shown(readme: &str) -> &str {
    parts(readme).1
}

/// What was counted, in one line.
pub(crate) fn counted(earned: &Earned) -> String {
    let counts = earned
        .counts
        .iter()
        .map(|(what, num)| format!("{} {what}", grouped(*num)));
    let facts = earned
        .facts
        .iter()
        .filter(|(what, _)| !what.starts_with(PLANTED));
    let facts = facts.map(|(what, value)| format!("{what}: {value}"));
    counts.chain(facts).collect::<Vec<_>>().join("; ")
}

/// Draws the table into the README.
pub(crate) fn put(results: &Results) {
    let readme = read("README.md");
    let (before, _, after) = parts(&readme);
    let text = format!("{before}{BEGIN}{}{END}{after}", draw(results));
    fs::write(root().join("README.md"), text).expect("the README can be written");
}

/// The table of these results.
pub(crate) fn draw(results: &Results) -> String {
    let mut text = String::new();
    let all = |what: fn(&Earned) -> &str| {
        let all: BTreeSet<&str> = results.values().map(what).collect();
        all.into_iter().collect::<Vec<_>>().join(", ")
    };
    let seconds: u64 = results.values().map(|it| it.seconds).sum();
    writeln!(
        text,
        "{} on {}, {} minutes of faults; commit {}; {}; a debug build, in which the daemon checks its invariants itself.\n",
        all(|it| if it.scale == "full" { "`make evidence FULL=1`" } else { "`make evidence`" }),
        all(|it| &it.day),
        seconds.div_ceil(60),
        all(|it| &it.commit),
        all(|it| &it.versions),
    )
    .expect("a string takes everything");
    text += "| row | what was done | what had to hold | counted | |\n|---|---|---|---|---|\n";
    for row in ROWS {
        let Some(earned) = results.get(row.name) else {
            continue;
        };
        let verdict = if earned.is_well { "held" } else { "**broken**" };
        let (name, fault, held, counted) = (row.name, row.fault, row.held, counted(earned));
        writeln!(
            text,
            "| `{name}` | {fault} | {held} | {counted}; seed {} | {verdict} |",
            earned.seed
        )
        .expect("a string takes everything");
    }
    let planted: Vec<(&str, &str)> = ROWS
        .iter()
        .filter_map(|row| results.get(row.name))
        .flat_map(|earned| &earned.facts)
        .filter_map(|(what, by)| Some((what.strip_prefix(PLANTED)?, by.as_str())))
        .collect();
    if !planted.is_empty() {
        writeln!(
            text,
            "\n<details><summary>{} planted faults, and the check that caught each</summary>\n\n| fault | caught by |\n|---|---|",
            planted.len()
        )
        .expect("a string takes everything");
        for (fault, by) in planted {
            writeln!(text, "| {fault} | {by} |").expect("a string takes everything");
        }
        text += "\n</details>\n";
    }
    if !NOT_MADE.is_empty() {
        text += "\nNot made:\n\n";
        for (fault, reason) in NOT_MADE {
            writeln!(text, "- {fault}: {reason}").expect("a string takes everything");
        }
    }
    text
}

/// 12345678 as 12,345,678.
fn grouped(num: u64) -> String {
    let digits = num.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(change: &str) -> Results {
        let json = r#"{"ROW": {"is_well": true, "counts": [["kill -9", 1200]], "facts": [["largest memory", "12 MiB"],
            ["planted: a forgotten mark", "the oracle, after 3 seeds"]], "seed": 7, "scale": "hour", "commit": "abc", "product": "p",
            "versions": "Rust 1", "day": "2026-11-21", "seconds": 61}}"#;
        let json = json.replace("ROW", ROWS[0].name).replace("true", change);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_row_shows_what_was_counted_and_whether_it_held() {
        let well = draw(&results("true"));
        for part in [
            "`make evidence` on 2026-11-21, 2 minutes of faults; commit abc; Rust 1;",
            "| 1,200 kill -9; largest memory: 12 MiB; seed 7 | held |",
            "| a forgotten mark | the oracle, after 3 seeds |",
        ] {
            assert!(well.contains(part), "no {part} in\n{well}");
        }
        let broken = draw(&results("false"));
        assert!(broken.contains("| **broken** |"), "{broken}");
    }

    #[test]
    fn the_table_of_a_readme_stands_between_the_marks() {
        let readme = format!("before\n{BEGIN}| row |\n{END}after\n");
        assert_eq!(shown(&readme), "| row |\n");
    }

    #[test]
    fn numbers_are_grouped() {
        let shown = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(shown, ["0", "999", "1,000", "1,234,567"]);
    }
}
