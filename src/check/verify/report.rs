//! Verdicts, and the report that is read by people and programs.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::play::{Fault, Line, Outcome, Play};
use super::rules::Rule;
use super::scenario::Message;

/// How much of a payload is shown, in characters.
const MAX_SHOWN: usize = 2000;
/// How many of the last messages are shown.
const MAX_LINES: usize = 60;

/// What is said of a rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// It is kept.
    Passed,
    /// It is kept in a form of the service's own.
    Different,
    /// It is broken.
    Failed,
    /// It was not looked at.
    NotChecked,
}

impl Verdict {
    /// Each once.
    pub const ALL: [Self; 4] = [
        Self::Passed,
        Self::Different,
        Self::Failed,
        Self::NotChecked,
    ];

    /// As programs read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Different => "different",
            Self::Failed => "failed",
            Self::NotChecked => "not checked",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A scenario that went wrong.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Which scenario.
    pub scenario: String,
    /// What was wrong, in words.
    pub why: String,
    /// The digest that should have come.
    pub expected: Option<String>,
    /// What was sent and what came, one message a line, the last ones if there are many.
    pub messages: Vec<String>,
    pub(super) is_silence: bool,
}

impl Problem {
    pub(super) fn new(play: &Play, fault: &Fault) -> Self {
        let record = play.record();
        let num_left_out = record.len().saturating_sub(MAX_LINES);
        let left_out = (num_left_out > 0).then(|| format!("({num_left_out} messages before)"));
        let last = record.iter().skip(num_left_out).map(|line| match line {
            Line::Sent { subject, payload } => format!("> {subject} {}", shown(payload)),
            Line::Came { payload } => format!("< AlarmDigest {}", shown(payload)),
        });
        Self {
            scenario: play.scenario().title.clone(),
            why: fault.why.clone(),
            expected: fault.expected.as_deref().map(|it| shown(it.as_bytes())),
            messages: left_out.into_iter().chain(last).collect(),
            is_silence: fault.is_silence,
        }
    }

    /// The problem of a play that failed.
    pub(super) fn of(play: &Play) -> Option<Self> {
        match play.outcome()? {
            Outcome::Failed(fault) => Some(Self::new(play, fault)),
            Outcome::Passed => None,
        }
    }

    /// A refused message that did not come on the subject of dead letters as it should have.
    pub(super) fn of_missing_letter(message: &Message) -> Self {
        Self {
            scenario: "a refused message".to_owned(),
            why: format!(
                "no dead letter came with its bytes, a reason and subject {}",
                message.subject
            ),
            expected: None,
            messages: vec![format!("> {} {}", message.subject, shown(&message.payload))],
            is_silence: false,
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "Scenario": self.scenario,
            "Why": self.why,
            "Expected": self.expected,
            "Messages": self.messages,
        })
    }
}

/// A payload as one bounded line.
fn shown(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    let escape = |c: char| {
        let escaped = c.is_control().then(|| c.escape_default().to_string());
        escaped.unwrap_or_else(|| c.to_string())
    };
    let line: String = text.chars().take(MAX_SHOWN).map(escape).collect();
    let num_more = text.chars().count().saturating_sub(MAX_SHOWN);
    if num_more == 0 {
        line
    } else {
        format!("{line}… ({num_more} more characters)")
    }
}

/// What was found of one rule.
#[derive(Clone, Debug)]
pub struct RuleReport {
    /// Which rule.
    pub rule: &'static Rule,
    /// What is said of it.
    pub verdict: Verdict,
    /// From its first message to its last.
    pub elapsed: Duration,
    /// How many scenarios were played.
    pub num_scenarios: usize,
    /// What is different, or why it was not checked.
    pub note: Option<String>,
    /// What went wrong.
    pub problems: Vec<Problem>,
}

impl RuleReport {
    /// A rule that was not looked at.
    pub(super) fn not_checked(rule: &'static Rule, why: &str) -> Self {
        Self {
            rule,
            verdict: Verdict::NotChecked,
            elapsed: Duration::ZERO,
            num_scenarios: 0,
            note: Some(why.to_owned()),
            problems: Vec::new(),
        }
    }

    fn as_json(&self) -> Value {
        json!({
            "Name": self.rule.name,
            "Sentence": self.rule.sentence,
            "Section": self.rule.section,
            "Verdict": self.verdict.as_str(),
            "Seconds": self.elapsed.as_secs_f64(),
            "Scenarios": self.num_scenarios,
            "Note": self.note,
            "Problems": self.problems.iter().map(Problem::as_json).collect::<Vec<_>>(),
        })
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Gives the same random histories again.
    pub seed: u64,
    /// The smoke test.
    pub smoke: RuleReport,
    /// The rules that were asked for, in the order of the run.
    pub rules: Vec<RuleReport>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Report {
    /// How many rules have this verdict.
    #[must_use]
    pub fn num(&self, verdict: Verdict) -> usize {
        let of_it = self.rules.iter().filter(|rule| rule.verdict == verdict);
        of_it.count()
    }

    /// The smoke test and the rules that are broken.
    pub fn failed(&self) -> impl Iterator<Item = &RuleReport> {
        let all = std::iter::once(&self.smoke).chain(&self.rules);
        all.filter(|rule| rule.verdict == Verdict::Failed)
    }

    /// Everything, as one object.
    #[must_use]
    pub fn as_json(&self) -> Value {
        json!({
            "Verdict": if self.failed().next().is_none() { "passed" } else { "failed" },
            "Seed": self.seed,
            "Seconds": self.elapsed.as_secs_f64(),
            "SmokeTest": self.smoke.as_json(),
            "Rules": self.rules.iter().map(RuleReport::as_json).collect::<Vec<_>>(),
            "Passed": self.num(Verdict::Passed),
            "Different": self.num(Verdict::Different),
            "Failed": self.num(Verdict::Failed),
            "NotChecked": self.num(Verdict::NotChecked),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::RULES;
    use super::super::scenario::Scenario;
    use super::*;

    #[test]
    fn a_payload_is_one_bounded_line() {
        assert_eq!(shown(b"a\nb\xff"), "a\\nb\u{fffd}");
        let long = shown("é".repeat(MAX_SHOWN + 7).as_bytes());
        assert!(long.ends_with("… (7 more characters)"), "{long}");
    }

    #[test]
    fn a_problem_tells_what_was_sent_and_what_should_have_come() {
        let mut play = Play::new(Scenario::example("u", "aC1 S"));
        play.advance();
        play.on_silence(Duration::from_secs(5));
        let problem = Problem::of(&play).unwrap();
        assert_eq!(problem.scenario, "aC1 S");
        assert_eq!(problem.messages.len(), 2);
        assert!(problem.messages[1].starts_with("> SendAlarmDigest {"));
        assert!(problem.expected.unwrap().starts_with("{\"UserID\":\"u\""));
    }

    #[test]
    fn the_report_counts_its_verdicts() {
        let mut failed = RuleReport::not_checked(&RULES[1], "");
        failed.verdict = Verdict::Failed;
        let mut smoke = RuleReport::not_checked(&RULES[0], "");
        smoke.verdict = Verdict::Passed;
        let report = Report {
            seed: 7,
            smoke,
            rules: vec![failed, RuleReport::not_checked(&RULES[2], "it rains")],
            elapsed: Duration::from_millis(1500),
        };
        let json = report.as_json();
        assert_eq!(
            (&json["Failed"], &json["NotChecked"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(
            (&json["Verdict"], &json["Seconds"]),
            (&json!("failed"), &json!(1.5))
        );
        assert_eq!(json["Rules"][1]["Note"], "it rains");
        assert_eq!(report.failed().count(), 1);
    }
}
