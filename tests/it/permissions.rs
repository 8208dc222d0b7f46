//! The users of `config/nats.conf`: each can do its work, and nothing more.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{Client, Message};
use futures::StreamExt;
use futures::stream::select_all;
use serde_json::Value;
use tocsin::bus::connection::{Connection, Connector, Settings as Login, Violation};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::support::daemon::{Daemon, Setup};
use crate::support::nats::Nats;
use crate::support::program::{Printing, ended, tocsin};
use crate::support::traffic::{change, publish, publish_taken, request};

const FILE: &str = include_str!("../../config/nats.conf");
/// What the environment of a real server has; and somebody who sees everything.
const PASSWORDS: &str = "\
NATS_DAEMON_PASSWORD: daemon-secret
NATS_PUBLISHER_PASSWORD: publisher-secret
NATS_READER_PASSWORD: reader-secret
";
const OBSERVER: &str = "users = [\n        { user: observer, password: observer-secret }\n";
/// How long a repeated id is known: what is older than half of it is looked up before it is published.
const WINDOW: Duration = Duration::from_millis(200);
/// How many daemons run at once.
const NUM_AT_ONCE: usize = 4;

/// Where in the life of a daemon a subject is used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scene {
    /// With streams: a day with a crash in it.
    Streams,
    /// With streams, on a server that has little room for them.
    LittleRoom,
    /// Over core NATS, with a second daemon beside it.
    Core,
}

const PUBLISH: &str = "publish";
const SUBSCRIBE: &str = "subscribe";

/// What the daemon's user may do, and where it is needed.
const NEEDED: [(&str, &str, Scene); 35] = [
    (PUBLISH, "AlarmDigest", Scene::Streams),
    (PUBLISH, "MetricAggregate", Scene::Streams),
    (PUBLISH, "tocsin.dead_letter", Scene::Streams),
    (PUBLISH, "tocsin.claim", Scene::Streams),
    (PUBLISH, "$JS.API.INFO", Scene::Streams),
    (PUBLISH, "$JS.API.STREAM.INFO.TOCSIN_CLAIM", Scene::Streams),
    (
        PUBLISH,
        "$JS.API.STREAM.INFO.TOCSIN_DEAD_LETTER",
        Scene::Streams,
    ),
    (PUBLISH, "$JS.API.STREAM.INFO.TOCSIN_IN", Scene::Streams),
    (PUBLISH, "$JS.API.STREAM.INFO.TOCSIN_OUT", Scene::Streams),
    (
        PUBLISH,
        "$JS.API.STREAM.CREATE.TOCSIN_CLAIM",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.STREAM.CREATE.TOCSIN_DEAD_LETTER",
        Scene::Streams,
    ),
    (PUBLISH, "$JS.API.STREAM.CREATE.TOCSIN_IN", Scene::Streams),
    (PUBLISH, "$JS.API.STREAM.CREATE.TOCSIN_OUT", Scene::Streams),
    (
        PUBLISH,
        "$JS.API.STREAM.MSG.GET.TOCSIN_CLAIM",
        Scene::Streams,
    ),
    (PUBLISH, "$JS.API.STREAM.MSG.GET.TOCSIN_IN", Scene::Streams),
    (
        PUBLISH,
        "$JS.API.CONSUMER.CREATE.TOCSIN_IN.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.MSG.NEXT.TOCSIN_IN.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.CREATE.TOCSIN_DEAD_LETTER.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.CREATE.TOCSIN_OUT.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.DELETE.TOCSIN_DEAD_LETTER.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.DELETE.TOCSIN_OUT.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.MSG.NEXT.TOCSIN_DEAD_LETTER.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.CONSUMER.MSG.NEXT.TOCSIN_OUT.*",
        Scene::Streams,
    ),
    (
        PUBLISH,
        "$JS.API.STREAM.UPDATE.TOCSIN_DEAD_LETTER",
        Scene::LittleRoom,
    ),
    (
        PUBLISH,
        "$JS.API.STREAM.UPDATE.TOCSIN_IN",
        Scene::LittleRoom,
    ),
    (
        PUBLISH,
        "$JS.API.STREAM.UPDATE.TOCSIN_OUT",
        Scene::LittleRoom,
    ),
    (PUBLISH, "tocsin.owner", Scene::Core),
    (PUBLISH, "_INBOX_tocsin.>", Scene::Core),
    (PUBLISH, "_INBOX_publisher.>", Scene::Core),
    (SUBSCRIBE, "_INBOX_tocsin.>", Scene::Streams),
    (SUBSCRIBE, "AlarmStatusChanged", Scene::Core),
    (SUBSCRIBE, "AlarmStatusChanged.*", Scene::Core),
    (SUBSCRIBE, "SendAlarmDigest", Scene::Core),
    (SUBSCRIBE, "SendAlarmDigest.*", Scene::Core),
    (SUBSCRIBE, "tocsin.owner", Scene::Core),
];

/// The lines of the file that allow a subject: the line's number, the user, the direction, the subject.
fn allowed() -> Vec<(usize, &'static str, &'static str, &'static str)> {
    let (mut user, mut direction, mut allowed) = ("", "", Vec::new());
    for (number, line) in FILE.lines().map(str::trim).enumerate() {
        if let Some(name) = line.strip_prefix("user: ") {
            user = name;
        } else if let Some(begun) = line.strip_suffix(" {") {
            direction = begun;
        } else if let Some(subject) = line.strip_prefix('"') {
            allowed.push((number, user, direction, subject.trim_end_matches('"')));
        }
    }
    allowed
}

/// The file as it is, with the passwords, and with a user `observer` who may do everything.
pub(crate) fn config() -> String {
    config_without(None)
}

/// The same less one line.
fn config_without(line: Option<usize>) -> String {
    let lines = FILE.lines().enumerate();
    // The folder for its streams is given as an argument.
    let is_kept = |text: &str| !text.trim().starts_with("store_dir:");
    let kept = lines.filter(|&(number, text)| Some(number) != line && is_kept(text));
    let kept: Vec<_> = kept.map(|(_, line)| line).collect();
    PASSWORDS.to_owned() + &kept.join("\n").replacen("users = [", OBSERVER, 1)
}

async fn connect(nats: &Nats, user: &str) -> Connection {
    let login = Login {
        user: Some(user.to_owned()),
        password: Some(format!("{user}-secret")),
        inbox_prefix: Some(format!("_INBOX_{user}")),
        ..nats.login()
    };
    let connector = Connector::new(login, tokio::runtime::Handle::current());
    let connecting = connector.connect_within(Duration::from_secs(30), "test", 1000);
    connecting.await.unwrap_or_else(|error| panic!("{error}"))
}

fn daemon_of(nats: &Nats) -> Setup {
    Setup::new(nats)
        .set("nats.user=tocsin")
        .set("nats.password=daemon-secret")
        .set("nats.inbox_prefix=_INBOX_tocsin")
        .set("metrics.aggregate_interval=100ms")
        .set(&format!("output.duplicate_window={}ms", WINDOW.as_millis()))
}

/// Waits until something is seen.
async fn until(what: &str, is_seen: impl Fn() -> bool) {
    let waiting = async {
        while !is_seen() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = timeout(Duration::from_secs(30), waiting).await;
    assert!(in_time.is_ok(), "not within 30 s: {what}");
}

/// How many digests, dead letters and aggregates were seen.
#[derive(Default)]
struct Seen {
    digests: AtomicU64,
    dead_letters: AtomicU64,
    aggregates: AtomicU64,
}

impl Seen {
    async fn start(nats: &Nats) -> Arc<Self> {
        let seen = Arc::<Self>::default();
        let connection = connect(nats, "observer").await;
        let client = connection.client();
        let mut messages = Vec::new();
        // Not everything: what a consumer delivers comes on the subject of what was stored.
        for subject in ["AlarmDigest", "MetricAggregate", "tocsin.dead_letter"] {
            messages.push(client.subscribe(subject).await.expect("subscribed"));
        }
        client.flush().await.expect("the server answers");
        let counting = Arc::clone(&seen);
        tokio::spawn(async move {
            // The connection ends with the task.
            let _connection = connection;
            let mut messages = select_all(messages);
            while let Some(message) = messages.next().await {
                let count = match message.subject.as_str() {
                    "AlarmDigest" => &counting.digests,
                    "tocsin.dead_letter" => &counting.dead_letters,
                    _ => &counting.aggregates,
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        seen
    }

    async fn until(&self, digests: u64, dead_letters: u64) {
        let what = format!("{digests} digests, {dead_letters} dead letters and an aggregate");
        until(&what, || {
            self.digests.load(Ordering::Relaxed) == digests
                && self.dead_letters.load(Ordering::Relaxed) == dead_letters
                && self.aggregates.load(Ordering::Relaxed) > 0
        })
        .await;
    }
}

/// A server, a daemon, and what others see of it.
struct Stage {
    nats: Nats,
    setup: Setup,
    publisher: Connection,
    seen: Arc<Seen>,
}

impl Stage {
    async fn new(config: &str, scene: Scene) -> Self {
        let config = match scene {
            Scene::LittleRoom => config.replacen("40GB", "100MB", 1),
            Scene::Streams | Scene::Core => config.to_owned(),
        };
        let nats = Nats::start_with(scene != Scene::Core, &config).await;
        let setup = daemon_of(&nats);
        let setup = match scene {
            Scene::Core => setup.set("input.mode=core"),
            Scene::Streams | Scene::LittleRoom => setup,
        };
        Self {
            publisher: connect(&nats, "publisher").await,
            seen: Seen::start(&nats).await,
            nats,
            setup,
        }
    }

    /// The line in which the daemon says what it may not do.
    fn refusal(&self) -> Option<String> {
        let log = self.setup.log();
        let line = log.lines().find(|line| line.contains("; grant it"))?;
        Some(line.to_owned())
    }

    /// Waits for a step, or for a refusal.
    async fn unless_refused<T>(&self, step: impl Future<Output = T>) -> Result<T, String> {
        let refused = async {
            loop {
                if let Some(line) = self.refusal() {
                    return line;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            done = step => Ok(done),
            line = refused => Err(line),
        }
    }

    async fn start(&self) -> Result<Daemon, String> {
        let mut daemon = self.setup.start();
        let ready = async {
            while !daemon.has_told("READY=1") {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let ready = timeout(Duration::from_secs(30), ready);
        let in_time = self.unless_refused(ready).await?;
        assert!(in_time.is_ok(), "not ready:\n{}", self.setup.log());
        Ok(daemon)
    }

    /// A change, a request, and something that is neither.
    async fn tell(&self, second: u64) {
        let client = self.publisher.client();
        let critical = change("ann", &format!("disk {second}"), "CRITICAL", second);
        publish_taken(client, "AlarmStatusChanged", critical).await;
        publish_taken(client, "SendAlarmDigest", request("ann")).await;
        publish(client, "AlarmStatusChanged.7", "junk").await;
    }

    async fn play(&self, scene: Scene) -> Result<(), String> {
        let daemon = self.start().await?;
        let daemon = match scene {
            Scene::LittleRoom => daemon,
            Scene::Streams => {
                self.unless_refused(self.tell(1)).await?;
                self.unless_refused(self.seen.until(1, 1)).await?;
                daemon.kill();
                self.tell(2).await;
                // What another has published is a reason to look.
                let observer = connect(&self.nats, "observer").await;
                publish_taken(observer.client(), "AlarmDigest", "{}").await;
                sleep_until(Instant::now() + WINDOW).await;
                let daemon = self.start().await?;
                self.unless_refused(self.seen.until(3, 2)).await?;
                daemon
            }
            Scene::Core => {
                self.unless_refused(self.tell(1)).await?;
                self.unless_refused(self.seen.until(1, 1)).await?;
                let second = daemon_of(&self.nats).set("input.mode=core");
                let standing_by = second.start();
                let refused_or_not = self.unless_refused(until("who owns it", || {
                    second.log().contains("another store owns this input")
                }));
                refused_or_not.await?;
                assert!(standing_by.stop().success());
                daemon
            }
        };
        assert!(daemon.stop().success(), "{}", self.setup.log());
        self.refusal().map_or(Ok(()), Err)
    }
}

/// Whether a subject, in which a `*` may stand for a random token, is one of those.
fn is_of(subject: &str, allowed: &str) -> bool {
    let (mut tokens, mut patterns) = (subject.split('.'), allowed.split('.'));
    loop {
        match (tokens.next(), patterns.next()) {
            (Some(_), Some(">")) | (None, None) => return true,
            (Some(token), Some(pattern)) if pattern == "*" || pattern == token => {}
            _ => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_needs_no_more_than_it_is_granted() {
    for scene in [Scene::Streams, Scene::LittleRoom, Scene::Core] {
        let stage = Stage::new(&config(), scene).await;
        assert_eq!(stage.play(scene).await, Ok(()), "{scene:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn without_any_one_permission_the_daemon_names_the_subject() {
    let lines = allowed();
    let lines = lines.iter().filter(|(_, user, ..)| *user == "tocsin");
    let granted: BTreeSet<_> = lines.clone().map(|&(_, _, way, it)| (way, it)).collect();
    let needed: BTreeSet<_> = NEEDED.iter().map(|&(way, it, _)| (way, it)).collect();
    assert_eq!(granted, needed);

    let at_once = Arc::new(Semaphore::new(NUM_AT_ONCE));
    let mut cases = JoinSet::new();
    for (direction, subject, scene) in NEEDED {
        let mut lines = lines.clone();
        let line = lines.find(|&&(_, _, way, it)| (way, it) == (direction, subject));
        let config = config_without(line.map(|(number, ..)| *number));
        let at_once = Arc::clone(&at_once);
        cases.spawn(async move {
            let _permit = at_once.acquire_owned().await.expect("the semaphore lasts");
            let refused = Stage::new(&config, scene).await.play(scene).await;
            let begin = format!("our user may not {direction} to ");
            let line = refused.expect_err(&format!("{subject} is not needed"));
            let (_, rest) = line.split_once(&begin).unwrap_or_else(|| panic!("{line}"));
            let (named, _) = rest.split_once(';').unwrap_or_else(|| panic!("{line}"));
            assert!(line.contains("ERROR") && is_of(named, subject), "{line}");
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// The refusals of what is tried, one after the other.
async fn refused(connection: &Connection, tried: &[Violation]) {
    let mut violations = connection.violations();
    for trial in tried {
        let client = connection.client();
        match trial {
            Violation::Publish(subject) => client
                .publish(subject.clone(), "{}".into())
                .await
                .expect("sent"),
            Violation::Subscribe(subject) => {
                client.subscribe(subject.clone()).await.expect("sent");
            }
        }
        let seen = timeout(Duration::from_secs(10), violations.recv()).await;
        let seen = seen.unwrap_or_else(|_| panic!("{trial} was allowed"));
        assert_eq!(seen.expect("seen"), *trial);
    }
}

fn publishing(subjects: &[&str]) -> Vec<Violation> {
    let subjects = subjects.iter();
    subjects
        .map(|&it| Violation::Publish(it.to_owned()))
        .collect()
}

fn subscribing(subjects: &[&str]) -> Vec<Violation> {
    let subjects = subjects.iter();
    subjects
        .map(|&it| Violation::Subscribe(it.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_hears_only_its_own_answers() {
    let nats = Nats::start_with(true, &config()).await;
    let setup = daemon_of(&nats);
    let _daemon = setup.start_ready();
    let publisher = connect(&nats, "publisher").await;
    for subject in ["AlarmStatusChanged", "AlarmStatusChanged.7"] {
        publish_taken(
            publisher.client(),
            subject,
            change("ann", "disk", "WARNING", 1),
        )
        .await;
    }
    for subject in ["SendAlarmDigest", "SendAlarmDigest.7"] {
        publish_taken(publisher.client(), subject, request("ann")).await;
    }
    let deaf = subscribing(&[
        "AlarmDigest",
        "AlarmStatusChanged",
        "MetricAggregate",
        "tocsin.dead_letter",
        "tocsin.claim",
        "_INBOX.>",
        "_INBOX_reader.>",
        "_INBOX_tocsin.>",
        "$JS.>",
        "*",
        ">",
    ]);
    refused(&publisher, &deaf).await;
    let mute = publishing(&[
        "AlarmDigest",
        "MetricAggregate",
        "tocsin.dead_letter",
        "tocsin.claim",
        "tocsin.owner",
        "_INBOX_tocsin.a",
        "_INBOX_publisher.a",
        "$JS.API.INFO",
        "$JS.API.CONSUMER.CREATE.TOCSIN_OUT.a",
        "$JS.API.CONSUMER.CREATE.TOCSIN_IN.a",
        "$JS.API.CONSUMER.MSG.NEXT.TOCSIN_OUT.a",
        "$JS.API.STREAM.INFO.TOCSIN_OUT",
        "$JS.API.STREAM.MSG.GET.TOCSIN_OUT",
        "$JS.API.STREAM.MSG.GET.TOCSIN_DEAD_LETTER",
        "$JS.API.STREAM.PURGE.TOCSIN_IN",
        "$JS.API.STREAM.DELETE.TOCSIN_IN",
        "$JS.API.DIRECT.GET.TOCSIN_OUT",
    ]);
    refused(&publisher, &mute).await;
}

async fn asked(client: &Client, subject: &str, body: &str) -> Value {
    let answer: Message = client
        .request(subject.to_owned(), body.to_owned().into())
        .await
        .expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

/// The program's client commands as one of the users.
fn client_command(nats: &Nats, user: &str, arguments: &[&str]) -> std::process::Command {
    let mut command = tocsin(arguments);
    for set in [
        format!("nats.url={}", nats.url()),
        format!("nats.user={user}"),
        format!("nats.password={user}-secret"),
        format!("nats.inbox_prefix=_INBOX_{user}"),
    ] {
        command.args(["--set", &set]);
    }
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_may_not_hear_digests_says_so_and_asks_for_none() {
    let nats = Nats::start_with(true, &config()).await;
    let setup = daemon_of(&nats);
    let _daemon = setup.start_ready();
    let run = |user: &str, arguments: &[&str]| {
        ended(&client_command(&nats, user, arguments).output().unwrap())
    };
    let (status, _, err) = run("publisher", &["change", "ann", "disk", "CRITICAL"]);
    assert_eq!((status, err.as_str()), (0, ""));
    let deaf = "tocsin: our user may not subscribe to AlarmDigest; grant it, as config/nats.conf does, or log in as another\n";
    for command in [&["digest", "ann"][..], &["tail"]] {
        let expected = (2, String::new(), deaf.to_owned());
        assert_eq!(run("publisher", command), expected, "{command:?}");
    }
    let (status, out, err) = run("reader", &["tail", "--last", "1"]);
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(
        err.contains("our user may not publish to $JS.API.CONSUMER.CREATE.TOCSIN_OUT."),
        "{err}"
    );
    let reader = connect(&nats, "reader").await;
    let info = asked(reader.client(), "$JS.API.STREAM.INFO.TOCSIN_OUT", "").await;
    assert_eq!(info["state"]["messages"], 0, "somebody asked: {info}");

    let mut tail = Printing::start(client_command(
        &nats,
        "reader",
        &["tail", "--count", "1", "-o", "json"],
    ));
    let mut heard = spawn_blocking(move || tail.lines(1));
    let publisher = connect(&nats, "publisher").await;
    // What comes before it listens it does not hear.
    let lines = loop {
        let alarm = format!("alarm {}", publisher.client().new_inbox());
        let critical = change("ann", &alarm, "CRITICAL", 1);
        publish_taken(publisher.client(), "AlarmStatusChanged", critical).await;
        publish_taken(publisher.client(), "SendAlarmDigest", request("ann")).await;
        if let Ok(lines) = timeout(Duration::from_millis(200), &mut heard).await {
            break lines.expect("a line");
        }
    };
    assert!(lines[0].starts_with("{\"UserID\":\"ann\""), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_digests_and_publishes_nothing() {
    let nats = Nats::start_with(true, &config()).await;
    let setup = daemon_of(&nats);
    let _daemon = setup.start_ready();
    let seen = Seen::start(&nats).await;
    let reader = connect(&nats, "reader").await;
    let client = reader.client();
    let mut digests = client.subscribe("AlarmDigest").await.expect("subscribed");
    client.flush().await.expect("the server answers");
    let publisher = connect(&nats, "publisher").await;
    let critical = change("ann", "disk", "CRITICAL", 1);
    publish_taken(publisher.client(), "AlarmStatusChanged", critical).await;
    publish_taken(publisher.client(), "SendAlarmDigest", request("ann")).await;
    let live = timeout(Duration::from_secs(30), digests.next()).await;
    let live = live.expect("in time").expect("a digest");
    assert!(live.payload.starts_with(b"{\"UserID\":\"ann\""));
    let info = asked(client, "$JS.API.STREAM.INFO.TOCSIN_OUT", "").await;
    assert_eq!(info["state"]["messages"], 1, "{info}");
    let get = "$JS.API.STREAM.MSG.GET.TOCSIN_OUT";
    let stored = asked(client, get, "{\"seq\":1}").await;
    assert_eq!(stored["message"]["subject"], "AlarmDigest", "{stored}");

    let mute = publishing(&[
        "AlarmDigest",
        "AlarmStatusChanged",
        "SendAlarmDigest",
        "tocsin.dead_letter",
        "tocsin.owner",
        "_INBOX_tocsin.a",
        "_INBOX_reader.a",
        "$JS.API.INFO",
        "$JS.API.CONSUMER.CREATE.TOCSIN_OUT.a",
        "$JS.API.CONSUMER.MSG.NEXT.TOCSIN_OUT.a",
        "$JS.API.STREAM.MSG.GET.TOCSIN_IN",
        "$JS.API.STREAM.MSG.GET.TOCSIN_DEAD_LETTER",
        "$JS.API.STREAM.MSG.DELETE.TOCSIN_OUT",
        "$JS.API.STREAM.PURGE.TOCSIN_OUT",
        "$JS.API.STREAM.DELETE.TOCSIN_OUT",
    ]);
    refused(&reader, &mute).await;
    let deaf = subscribing(&[
        "AlarmStatusChanged",
        "SendAlarmDigest",
        "tocsin.dead_letter",
        "_INBOX.>",
        "_INBOX_publisher.>",
        "_INBOX_tocsin.>",
        ">",
    ]);
    refused(&reader, &deaf).await;

    // NATS lets the answer go anywhere: what comes of it is a dead letter, and no digest.
    let asking = client.publish_with_reply(get, "SendAlarmDigest", "{\"seq\":1}".into());
    asking.await.expect("sent");
    until("a dead letter", || {
        seen.dead_letters.load(Ordering::Relaxed) == 1
    })
    .await;
    assert_eq!(seen.digests.load(Ordering::Relaxed), 1);
}
