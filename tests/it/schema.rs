//! The JSON Schema against a validator that knows nothing of us: what it says of a file is what the program says.

use config::{FileFormat, Format, Value as FileValue};
use jsonschema::Validator;
use serde_json::{Value, json};
use tocsin::config::{Allowed, Config, DEFAULTS, Sources};

use crate::config::Place;
use crate::support::program::run;

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::new(schema).unwrap_or_else(|error| panic!("{error}"))
}

/// A file as an editor hands it to a validator.
fn as_json(name: &str, text: &str) -> Value {
    let format = match name.rsplit_once('.') {
        Some((_, "toml")) => FileFormat::Toml,
        Some((_, "yaml")) => FileFormat::Yaml,
        _ => FileFormat::Json,
    };
    let table = format.parse(None, text).unwrap();
    FileValue::from(table).try_deserialize().unwrap()
}

/// What the schema and the program say of a file.
fn verdicts(validator: &Validator, name: &str, text: &str) -> (bool, bool) {
    let place = Place::new().file(name, text);
    (
        validator.is_valid(&as_json(name, text)),
        Config::load(&place.sources).is_ok(),
    )
}

#[test]
fn the_schema_is_one_and_the_defaults_are_valid_by_it() {
    let (status, printed, err) = run(&["config", "schema"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let schema: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(schema, Config::schema());
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{error}"));
    let validator = validator(&schema);
    let defaults = as_json("default.toml", DEFAULTS);
    let errors: Vec<_> = validator
        .iter_errors(&defaults)
        .map(|it| it.to_string())
        .collect();
    assert_eq!(errors, [""; 0]);
}

#[test]
fn every_key_has_its_sentence_and_its_default_and_no_secret_has_one() {
    let schema = Config::schema();
    let defaults = as_json("default.toml", DEFAULTS);
    let loaded = Config::load(&Sources::none()).unwrap();
    for setting in &loaded.settings {
        let path = setting.key.replace('.', "/properties/");
        let of_key = &schema.pointer(&format!("/properties/{path}")).unwrap();
        let sentence = of_key["description"].as_str().unwrap();
        assert!(
            DEFAULTS.contains(sentence.split(" Must be ").next().unwrap()),
            "{}: {sentence}",
            setting.key
        );
        let default = defaults
            .pointer(&format!("/{}", setting.key.replace('.', "/")))
            .unwrap();
        let is_secret = setting.allowed == Allowed::Secret;
        assert_eq!(
            of_key.get("default"),
            Some(default).filter(|_| !is_secret),
            "{}",
            setting.key
        );
    }
    let is_secret =
        |key: &str| schema["properties"]["nats"]["properties"][key]["writeOnly"] == true;
    assert!(is_secret("password") && is_secret("token") && !is_secret("password_file"));
    let description = &schema["properties"]["shutdown"]["properties"]["timeout"]["description"];
    assert_eq!(
        description,
        "How long a stop may take to commit and publish what is in flight. Must be a duration from 100ms to 1h, such as 250ms, 10s or 7d."
    );
    assert_eq!(
        schema["properties"]["store"]["properties"]["kind"]["enum"],
        json!(["embedded", "memory"])
    );
}

#[test]
fn schema_and_program_agree_on_any_kind_of_value_at_any_key() {
    let validator = validator(&Config::schema());
    let loaded = Config::load(&Sources::none()).unwrap();
    for setting in &loaded.settings {
        for value in [
            json!(true),
            json!(1.5),
            json!(-1),
            json!(0),
            json!(1_000_000_000_000_u64),
            json!([]),
            json!({}),
            json!({"inner": 1}),
            json!(null),
            json!(""),
            json!("\u{7}"),
            json!("12"),
            json!("first"),
        ] {
            let is_text = value.as_str().is_some_and(|text| !text.is_empty());
            // Whether a file is there, what is set beside a user or a secret, and what a log filter may name.
            let cannot_know = is_text
                && (setting.key == "nats.user"
                    || matches!(
                        setting.allowed,
                        Allowed::File | Allowed::Secret | Allowed::LogFilter
                    ));
            if cannot_know {
                continue;
            }
            let file = setting
                .key
                .rsplit('.')
                .fold(value.clone(), |inner, name| json!({name: inner}));
            let (schema, program) = verdicts(&validator, "t.json", &file.to_string());
            assert_eq!(schema, program, "{file}");
        }
    }
}

#[test]
fn schema_and_program_agree_on_files_as_people_write_them() {
    let validator = validator(&Config::schema());
    for (name, text) in [
        ("t.toml", ""),
        (
            "t.toml",
            "[nats]\nurl = 'nats://a:4222, tls://[::1]:4222,u:p@b/'",
        ),
        ("t.toml", "[nats]\nurl = 'nats://user:p@ss@host:65535'"),
        (
            "t.toml",
            "[input]\nstart = 2026-01-31T00:00:00Z\nin_flight = 1_000",
        ),
        (
            "t.toml",
            "input.start = '2026-01-31t00:00:00.123456789+01:00'",
        ),
        (
            "t.toml",
            "producers.owed.rows = 1\nproducers.owed.bytes = '1MiB'",
        ),
        ("t.toml", "[shutdown]\ntimeout = '1h'"),
        (
            "t.toml",
            "[store]\nkind = 'memory'\npartitions = 4096\n[workers]\ncount = 4",
        ),
        (
            "t.yaml",
            "nats:\ninput: {mode: core}\nshutdown:\n  timeout: 250ms",
        ),
        ("t.yaml", "nats:\n  token: secret\n  user:"),
        (
            "t.json",
            r#"{"$schema": "./tocsin.schema.json", "log": {"format": "json"}}"#,
        ),
    ] {
        assert_eq!(
            verdicts(&validator, name, text),
            (true, true),
            "{name}: {text}"
        );
    }
    for (name, text) in [
        ("t.toml", "[nat]\nurl = 'nats://a'"),
        ("t.toml", "[nats]\nulr = 'nats://a'"),
        ("t.toml", "url = 'nats://a'"),
        ("t.toml", "nats = 'nats://a'"),
        ("t.toml", "[[nats]]\nurl = 'nats://a'"),
        ("t.toml", "[nats]\nurl = ['nats://a', 'nats://b']"),
        ("t.toml", "[nats]\nurl = ''"),
        ("t.toml", "[nats]\nurl = 'http://a'"),
        ("t.toml", "[nats]\nurl = 'http://u@a'"),
        ("t.toml", "[nats]\nurl = 'nats://a:0'"),
        ("t.toml", "[nats]\nurl = 'nats://a:65536'"),
        ("t.toml", "[nats]\nurl = 'nats://a b'"),
        ("t.toml", "[nats]\nurl = 'nats://a,,nats://b'"),
        ("t.toml", "[nats]\nurl = 'nats://a/path'"),
        ("t.toml", "[nats]\nname = ''"),
        ("t.toml", "[input]\nmode = 'Auto'"),
        ("t.toml", "[input]\nlisteners = 65"),
        ("t.toml", "[input]\nlisteners = '1'"),
        ("t.toml", "[input]\nstart = 2026-01-31"),
        ("t.toml", "[input]\nstart = 'yesterday'"),
        ("t.toml", "[input]\nstream_max_bytes = '16GB'"),
        ("t.toml", "[shutdown]\ntimeout = 20"),
        ("t.toml", "[shutdown]\ntimeout = '10 s'"),
        ("t.toml", "[shutdown]\ntimeout = '1.5h'"),
        ("t.toml", "[store]\npath = ''"),
        ("t.toml", "[store]\nkind = 'scylla'"),
        ("t.yaml", "input:\n  in_flight:"),
        ("t.yaml", "nats:\n  token: 12345678"),
        ("t.json", r#"{"nats": {"$schema": "x"}}"#),
    ] {
        assert_eq!(
            verdicts(&validator, name, text),
            (false, false),
            "{name}: {text}"
        );
    }
}

#[test]
fn what_the_schema_cannot_know_is_this_and_the_program_refuses_it() {
    let validator = validator(&Config::schema());
    for (name, text) in [
        // Bounds of what is written with a unit; they are in the description.
        ("t.toml", "[shutdown]\ntimeout = '2h'"),
        ("t.toml", "[input]\nstream_max_bytes = '1KiB'"),
        // A day that no month has.
        ("t.toml", "[input]\nstart = '2026-02-30T00:00:00Z'"),
        // Rules between two keys.
        ("t.toml", "[nats]\nuser = 'u'\npassword = 'p'\ntoken = 't'"),
        ("t.toml", "[nats]\ntls_cert_file = '/dev/null'"),
        ("t.toml", "[alarms]\ntombstone_retention = '1d'"),
        ("t.toml", "[output]\nduplicate_window = '8d'"),
        ("t.toml", "[workers]\ncount = 65"),
        ("t.toml", "[workers]\nmailbox = 1"),
        // Whether a file is there.
        ("t.toml", "[nats]\ntoken_file = '/nonexistent/token'"),
        // What a log filter may name.
        ("t.toml", "[log]\nfilter = 'loud'"),
        // JSON Schema takes it for a whole number.
        ("t.toml", "[input]\nlisteners = 1.0"),
        // A key that stands twice: the validator never sees the first.
        ("t.json", r#"{"nats": {"name": "a", "name": "b"}}"#),
    ] {
        assert_eq!(
            verdicts(&validator, name, text),
            (true, false),
            "{name}: {text}"
        );
    }
    // The program reads a name with a dot as section and key in every format; to the schema it is unknown.
    let dotted = r#"{"nats.name": "a"}"#;
    assert_eq!(verdicts(&validator, "t.json", dotted), (false, true));
}
