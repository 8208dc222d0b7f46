//! Runs the rows, and keeps what they counted: a run that was stopped goes on where it was.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::root;
use crate::rows::{Proof, ROWS, Row};
use crate::sources;
use crate::table;

/// What a row has counted, and on what.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Earned {
    /// Whether everything held.
    pub(crate) is_well: bool,
    pub(crate) counts: Vec<(String, u64)>,
    pub(crate) facts: Vec<(String, String)>,
    pub(crate) seed: u64,
    /// `hour` or `full`.
    pub(crate) scale: String,
    /// The commit that was tested.
    pub(crate) commit: String,
    /// What it depends on ([`sources`]): with another version the row is run again.
    version: String,
    /// The versions of what ran, and the machine.
    pub(crate) versions: String,
    /// The day, in UTC.
    pub(crate) day: String,
    /// How long it took, in seconds.
    pub(crate) seconds: u64,
}

/// The results by row.
pub(crate) type Results = BTreeMap<String, Earned>;

/// What a test writes for its row; see `row.rs`.
#[derive(Deserialize)]
struct Counted {
    counts: Vec<(String, u64)>,
    facts: Vec<(String, String)>,
}

/// So many rows run side by side: most of them wait for something most of the time.
pub(crate) const NUM_LANES: u64 = 2;
/// Where the results are kept; the table is drawn from it.
const RESULTS: &str = "tests/evidence/results.json";

/// How a command ended.
pub(crate) struct Ended {
    pub(crate) is_well: bool,
    /// The end of what it printed.
    pub(crate) last: String,
}

/// Where logs and copies lie.
pub(crate) fn folder() -> PathBuf {
    let folder = root().join("target/evidence");
    fs::create_dir_all(&folder).expect("a folder for the evidence");
    folder
}

/// Prints a line at once.
pub(crate) fn say(line: &str) {
    println!("evidence: {line}");
}

/// What git says.
pub(crate) fn git(args: &[&str]) -> String {
    let output = Command::new("git").current_dir(root()).args(args).output();
    let output = output.expect("git is installed");
    assert!(
        output.status.success(),
        "git {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs every row that has no result of this version yet, and draws the table after each.
pub(crate) fn run() {
    let is_full = std::env::var("FULL").is_ok_and(|full| full == "1");
    let scale = if is_full { "full" } else { "hour" };
    let only = std::env::var("ROW").ok().filter(|row| !row.is_empty());
    if let Some(only) = &only {
        let is_known = ROWS.iter().any(|row| row.name == only);
        assert!(is_known, "no row is called {only}");
    }
    let current: BTreeMap<_, _> = ROWS
        .iter()
        .map(|row| (row.name, sources::version(row)))
        .collect();
    let version_of = |row: &Row| current.get(row.name).cloned().expect("every row has one");
    let versions = versions();
    let commit = git(&["rev-parse", "--short=12", "HEAD"]);
    let seed = std::env::var("SEED").ok().filter(|seed| !seed.is_empty());
    let seed = seed.map_or_else(unix_seconds, |seed| {
        let number = seed.parse();
        number.unwrap_or_else(|_| panic!("SEED is a number, not {seed:?}"))
    });
    let mut results = results();
    results.retain(|name, _| ROWS.iter().any(|row| row.name == name));
    let is_done =
        |row: &Row, it: &Earned| it.is_well && it.version == version_of(row) && it.scale == scale;
    let is_wanted = |row: &&Row| match &only {
        Some(only) => only == row.name,
        None => !results.get(row.name).is_some_and(|it| is_done(row, it)),
    };
    let wanted: Vec<&Row> = ROWS.iter().filter(is_wanted).collect();
    let (alone, beside): (Vec<&Row>, Vec<&Row>) = wanted.into_iter().partition(|row| row.is_alone);
    say(&format!(
        "{} of {} rows, as the others have held with this version; seed {seed}; what they print is in {}",
        alone.len() + beside.len(),
        ROWS.len(),
        folder().display()
    ));
    let begun = Instant::now();
    let (results, broken) = (Mutex::new(results), Mutex::new(Vec::new()));
    let run = |row: &'static Row| {
        let seconds = if is_full {
            row.seconds.full
        } else {
            row.seconds.hour
        };
        say(&format!("{}: {}; about {seconds} s", row.name, row.fault));
        let mut earned = Earned {
            is_well: true,
            counts: Vec::new(),
            facts: Vec::new(),
            seed,
            scale: scale.to_owned(),
            commit: commit.clone(),
            version: version_of(row),
            versions: versions.clone(),
            day: time::OffsetDateTime::now_utc().date().to_string(),
            seconds: 0,
        };
        earned.earn(row, seconds);
        let verdict = if earned.is_well { "held" } else { "BROKEN" };
        let counted = table::counted(&earned);
        say(&format!(
            "{}: {verdict} in {} s: {counted}",
            row.name, earned.seconds
        ));
        if !earned.is_well {
            broken.lock().expect("no row panics").push(row.name);
        }
        let mut results = results.lock().expect("no row panics");
        results.insert(row.name.to_owned(), earned);
        let text = serde_json::to_string_pretty(&*results).expect("results are JSON");
        fs::write(root().join(RESULTS), text + "\n").expect("the results can be written");
        table::put(&results);
    };
    let queue = Mutex::new(VecDeque::from(beside));
    thread::scope(|lanes| {
        for _ in 0..NUM_LANES {
            lanes.spawn(|| {
                let next = || queue.lock().expect("no row panics").pop_front();
                while let Some(row) = next() {
                    run(row);
                }
            });
        }
    });
    alone.into_iter().for_each(run);
    say(&format!(
        "{} s; the table is in README.md",
        begun.elapsed().as_secs()
    ));
    let (broken, logs) = (broken.into_inner().expect("no row panics"), folder());
    assert!(
        broken.is_empty(),
        "broken: {broken:?}; what they printed is in {}",
        logs.display()
    );
}

/// What was earned so far.
pub(crate) fn results() -> Results {
    serde_json::from_str(&crate::read(RESULTS)).unwrap_or_else(|error| panic!("{RESULTS}: {error}"))
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

impl Earned {
    /// Runs a row's proofs, one after the other.
    fn earn(&mut self, row: &Row, seconds: u64) {
        let began = Instant::now();
        let share = (seconds / row.proofs.len() as u64).max(1);
        for (number, proof) in (1..).zip(row.proofs) {
            let counts = folder().join(format!("{}.counts", row.name));
            let log = folder().join(format!("{}.{number}.log", row.name));
            fs::remove_file(&counts).ok();
            let within = Duration::from_secs(share * 4 + 300);
            let mut command = match proof {
                Proof::Test { target, test } => {
                    let mut cargo = limited("cargo", within);
                    cargo.args([
                        "test",
                        "--test",
                        target,
                        "--",
                        "--exact",
                        test,
                        "--nocapture",
                    ]);
                    cargo
                }
                Proof::Fuzz => {
                    let mut make = limited("make", within);
                    let targets = fs::read_dir(root().join("tests/fuzz/fuzz_targets"));
                    let num = targets.expect("the targets").count() as u64;
                    make.arg("fuzz").arg(format!("SECONDS={}", share / num));
                    make
                }
            };
            command
                .env("EVIDENCE_FILE", &counts)
                .env("EVIDENCE_SCALE", &self.scale)
                // The rest is for the set-up and the judge.
                .env("EVIDENCE_SECONDS", (share * 4 / 5).max(1).to_string())
                .env("EVIDENCE_SEED", self.seed.to_string())
                .env("FUZZ_SEED", (self.seed % (1 << 32)).to_string());
            let ended = run_into(command, &log);
            let is_counted = match proof {
                Proof::Test { .. } => self.add_counted(&counts),
                Proof::Fuzz => self.add_fuzzed(&log),
            };
            if !ended.is_well || !is_counted {
                self.is_well = false;
                say(&format!("{}: {}", log.display(), ended.last));
            }
        }
        self.seconds = began.elapsed().as_secs();
    }

    fn count(&mut self, what: &str, num: u64) {
        match self.counts.iter_mut().find(|(known, _)| known == what) {
            Some((_, sum)) => *sum += num,
            None => self.counts.push((what.to_owned(), num)),
        }
    }

    /// What two tests of a row say of the same stands side by side.
    fn state(&mut self, what: String, value: String) {
        match self.facts.iter_mut().find(|(known, _)| *known == what) {
            Some((_, known)) if *known == value => {}
            Some((_, known)) => *known = format!("{known}, and {value}"),
            None => self.facts.push((what, value)),
        }
    }

    /// Adds what a test wrote; whether it did.
    fn add_counted(&mut self, counts: &Path) -> bool {
        let text = fs::read_to_string(counts).unwrap_or_default();
        for line in text.lines() {
            let line: Counted = serde_json::from_str(line).expect("a row writes JSON");
            for (what, num) in line.counts {
                self.count(&what, num);
            }
            for (what, value) in line.facts {
                self.state(what, value);
            }
        }
        !text.is_empty()
    }

    /// Adds what `make fuzz` printed: `fuzz: TARGET: NUMBER executions in …`; whether it did.
    fn add_fuzzed(&mut self, log: &Path) -> bool {
        let text = fs::read_to_string(log).unwrap_or_default();
        let executed = |line: &str| {
            let (target, rest) = line.strip_prefix("fuzz: ")?.split_once(": ")?;
            let (num, _) = rest.split_once(" executions")?;
            Some((target.to_owned(), num.parse::<u64>().ok()?))
        };
        let fuzzed: Vec<_> = text.lines().filter_map(executed).collect();
        for (target, num) in &fuzzed {
            self.count(&format!("inputs of {target}"), *num);
        }
        !fuzzed.is_empty()
    }
}

/// The machine and what runs on it.
fn versions() -> String {
    let said = |program: &Path, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let server = tocsin::bus::server::find_program().unwrap_or_else(|error| panic!("{error}"));
    let server = said(&server, &["--version"]).replace(": v", " ");
    let rust = said(Path::new("rustc"), &["--version"]);
    let rust = rust.split_whitespace().nth(1).unwrap_or_default();
    let kernel = said(Path::new("uname"), &["-sr"]);
    let kernel = kernel.split('-').next().unwrap_or_default();
    let cores = thread::available_parallelism().expect("cores can be counted");
    format!("{server}, Rust {rust}, {kernel}, {cores} cores")
}

/// A command of the project's that is killed with all it has started when its time is over.
pub(crate) fn limited(program: &str, within: Duration) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &within.as_secs().to_string(), program])
        .current_dir(root())
        .stdin(Stdio::null());
    command
}

/// Runs it; what it prints goes into the file.
pub(crate) fn run_into(mut command: Command, log: &Path) -> Ended {
    let file = File::create(log).expect("a file for the log");
    let errors = file.try_clone().expect("a second handle");
    let status = command.stdout(file).stderr(errors).status();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let printed = fs::read(log).expect("the log can be read");
    let printed = String::from_utf8_lossy(&printed);
    let lines: Vec<&str> = printed.lines().collect();
    let (_, last) = lines.split_at(lines.len().saturating_sub(12));
    let mut last = last.join("\n");
    if status.signal().is_some() {
        last += "\ndid not end in time";
    }
    let is_well = status.success();
    Ended { is_well, last }
}
