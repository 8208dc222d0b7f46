//! The ending of a file's name, a line feed and the file: refused in one line, or taken; and what is taken, written
//! in each of the formats, means the same.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tocsin::config::{Config, ConfigError, Loaded, Setting, Sources};

/// Returns whether the file is a configuration.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let ending = match parts.next() {
        Some(b"toml") => "toml",
        Some(b"yaml") => "yaml",
        Some(b"json") => "json",
        _ => return false,
    };
    let folder = tempfile::tempdir().expect("a folder");
    let loaded = load(folder.path(), ending, parts.next().unwrap_or_default());
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            let shown = error.to_string();
            assert!(!shown.is_empty() && !shown.contains('\n'), "{shown:?}");
            return false;
        }
    };
    // What is secret is not shown, and cannot be written again.
    let is_shown = |setting: &Setting| !setting.value.to_string().contains("[redacted]");
    if loaded.settings.iter().all(is_shown) {
        let json = as_json(&loaded.settings).to_string();
        for (ending, text) in [
            ("json", &json),
            ("yaml", &json),
            ("toml", &as_toml(&loaded.settings)),
        ] {
            let again = load(folder.path(), ending, text.as_bytes());
            let again = again.unwrap_or_else(|error| panic!("{error}: {text}"));
            assert_eq!(again.config, loaded.config, "{ending}: {text}");
        }
    }
    true
}

fn load(folder: &Path, ending: &str, bytes: &[u8]) -> Result<Loaded, ConfigError> {
    let path: PathBuf = folder.join(format!("tocsin.{ending}"));
    fs::write(&path, bytes).expect("a file");
    Config::load(&Sources {
        config_path: Some(path),
        ..Sources::none()
    })
}

/// Sections with their keys; what is not set is left out.
fn as_json(settings: &[Setting]) -> Value {
    let mut root = Map::new();
    for setting in settings.iter().filter(|setting| !setting.value.is_null()) {
        let mut names: Vec<_> = setting.key.split('.').collect();
        let key = names.pop().expect("a key has a name");
        let mut section = &mut root;
        for name in names {
            let inner = section.entry(name).or_insert_with(|| Map::new().into());
            section = inner.as_object_mut().expect("a section holds keys");
        }
        section.insert(key.to_owned(), setting.value.clone());
    }
    root.into()
}

fn as_toml(settings: &[Setting]) -> String {
    let is_set = settings.iter().filter(|setting| !setting.value.is_null());
    let lines: Vec<_> = is_set
        .map(|setting| format!("{} = {}\n", setting.key, setting.value))
        .collect();
    lines.concat()
}
