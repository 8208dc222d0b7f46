//! A broker that refuses for a while: streams full, messages too large, no streams at all, permissions taken away.

use async_nats::Client;
use tempfile::TempDir;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::evidence::{Rounds, Row};
use crate::support::judge::{self, Judged};
use crate::support::link::{Direction, Link};
use crate::support::nats::{Nats, limit_stream, num_messages};
use crate::support::random::Random;
use crate::support::traffic::{
    Confirmed, Load, Pace, Traffic, Turn, change, message_for_large_digests, publish, request,
};

/// What the broker refuses in one round.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Digests,
    DeadLetters,
    Input,
    LargePayloads,
    Streams,
}

impl Refusal {
    const ALL: [Self; 5] = [
        Self::Digests,
        Self::DeadLetters,
        Self::Input,
        Self::LargePayloads,
        Self::Streams,
    ];

    /// As the evidence says it.
    const fn name(self) -> &'static str {
        match self {
            Self::Digests => "output streams full, refusing digests",
            Self::DeadLetters => "dead-letter streams full, refusing what was refused",
            Self::Input => "input streams full, refusing publishers",
            Self::LargePayloads => "max_payload lowered under digests that must be split then",
            Self::Streams => "brokers started again without JetStream, and with it",
        }
    }

    /// What the daemon logs of it, once more each time.
    const fn said(self) -> Option<&'static str> {
        match self {
            Self::Digests | Self::DeadLetters => Some("maximum messages exceeded (error 10077)"),
            // It is the publishers who are refused.
            Self::Input => None,
            Self::LargePayloads | Self::Streams => Some("no connection to NATS"),
        }
    }
}

/// Digests of many alarms, and what must be refused.
fn message(random: &mut Random, turn: Turn) -> (String, String) {
    if random.below(20) == 0 {
        let junk = format!("junk {}", turn.number);
        return ("AlarmStatusChanged".to_owned(), junk);
    }
    message_for_large_digests(random, turn)
}

/// A server whose streams can be switched off.
struct Broker {
    nats: Nats,
    streams: TempDir,
}

impl Broker {
    async fn start() -> Self {
        let streams = tempfile::tempdir().expect("a folder for the streams");
        let nats = Nats::start_with(false, &with_streams(&streams)).await;
        Self { nats, streams }
    }

    async fn restart_with(&mut self, config: String) {
        self.nats.set_config(config);
        let restarted = self.nats.restart().await;
        restarted.unwrap_or_else(|error| panic!("{error}"));
    }
}

fn with_streams(folder: &TempDir) -> String {
    format!("jetstream {{ store_dir: \"{}\" }}", folder.path().display())
}

async fn fill(client: &Client, stream: &str) {
    let held = num_messages(client, stream).await.max(1);
    limit_stream(client, stream, i64::try_from(held).expect("few messages")).await;
}

/// Gives the server another configuration, and waits until it goes by it: who connects before meets the one before.
async fn reload(nats: &mut Nats, config: String) {
    let log = nats.folder().join("nats-server.log");
    let num_reloads = || {
        let log = std::fs::read_to_string(&log).expect("the server's log");
        log.matches("Reloaded server configuration").count()
    };
    let num_before = num_reloads();
    nats.reload(config)
        .unwrap_or_else(|error| panic!("{error}"));
    eventually("the configuration", async || num_reloads() > num_before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_broker_lose_and_repeat_nothing() {
    let mut row = Row::new(Rounds::in_test(5));
    let mut broker = Broker::start().await;
    let client = broker.nats.connect().await.client().clone();
    let setup = Setup::new(&broker.nats).set("output.duplicate_window=2s");
    let daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let (mut left, mut confirmed, mut judged) = (Vec::new(), Confirmed::default(), None);
    while row.goes_on() {
        // Each once, in another order each time.
        if left.is_empty() {
            left = Refusal::ALL.to_vec();
        }
        let refusal = left.swap_remove(random.below(left.len() as u64) as usize);
        let num_said = || {
            refusal
                .said()
                .map_or(0, |line| setup.log().matches(line).count())
        };
        let load = Load::at(Pace::Paced(500)).of(message);
        let traffic = Traffic::start(&client, random.next(), load).await;
        traffic.after(100 + random.below(300)).await;
        let num_before = num_said();
        match refusal {
            Refusal::Digests => fill(&client, "TOCSIN_OUT").await,
            Refusal::DeadLetters => fill(&client, "TOCSIN_DEAD_LETTER").await,
            Refusal::Input => {
                fill(&client, "TOCSIN_IN").await;
                let answer = publish(&client, "SendAlarmDigest", request("ann")).await;
                assert!(answer.contains("maximum messages exceeded"), "{answer}");
            }
            Refusal::LargePayloads => {
                let limit = format!("\nmax_payload: {}", 700 + random.below(1000));
                let config = with_streams(&broker.streams) + &limit;
                reload(&mut broker.nats, config).await;
            }
            Refusal::Streams => broker.restart_with(String::new()).await,
        }
        if refusal.said().is_some() {
            eventually(refusal.name(), async || num_said() > num_before).await;
        }
        if !matches!(refusal, Refusal::Input | Refusal::Streams) {
            traffic.after(100 + random.below(300)).await;
        }
        match refusal {
            Refusal::Digests => limit_stream(&client, "TOCSIN_OUT", -1).await,
            Refusal::DeadLetters => limit_stream(&client, "TOCSIN_DEAD_LETTER", -1).await,
            Refusal::Input => limit_stream(&client, "TOCSIN_IN", -1).await,
            Refusal::Streams => broker.restart_with(with_streams(&broker.streams)).await,
            Refusal::LargePayloads => {}
        }
        confirmed = confirmed.and(traffic.stop().await);
        judged = Some(judge::judge_confirmed(&client, &confirmed).await);
        if matches!(refusal, Refusal::LargePayloads) {
            let output = judge::read_stream(&client, "TOCSIN_OUT").await;
            assert!(
                output.iter().any(|it| !it.part.is_empty()),
                "none was split"
            );
            // Between two digests: a digest half of whose parts are stored would be split in another way.
            broker.restart_with(with_streams(&broker.streams)).await;
        }
        row.count("refusals of a broker", 1);
        row.count(refusal.name(), 1);
    }
    let judged: Judged = judged.expect("there was a round");
    judged.conclude(row, &client, daemon).await;
}

/// Stored whole, its confirmation lost, and then the broker takes less: in parts it would come again.
#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_was_stored_whole_does_not_come_again_in_parts() {
    let mut row = Row::new(Rounds::in_test(1));
    let mut nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let link = Link::to(&nats.url()).await;
    let setup = Setup::with_url(link.url());
    let daemon = setup.start_ready();
    let is_stored = async |num| num_messages(&client, "TOCSIN_OUT").await >= num;
    let (mut num_stored, mut is_shown) = (0, false);
    while row.goes_on() || !is_shown {
        publish(
            &client,
            "AlarmStatusChanged",
            change("ann", &format!("a{num_stored}"), "CRITICAL", 1),
        )
        .await;
        publish(&client, "SendAlarmDigest", request("ann")).await;
        eventually("a digest", async || is_stored(num_stored + 1).await).await;
        fill(&client, "TOCSIN_OUT").await;
        let user = format!("user {num_stored}");
        for alarm in 0..40 {
            let change = change(&user, &format!("alarm {alarm}"), "CRITICAL", 1);
            publish(&client, "AlarmStatusChanged", change).await;
        }
        let refused = "maximum messages exceeded (error 10077)";
        let num_refused = setup.num_logged(refused);
        publish(&client, "SendAlarmDigest", request(&user)).await;
        eventually("a refusal", async || {
            setup.num_logged(refused) > num_refused
        })
        .await;
        link.silence(Direction::ToClient);
        limit_stream(&client, "TOCSIN_OUT", -1).await;
        let stored = async { while !is_stored(num_stored + 2).await {} };
        let stored = tokio::time::timeout(std::time::Duration::from_secs(10), stored);
        if stored.await.is_err() {
            // The silence fell on an attempt that was refused: it waits for its answer, and none follows.
            link.reset();
            link.heal();
            num_stored += 2;
            eventually("the digest", async || is_stored(num_stored).await).await;
            continue;
        }
        is_shown = true;
        reload(&mut nats, "max_payload: 1KB".to_owned()).await;
        link.reset();
        link.heal();
        row.count(
            "max_payload lowered after the confirmation of a whole digest was lost",
            1,
        );
        // It is settled once the user's next digest comes.
        publish(
            &client,
            "AlarmStatusChanged",
            change(&user, "another", "WARNING", 1),
        )
        .await;
        publish(&client, "SendAlarmDigest", request(&user)).await;
        eventually("the next digest", async || is_stored(num_stored + 3).await).await;
        num_stored += 3;
        assert_eq!(num_messages(&client, "TOCSIN_OUT").await, num_stored);
        reload(&mut nats, String::new()).await;
        // It hears of the limit when it connects.
        link.reset();
    }
    let judged = judge::judge(&client).await;
    judged.conclude(row, &client, daemon).await;
}

/// The daemon's user with what it may not publish to; everybody else may do anything.
fn with_denied(denied: &[&str]) -> String {
    let denied = denied.join("\", \"");
    format!(
        "authorization {{ users: [\n\
         {{ user: test, password: test }}\n\
         {{ user: tocsin, password: tocsin, permissions: {{ publish: {{ deny: [\"{denied}\"] }} }} }}\n\
         ] }}\n\
         no_auth_user: test"
    )
}

/// Whether as much is published as the input demands.
async fn is_answered(client: &Client) -> bool {
    let input = judge::read_stream(client, "TOCSIN_IN").await;
    let demand = judge::demand(&input, |_| false);
    num_messages(client, "TOCSIN_OUT").await >= demand.digests.len() as u64
        && num_messages(client, "TOCSIN_DEAD_LETTER").await >= demand.refused.len() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn permissions_taken_and_given_back_lose_and_repeat_nothing() {
    const NOTHING: &[&str] = &["nothing.of.ours"];
    const DENIED: [(&str, &str); 4] = [
        ("AlarmDigest", "our user may not publish to AlarmDigest"),
        (
            "tocsin.dead_letter",
            "our user may not publish to tocsin.dead_letter",
        ),
        (
            "tocsin.claim",
            "the claim of the input cannot be read or renewed",
        ),
        (
            "$JS.API.CONSUMER.>",
            "our user may not publish to $JS.API.CONSUMER",
        ),
    ];
    let mut row = Row::new(Rounds::in_test(1));
    let mut nats = Nats::start_with(true, &with_denied(NOTHING)).await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats)
        .set("nats.user=tocsin")
        .set("nats.password=tocsin")
        .set("output.duplicate_window=2s");
    let daemon = setup.start_ready();
    let mut random = Random(row.seed());
    let (mut left, mut confirmed, mut judged) = (Vec::new(), Confirmed::default(), None);
    while row.goes_on() {
        // Each once, in another order each time.
        if left.is_empty() {
            left = DENIED.to_vec();
        }
        let (subject, said) = left.swap_remove(random.below(left.len() as u64) as usize);
        let traffic = Traffic::start(&client, random.next(), Load::at(Pace::Paced(200))).await;
        traffic.after(50 + random.below(100)).await;
        let num_said = setup.log().matches(said).count();
        reload(&mut nats, with_denied(&[subject])).await;
        eventually(said, async || setup.log().matches(said).count() > num_said).await;
        traffic.after(50).await;
        reload(&mut nats, with_denied(NOTHING)).await;
        traffic.after(50).await;
        confirmed = confirmed.and(traffic.stop().await);
        // What was refused for good is tried again half a minute later.
        tokio::time::timeout(std::time::Duration::from_secs(45), async {
            while !is_answered(&client).await {}
        })
        .await
        .expect("what was parked is published");
        judged = Some(judge::judge_confirmed(&client, &confirmed).await);
        row.count("permissions revoked and given back", 1);
    }
    let judged: Judged = judged.expect("there was a round");
    judged.conclude(row, &client, daemon).await;
}

/// Sets the largest message that the output takes.
async fn limit_messages(client: &Client, max_message_size: i32) {
    let context = async_nats::jetstream::new(client.clone());
    let stream = context.get_stream("TOCSIN_OUT").await.expect("the stream");
    let limited = async_nats::jetstream::stream::Config {
        max_message_size,
        ..stream.cached_info().config.clone()
    };
    context.update_stream(limited).await.expect("updated");
}

/// Asks for a digest of more alarms than a thousand bytes name.
async fn ask_for_a_large_digest(client: &Client, user: &str) {
    for second in 1..=20 {
        let changed = change(user, &format!("alarm {second}"), "CRITICAL", second);
        publish(client, "AlarmStatusChanged", changed).await;
    }
    publish(client, "SendAlarmDigest", request(user)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_is_too_large_for_the_stream_itself_goes_in_parts() {
    let nats = Nats::start().await;
    let setup = Setup::new(&nats);
    let client = nats.connect().await.client().clone();
    assert!(setup.start_ready().stop().success());
    limit_messages(&client, 1000).await;
    let daemon = setup.start_ready();
    ask_for_a_large_digest(&client, "ann").await;
    eventually("the parts", async || {
        num_messages(&client, "TOCSIN_OUT").await >= 2
    })
    .await;
    // It takes less, which nobody tells the daemon.
    let num_before = num_messages(&client, "TOCSIN_OUT").await;
    limit_messages(&client, 500).await;
    ask_for_a_large_digest(&client, "ben").await;
    eventually("more parts", async || {
        num_messages(&client, "TOCSIN_OUT").await >= num_before + 4
    })
    .await;
    assert!(!setup.log().contains("it stays owed"), "{}", setup.log());
    let judged = judge::judge(&client).await;
    assert!(daemon.stop().success());
    judged.stays(&client).await;
}
