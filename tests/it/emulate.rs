//! `tocsin emulate` against the real daemon, and against services that each do one thing wrong.

use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use async_nats::{Client, jetstream};
use futures::StreamExt;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tocsin::check::messages::{Entry, Instant, Status, digest};
use tocsin::check::oracle::Oracle;
use tokio::process::{Child, Command};
use tokio_util::task::AbortOnDropHandle;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::nats::Nats;

fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOCSIN") {
            command.env_remove(name);
        }
    }
    command
        .args(["emulate", "--url", url])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Its exit status, its standard output and its standard error.
async fn run(url: &str, arguments: &[&str]) -> (i32, String, String) {
    ended(&command(url, arguments).output().await.unwrap())
}

fn ended(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let status = output.status.code().expect("no signal ended it");
    (status, text(&output.stdout), text(&output.stderr))
}

/// The summary of a run that must end so.
async fn summary(url: &str, wanted: i32, arguments: &[&str]) -> Value {
    let arguments = [arguments, &["-o", "json"]].concat();
    let (status, out, err) = run(url, &arguments).await;
    assert_eq!(status, wanted, "{out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
}

fn number(summary: &Value, group: &str, name: &str) -> u64 {
    let number = summary[group][name].as_u64();
    number.unwrap_or_else(|| panic!("no {group}.{name} in {summary}"))
}

/// What must hold of every checked run that ends well.
fn assert_right(summary: &Value, count: u64) {
    assert_eq!(summary["verdict"], "right", "{summary}");
    let published = |name| number(summary, "published", name);
    let kinds = ["changes", "duplicates", "requests", "junk"];
    assert_eq!(published("total"), count, "{summary}");
    assert_eq!(kinds.map(published).iter().sum::<u64>(), count, "{summary}");
    assert_eq!(number(summary, "received", "owed"), 0, "{summary}");
    assert!(number(summary, "received", "digests") > 0, "{summary}");
    assert!(number(summary, "absorbed", "stale") > 0, "{summary}");
    assert!(summary["latency"]["p50"].as_f64() > Some(0.0), "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_digest_of_the_daemon_is_right_at_any_pace_on_both_kinds_of_input() {
    for has_jetstream in [true, false] {
        let nats = Nats::start_with(has_jetstream, "").await;
        let setup = Setup::new(&nats);
        let daemon = setup.start_ready();
        let few = ["--check", "--users", "40", "--timeout", "30s"];
        let paced = [
            &few[..],
            &["--rate", "1k", "--burst", "200", "--burst-every", "1s"],
        ]
        .concat();
        let paced = [&paced[..], &["--duration", "2s"]].concat();
        let paced = summary(&nats.url(), 0, &paced).await;
        // A thousand a second, and the burst after the first second.
        assert_right(&paced, 2200);
        assert_eq!(
            paced["input"],
            if has_jetstream { "jetstream" } else { "core" }
        );
        // A schedule can be late, never early.
        let (rate, asked) = (&paced["rate"], &paced["asked_rate"]);
        assert_eq!(asked.as_f64(), Some(1200.0));
        assert!(rate.as_f64() > Some(0.0), "{paced}");
        let fast = [
            "--rate",
            "max",
            "--count",
            "20k",
            "--digest-every",
            "8",
            "--twins",
            "30%",
        ];
        let fast = summary(&nats.url(), 0, &[&few[..], &fast].concat()).await;
        assert_right(&fast, 20_000);
        assert!(number(&fast, "published", "numbered") > 4000, "{fast}");
        if has_jetstream {
            for run in [&paced, &fast] {
                let answered = number(run, "received", "digests");
                let empty = number(run, "absorbed", "empty");
                assert_eq!(
                    answered + empty,
                    number(run, "published", "requests"),
                    "{run}"
                );
            }
        }
        assert!(daemon.stop().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_the_middle_of_a_run_on_jetstream_owes_nothing_at_its_end() {
    let nats = Nats::start().await;
    let connection = nats.connect().await;
    let setup = Setup::new(&nats);
    let mut daemon = setup.start_ready();
    let arguments = [
        "--check",
        "--users",
        "100",
        "--rate",
        "1k",
        "--duration",
        "6s",
    ];
    let arguments = [&arguments[..], &["--timeout", "60s", "-o", "json"]].concat();
    let emulate = command(&nats.url(), &arguments).spawn().unwrap();
    for round in 1..=2 {
        eventually("digests", async || {
            let stream = jetstream::new(connection.client().clone());
            let stream = stream.get_stream("TOCSIN_OUT").await.unwrap();
            stream.cached_info().state.messages >= 60 * round
        })
        .await;
        daemon.kill();
        daemon = setup.start_ready();
    }
    let (status, out, err) = ended(&emulate.wait_with_output().await.unwrap());
    assert_eq!(status, 0, "{out}{err}");
    assert_right(&serde_json::from_str(&out).unwrap(), 6000);
    drop(daemon);
}

/// Everything on the input subjects, as it comes.
async fn captured(client: &Client) -> (Arc<Mutex<Vec<(String, Vec<u8>)>>>, AbortOnDropHandle<()>) {
    let mut all = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let seeing = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        while let Some(message) = all.next().await {
            if message.subject.contains("Alarm") {
                let seen = (message.subject.to_string(), message.payload.to_vec());
                seeing.lock().unwrap().push(seen);
            }
        }
    });
    (seen, AbortOnDropHandle::new(task))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_and_a_start_give_the_same_messages_again() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let (seen, _task) = captured(connection.client()).await;
    let recipe = [
        "--seed",
        "7",
        "--start",
        "2026-01-01T00:00:00Z",
        "--rate",
        "max",
    ];
    let mut runs = Vec::new();
    for seed in ["7", "7", "8"] {
        let mut arguments = [&recipe[..], &["--count", "3k", "--junk", "2%"]].concat();
        arguments[1] = seed;
        let summary = summary(&nats.url(), 0, &arguments).await;
        assert_eq!(summary["verdict"], "unchecked");
        eventually("3,000 messages", async || {
            seen.lock().unwrap().len() >= 3000
        })
        .await;
        runs.push(std::mem::take(&mut *seen.lock().unwrap()));
    }
    assert_eq!(runs[0].len(), 3000);
    assert!(runs[0] == runs[1], "the same seed gave other messages");
    assert!(runs[0] != runs[2], "another seed gave the same messages");
}

/// What a service does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Nothing,
    LosesAnAlarm,
    AnswersTwice,
    Disorders,
    AnswersForAnother,
    NeverAnswers,
}

/// A service of the test's own, right but for one fault at its 20th digest of several alarms.
struct Toy {
    /// The user whose digest was wrong, and how it had to be.
    spoilt: Arc<Mutex<Option<(String, Value)>>>,
    _task: AbortOnDropHandle<()>,
}

impl Toy {
    async fn start(client: Client, fault: Fault) -> Self {
        // One subscription: everything comes in the order in which it was published.
        let mut input = client.subscribe(">").await.unwrap();
        client.flush().await.unwrap();
        let spoilt = Arc::new(Mutex::new(None));
        let spoiling = Arc::clone(&spoilt);
        let task = tokio::spawn(async move {
            let mut oracle: Oracle<String, String> = Oracle::new();
            let mut num_large = 0;
            while let Some(message) = input.next().await {
                let Ok(json) = serde_json::from_slice::<Value>(&message.payload) else {
                    continue;
                };
                if message.subject.starts_with("AlarmStatusChanged") {
                    apply(&mut oracle, &json);
                } else if message.subject.starts_with("SendAlarmDigest") {
                    let Some(user) = json["UserID"].as_str() else {
                        continue;
                    };
                    let due = oracle.request(&user.to_owned());
                    if due.is_empty() {
                        continue;
                    }
                    num_large += usize::from(due.len() > 1);
                    let is_spoilt = num_large == 20 && spoiling.lock().unwrap().is_none();
                    let right = digest(user, &due);
                    if is_spoilt && fault != Fault::Nothing {
                        let right = serde_json::from_str(&right).unwrap();
                        *spoiling.lock().unwrap() = Some((user.to_owned(), right));
                    }
                    let answers = answers(user, due, fault, is_spoilt);
                    for answer in answers {
                        client.publish("AlarmDigest", answer.into()).await.unwrap();
                    }
                }
            }
        });
        Self {
            spoilt,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

fn answers(user: &str, mut due: Vec<Entry<String>>, fault: Fault, is_spoilt: bool) -> Vec<String> {
    if !is_spoilt {
        return vec![digest(user, &due)];
    }
    match fault {
        Fault::Nothing => vec![digest(user, &due)],
        Fault::LosesAnAlarm => {
            due.pop();
            vec![digest(user, &due)]
        }
        Fault::AnswersTwice => vec![digest(user, &due); 2],
        Fault::Disorders => {
            due.reverse();
            vec![digest(user, &due)]
        }
        Fault::AnswersForAnother => {
            let (prefix, _) = user.rsplit_once('-').unwrap();
            let other = if user.ends_with("-00") { "01" } else { "00" };
            vec![digest(&format!("{prefix}-{other}"), &due)]
        }
        Fault::NeverAnswers => Vec::new(),
    }
}

fn apply(oracle: &mut Oracle<String, String>, json: &Value) -> Option<()> {
    let text = |name: &str| json.get(name)?.as_str().map(str::to_owned);
    let (user, alarm) = (text("UserID")?, text("AlarmID")?);
    let status = text("Status")?;
    let status = Status::ALL.into_iter().find(|it| it.as_str() == status)?;
    let at = Instant::parse(&text("ChangedAt")?)?;
    if !alarm.is_empty() {
        oracle.change(user, alarm, status, at);
    }
    Some(())
}

const OF_A_TOY: [&str; 10] = [
    "--check",
    "--users",
    "20",
    "--rate",
    "max",
    "--count",
    "4k",
    "--timeout",
    "2s",
    "--seed=7",
];

/// The summary of a checked run against a service with this fault, and what the service knows of it.
async fn judged(fault: Fault, wanted: i32) -> (Value, Option<(String, Value)>) {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let toy = Toy::start(connection.client().clone(), fault).await;
    let summary = summary(&nats.url(), wanted, &OF_A_TOY).await;
    let spoilt = toy.spoilt.lock().unwrap().clone();
    (summary, spoilt)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_a_fault_is_right_whoever_wrote_it() {
    let (summary, _) = judged(Fault::Nothing, 0).await;
    assert_right(&summary, 4000);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_of_a_service_is_named_with_its_user_and_what_was_due() {
    for (fault, what) in [
        (Fault::LosesAnAlarm, "the digest is not what was due"),
        (Fault::Disorders, "the digest is not what was due"),
        (Fault::NeverAnswers, "no digest came within 2s"),
    ] {
        let (summary, spoilt) = judged(fault, 1).await;
        let (user, right) = spoilt.expect("the service did it");
        let wrong = &summary["wrong"];
        assert_eq!(summary["verdict"], "wrong", "{fault:?}");
        assert_eq!(wrong["what"], what, "{fault:?}");
        assert_eq!(wrong["user"], user, "{fault:?}");
        assert_eq!(
            in_digest_words(&wrong["expected"]),
            right["ActiveAlarms"],
            "{fault:?}"
        );
        assert_ne!(
            in_digest_words(&wrong["found"]),
            right["ActiveAlarms"],
            "{fault:?}"
        );
        let messages = wrong["messages"].as_array().unwrap();
        let last = messages.last().unwrap();
        assert!(
            last["subject"]
                .as_str()
                .unwrap()
                .starts_with("SendAlarmDigest"),
            "{wrong}"
        );
        let of_user = |it: &Value| it["payload"].as_str().unwrap().contains(&user);
        assert!(
            messages.len() > 2 && messages.iter().all(of_user),
            "{wrong}"
        );
        let again = summary["again"].as_str().unwrap();
        assert!(
            again.starts_with("tocsin emulate --seed 7 --start "),
            "{again}"
        );
    }
}

/// Alarms of the summary as a digest has them.
fn in_digest_words(alarms: &Value) -> Value {
    let alarms = alarms.as_array().into_iter().flatten().map(|it| {
        serde_json::json!({
            "AlarmID": it["alarm"], "Status": it["status"], "LatestChangedAt": it["at"],
        })
    });
    alarms.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_nobody_asked_for_is_named_with_whoever_got_it() {
    let (summary, spoilt) = judged(Fault::AnswersTwice, 1).await;
    let (user, right) = spoilt.expect("the service did it");
    let wrong = &summary["wrong"];
    assert_eq!(wrong["user"], user);
    assert_eq!(in_digest_words(&wrong["found"]), right["ActiveAlarms"]);
    let (summary, spoilt) = judged(Fault::AnswersForAnother, 1).await;
    let (user, right) = spoilt.expect("the service did it");
    let wrong = &summary["wrong"];
    assert_ne!(wrong["user"], user, "{wrong}");
    assert_eq!(in_digest_words(&wrong["found"]), right["ActiveAlarms"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_is_readable() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let toy = Toy::start(connection.client().clone(), Fault::LosesAnAlarm).await;
    let (status, out, err) = run(&nats.url(), &OF_A_TOY).await;
    assert_eq!((status, err.as_str()), (1, ""), "{out}");
    let (user, _) = toy.spoilt.lock().unwrap().clone().unwrap();
    assert!(
        out.starts_with("wrong: see below\ninput      core NATS\n"),
        "{out}"
    );
    for line in [
        "wrong      the digest is not what was due".to_owned(),
        format!("user       {user}"),
        "asked      by message ".to_owned(),
        "expected   ".to_owned(),
        "found      ".to_owned(),
        "again      tocsin emulate --seed 7 --start ".to_owned(),
    ] {
        assert!(
            out.lines().any(|it| it.starts_with(&line)),
            "no {line:?} in\n{out}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checked_run_that_loses_its_broker_has_no_verdict_and_ends_with_1() {
    let mut nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let (seen, _task) = captured(connection.client()).await;
    let arguments = ["--check", "--rate", "500", "--duration", "1h", "-o", "json"];
    let emulate = command(&nats.url(), &arguments).spawn().unwrap();
    eventually("some messages", async || seen.lock().unwrap().len() > 20).await;
    nats.kill().await;
    let (status, out, err) = ended(&emulate.wait_with_output().await.unwrap());
    let summary: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!((status, &summary["verdict"]), (1, &Value::from("unknown")));
    let why = summary["why"].as_str().unwrap();
    assert!(why.starts_with("the connection was lost: "), "{why}");
}

fn interrupt(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.and_then(Pid::from_raw).expect("it still runs");
    kill_process(pid, Signal::INT).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_run_still_gives_its_summary() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let (seen, _task) = captured(connection.client()).await;
    let arguments = ["--rate", "200", "--duration", "1h", "-o", "json"];
    let emulate = command(&nats.url(), &arguments).spawn().unwrap();
    eventually("some messages", async || seen.lock().unwrap().len() > 50).await;
    interrupt(&emulate);
    let (status, out, err) = ended(&emulate.wait_with_output().await.unwrap());
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    let summary: Value = serde_json::from_str(&out).unwrap();
    let total = number(&summary, "published", "total");
    eventually("what it says", async || {
        seen.lock().unwrap().len() as u64 == total
    })
    .await;
    assert_eq!(summary["planned"], 720_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_means_nothing_ends_with_2_and_no_broker_with_3_each_in_one_line() {
    // Nothing listens on the port of a listener that is gone.
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("nats://{}", free.local_addr().unwrap());
    drop(free);
    for (arguments, status, what) in [
        (&["--rate", "fast"][..], 2, "10k"),
        (&["--users", "0"], 2, "from 1 on"),
        (&["--junk", "2"], 2, "from 0% to 100%"),
        (
            &["--rate", "max", "--burst", "5"],
            2,
            "give one with --rate",
        ),
        (
            &["--count", "5", "--duration", "5s"],
            2,
            "cannot be used with",
        ),
        (&["--set", "nats.ulr=x"], 2, "nats.url"),
        (&["--timeout", "500ms"], 3, "failed to reach NATS"),
    ] {
        let (found, out, err) = run(&url, arguments).await;
        assert_eq!((found, out.as_str()), (status, ""), "{err}");
        assert!(err.contains(what), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let (status, out, _) = run(&url, &["--help"]).await;
    assert_eq!(status, 0);
    assert!(
        out.contains("Examples:") && out.contains("70  a defect"),
        "{out}"
    );
}
