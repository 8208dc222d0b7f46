//! One connection to NATS: how it begins, that it lasts, and what is known of it.
//!
//! | what | how |
//! |---|---|
//! | the broker is away, or refuses our credentials | waited for, for ever; said once per change of cause |
//! | a file or address that only the operator can change | [`BusError::Configuration`], at once |
//! | connected, lost, connected again | [`Connection::state`]; each time connected has a number of its own |
//! | what the client still holds when it is lost | sent when there is another, however late; dropped by a [`Line`] |
//! | a subject that we may not use | [`Connection::violations`] |
//!
//! Every client lives on a multi-thread runtime, whoever asks for it: on the single thread of an actor, a
//! burst of messages fills its buffers before anything is read from them, and the rest is dropped.
//! Nothing here knows a stream or an alarm.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{
    Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError, ServerInfo,
    Statistics,
};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::BusError;

/// A dead peer is found after two or three of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// The longest wait between two attempts to connect.
const MAX_DELAY: Duration = Duration::from_secs(2);
/// How long a client waits that must not connect again: it has ended long before.
const NEVER: Duration = Duration::from_hours(24 * 365);
/// How often the state is compared with the client's own: events may be dropped when there are many.
const RECONCILE_INTERVAL: Duration = Duration::from_millis(250);
/// How many refusals are remembered, so that each is said once.
const MAX_SAID: usize = 256;
/// The oldest server on which everything works.
const FULL_SUPPORT: (u32, u32, u32) = (2, 10, 8);

/// Where the broker is and who we are. Its `Debug` hides every secret.
#[derive(Clone, Default)]
pub struct Settings {
    /// The addresses of its servers.
    pub urls: Vec<String>,
    /// The name that the broker shows for us; each connection appends its role.
    pub name: String,
    /// What the subjects begin with on which we are answered; `_INBOX` where none is given.
    pub inbox_prefix: Option<String>,
    /// A credentials file: a token signed by an account, and the key to prove it.
    pub credentials_file: Option<PathBuf>,
    /// A user's name.
    pub user: Option<String>,
    /// That user's password.
    pub password: Option<String>,
    /// A token in place of user and password.
    pub token: Option<String>,
    /// The certificates of the authorities to trust, in place of the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// Our certificate.
    pub tls_cert_file: Option<PathBuf>,
    /// Our certificate's key.
    pub tls_key_file: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "(hidden)");
        f.debug_struct("Settings")
            .field("urls", &shown_urls(&self.urls))
            .field("name", &self.name)
            .field("inbox_prefix", &self.inbox_prefix)
            .field("credentials_file", &self.credentials_file)
            .field("user", &self.user)
            .field("password", &hidden(&self.password))
            .field("token", &hidden(&self.token))
            .field("tls_ca_file", &self.tls_ca_file)
            .field("tls_cert_file", &self.tls_cert_file)
            .field("tls_key_file", &self.tls_key_file)
            .finish()
    }
}

/// Whether there is a connection now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum State {
    /// There is one: the `epoch`-th.
    Connected {
        /// How often a connection was made, this one included.
        epoch: u64,
    },
    /// There is none; it is tried again for ever.
    Disconnected {
        /// What is known of the cause.
        why: String,
    },
}

/// What the broker did not let us do.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Violation {
    /// Publish to this subject.
    Publish(String),
    /// Subscribe to this subject.
    Subscribe(String),
}

impl Violation {
    /// The same with a `*` for each token that we drew at random: what is to be granted.
    fn to_grant(&self) -> Self {
        // Inboxes and consumers are named with as many random characters; no subject of ours is so long.
        let is_random = |token: &str| token.len() >= 20;
        let general = |subject: &str| {
            let tokens = subject
                .split('.')
                .map(|token| if is_random(token) { "*" } else { token });
            tokens.collect::<Vec<_>>().join(".")
        };
        match self {
            Self::Publish(subject) => Self::Publish(general(subject)),
            Self::Subscribe(subject) => Self::Subscribe(general(subject)),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Publish(subject) => write!(f, "our user may not publish to {subject}"),
            Self::Subscribe(subject) => write!(f, "our user may not subscribe to {subject}"),
        }
    }
}

/// Makes connections, all with the same settings.
#[derive(Clone, Debug)]
pub struct Connector {
    settings: Arc<Settings>,
    runtime: Handle,
    /// Why the last attempt at a client's first connection failed; `None` once it succeeded.
    waiting: watch::Sender<Option<String>>,
    is_age_said: Arc<AtomicBool>,
    /// Whether a client connects again when its connection is lost.
    connects_again: bool,
}

impl Connector {
    /// Takes the settings and the multi-thread runtime on which every client lives.
    #[must_use]
    pub fn new(settings: Settings, runtime: Handle) -> Self {
        Self {
            settings: Arc::new(settings),
            runtime,
            waiting: watch::Sender::new(None),
            is_age_said: Arc::default(),
            connects_again: true,
        }
    }

    /// The runtime on which the clients live.
    #[must_use]
    pub const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Why a client has no connection yet; `None` when nothing is waited for.
    #[must_use]
    pub fn waiting(&self) -> watch::Receiver<Option<String>> {
        self.waiting.subscribe()
    }

    /// Connects, and waits for the broker for as long as it takes.
    ///
    /// `role` tells our connections apart at the broker. `subscription_capacity` bounds each subscription in
    /// messages: what a full one would take is dropped by the client.
    ///
    /// # Errors
    /// [`BusError::Configuration`] for what only the operator can change: a bad address, an unreadable file.
    pub async fn connect(
        &self,
        role: &str,
        subscription_capacity: usize,
    ) -> Result<Connection, BusError> {
        let (this, role) = (self.clone(), role.to_owned());
        let attempts = self
            .runtime
            .spawn(async move { this.connect_here(&role, subscription_capacity).await });
        AbortOnDropHandle::new(attempts)
            .await
            .map_err(|error| BusError::Unavailable(format!("connecting to NATS ended: {error}")))?
    }

    /// Connects as [`Connector::connect`] does, and with another client each time that the connection is lost.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect_line(
        &self,
        role: &'static str,
        subscription_capacity: usize,
    ) -> Result<Line, BusError> {
        let (connection, own) = self.connect_once(role, subscription_capacity).await?;
        Ok(Line {
            connector: self.clone(),
            role,
            subscription_capacity,
            epoch: 1,
            connection,
            own,
        })
    }

    /// Connects with a client that never connects again, and ends with its runtime.
    async fn connect_once(
        &self,
        role: &str,
        subscription_capacity: usize,
    ) -> Result<(Connection, OwnRuntime), BusError> {
        let (own, runtime) = OwnRuntime::start()?;
        let connector = Self {
            runtime,
            connects_again: false,
            ..self.clone()
        };
        let connection = connector.connect(role, subscription_capacity).await?;
        Ok((connection, own))
    }

    /// Connects within a bounded time, for one-shot commands.
    ///
    /// # Errors
    /// As [`Connector::connect`], and [`BusError::Unavailable`] with the last cause when the time is over.
    pub async fn connect_within(
        &self,
        limit: Duration,
        role: &str,
        subscription_capacity: usize,
    ) -> Result<Connection, BusError> {
        let connecting = self.connect(role, subscription_capacity);
        if let Ok(connected) = timeout(limit, connecting).await {
            return connected;
        }
        let why = self.waiting.borrow().clone();
        let why = why.unwrap_or_else(|| "no answer".to_owned());
        let advice = if why.contains("authorization violation") {
            "correct the login (nats.user and nats.password, or another way)"
        } else {
            "start it, or name another (nats.url)"
        };
        Err(BusError::Unavailable(format!(
            "failed to reach NATS at {} within {limit:?}: {why}; {advice}",
            shown_urls(&self.settings.urls),
        )))
    }

    async fn connect_here(
        &self,
        role: &str,
        subscription_capacity: usize,
    ) -> Result<Connection, BusError> {
        let urls = shown_urls(&self.settings.urls);
        let mut said = None;
        for attempt in 0.. {
            let tried = self.attempt(role, subscription_capacity).await;
            let why = match tried {
                Ok(connection) => {
                    self.waiting.send_replace(None);
                    self.say_age(&connection);
                    return Ok(connection);
                }
                // Later, a file may be just about to be replaced.
                Err(BusError::Configuration(why)) if attempt == 0 => {
                    return Err(BusError::Configuration(why));
                }
                Err(BusError::Configuration(why) | BusError::Unavailable(why)) => why,
            };
            if said.as_ref() != Some(&why) {
                warn!(role, urls, error = %why, "NATS cannot be reached, trying for ever");
                self.waiting.send_replace(Some(why.clone()));
                said = Some(why);
            }
            sleep(delay(attempt + 2)).await;
        }
        Err(BusError::Unavailable("gave up connecting".to_owned()))
    }

    async fn attempt(
        &self,
        role: &str,
        subscription_capacity: usize,
    ) -> Result<Connection, BusError> {
        // Read anew at every attempt, so that mended credentials work without a restart.
        let addresses = self.settings.addresses()?;
        let is_made = Arc::new(AtomicBool::new(false));
        let options = self.settings.options(role)?;
        let options = if self.connects_again {
            options.reconnect_delay_callback(delay)
        } else {
            let is_made = Arc::clone(&is_made);
            options.reconnect_delay_callback(move |attempt| {
                if is_made.load(Ordering::Acquire) {
                    NEVER
                } else {
                    delay(attempt)
                }
            })
        };
        let (events_in, events) = mpsc::channel(64);
        let options = options
            .subscription_capacity(subscription_capacity)
            .event_callback(move |event| {
                let events_in = events_in.clone();
                async move {
                    // Nobody listens once the connection was dropped.
                    drop(events_in.send(event).await);
                }
            });
        let client =
            options
                .connect(addresses)
                .await
                .map_err(|error| match error.kind() {
                    ConnectErrorKind::ServerParse => BusError::Configuration(format!(
                        "failed to read the addresses of NATS: {error}; correct nats.url"
                    )),
                    ConnectErrorKind::Tls => BusError::Configuration(format!(
                        "failed to set up TLS to NATS: {error}; correct nats.tls_ca_file, nats.tls_cert_file or nats.tls_key_file"
                    )),
                    ConnectErrorKind::Dns
                    | ConnectErrorKind::Authentication
                    | ConnectErrorKind::AuthorizationViolation
                    | ConnectErrorKind::TimedOut
                    | ConnectErrorKind::Io
                    | ConnectErrorKind::MaxReconnects => BusError::Unavailable(error.to_string()),
                })?;
        // Nothing was handed to the client yet.
        is_made.store(true, Ordering::Release);
        Ok(Connection::new(role, client, events, self.runtime.clone()))
    }

    fn say_age(&self, connection: &Connection) {
        let version = connection.info().version;
        if is_at_least(&version, FULL_SUPPORT) || self.is_age_said.swap(true, Ordering::Relaxed) {
            return;
        }
        let (major, minor, patch) = FULL_SUPPORT;
        warn!(
            version,
            "this nats-server is older than {major}.{minor}.{patch}: it cannot be told to sync every message to its disk, so a power cut of it may lose what it confirmed in the last two minutes, and what its account may store is not known"
        );
    }
}

impl Settings {
    fn addresses(&self) -> Result<Vec<ServerAddr>, BusError> {
        let read = |url: &String| {
            let bad = |why: &str| {
                let shown = shown_url(url);
                BusError::Configuration(format!(
                    "failed to read the NATS address {shown:?}: {why}; correct nats.url, as in nats://host:4222"
                ))
            };
            let address: ServerAddr = url
                .trim()
                .parse()
                .map_err(|error: std::io::Error| bad(&error.to_string()))?;
            if address.is_websocket() {
                return Err(bad("WebSocket is not supported"));
            }
            if address.host().is_empty() {
                return Err(bad("it names no host"));
            }
            Ok(address)
        };
        if self.urls.is_empty() {
            return Err(BusError::Configuration(
                "no NATS address is given; set nats.url, as in nats://host:4222".to_owned(),
            ));
        }
        self.urls.iter().map(read).collect()
    }

    fn options(&self, role: &str) -> Result<ConnectOptions, BusError> {
        let mut options = ConnectOptions::new()
            .name(format!("{} {role}", self.name))
            .ping_interval(PING_INTERVAL);
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        if let Some(file) = &self.credentials_file {
            let text = read_file("nats.credentials_file", file)?;
            options = options.credentials(&text).map_err(|error| {
                BusError::Configuration(format!(
                    "failed to read {}: {error}; nats.credentials_file needs a user's token and key",
                    file.display()
                ))
            })?;
        }
        match (&self.user, &self.password) {
            (Some(user), Some(password)) => {
                options = options.user_and_password(user.clone(), password.clone());
            }
            (None, None) => options = self.with_login_of_url(options),
            (Some(_), None) | (None, Some(_)) => {
                return Err(BusError::Configuration(
                    "nats.user and nats.password belong together; set both or neither (a credential of systemd is the daemon's alone)".to_owned(),
                ));
            }
        }
        if let Some(token) = &self.token {
            options = options.token(token.clone());
        }
        self.with_tls(options)
    }

    /// The client library reads no login from an address, so `nats://user:password@host` is read here.
    fn with_login_of_url(&self, options: ConnectOptions) -> ConnectOptions {
        let addresses = self.addresses().unwrap_or_default();
        let Some(address) = addresses.iter().find(|address| address.has_user_pass()) else {
            return options;
        };
        let user = address.username().map(percent_decoded).unwrap_or_default();
        match address.password().map(percent_decoded) {
            Some(password) => options.user_and_password(user, password),
            None => options.token(user),
        }
    }

    fn with_tls(&self, mut options: ConnectOptions) -> Result<ConnectOptions, BusError> {
        if let Some(file) = &self.tls_ca_file {
            // A file without a certificate would be taken, and then nothing be trusted.
            if !read_file("nats.tls_ca_file", file)?.contains("BEGIN CERTIFICATE") {
                return Err(BusError::Configuration(format!(
                    "{} holds no certificate; nats.tls_ca_file needs one in PEM form",
                    file.display()
                )));
            }
            options = options.add_root_certificates(file.clone());
        }
        match (&self.tls_cert_file, &self.tls_key_file) {
            (Some(certificate), Some(key)) => {
                read_file("nats.tls_cert_file", certificate)?;
                read_file("nats.tls_key_file", key)?;
                options = options.add_client_certificate(certificate.clone(), key.clone());
            }
            (None, None) => {}
            (Some(_), None) | (None, Some(_)) => {
                return Err(BusError::Configuration(
                    "nats.tls_cert_file and nats.tls_key_file belong together; set both or neither"
                        .to_owned(),
                ));
            }
        }
        // Whoever names certificates must never send a password in the clear.
        let is_tls = self.tls_ca_file.is_some() || self.tls_cert_file.is_some();
        Ok(if is_tls {
            options.require_tls(true)
        } else {
            options
        })
    }
}

fn percent_decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let code = part
            .get(..2)
            .and_then(|code| u8::from_str_radix(code, 16).ok());
        if let (Some(byte), Some(rest)) = (code, part.get(2..)) {
            bytes.push(byte);
            bytes.extend_from_slice(rest.as_bytes());
        } else {
            bytes.push(b'%');
            bytes.extend_from_slice(part.as_bytes());
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_file(key: &str, file: &Path) -> Result<String, BusError> {
    std::fs::read_to_string(file).map_err(|error| {
        BusError::Configuration(format!(
            "failed to read {}: {error}; correct {key}, or let this user read it",
            file.display()
        ))
    })
}

/// The wait before an attempt: none before the first, doubling from 4 ms, with jitter.
fn delay(attempt: usize) -> Duration {
    let Some(doublings) = attempt.checked_sub(2) else {
        return Duration::ZERO;
    };
    let longest = Duration::from_millis(4 << doublings.min(16)).min(MAX_DELAY);
    longest.mul_f64(jitter(0.5, 1.0))
}

/// A random factor within bounds, so that many daemons do not return to a broker at the same instant.
pub(crate) fn jitter(from: f64, to: f64) -> f64 {
    let share = f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / f64::from(u32::MAX);
    from + (to - from) * share
}

fn shown_urls(urls: &[String]) -> String {
    let shown: Vec<_> = urls.iter().map(|url| shown_url(url)).collect();
    shown.join(",")
}

/// An address without the user and password that may be in it.
pub(crate) fn shown_url(url: &str) -> String {
    let (scheme, rest) = url
        .split_once("://")
        .map_or(("", url), |(scheme, rest)| (scheme, rest));
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    if scheme.is_empty() {
        host.to_owned()
    } else {
        format!("{scheme}://{host}")
    }
}

/// Whether a server's version is known and not older than another. Suffixes such as `-beta` are ignored.
fn is_at_least(version: &str, wanted: (u32, u32, u32)) -> bool {
    let mut numbers = version.split('.').map(|number| {
        let digits = number.find(|c: char| !c.is_ascii_digit());
        number
            .get(..digits.unwrap_or(number.len()))
            .unwrap_or_default()
            .parse::<u32>()
            .ok()
    });
    let mut next = || numbers.next().flatten();
    let (Some(major), Some(minor)) = (next(), next()) else {
        return false;
    };
    (major, minor, next().unwrap_or_default()) >= wanted
}

/// A connection to NATS that lasts until its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    client: Client,
    runtime: Handle,
    state: watch::Receiver<State>,
    violations: broadcast::Sender<Violation>,
    _watcher: Arc<AbortOnDropHandle<()>>,
}

impl Connection {
    fn new(role: &str, client: Client, events: mpsc::Receiver<Event>, runtime: Handle) -> Self {
        let statistics = client.statistics();
        let epoch = statistics.connects.load(Ordering::Relaxed);
        let (state_in, state) = watch::channel(State::Connected { epoch });
        let violations = broadcast::Sender::new(256);
        let watcher = Watcher {
            role: role.to_owned(),
            client: client.clone(),
            statistics,
            state: state_in,
            violations: violations.clone(),
            last_error: None,
            said: HashSet::new(),
        };
        let watcher = AbortOnDropHandle::new(runtime.spawn(watcher.run(events)));
        Self {
            client,
            runtime,
            state,
            violations,
            _watcher: Arc::new(watcher),
        }
    }

    /// The client. It must not outlive the connection: the state is then no longer watched.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The multi-thread runtime on which the client lives.
    #[must_use]
    pub const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Whether there is a connection, as it changes.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// What the broker does not let us do, from now on.
    #[must_use]
    pub fn violations(&self) -> broadcast::Receiver<Violation> {
        self.violations.subscribe()
    }

    /// Waits until there is no connection.
    pub async fn lost(&self) {
        let is_lost = |state: &State| matches!(state, State::Disconnected { .. });
        // Without its watcher it is lost, too.
        drop(self.state.clone().wait_for(is_lost).await);
    }

    /// Waits until there is a connection; returns its number.
    pub async fn connected(&self) -> u64 {
        let mut state = self.state.clone();
        loop {
            if let State::Connected { epoch } = *state.borrow_and_update() {
                return epoch;
            }
            if state.changed().await.is_err() {
                // The watcher only ends with the last clone, so this one would not be here.
                return 0;
            }
        }
    }

    /// What the broker said of itself at the last connect.
    #[must_use]
    pub fn info(&self) -> ServerInfo {
        self.client.server_info()
    }

    /// Whether the broker has streams at all.
    #[must_use]
    pub fn has_jetstream(&self) -> bool {
        self.info().jetstream
    }

    /// The largest payload with headers that the broker takes now, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }
}

/// Connections one after the other, each with a client of its own: for what must not be sent late.
///
/// What is handed to a client waits in its queue until the socket takes it, and a client that connects again sends it
/// then, however long ago it was given up. So a client here connects once, and when its connection is lost or given up
/// it ends at once, with all that waits in it: it lives on a runtime of its own, which is shut down. Nothing else ends
/// a client whose socket takes nothing.
#[derive(Debug)]
pub struct Line {
    connector: Connector,
    role: &'static str,
    subscription_capacity: usize,
    epoch: u64,
    connection: Connection,
    own: OwnRuntime,
}

impl Line {
    /// The connection that there is, or was last.
    #[must_use]
    pub const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How often a connection was made, this one included.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The multi-thread runtime that outlives every client.
    #[must_use]
    pub const fn runtime(&self) -> &Handle {
        self.connector.runtime()
    }

    /// Ends the client with all that waits in it, and connects with another: tried for ever.
    pub async fn renew(&mut self) {
        self.own.end();
        for attempt in 2.. {
            let connecting = self
                .connector
                .connect_once(self.role, self.subscription_capacity);
            match connecting.await {
                Ok((connection, own)) => {
                    (self.connection, self.own) = (connection, own);
                    self.epoch += 1;
                    break;
                }
                // A file may be just about to be replaced.
                Err(error) => {
                    warn!(role = self.role, %error, "NATS cannot be reached, trying for ever");
                    sleep(delay(attempt)).await;
                }
            }
        }
        info!(
            role = self.role,
            epoch = self.epoch,
            "connected to NATS again"
        );
    }
}

/// A runtime that ends without waiting for what runs on it.
#[derive(Debug)]
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn start() -> Result<(Self, Handle), BusError> {
        let mut builder = Builder::new_multi_thread();
        let started = builder.worker_threads(1).enable_all().build();
        let started = started.map_err(|error| {
            BusError::Unavailable(format!(
                "failed to start a thread: {error}; raise its limit"
            ))
        })?;
        let handle = started.handle().clone();
        Ok((Self(Some(started)), handle))
    }

    fn end(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        self.end();
    }
}

/// Turns the client's events into a state. Owned by its [`Connection`], ends with it.
struct Watcher {
    role: String,
    client: Client,
    statistics: Arc<Statistics>,
    state: watch::Sender<State>,
    violations: broadcast::Sender<Violation>,
    last_error: Option<String>,
    /// The refusals over this connection that the log knows of.
    said: HashSet<Violation>,
}

impl Watcher {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut reconcile = interval(RECONCILE_INTERVAL);
        reconcile.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                _ = reconcile.tick() => self.reconcile(),
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Connected => self.connected(),
            Event::Disconnected | Event::Closed => {
                let why = self.last_error.take();
                self.disconnected(&why.unwrap_or_else(|| "the connection was lost".to_owned()));
            }
            Event::ServerError(error) => self.on_server_error(error),
            // Sent for every failed attempt to connect again.
            Event::ClientError(error) => self.disconnected(&error.to_string()),
            Event::LameDuckMode => {
                info!(role = self.role, "the nats-server is about to stop");
            }
            Event::Draining | Event::SlowConsumer(_) => {}
        }
    }

    fn on_server_error(&mut self, error: ServerError) {
        let text = match error {
            ServerError::Other(text) => text,
            ServerError::AuthorizationViolation | ServerError::SlowConsumer(_) => error.to_string(),
        };
        let Some(violation) = read_violation(&text) else {
            self.last_error = Some(text);
            return;
        };
        if self.said.len() >= MAX_SAID {
            self.said.clear();
        }
        let to_grant = violation.to_grant();
        if !self.said.contains(&to_grant) {
            error!(
                role = self.role,
                "{to_grant}; grant it, as config/nats.conf does"
            );
            self.said.insert(to_grant);
        }
        // Nobody may be listening.
        drop(self.violations.send(violation));
    }

    /// What is right when events were dropped.
    fn reconcile(&mut self) {
        match self.client.connection_state() {
            async_nats::connection::State::Connected => self.connected(),
            async_nats::connection::State::Disconnected
            | async_nats::connection::State::Pending => {
                if matches!(*self.state.borrow(), State::Connected { .. }) {
                    self.disconnected("the connection was lost");
                }
            }
        }
    }

    fn connected(&mut self) {
        let epoch = self.statistics.connects.load(Ordering::Relaxed);
        let is_new = self.state.send_if_modified(|state| {
            let connected = State::Connected { epoch };
            let is_new = *state != connected;
            *state = connected;
            is_new
        });
        if is_new {
            self.last_error = None;
            self.said.clear();
            info!(role = self.role, epoch, "connected to NATS again");
        }
    }

    fn disconnected(&self, why: &str) {
        let is_new = self.state.send_if_modified(|state| {
            let lost = State::Disconnected {
                why: why.to_owned(),
            };
            let is_new = *state != lost;
            *state = lost;
            is_new
        });
        if is_new {
            warn!(role = self.role, error = %why, "no connection to NATS, trying for ever");
        }
    }
}

fn read_violation(text: &str) -> Option<Violation> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let (kind, rest) = rest.split_once(" to \"")?;
    let (subject, _) = rest.split_once('"')?;
    match kind {
        "Publish" => Some(Violation::Publish(subject.to_owned())),
        "Subscription" => Some(Violation::Subscribe(subject.to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let settings = Settings {
            urls: vec![
                "nats://ann:secret@host:4222".to_owned(),
                "b:secret@host2".to_owned(),
            ],
            password: Some("secret".to_owned()),
            token: Some("secret".to_owned()),
            ..Settings::default()
        };
        let shown = format!("{settings:?}");
        assert!(!shown.contains("secret"), "{shown}");
        assert!(shown.contains("nats://host:4222,host2"), "{shown}");
    }

    #[test]
    fn a_login_in_an_address_is_decoded() {
        assert_eq!(percent_decoded("p%40ss%2fw%C3%B6rd%"), "p@ss/w\u{f6}rd%");
    }

    #[test]
    fn versions_compare_by_their_numbers() {
        assert!(!is_at_least("2.9.10", FULL_SUPPORT));
        assert!(!is_at_least("2.10.7", FULL_SUPPORT));
        assert!(is_at_least("2.10.8", FULL_SUPPORT));
        assert!(is_at_least("2.10.27-beta.1", FULL_SUPPORT));
        assert!(is_at_least("3.0", FULL_SUPPORT));
        assert!(!is_at_least("", FULL_SUPPORT));
    }

    #[test]
    fn violations_name_their_subject() {
        let publish = r#"Permissions Violation for Publish to "AlarmDigest""#;
        assert_eq!(
            read_violation(publish),
            Some(Violation::Publish("AlarmDigest".to_owned()))
        );
        let subscribe = r#"Permissions Violation for Subscription to "a.*" using queue "q""#;
        assert_eq!(
            read_violation(subscribe),
            Some(Violation::Subscribe("a.*".to_owned()))
        );
        assert_eq!(read_violation("Stale Connection"), None);
    }

    #[test]
    fn what_is_to_be_granted_has_no_random_token() {
        let inbox = Violation::Subscribe("_INBOX_tocsin.5vBPjX8pMEQkRzVnG6wqKC.*".to_owned());
        assert_eq!(
            inbox.to_grant().to_string(),
            "our user may not subscribe to _INBOX_tocsin.*.*"
        );
        let create = "$JS.API.CONSUMER.CREATE.TOCSIN_DEAD_LETTER.tocsin-0123456789abcdef";
        assert_eq!(
            Violation::Publish(create.to_owned()).to_grant().to_string(),
            "our user may not publish to $JS.API.CONSUMER.CREATE.TOCSIN_DEAD_LETTER.*"
        );
    }

    #[test]
    fn attempts_come_at_once_and_then_ever_more_slowly() {
        assert_eq!(delay(1), Duration::ZERO);
        assert!(delay(2) <= Duration::from_millis(4));
        for attempt in 12..100 {
            assert!((Duration::from_secs(1)..=MAX_DELAY).contains(&delay(attempt)));
        }
    }

    #[test]
    fn an_address_that_cannot_be_read_is_the_operators_matter() {
        for urls in [
            vec![],
            vec!["http://host"],
            vec!["ws://host"],
            vec!["nats://"],
        ] {
            let settings = Settings {
                urls: urls.iter().map(|&url| url.to_owned()).collect(),
                ..Settings::default()
            };
            assert!(
                matches!(settings.addresses(), Err(BusError::Configuration(_))),
                "{urls:?}"
            );
        }
    }
}
