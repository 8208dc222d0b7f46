//! `tocsin verify`: whether any running digest service does what the specification says.

use std::time::Duration;

use serde_json::{Value, json};

use super::arguments::{ClientArgs, OutputFormat};
use super::style::{CLEARED, CRITICAL, DIM, HEADING, WARNING};
use super::{Exit, Failure, help, oneshot, print, threads};
use crate::bus::connection::shown_url;
use crate::check::verify::{
    Event, Options, Problem, RULES, Report, Rule, RuleReport, Verdict, verify,
};

const EXAMPLES: &str = "\
  tocsin verify                            # the smoke test, at the server that is configured
  tocsin verify --full --url nats://host   # every rule by name
  tocsin verify --full --rule tombstone    # one rule
  tocsin verify --full --seed 7            # the same random histories as before
  tocsin verify --list                     # the rules";

/// The arguments of `tocsin verify`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::ALL))]
pub struct Args {
    /// Checks every rule of the digest by name, after the smoke test.
    #[arg(long)]
    pub full: bool,
    /// Makes the random histories of an earlier run again, with --full [default: others each time].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Checks only this rule, after the smoke test; may be repeated.
    #[arg(long = "rule", value_name = "NAME", value_parser = parse_rule)]
    pub rules: Vec<&'static Rule>,
    /// Lists the rules, and checks nothing.
    #[arg(long, conflicts_with_all = ["full", "seed", "rules"])]
    pub list: bool,
    /// What every one-shot command has. `--timeout` is how long nothing may come while a digest is due.
    #[command(flatten)]
    pub client: ClientArgs,
}

fn parse_rule(name: &str) -> Result<&'static Rule, String> {
    Rule::named(name).ok_or_else(|| {
        let distance = |rule: &&Rule| strsim::osa_distance(rule.name, name);
        let nearest = RULES.iter().min_by_key(distance).map(|rule| rule.name);
        format!(
            "no such rule; did you mean {}? --list names all",
            nearest.unwrap_or_default()
        )
    })
}

/// Checks the service, and prints what was found.
///
/// # Errors
/// When a rule is broken, no service answers, or the broker cannot be reached.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    if args.list {
        print(&list(args.client.output))?;
        return Ok(Exit::Well);
    }
    let seed = args.seed.or_else(|| getrandom::u32().ok().map(u64::from));
    let options = Options {
        seed: seed.unwrap_or_default(),
        timeout: args.client.timeout,
        rules: chosen(args),
    };
    let report = threads()?.block_on(check(args, &options))?;
    print(&match args.client.output {
        OutputFormat::Json => format!("{}\n", report.as_json()),
        OutputFormat::Text => in_words(args, &report),
    })?;
    match verdict(args, &report) {
        None => Ok(Exit::Well),
        Some(line) => Err(Failure::new(Exit::NotTaken, &line)),
    }
}

fn chosen(args: &Args) -> Vec<&'static Rule> {
    let is_chosen = |rule: &&Rule| {
        args.rules.is_empty() || args.rules.iter().any(|chosen| chosen.name == rule.name)
    };
    let rules = RULES
        .iter()
        .filter(|_| args.full || !args.rules.is_empty() || args.seed.is_some());
    rules.filter(is_chosen).collect()
}

async fn check(args: &Args, options: &Options) -> Result<Report, Failure> {
    let connection = oneshot::connect(&args.client).await?;
    let mut printed = Ok(());
    let mut on_event = |event: Event<'_>| {
        if args.client.output == OutputFormat::Text && printed.is_ok() {
            printed = print(&as_line(event));
        }
    };
    let checked = verify(&connection, options, &mut on_event).await;
    printed?;
    checked.map_err(|lost| Failure::new(Exit::Unreachable, &lost))
}

fn as_line(event: Event<'_>) -> String {
    match event {
        Event::Waiting => "waiting to consume \"AlarmDigest\" messages\n".to_owned(),
        Event::SmokePassed => "Smoke test passed\n".to_owned(),
        Event::Checked(report) => rule_line(report),
    }
}

fn rule_line(report: &RuleReport) -> String {
    let (style, word) = match report.verdict {
        Verdict::Passed => (CLEARED, "PASS"),
        Verdict::Different => (WARNING, "DIFFERENT"),
        Verdict::Failed => (CRITICAL, "FAIL"),
        Verdict::NotChecked => (DIM, "NOT CHECKED"),
    };
    let name = report.rule.name;
    let note = report.note.as_deref();
    let note = note.map_or_else(String::new, |note| format!(" {DIM}{note}{DIM:#}"));
    format!(
        "{style}{word:>12}{style:#} [{:>8.3}s] {HEADING}{name}{HEADING:#}{note}\n",
        report.elapsed.as_secs_f64()
    )
}

/// What is said at the end of all rules: what was wrong, how to repeat it, and the numbers.
fn in_words(args: &Args, report: &Report) -> String {
    if report.rules.is_empty() {
        return String::new();
    }
    let failures = report.failed();
    let text: String = failures
        .map(|rule| failure(args, report.seed, rule))
        .collect();
    let style = if report.failed().next().is_none() {
        CLEARED
    } else {
        CRITICAL
    };
    let counts = Verdict::ALL.map(|verdict| format!("{} {verdict}", report.num(verdict)));
    text + &format!(
        "{style}{:>12}{style:#} [{:>8.3}s] {} rules: {} {DIM}(seed {}){DIM:#}\n",
        "Summary",
        report.elapsed.as_secs_f64(),
        report.rules.len(),
        counts.join(", "),
        report.seed
    )
}

fn failure(args: &Args, seed: u64, report: &RuleReport) -> String {
    let (name, rule) = (report.rule.name, report.rule);
    let head = format!(
        "\n{CRITICAL}FAIL{CRITICAL:#} {HEADING}{name}{HEADING:#}: {} {DIM}({}){DIM:#}\n",
        rule.sentence, rule.section
    );
    // The shortest history says the most; of the others, only the number is said.
    let shortest = report.problems.iter().min_by_key(|it| it.messages.len());
    let shortest = shortest.map(told).unwrap_or_default();
    let others = match report.problems.len() {
        0 | 1 => String::new(),
        num => format!(
            "{DIM}  and {} more of {} scenarios; -o json has them all{DIM:#}\n",
            num - 1,
            report.num_scenarios
        ),
    };
    let repeat = repeat(args, seed, name);
    format!("{head}{shortest}{others}  to repeat it: {repeat}\n\n")
}

fn told(problem: &Problem) -> String {
    let messages = problem.messages.iter();
    let messages = messages.map(|message| format!("    {DIM}{message}{DIM:#}\n"));
    let expected = problem.expected.iter();
    let expected = expected.map(|expected| format!("  expected:\n    {expected}\n"));
    format!(
        "  {}: {}\n{}{}",
        problem.scenario,
        problem.why,
        messages.collect::<String>(),
        expected.collect::<String>()
    )
}

fn repeat(args: &Args, seed: u64, rule: &str) -> String {
    // The smoke test comes with every run.
    let rule = Rule::named(rule).map(|rule| format!(" --rule {}", rule.name));
    let url = args.client.url.as_ref();
    let url = url.map(|url| format!(" --url {}", shown_url(url)));
    format!(
        "tocsin verify --full --seed {seed}{}{}",
        rule.unwrap_or_default(),
        url.unwrap_or_default()
    )
}

/// Why the program ends with 1, in one line.
fn verdict(args: &Args, report: &Report) -> Option<String> {
    let failed: Vec<_> = report.failed().map(|it| it.rule.name).collect();
    let smoke = report.smoke.problems.first();
    let smoke = smoke.filter(|_| report.rules.is_empty());
    if let Some(problem) = smoke {
        let Problem { why, messages, .. } = problem;
        let expected = problem.expected.as_deref().unwrap_or_default();
        let came = messages.iter().any(|it| it.starts_with('<'));
        let limit: Duration = args.client.timeout;
        return Some(if came {
            format!(
                "the smoke test failed: {why}; expected {expected}; the messages were: {}",
                messages.join("; ")
            )
        } else {
            format!(
                "the smoke test failed: no digest came within {limit:?}; start the service, or wait longer (--timeout); expected {expected}"
            )
        });
    }
    (!failed.is_empty()).then(|| {
        let num = failed.len();
        let rules = if num == 1 { "rule is" } else { "rules are" };
        format!("{num} {rules} broken: {}", failed.join(", "))
    })
}

fn list(output: OutputFormat) -> String {
    if output == OutputFormat::Json {
        let rules: Value = RULES
            .iter()
            .map(|it| json!({"Name": it.name, "Sentence": it.sentence, "Section": it.section}))
            .collect();
        return format!("{rules}\n");
    }
    let width = RULES.iter().map(|rule| rule.name.len()).max().unwrap_or(0);
    let lines = RULES.iter().map(|rule| {
        let (name, sentence, section) = (rule.name, rule.sentence, rule.section);
        format!("{HEADING}{name:width$}{HEADING:#}  {sentence} {DIM}({section}){DIM:#}\n")
    });
    lines.collect()
}
