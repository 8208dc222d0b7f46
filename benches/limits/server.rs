//! A nats-server of the bench's own, and the streams on it.

use std::borrow::Borrow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::bare::{Bare, put_publish};
use crate::process::Process;
use crate::traffic::Message;

/// The daemon's input stream.
pub(crate) const INPUT: &str = "TOCSIN_IN";
/// The daemon's output stream.
pub(crate) const OUTPUT: &str = "TOCSIN_OUT";
/// The bare client's pull requests: messages each, and how many are outstanding.
const PULL_BATCH: u64 = 1000;
const PULLS: u64 = 4;
/// Messages published and not yet confirmed.
const PUBLISH_WINDOW: u64 = 4000;
/// What the daemon demands of its input stream.
const INPUT_CONFIG: &str = r#"{"name":"TOCSIN_IN","subjects":["AlarmStatusChanged","AlarmStatusChanged.*","SendAlarmDigest","SendAlarmDigest.*"],"retention":"limits","storage":"file","discard":"old","max_age":604800000000000,"max_bytes":17179869184,"num_replicas":1}"#;

/// A server that ends with this.
pub(crate) struct Server {
    process: Process,
    port: u16,
}

impl Server {
    /// Starts one that keeps its streams in a folder.
    pub(crate) fn start(folder: &Path) -> Self {
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
            .arg(folder)
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server starts");
        Self {
            process: Process(child),
            port,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn connect(&self) -> Bare {
        Bare::connect(self.port)
    }

    /// CPU time for some work.
    pub(crate) fn cpu_of(&self, work: impl FnOnce()) -> Duration {
        let before = self.process.cpu();
        work();
        self.process.cpu_since(before)
    }

    /// Makes the input stream, empty.
    pub(crate) fn make_input(&self) {
        self.connect()
            .ask(&format!("STREAM.CREATE.{INPUT}"), INPUT_CONFIG);
    }

    /// Makes a stream for the yardstick's own messages.
    pub(crate) fn make_stream(&self, name: &str, subject: &str) {
        let config = format!(
            r#"{{"name":"{name}","subjects":["{subject}"],"retention":"limits","storage":"file","discard":"old","num_replicas":1}}"#
        );
        self.connect()
            .ask(&format!("STREAM.CREATE.{name}"), &config);
    }

    /// Removes a stream, if it is there.
    pub(crate) fn remove(&self, stream: &str) {
        let mut bare = self.connect();
        bare.subscribe("_INBOX.api", 1);
        bare.publish(&format!("$JS.API.STREAM.DELETE.{stream}"), "_INBOX.api", "");
        bare.next_text();
    }

    /// Removes what a stream holds of a subject.
    pub(crate) fn purge(&self, stream: &str, subject: &str) {
        let filter = format!(r#"{{"filter":"{subject}"}}"#);
        self.connect()
            .ask(&format!("STREAM.PURGE.{stream}"), &filter);
    }

    /// How many messages a stream holds; 0 where there is none.
    pub(crate) fn num_messages(bare: &mut Bare, stream: &str) -> u64 {
        bare.subscribe("_INBOX.info", 3);
        bare.publish(&format!("$JS.API.STREAM.INFO.{stream}"), "_INBOX.info", "");
        let answer = bare.next_text();
        bare.write(b"UNSUB 3\r\n");
        number_after(&answer, "\"messages\":").unwrap_or_default()
    }

    /// Publishes messages as fast as a stream confirms them.
    pub(crate) fn load<M: Borrow<Message>>(&self, messages: impl Iterator<Item = M>) {
        let mut bare = self.connect();
        bare.subscribe("_INBOX.load.*", 2);
        let mut messages = messages.fuse();
        let (mut sent, mut confirmed, mut lines) = (0, 0, Vec::new());
        loop {
            while sent - confirmed < PUBLISH_WINDOW
                && let Some(message) = messages.next()
            {
                let Message { subject, payload } = message.borrow();
                put_publish(&mut lines, subject, "_INBOX.load.1", payload);
                sent += 1;
            }
            if sent == confirmed {
                return;
            }
            bare.write(&lines);
            lines.clear();
            loop {
                bare.next_payload();
                confirmed += 1;
                if sent == confirmed || !bare.has_buffered() {
                    break;
                }
            }
        }
    }

    /// Reads so many messages of a stream with a client that only counts, from the first on.
    pub(crate) fn drain(&self, stream: &str, num_messages: u64) {
        let mut consumer = Consumer::create(self.connect(), stream, "all");
        for _ in 0..num_messages {
            consumer.next();
        }
        consumer.delete();
    }
}

/// A pull consumer without acknowledgement, read by a bare client.
pub(crate) struct Consumer {
    pub(crate) bare: Bare,
    stream: String,
    pull: Vec<u8>,
    num_received: u64,
}

impl Consumer {
    /// `deliver` is `all` or `new`.
    pub(crate) fn create(mut bare: Bare, stream: &str, deliver: &str) -> Self {
        let config = format!(
            r#"{{"stream_name":"{stream}","config":{{"durable_name":"bare","ack_policy":"none","deliver_policy":"{deliver}","max_waiting":512}}}}"#
        );
        bare.ask(&format!("CONSUMER.DURABLE.CREATE.{stream}.bare"), &config);
        bare.subscribe("_INBOX.pull", 2);
        let request = format!(r#"{{"batch":{PULL_BATCH},"expires":60000000000}}"#);
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.bare");
        let mut pull = Vec::new();
        put_publish(&mut pull, &next, "_INBOX.pull", &request);
        (0..PULLS).for_each(|_| bare.write(&pull));
        Self {
            bare,
            stream: stream.to_owned(),
            pull,
            num_received: 0,
        }
    }

    /// Where the next message's payload stands, until the next is read.
    pub(crate) fn next(&mut self) -> std::ops::Range<usize> {
        let payload = self.bare.next_payload();
        self.num_received += 1;
        if self.num_received.is_multiple_of(PULL_BATCH) {
            self.bare.write(&self.pull);
        }
        payload
    }

    pub(crate) fn delete(mut self) {
        self.bare.write(b"UNSUB 2\r\n");
        let what = format!("CONSUMER.DELETE.{}.bare", self.stream);
        self.bare.ask(&what, "");
    }
}

/// The number that follows some text.
pub(crate) fn number_after(text: &str, before: &str) -> Option<u64> {
    let (_, rest) = text.split_once(before)?;
    let end = rest.find(|it: char| !it.is_ascii_digit())?;
    rest.get(..end)?.parse().ok()
}
