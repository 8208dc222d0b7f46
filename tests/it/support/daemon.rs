//! The real program as its own process, told apart from others by its folder; gone with the guard.

use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::nats::Nats;
use super::program::wait_until_frozen;
use super::usage::Usage;

/// How long a daemon may take to begin, or to end.
const DEADLINE: Duration = Duration::from_mins(1);

/// How to start a daemon; its store outlives its processes.
pub(crate) struct Setup {
    url: String,
    folder: TempDir,
    sets: Vec<String>,
    env: Vec<(&'static str, String)>,
    wrapper: Vec<String>,
}

/// A running daemon. Dropped, it is killed.
pub(crate) struct Daemon {
    child: Child,
    notices: UnixDatagram,
    log: PathBuf,
    heard: Vec<String>,
}

impl Setup {
    /// A daemon of this server, with a store of its own.
    pub(crate) fn new(nats: &Nats) -> Self {
        Self::with_url(nats.url())
    }

    /// A daemon of whatever listens there.
    pub(crate) fn with_url(url: String) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the daemon");
        Self {
            url,
            folder,
            sets: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
    }

    /// Sets a key.
    pub(crate) fn set(mut self, setting: &str) -> Self {
        self.sets.push(setting.to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub(crate) fn env(mut self, name: &'static str, value: &str) -> Self {
        self.env.push((name, value.to_owned()));
        self
    }

    /// Starts it through another program that becomes it, or traces it from aside; none undoes this.
    pub(crate) fn through<T: Into<String>>(mut self, wrapper: impl IntoIterator<Item = T>) -> Self {
        self.wrapper = wrapper.into_iter().map(Into::into).collect();
        self
    }

    /// As many of each actor.
    pub(crate) fn actors(self, num: usize) -> Self {
        self.set(&format!("input.listeners={num}"))
            .set(&format!("input.routers={num}"))
            .set(&format!("workers.count={num}"))
            .set(&format!("producers.count={num}"))
    }

    /// The folder of its store.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// The command that starts it.
    pub(crate) fn command(&self) -> Command {
        let words = self.wrapper.iter().map(String::as_str);
        let mut words = words.chain([env!("CARGO_BIN_EXE_tocsin")]);
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .args(["serve", "--set", &format!("nats.url={}", self.url)])
            .args(["--set", &format!("store.path={}", self.store().display())])
            .args(["--set", "log.format=text"])
            .current_dir(self.folder.path())
            .stdin(Stdio::null());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        for setting in &self.sets {
            command.args(["--set", setting]);
        }
        command
    }

    /// Starts it, and returns at once.
    pub(crate) fn start(&self) -> Daemon {
        let socket = self.folder.path().join("notify");
        // A socket of an earlier process may be left.
        std::fs::remove_file(&socket).ok();
        let notices = UnixDatagram::bind(&socket).expect("a socket for notices");
        let log = self.folder.path().join("log");
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log);
        let child = self
            .command()
            .env("NOTIFY_SOCKET", &socket)
            .stderr(file.expect("a file for the log"))
            .spawn()
            .expect("the daemon starts");
        Daemon {
            child,
            notices,
            log,
            heard: Vec::new(),
        }
    }

    /// Starts it, and waits until input flows.
    pub(crate) fn start_ready(&self) -> Daemon {
        let mut daemon = self.start();
        daemon.wait_for("READY=1");
        daemon
    }

    /// Runs it until it ends by itself: its exit status and the last line of its log.
    pub(crate) fn run(&self) -> (i32, String) {
        let output = self.command().output().expect("the daemon runs");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let last = log.lines().last().unwrap_or_default().to_owned();
        (output.status.code().unwrap_or(-1), last)
    }

    /// How often its processes have logged a text.
    pub(crate) fn num_logged(&self, text: &str) -> u64 {
        self.log().matches(text).count() as u64
    }

    /// Everything that its processes have logged, once none runs; the next begins a new log.
    pub(crate) fn take_log(&self) -> String {
        let log = self.log();
        std::fs::remove_file(self.folder.path().join("log")).ok();
        log
    }

    /// Everything that its processes have logged.
    pub(crate) fn log(&self) -> String {
        read_log(&self.folder.path().join("log"))
    }
}

impl Daemon {
    /// Waits for a line told to the service manager that begins so; returns it.
    pub(crate) fn wait_for(&mut self, begin: &str) -> String {
        let at = self.listen_for(begin);
        self.heard.remove(at)
    }

    /// Everything told to the service manager until a line that begins so, that one included.
    pub(crate) fn told_until(&mut self, begin: &str) -> Vec<String> {
        let at = self.listen_for(begin);
        self.heard.drain(..=at).collect()
    }

    /// Whether the service manager was told a line that begins so by now.
    pub(crate) fn has_told(&mut self, begin: &str) -> bool {
        self.hear(Duration::from_millis(1));
        self.heard.iter().any(|line| line.starts_with(begin))
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.child.try_wait();
        ended.expect("the daemon is our child").is_some()
    }

    fn hear(&mut self, within: Duration) {
        self.notices
            .set_read_timeout(Some(within))
            .expect("a time-out");
        let mut buffer = [0; 4096];
        if let Ok(len) = self.notices.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
            self.heard.extend(text.lines().map(str::to_owned));
        }
    }

    fn listen_for(&mut self, begin: &str) -> usize {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.heard.iter().position(|line| line.starts_with(begin)) {
                return at;
            }
            let ended = self.child.try_wait().expect("the daemon is our child");
            assert!(
                ended.is_none(),
                "ended with {ended:?}:\n{}",
                read_log(&self.log)
            );
            assert!(
                Instant::now() < deadline,
                "no {begin} in time:\n{}",
                read_log(&self.log)
            );
            self.hear(Duration::from_millis(200));
        }
    }

    /// What it uses at this moment.
    pub(crate) fn usage(&self) -> Usage {
        Usage::of(self.pid()).expect("the daemon runs")
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A line told to the service manager that begins so, if one is before the time is over.
    pub(crate) fn told_within(&mut self, begin: &str, time: Duration) -> Option<String> {
        let deadline = Instant::now() + time;
        while !self.has_told(begin) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.hear(left);
        }
        Some(self.wait_for(begin))
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("the daemon can be killed");
        let status = self.child.wait().expect("the daemon can be waited for");
        let signal = status.signal();
        assert_eq!(signal, Some(Signal::KILL.as_raw()), "ended before");
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it is, as a debugger or a full memory does.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_until_frozen(self.child.id());
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process id"), signal).expect("the daemon can be signalled");
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> ExitStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("the daemon is our child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "does not end:\n{}",
                read_log(&self.log)
            );
            self.notices
                .set_read_timeout(Some(Duration::from_millis(50)))
                .expect("a time-out");
            self.notices.recv(&mut [0; 4096]).ok();
        }
    }

    /// SIGTERM, and its exit status.
    pub(crate) fn stop(self) -> ExitStatus {
        self.terminate();
        self.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn read_log(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
