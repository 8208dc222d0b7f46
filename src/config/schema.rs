//! The JSON Schema of a configuration file, for editors.
//!
//! Nothing is listed here: keys, defaults and sentences are those of `config/default.toml`, and what a key
//! allows is what [`Config::load`] has just checked its default against.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::allowed::fields;
use super::sources::{SCHEMA_KEY, Values};
use super::{Allowed, Config, DEFAULTS, Sources};

const USE: &str = "Write it with `tocsin config schema > tocsin.schema.json`. TOML (Taplo, Even Better TOML): \
    `#:schema ./tocsin.schema.json` as the first line. YAML (yaml-language-server): \
    `# yaml-language-server: $schema=./tocsin.schema.json` as the first line. JSON: \
    `\"$schema\": \"./tocsin.schema.json\"` as a key.";

impl Config {
    /// The JSON Schema (draft 2020-12) of a configuration file.
    ///
    /// What it refuses is refused by [`Config::load`]. It cannot know the bounds of durations and sizes, the
    /// rules between two keys, whether a file is there, and what a log filter may name.
    #[must_use]
    pub fn schema() -> Value {
        let loaded = Self::load(&Sources::none()).expect("the compiled-in defaults are valid");
        let (defaults, sentences) = (Values::defaults(), sentences());
        let mut root = Section::default();
        for setting in &loaded.settings {
            let mut schema = setting.allowed.schema();
            let sentence = sentences.get(setting.key).cloned().unwrap_or_default();
            let description = match &setting.allowed {
                Allowed::Text | Allowed::Secret | Allowed::Choice(_) => sentence,
                allowed @ (Allowed::Required(_)
                | Allowed::File
                | Allowed::Servers
                | Allowed::Subject
                | Allowed::Count(_)
                | Allowed::Duration(_)
                | Allowed::Size(_)
                | Allowed::Start
                | Allowed::LogFilter) => format!("{sentence} Must be {allowed}."),
            };
            schema.insert("description".to_owned(), description.into());
            if setting.allowed == Allowed::Secret {
                schema.insert("writeOnly".to_owned(), true.into());
            } else {
                let default = defaults.get(setting.key).scalar.to_json();
                schema.insert("default".to_owned(), default);
            }
            root.put(setting.key, schema.into());
        }
        let of_editor = fields([
            ("type", "string".into()),
            ("description", "Where this schema is; for editors.".into()),
        ]);
        root.keys.insert(SCHEMA_KEY.to_owned(), of_editor.into());
        let mut schema = root.into_schema("", &sentences);
        schema.extend(fields([
            (
                "$schema",
                "https://json-schema.org/draft/2020-12/schema".into(),
            ),
            ("$comment", USE.into()),
            ("title", "Configuration of tocsin".into()),
        ]));
        schema.into()
    }
}

/// Keys, and sections inside of this one.
#[derive(Default)]
struct Section {
    keys: Map<String, Value>,
    sections: BTreeMap<String, Self>,
}

impl Section {
    fn put(&mut self, key: &str, schema: Value) {
        match key.split_once('.') {
            Some((name, rest)) => {
                let section = self.sections.entry(name.to_owned()).or_default();
                section.put(rest, schema);
            }
            None => {
                self.keys.insert(key.to_owned(), schema);
            }
        }
    }

    fn into_schema(self, path: &str, sentences: &BTreeMap<String, String>) -> Map<String, Value> {
        let mut properties = self.keys;
        for (name, section) in self.sections {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let schema = section.into_schema(&path, sentences);
            properties.insert(name, schema.into());
        }
        let mut schema = fields([
            // In YAML a section whose keys are all comments is null.
            ("type", ["object", "null"].as_slice().into()),
            ("additionalProperties", false.into()),
            ("properties", properties.into()),
        ]);
        let sentence = sentences.get(path).map(|it| it.as_str().into());
        schema.extend(sentence.map(|sentence| ("description".to_owned(), sentence)));
        schema
    }
}

/// What `config/default.toml` says above each section and key; a comment counts for all lines below it up to
/// the next.
fn sentences() -> BTreeMap<String, String> {
    let mut sentences = BTreeMap::new();
    let (mut section, mut comment, mut is_open) = (String::new(), String::new(), false);
    for line in DEFAULTS.lines() {
        if let Some(words) = line.strip_prefix("# ") {
            let before = if is_open {
                comment + " "
            } else {
                String::new()
            };
            comment = before + words;
            is_open = true;
            continue;
        }
        is_open = false;
        if let Some(name) = line.strip_prefix('[') {
            name.trim_end_matches(']').clone_into(&mut section);
            sentences.insert(section.clone(), comment.clone());
        } else if let Some((key, _)) = line.split_once(" = ") {
            sentences.insert(format!("{section}.{key}"), comment.clone());
            if let Some((group, _)) = key.split_once('.') {
                sentences.insert(format!("{section}.{group}"), comment.clone());
            }
        }
    }
    sentences
}
