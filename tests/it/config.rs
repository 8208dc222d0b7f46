//! The configuration, as a newcomer meets it: every mistake is one line that says what to do.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tocsin::config::{
    Config, DEFAULTS, InputMode, InputStart, Loaded, LogFormat, NamedBy, Origin, Sources,
    StoreKind, WhenEmpty,
};

/// A folder for files, and sources that see nothing else of this machine.
pub(crate) struct Place {
    folder: TempDir,
    pub(crate) sources: Sources,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources {
            config_path: None,
            sets: Vec::new(),
            env: Vec::new(),
            system_folder: folder.path().join("etc"),
        };
        Self { folder, sources }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn file(mut self, name: &str, text: impl AsRef<[u8]>) -> Self {
        self.sources.config_path = Some(self.write(name, text));
        self
    }

    fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.sources.env.push((name.into(), value.into()));
        self
    }

    fn set(mut self, set: &str) -> Self {
        self.sources.sets.push(set.to_owned());
        self
    }

    pub(crate) fn load(&self) -> Loaded {
        Config::load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The error's line, with the folder of this test as `~`.
    pub(crate) fn error(&self) -> String {
        let error = Config::load(&self.sources)
            .expect_err("it was loaded")
            .to_string();
        assert!(!error.contains('\n'), "more than one line: {error}");
        error.replace(self.folder.path().to_str().unwrap(), "~")
    }
}

fn error_of_set(set: &str) -> String {
    Place::new().set(set).error()
}

#[test]
fn without_any_source_the_defaults_are_in_force() {
    let loaded = Place::new().load();
    let Config {
        nats,
        input,
        workers,
        producers,
        output,
        alarms,
        digest,
        metrics,
        store,
        log,
        shutdown,
    } = loaded.config.clone();
    assert_eq!(nats.url.expose(), ["nats://127.0.0.1:4222"]);
    assert_eq!(nats.name, "tocsin");
    assert_eq!(
        (nats.user, nats.password, nats.token, nats.credentials_file),
        (None, None, None, None)
    );
    assert_eq!(
        (input.mode, input.start),
        (InputMode::Auto, InputStart::First)
    );
    assert_eq!(
        (
            input.listeners,
            input.routers,
            input.in_flight,
            input.replicas
        ),
        (1, 1, 65_536, 1)
    );
    assert_eq!(input.stream_max_age, Duration::from_hours(7 * 24));
    assert_eq!(input.stream_max_bytes, 16 << 30);
    assert!((1..=64).contains(&workers.count));
    assert!(workers.mailbox > input.in_flight);
    assert_eq!((producers.count, producers.in_flight), (1, 1000));
    assert_eq!(
        (producers.owed.rows, producers.owed.bytes),
        (1_000_000, 256 << 20)
    );
    assert_eq!(output.duplicate_window, Duration::from_mins(10));
    assert_eq!(output.stream_max_age, Duration::from_hours(7 * 24));
    assert_eq!(output.stream_max_bytes, 10 << 30);
    assert_eq!(alarms.tombstone_retention, Duration::from_hours(14 * 24));
    assert_eq!(alarms.max_future, Duration::from_hours(24));
    assert_eq!(digest.when_empty, WhenEmpty::Skip);
    assert_eq!(metrics.aggregate_interval, Duration::from_secs(10));
    assert_eq!((store.kind, store.partitions), (StoreKind::Embedded, 64));
    assert_eq!(store.path, PathBuf::from("/var/lib/tocsin"));
    assert_eq!(
        (log.format, log.filter.as_str(), log.file),
        (LogFormat::Auto, "info", None)
    );
    assert_eq!(shutdown.timeout, Duration::from_secs(20));
    assert!(
        loaded
            .settings
            .iter()
            .all(|setting| setting.origin == Origin::Default)
    );
    assert!(!loaded.is_named("nats.url"));
}

#[test]
fn the_defaults_list_every_key_each_with_a_sentence() {
    let mut listed = BTreeSet::new();
    let (mut section, mut is_explained) = ("", false);
    for line in DEFAULTS.lines() {
        if let Some(name) = line.strip_prefix('[') {
            assert!(is_explained, "{name} has no sentence");
            (section, is_explained) = (name.trim_end_matches(']'), false);
        } else if let Some(sentence) = line.strip_prefix("# ") {
            is_explained = sentence.contains(' ');
        } else if let Some((key, _)) = line.split_once(" = ") {
            assert!(is_explained, "{section}.{key} has no sentence");
            listed.insert(format!("{section}.{key}"));
        } else {
            is_explained = false;
        }
    }
    let known: BTreeSet<_> = Place::new()
        .load()
        .settings
        .iter()
        .map(|setting| setting.key.to_owned())
        .collect();
    assert_eq!(listed, known);
}

#[test]
fn toml_yaml_and_json_give_one_result() {
    let toml = r#"
        [nats]
        url = "tls://a:4222, b"
        password = "p"
        user = "u"
        [input]
        mode = "core"
        in_flight = 1_000
        start = 2026-01-31T00:00:00Z
        [producers.owed]
        rows = 5
    "#;
    let yaml = "
nats:
  url: tls://a:4222, b
  password: p
  user: u
input: {mode: core, in_flight: 1000, start: '2026-01-31T00:00:00Z'}
producers:
  owed:
    rows: 5
";
    let json = r#"{"nats": {"url": "tls://a:4222, b", "password": "p", "user": "u"},
        "input": {"mode": "core", "in_flight": 1000, "start": "2026-01-31T00:00:00Z"},
        "producers": {"owed": {"rows": 5}}}"#;
    let loaded = Place::new().file("a.toml", toml).load();
    assert_eq!(loaded.config.nats.url.expose(), ["tls://a:4222", "b"]);
    assert_eq!(loaded.config.producers.owed.rows, 5);
    assert!(matches!(loaded.config.input.start, InputStart::At(_)));
    for (name, text) in [("a.yaml", yaml), ("a.yml", yaml), ("a.json", json)] {
        assert_eq!(
            Place::new().file(name, text).load().config,
            loaded.config,
            "{name}"
        );
    }
}

#[test]
fn set_wins_over_the_environment_over_the_file_over_the_defaults() {
    let origin = |loaded: &Loaded, key: &str| {
        let setting = loaded
            .settings
            .iter()
            .find(|setting| setting.key == key)
            .unwrap();
        setting.origin.clone()
    };
    let place = Place::new().file("t.toml", "[input]\n\nin_flight = 1\nlisteners = 2\n");
    let loaded = place.load();
    assert_eq!(loaded.config.input.in_flight, 1);
    let path = place.path("t.toml");
    assert_eq!(
        origin(&loaded, "input.in_flight"),
        Origin::File {
            path,
            line: Some(3)
        }
    );

    let place = place.env("TOCSIN__INPUT__IN_FLIGHT", "2");
    let loaded = place.load();
    assert_eq!(
        (loaded.config.input.in_flight, loaded.config.input.listeners),
        (2, 2)
    );
    let name = "TOCSIN__INPUT__IN_FLIGHT".to_owned();
    assert_eq!(
        origin(&loaded, "input.in_flight"),
        Origin::Environment { name }
    );

    let loaded = place
        .set("input.in_flight=3")
        .set("input.in_flight=4")
        .load();
    assert_eq!(loaded.config.input.in_flight, 4);
    assert_eq!(origin(&loaded, "input.in_flight"), Origin::Set);
    assert_eq!(loaded.config.input.routers, 1);
}

#[test]
fn the_file_is_the_named_one_else_that_of_the_environment_else_that_of_the_system() {
    let place = Place::new();
    place.write("etc/tocsin.yaml", "nats: {name: system}");
    assert_eq!(place.load().config.nats.name, "system");
    let path = place.write("env.json", r#"{"nats": {"name": "environment"}}"#);
    let place = place.env("TOCSIN_CONFIG", path);
    assert_eq!(place.load().config.nats.name, "environment");
    let place = place.file("named.toml", "nats.name = 'argument'");
    assert_eq!(place.load().config.nats.name, "argument");
    assert!(place.load().is_named("nats.name"));

    let place = Place::new().env("TOCSIN_CONFIG", "");
    assert_eq!(place.load().config.nats.name, "tocsin");
    place.write("etc/tocsin.toml", "");
    place.write("etc/tocsin.json", "{}");
    assert_eq!(
        place.error(),
        "configuration file ~/etc/tocsin.toml: ~/etc/tocsin.json exists too; keep one of them"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn a_file_that_cannot_be_used_is_named_with_the_reason() {
    let mut place = Place::new();
    place.sources.config_path = Some(place.path("missing.toml"));
    assert_eq!(
        place.error(),
        "configuration file ~/missing.toml: cannot be read: there is no such file"
    );
    for (name, text, error) in [
        (
            "t.conf",
            "",
            ": its name must end in .toml, .yaml, .yml or .json",
        ),
        (
            "t",
            "",
            ": its name must end in .toml, .yaml, .yml or .json",
        ),
        (
            "t.toml",
            "\n[input\n",
            ":2:7: cannot be parsed: unclosed table, expected `]`",
        ),
        (
            "t.toml",
            "input.routers = 1\ninput.routers = 2",
            ":2:7: cannot be parsed: a key stands twice; keep one of them",
        ),
        (
            "t.toml",
            "[nats]\nname = 'a'\n[nats]\nuser = 'b'",
            ":3:2: cannot be parsed: a key stands twice; keep one of them",
        ),
        (
            "t.toml",
            "[shutdown]\ntimeout = 20s",
            ":2:11: cannot be parsed: texts, durations and sizes stand in quotes, such as \"20s\"",
        ),
        (
            "t.toml",
            "[nats]\nurl = nats://a:4222",
            ":2:7: cannot be parsed: texts, durations and sizes stand in quotes, such as \"20s\"",
        ),
        (
            "t.toml",
            "[log]\nfilter = info",
            ":2:10: cannot be parsed: texts, durations and sizes stand in quotes, such as \"20s\"",
        ),
        (
            "t.toml",
            "[nats]\nname = \"a\n",
            ":2:10: cannot be parsed: a text ends on its line with the quote that it began with",
        ),
        (
            "t.json",
            "{\"nats\": {",
            ":1:10: cannot be parsed: the end is missing",
        ),
        (
            "t.json",
            "{nats: 1}",
            ":1:2: cannot be parsed: names stand in double quotes",
        ),
        (
            "t.toml",
            "nats:\n  name: a",
            ":1:6: cannot be parsed: in TOML a key is followed by = and its value",
        ),
        ("t.yaml", "input: [", ":2:1: cannot be parsed: "),
        (
            "t.yaml",
            "nats:\n\tname: a",
            ":2:2: cannot be parsed: YAML is indented with spaces, not with tabs",
        ),
        (
            "t.yaml",
            "nats:\n  name: a\n  name: b",
            ":3:9: cannot be parsed: a key stands twice; keep one of them",
        ),
        (
            "t.yaml",
            "- a",
            ": cannot be parsed: it holds no sections with keys",
        ),
        (
            "t.json",
            "{\"input\": }",
            ":1:11: cannot be parsed: expected value",
        ),
        (
            "t.json",
            "{\"nats\": {\"name\": \"a\",}}",
            ":1:23: cannot be parsed: no comma may stand behind the last key",
        ),
        (
            "t.json",
            "{\"nats\": {\"name\": \"a\"},\n\"nats\": {\"name\": \"b\"}}",
            ":2:6: cannot be parsed: a key stands twice; keep one of them",
        ),
        (
            "t.json",
            "[]",
            ": cannot be parsed: it holds no sections with keys",
        ),
        ("t.json", "\n", ": is empty; write {} to set nothing"),
        (
            "t.json",
            r#"{"nats": {"name": "a"}, "nats.name": "b"}"#,
            ": names nats.name twice; keep one of them",
        ),
    ] {
        let found = Place::new().file(name, text).error();
        let expected = format!("configuration file ~/{name}{error}");
        assert!(found.starts_with(&expected), "{found}\n{expected}");
    }
    let mut folder = Place::new();
    folder.sources.config_path = Some(folder.path("."));
    assert_eq!(
        folder.error(),
        "configuration file ~/.: cannot be read: it is a folder"
    );
    assert_eq!(
        Place::new().file("t.toml", [0xff, 0xfe]).error(),
        "configuration file ~/t.toml: cannot be read: it is not UTF-8 text"
    );
    for (name, text) in [
        ("t.toml", ""),
        ("t.yaml", ""),
        ("t.yaml", "# nothing\n"),
        ("t.yaml", "nats:\n# name: a\ninput:\n"),
        ("t.json", "{}"),
        (
            "t.json",
            r#"{"$schema": "./tocsin.schema.json", "nats": null}"#,
        ),
    ] {
        Place::new().file(name, text).load();
    }
}

#[test]
fn marks_of_the_encoding_and_the_line_ends_of_other_systems_do_no_harm() {
    for (name, text) in [
        ("t.toml", "\u{feff}[nats]\r\nname = \"a\"\r\n"),
        ("t.yaml", "\u{feff}nats:\r\n  name: a\r\n"),
        ("t.json", "\u{feff}{\r\n\"nats\": {\"name\": \"a\"}}\r\n"),
    ] {
        let place = Place::new().file(name, text);
        assert_eq!(place.load().config.nats.name, "a", "{name}");
    }
    assert_eq!(
        Place::new()
            .file("t.yaml", "nats:\r\n  name: a\r\n  bad: b\r\n")
            .error(),
        "unknown key nats.bad (~/t.yaml:3); the nearest one is nats.name"
    );
}

#[test]
fn a_secret_in_a_file_that_everybody_may_read_is_warned_of() {
    let with_mode = |text: &str, mode| {
        let place = Place::new().file("t.toml", text);
        let path = place.path("t.toml");
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        place.load().warnings
    };
    for (text, key) in [
        ("nats.user = 'u'\nnats.password = 'p'", "nats.password"),
        ("nats.token = 't'", "nats.token"),
        ("nats.url = 'nats://u:p@a'", "nats.url"),
    ] {
        let warnings = with_mode(text, 0o644);
        assert!(warnings.len() == 1 && warnings[0].starts_with(&format!("{key} is a secret in ")));
        assert!(warnings[0].contains("chmod 640"), "{warnings:?}");
        assert_eq!(with_mode(text, 0o640), [""; 0]);
    }
    assert_eq!(with_mode("nats.name = 'a'", 0o644), [""; 0]);
}

#[test]
fn the_file_and_who_named_it_are_known() {
    assert_eq!(Place::new().load().file, None);
    let place = Place::new();
    let path = place.write("etc/tocsin.yaml", "");
    let found = |place: &Place| place.load().file.unwrap();
    assert_eq!(
        (found(&place).path, found(&place).named_by),
        (path, NamedBy::Nobody)
    );
    let path = place.write("env.json", "{}");
    let place = place.env("TOCSIN_CONFIG", path);
    assert_eq!(found(&place).named_by, NamedBy::Environment);
    assert_eq!(found(&place.file("t.toml", "")).named_by, NamedBy::Argument);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_known_one() {
    for (key, nearest) in [
        ("nats.ulr", "nats.url"),
        ("nats.in_flight", "input.in_flight"),
        ("intput.mode", "input.mode"),
        ("timeout", "shutdown.timeout"),
        ("Nats.URL", "nats.url"),
        ("producers.owed_rows", "producers.owed.rows"),
        ("nats.url.host", "nats.url"),
    ] {
        let expected = format!("unknown key {key} (--set); the nearest one is {nearest}");
        assert_eq!(error_of_set(&format!("{key}=1")), expected);
    }
    assert_eq!(
        Place::new()
            .file("t.yaml", "nats:\n  name: a\n  servers: b\n")
            .error(),
        "unknown key nats.servers (~/t.yaml:3); the nearest one is nats.user"
    );
    assert_eq!(
        Place::new().file("t.toml", "[nat]").error(),
        "unknown key nat (~/t.toml); the nearest section is nats"
    );
    assert_eq!(
        Place::new().file("t.toml", "nats = 'localhost'").error(),
        "unknown key nats (~/t.toml:1); it is a section, with keys such as nats.credentials_file"
    );
    assert_eq!(
        Place::new().env("TOCSIN__NATS__URI", "nats://a").error(),
        "unknown key nats.uri (environment variable TOCSIN__NATS__URI); the nearest one is nats.url: TOCSIN__NATS__URL"
    );
}

#[test]
fn variables_and_arguments_of_the_wrong_form_are_refused() {
    assert_eq!(
        Place::new().env("TOCSIN_NATS_URL", "nats://a").error(),
        "environment variable TOCSIN_NATS_URL: two underscores stand before section and key, all in capitals; name it TOCSIN__NATS__URL"
    );
    for (name, meant) in [
        ("TOCSIN_NATS__URL", "TOCSIN__NATS__URL"),
        ("TOCSIN_NATS__ULR", "TOCSIN__NATS__URL"),
        ("TOCSIN_INPUT_IN_FLIGHT", "TOCSIN__INPUT__IN_FLIGHT"),
        ("tocsin__input__in_flight", "TOCSIN__INPUT__IN_FLIGHT"),
    ] {
        let error = Place::new().env(name, "1").error();
        assert!(error.ends_with(&format!("; name it {meant}")), "{error}");
    }
    assert_eq!(
        Place::new().env("TOCSIN__NATS_URL", "nats://a").error(),
        "unknown key nats_url (environment variable TOCSIN__NATS_URL); the nearest one is nats.url: TOCSIN__NATS__URL"
    );
    let not_text = OsString::from_vec(vec![0xff]);
    assert_eq!(
        Place::new().env("TOCSIN__NATS__NAME", not_text).error(),
        "environment variable TOCSIN__NATS__NAME: its value is not UTF-8 text"
    );
    assert_eq!(
        error_of_set("input.in_flight"),
        "--set input.in_flight...: must be section.key=value, for example input.in_flight=1000"
    );
    assert_eq!(
        error_of_set("=1"),
        "--set ...: must be section.key=value, for example input.in_flight=1000"
    );
    // What a container platform makes up for a service named tocsin is none of ours.
    Place::new()
        .env("TOCSIN_PORT", "tcp://10.0.0.1:7440")
        .env("TOCSIN_SERVICE_HOST", "10.0.0.1")
        .env("TOCSIN_NATS_SERVER", "/usr/bin/nats-server")
        .load();
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn a_value_that_its_key_does_not_allow_is_refused_with_what_it_allows() {
    let server = "must be nats://host:port or tls://host:port, several with commas between them";
    for (set, found, allowed) in [
        (
            "input.in_flight=many",
            "\"many\"",
            "must be a whole number from 1 to 16777216",
        ),
        (
            "input.in_flight=0",
            "\"0\"",
            "must be a whole number from 1 to 16777216",
        ),
        (
            "input.in_flight=-1",
            "\"-1\"",
            "must be a whole number from 1 to 16777216",
        ),
        (
            "input.in_flight=",
            "empty",
            "must be a whole number from 1 to 16777216",
        ),
        (
            "input.listeners=65",
            "\"65\"",
            "must be a whole number from 1 to 64",
        ),
        (
            "input.routers=0",
            "\"0\"",
            "must be a whole number from 1 to 64",
        ),
        (
            "input.replicas=6",
            "\"6\"",
            "must be a whole number from 1 to 5",
        ),
        (
            "producers.count=0",
            "\"0\"",
            "must be a whole number from 1 to 64",
        ),
        (
            "producers.in_flight=0",
            "\"0\"",
            "must be a whole number from 1 to 100000",
        ),
        (
            "producers.owed.rows=0",
            "\"0\"",
            "must be a whole number from 1 to 1000000000",
        ),
        (
            "producers.owed.bytes=64",
            "\"64\"",
            "must be a size from 1MiB to 1PiB, such as 64KiB, 256MiB or 16GiB",
        ),
        (
            "store.partitions=0",
            "\"0\"",
            "must be a whole number from 1 to 4096",
        ),
        (
            "store.partitions=4097",
            "\"4097\"",
            "must be a whole number from 1 to 4096",
        ),
        (
            "input.stream_max_bytes=16GB",
            "\"16GB\"",
            "must be a size from 1MiB to 1PiB, such as 64KiB, 256MiB or 16GiB",
        ),
        (
            "shutdown.timeout=20",
            "\"20\"",
            "must be a duration from 100ms to 1h, such as 250ms, 10s or 7d",
        ),
        (
            "alarms.max_future=366d",
            "\"366d\"",
            "must be a duration from 1s to 365d, such as 250ms, 10s or 7d",
        ),
        (
            "metrics.aggregate_interval=1ms",
            "\"1ms\"",
            "must be a duration from 100ms to 1d, such as 250ms, 10s or 7d",
        ),
        (
            "input.mode=stream",
            "\"stream\"",
            "must be one of \"auto\", \"jetstream\", \"core\"",
        ),
        (
            "digest.when_empty=no",
            "\"no\"",
            "must be one of \"skip\", \"send\"",
        ),
        (
            "store.kind=redis",
            "\"redis\"",
            "must be one of \"embedded\", \"memory\"",
        ),
        (
            "store.kind=scylla",
            "\"scylla\"",
            "must be \"embedded\" or \"memory\": the scylla store is not built in yet",
        ),
        ("store.path=", "empty", "must be the path of a folder"),
        (
            "log.format=yaml",
            "\"yaml\"",
            "must be one of \"auto\", \"text\", \"json\"",
        ),
        (
            "nats.name=",
            "empty",
            "must be a text without control characters",
        ),
        (
            "nats.inbox_prefix=_INBOX.>",
            "\"_INBOX.>\"",
            "must be a subject without wildcards and spaces, such as _INBOX_tocsin",
        ),
        (
            "nats.inbox_prefix=",
            "empty",
            "must be a subject without wildcards and spaces, such as _INBOX_tocsin",
        ),
        (
            "nats.name=a\nb",
            "\"a\\nb\"",
            "must be a text without control characters",
        ),
        ("nats.url=", "empty", server),
        (
            "shutdown.timeout=10 s",
            "\"10 s\"",
            "must be a duration from 100ms to 1h, such as 250ms, 10s or 7d",
        ),
        ("nats.url=http://localhost", "\"http://localhost\"", server),
        (
            "nats.url=nats://a,,nats://b",
            "\"nats://a,,nats://b\"",
            server,
        ),
    ] {
        let (key, _) = set.split_once('=').unwrap();
        assert_eq!(
            error_of_set(set),
            format!("{key} is {found} (--set); {allowed}")
        );
    }
    for time in ["yesterday", "2026-01-31", ""] {
        let error = error_of_set(&format!("input.start={time}"));
        assert!(
            error.contains("must be \"first\", \"new\" or a time such as 2026-01-31T00:00:00Z"),
            "{error}"
        );
    }
    for filter in ["inof", "tocsin", ""] {
        let error = error_of_set(&format!("log.filter={filter}"));
        assert!(error.ends_with("must be a level (off, error, warn, info, debug, trace) and target=level pairs, such as info,tocsin=debug"), "{error}");
    }
}

#[test]
fn a_file_s_value_of_the_wrong_kind_is_refused_with_its_line() {
    for (text, error) in [
        (
            "[shutdown]\ntimeout = 20",
            "shutdown.timeout is 20 (~/t.toml:2); must be a duration from 100ms to 1h, such as 250ms, 10s or 7d",
        ),
        (
            "input.in_flight = 1.5",
            "input.in_flight is 1.5 (~/t.toml:1); must be a whole number from 1 to 16777216",
        ),
        (
            "input.in_flight = '5'",
            "input.in_flight is \"5\" (~/t.toml:1); must be a whole number from 1 to 16777216, without quotes",
        ),
        (
            "input.in_flight = true",
            "input.in_flight is true (~/t.toml:1); must be a whole number from 1 to 16777216",
        ),
        (
            "nats.name = 7",
            "nats.name is 7 (~/t.toml:1); must be a text; put it in quotes",
        ),
        (
            "nats.url = ['a', 'b']",
            "nats.url is a list (~/t.toml:1); must be nats://host:port or tls://host:port, several with commas between them",
        ),
        // Two lines begin with the name: better no number than a wrong one.
        (
            "[input]\nin_flight = 0\n[producers]\nin_flight = 1",
            "input.in_flight is 0 (~/t.toml); must be a whole number from 1 to 16777216",
        ),
    ] {
        assert_eq!(Place::new().file("t.toml", text).error(), error);
    }
}

#[test]
fn rules_between_two_keys_name_both() {
    for (sets, error) in [
        (
            &["alarms.tombstone_retention=7d"][..],
            "alarms.tombstone_retention is \"7d\" (--set); must be more than input.stream_max_age, which is \"7d\" (default), or a message read again would bring a cleared alarm back",
        ),
        (
            &["input.stream_max_age=14d"],
            "alarms.tombstone_retention is \"14d\" (default); must be more than input.stream_max_age, which is \"14d\" (--set), or a message read again would bring a cleared alarm back",
        ),
        (
            &["output.duplicate_window=8d"],
            "output.duplicate_window is \"8d\" (--set); must be at most output.stream_max_age, which is \"7d\" (default)",
        ),
        (
            &["workers.count=65"],
            "workers.count is \"65\" (--set); must be at most store.partitions, which is 64 (default)",
        ),
        (
            &["workers.mailbox=100"],
            "workers.mailbox is \"100\" (--set); must be 0 or at least input.in_flight, which is 65536 (default), so that a mailbox is never full",
        ),
        (
            &["nats.password=hunter2"],
            "nats.password is set (--set); must be given together with nats.user",
        ),
        (
            &["nats.user=u", "nats.password=hunter2", "nats.token=hunter2"],
            "nats.token is set (--set); must be unset beside nats.user, which is \"u\" (--set): one way to log in at a time",
        ),
        (
            &["nats.url=nats://u:hunter2@a", "nats.token=hunter2"],
            "nats.token is set (--set); must be unset beside nats.url with a login inside (--set): one way to log in at a time",
        ),
        (
            &["nats.url=nats://u:hunter2@a,http://v:hunter2@b"],
            "nats.url is \"nats://[redacted]@a,http://[redacted]@b\" (--set); must be nats://host:port or tls://host:port, several with commas between them",
        ),
    ] {
        let place = sets.iter().fold(Place::new(), |place, set| place.set(set));
        assert_eq!(place.error(), error);
    }
}

#[test]
fn files_that_keys_name_must_be_there_and_whole() {
    let place = Place::new();
    let cert = place.write("cert.pem", "certificate");
    let place = place.set(&format!("nats.tls_cert_file={}", cert.display()));
    assert_eq!(
        place.error(),
        "nats.tls_cert_file is \"~/cert.pem\" (--set); must be given together with nats.tls_key_file"
    );
    let place = place.set(&format!("nats.tls_key_file={}", cert.display()));
    assert_eq!(place.load().config.nats.tls_key_file, Some(cert));

    let missing = Place::new().set("nats.credentials_file=/nonexistent/u.creds");
    assert_eq!(
        missing.error(),
        "nats.credentials_file (--set): cannot read /nonexistent/u.creds: there is no such file"
    );
    let missing = Place::new().env("TOCSIN__NATS__TOKEN_FILE", "/nonexistent/token");
    assert_eq!(
        missing.error(),
        "nats.token_file (environment variable TOCSIN__NATS__TOKEN_FILE): cannot read /nonexistent/token: there is no such file"
    );
    let empty = Place::new();
    let path = empty.write("token", "\n");
    let empty = empty.set(&format!("nats.token_file={}", path.display()));
    assert_eq!(
        empty.error(),
        "nats.token_file (--set): cannot read ~/token: it is empty"
    );
}

#[test]
fn a_secret_comes_from_its_key_or_its_file_and_is_never_shown() {
    let place = Place::new();
    let path = place.write("password", "hunter2\n");
    let place = place
        .set("nats.user=u")
        .set(&format!("nats.password_file={}", path.display()));
    let loaded = place.load();
    assert_eq!(
        loaded.config.nats.password.as_ref().unwrap().expose(),
        "hunter2"
    );
    for shown in [format!("{loaded:?}"), format!("{:#?}", loaded.config)] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    let both = place.set("nats.password=hunter2");
    assert_eq!(
        both.error(),
        "nats.password_file is \"~/password\" (--set); must be unset beside nats.password (--set): one of the two"
    );

    let loaded = Place::new()
        .set("nats.url=nats://hunter2@a:1,nats://u:hunter2@b")
        .load();
    assert_eq!(
        loaded.config.nats.url.expose(),
        ["nats://hunter2@a:1", "nats://u:hunter2@b"]
    );
    let shown = format!("{loaded:?}");
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(
        shown.contains("nats://[redacted]@a:1,nats://[redacted]@b"),
        "{shown}"
    );

    let number = Place::new().file("t.yaml", "nats:\n  token: 12345678\n");
    assert_eq!(
        number.error(),
        "nats.token is set (~/t.yaml:2); must be a text; put it in quotes"
    );
}

#[test]
fn a_credential_of_the_service_manager_is_the_file_of_its_key() {
    let place = Place::new();
    let path = place.write("credentials/nats.password", "hunter2\n");
    place.write("credentials/of-somebody-else", "");
    let folder = path.parent().unwrap().to_owned();
    let place = place
        .file(
            "t.toml",
            "nats.user = 'u'\nnats.password_file = '/nowhere'\n",
        )
        .env("CREDENTIALS_DIRECTORY", folder.clone());
    let loaded = place.load();
    assert_eq!(loaded.config.nats.password.unwrap().expose(), "hunter2");
    let setting = loaded.settings.iter();
    let mut setting = setting.filter(|setting| setting.key == "nats.password_file");
    let origin = setting.next().unwrap().origin.to_string();
    assert_eq!(origin, "credential nats.password");
    let other = place.write("other", "hunter3");
    let place = place.env("TOCSIN__NATS__PASSWORD_FILE", other);
    assert_eq!(
        place.load().config.nats.password.unwrap().expose(),
        "hunter3"
    );

    fs::remove_file(path).unwrap();
    let none = Place::new().env("CREDENTIALS_DIRECTORY", folder);
    assert_eq!(none.load().config.nats.password, None);
}

#[test]
fn no_error_repeats_what_may_be_a_secret() {
    for (name, text) in [
        ("t.toml", "[nats]\npassword = \"hunter2\ntoken = 1"),
        ("t.toml", "[nats]\npassword = hunter2"),
        ("t.yaml", "nats:\n  password: \"hunter2\n  token: ]"),
        ("t.yaml", "hunter2"),
        ("t.json", "{\"nats\": {\"password\": \"hunter2}}"),
        ("t.json", "\"hunter2\""),
    ] {
        let error = Place::new().file(name, text).error();
        assert!(
            !error.contains("hunter2") && error.contains("cannot be parsed"),
            "{error}"
        );
    }
    for set in [
        "nats.password hunter2",
        "nats.password:hunter2",
        "nats.passwrod=hunter2",
    ] {
        let error = error_of_set(set);
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn counts_that_are_left_to_the_machine_are_shown_as_they_came_out() {
    let loaded = Place::new()
        .set("store.partitions=1")
        .set("input.in_flight=10")
        .load();
    assert_eq!(
        (loaded.config.workers.count, loaded.config.workers.mailbox),
        (1, 1034)
    );
    let shown = |key: &str| {
        let setting = loaded
            .settings
            .iter()
            .find(|setting| setting.key == key)
            .unwrap();
        setting.value.to_string()
    };
    assert_eq!(
        (shown("workers.count"), shown("workers.mailbox")),
        ("1".into(), "1034".into())
    );
}
