//! From texts to [`Config`]: bounds, defaults that depend on the machine, and rules between two keys.
//!
//! One function a section, each key taken once through a [`Reader`]. A rule between two keys is checked
//! in the section that is read later, and its error names both.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::thread;

use super::reader::Reader;
use super::{
    Alarms, Config, ConfigError, ConfigFile, Digest, Input, InputMode, Log, LogFormat, Metrics,
    Nats, Origin, Output, Owed, Producers, Setting, Shutdown, Sources, Store, StoreKind, WhenEmpty,
    Workers,
};

const MILLISECOND: u64 = 1;
const SECOND: u64 = 1000 * MILLISECOND;
const HOUR: u64 = 3600 * SECOND;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 365 * DAY;
const MIB: u64 = 1 << 20;
const PIB: u64 = 1 << 50;

/// Room in a mailbox for what carries no permit: watermarks of quiet input, commands to the worker.
const MAILBOX_SLACK: usize = 1024;

/// A configuration and who set each of its values.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What is in force.
    pub config: Config,
    /// Every key with its value and origin, sorted by key.
    pub settings: Vec<Setting>,
    /// The file that was read, if there is one.
    pub file: Option<ConfigFile>,
    /// What is allowed and better done otherwise, a line each.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads every source and checks every value.
    ///
    /// # Errors
    /// The first thing that is wrong, as one line.
    pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
        let (values, file) = sources.read()?;
        let mut reader = Reader::new(values);
        let nats = nats(&mut reader)?;
        let input = input(&mut reader)?;
        let store = store(&mut reader)?;
        let workers = workers(&mut reader, &input, &store)?;
        let producers = producers(&mut reader)?;
        let output = output(&mut reader)?;
        let alarms = alarms(&mut reader, &input)?;
        let digest = Digest {
            when_empty: reader.choice(
                "digest.when_empty",
                &[("skip", WhenEmpty::Skip), ("send", WhenEmpty::Send)],
            )?,
        };
        let metrics = Metrics {
            aggregate_interval: reader
                .duration("metrics.aggregate_interval", 100 * MILLISECOND..=DAY)?,
        };
        let log = log(&mut reader)?;
        let shutdown = Shutdown {
            timeout: reader.duration("shutdown.timeout", 100 * MILLISECOND..=HOUR)?,
        };
        let config = Self {
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
        };
        let mut warnings = open_secrets(&reader, &config.nats);
        if config.nats.user.is_some() && config.nats.password.is_none() {
            // A service manager gives it to the daemon alone.
            warnings.push(
                "nats.user has no password here; give it as nats.password_file, or to the daemon as systemd's \
                 credential nats.password"
                    .to_owned(),
            );
        }
        let settings = reader.into_settings();
        Ok(Loaded {
            config,
            settings,
            file,
            warnings,
        })
    }
}

impl Loaded {
    /// Whether a file, the environment or `--set` names the key.
    #[must_use]
    pub fn is_named(&self, key: &str) -> bool {
        let setting = self.settings.iter().find(|setting| setting.key == key);
        setting.is_some_and(|setting| setting.origin != Origin::Default)
    }
}

/// Secrets in a configuration file that everybody on this machine may read.
fn open_secrets(reader: &Reader, nats: &Nats) -> Vec<String> {
    let secrets = [
        (
            "nats.url",
            nats.url.has_login(),
            "nats.user and nats.password_file",
        ),
        (
            "nats.password",
            reader.is_set("nats.password"),
            "nats.password_file",
        ),
        ("nats.token", reader.is_set("nats.token"), "nats.token_file"),
    ];
    let in_open_file = |(key, is_secret, instead): (&str, bool, &str)| {
        let Origin::File { path, .. } = &reader.raw(key).origin else {
            return None;
        };
        let mode = fs::metadata(path).ok()?.permissions().mode();
        (is_secret && mode & 0o004 != 0).then(|| {
            let path = path.display();
            format!("{key} is a secret in {path}, which everybody may read; chmod 640 it, or use {instead}")
        })
    };
    secrets.into_iter().filter_map(in_open_file).collect()
}

fn nats(reader: &mut Reader) -> Result<Nats, ConfigError> {
    let nats = Nats {
        url: reader.urls("nats.url")?,
        name: reader.required_text("nats.name", "a text without control characters")?,
        inbox_prefix: reader.subject("nats.inbox_prefix")?,
        credentials_file: reader.readable_file("nats.credentials_file")?,
        user: reader.text("nats.user")?,
        password: reader.secret("nats.password", "nats.password_file")?,
        token: reader.secret("nats.token", "nats.token_file")?,
        tls_ca_file: reader.readable_file("nats.tls_ca_file")?,
        tls_cert_file: reader.readable_file("nats.tls_cert_file")?,
        tls_key_file: reader.readable_file("nats.tls_key_file")?,
    };
    if nats.password.is_some() && nats.user.is_none() {
        return Err(reader.refuse("nats.password", "given together with nats.user"));
    }
    let logins = [
        ("nats.url", nats.url.has_login()),
        ("nats.credentials_file", nats.credentials_file.is_some()),
        ("nats.user", nats.user.is_some()),
        ("nats.token", nats.token.is_some()),
    ];
    let mut used = logins.into_iter().filter(|(_, is_used)| *is_used);
    if let (Some((first, _)), Some((second, _))) = (used.next(), used.next()) {
        let allowed = format!(
            "unset beside {}: one way to log in at a time",
            reader.shown(first)
        );
        return Err(reader.refuse(second, &allowed));
    }
    for (one, other, is_half) in [
        (
            "nats.tls_cert_file",
            "nats.tls_key_file",
            nats.tls_key_file.is_none(),
        ),
        (
            "nats.tls_key_file",
            "nats.tls_cert_file",
            nats.tls_cert_file.is_none(),
        ),
    ] {
        if is_half && reader.is_set(one) {
            return Err(reader.refuse(one, &format!("given together with {other}")));
        }
    }
    Ok(nats)
}

fn input(reader: &mut Reader) -> Result<Input, ConfigError> {
    Ok(Input {
        mode: reader.choice(
            "input.mode",
            &[
                ("auto", InputMode::Auto),
                ("jetstream", InputMode::JetStream),
                ("core", InputMode::Core),
            ],
        )?,
        start: reader.start("input.start")?,
        listeners: reader.count("input.listeners", 1..=64)?,
        routers: reader.count("input.routers", 1..=64)?,
        in_flight: reader.count("input.in_flight", 1..=16_777_216)?,
        stream_max_age: reader.duration("input.stream_max_age", SECOND..=10 * YEAR)?,
        stream_max_bytes: reader.size("input.stream_max_bytes", MIB..=PIB)?,
        replicas: reader.count("input.replicas", 1..=5)?,
    })
}

fn store(reader: &mut Reader) -> Result<Store, ConfigError> {
    let kind = "store.kind";
    if reader.raw(kind).scalar.as_text() == Some("scylla") {
        return Err(reader.refuse(
            kind,
            "\"embedded\" or \"memory\": the scylla store is not built in yet",
        ));
    }
    Ok(Store {
        kind: reader.choice(
            kind,
            &[
                ("embedded", StoreKind::Embedded),
                ("memory", StoreKind::Memory),
            ],
        )?,
        path: reader
            .required_text("store.path", "the path of a folder")?
            .into(),
        partitions: reader.partitions("store.partitions")?,
    })
}

fn workers(reader: &mut Reader, input: &Input, store: &Store) -> Result<Workers, ConfigError> {
    let (count, mailbox) = ("workers.count", "workers.mailbox");
    let most = usize::from(store.partitions);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let num_workers = match reader.count(count, 0..=4096)? {
        0 => reader.derived(count, cores.min(most)),
        given if given > most => {
            let allowed = format!("at most {}", reader.shown("store.partitions"));
            return Err(reader.refuse(count, &allowed));
        }
        given => given,
    };
    let num_batches = match reader.count(mailbox, 0..=33_554_432)? {
        0 => reader.derived(mailbox, input.in_flight + MAILBOX_SLACK),
        given if given < input.in_flight => {
            let allowed = format!(
                "0 or at least {}, so that a mailbox is never full",
                reader.shown("input.in_flight")
            );
            return Err(reader.refuse(mailbox, &allowed));
        }
        given => given,
    };
    Ok(Workers {
        count: num_workers,
        mailbox: num_batches,
    })
}

fn producers(reader: &mut Reader) -> Result<Producers, ConfigError> {
    Ok(Producers {
        count: reader.count("producers.count", 1..=64)?,
        in_flight: reader.count("producers.in_flight", 1..=100_000)?,
        owed: Owed {
            rows: reader.count("producers.owed.rows", 1..=1_000_000_000)?,
            bytes: reader.size("producers.owed.bytes", MIB..=PIB)?,
        },
    })
}

fn output(reader: &mut Reader) -> Result<Output, ConfigError> {
    let window = "output.duplicate_window";
    let output = Output {
        duplicate_window: reader.duration(window, 100 * MILLISECOND..=YEAR)?,
        stream_max_age: reader.duration("output.stream_max_age", SECOND..=10 * YEAR)?,
        stream_max_bytes: reader.size("output.stream_max_bytes", MIB..=PIB)?,
    };
    if output.duplicate_window > output.stream_max_age {
        let allowed = format!("at most {}", reader.shown("output.stream_max_age"));
        return Err(reader.refuse(window, &allowed));
    }
    Ok(output)
}

fn alarms(reader: &mut Reader, input: &Input) -> Result<Alarms, ConfigError> {
    let retention = "alarms.tombstone_retention";
    let alarms = Alarms {
        tombstone_retention: reader.duration(retention, SECOND..=20 * YEAR)?,
        max_future: reader.duration("alarms.max_future", SECOND..=YEAR)?,
    };
    if alarms.tombstone_retention <= input.stream_max_age {
        let allowed = format!(
            "more than {}, or a message read again would bring a cleared alarm back",
            reader.shown("input.stream_max_age")
        );
        return Err(reader.refuse(retention, &allowed));
    }
    Ok(alarms)
}

fn log(reader: &mut Reader) -> Result<Log, ConfigError> {
    Ok(Log {
        format: reader.choice(
            "log.format",
            &[
                ("auto", LogFormat::Auto),
                ("text", LogFormat::Text),
                ("json", LogFormat::Json),
            ],
        )?,
        filter: reader.log_filter("log.filter")?,
        file: reader.text("log.file")?.map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_the_defaults_is_taken_exactly_once() {
        let sources = Sources::none();
        let loaded = Config::load(&sources).unwrap();
        let taken: Vec<_> = loaded.settings.iter().map(|setting| setting.key).collect();
        assert_eq!(taken, sources.read().unwrap().0.keys());
    }
}
