//! The JSON Schema of a configuration file, for editors.
//!
//! Nothing is listed here: keys, defaults and sentences are those of `config/default.toml`, and what a key
//! allows is what [`Config::load`] has just checked its default against.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

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
        let sentence = |name: &str| sentences.get(name).cloned().unwrap_or_default();
        let mut root = section(
            "Configuration of tocsin; tocsin config print shows what is in force, tocsin config check what is wrong.",
        );
        for setting in &loaded.settings {
            let mut of_key = setting.allowed.schema();
            let words = match setting.allowed {
                Allowed::Text | Allowed::Secret | Allowed::Choice(_) => String::new(),
                _ => format!(" Must be {}.", setting.allowed),
            };
            of_key["description"] = format!("{}{words}", sentence(setting.key)).into();
            if setting.allowed == Allowed::Secret {
                of_key["writeOnly"] = true.into();
            } else {
                of_key["default"] = defaults.get(setting.key).scalar.to_json();
            }
            put(&mut root, setting.key, "", &sentence, of_key);
        }
        root["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        root["$comment"] = USE.into();
        root["title"] = "tocsin".into();
        let of_editor =
            json!({ "type": "string", "description": "Where this schema is; for editors." });
        root["properties"][SCHEMA_KEY] = of_editor;
        root
    }
}

/// A section without keys. In YAML one whose keys are all comments is null.
fn section(description: &str) -> Value {
    json!({
        "description": description,
        "type": ["object", "null"],
        "additionalProperties": false,
        "properties": Map::new(),
    })
}

/// Puts a key into its section, which is made where it is missing.
fn put(
    into: &mut Value,
    key: &str,
    parent: &str,
    sentence: &impl Fn(&str) -> String,
    of_key: Value,
) {
    let properties = &mut into["properties"];
    let Some((name, rest)) = key.split_once('.') else {
        properties[key] = of_key;
        return;
    };
    let path = format!("{parent}{name}");
    if properties[name].is_null() {
        properties[name] = section(&sentence(&path));
    }
    put(
        &mut properties[name],
        rest,
        &format!("{path}."),
        sentence,
        of_key,
    );
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
