//! Help texts, completions and manual pages of every command there is, by one walk over the command line.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use tocsin::cli;

use crate::support::program::run;

/// The words that lead to every command that is shown, `tocsin` itself first.
fn commands() -> Vec<(Vec<String>, clap::Command)> {
    fn walk(
        path: &[String],
        command: &clap::Command,
        found: &mut Vec<(Vec<String>, clap::Command)>,
    ) {
        found.push((path.to_vec(), command.clone()));
        let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
        for below in shown.filter(|it| it.get_name() != "help") {
            walk(
                &[path, &[below.get_name().to_owned()]].concat(),
                below,
                found,
            );
        }
    }
    let mut found = Vec::new();
    walk(&[], &cli::command(), &mut found);
    assert!(found.len() > 10, "{} commands", found.len());
    found
}

fn with<'a>(path: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    path.iter()
        .map(String::as_str)
        .chain(more.iter().copied())
        .collect()
}

/// The lines of a block of a help text: from its title to the next empty line before another title.
fn block<'a>(help: &'a str, title: &str) -> Vec<&'a str> {
    let lines = help.lines().skip_while(|line| *line != title).skip(1);
    lines
        .take_while(|line| line.is_empty() || line.starts_with(' '))
        .filter(|line| !line.is_empty())
        .collect()
}

/// The arguments of each `tocsin …` in a line of a shell, behind variables, before pipes and comments.
fn invocation(line: &str) -> Option<Vec<String>> {
    let words = line.trim().trim_start_matches("$ ").split_whitespace();
    let is_variable = |word: &&str| word.starts_with("TOCSIN_") && word.contains('=');
    let mut words = words.skip_while(is_variable);
    let program = words.next()?;
    if program != "tocsin" && !program.ends_with("/tocsin") {
        return None;
    }
    let ends = |word: &&str| !["|", ">", ">>", "&&", "&", ";", "#", "2>&1"].contains(word);
    let words = words.take_while(ends);
    Some(
        words
            .map(|word| word.trim_matches(['\'', '"']).to_owned())
            .collect(),
    )
}

#[test]
fn every_command_has_help_with_examples_that_parse_and_its_exit_statuses() {
    for (path, _) in commands() {
        let (status, help, err) = run(&with(&path, &["--help"]));
        assert_eq!((status, err.as_str()), (0, ""), "{path:?}");
        assert!(help.contains("Usage: tocsin"), "{path:?}:\n{help}");
        let too_long = help.lines().find(|line| line.chars().count() > 100);
        // Nobody wraps a command of an example.
        let too_long = too_long.filter(|line| invocation(line).is_none());
        assert_eq!(too_long, None, "{path:?} is wider than 100 columns");
        let statuses = block(&help, "Exit status:");
        for number in ["0", "2", "70"] {
            let is_there = statuses.iter().any(|line| line.trim().starts_with(number));
            assert!(
                is_there,
                "{path:?} does not name exit status {number}:\n{help}"
            );
        }
        let examples: Vec<_> = block(&help, "Examples:")
            .into_iter()
            .filter_map(invocation)
            .collect();
        assert!(!examples.is_empty(), "{path:?} has no Examples:\n{help}");
        for example in &examples {
            let words = ["tocsin"]
                .into_iter()
                .chain(example.iter().map(String::as_str));
            let parsed = cli::command().try_get_matches_from(words);
            assert!(
                parsed.is_ok(),
                "tocsin {example:?}: {}",
                parsed.unwrap_err()
            );
            assert!(
                example.starts_with(&path),
                "{example:?} is no example of {path:?}"
            );
        }
        let (status, short, _) = run(&with(&path, &["-h"]));
        assert_eq!(status, 0, "{path:?}");
        assert!(short.len() < help.len(), "-h of {path:?} is no shorter");
    }
    let (_, help, _) = run(&["--help"]);
    assert!(!help.contains("__nats-server"), "{help}");
    let version = format!("tocsin {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(run(&["--version"]), (0, version, String::new()));
}

#[test]
fn wrong_usage_of_any_command_is_one_line_and_ends_with_2() {
    for (path, command) in commands() {
        let (status, out, err) = run(&with(&path, &["--no-such-option"]));
        assert_eq!((status, out.as_str()), (2, ""), "{path:?}");
        assert!(
            err.lines().count() == 1 && err.starts_with("tocsin: "),
            "{path:?}: {err}"
        );
        let required = command.get_arguments().find(|it| it.is_required_set());
        if let Some(required) = required {
            let (status, _, err) = run(&with(&path, &[]));
            assert_eq!(status, 2, "{path:?}");
            assert_eq!(err.lines().count(), 1, "{path:?}: {err}");
            let name = required.get_value_names().unwrap()[0].as_str();
            assert!(
                err.contains(name),
                "{path:?} does not ask for {name}: {err}"
            );
        }
        for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            let name = below.get_name();
            let misspelt = format!("{name}x");
            let (status, _, err) = run(&with(&path, &[&misspelt]));
            assert_eq!((status, err.lines().count()), (2, 1), "{path:?}: {err}");
            assert!(
                err.contains(&format!("'{name}'")),
                "{path:?} {misspelt}: {err}"
            );
        }
    }
    for (arguments, line) in [
        (
            &["config", "chek"][..],
            "tocsin: unrecognized subcommand 'chek' tip: some similar subcommands exist: 'schema', 'check'; see --help\n",
        ),
        (
            &["config", "print", "--confg=a"],
            "tocsin: unexpected argument '--confg' found tip: a similar argument exists: '--config'; see --help\n",
        ),
        (
            &["config", "print", "-o", "xml"],
            "tocsin: invalid value 'xml' for '--output <FORMAT>' [possible values: text, json]; see --help\n",
        ),
        (
            &["store", "rewind", "--to", "yesterday"],
            "tocsin: invalid value 'yesterday' for '--to <first|SEQUENCE|TIME>': must be first, a sequence from 1 on, or a time such as 2026-01-31T08:00:00Z; see --help\n",
        ),
        (
            &["completions", "powershell"],
            "tocsin: invalid value 'powershell' for '<SHELL>' [possible values: bash, zsh, fish, elvish]; see --help\n",
        ),
        (
            &["man", "confg"],
            "tocsin: there is no command confg; see --help\n",
        ),
    ] {
        assert_eq!(run(arguments), (2, String::new(), line.to_owned()));
    }
    let (status, out, err) = run(&[]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("Usage: tocsin"), "{err}");
}

/// Runs a program of the set-up; fails with what it says, or with how to have it.
fn accept(program: &str, arguments: &[&str], file: &Path) {
    let mut command = Command::new(program);
    let output = command
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run .ci/tools docs"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.is_empty(),
        "{program} on {}: {said}",
        file.display()
    );
}

#[test]
fn each_shell_accepts_its_completions() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, check) in [
        ("bash", "-n"),
        ("zsh", "-n"),
        ("fish", "--no-execute"),
        ("elvish", "-compileonly"),
    ] {
        let (status, script, err) = run(&["completions", shell]);
        assert_eq!((status, err.as_str()), (0, ""), "{shell}");
        let names = commands();
        for (path, _) in names.iter().filter(|(path, _)| path.len() == 1) {
            assert!(script.contains(&path[0]), "{shell} does not know {path:?}");
        }
        assert!(
            !script.contains("__nats-server"),
            "{shell} offers what is hidden"
        );
        let file = folder.path().join(shell);
        // The editor's module is there on a terminal only: its one variable is declared.
        let declared = match shell {
            "elvish" => "var edit: = (ns [&completion:=(ns [&arg-completer=[&]])])\n",
            _ => "",
        };
        fs::write(&file, format!("{declared}{script}")).unwrap();
        accept(shell, &[check], &file);
    }
}

#[test]
fn manual_pages_are_there_for_every_command_and_typeset_without_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    let (status, told, err) = run(&["man", "--dir", pages.to_str().unwrap()]);
    assert_eq!((status, err.as_str()), (0, ""));
    let commands = commands();
    assert_eq!(
        told,
        format!(
            "{} manual pages are in {}\n",
            commands.len(),
            pages.display()
        )
    );
    assert_eq!(fs::read_dir(&pages).unwrap().count(), commands.len());
    for (path, _) in commands {
        let name = [&["tocsin".to_owned()][..], &path].concat().join("-");
        let file = pages.join(format!("{name}.1"));
        let text = fs::read_to_string(&file).unwrap();
        for section in ["NAME", "SYNOPSIS", "\"EXAMPLES\"", "\"EXIT STATUS\""] {
            assert!(
                text.contains(&format!(".SH {section}\n")),
                "{name} has no {section}:\n{text}"
            );
        }
        accept("groff", &["-man", "-Tutf8", "-ww", "-z"], &file);
        let printed = run(&[&["man"], &with(&path, &[])[..]].concat());
        assert_eq!(printed, (0, text, String::new()), "{name}");
    }
    let blocked = folder.path().join("blocked");
    fs::write(&blocked, "").unwrap();
    let (status, _, err) = run(&["man", "--dir", blocked.to_str().unwrap()]);
    assert_eq!((status, err.lines().count()), (74, 1));
    assert!(
        err.starts_with("tocsin: failed to write manual pages to "),
        "{err}"
    );
}
