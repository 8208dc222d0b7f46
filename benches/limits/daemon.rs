//! The release program as its own process.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::bare::Bare;
use crate::process::Process;
use crate::server::Server;
use crate::traffic::Message;

/// How long a start may take.
const START: Duration = Duration::from_mins(5);
/// The user whose digest says that everything before it was applied.
pub(crate) const MARKER: &str = "marker";

/// Where it is asked for: a subject of its own, which can be emptied again.
pub(crate) const MARKER_REQUEST: &str = "SendAlarmDigest.1";

/// A running daemon.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    notify: UnixDatagram,
    notify_path: PathBuf,
    began: Instant,
}

impl Daemon {
    /// Starts it on a store; `settings` are `key=value`.
    pub(crate) fn start(server: &Server, store: &Path, settings: &[&str]) -> Self {
        let notify_path = store.with_extension("notify");
        // Left by a run that was killed.
        std::fs::remove_file(&notify_path).ok();
        let notify = UnixDatagram::bind(&notify_path).expect("a socket");
        notify.set_read_timeout(Some(START)).expect("a time-out");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
        command.arg("serve").env("NOTIFY_SOCKET", &notify_path);
        let (url, path) = (
            format!("nats.url={}", server.url()),
            format!("store.path={}", store.display()),
        );
        for setting in [&*url, &*path, "log.filter=error"].iter().chain(settings) {
            command.args(["--set", setting]);
        }
        let began = Instant::now();
        Self {
            process: Process(command.spawn().expect("the daemon starts")),
            notify,
            notify_path,
            began,
        }
    }

    /// Waits for `READY=1`; returns how long it took from the start.
    pub(crate) fn wait_until_ready(&self) -> Duration {
        let mut state = [0; 4096];
        loop {
            let len = self
                .notify
                .recv(&mut state)
                .expect("the daemon tells its state");
            let state = String::from_utf8_lossy(&state[..len]);
            if state.lines().any(|line| line == "READY=1") {
                return self.began.elapsed();
            }
        }
    }

    /// Ends it at once.
    pub(crate) fn stop(mut self) {
        self.process.kill();
    }

    /// Since its start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        std::fs::remove_file(&self.notify_path).ok();
    }
}

/// The last change of some traffic: the marker's.
pub(crate) fn marker(at: u64) -> Message {
    Message::change(MARKER, MARKER, "CRITICAL", at)
}

/// Asks for the marker's digest, and waits for it: all that was published before is applied.
pub(crate) fn wait_for_marker(bare: &mut Bare) {
    bare.subscribe("AlarmDigest", 9);
    let request = Message::request(MARKER);
    bare.publish(MARKER_REQUEST, "", &request.payload);
    loop {
        let digest = bare.next_text();
        if digest.contains(&format!("\"UserID\":\"{MARKER}\"")) {
            bare.write(b"UNSUB 9\r\n");
            return;
        }
    }
}
