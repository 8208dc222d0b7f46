//! Takes each key once, checks the bounds of its value, and remembers what is in force and who set it.
//!
//! What it remembers is what `config print` shows; secrets enter it redacted. An error shows what was
//! found unless that is a secret, and never the login inside a URL.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::file::why_unreadable;
use super::settings::redact_login;
use super::sources::{Raw, Values};
use super::values::{self, DURATION_UNITS, SIZE_UNITS, Scalar, Units};
use super::{Allowed, ConfigError, InputStart, Origin, Secret, ServerUrls};
use crate::core::time::Timestamp;

/// What a text must be that is written as something else.
const IN_QUOTES: &str = "a text; put it in quotes";

/// One key as it is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    /// Its value as it would be written; secrets redacted, null when it is not set.
    pub value: Value,
    /// Who set it.
    pub origin: Origin,
    /// What it may be.
    pub allowed: Allowed,
}

/// Takes each key once, and remembers what is in force.
pub(super) struct Reader {
    values: Values,
    settings: Vec<Setting>,
}

impl Reader {
    pub(super) fn new(values: Values) -> Self {
        Self {
            values,
            settings: Vec::new(),
        }
    }

    /// What was taken, sorted by key.
    pub(super) fn into_settings(mut self) -> Vec<Setting> {
        self.settings.sort_unstable_by_key(|setting| setting.key);
        self.settings
    }

    pub(super) fn raw(&self, key: &str) -> &Raw {
        self.values.get(key)
    }

    pub(super) fn is_set(&self, key: &str) -> bool {
        self.raw(key).scalar != Scalar::Text(String::new())
    }

    fn note(&mut self, key: &'static str, value: Value, allowed: Allowed) {
        let origin = self.raw(key).origin.clone();
        self.settings.push(Setting {
            key,
            value,
            origin,
            allowed,
        });
    }

    /// Replaces the noted value of a key whose 0 means: whatever fits.
    pub(super) fn derived(&mut self, key: &str, value: usize) -> usize {
        if let Some(setting) = self.settings.iter_mut().find(|setting| setting.key == key) {
            setting.value = value.into();
        }
        value
    }

    /// The error for a key whose value may be shown unless it is a secret.
    pub(super) fn refuse(&self, key: &str, allowed: &str) -> ConfigError {
        let Raw { scalar, origin } = self.raw(key);
        let found = match (key, scalar) {
            ("nats.password" | "nats.token", _) => "set".to_owned(),
            _ if !self.is_set(key) => "empty".to_owned(),
            ("nats.url", Scalar::Text(text)) => format!("{:?}", redact_urls(text)),
            (_, scalar) => scalar.to_string(),
        };
        ConfigError::Invalid {
            key: key.to_owned(),
            origin: origin.clone(),
            found,
            allowed: allowed.to_owned(),
        }
    }

    /// Another key as an error speaks of it.
    pub(super) fn shown(&self, key: &str) -> String {
        let Raw { scalar, origin } = self.raw(key);
        match key {
            "nats.url" => format!("{key} with a login inside ({origin})"),
            _ => format!("{key}, which is {scalar} ({origin})"),
        }
    }

    /// A text, or nothing when it is empty.
    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<String>, ConfigError> {
        self.printable(key, Allowed::Text)
    }

    fn printable(
        &mut self,
        key: &'static str,
        allowed: Allowed,
    ) -> Result<Option<String>, ConfigError> {
        let Some(text) = self.raw(key).scalar.as_text() else {
            return Err(self.refuse(key, IN_QUOTES));
        };
        if text.contains(char::is_control) {
            return Err(self.refuse(key, "a text without control characters"));
        }
        let text = Some(text.to_owned()).filter(|text| !text.is_empty());
        self.note(key, text.clone().into(), allowed);
        Ok(text)
    }

    /// A text that must be there; `what` says what it is.
    pub(super) fn required_text(
        &mut self,
        key: &'static str,
        what: &'static str,
    ) -> Result<String, ConfigError> {
        let text = self.printable(key, Allowed::Required(what))?;
        text.ok_or_else(|| self.refuse(key, what))
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let allowed = Allowed::Count(range.clone());
        let Raw { scalar, origin } = self.raw(key);
        let is_quoted = matches!(origin, Origin::File { .. })
            && scalar.as_text().is_some_and(|it| !it.is_empty());
        let given = scalar
            .as_count()
            .and_then(|count| usize::try_from(count).ok())
            .filter(|count| range.contains(count));
        match given {
            Some(count) if !is_quoted => {
                self.note(key, count.into(), allowed);
                Ok(count)
            }
            Some(_) => Err(self.refuse(key, &format!("{allowed}, without quotes"))),
            None => Err(self.refuse(key, &allowed.to_string())),
        }
    }

    pub(super) fn partitions(&mut self, key: &'static str) -> Result<u16, ConfigError> {
        let count = self.count(key, 1..=4096)?;
        Ok(u16::try_from(count).expect("4096 fits"))
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        millis: RangeInclusive<u64>,
    ) -> Result<Duration, ConfigError> {
        let allowed = Allowed::Duration(millis.clone());
        self.with_unit(key, &DURATION_UNITS, &millis, allowed)
            .map(Duration::from_millis)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        bytes: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let allowed = Allowed::Size(bytes.clone());
        self.with_unit(key, &SIZE_UNITS, &bytes, allowed)
    }

    fn with_unit(
        &mut self,
        key: &'static str,
        units: &Units,
        range: &RangeInclusive<u64>,
        allowed: Allowed,
    ) -> Result<u64, ConfigError> {
        let given = self.raw(key).scalar.as_text();
        let given = given.and_then(|text| units.parse(text));
        let Some(value) = given.filter(|value| range.contains(value)) else {
            return Err(self.refuse(key, &allowed.to_string()));
        };
        self.note(key, units.print(value).into(), allowed);
        Ok(value)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&'static str, T)],
    ) -> Result<T, ConfigError> {
        let allowed = Allowed::Choice(choices.iter().map(|(name, _)| *name).collect());
        let given = self.raw(key).scalar.as_text();
        let Some((name, choice)) = choices.iter().find(|(name, _)| Some(*name) == given) else {
            return Err(self.refuse(key, &allowed.to_string()));
        };
        self.note(key, (*name).into(), allowed);
        Ok(*choice)
    }

    pub(super) fn urls(&mut self, key: &'static str) -> Result<ServerUrls, ConfigError> {
        let text = self.raw(key).scalar.as_text().unwrap_or_default();
        let urls: Vec<_> = text.split(',').map(|url| url.trim().to_owned()).collect();
        if !urls.iter().all(|url| values::is_server_url(url)) {
            return Err(self.refuse(key, &Allowed::Servers.to_string()));
        }
        let urls = ServerUrls::new(urls);
        self.note(key, urls.to_string().into(), Allowed::Servers);
        Ok(urls)
    }

    /// A subject that means one subject.
    pub(super) fn subject(&mut self, key: &'static str) -> Result<String, ConfigError> {
        let text = self.printable(key, Allowed::Subject)?;
        text.filter(|subject| values::is_plain_subject(subject))
            .ok_or_else(|| self.refuse(key, &Allowed::Subject.to_string()))
    }

    /// Where reading begins.
    pub(super) fn start(&mut self, key: &'static str) -> Result<InputStart, ConfigError> {
        let text = self.printable(key, Allowed::Start)?.unwrap_or_default();
        match text.as_str() {
            "first" => Ok(InputStart::First),
            "new" => Ok(InputStart::New),
            time => Timestamp::parse(time)
                .map(InputStart::At)
                .map_err(|error| self.refuse(key, &format!("{} ({error})", Allowed::Start))),
        }
    }

    pub(super) fn log_filter(&mut self, key: &'static str) -> Result<String, ConfigError> {
        let text = self.printable(key, Allowed::LogFilter)?;
        text.filter(|filter| values::is_log_filter(filter))
            .ok_or_else(|| self.refuse(key, &Allowed::LogFilter.to_string()))
    }

    /// The path of a file that can be opened, or nothing.
    pub(super) fn readable_file(
        &mut self,
        key: &'static str,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = self.printable(key, Allowed::File)?.map(PathBuf::from) else {
            return Ok(None);
        };
        match File::open(&path) {
            Ok(_) => Ok(Some(path)),
            Err(error) => Err(self.unreadable(key, path, why_unreadable(&error))),
        }
    }

    /// A secret from its own key or from the file that another key names, or nothing.
    pub(super) fn secret(
        &mut self,
        key: &'static str,
        file_key: &'static str,
    ) -> Result<Option<Secret>, ConfigError> {
        let Some(text) = self.raw(key).scalar.as_text().map(str::to_owned) else {
            return Err(self.refuse(key, IN_QUOTES));
        };
        let note = |is_set: bool| is_set.then_some(Secret::REDACTED).into();
        self.note(key, note(!text.is_empty()), Allowed::Secret);
        let Some(path) = self.printable(file_key, Allowed::File)?.map(PathBuf::from) else {
            return Ok((!text.is_empty()).then(|| Secret::new(text)));
        };
        if !text.is_empty() {
            let Raw { origin, .. } = self.raw(key);
            let allowed = format!("unset beside {key} ({origin}): one of the two");
            return Err(self.refuse(file_key, &allowed));
        }
        let text = match fs::read_to_string(&path) {
            Ok(text) => text.trim_end_matches(['\n', '\r']).to_owned(),
            Err(error) => return Err(self.unreadable(file_key, path, why_unreadable(&error))),
        };
        if text.is_empty() {
            return Err(self.unreadable(file_key, path, "it is empty".to_owned()));
        }
        Ok(Some(Secret::new(text)))
    }

    fn unreadable(&self, key: &str, path: PathBuf, reason: String) -> ConfigError {
        ConfigError::Unreadable {
            key: key.to_owned(),
            origin: self.raw(key).origin.clone(),
            path,
            reason,
        }
    }
}

fn redact_urls(text: &str) -> String {
    let urls: Vec<_> = text.split(',').map(redact_login).collect();
    urls.join(",")
}
