//! Where settings come from, laid over one another: later wins, and every value keeps its [`Origin`].
//!
//! | order | source |
//! |---|---|
//! | 1 | the compiled-in `config/default.toml` |
//! | 2 | one file: `--config`, else `TOCSIN_CONFIG`, else `/etc/tocsin/tocsin.{toml,yaml,json}` |
//! | 3 | what systemd's `LoadCredential=` left in `$CREDENTIALS_DIRECTORY`: `nats.password` for `nats.password_file` |
//! | 4 | the environment: `TOCSIN__SECTION__KEY` |
//! | 5 | `--set section.key=value` |
//!
//! The defaults are the list of known keys; any other key is refused here. What a value means is not
//! looked at.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::{env, fs};

use ::config::{FileFormat, Format, Map, Value, ValueKind};

use super::values::Scalar;
use super::{ConfigError, DEFAULTS};

const ENV_PREFIX: &str = "TOCSIN__";
const ENV_CONFIG: &str = "TOCSIN_CONFIG";
/// Where systemd puts the credentials of a service.
const ENV_CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Ends the keys that name a file.
const FILE_SUFFIX: &str = "_file";
const SYSTEM_FOLDER: &str = "/etc/tocsin";
const ENDINGS: &str = ".toml, .yaml, .yml or .json";

/// Who set a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// `config/default.toml`.
    Default,
    /// A configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, where only one can be meant.
        line: Option<usize>,
    },
    /// A credential of the service manager.
    Credential {
        /// Its name.
        name: String,
    },
    /// An environment variable.
    Environment {
        /// Its name.
        name: String,
    },
    /// An argument `--set`.
    Set,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => {
                write!(f, "{}", path.display())?;
                line.map_or(Ok(()), |line| write!(f, ":{line}"))
            }
            Self::Credential { name } => write!(f, "credential {name}"),
            Self::Environment { name } => write!(f, "environment variable {name}"),
            Self::Set => f.write_str("--set"),
        }
    }
}

/// What the settings are read from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The file named by `--config`.
    pub config_path: Option<PathBuf>,
    /// Each `--set`, as `section.key=value`.
    pub sets: Vec<String>,
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
    /// Where a file is looked for when none is named.
    pub system_folder: PathBuf,
}

impl Sources {
    /// The given file and `--set` arguments, with the environment of this process.
    #[must_use]
    pub fn of_process(config_path: Option<PathBuf>, sets: Vec<String>) -> Self {
        Self {
            config_path,
            sets,
            env: env::vars_os().collect(),
            system_folder: PathBuf::from(SYSTEM_FOLDER),
        }
    }

    /// Every known key with the value that won.
    pub(super) fn read(&self) -> Result<Values, ConfigError> {
        let mut values = Values::defaults();
        if let Some(path) = self.file()? {
            values.lay_file(&path)?;
        }
        values.lay_credentials(&self.env)?;
        values.lay_environment(&self.env)?;
        values.lay_sets(&self.sets)?;
        Ok(values)
    }

    /// The one configuration file, if there is one.
    fn file(&self) -> Result<Option<PathBuf>, ConfigError> {
        if let Some(path) = &self.config_path {
            return Ok(Some(path.clone()));
        }
        let named = self.env.iter().find(|(name, _)| name == ENV_CONFIG);
        if let Some((_, path)) = named.filter(|(_, path)| !path.is_empty()) {
            return Ok(Some(PathBuf::from(path)));
        }
        let mut found = ["toml", "yaml", "json"]
            .map(|ending| self.system_folder.join(format!("tocsin.{ending}")))
            .into_iter()
            .filter(|path| path.exists());
        let first = found.next();
        if let (Some(path), Some(other)) = (&first, found.next()) {
            return Err(ConfigError::File {
                path: path.clone(),
                reason: format!("{} exists too; keep one of them", other.display()),
            });
        }
        Ok(first)
    }
}

/// One value and who set it.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) scalar: Scalar,
    pub(super) origin: Origin,
}

/// Every known key and its value.
#[derive(Debug)]
pub(super) struct Values(BTreeMap<String, Raw>);

impl Values {
    fn defaults() -> Self {
        let table = FileFormat::Toml
            .parse(None, DEFAULTS)
            .expect("the compiled-in defaults are valid TOML");
        let raw = |scalar| Raw {
            scalar,
            origin: Origin::Default,
        };
        let flat = flatten(table).expect("the compiled-in defaults name no key twice");
        Self(
            flat.into_iter()
                .map(|(key, scalar)| (key, raw(scalar)))
                .collect(),
        )
    }

    pub(super) fn get(&self, key: &str) -> &Raw {
        self.0.get(key).expect("config/default.toml has every key")
    }

    #[cfg(test)]
    pub(super) fn keys(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn lay_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let refuse = |reason| ConfigError::File {
            path: path.to_owned(),
            reason,
        };
        let format = match path.extension().and_then(|ending| ending.to_str()) {
            Some("toml") => FileFormat::Toml,
            Some("yaml" | "yml") => FileFormat::Yaml,
            Some("json") => FileFormat::Json,
            _ => return Err(refuse(format!("its name must end in {ENDINGS}"))),
        };
        let text = fs::read_to_string(path)
            .map_err(|error| refuse(format!("cannot be read: {}", why_unreadable(&error))))?;
        let table = format.parse(None, &text).map_err(|error| {
            refuse(format!(
                "cannot be parsed: {}",
                in_one_line(&error.to_string())
            ))
        })?;
        let flat =
            flatten(table).map_err(|key| refuse(format!("names {key} twice; keep one of them")))?;
        for (key, scalar) in flat {
            let line = line_of(&text, &key);
            let path = path.to_owned();
            self.lay(&key, scalar, Origin::File { path, line })?;
        }
        Ok(())
    }

    /// A credential with the name of a key that names a file, less `_file`, is that file. Others are left to whoever
    /// named them.
    fn lay_credentials(&mut self, env: &[(OsString, OsString)]) -> Result<(), ConfigError> {
        let folder = env.iter().find(|(name, _)| name == ENV_CREDENTIALS);
        let Some(folder) = folder.and_then(|(_, folder)| folder.to_str()) else {
            return Ok(());
        };
        let keys: Vec<_> = self.0.keys().cloned().collect();
        for key in keys {
            let Some(name) = key.strip_suffix(FILE_SUFFIX) else {
                continue;
            };
            let path = format!("{folder}/{name}");
            if Path::new(&path).exists() {
                let name = name.to_owned();
                self.lay(&key, Scalar::Text(path), Origin::Credential { name })?;
            }
        }
        Ok(())
    }

    fn lay_environment(&mut self, env: &[(OsString, OsString)]) -> Result<(), ConfigError> {
        let mut given: Vec<_> = env
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, value)))
            .collect();
        given.sort_unstable();
        for (name, value) in given {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                self.refuse_single_underscores(name)?;
                continue;
            };
            let Some(value) = value.to_str() else {
                return Err(ConfigError::Malformed {
                    given: format!("environment variable {name}"),
                    reason: "its value is not UTF-8 text".to_owned(),
                });
            };
            let key = rest.replace("__", ".").to_ascii_lowercase();
            let name = name.to_owned();
            self.lay(
                &key,
                Scalar::Text(value.to_owned()),
                Origin::Environment { name },
            )?;
        }
        Ok(())
    }

    /// `TOCSIN_NATS_URL` would be ignored without a word. Other names that begin with `TOCSIN_` are left
    /// alone: container platforms make up such variables.
    fn refuse_single_underscores(&self, name: &str) -> Result<(), ConfigError> {
        let Some(rest) = name.strip_prefix("TOCSIN_") else {
            return Ok(());
        };
        let rest = rest.to_ascii_lowercase();
        let Some(key) = self.0.keys().find(|key| key.replace('.', "_") == rest) else {
            return Ok(());
        };
        Err(ConfigError::Malformed {
            given: format!("environment variable {name}"),
            reason: format!(
                "two underscores stand between section and key; name it {}",
                env_name(key)
            ),
        })
    }

    fn lay_sets(&mut self, sets: &[String]) -> Result<(), ConfigError> {
        for set in sets {
            let Some((key, value)) = set.split_once('=') else {
                // What stands behind the key may be a secret.
                let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
                let key = set.split(|c| !is_key(c)).next().unwrap_or_default();
                return Err(ConfigError::Malformed {
                    given: format!("--set {key}..."),
                    reason: "must be section.key=value, for example input.in_flight=1000"
                        .to_owned(),
                });
            };
            self.lay(key.trim(), Scalar::Text(value.to_owned()), Origin::Set)?;
        }
        Ok(())
    }

    fn lay(&mut self, key: &str, scalar: Scalar, origin: Origin) -> Result<(), ConfigError> {
        if let Some(known) = self.0.get_mut(key) {
            *known = Raw { scalar, origin };
            return Ok(());
        }
        let hint = self.hint(key, &origin);
        let key = key.to_owned();
        Err(ConfigError::UnknownKey { key, origin, hint })
    }

    /// What the writer of an unknown key may have meant.
    fn hint(&self, key: &str, origin: &Origin) -> String {
        let section = format!("{key}.");
        let inside: Vec<_> = self
            .0
            .keys()
            .filter(|known| known.starts_with(&section))
            .collect();
        if let Some(first) = inside.first() {
            return format!("it is a section, with keys such as {first}");
        }
        let nearest = self
            .0
            .keys()
            .min_by_key(|known| distance(key, known))
            .map_or("", String::as_str);
        match origin {
            Origin::Environment { .. } => {
                format!("the nearest one is {nearest}: {}", env_name(nearest))
            }
            Origin::Default | Origin::File { .. } | Origin::Credential { .. } | Origin::Set => {
                format!("the nearest one is {nearest}")
            }
        }
    }
}

/// How far a written key is from a known one; the right name in the wrong section is nearly right.
fn distance(written: &str, known: &str) -> usize {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let whole = strsim::damerau_levenshtein(written, known);
    let names = strsim::damerau_levenshtein(&last(written), &last(known));
    whole.min(names * 2 + 1)
}

fn env_name(key: &str) -> String {
    format!(
        "{ENV_PREFIX}{}",
        key.replace('.', "__").to_ascii_uppercase()
    )
}

/// Sections and keys as `section.key`, in order; a key that is there twice (`a.b` beside `b` in `a`) is
/// the error.
fn flatten(table: Map<String, Value>) -> Result<BTreeMap<String, Scalar>, String> {
    let mut flat = BTreeMap::new();
    let mut open: Vec<(String, Value)> = table.into_iter().collect();
    while let Some((key, value)) = open.pop() {
        if let ValueKind::Table(table) = value.kind {
            open.extend(
                table
                    .into_iter()
                    .map(|(inner, value)| (format!("{key}.{inner}"), value)),
            );
            continue;
        }
        match flat.entry(key) {
            Entry::Vacant(entry) => entry.insert(Scalar::new(value)),
            Entry::Occupied(entry) => return Err(entry.key().clone()),
        };
    }
    Ok(flat)
}

/// The line that sets a key, if its last name begins one line and no other.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let name = key.rsplit('.').next()?;
    let is_setting = |line: &str| {
        let line = line.trim_start().trim_start_matches(['"', '\'']);
        let Some(rest) = line.strip_prefix(key).or_else(|| line.strip_prefix(name)) else {
            return false;
        };
        rest.trim_start_matches(['"', '\''])
            .trim_start()
            .starts_with(['=', ':'])
    };
    let mut lines = (1..).zip(text.lines()).filter(|(_, line)| is_setting(line));
    let (number, _) = lines.next()?;
    lines.next().is_none().then_some(number)
}

/// What stopped a file from being read.
pub(super) fn why_unreadable(error: &io::Error) -> String {
    if error.kind() == ErrorKind::NotFound {
        return "there is no such file".to_owned();
    }
    if error.kind() == ErrorKind::InvalidData {
        return "it is not UTF-8 text".to_owned();
    }
    error.to_string()
}

/// A parser's report without what it quotes of the file, which may be a secret.
fn in_one_line(report: &str) -> String {
    if report.starts_with("invalid type") {
        return "it holds no sections with keys".to_owned();
    }
    let is_drawing = |line: &&str| {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c.is_whitespace());
        !line.starts_with('|')
    };
    let lines: Vec<_> = report.lines().filter(is_drawing).map(str::trim).collect();
    lines.join(": ")
}
