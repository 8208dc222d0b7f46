//! The settings in their final types, section by section; `config/default.toml` says what each is for.
//!
//! Every value here was checked: counts are at least 1, files that must exist could be opened, and the
//! rules between two keys hold. `Debug` shows no secret, neither a [`Secret`] nor one inside a URL.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::core::time::Timestamp;

/// Everything that can be set.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The broker and how to log in to it.
    pub nats: Nats,
    /// What is read.
    pub input: Input,
    /// Who decides.
    pub workers: Workers,
    /// Who publishes.
    pub producers: Producers,
    /// What is published.
    pub output: Output,
    /// The alarm domain.
    pub alarms: Alarms,
    /// Digests.
    pub digest: Digest,
    /// What is told about what happened.
    pub metrics: Metrics,
    /// What is durable.
    pub store: Store,
    /// Logging.
    pub log: Log,
    /// The way down.
    pub shutdown: Shutdown,
}

/// Section `nats`. At most one way to log in is set: a credentials file, user and password, a token, or
/// a user inside the URL.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nats {
    /// The servers.
    pub url: ServerUrls,
    /// The connection's name.
    pub name: String,
    /// What the subjects begin with on which the broker answers.
    pub inbox_prefix: String,
    /// JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// The user; nobody connects without its `password`.
    pub user: Option<String>,
    /// The password, given itself or by `nats.password_file`.
    pub password: Option<Secret>,
    /// The token, given itself or by `nats.token_file`.
    pub token: Option<Secret>,
    /// Authorities trusted in addition to the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// The client's certificate; set if and only if `tls_key_file` is.
    pub tls_cert_file: Option<PathBuf>,
    /// The client's private key.
    pub tls_key_file: Option<PathBuf>,
}

/// Section `input`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Input {
    /// Which kind of NATS input.
    pub mode: InputMode,
    /// Where a store without a position begins.
    pub start: InputStart,
    /// Decoding tasks.
    pub listeners: usize,
    /// Router actors.
    pub routers: usize,
    /// The permits: messages accepted and not yet committed.
    pub in_flight: usize,
    /// The input stream's `max_age`.
    pub stream_max_age: Duration,
    /// The input stream's `max_bytes`.
    pub stream_max_bytes: u64,
    /// The replicas of every stream that is created.
    pub replicas: usize,
}

/// Section `workers`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workers {
    /// Worker actors; never more than `store.partitions`.
    pub count: usize,
    /// Batches that a mailbox holds; at least `input.in_flight`, so that permits run out first.
    pub mailbox: usize,
}

/// Section `producers`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Producers {
    /// Producer actors.
    pub count: usize,
    /// Unconfirmed publishes of each.
    pub in_flight: usize,
    /// Where the input pauses.
    pub owed: Owed,
}

/// Keys `producers.owed.rows` and `producers.owed.bytes`: how much may be owed to the broker before the
/// input pauses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owed {
    /// In outbox rows.
    pub rows: usize,
    /// In bytes.
    pub bytes: u64,
}

/// Section `output`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Output {
    /// The output stream's `duplicate_window`; at most `stream_max_age`.
    pub duplicate_window: Duration,
    /// The output stream's `max_age`.
    pub stream_max_age: Duration,
    /// The output stream's `max_bytes`.
    pub stream_max_bytes: u64,
}

/// Section `alarms`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alarms {
    /// How long a cleared alarm stays on record; more than `input.stream_max_age`.
    pub tombstone_retention: Duration,
    /// How far ahead of the broker's time a change may lie.
    pub max_future: Duration,
}

/// Section `digest`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Digest {
    /// What a request gets when nothing is due.
    pub when_empty: WhenEmpty,
}

/// Section `metrics`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Metrics {
    /// The window of one `MetricAggregate`.
    pub aggregate_interval: Duration,
}

/// Section `store`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Store {
    /// Which store.
    pub kind: StoreKind,
    /// The folder of the embedded store.
    pub path: PathBuf,
    /// Partitions of a store that is created, from 1 to 4096.
    pub partitions: u16,
}

/// Section `log`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// What is logged: directives of `tracing-subscriber`, each with a level.
    pub filter: String,
    /// The file that is appended to, instead of standard error.
    pub file: Option<PathBuf>,
}

/// Section `shutdown`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Shutdown {
    /// How long a drain may take.
    pub timeout: Duration,
}

/// Key `input.mode`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InputMode {
    /// `JetStream` where the server has it.
    Auto,
    /// Streams, and nothing else.
    JetStream,
    /// Core NATS, even where there are streams.
    Core,
}

/// Key `input.start`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InputStart {
    /// The first message there is.
    First,
    /// What is published from now on.
    New,
    /// The first message not before this instant.
    At(Timestamp),
}

/// Key `store.kind`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StoreKind {
    /// A journal and snapshots in a folder.
    Embedded,
    /// Nothing outlives the process.
    Memory,
}

/// Key `digest.when_empty`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum WhenEmpty {
    /// No message.
    Skip,
    /// A digest without alarms.
    Send,
}

/// Key `log.format`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// JSON, one object a line.
    Json,
}

/// A text that is never printed.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// What is shown instead.
    pub const REDACTED: &str = "[redacted]";

    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself: for the one who sends it to the broker.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::REDACTED)
    }
}

/// Addresses of one NATS cluster, at least one. `Display` and `Debug` hide what stands before an `@`.
#[derive(Clone, Eq, PartialEq)]
pub struct ServerUrls(Vec<String>);

impl ServerUrls {
    pub(super) fn new(urls: Vec<String>) -> Self {
        Self(urls)
    }

    /// Each address as it was written, secrets included: for the one who connects.
    #[must_use]
    pub fn expose(&self) -> &[String] {
        &self.0
    }

    /// Whether an address carries a user or a token.
    #[must_use]
    pub fn has_login(&self) -> bool {
        self.0.iter().any(|url| url.contains('@'))
    }
}

impl fmt::Display for ServerUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, url) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(&redact_login(url))?;
        }
        Ok(())
    }
}

impl fmt::Debug for ServerUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address without what stands between its scheme and its last `@`.
pub(super) fn redact_login(url: &str) -> String {
    let Some((login, host)) = url.rsplit_once('@') else {
        return url.to_owned();
    };
    let scheme = login.split_once("://").map_or("", |(scheme, _)| scheme);
    let separator = if scheme.is_empty() { "" } else { "://" };
    format!("{scheme}{separator}{}@{host}", Secret::REDACTED)
}
