//! The documents describe only what exists: each file, item, key, command and word that they name is looked up.
//!
//! | written | must be |
//! |---|---|
//! | `a/b.rs`, `a/b/`, and a link to a file | there, from the root, from `src/`, or from the folder that begins its row |
//! | `Type::name`, also in pictures | a type, and a function, field or variant beside it |
//! | `section.key` | in `config/default.toml` |
//! | `tocsin …`, `make …` | a command of the program, a target of the Makefile |
//! | any other single word in backticks | in the sources, the Makefile or the lints, or a row of the evidence |

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tocsin::config::{Config, Sources};

/// Everything that a document may speak of.
struct Project {
    root: PathBuf,
    /// The text of every file below `src/`.
    sources: Vec<String>,
    keys: BTreeSet<&'static str>,
    makefile: String,
    lints: String,
    /// The rows of the evidence, which promises name.
    rows: String,
}

impl Project {
    fn read() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut sources = Vec::new();
        read_below(&root.join("src"), &mut sources);
        let nothing_set = Sources {
            config_path: None,
            sets: Vec::new(),
            env: Vec::new(),
            system_folder: "/nonexistent".into(),
        };
        let loaded = Config::load(&nothing_set).expect("the defaults are well");
        Self {
            keys: loaded.settings.iter().map(|it| it.key).collect(),
            makefile: fs::read_to_string(root.join("Makefile")).expect("a Makefile"),
            lints: fs::read_to_string(root.join("clippy.toml")).expect("a file of lints"),
            rows: fs::read_to_string(root.join("tests/evidence/rows.rs")).expect("a file of rows"),
            root,
            sources,
        }
    }

    /// What the text names and the project does not have.
    fn missing_of(&self, text: &str) -> Vec<String> {
        let mut missing = Vec::new();
        let mut is_code = false;
        for (number, line) in (1..).zip(text.lines()) {
            if line.starts_with("```") {
                is_code = !is_code;
                continue;
            }
            let mut say = |what: &str| missing.push(format!("line {number}: {what}"));
            for (of, name) in qualified(line) {
                if !self.has_item(of, name) {
                    say(&format!("{of}::{name}"));
                }
            }
            if is_code {
                let command = line.trim_start();
                if is_invocation(command) && !self.has_command(command) {
                    say(command);
                }
                continue;
            }
            let room = room_of(line);
            for named in in_backticks(line).chain(linked(line)) {
                if !self.has(named, room) {
                    say(named);
                }
            }
        }
        missing
    }

    fn has(&self, named: &str, room: Option<&str>) -> bool {
        let is_of = |allowed: fn(char) -> bool| !named.is_empty() && named.chars().all(allowed);
        let last = named.rsplit('.').next().unwrap_or_default();
        let is_file = ["rs", "toml", "md"].contains(&last) && named.contains('.');
        let is_path = is_of(|c| c.is_ascii_alphanumeric() || "_-./".contains(c))
            && (is_file || named.contains('/'));
        if is_path {
            // What only a build or the system makes is not ours.
            return named.starts_with('/')
                || named.starts_with("target/")
                || self.has_file(named, room);
        }
        if is_invocation(named) {
            return self.has_command(named);
        }
        if let Some((section, _)) = named.split_once('.') {
            let is_key = is_of(|c| c.is_ascii_lowercase() || "_.".contains(c));
            let is_section = self
                .keys
                .iter()
                .any(|key| key.split('.').next() == Some(section));
            return !(is_key && is_section) || self.is_key(named);
        }
        if let Some((function, rest)) = named.split_once('(')
            && is_word(function)
            && rest.starts_with('&')
        {
            let begin = format!("fn {function}({}", rest.trim_end_matches(')'));
            return self.sources.iter().any(|source| source.contains(&begin));
        }
        if let Some(name) = named.strip_suffix('!') {
            let definition = format!("macro_rules! {name} ");
            return self
                .sources
                .iter()
                .any(|source| source.contains(&definition));
        }
        !is_word(named) || self.has_word(named)
    }

    fn is_key(&self, named: &str) -> bool {
        let section = format!("{named}.");
        self.keys.contains(named) || self.keys.iter().any(|key| key.starts_with(&section))
    }

    fn has_file(&self, named: &str, room: Option<&str>) -> bool {
        let folders = [Some(""), Some("src"), Some("tests/it"), room];
        folders
            .into_iter()
            .flatten()
            .any(|folder| self.root.join(folder).join(named).exists())
    }

    /// Whether one file defines the type and, beside it, the name.
    fn has_item(&self, of: &str, name: &str) -> bool {
        self.sources.iter().any(|source| {
            let defines = |what: &str| contains_word(source, &format!("{what} {of}"));
            let is_defined = ["struct", "enum", "trait", "type"].into_iter().any(defines);
            is_defined && contains_word(source, name)
        })
    }

    fn has_word(&self, word: &str) -> bool {
        contains_word(&self.makefile, word)
            || contains_word(&self.lints, word)
            || contains_word(&self.rows, &format!("\"{word}\""))
            || self.root.join("src").join(word).is_dir()
            || self
                .sources
                .iter()
                .any(|source| contains_word(source, word))
    }

    fn has_command(&self, line: &str) -> bool {
        let mut words = line.split_whitespace();
        let program = words.next().unwrap_or_default();
        let plain: Vec<&str> = words
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
            .collect();
        if program == "make" {
            let has_target = |target: &&str| {
                let begin = format!("{target}:");
                self.makefile.lines().any(|line| line.starts_with(&begin))
            };
            return plain.first().is_none_or(has_target);
        }
        let mut help = Command::new(env!("CARGO_BIN_EXE_tocsin"));
        let output = help.args(plain).arg("--help").output();
        output.is_ok_and(|output| output.status.success())
    }
}

fn read_below(folder: &Path, texts: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("a folder of the project") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            read_below(&path, texts);
        } else {
            texts.push(fs::read_to_string(path).expect("a source is text"));
        }
    }
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
}

/// Whether the text has the word, and not only as a part of another.
fn contains_word(text: &str, word: &str) -> bool {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(is_inside) && !text[at + word.len()..].starts_with(is_inside)
    })
}

/// `tocsin` or `make` with arguments, wherever the program lies.
fn is_invocation(text: &str) -> bool {
    let mut words = text.split_whitespace();
    let program = words.next().unwrap_or_default();
    let is_ours = program == "make" || program == "tocsin" || program.ends_with("/tocsin");
    is_ours && words.next().is_some()
}

/// The folder that begins a row of a table.
fn room_of(line: &str) -> Option<&str> {
    let (room, _) = line.strip_prefix("| `")?.split_once('`')?;
    room.ends_with('/').then_some(room)
}

fn in_backticks(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Links that lead to a file.
fn linked(line: &str) -> impl Iterator<Item = &str> {
    let links = line.split("](").skip(1);
    let links = links.filter_map(|rest| Some(rest.split_once(')')?.0));
    links.filter(|link| !link.contains("://") && !link.starts_with('#'))
}

/// `Type::name`, wherever it stands.
fn qualified(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    let pairs = words.filter_map(|word| word.split_once("::"));
    pairs.filter(|(of, name)| of.starts_with(|c: char| c.is_ascii_uppercase()) && is_word(name))
}

#[test]
fn everything_that_the_documents_name_exists() {
    let project = Project::read();
    for document in ["architecture.md", "README.md"] {
        let text = fs::read_to_string(project.root.join(document)).expect("a document");
        let missing = project.missing_of(&text);
        assert!(missing.is_empty(), "{document} names {missing:#?}");
    }
}

#[test]
fn what_is_not_there_is_noticed() {
    let project = Project::read();
    let text = "\
| `src/core/` | `partition.rs` and `partitoin.rs` |
See `src/nowhere/`, `store/journal.rs`, [this](config/default.toml) and [that](config/other.toml).
`Partition::commit`, `Partition::comit`, `Nobody::commit`, `Nobodys`, `decide(&self)`, `decide(&mut self)`.
`input.in_flight`, `input.in_fright`, `tocsin config print`, `tocsin consume`, `make up`, `make down`.
```
deliver ─► Output::Release ─► Output::Relish
tocsin serve --config FILE
target/release/tocsin swerve
```
";
    let expected = [
        "line 1: partitoin.rs",
        "line 2: src/nowhere/",
        "line 2: config/other.toml",
        "line 3: Partition::comit",
        "line 3: Nobody::commit",
        "line 3: Nobodys",
        "line 3: decide(&mut self)",
        "line 4: input.in_fright",
        "line 4: tocsin consume",
        "line 4: make down",
        "line 6: Output::Relish",
        "line 8: target/release/tocsin swerve",
    ];
    assert_eq!(project.missing_of(text), expected);
}
