//! The static program as an image runs it: an empty root that cannot be written, nobody, and a name to resolve.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::nats::Nats;
use crate::support::traffic::{change, publish_taken, request};

const NOBODY: u32 = 65534;
/// Makes the root read-only but for the store, and becomes nobody in it: sh -c … sh ROOT COMMAND...
const CONTAIN: &str = r#"
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount --bind "$root/var/lib/tocsin" "$root/var/lib/tocsin"
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs -- chroot --userspec=65534:65534 --groups= "$@"
"#;
const WITHIN: Duration = Duration::from_mins(1);

fn program() -> PathBuf {
    let target = format!("target/{}-unknown-linux-musl", std::env::consts::ARCH);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = root.join(target).join("release/tocsin");
    assert!(
        program.exists(),
        "{} is missing; type `make static`",
        program.display()
    );
    program
}

#[test]
fn the_program_needs_no_library() {
    let output = Command::new("ldd").arg(program()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "{said}"
    );
}

/// A root with the program, what a container engine writes, and a folder for the store.
fn make_root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for folder in ["etc", "run", "usr/local/bin", "var/lib/tocsin"] {
        fs::create_dir_all(at(folder)).unwrap();
    }
    fs::copy(program(), at("usr/local/bin/tocsin")).unwrap();
    fs::write(at("etc/hosts"), "127.0.0.1 localhost\n127.0.0.1 nats\n").unwrap();
    fs::write(at("etc/resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(at("var/lib/tocsin"), fs::Permissions::from_mode(0o700)).unwrap();
    chown(at("var/lib/tocsin"), Some(NOBODY), Some(NOBODY)).unwrap();
    root
}

/// The daemon in its root; killed with the guard.
struct Contained {
    root: TempDir,
    child: Child,
    notices: UnixDatagram,
}

impl Contained {
    fn start(port: u16) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "a root of its own needs root; run the tests as root"
        );
        let root = make_root();
        let notices = UnixDatagram::bind(root.path().join("run/notify")).unwrap();
        notices.set_read_timeout(Some(WITHIN)).unwrap();
        let everybody = fs::Permissions::from_mode(0o777);
        fs::set_permissions(root.path().join("run/notify"), everybody).unwrap();
        let log = File::create(root.path().join("run/log")).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--", "sh", "-euc", CONTAIN, "sh"])
            .arg(root.path())
            .args(["/usr/local/bin/tocsin", "serve", "--set"])
            .arg(format!("nats.url=nats://nats:{port}"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("NOTIFY_SOCKET", "/run/notify")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            root,
            child,
            notices,
        }
    }

    fn until_told(&self, line: &str) {
        let mut buffer = [0; 4096];
        loop {
            let told = self.notices.recv(&mut buffer);
            let len = told.unwrap_or_else(|_| panic!("no {line}:\n{}", self.log()));
            if String::from_utf8_lossy(&buffer[..len]).contains(line) {
                return;
            }
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.root.path().join("run/log")).unwrap()
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_empty_read_only_root_as_nobody_it_does_its_work_and_drains() {
    let nats = Nats::start().await;
    let mut daemon = Contained::start(nats.port());
    daemon.until_told("READY=1");
    let status = daemon.proc("status");
    assert!(
        status.contains("\nUid:\t65534\t65534\t65534\t65534\n"),
        "{status}"
    );
    assert!(status.contains("\nCapEff:\t0000000000000000\n"), "{status}");
    let mounts = daemon.proc("mountinfo");
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"));
    let options = root.unwrap().split(' ').nth(5).unwrap();
    assert!(options.split(',').any(|option| option == "ro"), "{mounts}");

    let client = nats.connect().await.client().clone();
    let mut digests = client.subscribe("AlarmDigest").await.expect("subscribed");
    publish_taken(
        &client,
        "AlarmStatusChanged",
        change("ann", "disk", "CRITICAL", 1),
    )
    .await;
    publish_taken(&client, "SendAlarmDigest", request("ann")).await;
    let digest = timeout(WITHIN, digests.next()).await;
    let digest = digest.expect("in time").expect("a digest");
    assert_eq!(
        digest.payload,
        "{\"UserID\":\"ann\",\"ActiveAlarms\":[{\"AlarmID\":\"disk\",\"Status\":\"CRITICAL\",\"LatestChangedAt\":\"2026-01-01T00:00:01Z\"}]}"
    );

    daemon.signal(Signal::TERM);
    daemon.until_told("STOPPING=1");
    assert!(daemon.child.wait().unwrap().success(), "{}", daemon.log());
    assert!(daemon.log().contains("\"drained: "), "{}", daemon.log());
}
