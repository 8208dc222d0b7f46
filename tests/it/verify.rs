//! The check from outside: it passes what is right, names what is wrong, and says what is only different.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::StreamExt;
use serde_json::Value;
use tocsin::check::verify::{Options, RULES, Report, Verdict, verify};

use crate::support::daemon::Setup;
use crate::support::nats::Nats;
use crate::support::toy::{Fault, Toy};

const WAITING: &str = "waiting to consume \"AlarmDigest\" messages\n";
const PASSED: &str = "Smoke test passed\n";

/// Runs `tocsin verify`: its exit status, standard output and standard error.
async fn run(nats: &Nats, arguments: &[&str]) -> (i32, String, String) {
    run_at(&nats.url(), arguments).await
}

async fn run_at(url: &str, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tocsin"));
    command
        .args(["verify", "--url", url])
        .args(arguments)
        .stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = running.await.expect("it runs").expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
    (
        output.status.code().expect("it ends by itself"),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The verdicts that it prints as JSON.
fn rules(report: &Value) -> Vec<(String, String)> {
    let rules = report["Rules"].as_array().expect("rules");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let verdict = |rule: &Value| (text(&rule["Name"]), text(&rule["Verdict"]));
    rules.iter().map(verdict).collect()
}

async fn our_daemon_passes(has_jetstream: bool) {
    let nats = Nats::start_with(has_jetstream, "").await;
    let setup = Setup::new(&nats).actors(2);
    let _daemon = setup.start_ready();
    for seed in 1..=20 {
        let smoke = run(&nats, &[]).await;
        assert_eq!(smoke, (0, format!("{WAITING}{PASSED}"), String::new()));
        let seed = seed.to_string();
        let full = ["--full", "--seed", &seed, "-o", "json", "--timeout", "30s"];
        let (status, out, err) = run(&nats, &full).await;
        assert_eq!((status, err.as_str()), (0, ""), "{out}");
        let report: Value = serde_json::from_str(&out).expect("JSON");
        let verdicts = rules(&report);
        assert_eq!(verdicts.len(), RULES.len());
        let others: Vec<_> = verdicts
            .iter()
            .filter(|(_, verdict)| verdict != "passed")
            .map(|(name, verdict)| format!("{name}: {verdict}"))
            .collect();
        let not_checked = [
            "refusals-are-counted: not checked",
            "crash-safety: not checked",
            "tombstone-retention: not checked",
            "split-digest: not checked",
        ];
        assert_eq!(others, not_checked);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_daemon_passes_twenty_times_on_jetstream() {
    our_daemon_passes(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn our_daemon_passes_twenty_times_on_core_nats() {
    our_daemon_passes(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_in_parts_is_joined() {
    let nats = Nats::start_with(false, "max_payload: 64KB").await;
    let setup = Setup::new(&nats);
    let _daemon = setup.start_ready();
    let (status, out, err) = run(&nats, &["--full", "--rule", "large-digest"]).await;
    assert_eq!((status, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("PASS") && out.contains("large-digest"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_has_another_daemon_beside_it_answers_twice_and_fails() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let _one = Toy::start(connection.client().clone(), Fault::None).await;
    let other = nats.connect().await;
    let _other = Toy::start(other.client().clone(), Fault::None).await;
    // All rules: one alone may be over before the slower of the two has answered.
    let (status, out, err) = run(&nats, &["--full"]).await;
    assert_eq!(status, 1, "{out}");
    assert!(err.contains("one-request-one-digest"), "{err}");
}

/// A toy on a server of its own, checked in this process.
async fn checked(fault: Fault) -> Report {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let _toy = Toy::start(connection.client().clone(), fault).await;
    let options = Options {
        seed: 1,
        timeout: Duration::from_secs(5),
        rules: RULES.iter().collect(),
    };
    let own = nats.connect().await;
    let report = verify(&own, &options, &mut |_| {}).await;
    report.unwrap_or_else(|error| panic!("{fault:?}: {error}"))
}

/// Each planted fault, and the rule that it breaks.
const PLANTED: [(Fault, &str); 46] = [
    (Fault::LastWins, "newest-wins"),
    (Fault::FirstWinsAtTie, "same-instant-new-status-wins"),
    (
        Fault::SeenForgotten,
        "same-instant-seen-status-is-duplicate",
    ),
    (Fault::TombstoneDropped, "tombstone"),
    (Fault::RepeatsReported, "reported-once"),
    (Fault::DueAgainAtNewerTime, "reported-once"),
    (Fault::RaisedAgainNotDue, "raised-again-is-due"),
    (Fault::OtherStatusNotDue, "other-status-is-due"),
    (Fault::StaleMakesUndue, "older-changes-nothing"),
    (Fault::LateNotDue, "late-alarm-is-due"),
    (Fault::CopyMakesDue, "copied-change-is-duplicate"),
    (Fault::UsersMixed, "users-are-apart"),
    (Fault::OrderOfArrival, "oldest-first"),
    (Fault::NoTieBreak, "ties-by-bytes"),
    (Fault::OrderOfUtf16, "ties-by-bytes"),
    (Fault::ClearedListed, "only-active-alarms"),
    (Fault::FirstTimeShown, "each-alarm-once"),
    (Fault::ListedTwice, "each-alarm-once"),
    (Fault::SentTwice, "one-request-one-digest"),
    (Fault::EmptySentTwice, "empty-digests"),
    (Fault::RequestOvertakes, "change-before-request"),
    (Fault::CopiedRequestDropped, "copied-request-is-second"),
    (Fault::LargeCutOff, "large-digest"),
    (Fault::WrongTimePrinted, "time-printed"),
    (Fault::TwinsIgnored, "numbered-subjects"),
    (Fault::Milliseconds, "nanoseconds"),
    (Fault::OffsetIgnored, "time-forms"),
    (Fault::UsersIgnoreCase, "case-sensitive-ids"),
    (Fault::AlarmsIgnoreCase, "case-sensitive-ids"),
    (Fault::UuidsInLowerCase, "case-sensitive-ids"),
    (Fault::IdsTrimmed, "opaque-ids"),
    (Fault::NamesInOneCase, "names-in-any-case"),
    (Fault::UnknownFieldsRefused, "unknown-fields-ignored"),
    (Fault::FirstOfRepeated, "repeated-field-takes-last"),
    (Fault::WhitespaceRefused, "any-json"),
    (Fault::DiesOfJunk, "refuses-bad-json"),
    (Fault::Utf8Mended, "refuses-bad-utf8"),
    (Fault::ListTaken, "refuses-other-than-objects"),
    (Fault::MissingInherited, "refuses-missing-fields"),
    (Fault::EmptyTaken, "refuses-empty-fields"),
    (Fault::NumbersTaken, "refuses-wrong-types"),
    (Fault::LongIdsCut, "refuses-long-ids"),
    (Fault::StatusTrimmed, "refuses-unknown-status"),
    (Fault::StatusInLowerCase, "refuses-lower-case-status"),
    (Fault::SpaceInTime, "refuses-other-times"),
    (Fault::Before1970Taken, "refuses-before-1970"),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_planted_fault_is_named() {
    let last = [
        (Fault::FutureTaken, "refuses-far-future"),
        (Fault::WrongSubjectInDeadLetter, "dead-letters"),
    ];
    let planted = PLANTED.into_iter().chain(last);
    let mut reports = futures::stream::iter(planted)
        .map(async |(fault, rule)| (fault, rule, checked(fault).await))
        .buffer_unordered(8);
    let mut broken = BTreeSet::new();
    let mut unnamed = Vec::new();
    while let Some((fault, rule, report)) = reports.next().await {
        let failed: Vec<_> = report.failed().map(|it| it.rule.name).collect();
        println!("{fault:?}: {}", failed.join(", "));
        if !failed.contains(&rule) {
            unnamed.push((fault, rule, failed.clone()));
        }
        broken.extend(failed);
        for rule in &report.rules {
            let is_failed = rule.verdict == Verdict::Failed;
            assert_eq!(is_failed, !rule.problems.is_empty(), "{fault:?}: {rule:?}");
        }
    }
    assert!(unnamed.is_empty(), "{unnamed:#?}");
    // No rule is a net that nothing was ever caught in.
    let never: Vec<_> = RULES
        .iter()
        .map(|rule| rule.name)
        .filter(|name| !broken.contains(name))
        .collect();
    let out_of_sight = [
        "refusals-are-counted",
        "crash-safety",
        "tombstone-retention",
        "split-digest",
    ];
    assert_eq!(never, out_of_sight);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_different_passes_and_is_said() {
    for (fault, different) in [
        (Fault::None, &[][..]),
        (Fault::Slow, &[]),
        (Fault::LikeGo, &["empty-digests", "exact-bytes"]),
        (Fault::SendsEmpty, &["empty-digests"]),
        (Fault::Spaces, &["exact-bytes"]),
        (Fault::OtherTimes, &["exact-bytes", "time-printed"]),
        (Fault::NoDeadLetters, &[]),
    ] {
        let nats = Nats::start_with(false, "").await;
        let connection = nats.connect().await;
        let _toy = Toy::start(connection.client().clone(), fault).await;
        let (status, out, err) = run(&nats, &["--full", "--seed", "7"]).await;
        assert_eq!((status, err.as_str()), (0, ""), "{fault:?}: {out}");
        assert!(out.starts_with(&format!("{WAITING}{PASSED}")), "{out}");
        let with = |word: &str| -> BTreeSet<String> {
            let lines = out
                .lines()
                .filter_map(|line| line.trim().strip_prefix(word));
            let name = |line: &str| {
                line.split(']')
                    .nth(1)?
                    .split_whitespace()
                    .next()
                    .map(str::to_owned)
            };
            lines.filter_map(name).collect()
        };
        let expected: BTreeSet<_> = different.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(with("DIFFERENT "), expected, "{fault:?}");
        let num_not_checked = if fault == Fault::NoDeadLetters { 5 } else { 4 };
        assert_eq!(with("NOT CHECKED ").len(), num_not_checked, "{out}");
        assert!(out.contains("(seed 7)"), "{out}");
        assert!(
            !out.contains('\u{1b}'),
            "colours where nobody sees them: {out}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_rule_is_told_with_its_messages_and_how_to_repeat_it() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let _toy = Toy::start(connection.client().clone(), Fault::TombstoneDropped).await;
    let arguments = [
        "--full",
        "--rule",
        "tombstone",
        "--rule",
        "examples",
        "--seed",
        "7",
    ];
    let (status, out, err) = run(&nats, &arguments).await;
    assert_eq!(status, 1, "{out}");
    assert_eq!(err, "tocsin: 2 rules are broken: examples, tombstone\n");
    for part in [
        "FAIL tombstone: CLEARED stays on record",
        "  aX2 aC1 S: \"a\" is in the digest and not due\n    > AlarmStatusChanged {\"AlarmID\":\"a\"",
        "    < AlarmDigest {\"UserID\":\"verify-7-",
        "  expected:\n    {\"UserID\":\"verify-7-",
        &format!(
            "  to repeat it: tocsin verify --full --seed 7 --rule tombstone --url {}\n",
            nats.url()
        ),
        "2 rules: 0 passed, 0 different, 2 failed, 0 not checked",
    ] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_history_that_goes_wrong_is_made_shorter() {
    let report = checked(Fault::SeenForgotten).await;
    let mut failed = report.failed();
    let random = failed.find(|it| it.rule.name == "random-history");
    let random = random.expect("random histories see it");
    let [problem] = random.problems.as_slice() else {
        panic!("one of them is shown: {random:?}");
    };
    assert!(problem.scenario.ends_with("made shorter"), "{problem:?}");
    // Three changes at one instant, a request, a sentinel, its request, and the digests.
    assert!(problem.messages.len() <= 12, "{problem:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_after_the_death_of_a_service_is_not_checked() {
    let report = checked(Fault::DiesOfJunk).await;
    let failed: Vec<_> = report.failed().map(|it| it.rule.name).collect();
    assert_eq!(failed, ["refuses-bad-json"]);
    let after = report
        .rules
        .iter()
        .skip_while(|it| it.rule.name != failed[0]);
    for rule in after.skip(1) {
        assert_eq!(rule.verdict, Verdict::NotChecked, "{rule:?}");
    }
    let utf8 = report
        .rules
        .iter()
        .find(|it| it.rule.name == "refuses-bad-utf8");
    let note = utf8.and_then(|it| it.note.as_deref()).unwrap_or_default();
    assert!(note.ends_with("any more since refuses-bad-json"), "{note}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_digest_fails_the_smoke_test_in_one_line() {
    let nats = Nats::start_with(false, "").await;
    let connection = nats.connect().await;
    let _toy = Toy::start(connection.client().clone(), Fault::LastWins).await;
    let (status, out, err) = run(&nats, &[]).await;
    assert_eq!((status, out.as_str()), (1, WAITING));
    assert_eq!(err.lines().count(), 1, "{err}");
    for part in [
        "tocsin: the smoke test failed: ",
        "; expected {\"UserID\":\"verify-",
        "< AlarmDigest {\"UserID\":\"verify-",
    ] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_service_it_fails_in_time_and_says_what_to_do() {
    let nats = Nats::start_with(false, "").await;
    for full in [&[][..], &["--full"]] {
        let arguments = [full, &["--timeout", "300ms"]].concat();
        let (status, out, err) = run(&nats, &arguments).await;
        assert_eq!((status, out.as_str()), (1, WAITING));
        let line = "tocsin: the smoke test failed: no digest came within 300ms; start the service, or wait longer (--timeout)";
        assert!(err.starts_with(line), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let json = ["--full", "-o", "json", "--timeout", "300ms"];
    let (status, out, _) = run(&nats, &json).await;
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((status, report["Verdict"].as_str()), (1, Some("failed")));
    assert_eq!(report["SmokeTest"]["Verdict"], "failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_leaves_or_does_not_let_us_ends_with_3() {
    let free = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let url = format!("nats://{}", free.local_addr().expect("a port"));
    drop(free);
    let (status, out, err) = run_at(&url, &["--timeout", "500ms"]).await;
    assert_eq!((status, out.as_str()), (3, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");

    let config = r#"authorization: { users: [
        { user: "a", password: "a", permissions: { publish: { deny: ["SendAlarmDigest"] } } }
    ] }"#;
    let nats = Nats::start_with(false, config).await;
    let url = nats.url().replace("nats://", "nats://a:a@");
    let (status, out, err) = run_at(&url, &["--timeout", "30s"]).await;
    assert_eq!((status, out.as_str()), (3, WAITING), "{err}");
    let line =
        "tocsin: NATS does not let this user publish to SendAlarmDigest; give it the permission\n";
    assert_eq!(err, line);

    let mut nats = Nats::start_with(false, "").await;
    let watching = nats.connect().await;
    let seen = watching.client().subscribe("SendAlarmDigest").await;
    let mut seen = seen.expect("a subscription");
    watching.client().flush().await.expect("the server answers");
    let url = nats.url();
    let running = tokio::spawn(async move { run_at(&url, &["--timeout", "30s"]).await });
    seen.next().await.expect("a request");
    nats.kill().await;
    let (status, out, err) = running.await.expect("it ends");
    assert_eq!((status, out.as_str()), (3, WAITING), "{err}");
    assert!(err.contains("broke during the check"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[tokio::test]
async fn wrong_arguments_end_with_2() {
    for (arguments, what) in [
        (
            &["--full", "--rule", "tombstones"][..],
            "did you mean tombstone?",
        ),
        (&["--list", "--rule", "tombstone"], "--list"),
        (&["--list", "--seed", "7"], "--list"),
        (&["--full", "--seed", "x"], "'x'"),
        (&["--full", "--list"], "--list"),
        (&["--timeout", "0s"], "a duration"),
    ] {
        let (status, out, err) = run_at("nats://127.0.0.1:1", arguments).await;
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {err}");
        assert!(err.contains(what), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[tokio::test]
async fn the_rules_are_listed_without_a_broker() {
    let (status, out, err) = run_at("nats://127.0.0.1:1", &["--list"]).await;
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(out.lines().count(), RULES.len());
    for (line, rule) in out.lines().zip(RULES) {
        assert!(
            line.starts_with(rule.name) && line.contains(rule.sentence),
            "{line}"
        );
    }
    let (status, out, _) = run_at("nats://127.0.0.1:1", &["--list", "-o", "json"]).await;
    let listed: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        (status, listed.as_array().map(Vec::len)),
        (0, Some(RULES.len()))
    );
    let (_, help, _) = run_at("nats://127.0.0.1:1", &["--help"]).await;
    assert!(
        help.contains("Examples:") && help.contains("70  a defect"),
        "{help}"
    );
}
