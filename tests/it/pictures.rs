//! The terminal pictures of the README: what the program prints, in its colours. `make pictures` draws them anew.
//!
//! The test runs the same commands and demands that every line of a picture is still printed so, but for numbers.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anstyle_svg::Term;

use crate::support::daemon::Setup;
use crate::support::nats::Nats;
use crate::support::program::{in_folder, tocsin};

/// Set to draw the pictures, not to compare them.
const DRAW: &str = "DRAW_PICTURES";

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures");
    folder.join(name).with_extension("svg")
}

/// Draws what a command printed, or demands that the picture shows the same.
fn draw(name: &str, command: &str, printed: &str) {
    let printed = printed.replace(env!("CARGO_BIN_EXE_tocsin"), "tocsin");
    let bold = anstyle::Style::new().bold();
    let drawn = Term::new().render_svg(&format!("{bold}$ {command}{bold:#}\n{printed}"));
    if std::env::var_os(DRAW).is_some() {
        fs::create_dir_all(path(name).parent().unwrap()).unwrap();
        fs::write(path(name), drawn).unwrap();
        return;
    }
    let shown = fs::read_to_string(path(name)).unwrap_or_default();
    assert_eq!(
        lines_of(&shown),
        lines_of(&drawn),
        "{name} is out of date; type make pictures"
    );
}

/// The text of each line, sorted, with `#` for every number and for a name that is new in every run.
fn lines_of(svg: &str) -> Vec<String> {
    let lines = svg.lines().filter(|line| line.contains("<tspan"));
    let mut lines: Vec<_> = lines
        .map(|line| {
            let text = line.split('<').filter_map(|part| part.split_once('>'));
            let text: String = text.map(|(_, text)| text).collect();
            text.split(' ')
                .map(|word| match word.split_once("demo-ann-") {
                    Some((begin, _)) => format!("{begin}demo-ann-#"),
                    None => without_numbers(word),
                })
                .filter(|word| !word.is_empty())
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    lines.sort();
    lines
}

fn without_numbers(word: &str) -> String {
    let mut text = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' | '.' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            other => text.push(other),
        }
    }
    text
}

#[test]
fn the_picture_of_the_demo_shows_what_it_prints() {
    let folder = tempfile::tempdir().unwrap();
    let mut up = in_folder(&folder, &["up", "--demo", "--set", "log.file=log"])
        .env("CLICOLOR_FORCE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = String::new();
    for line in BufReader::new(up.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        printed += &line;
        printed.push('\n');
        if line.contains("asks for what is new") {
            break;
        }
    }
    // Its nats-server ends with it.
    up.kill().unwrap();
    up.wait().unwrap();
    draw("demo", "tocsin up --demo", printed.trim_end());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_of_verify_shows_what_it_prints() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let output = tocsin(&["verify", "--full", "--seed", "7", "--url", &nats.url()])
        .env("CLICOLOR_FORCE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed = String::from_utf8(output.stdout).unwrap();
    draw(
        "verify",
        "tocsin verify --full --seed 7",
        printed.trim_end(),
    );
}

#[test]
fn a_line_is_known_without_its_numbers() {
    let svg =
        "<tspan x=\"10px\" y=\"2px\">a <tspan class=\"b\">12.5s</tspan> demo-ann-0f3.</tspan>";
    assert_eq!(lines_of(svg), ["a #s demo-ann-#"]);
}
