//! Every block of the documents is executed, in order, in a folder that looks like a fresh clone.
//!
//! | block | what is done with it |
//! |---|---|
//! | `sh` | run by bash; must end with 0. What stays up (`make demo`) runs on behind the blocks after it |
//! | `text` behind it | what the block before it must have printed; `…` stands for anything within a line, alone for any lines |
//! | `toml`, `yaml`, `json` | must pass `tocsin config check` |
//!
//! One thing is not done again: `CARGO` is `true`, so that `make` takes the program which these tests were built with.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tocsin::bus::server::find_program;

/// What a command line begins with that does not end by itself, and what it prints once it is there.
const LASTING: [(&str, &str); 2] = [("make demo", "digest ann"), ("make up", "digest ann")];
/// How long a block may take.
const DEADLINE: Duration = Duration::from_mins(2);

/// A fenced block of a document.
#[derive(Debug, PartialEq)]
struct Block {
    line: usize,
    language: String,
    text: String,
    /// Whether nothing but space stands between it and the block before.
    follows: bool,
}

fn blocks_of(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut follows = false;
    for (line, text) in (1..).zip(document.lines()) {
        match (text.strip_prefix("```"), &mut open) {
            (Some(language), None) => {
                open = Some(Block {
                    line,
                    language: language.to_owned(),
                    text: String::new(),
                    follows,
                });
            }
            (Some(_), Some(_)) => {
                blocks.extend(open.take());
                follows = true;
            }
            (None, Some(block)) => {
                block.text += text;
                block.text.push('\n');
            }
            (None, None) => follows &= text.trim().is_empty(),
        }
    }
    assert_eq!(open, None, "a block is not closed");
    blocks
}

/// A folder with everything of the project but what was built; of that only the program.
struct Clone {
    folder: TempDir,
    running: Vec<Child>,
}

impl Clone {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for entry in fs::read_dir(root).unwrap() {
            let name = entry.unwrap().file_name();
            if !["target", "tocsin-data", ".git"].contains(&name.to_str().unwrap()) {
                symlink(root.join(&name), folder.path().join(&name)).unwrap();
            }
        }
        let built = folder.path().join("target/release");
        fs::create_dir_all(&built).unwrap();
        symlink(env!("CARGO_BIN_EXE_tocsin"), built.join("tocsin")).unwrap();
        Self {
            folder,
            running: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts a script whose output goes into this file.
    fn start(&self, script: &str, output: &Path) -> Child {
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TOCSIN") {
                command.env_remove(name);
            }
        }
        let path = std::env::var("PATH").unwrap();
        let output = File::create(output).unwrap();
        command
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(self.folder.path())
            .env("CARGO", "true")
            .env(
                "TOCSIN_NATS_SERVER",
                fs::canonicalize(find_program().unwrap()).unwrap(),
            )
            .env(
                "PATH",
                format!("{}:{path}", self.path("target/release").display()),
            )
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0);
        command.spawn().unwrap()
    }

    /// Runs a block to its end, or until it stays up; returns what it printed.
    fn run(&mut self, script: &str) -> String {
        let output = self.path(&format!("output-{}", self.running.len()));
        let mut child = self.start(script, &output);
        let lasting = LASTING
            .iter()
            .find(|(begin, _)| script.starts_with(begin))
            .map(|(_, sign)| *sign);
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut text = String::new();
            File::open(&output)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            let ended = child.try_wait().unwrap();
            if lasting.is_some_and(|sign| text.contains(sign)) {
                assert_eq!(ended, None, "does not stay up: {script}\n{text}");
                self.running.push(child);
                return text;
            }
            if let Some(status) = ended {
                assert!(status.success(), "{status}: {script}\n{text}");
                return text;
            }
            if Instant::now() > deadline {
                signal(&child, Signal::KILL);
                panic!("does not end: {script}\n{text}");
            }
            thread::park_timeout(Duration::from_millis(20));
        }
    }

    fn run_document(&mut self, name: &str) {
        let document = fs::read_to_string(self.path(name)).unwrap();
        let mut printed = String::new();
        for block in blocks_of(&document) {
            let place = format!("{name}:{}", block.line);
            match block.language.as_str() {
                "sh" => printed = self.run(&block.text),
                "text" if block.follows => {
                    let shown: Vec<_> = block.text.lines().collect();
                    let lines: Vec<_> = printed.lines().collect();
                    assert!(
                        matches(&shown, &lines),
                        "{place} shows:\n{}\nbut this is printed:\n{printed}",
                        block.text
                    );
                }
                "toml" | "yaml" | "json" => {
                    let file = format!("block.{}", block.language);
                    fs::write(self.path(&file), block.text).unwrap();
                    self.run(&format!("tocsin config check --config {file}"));
                }
                other => panic!("{place}: nothing executes a block of {other:?}"),
            }
        }
    }
}

impl Drop for Clone {
    fn drop(&mut self) {
        for child in &mut self.running {
            signal(child, Signal::TERM);
            child.wait().ok();
        }
    }
}

/// Signals a script and everything that it started.
fn signal(child: &Child, signal: Signal) {
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process_group(group.unwrap(), signal).ok();
}

/// Whether the lines are those that are shown.
fn matches(shown: &[&str], lines: &[&str]) -> bool {
    match (shown, lines) {
        ([], []) => true,
        (["…", rest @ ..], _) => (0..=lines.len()).any(|skip| matches(rest, &lines[skip..])),
        ([first, shown @ ..], [line, lines @ ..]) => {
            matches_line(first, line) && matches(shown, lines)
        }
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}

fn matches_line(shown: &str, line: &str) -> bool {
    match shown.split_once('…') {
        None => shown == line,
        Some((begin, rest)) => line.strip_prefix(begin).is_some_and(|line| {
            let ends = line.char_indices().map(|(at, _)| at).chain([line.len()]);
            ends.into_iter().any(|at| matches_line(rest, &line[at..]))
        }),
    }
}

#[test]
fn every_block_of_the_readme_does_what_it_says() {
    Clone::new().run_document("README.md");
}

#[test]
fn every_block_of_the_page_for_those_who_move_is_a_configuration() {
    Clone::new().run_document("config/moving-from-go.md");
}

#[test]
fn blocks_and_what_they_print_are_told_apart() {
    let document = "a\n```sh\nls\n```\n\n```text\nb\n```\nc\n```text\nd\n```\n";
    let blocks: Vec<_> = blocks_of(document)
        .into_iter()
        .map(|block| (block.line, block.language, block.text, block.follows))
        .collect();
    let block = |line, language: &str, text: &str, follows| {
        (line, language.to_owned(), text.to_owned(), follows)
    };
    let expected = [
        block(2, "sh", "ls\n", false),
        block(6, "text", "b\n", true),
        block(10, "text", "d\n", false),
    ];
    assert_eq!(blocks, expected);
}

#[test]
fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
    assert!(matches(&["a … c", "…", "z"], &["a b b c", "1", "2", "z"]));
    assert!(matches(&["…"], &[]));
    assert!(!matches(&["a … c"], &["a b"]));
    assert!(!matches(&["a"], &["a", "b"]));
    assert!(!matches(&["a", "b"], &["a"]));
}
