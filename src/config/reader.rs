//! Takes each key once, checks the bounds of its value, and remembers what is in force and who set it.
//!
//! What it remembers is what `config print` shows; secrets enter it redacted. An error shows what was
//! found unless that is a secret, and never the login inside a URL.

use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::settings::redact_login;
use super::sources::{Raw, Values, why_unreadable};
use super::values::{self, DURATION_UNITS, SIZE_UNITS, Scalar, Units};
use super::{ConfigError, Origin, Secret, ServerUrls};

/// One key as it is in force.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Setting {
    /// `section.key`.
    pub key: &'static str,
    /// Its value as it would be written; secrets redacted, null when it is not set.
    pub value: Value,
    /// Who set it.
    pub origin: Origin,
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

    fn note(&mut self, key: &'static str, value: Value) {
        let origin = self.raw(key).origin.clone();
        self.settings.push(Setting { key, value, origin });
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
            ("nats.url", Scalar::Text(text)) => format!("{:?}", redact_urls(text)),
            _ if !self.is_set(key) => "empty".to_owned(),
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
        let Some(text) = self.raw(key).scalar.as_text() else {
            return Err(self.refuse(key, "a text; put it in quotes"));
        };
        if text.contains(char::is_control) {
            return Err(self.refuse(key, "a text without control characters"));
        }
        let text = Some(text.to_owned()).filter(|text| !text.is_empty());
        self.note(key, text.clone().into());
        Ok(text)
    }

    pub(super) fn required_text(
        &mut self,
        key: &'static str,
        allowed: &str,
    ) -> Result<String, ConfigError> {
        self.text(key)?.ok_or_else(|| self.refuse(key, allowed))
    }

    pub(super) fn count(
        &mut self,
        key: &'static str,
        range: RangeInclusive<usize>,
    ) -> Result<usize, ConfigError> {
        let given = self.raw(key).scalar.as_count();
        let given = given.and_then(|count| usize::try_from(count).ok());
        let Some(count) = given.filter(|count| range.contains(count)) else {
            let allowed = format!("a whole number from {} to {}", range.start(), range.end());
            return Err(self.refuse(key, &allowed));
        };
        self.note(key, count.into());
        Ok(count)
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
        self.with_unit(key, &DURATION_UNITS, millis)
            .map(Duration::from_millis)
    }

    pub(super) fn size(
        &mut self,
        key: &'static str,
        bytes: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        self.with_unit(key, &SIZE_UNITS, bytes)
    }

    fn with_unit(
        &mut self,
        key: &'static str,
        units: &Units,
        range: RangeInclusive<u64>,
    ) -> Result<u64, ConfigError> {
        let given = self
            .raw(key)
            .scalar
            .as_text()
            .and_then(|text| units.parse(text));
        let Some(value) = given.filter(|value| range.contains(value)) else {
            let (least, most) = (units.print(*range.start()), units.print(*range.end()));
            let allowed = format!(
                "{} from {least} to {most}, such as {}",
                units.kind, units.examples
            );
            return Err(self.refuse(key, &allowed));
        };
        self.note(key, units.print(value).into());
        Ok(value)
    }

    pub(super) fn choice<T: Copy>(
        &mut self,
        key: &'static str,
        choices: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let given = self.raw(key).scalar.as_text();
        let Some((name, choice)) = choices.iter().find(|(name, _)| Some(*name) == given) else {
            let names: Vec<_> = choices
                .iter()
                .map(|(name, _)| format!("{name:?}"))
                .collect();
            return Err(self.refuse(key, &format!("one of {}", names.join(", "))));
        };
        self.note(key, (*name).into());
        Ok(*choice)
    }

    pub(super) fn urls(&mut self, key: &'static str) -> Result<ServerUrls, ConfigError> {
        let text = self.raw(key).scalar.as_text().unwrap_or_default();
        let urls: Vec<_> = text.split(',').map(|url| url.trim().to_owned()).collect();
        if !urls.iter().all(|url| values::is_server_url(url)) {
            let allowed = "nats://host:port or tls://host:port, several with commas between them";
            return Err(self.refuse(key, allowed));
        }
        let urls = ServerUrls::new(urls);
        self.note(key, urls.to_string().into());
        Ok(urls)
    }

    /// The path of a file that can be opened, or nothing.
    pub(super) fn readable_file(
        &mut self,
        key: &'static str,
    ) -> Result<Option<PathBuf>, ConfigError> {
        let Some(path) = self.text(key)?.map(PathBuf::from) else {
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
            return Err(self.refuse(key, "a text; put it in quotes"));
        };
        let note = |is_set: bool| is_set.then_some(Secret::REDACTED).into();
        self.note(key, note(!text.is_empty()));
        let Some(path) = self.text(file_key)?.map(PathBuf::from) else {
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
