//! A nats-server as our child: for `tocsin up` and for tests.
//!
//! | how it begins | program found, port chosen, INFO of *this* server read: only then is it ready |
//! |---|---|
//! | how it ends | SIGTERM and a deadline, then SIGKILL; and gone however we end |
//! | who owns it | one thread that starts it and waits for it; everybody else holds a pidfd |
//!
//! The kernel can kill a child when its parent dies, but the child itself has to ask for it, and what
//! `Command` offers for that is unsafe. So `up` starts its own program again, which asks and then becomes
//! nats-server: [`exec_nats_server`]. The kernel means the parent's *thread*: hence the thread that lives as
//! long as the child. The server has a process group of its own: Ctrl-C in a terminal reaches only us, and
//! we stop it last.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// Recovering a large store takes time, and the port opens after it.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// How many ports are tried from the first.
const NUM_PORTS: u16 = 100;
/// How to get the program where none is found.
const HOW_TO_GET: &str = "type `make tools` in the sources, or take a release from https://github.com/nats-io/nats-server/releases or your system's package nats-server, 2.10.8 or newer, and put it into PATH or set TOCSIN_NATS_SERVER to where it is";

/// Why there is no nats-server.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The program is nowhere.
    #[error("failed to find nats-server {sought}; {HOW_TO_GET}")]
    NotFound {
        /// Where it was looked for.
        sought: String,
    },
    /// A file or process of it could not be made.
    #[error("failed to {action} {}: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It ended, or did not answer in time.
    #[error("failed to start nats-server on port {port}: {why}; its log is {}", log.display())]
    NotReady {
        /// On which port.
        port: u16,
        /// What happened, with the last line of its log.
        why: String,
        /// Its log.
        log: PathBuf,
    },
    /// No port is free.
    #[error("failed to find a free port from {from} on; name another")]
    NoPort {
        /// The first that was tried.
        from: u16,
    },
}

/// Which port to listen on, always on the loopback interface only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Port {
    /// This one or none.
    Exactly(u16),
    /// This one, or the next that is free.
    From(u16),
    /// Any.
    Any,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The nats-server program; see [`find_program`].
    pub program: PathBuf,
    /// What to run in its place, with our process id, the program and its arguments appended: something that
    /// calls [`exec_nats_server`]. Empty: the program itself, which then outlives us when we are killed.
    pub launcher: Vec<OsString>,
    /// Where its streams, its log and its configuration go.
    pub folder: PathBuf,
    /// Where it listens.
    pub port: Port,
    /// Whether it has streams.
    pub has_jetstream: bool,
    /// Further configuration, in the server's own language.
    pub config: String,
}

/// A running nats-server. Dropped, it is killed.
#[derive(Debug)]
pub struct NatsServer {
    settings: Settings,
    /// Tells this server from any other that may listen there; a cluster knows it by this name over restarts.
    name: String,
    port: u16,
    process: Process,
}

/// Finds the program: `TOCSIN_NATS_SERVER`, beside our own executable, `target/tools`, `PATH`.
///
/// # Errors
/// [`ServerError::NotFound`] with the one line to type.
pub fn find_program() -> Result<PathBuf, ServerError> {
    const NAME: &str = "nats-server";
    if let Some(named) = std::env::var_os("TOCSIN_NATS_SERVER") {
        let named = PathBuf::from(named);
        let sought = format!("at {} (TOCSIN_NATS_SERVER)", named.display());
        return if named.is_file() {
            Ok(named)
        } else {
            Err(ServerError::NotFound { sought })
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|program| program.parent().map(|folder| folder.join(NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain([Path::new("target/tools").join(NAME)])
        .chain(std::env::split_paths(&path).map(|folder| folder.join(NAME)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| ServerError::NotFound {
            sought: "beside this program, in target/tools or in PATH".to_owned(),
        })
}

/// Becomes nats-server, to be killed by the kernel when the parent dies. Returns only to say why it cannot.
///
/// The arguments are those that a launcher is given: the parent's process id, the program, its arguments.
pub fn exec_nats_server(mut args: impl Iterator<Item = OsString>) -> io::Error {
    let usage = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            "a process id and a program are needed",
        )
    };
    let parent = args
        .next()
        .and_then(|id| id.to_str()?.parse().ok())
        .and_then(Pid::from_raw);
    let (Some(parent), Some(program)) = (parent, args.next()) else {
        return usage();
    };
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return error.into();
    }
    // It may have died before the kernel was asked.
    if rustix::process::getppid() != Some(parent) {
        return io::Error::other("the parent is gone");
    }
    Command::new(program).args(args).exec()
}

impl NatsServer {
    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    /// When a file cannot be written, no port is free, or it ends before it answers.
    pub async fn start(settings: Settings) -> Result<Self, ServerError> {
        fs::create_dir_all(&settings.folder).map_err(|error| ServerError::Io {
            action: "create",
            path: settings.folder.clone(),
            error,
        })?;
        let name = format!(
            "tocsin-{}-{:08x}",
            std::process::id(),
            getrandom::u32().unwrap_or_default()
        );
        let mut from = match settings.port {
            Port::Exactly(port) | Port::From(port) => port,
            Port::Any => 0,
        };
        loop {
            let port = free_port(settings.port, from)?;
            match Process::start(&settings, port, &name).await {
                Ok(process) => {
                    return Ok(Self {
                        settings,
                        name,
                        port,
                        process,
                    });
                }
                // Someone else was faster.
                Err(ServerError::NotReady { why, .. })
                    if why.contains("address already in use")
                        && !matches!(settings.port, Port::Exactly(_)) =>
                {
                    from = if settings.port == Port::Any {
                        0
                    } else {
                        port + 1
                    };
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What it says of itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.process.pid
    }

    /// Where its streams, its log and its configuration are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.settings.folder
    }

    /// Resolves when it has ended, with how.
    pub async fn ended(&self) -> String {
        self.process.ended().await
    }

    /// Asks it to stop and waits; after the deadline it is killed.
    pub async fn stop(&mut self, within: Duration) {
        self.process.signal(Signal::CONT);
        self.process.signal(Signal::TERM);
        if timeout(within, self.process.ended()).await.is_err() {
            self.kill().await;
        }
    }

    /// Kills it, as a crash would.
    pub async fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.ended().await;
    }

    /// Starts it again after it was stopped or killed: same port, same streams.
    ///
    /// # Errors
    /// As [`NatsServer::start`].
    pub async fn restart(&mut self) -> Result<(), ServerError> {
        self.kill().await;
        self.process = Process::start(&self.settings, self.port, &self.name).await?;
        Ok(())
    }

    /// Replaces the further configuration and lets the running server read it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reload(&mut self, config: String) -> Result<(), ServerError> {
        self.settings.config = config;
        self.settings.write_config(&self.name)?;
        self.process.signal(Signal::HUP);
        Ok(())
    }

    /// Replaces the further configuration, for the next [`NatsServer::restart`].
    pub fn set_config(&mut self, config: String) {
        self.settings.config = config;
    }

    /// Lets it stand still, as a frozen machine would.
    pub fn pause(&self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.signal(Signal::CONT);
    }
}

impl Settings {
    fn log(&self) -> PathBuf {
        self.folder.join("nats-server.log")
    }

    fn config_file(&self) -> PathBuf {
        self.folder.join("nats-server.conf")
    }

    /// The name stands in the file: given as an argument, it would be missed at a reload.
    fn write_config(&self, name: &str) -> Result<(), ServerError> {
        let path = self.config_file();
        fs::write(&path, format!("{}\nserver_name: \"{name}\"\n", self.config)).map_err(|error| {
            ServerError::Io {
                action: "write",
                path,
                error,
            }
        })
    }

    fn command(&self, port: u16, name: &str) -> Result<Command, ServerError> {
        self.write_config(name)?;
        let io_error = |error| ServerError::Io {
            action: "open",
            path: self.log(),
            error,
        };
        let log = File::create(self.log()).map_err(io_error)?;
        let log_too = log.try_clone().map_err(io_error)?;
        let mut command = match self.launcher.split_first() {
            None => Command::new(&self.program),
            Some((launcher, args)) => {
                let mut command = Command::new(launcher);
                command
                    .args(args)
                    .arg(std::process::id().to_string())
                    .arg(&self.program);
                command
            }
        };
        command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"]);
        command.arg(self.config_file());
        if self.has_jetstream {
            command.args(["-js", "-sd"]).arg(&self.folder);
        }
        command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .process_group(0);
        Ok(command)
    }

    /// The last line of the log that says that something is wrong, else the last line.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let is_bad = |line: &&str| line.contains("[FTL]") || line.contains("[ERR]");
        log.lines()
            .rfind(is_bad)
            .or_else(|| log.lines().last())
            .unwrap_or_default()
            .to_owned()
    }
}

fn free_port(port: Port, from: u16) -> Result<u16, ServerError> {
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let found = match port {
        // Whether it is free, the server itself will say.
        Port::Exactly(port) => return Ok(port),
        Port::Any => bind(0).ok(),
        Port::From(_) => (from..=from.saturating_add(NUM_PORTS)).find_map(|port| bind(port).ok()),
    };
    found
        .and_then(|listener| listener.local_addr().ok())
        .map(|address| address.port())
        .ok_or(ServerError::NoPort { from })
}

#[derive(Debug)]
struct Process {
    pid: u32,
    handle: OwnedFd,
    ended: watch::Receiver<Option<String>>,
    owner: Option<JoinHandle<()>>,
}

impl Process {
    async fn start(settings: &Settings, port: u16, name: &str) -> Result<Self, ServerError> {
        let command = settings.command(port, name)?;
        let process = Self::spawn(command)
            .await
            .map_err(|error| ServerError::Io {
                action: "start",
                path: settings.program.clone(),
                error,
            })?;
        let deadline = Instant::now() + READY_WITHIN;
        let why = loop {
            if let Some(ended) = process.ended.borrow().clone() {
                break format!("it ended with {ended}: {}", settings.last_words());
            }
            let answer = timeout(Duration::from_secs(1), read_info(port)).await;
            if answer.is_ok_and(|info| info.is_ok_and(|info| info.contains(name))) {
                return Ok(process);
            }
            if Instant::now() > deadline {
                break format!(
                    "no answer within {READY_WITHIN:?}: {}",
                    settings.last_words()
                );
            }
            // Nothing tells when a port opens.
            sleep(Duration::from_millis(10)).await;
        };
        Err(ServerError::NotReady {
            port,
            why,
            log: settings.log(),
        })
    }

    /// Starts the child on a thread that lives as long as it.
    async fn spawn(command: Command) -> io::Result<Self> {
        let (started_in, started) = tokio::sync::oneshot::channel();
        let (ended_in, ended) = watch::channel(None);
        let owner = std::thread::Builder::new()
            .name("nats-server".to_owned())
            .spawn(move || own(command, started_in, &ended_in))?;
        let (pid, handle) = started
            .await
            .map_err(|_| io::Error::other("the thread that starts it ended"))??;
        Ok(Self {
            pid,
            handle,
            ended,
            owner: Some(owner),
        })
    }

    fn signal(&self, signal: Signal) {
        // Through the handle, a signal can only fail because the process is gone, and never hit another.
        pidfd_send_signal(&self.handle, signal).ok();
    }

    async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        ended
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|how| how.clone())
            .unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        if let Some(owner) = self.owner.take() {
            // A killed process is gone within milliseconds; its folder can then be removed.
            drop(owner.join());
        }
    }
}

fn own(
    mut command: Command,
    started: tokio::sync::oneshot::Sender<io::Result<(u32, OwnedFd)>>,
    ended: &watch::Sender<Option<String>>,
) {
    let opened = command.spawn().and_then(open);
    let (mut child, answer) = match opened {
        Ok((child, handle)) => {
            let pid = child.id();
            (Some(child), Ok((pid, handle)))
        }
        Err(error) => (None, Err(error)),
    };
    if started.send(answer).is_err()
        && let Some(child) = &mut child
    {
        // Nobody waits any more: the start was given up.
        drop(child.kill());
    }
    let how = match child.map(|mut child| child.wait()) {
        Some(Ok(status)) => status.to_string(),
        Some(Err(error)) => error.to_string(),
        None => "no start".to_owned(),
    };
    ended.send_replace(Some(how));
}

fn open(mut child: Child) -> io::Result<(Child, OwnedFd)> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let opened = pid
        .ok_or_else(|| io::Error::other("it has no process id"))
        .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?));
    match opened {
        Ok(handle) => Ok((child, handle)),
        Err(error) => {
            child.kill()?;
            child.wait()?;
            Err(error)
        }
    }
}

async fn read_info(port: u16) -> io::Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).await?;
    Ok(line)
}
