//! The command line: what is printed where, and how the program ends.

use std::fs::{self, File};
use std::process::{Command, Output, Stdio};

fn tocsin(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOCSIN") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    ended(&tocsin(arguments).output().unwrap())
}

fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn every_help_text_lists_the_exit_statuses() {
    for arguments in [
        &["--help"][..],
        &["config", "print", "--help"],
        &["config", "check", "-h"],
    ] {
        let (status, out, err) = run(arguments);
        assert_eq!((status, err.as_str()), (0, ""));
        for exit in [
            "0   well",
            "1   the check",
            "2   usage",
            "3   the broker",
            "70  a defect",
            "74  a write",
        ] {
            assert!(
                out.contains(exit),
                "{arguments:?} does not name {exit}:\n{out}"
            );
        }
    }
    let (status, out, _) = run(&["--version"]);
    assert_eq!(
        (status, out),
        (0, format!("tocsin {}\n", env!("CARGO_PKG_VERSION")))
    );
}

#[test]
fn wrong_usage_is_one_line_and_ends_with_2() {
    for (arguments, line) in [
        (
            &["config", "chek"][..],
            "tocsin: unrecognized subcommand 'chek' tip: a similar subcommand exists: 'check'; see --help\n",
        ),
        (
            &["config", "print", "--verbose"],
            "tocsin: unexpected argument '--verbose' found; see --help\n",
        ),
        (
            &["config", "print", "-o", "xml"],
            "tocsin: invalid value 'xml' for '--output <FORMAT>' [possible values: text, json]; see --help\n",
        ),
    ] {
        assert_eq!(run(arguments), (2, String::new(), line.to_owned()));
    }
    let (status, out, err) = run(&[]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.contains("Usage: tocsin"), "{err}");
}

#[test]
fn what_is_printed_is_a_configuration_that_gives_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.toml");
    let sets = [
        "--set",
        "nats.url=nats://a:4222,nats://b:4222",
        "--set",
        "alarms.max_future=90m",
    ];
    let arguments = [&["config", "print"][..], &sets].concat();
    let (status, first, err) = run(&arguments);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        first.contains("nats.url = \"nats://a:4222,nats://b:4222\""),
        "{first}"
    );
    let line = first
        .lines()
        .find(|line| line.starts_with("alarms.max_future"))
        .unwrap();
    assert!(
        line.starts_with("alarms.max_future = \"90m\"") && line.ends_with("  # --set"),
        "{line}"
    );

    fs::write(&path, &first).unwrap();
    let (status, second, _) = run(&["config", "print", "--config", path.to_str().unwrap()]);
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split("  #").next().unwrap().trim_end().to_owned())
            .collect()
    };
    assert_eq!((status, values(&second)), (0, values(&first)));
    assert!(
        second.lines().all(|line| line.contains("printed.toml:")),
        "{second}"
    );
}

#[test]
fn print_never_shows_a_secret() {
    let sets = ["--set", "nats.user=u", "--set", "nats.password=hunter2"];
    for format in ["text", "json"] {
        let (status, out, err) = run(&[&["config", "print", "-o", format][..], &sets].concat());
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(
            out.contains("[redacted]") && !out.contains("hunter2"),
            "{out}"
        );
    }
}

#[test]
fn json_has_every_key_its_value_and_its_origin() {
    let output = tocsin(&["config", "print", "-o", "json"])
        .env("TOCSIN__INPUT__IN_FLIGHT", "7")
        .output()
        .unwrap();
    let (status, out, _) = ended(&output);
    assert_eq!(status, 0);
    let settings: serde_json::Value = serde_json::from_str(&out).unwrap();
    let settings = settings.as_array().unwrap();
    let find = |key: &str| {
        settings
            .iter()
            .find(|setting| setting["Key"] == key)
            .unwrap()
    };
    assert_eq!(find("input.in_flight")["Value"], 7);
    assert_eq!(
        find("input.in_flight")["Origin"],
        "environment variable TOCSIN__INPUT__IN_FLIGHT"
    );
    assert!(find("nats.user")["Value"].is_null());
}

#[test]
fn check_says_whether_the_configuration_is_valid() {
    let valid = run(&["config", "check", "--set", "input.listeners=2"]);
    let told = "the configuration is valid; keys that differ from the default: 1\n";
    assert_eq!(valid, (0, told.to_owned(), String::new()));

    let line = "input.listeners is \"none\" (--set); must be a whole number from 1 to 64";
    let invalid = run(&["config", "check", "--set", "input.listeners=none"]);
    assert_eq!(invalid, (2, String::new(), format!("tocsin: {line}\n")));

    let (status, out, err) = run(&[
        "config",
        "check",
        "-o",
        "json",
        "--set",
        "input.listeners=none",
    ]);
    assert_eq!((status, err), (2, format!("tocsin: {line}\n")));
    let verdict: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(verdict, serde_json::json!({"Valid": false, "Error": line}));
}

#[test]
fn output_that_cannot_be_written_ends_with_74_and_a_reader_that_left_with_0() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = tocsin(&["config", "print"]).stdout(full).output().unwrap();
    let (status, _, err) = ended(&output);
    assert_eq!(status, 74);
    assert!(
        err.starts_with("tocsin: failed to write to standard output: "),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1);

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = tocsin(&["config", "print"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(ended(&output).0, 0);
}
