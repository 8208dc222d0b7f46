//! The figures as lines of a terminal, and as the table of README.md.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use crate::figures::{Figure, Figures, Must};
use crate::rows::Row;

const README: &str = "README.md";
const BEGIN: &str = "<!-- drawn by make bench -->";
const END: &str = "<!-- end of what make bench draws -->";

/// Prints a row's figures: the median, and the range.
pub(crate) fn print(figures: &Figures) {
    for figure in &figures.0 {
        let (lowest, highest) = figure.range();
        let verdict = match figure.must {
            Must::Say => String::new(),
            must if must.is_met(figure.median()) => format!("  well: {}", text_of(must)),
            Must::AtLeast(_) | Must::AtMost(_) => format!("  NOT {}", text_of(figure.must)),
        };
        println!(
            "  {}: {} {} ({} to {}){verdict}",
            figure.what,
            number(figure.median()),
            figure.unit,
            number(lowest),
            number(highest)
        );
    }
}

/// Draws the table of README.md anew.
pub(crate) fn draw(rows: &[(&Row, Figures)]) {
    let mut table = String::new();
    let (day, commit) = (
        output("date", &["-u", "+%F"]),
        output("git", &["rev-parse", "--short=12", "HEAD"]),
    );
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let cpu = cpu.trim_start_matches([' ', '\t', ':']).to_owned();
    let server = output("target/tools/nats-server", &["--version"]);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    writeln!(table, "\n{day}, commit `{commit}`, {server}, {cores} cores ({cpu}) for daemon, nats-server and bench together. The median of the rounds, and their range.\n").expect("a string grows");
    writeln!(
        table,
        "| row | figure | must | measured |\n|---|---|--:|--:|"
    )
    .expect("a string grows");
    for (row, figures) in rows {
        for (at, figure) in figures.0.iter().enumerate() {
            let name = if at == 0 {
                format!("`{}`", row.name)
            } else {
                String::new()
            };
            writeln!(
                table,
                "| {name} | {} | {} | {} |",
                figure.what,
                text_of(figure.must),
                cell(figure)
            )
            .expect("a string grows");
        }
    }
    writeln!(table, "\n| row | what | beside |\n|---|---|---|").expect("a string grows");
    for (row, _) in rows {
        writeln!(table, "| `{}` | {} | {} |", row.name, row.what, row.beside)
            .expect("a string grows");
    }
    let readme = fs::read_to_string(README).expect("README.md");
    let (before, rest) = readme.split_once(BEGIN).expect("where the table begins");
    let (_, after) = rest.split_once(END).expect("where the table ends");
    fs::write(README, format!("{before}{BEGIN}\n{table}\n{END}{after}"))
        .expect("README.md can be written");
}

fn cell(figure: &Figure) -> String {
    let (lowest, highest) = figure.range();
    let median = number(figure.median());
    let median = if figure.must.is_met(figure.median()) {
        median
    } else {
        format!("**{median}**")
    };
    if figure.rounds.len() > 1 {
        format!(
            "{median} ({} to {}) {}",
            number(lowest),
            number(highest),
            figure.unit
        )
    } else {
        format!("{median} {}", figure.unit)
    }
}

fn text_of(must: Must) -> String {
    match must {
        Must::AtLeast(bound) => format!("≥ {bound}"),
        Must::AtMost(bound) => format!("≤ {bound}"),
        Must::Say => String::new(),
    }
}

/// As many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
