//! The command line: what is printed where, and how the program ends.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Lines};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tocsin::bus::server::find_program;

use crate::support::nats::Nats;

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

pub(crate) fn run(arguments: &[&str]) -> (i32, String, String) {
    ended(&tocsin(arguments).output().unwrap())
}

pub(crate) fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn what_is_printed_is_a_configuration_that_gives_the_same_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("printed.toml");
    let sets = [
        "--set",
        "nats.url=nats://a:4222,nats://b:4222",
        "--set",
        "alarms.max_future=90m",
    ];
    let arguments = [&["config", "print"][..], &sets].concat();
    let (status, first, err) = run(&arguments);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        first.contains("nats.url = \"nats://a:4222,nats://b:4222\""),
        "{first}"
    );
    let line = first
        .lines()
        .find(|line| line.starts_with("alarms.max_future"))
        .unwrap();
    assert!(
        line.starts_with("alarms.max_future = \"90m\"") && line.ends_with("  # --set"),
        "{line}"
    );

    fs::write(&path, &first).unwrap();
    let (status, second, _) = run(&["config", "print", "--config", path.to_str().unwrap()]);
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| line.split("  #").next().unwrap().trim_end().to_owned())
            .collect()
    };
    assert_eq!((status, values(&second)), (0, values(&first)));
    assert!(
        second.lines().all(|line| line.contains("printed.toml:")),
        "{second}"
    );
}

#[test]
fn print_never_shows_a_secret() {
    let sets = ["--set", "nats.user=u", "--set", "nats.password=hunter2"];
    for format in ["text", "json"] {
        let (status, out, err) = run(&[&["config", "print", "-o", format][..], &sets].concat());
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(
            out.contains("[redacted]") && !out.contains("hunter2"),
            "{out}"
        );
    }
}

#[test]
fn the_same_settings_in_three_formats_are_printed_alike() {
    let folder = tempfile::tempdir().unwrap();
    let printed = |name: &str, text: &str| -> Vec<(String, serde_json::Value)> {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let (status, out, err) = run(&[
            "config",
            "print",
            "-o",
            "json",
            "--config",
            path.to_str().unwrap(),
        ]);
        assert_eq!((status, err.as_str()), (0, ""), "{name}");
        let settings: Vec<serde_json::Value> = serde_json::from_str(&out).unwrap();
        let value = |it: &serde_json::Value| (it["Key"].to_string(), it["Value"].clone());
        settings.iter().map(value).collect()
    };
    let toml = printed(
        "a.toml",
        "[nats]\nname = \"a\"\n[producers]\nowed.rows = 5\nowed.bytes = \"1MiB\"\n[shutdown]\ntimeout = \"90s\"\n",
    );
    let yaml = printed(
        "a.yaml",
        "nats:\n  name: a\nproducers:\n  owed: {rows: 5, bytes: 1MiB}\nshutdown:\n  timeout: 90s\n",
    );
    let json = printed(
        "a.json",
        r#"{"nats": {"name": "a"}, "producers": {"owed": {"rows": 5, "bytes": "1MiB"}}, "shutdown": {"timeout": "90s"}}"#,
    );
    assert!(toml.contains(&("\"producers.owed.rows\"".to_owned(), 5.into())));
    assert_eq!((&toml, &toml), (&yaml, &json));
}

#[test]
fn json_has_every_key_its_value_and_its_origin() {
    let output = tocsin(&["config", "print", "-o", "json"])
        .env("TOCSIN__INPUT__IN_FLIGHT", "7")
        .output()
        .unwrap();
    let (status, out, _) = ended(&output);
    assert_eq!(status, 0);
    let settings: serde_json::Value = serde_json::from_str(&out).unwrap();
    let settings = settings.as_array().unwrap();
    let find = |key: &str| {
        settings
            .iter()
            .find(|setting| setting["Key"] == key)
            .unwrap()
    };
    assert_eq!(find("input.in_flight")["Value"], 7);
    assert_eq!(
        find("input.in_flight")["Origin"],
        "environment variable TOCSIN__INPUT__IN_FLIGHT"
    );
    assert!(find("nats.user")["Value"].is_null());
}

#[test]
fn check_says_whether_the_configuration_is_valid() {
    let valid = run(&["config", "check", "--set", "input.listeners=2"]);
    let told = "the configuration is valid: no file; keys that differ from the default: 1\n";
    assert_eq!(valid, (0, told.to_owned(), String::new()));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my.yaml");
    let file = path.to_str().unwrap();
    fs::write(&path, "nats:\n  name: a\n  user: u\n  password: p\n").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let told = format!(
        "the configuration is valid: file {file} (named by an argument); keys that differ from the default: 3\n"
    );
    let warned = format!(
        "tocsin: warning: nats.password is a secret in {file}, which everybody may read; chmod 640 it, or use nats.password_file\n"
    );
    assert_eq!(run(&["config", "check", file]), (0, told.clone(), warned));
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let named = run(&["config", "check", "--config", file]);
    assert_eq!(named, (0, told, String::new()));
    let (status, out, _) = run(&["config", "check", file, "-o", "json"]);
    let verdict: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, verdict["File"].as_str()), (0, Some(file)));
    fs::write(&path, "nats:\n  nam: a\n").unwrap();
    let (status, out, err) = run(&["config", "check", file]);
    let line = format!("tocsin: unknown key nats.nam ({file}:2); the nearest one is nats.name\n");
    assert_eq!((status, out, err), (2, String::new(), line));

    let line = "input.listeners is \"none\" (--set); must be a whole number from 1 to 64";
    let invalid = run(&["config", "check", "--set", "input.listeners=none"]);
    assert_eq!(invalid, (2, String::new(), format!("tocsin: {line}\n")));

    let (status, out, err) = run(&[
        "config",
        "check",
        "-o",
        "json",
        "--set",
        "input.listeners=none",
    ]);
    assert_eq!((status, err), (2, format!("tocsin: {line}\n")));
    let verdict: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(verdict, serde_json::json!({"Valid": false, "Error": line}));
}

#[test]
fn output_that_cannot_be_written_ends_with_74_and_a_reader_that_left_with_0() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = tocsin(&["config", "print"]).stdout(full).output().unwrap();
    let (status, _, err) = ended(&output);
    assert_eq!(status, 74);
    assert!(
        err.starts_with("tocsin: failed to write to standard output: "),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1);

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = tocsin(&["config", "print"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(ended(&output).0, 0);
}

/// A folder of its own, and the program that runs in it; killed with the guard.
struct Up {
    folder: TempDir,
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Up {
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), arguments)
    }

    fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        let mut command = in_folder(&folder, &["up", "--set", "log.file=log"]);
        let mut child = command
            .args(arguments)
            .stdout(Stdio::piped())
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
    fn announcement(&mut self) -> Vec<String> {
        let lines: Vec<_> = (&mut self.lines).take(6).map(Result::unwrap).collect();
        assert_eq!(lines.len(), 6, "{lines:?}\n{}", self.read("log"));
        lines
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.path().join(file)).unwrap_or_default()
    }

    fn url(&self) -> String {
        self.read("tocsin-data/url")
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        ended(&in_folder(&self.folder, arguments).output().unwrap())
    }

    /// The process id of its nats-server.
    fn server(&self) -> Pid {
        let children = format!("/proc/{0}/task", self.child.id());
        let tasks = fs::read_dir(children).unwrap();
        let mut children = tasks.filter_map(|task| {
            let children = fs::read_to_string(task.unwrap().path().join("children")).unwrap();
            children.split_whitespace().next()?.parse().ok()
        });
        Pid::from_raw(children.next().expect("a nats-server")).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
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
fn in_folder(folder: &TempDir, arguments: &[&str]) -> Command {
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
fn within<T>(what: &str, mut see: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        if let Some(seen) = see() {
            return seen;
        }
        assert!(Instant::now() < deadline, "not within 60 s: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn wait_until_gone(pid: Pid) {
    within("the end of nats-server", || {
        // A dead one that nobody waited for yet is a zombie.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.map_or(true, |stat| stat.contains(") Z "))
            .then_some(())
    });
}

#[test]
fn up_in_an_empty_folder_says_what_to_try_and_what_it_says_works() {
    let mut up = Up::start(&[]);
    let lines = up.announcement();
    let url = up.url();
    assert_eq!(
        lines[0],
        format!("tocsin is up on {url}, data in ./tocsin-data")
    );
    assert!(lines[1].starts_with("promise: every change"), "{lines:?}");
    let tried: Vec<Vec<&str>> = lines[3..]
        .iter()
        .map(|line| {
            let program = env!("CARGO_BIN_EXE_tocsin");
            let arguments = line.trim().strip_prefix(program).expect("this program");
            arguments.trim().split(' ').collect()
        })
        .collect();
    assert_eq!(tried.len(), 3);
    let (status, out, err) = up.run(&tried[0]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(out.starts_with("disk CRITICAL of ann since "), "{out}");
    let (status, out, err) = up.run(&tried[1]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.starts_with("1 alarm for ann\n  CRITICAL disk since "),
        "{out}"
    );
    let (status, _, err) = up.run(&tried[2]);
    assert_eq!((status, err.as_str()), (0, ""));

    let change = ["change", "ann", "net", "WARNING", "--at"];
    let at = [&change[..], &["2026-01-01T00:00:00Z", "-o", "json"]].concat();
    let (status, out, _) = up.run(&at);
    let printed: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (status, printed["message"]["Status"].as_str()),
        (0, Some("WARNING"))
    );
    let digest = "{\"UserID\":\"ann\",\"ActiveAlarms\":[{\"AlarmID\":\"net\",\"Status\":\"WARNING\",\"LatestChangedAt\":\"2026-01-01T00:00:00Z\"}]}\n";
    let asked = ["digest", "ann", "-o", "json", "--timeout", "5s"];
    assert_eq!(up.run(&asked), (0, digest.to_owned(), String::new()));
    let again = ["digest", "ann", "--timeout", "1s"];
    let nothing = "no digest for ann within 1s: nothing is new, or no daemon is running\n";
    assert_eq!(up.run(&again), (0, nothing.to_owned(), String::new()));

    let server = up.server();
    up.signal(Signal::TERM);
    assert!(up.wait().success());
    wait_until_gone(server);
    assert_eq!(up.url(), "", "the file with the URL is still there");
    let log = up.read("tocsin-data/nats/nats-server.log");
    assert!(
        log.contains("Server Exiting"),
        "not stopped gracefully: {log}"
    );
}

#[test]
fn up_takes_the_next_free_port_where_4222_is_taken() {
    // Whoever else has it is as good.
    let _taken = TcpListener::bind(("127.0.0.1", 4222));
    let mut up = Up::start(&[]);
    up.announcement();
    let url = up.url();
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    assert!(port > 4222, "{url}");
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
}

#[test]
fn a_killed_up_takes_its_nats_server_with_it_and_the_next_one_goes_on() {
    let mut up = Up::start(&[]);
    up.announcement();
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
    let server = up.server();
    up.signal(Signal::KILL);
    up.wait();
    wait_until_gone(server);
    let folder = std::mem::replace(&mut up.folder, tempfile::tempdir().unwrap());
    let mut up = Up::start_in(folder, &[]);
    up.announcement();
    let (status, out, _) = up.run(&["digest", "ann"]);
    assert_eq!(status, 0);
    assert!(out.contains("WARNING  disk"), "{out}");
}

#[test]
fn a_nats_server_that_is_killed_under_up_is_started_again() {
    let mut up = Up::start(&[]);
    up.announcement();
    let (server, url) = (up.server(), up.url());
    kill_process(server, Signal::KILL).unwrap();
    within("another nats-server", || {
        up.read("log").contains("it is started again").then_some(())
    });
    within("an answer", || {
        let change = up.run(&["change", "ann", "disk", "WARNING", "--timeout", "2s"]);
        (change.0 == 0).then_some(())
    });
    assert_eq!(up.url(), url);
    let (status, out, _) = up.run(&["digest", "ann", "--timeout", "30s"]);
    assert_eq!(status, 0);
    assert!(out.contains("WARNING  disk"), "{out}");
}

#[test]
fn a_second_up_in_the_same_folder_is_refused_and_leaves_the_first_alone() {
    let mut up = Up::start(&[]);
    up.announcement();
    let url = up.url();
    let (status, out, err) = up.run(&["up"]);
    let line = "tocsin: data folder ./tocsin-data is in use by another tocsin up; use that one, or name another folder (--data)\n";
    assert_eq!((status, out, err), (2, String::new(), line.to_owned()));
    assert_eq!(up.url(), url);
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn up_with_a_server_that_is_named_starts_none() {
    let nats = Nats::start().await;
    let set = format!("nats.url={}", nats.url());
    let mut up = Up::start(&["--set", &set]);
    let lines = up.announcement();
    assert!(lines[0].contains(&nats.url()), "{lines:?}");
    assert!(!up.folder.path().join("tocsin-data/nats").exists());
    assert_eq!(up.url(), nats.url());
    assert_eq!(up.run(&["change", "ann", "disk", "WARNING"]).0, 0);
    up.signal(Signal::TERM);
    assert!(up.wait().success());
    nats.connect().await;
}

#[test]
fn a_broker_that_cannot_be_reached_ends_a_client_command_with_3_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let set = format!("nats.url=nats://{}", free.local_addr().unwrap());
    // One that takes connections and says nothing, and one that refuses them.
    for free in [Some(free), None] {
        for command in [
            &["change", "ann", "disk", "WARNING"][..],
            &["digest", "ann"],
        ] {
            let arguments = [command, &["--timeout", "1s", "--set", &set]].concat();
            let began = Instant::now();
            let output = in_folder(&folder, &arguments).output().unwrap();
            let (status, out, err) = ended(&output);
            assert_eq!((status, out.as_str()), (3, ""), "{err}");
            assert_eq!(err.lines().count(), 1, "{err}");
            assert!(began.elapsed() < Duration::from_secs(4), "{err}");
        }
        drop(free);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_nobody_takes_ends_with_3_and_says_what_to_do() {
    let nats = Nats::start().await;
    let set = format!("nats.url={}", nats.url());
    let (status, out, err) = run(&["change", "ann", "disk", "WARNING", "--set", &set]);
    assert_eq!((status, out.as_str()), (3, ""));
    assert!(err.contains("start the daemon (tocsin up)"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_change_of_the_wrong_form_is_one_line_and_ends_with_2() {
    for (arguments, what) in [
        (&["change", "ann", "disk", "BROKEN"][..], "BROKEN"),
        (&["change", "", "disk", "WARNING"], "1 to 256 bytes"),
        (&["change", "ann", "disk", "WARNING", "--at", "now"], "now"),
        (&["digest", "ann", "--timeout", "5"], "a duration"),
        (&["digest"], "<USER>"),
        (&["digest", "ann", "--set", "nats.ulr=x"], "nats.url"),
    ] {
        let (status, out, err) = run(arguments);
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(what), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}
