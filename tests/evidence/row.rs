//! A row of the evidence as the test sees it that earns it: how much to do, and what was counted.
//!
//! One test serves both: by itself it is small and always the same; `make evidence` runs it for longer, with
//! another seed, and reads what it counted.
//!
//! | variable | says |
//! |---|---|
//! | `EVIDENCE_FILE` | where the counts go; without it nothing is written |
//! | `EVIDENCE_SCALE` | `hour` or `full`: which of the row's amounts to do; without it a test's |
//! | `EVIDENCE_SECONDS` | how long it may take until it does no more; without it as long as the amount takes |
//! | `EVIDENCE_SEED` | what its draws begin with; without it 1 |

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often a row does what it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounds {
    /// In a test run.
    pub(crate) test: u64,
    /// In the evidence of an hour.
    pub(crate) hour: u64,
    /// In the full evidence.
    pub(crate) full: u64,
}

impl Rounds {
    /// So many in a test run, and as many as the time allows in the evidence.
    pub(crate) const fn in_test(test: u64) -> Self {
        let (hour, full) = (u64::MAX, u64::MAX);
        Self { test, hour, full }
    }
}

/// What one test counts for its row.
#[derive(Debug)]
pub(crate) struct Row {
    rounds: u64,
    num_done: u64,
    until: Option<Instant>,
    seed: u64,
    file: Option<PathBuf>,
    counts: Vec<(String, u64)>,
    facts: Vec<(String, String)>,
}

impl Row {
    /// Begins a row.
    pub(crate) fn new(rounds: Rounds) -> Self {
        let scale = std::env::var("EVIDENCE_SCALE").unwrap_or_default();
        let seconds = number_of("EVIDENCE_SECONDS").map(Duration::from_secs);
        Self {
            rounds: match scale.as_str() {
                "" => rounds.test,
                "hour" => rounds.hour,
                "full" => rounds.full,
                other => panic!("EVIDENCE_SCALE is hour or full, not {other}"),
            },
            num_done: 0,
            until: seconds.map(|it| Instant::now() + it),
            seed: number_of("EVIDENCE_SEED").unwrap_or(1),
            file: std::env::var_os("EVIDENCE_FILE").map(PathBuf::from),
            counts: Vec::new(),
            facts: Vec::new(),
        }
    }

    /// What the draws of this run begin with.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// Whether one more round is wanted: the amount is not done, and the time is not over. The first always is.
    pub(crate) fn goes_on(&mut self) -> bool {
        let is_over = self.until.is_some_and(|until| Instant::now() >= until);
        if self.num_done > 0 && (self.num_done >= self.rounds || is_over) {
            return false;
        }
        self.num_done += 1;
        true
    }

    /// Counts so many more of something, named as the table shall say it: "kill -9 of the daemon".
    pub(crate) fn count(&mut self, what: &str, num: u64) {
        match self.counts.iter_mut().find(|(known, _)| known == what) {
            Some((_, sum)) => *sum += num,
            None => self.counts.push((what.to_owned(), num)),
        }
    }

    /// Says what is no count: "largest memory", "143 MiB". Said again, it replaces what was said before.
    pub(crate) fn fact(&mut self, what: &str, value: impl Into<String>) {
        self.facts.retain(|(known, _)| known != what);
        self.facts.push((what.to_owned(), value.into()));
    }

    /// Ends a row of which everything held. A row that is only dropped was not earned.
    pub(crate) fn close(self) {
        let line = serde_json::json!({"counts": self.counts, "facts": self.facts});
        println!("evidence: {line}");
        let Some(path) = self.file else { return };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path);
        file.and_then(|mut file| writeln!(file, "{line}"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn number_of(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}
