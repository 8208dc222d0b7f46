//! How fast a preloaded stream is drained, beside a bare client that only counts, in the same run.
//!
//! ```text
//! make bench                          the default: 2 M changes, 1 M users x 10 alarms, 3 rounds
//! BENCH_MESSAGES=500000 BENCH_ROUNDS=5 make bench
//! ```
//!
//! The yardstick is a `std::net` client that pulls without acknowledgement, 1000 x 4 outstanding. The daemon is
//! the release program with its embedded store on disk and fsync; its time runs from its start to the digest of
//! a user whose change stands at the end of the stream. Both read the same stream of the same server, in turn.

#![expect(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a bench that cannot go on ends"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The bare client's pull requests: messages each, and how many are outstanding.
const PULL_BATCH: usize = 1000;
const PULLS: usize = 4;
/// Changes published and not yet confirmed while the stream is loaded.
const PUBLISH_WINDOW: usize = 4000;
const STREAM: &str = "TOCSIN_IN";
const DEADLINE: Duration = Duration::from_mins(2);

fn main() {
    let num_messages = number_from_env("BENCH_MESSAGES", 2_000_000);
    let num_rounds = number_from_env("BENCH_ROUNDS", 3);
    let folder = std::env::temp_dir().join(format!("tocsin-pipeline-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("the folder for the bench can be created");
    let server = Server::start(&folder);
    server.load(num_messages);
    println!(
        "drain of {num_messages} changes, {num_rounds} rounds, nats-server and client on the same cores"
    );
    let mut ratios = Vec::new();
    for round in 1..=num_rounds {
        let (raw, raw_server) = server.metered(|| server.drain_bare(num_messages));
        let mut daemon_cpu = Duration::ZERO;
        let (ours, our_server) =
            server.metered(|| daemon_cpu = server.drain_daemon(&folder, round));
        let ratio = raw.as_secs_f64() / ours.as_secs_f64();
        let rate = |took: Duration| num_messages as f64 / took.as_secs_f64() / 1000.0;
        let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / num_messages as f64;
        println!(
            "round {round}: bare {:.0} k/s (server {:.2} us each), tocsin {:.0} k/s (server {:.2}, tocsin {:.2} us each), ratio {ratio:.2}",
            rate(raw),
            each(raw_server),
            rate(ours),
            each(our_server),
            each(daemon_cpu),
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    println!(
        "ratio tocsin / bare: median {median:.2}, {:.2} to {:.2}",
        ratios[0],
        ratios[ratios.len() - 1]
    );
    drop(server);
    fs::remove_dir_all(&folder).expect("the bench's folder can be removed");
}

fn number_from_env(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// A nats-server of this bench's own, killed when it is dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path) -> Self {
        let program = std::env::var_os("TOCSIN_NATS_SERVER")
            .map_or_else(|| PathBuf::from("target/tools/nats-server"), PathBuf::from);
        assert!(
            program.is_file(),
            "{} is missing; run: make tools",
            program.display()
        );
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let child = Command::new(program)
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(folder.join("nats"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        Self { child, port }
    }

    fn connect(&self) -> Bare {
        Bare::connect(self.port)
    }

    /// Fills the stream, the last change being that of the marker user.
    fn load(&self, num_messages: usize) {
        let mut bare = self.connect();
        let config = format!(
            "{{\"name\":\"{STREAM}\",\"subjects\":[\"AlarmStatusChanged\",\"AlarmStatusChanged.*\",\"SendAlarmDigest\",\"SendAlarmDigest.*\"],\
             \"retention\":\"limits\",\"storage\":\"file\",\"discard\":\"old\",\"max_age\":{},\"max_bytes\":{},\"num_replicas\":1}}",
            7_u64 * 24 * 3600 * 1_000_000_000,
            16_u64 << 30,
        );
        let answer = bare.request(&format!("$JS.API.STREAM.CREATE.{STREAM}"), &config);
        assert!(!answer.contains("\"error\""), "{answer}");
        let mut random = Random(42);
        bare.subscribe("_INBOX.load.*", 2);
        let (mut sent, mut confirmed, mut out) = (0, 0, Vec::new());
        while confirmed < num_messages {
            while sent < num_messages && sent - confirmed < PUBLISH_WINDOW {
                let payload = if sent + 1 == num_messages {
                    change("marker", "marker", "CRITICAL", sent)
                } else {
                    let user = random.next() % 1_000_000;
                    let alarm = user * 10 + random.next() % 10;
                    let status = ["CLEARED", "WARNING", "CRITICAL"][(random.next() % 3) as usize];
                    change(&uuid(user), &uuid(alarm + (1 << 40)), status, sent)
                };
                write!(
                    out,
                    "PUB AlarmStatusChanged _INBOX.load.1 {}\r\n{payload}\r\n",
                    payload.len()
                )
                .expect("memory can be written");
                sent += 1;
            }
            bare.write(&out);
            out.clear();
            bare.next_payload();
            confirmed += 1;
            while sent > confirmed && bare.has_buffered() {
                bare.next_payload();
                confirmed += 1;
            }
        }
    }

    /// Reads the whole stream with a client that only counts.
    fn drain_bare(&self, num_messages: usize) {
        let mut bare = self.connect();
        let config = format!(
            "{{\"stream_name\":\"{STREAM}\",\"config\":{{\"durable_name\":\"bare\",\"ack_policy\":\"none\",\"deliver_policy\":\"all\",\"max_waiting\":512}}}}"
        );
        let answer = bare.request(
            &format!("$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.bare"),
            &config,
        );
        assert!(!answer.contains("\"error\""), "{answer}");
        bare.subscribe("_INBOX.pull", 2);
        let pull = format!("{{\"batch\":{PULL_BATCH},\"expires\":5000000000}}");
        let pull = format!(
            "PUB $JS.API.CONSUMER.MSG.NEXT.{STREAM}.bare _INBOX.pull {}\r\n{pull}\r\n",
            pull.len()
        );
        bare.write(pull.repeat(PULLS).as_bytes());
        for received in 1..=num_messages {
            bare.next_payload();
            if received % PULL_BATCH == 0
                && received + PULLS * PULL_BATCH <= num_messages + PULL_BATCH
            {
                bare.write(pull.as_bytes());
            }
        }
        drop(bare);
        let answer = self
            .connect()
            .request(&format!("$JS.API.CONSUMER.DELETE.{STREAM}.bare"), "");
        assert!(answer.contains("true"), "{answer}");
    }

    /// Starts the daemon on an empty store and waits for the marker's digest; returns its CPU time.
    fn drain_daemon(&self, folder: &Path, round: usize) -> Duration {
        let mut bare = self.connect();
        bare.subscribe("AlarmDigest", 2);
        let store = folder.join(format!("store-{round}"));
        let daemon = Command::new(env!("CARGO_BIN_EXE_tocsin"))
            .args([
                "serve",
                "--set",
                &format!("nats.url=nats://127.0.0.1:{}", self.port),
            ])
            .args([
                "--set",
                &format!("store.path={}", store.display()),
                "--set",
                "log.filter=error",
            ])
            .spawn()
            .expect("the daemon starts");
        let mut daemon = Killed(daemon);
        let request = "{\"UserID\":\"marker\"}";
        bare.write(format!("PUB SendAlarmDigest {}\r\n{request}\r\n", request.len()).as_bytes());
        let digest = bare.next_text();
        assert!(digest.contains("marker"), "{digest}");
        let cpu = cpu_of(daemon.0.id());
        daemon.0.kill().expect("the daemon can be killed");
        daemon.0.wait().expect("the daemon can be waited for");
        fs::remove_dir_all(store).expect("the store can be removed");
        // The next round's store has another id: the claim must not wait for the last one's to expire.
        let purged = self
            .connect()
            .request("$JS.API.STREAM.PURGE.TOCSIN_CLAIM", "");
        assert!(purged.contains("true"), "{purged}");
        let purge = "{\"filter\":\"SendAlarmDigest\"}";
        let purged = self
            .connect()
            .request(&format!("$JS.API.STREAM.PURGE.{STREAM}"), purge);
        assert!(purged.contains("true"), "{purged}");
        cpu
    }

    /// How long some work takes, and the server's CPU time for it.
    fn metered(&self, work: impl FnOnce()) -> (Duration, Duration) {
        let (cpu, began) = (cpu_of(self.child.id()), Instant::now());
        work();
        (began.elapsed(), cpu_of(self.child.id()).saturating_sub(cpu))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().expect("nats-server can be killed");
        self.child.wait().expect("nats-server can be waited for");
    }
}

/// A process that does not outlive the bench.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It was killed already when all went well.
        self.0.kill().ok();
    }
}

/// CPU time of a process, from `/proc`, where a tick is a hundredth of a second.
fn cpu_of(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name") + 2..]
        .split(' ')
        .collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number of ticks");
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn change(user: &str, alarm: &str, status: &str, at: usize) -> String {
    let (second, nano) = (at / 1000 % 60, at);
    format!(
        "{{\"AlarmID\":\"{alarm}\",\"UserID\":\"{user}\",\"Status\":\"{status}\",\"ChangedAt\":\"2026-01-01T00:{:02}:{second:02}.{nano:09}Z\"}}",
        at / 60_000 % 60,
    )
}

/// A UUID that is a function of a number.
fn uuid(of: u64) -> String {
    let mut random = Random(of);
    let (high, low) = (random.next(), random.next());
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff,
    )
}

/// `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A NATS client of as few instructions as possible.
struct Bare {
    stream: TcpStream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Bare {
    fn connect(port: u16) -> Self {
        let until = Instant::now() + DEADLINE;
        let stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(error) => assert!(
                    Instant::now() < until,
                    "nats-server does not listen: {error}"
                ),
            }
        };
        stream.set_nodelay(true).expect("a TCP option");
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a TCP option");
        let mut bare = Self {
            stream,
            buffer: vec![0; 1 << 20],
            begin: 0,
            end: 0,
        };
        bare.write(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n");
        bare.wait_for_pong();
        bare
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("nats-server reads");
    }

    fn subscribe(&mut self, subject: &str, id: u32) {
        self.write(format!("SUB {subject} {id}\r\nPING\r\n").as_bytes());
        self.wait_for_pong();
    }

    fn request(&mut self, subject: &str, payload: &str) -> String {
        self.subscribe("_INBOX.api", 1);
        self.write(
            format!(
                "PUB {subject} _INBOX.api {}\r\n{payload}\r\n",
                payload.len()
            )
            .as_bytes(),
        );
        let answer = self.next_text();
        self.write(b"UNSUB 1\r\n");
        answer
    }

    /// Whether some of another message has arrived.
    const fn has_buffered(&self) -> bool {
        self.end - self.begin > 200
    }

    fn fill(&mut self) {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        let room = &mut self.buffer[self.end..];
        let read = self.stream.read(room).expect("nats-server answers in time");
        assert!(read > 0, "nats-server closed the connection");
        self.end += read;
    }

    /// Where the next line that is not a ping stands, without its end.
    fn line(&mut self) -> Range<usize> {
        loop {
            let unread = &self.buffer[self.begin..self.end];
            let Some(at) = unread.iter().position(|&byte| byte == b'\n') else {
                self.fill();
                continue;
            };
            let line = self.begin..self.begin + at - 1;
            self.begin += at + 1;
            match &self.buffer[line.clone()] {
                b"PING" => self.write(b"PONG\r\n"),
                error if error.starts_with(b"-ERR") => panic!("{}", String::from_utf8_lossy(error)),
                _ => return line,
            }
        }
    }

    fn wait_for_pong(&mut self) {
        loop {
            let line = self.line();
            if &self.buffer[line] == b"PONG" {
                return;
            }
        }
    }

    /// Where the next message's payload stands, until more is read.
    fn next_payload(&mut self) -> Range<usize> {
        loop {
            let line = self.line();
            let Some(size) = payload_size(&self.buffer[line]) else {
                continue;
            };
            while self.end - self.begin < size + 2 {
                self.fill();
            }
            let payload = self.begin..self.begin + size;
            self.begin += size + 2;
            return payload;
        }
    }

    fn next_text(&mut self) -> String {
        let payload = self.next_payload();
        String::from_utf8_lossy(&self.buffer[payload]).into_owned()
    }
}

/// The size of a message by its first line; `None` for a line that begins no message.
fn payload_size(line: &[u8]) -> Option<usize> {
    if !line.starts_with(b"MSG ") && !line.starts_with(b"HMSG ") {
        return None;
    }
    let size = line.rsplit(|&byte| byte == b' ').next()?;
    std::str::from_utf8(size).ok()?.parse().ok()
}
