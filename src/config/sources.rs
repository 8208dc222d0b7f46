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
use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use ::config::{FileFormat, Format, Map, Value, ValueKind};

use super::file;
use super::values::Scalar;
use super::{ConfigError, DEFAULTS};

const ENV_PREFIX: &str = "TOCSIN__";
const ENV_CONFIG: &str = "TOCSIN_CONFIG";
/// Where systemd puts the credentials of a service.
const ENV_CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// Ends the keys that name a file.
const FILE_SUFFIX: &str = "_file";
const SYSTEM_FOLDER: &str = "/etc/tocsin";
/// Where an editor looks for the schema of a file; no setting.
pub(super) const SCHEMA_KEY: &str = "$schema";

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

/// The one configuration file that is read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// Who named it.
    pub named_by: NamedBy,
}

/// Who named a configuration file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NamedBy {
    /// An argument.
    Argument,
    /// `TOCSIN_CONFIG`.
    Environment,
    /// Nobody: it lies where one is looked for.
    Nobody,
}

impl fmt::Display for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named_by = match self.named_by {
            NamedBy::Argument => "named by an argument",
            NamedBy::Environment => "named by TOCSIN_CONFIG",
            NamedBy::Nobody => "found there, no other was named",
        };
        write!(f, "{} ({named_by})", self.path.display())
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

    /// Nothing but the compiled-in defaults.
    #[must_use]
    pub fn none() -> Self {
        Self {
            config_path: None,
            sets: Vec::new(),
            env: Vec::new(),
            // No folder: nothing can lie in it.
            system_folder: PathBuf::from("/dev/null"),
        }
    }

    /// Every known key with the value that won, and the file that was read.
    pub(super) fn read(&self) -> Result<(Values, Option<ConfigFile>), ConfigError> {
        let mut values = Values::defaults();
        let file = self.file()?;
        if let Some(file) = &file {
            values.lay_file(&file.path)?;
        }
        values.lay_credentials(&self.env)?;
        values.lay_environment(&self.env)?;
        values.lay_sets(&self.sets)?;
        Ok((values, file))
    }

    /// The one configuration file, if there is one.
    fn file(&self) -> Result<Option<ConfigFile>, ConfigError> {
        let named = |path: PathBuf, named_by| Ok(Some(ConfigFile { path, named_by }));
        if let Some(path) = &self.config_path {
            return named(path.clone(), NamedBy::Argument);
        }
        let of_env = self.env.iter().find(|(name, _)| name == ENV_CONFIG);
        if let Some((_, path)) = of_env.filter(|(_, path)| !path.is_empty()) {
            return named(PathBuf::from(path), NamedBy::Environment);
        }
        let mut found = ["toml", "yaml", "json"]
            .map(|ending| self.system_folder.join(format!("tocsin.{ending}")))
            .into_iter()
            .filter(|path| path.exists());
        let first = found.next();
        if let (Some(path), Some(other)) = (&first, found.next()) {
            return Err(ConfigError::File {
                path: path.clone(),
                place: None,
                reason: format!("{} exists too; keep one of them", other.display()),
            });
        }
        first.map_or(Ok(None), |path| named(path, NamedBy::Nobody))
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
    pub(super) fn defaults() -> Self {
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
                .map(|(key, value)| (key, raw(Scalar::new(value))))
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
        let (text, mut table) = file::read(path)?;
        table.remove(SCHEMA_KEY);
        let flat = flatten(table).map_err(|key| ConfigError::File {
            path: path.to_owned(),
            place: None,
            reason: format!("names {key} twice; keep one of them"),
        })?;
        for (key, value) in flat {
            // What has keys was flattened: a section that is still one, or null, has none.
            let has_no_keys = matches!(value.kind, ValueKind::Nil | ValueKind::Table(_));
            if has_no_keys && self.is_section(&key) {
                continue;
            }
            let scalar = Scalar::new(value);
            let line = file::line_of(&text, &key);
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
                self.refuse_misspelt(name)?;
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

    /// `TOCSIN_NATS_URL` and the like would be ignored without a word. Other names that begin with `TOCSIN_` are
    /// left alone: container platforms make up such variables.
    fn refuse_misspelt(&self, name: &str) -> Result<(), ConfigError> {
        let upper = name.to_ascii_uppercase();
        let Some(rest) = upper.strip_prefix("TOCSIN_") else {
            return Ok(());
        };
        let key = rest
            .trim_matches('_')
            .replace("__", "_")
            .to_ascii_lowercase();
        let is_meant = |known: &&String| known.replace('.', "_") == key;
        let meant = match self.0.keys().find(is_meant) {
            Some(key) => key,
            // Nobody makes up two underscores.
            None if rest.contains("__") => self.nearest(&key),
            None => return Ok(()),
        };
        Err(ConfigError::Malformed {
            given: format!("environment variable {name}"),
            reason: format!(
                "two underscores stand before section and key, all in capitals; name it {}",
                env_name(meant)
            ),
        })
    }

    fn lay_sets(&mut self, sets: &[String]) -> Result<(), ConfigError> {
        for set in sets {
            let Some((key, value)) = set
                .split_once('=')
                .filter(|(key, _)| !key.trim().is_empty())
            else {
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

    fn nearest(&self, written: &str) -> &str {
        let nearest = self.0.keys().min_by_key(|known| distance(written, known));
        nearest.map_or("", String::as_str)
    }

    /// The section that a misspelt one was to be.
    fn nearest_section(&self, written: &str) -> Option<&str> {
        const MAX_DISTANCE: usize = 2;
        let sections = self.0.keys().filter_map(|known| known.split('.').next());
        let far = |section: &&str| strsim::damerau_levenshtein(written, section);
        let nearest = sections.min_by_key(far)?;
        (far(&nearest) <= MAX_DISTANCE).then_some(nearest)
    }

    fn is_section(&self, key: &str) -> bool {
        let section = format!("{key}.");
        self.0.keys().any(|known| known.starts_with(&section))
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
        if let Some(section) = self.nearest_section(key) {
            return format!("the nearest section is {section}");
        }
        let nearest = self.nearest(key);
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

/// Sections and keys as `section.key`, in order, and sections without keys; a key that is there twice (`a.b` beside `b` in `a`) is
/// the error.
fn flatten(table: Map<String, Value>) -> Result<BTreeMap<String, Value>, String> {
    let mut flat = BTreeMap::new();
    let mut open: Vec<(String, Value)> = table.into_iter().collect();
    while let Some((key, mut value)) = open.pop() {
        if let ValueKind::Table(table) = &mut value.kind
            && !table.is_empty()
        {
            let inside = std::mem::take(table).into_iter();
            open.extend(inside.map(|(inner, value)| (format!("{key}.{inner}"), value)));
            continue;
        }
        match flat.entry(key) {
            Entry::Vacant(entry) => entry.insert(value),
            Entry::Occupied(entry) => return Err(entry.key().clone()),
        };
    }
    Ok(flat)
}
