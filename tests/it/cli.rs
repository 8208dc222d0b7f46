//! The command line: what is printed where, and how the program ends.

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use rustix::process::{Signal, kill_process};

use crate::support::daemon::Setup;
use crate::support::nats::Nats;
use crate::support::program::{
    Up, ended, in_folder, on_terminal, run, tocsin, wait_until_gone, within,
};
use crate::support::traffic::{change, publish_taken, request};

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
        out.starts_with("1 alarm for ann\n  CRITICAL  disk  "),
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
    let nothing = "nothing is new for ann\n".to_owned();
    let began = Instant::now();
    assert_eq!(up.run(&["digest", "ann"]), (0, nothing, String::new()));
    assert!(began.elapsed() < Duration::from_secs(4), "{began:?}");
    let empty = "{\"UserID\":\"ann\",\"ActiveAlarms\":[]}\n".to_owned();
    assert_eq!(up.run(&asked), (0, empty, String::new()));

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
    assert!(out.contains("WARNING   disk"), "{out}");
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
    assert!(out.contains("WARNING   disk"), "{out}");
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
            &["tail"],
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
        (&["tail", "--since", "yesterday"], "must be a time such as"),
        (
            &["tail", "--since", "1h", "--last", "1"],
            "cannot be used with",
        ),
        (&["tail", "--last", "0"], "0 is not in 1..=1000000"),
        (&["tail", "--last", "many"], "invalid digit"),
        (&["tail", "--count", "0"], "--count"),
        (&["tail", "--user", ""], "1 to 256 bytes"),
        (&["tail", "-o", "yaml"], "[possible values: text, json]"),
        (&["tail", "ann"], "unexpected argument 'ann'"),
        (&["up", "--demo=yes"], "unexpected value 'yes'"),
    ] {
        let (status, out, err) = run(arguments);
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(what), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn up_and_the_client_commands_meet_in_the_folder_that_is_named() {
    let mut up = Up::start(&["--data", "elsewhere"]);
    let lines = up.announcement();
    assert!(lines[0].ends_with(", data in elsewhere"), "{lines:?}");
    assert!(
        lines[3].ends_with(" change ann disk CRITICAL --data elsewhere"),
        "{lines:?}"
    );
    assert!(
        lines[4].ends_with(" digest ann --data elsewhere"),
        "{lines:?}"
    );
    let elsewhere = ["--data", "elsewhere"];
    let (status, out, err) =
        up.run(&[&["change", "ann", "disk", "WARNING"][..], &elsewhere].concat());
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let (status, out, _) = up.run(&[&["digest", "ann"][..], &elsewhere].concat());
    assert_eq!(status, 0);
    assert!(
        out.starts_with("1 alarm for ann\n  WARNING   disk"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_daemon_reads_ends_with_3_and_is_answered_by_the_next() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    publish_taken(
        &client,
        "AlarmStatusChanged",
        change("ann", "disk", "CRITICAL", 1),
    )
    .await;
    assert!(daemon.stop().success());
    let began = Instant::now();
    let (status, out, err) = run(&["digest", "ann", "-o", "json", "--url", &nats.url()]);
    assert_eq!((status, out.as_str()), (3, ""));
    let line = "tocsin: no daemon is running; the request is kept in stream TOCSIN_IN and answered when one starts (tocsin up)\n";
    assert_eq!(err, line);
    assert!(began.elapsed() < Duration::from_secs(4), "{began:?}");
    let _daemon = setup.start_ready();
    crate::support::judge::judge(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stands_still_is_told_from_nothing_new() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    daemon.freeze();
    let kept = "; the request is kept in stream TOCSIN_IN and answered when";
    let url = nats.url();
    for (limit, what) in [
        ("1s", "has not come to the request in time"),
        ("7s", "ended or stands still"),
    ] {
        let (status, out, err) = run(&["digest", "ann", "--timeout", limit, "--url", &url]);
        assert_eq!((status, out.as_str()), (3, ""), "{err}");
        assert!(
            err.contains(&format!("tocsin: the daemon (process {} on ", daemon.pid())),
            "{err}"
        );
        assert!(err.contains(what) && err.contains(kept), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    daemon.thaw();
    let (status, out, err) = run(&["digest", "ann", "--timeout", "30s", "--url", &url]);
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "nothing is new for ann\n", "")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn on_core_nats_the_daemon_answers_whether_anything_is_new() {
    let nats = Nats::start_with(false, "").await;
    let url = nats.url();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    let (status, _, err) = run(&["change", "ann", "disk", "CRITICAL", "--url", &url]);
    assert_eq!((status, err.as_str()), (0, ""));
    let (status, out, err) = run(&["digest", "ann", "--url", &url]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        out.starts_with("1 alarm for ann\n  CRITICAL  disk"),
        "{out}"
    );
    let began = Instant::now();
    let (status, out, err) = run(&["digest", "ann", "--url", &url]);
    assert_eq!(
        (status, out.as_str(), err.as_str()),
        (0, "nothing is new for ann\n", "")
    );
    assert!(began.elapsed() < Duration::from_secs(4), "{began:?}");
    daemon.freeze();
    let (status, out, err) = run(&["digest", "ann", "--timeout", "1s", "--url", &url]);
    let line = "tocsin: no answer on SendAlarmDigest within 1s; is the daemon running?\n";
    assert_eq!((status, out.as_str(), err.as_str()), (3, "", line));
    daemon.thaw();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_asked_for_goes_to_an_inbox_and_nowhere_else() {
    let nats = Nats::start().await;
    let connection = nats.connect().await;
    let client = connection.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let mut elsewhere = client.subscribe("elsewhere").await.unwrap();
    let publish = async |to: &str, payload: &str| {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Tocsin-Reply-To", to);
        let payload = payload.to_owned().into();
        let published = client.publish_with_headers("SendAlarmDigest", headers, payload);
        published.await.unwrap();
    };
    let long = format!("_INBOX.{}", "x".repeat(5000));
    for to in ["elsewhere", "_INBOX.a b", "_INBOX.>", &long] {
        publish(to, &request("ann")).await;
    }
    publish(&inbox, "junk").await;
    publish(&inbox, &request("ann")).await;
    let mut told = Vec::new();
    while told.len() < 2 {
        let answer = tokio::time::timeout(Duration::from_secs(30), answers.next()).await;
        told.push(String::from_utf8(answer.unwrap().unwrap().payload.to_vec()).unwrap());
    }
    // The two may be in different partitions.
    told.sort();
    assert_eq!(
        told,
        ["{\"ok\":false,\"reason\":\"bad_json\"}", "{\"ok\":true}"]
    );
    assert!(elsewhere.next().now_or_never().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_and_no_color_is_respected() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let (url, red) = (nats.url(), "\u{1b}[31mCRITICAL");
    let alarm = "an \u{1b}[2Jalarm";
    let change = ["change", "ann", alarm, "CRITICAL", "--url", &url];
    let digest = ["digest", "ann", "--url", &url];
    let tail = ["tail", "--last", "1", "--count", "1", "--url", &url];
    for arguments in [&change[..], &digest, &tail, &["--help"]] {
        let begin = if arguments == ["--help"] {
            "\u{1b}[1mUsage:"
        } else {
            red
        };
        // A digest is asked for three times: each needs something new.
        let renew = async || {
            if arguments[0] == "digest" {
                let (status, _, err) = run(&["change", "ann", alarm, "CLEARED", "--url", &url]);
                assert_eq!((status, err.as_str()), (0, ""));
                let (status, _, err) = run(&change);
                assert_eq!((status, err.as_str()), (0, ""));
            }
        };
        renew().await;
        let (status, out, _) = ended(&on_terminal(&tocsin(arguments)).output().unwrap());
        assert_eq!(status, 0, "{out}");
        assert!(out.contains(begin), "{arguments:?}: {out:?}");
        assert!(
            !out.contains("[2J") || out.contains("\\u{1b}[2J"),
            "{out:?}"
        );
        for mut plain in [tocsin(arguments), on_terminal(&tocsin(arguments))] {
            renew().await;
            let (status, out, _) = ended(&plain.env("NO_COLOR", "1").output().unwrap());
            assert_eq!(status, 0, "{out}");
            assert!(!out.contains('\u{1b}'), "{arguments:?}: {out:?}");
            assert!(
                out.contains("CRITICAL") || out.contains("Usage:"),
                "{out:?}"
            );
        }
        renew().await;
        let (_, out, _) = ended(&tocsin(arguments).env_remove("NO_COLOR").output().unwrap());
        assert!(!out.contains('\u{1b}'), "{arguments:?}: {out:?}");
    }
    drop(client);
}

#[test]
fn on_a_terminal_up_logs_only_what_is_wrong_unless_a_filter_is_named() {
    for (sets, is_logged) in [(&[][..], false), (&["--set", "log.filter=info"], true)] {
        let folder = tempfile::tempdir().unwrap();
        let mut up = crate::support::program::Printing::start(on_terminal(&in_folder(
            &folder,
            &[&["up"][..], sets].concat(),
        )));
        let mut lines = Vec::new();
        while lines
            .last()
            .is_none_or(|line: &String| !line.contains("config print"))
        {
            lines.extend(up.lines(1));
        }
        let text = lines.join("\n");
        assert_eq!(text.contains("INFO"), is_logged, "{text}");
        assert!(text.contains("tocsin is up on"), "{text}");
    }
}
