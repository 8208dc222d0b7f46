//! The table: drawn from what the rows counted, never typed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;

use crate::rows::{NOT_MADE, ROWS, Row};
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

/// What was counted, in one line; nothing of what never was.
pub(crate) fn counted(earned: &Earned) -> String {
    let facts = earned.facts.iter();
    let facts = facts.filter(|(what, _)| !what.starts_with(PLANTED));
    let facts = facts.map(|(what, value)| format!("{what}: {value}"));
    let counts = earned.counts.iter().filter(|(_, num)| *num > 0);
    let counts = counts.map(|(what, num)| format!("{} {what}", grouped(*num)));
    counts.chain(facts).collect::<Vec<_>>().join("; ")
}

/// The foremost of it.
fn foremost(row: &Row, earned: &Earned) -> String {
    let said = row.foremost.iter().filter_map(|wanted| {
        let count = earned.counts.iter().find(|(what, _)| what == wanted);
        let fact = earned.facts.iter().find(|(what, _)| what == wanted);
        let count = count.map(|(what, num)| format!("{} {what}", grouped(*num)));
        count.or_else(|| fact.map(|(what, value)| format!("{what}: {value}")))
    });
    said.collect::<Vec<_>>().join("; ")
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
        "{} on {}; {}; a debug build, in which the daemon checks its invariants itself; the times of the rows, two of them side by side where they do not measure, add up to {} minutes.\n",
        all(|it| if it.scale == "full" { "`make evidence FULL=1`" } else { "`make evidence`" }),
        all(|it| &it.day),
        all(|it| &it.versions),
        seconds.div_ceil(60),
    )
    .expect("a string takes everything");
    let earned = || {
        let earned = ROWS.iter().map(|row| (row, results.get(row.name)));
        earned.filter_map(|(row, earned)| Some((row, earned?)))
    };
    text += "| row | what was done | what had to hold | how often, among others | verdict |\n|---|---|---|---|---|\n";
    for (row, earned) in earned() {
        let verdict = if earned.is_well { "held" } else { "**broken**" };
        let (name, fault, held) = (row.name, row.fault, row.held);
        let foremost = foremost(row, earned);
        writeln!(
            text,
            "| `{name}` | {fault} | {held} | {foremost} | {verdict} |"
        )
        .expect("a string takes everything");
    }
    text += "\n<details><summary>Everything that was counted, with the seed, the commit and the time of each row</summary>\n\n";
    for (row, earned) in earned() {
        let Earned {
            seed,
            commit,
            seconds,
            ..
        } = earned;
        let (name, counted) = (row.name, counted(earned));
        writeln!(
            text,
            "- `{name}` (seed {seed}, commit {commit}, {seconds} s): {counted}"
        )
        .expect("a string takes everything");
    }
    text += "\n</details>\n";
    let planted: Vec<(&str, &str)> = earned()
        .flat_map(|(_, earned)| &earned.facts)
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
        text += "\n### Faults that were not made, and why\n\n";
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
        let json = r#"{"ROW": {"is_well": true, "counts": [["kill -9", 1200], ["COUNT", 3400], ["never", 0]],
            "facts": [["largest memory", "12 MiB"], ["planted: a forgotten mark", "the oracle, after 3 seeds"]],
            "seed": 7, "scale": "hour", "commit": "abc", "version": "v", "versions": "Rust 1", "day": "2026-11-21",
            "seconds": 61}}"#;
        let json = json.replace("ROW", ROWS[0].name).replace("true", change);
        let json = json.replace("COUNT", ROWS[0].foremost[0]);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn a_row_shows_what_was_counted_and_whether_it_held() {
        let well = draw(&results("true"));
        let (row, foremost) = (ROWS[0].name, ROWS[0].foremost[0]);
        for part in [
            "`make evidence` on 2026-11-21; Rust 1;".to_owned(),
            "add up to 2 minutes.".to_owned(),
            format!("| 3,400 {foremost} | held |"),
            format!(
                "- `{row}` (seed 7, commit abc, 61 s): 1,200 kill -9; 3,400 {foremost}; largest memory: 12 MiB\n"
            ),
            "| a forgotten mark | the oracle, after 3 seeds |".to_owned(),
        ] {
            assert!(well.contains(&part), "no {part} in\n{well}");
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
