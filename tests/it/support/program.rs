//! The program as somebody types it: what it prints, how it ends; and `up` in a folder of its own.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tocsin::bus::server::find_program;

/// The program, without what the environment says.
pub(crate) fn tocsin(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOCSIN") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs it: its exit status, what it printed, what it complained of.
pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    ended(&tocsin(arguments).output().unwrap())
}

/// How a process ended: its exit status, what it printed, what it complained of.
pub(crate) fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// A folder of its own, and the program that runs in it; killed with the guard.
pub(crate) struct Up {
    pub(crate) folder: TempDir,
    child: Child,
    pub(crate) lines: Lines<BufReader<ChildStdout>>,
}

impl Up {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    pub(crate) fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        Self::spawn(folder, arguments, Stdio::inherit())
    }

    /// Starts it with its complaints in the file `complaints`.
    pub(crate) fn start_complaining(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = fs::File::create(folder.path().join("complaints")).unwrap();
        Self::spawn(folder, arguments, file.into())
    }

    fn spawn(folder: TempDir, arguments: &[&str], complaints: Stdio) -> Self {
        let mut command = in_folder(&folder, &["up", "--set", "log.file=log"]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(complaints)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            folder,
            child,
            lines,
        }
    }

    /// What it prints once it is up.
    pub(crate) fn announcement(&mut self) -> Vec<String> {
        let lines: Vec<_> = (&mut self.lines).take(6).map(Result::unwrap).collect();
        assert_eq!(lines.len(), 6, "{lines:?}\n{}", self.read("log"));
        lines
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }

    pub(crate) fn url(&self) -> String {
        self.read("tocsin-data/url")
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        ended(&in_folder(&self.folder, arguments).output().unwrap())
    }

    /// The process id of its nats-server.
    pub(crate) fn server(&self) -> Pid {
        let children = format!("/proc/{0}/task", self.child.id());
        let tasks = fs::read_dir(children).unwrap();
        let mut children = tasks.filter_map(|task| {
            let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
            children.split_whitespace().next()?.parse().ok()
        });
        Pid::from_raw(children.next().expect("a nats-server")).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        within("the end of up", || self.child.try_wait().unwrap())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The program in a folder, with the tests' nats-server.
pub(crate) fn in_folder(folder: &TempDir, arguments: &[&str]) -> Command {
    let server = find_program().unwrap_or_else(|error| panic!("{error}"));
    let mut command = tocsin(arguments);
    command
        .current_dir(folder.path())
        .env("TOCSIN_NATS_SERVER", fs::canonicalize(server).unwrap());
    command
}

/// Waits for something that is seen.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between two looks at another process"
)]
pub(crate) fn within<T>(what: &str, mut see: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(seen) = see() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn wait_until_gone(pid: Pid) {
    within("the end of nats-server", || {
        // A dead one that nobody waited for yet is a zombie.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

/// Waits until a stopped process stands still.
pub(crate) fn wait_until_frozen(pid: u32) {
    within("a process that stands still", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
}

/// A process that prints lines until it is told to stop; killed with the guard.
pub(crate) struct Printing {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    complaints: std::path::PathBuf,
    _folder: TempDir,
}

impl Printing {
    /// Starts it.
    pub(crate) fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let complaints = folder.path().join("stderr");
        let file = fs::File::create(&complaints).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(file).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self {
            child,
            lines,
            complaints,
            _folder: folder,
        }
    }

    /// Waits for so many lines.
    pub(crate) fn lines(&mut self, num: usize) -> Vec<String> {
        let lines: Vec<_> = (&mut self.lines).take(num).map(Result::unwrap).collect();
        assert_eq!(lines.len(), num, "{lines:?}\n{}", self.complaints());
        lines
    }

    /// Everything up to its end.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        (&mut self.lines).map(Result::unwrap).collect()
    }

    /// What it complained of.
    pub(crate) fn complaints(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        within("the end of the process", || self.child.try_wait().unwrap())
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// What a command prints on a terminal.
pub(crate) fn on_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted: Vec<_> = words
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    let mut terminal = Command::new("script");
    terminal
        .args([
            "--quiet",
            "--return",
            "--command",
            &quoted.join(" "),
            "/dev/null",
        ])
        .env("TERM", "xterm-256color")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        terminal.current_dir(folder);
    }
    terminal
}
