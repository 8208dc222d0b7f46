//! The unit, run by a real systemd as the first process of a machine of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use tocsin::bus::server::find_program;

use crate::permissions;

const UNIT: &str = include_str!("../../config/tocsin.service");
const MACHINE: &str = include_str!("systemd/machine.sh");
/// Files of every machine.
const FILES: [(&str, &str); 8] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    ),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files systemd\ngroup: files systemd\nhosts: files\n",
    ),
    ("etc/hosts", "127.0.0.1 localhost\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    (
        "etc/systemd/system/test.target",
        "[Unit]\nDefaultDependencies=no\n",
    ),
    (
        "etc/systemd/system/nats-server.service",
        "[Service]\nExecStart=/usr/local/bin/nats-server -c /etc/nats.conf -a 127.0.0.1 -js -sd /var/lib/nats\n",
    ),
    ("etc/systemd/system/tocsin.service", UNIT),
];
const WITHIN: Duration = Duration::from_mins(1);

/// A machine; gone with the guard, its control groups too.
struct Machine {
    root: TempDir,
    cgroup: String,
    first: Child,
    /// Its systemd, as this machine counts processes.
    systemd: String,
}

impl Machine {
    /// Boots with these files beside the usual ones.
    fn boot(files: &[(&str, &str)]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "a machine of its own needs root; run the tests as root"
        );
        assert!(
            Path::new("/lib/systemd/systemd").exists(),
            "systemd is missing; type `.ci/tools systemd`"
        );
        let root = tempfile::tempdir().unwrap();
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path(), everybody).unwrap();
        for (path, text) in FILES.iter().chain(files) {
            write(root.path(), path, text);
        }
        let cgroup = format!("tocsin-test-{:08x}", getrandom::u32().unwrap());
        let nats_server = find_program().unwrap_or_else(|error| panic!("{error}"));
        let first = Command::new("sh")
            .args(["-c", MACHINE, "machine.sh"])
            .arg(root.path())
            .args([cgroup.as_str(), env!("CARGO_BIN_EXE_tocsin")])
            .arg(fs::canonicalize(nats_server).unwrap())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut machine = Self {
            root,
            cgroup,
            first,
            systemd: String::new(),
        };
        machine.systemd = within("systemd", || {
            let id = machine.first.id();
            let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
            let systemd = children.ok()?.trim().to_owned();
            let name = fs::read_to_string(format!("/proc/{systemd}/comm")).ok()?;
            (name.trim() == "systemd").then_some(systemd)
        });
        within("the end of the boot", || {
            (machine.says("systemctl is-system-running") == "running").then_some(())
        });
        machine
    }

    fn write(&self, path: &str, text: &str) {
        write(self.root.path(), path, text);
    }

    /// Runs a command inside: its exit status and what it prints.
    fn run(&self, command: &str) -> (i32, String) {
        self.enter(&["-a", "-t", &self.systemd], command)
    }

    fn enter(&self, whom: &[&str], command: &str) -> (i32, String) {
        let output = Command::new("nsenter")
            .args(whom)
            .args(["--", "sh", "-c", command])
            .current_dir(self.root.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        (output.status.code().unwrap_or(-1), text)
    }

    fn says(&self, command: &str) -> String {
        self.run(command).1
    }

    /// Runs a command that must succeed.
    fn succeeds(&self, command: &str) -> String {
        let (status, text) = self.run(command);
        assert_eq!(status, 0, "{command}: {text}\n{}", self.log());
        text
    }

    fn property(&self, name: &str) -> String {
        self.says(&format!("systemctl show tocsin --value -p {name}"))
    }

    fn log(&self) -> String {
        self.says("journalctl -u tocsin --no-pager -o cat")
    }

    fn until(&self, name: &str, value: &str) {
        within(&format!("{name}={value}"), || {
            (self.property(name) == value).then_some(())
        });
    }

    /// The process id of the daemon, inside.
    fn main_pid(&self) -> String {
        self.property("MainPID")
    }

    fn change(&self, alarm: &str) {
        self.succeeds(&format!("tocsin change ann {alarm} CRITICAL {CLIENT}"));
    }

    /// The alarms of the digest that a request gets.
    fn digest(&self) -> Vec<String> {
        let digest = self.succeeds(&format!("tocsin digest ann -o json {CLIENT}"));
        let digest: Value = serde_json::from_str(&digest).unwrap();
        let alarms = digest["ActiveAlarms"].as_array().unwrap().iter();
        alarms
            .map(|alarm| alarm["AlarmID"].as_str().unwrap().to_owned())
            .collect()
    }
}

/// Whoever sees everything, with time for a loaded machine.
const CLIENT: &str = "--config /etc/observer.toml --timeout 30s";

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended already. What it started ends with it.
        self.first.kill().ok();
        self.first.wait().ok();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
        let hierarchies = hierarchies.flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain(["/sys/fs/cgroup".into()]) {
            remove_cgroup(&hierarchy.join(&self.cgroup));
        }
    }
}

/// Removes a control group with those in it, once its last process is gone.
fn remove_cgroup(group: &Path) {
    let Ok(inside) = fs::read_dir(group) else {
        return;
    };
    for entry in inside.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    within("the end of a control group", || {
        (fs::remove_dir(group).is_ok() || !group.exists()).then_some(())
    });
}

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Waits for something that is seen.
#[expect(
    clippy::disallowed_methods,
    reason = "a pause between two looks at another process"
)]
fn within<T>(what: &str, mut see: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + WITHIN;
    loop {
        if let Some(seen) = see() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within {WITHIN:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_unit_runs_locked_up_and_outlives_what_happens_to_it() {
    let nats = permissions::config();
    let machine = Machine::boot(&[
        ("etc/nats.conf", nats.as_str()),
        (
            "etc/tocsin/tocsin.toml",
            "[nats]\nuser = \"tocsin\"\ninbox_prefix = \"_INBOX_tocsin\"\n",
        ),
        ("etc/credstore/tocsin.nats.password", "daemon-secret\n"),
        (
            "etc/observer.toml",
            "[nats]\nuser = \"observer\"\npassword = \"observer-secret\"\n",
        ),
        (
            "etc/systemd/system/tocsin.service.d/test.conf",
            "[Service]\nWatchdogSec=5s\n",
        ),
    ]);
    assert_eq!(
        machine.succeeds("systemd-analyze verify tocsin.service"),
        ""
    );
    let exposure = machine.succeeds("systemd-analyze security --offline=true tocsin.service");
    let (_, exposure) = exposure.rsplit_once("tocsin.service: ").unwrap();
    let exposure: f64 = exposure.split(' ').next().unwrap().parse().unwrap();
    assert!(exposure <= 2.0, "{exposure}");

    machine.succeeds("systemctl start nats-server");
    machine.succeeds("systemctl start tocsin");
    machine.change("disk");
    assert_eq!(machine.digest(), ["disk"]);
    is_locked_up(&machine);

    // Frozen, it is killed and started again; the change waits in the stream.
    let frozen = machine.main_pid();
    machine.succeeds(&format!("kill -STOP {frozen}"));
    machine.change("net");
    within("another process", || {
        let is_active = machine.property("ActiveState") == "active";
        (is_active && machine.main_pid() != frozen).then_some(())
    });
    assert!(
        machine.log().contains("Watchdog timeout"),
        "{}",
        machine.log()
    );
    assert_eq!(machine.digest(), ["net"]);

    machine.change("fan");
    machine.succeeds("systemctl restart tocsin");
    assert_eq!(machine.digest(), ["fan"]);

    machine.succeeds("systemctl stop tocsin");
    let log = machine.log();
    // The journal has time and priority.
    let drained = "\n INFO tocsin::app: drained: what was accepted is committed";
    assert!(log.contains(drained), "{log}");
    // systemd's words for an end with status 0.
    let (_, end) = log.rsplit_once("Stopping tocsin.service").unwrap();
    assert!(end.contains("Deactivated successfully"), "{log}");
    let warnings = machine.says("journalctl -u tocsin --no-pager -o cat -p warning");
    assert!(!warnings.contains(" INFO "), "{warnings}");
    assert!(!log.contains("daemon-secret"), "{log}");
}

/// What the process has, and what it sees.
fn is_locked_up(machine: &Machine) {
    let pid = machine.main_pid();
    let status = machine.succeeds(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_ne!(field("Uid:"), "0");
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), "0000000000000000", "{capabilities}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
    // Even root could write nowhere but where it writes.
    let inside = |command: &str| machine.run(&format!("nsenter -m -t {pid} -- {command}"));
    for path in ["/etc/a", "/usr/a", "/var/a", "/var/lib/a", "/a"] {
        let (status, said) = inside(&format!("touch {path}"));
        assert!(
            status != 0 && !said.contains("denied"),
            "{path}: {status} {said}"
        );
    }
    assert_eq!(inside("touch /var/lib/tocsin/a").0, 0);
    assert_eq!(inside("rm /var/lib/tocsin/a").0, 0);
    assert_ne!(inside("ls /proc/sys").0, 0);
}

#[test]
fn a_wrong_configuration_is_tried_again_until_it_is_mended_and_no_secret_is_needed() {
    let machine = Machine::boot(&[
        ("etc/nats.conf", "# As it comes.\n"),
        ("etc/tocsin/tocsin.toml", "[nats]\nusr = \"tocsin\"\n"),
        (
            "etc/systemd/system/tocsin.service.d/test.conf",
            "[Service]\nRestartSec=100ms\n",
        ),
    ]);
    machine.succeeds("systemctl start nats-server");
    assert_ne!(machine.run("systemctl start tocsin").0, 0);
    // More often than a start limit would allow.
    machine.until("NRestarts", "6");
    let log = machine.log();
    let is_said = log.contains("nats.usr") && log.contains("status=2/INVALIDARGUMENT");
    assert!(is_said, "{log}");
    machine.write("etc/tocsin/tocsin.toml", "");
    machine.until("ActiveState", "active");
    let known = machine.says("tocsin change ann disk CRITICAL --timeout 30s");
    assert!(known.starts_with("disk CRITICAL of ann"), "{known}");
}
