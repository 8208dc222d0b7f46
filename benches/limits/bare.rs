//! A NATS client of as few instructions as possible: the yardstick. It only counts what it reads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Silence of that long is no noise of the machine, but something that hangs.
const SILENCE: Duration = Duration::from_mins(2);
/// What one read takes at most.
const BUFFER_BYTES: usize = 1 << 20;
/// More than the first line of a message of ours: so much has arrived, and so has most of another message.
const LINE_BYTES: usize = 200;

/// One connection.
pub(crate) struct Bare {
    stream: TcpStream,
    buffer: Vec<u8>,
    begin: usize,
    end: usize,
}

impl Bare {
    /// Connects as soon as the server listens.
    pub(crate) fn connect(port: u16) -> Self {
        let until = Instant::now() + SILENCE;
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
            .set_read_timeout(Some(SILENCE))
            .expect("a TCP option");
        let mut bare = Self {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            begin: 0,
            end: 0,
        };
        bare.write(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\nPING\r\n");
        bare.wait_for_pong();
        bare
    }

    /// Sends lines of the protocol.
    pub(crate) fn write(&mut self, lines: &[u8]) {
        self.stream.write_all(lines).expect("nats-server reads");
    }

    /// Subscribes, and waits until the server knows.
    pub(crate) fn subscribe(&mut self, subject: &str, id: u32) {
        self.write(format!("SUB {subject} {id}\r\n").as_bytes());
        self.flush();
    }

    /// Waits until the server has processed what was sent.
    pub(crate) fn flush(&mut self) {
        self.write(b"PING\r\n");
        self.wait_for_pong();
    }

    /// Sends many lines, and waits until the server has processed them.
    pub(crate) fn write_all_and_flush(&mut self, lines: &[u8]) {
        self.write(lines);
        self.flush();
    }

    /// Publishes one message.
    pub(crate) fn publish(&mut self, subject: &str, reply: &str, payload: &str) {
        let mut lines = Vec::new();
        put_publish(&mut lines, subject, reply, payload);
        self.write(&lines);
    }

    /// Asks the server's API, and demands an answer without an error.
    pub(crate) fn ask(&mut self, what: &str, payload: &str) -> String {
        self.subscribe("_INBOX.api", 1);
        self.publish(&format!("$JS.API.{what}"), "_INBOX.api", payload);
        let answer = self.next_text();
        assert!(!answer.contains("\"error\""), "{what}: {answer}");
        self.write(b"UNSUB 1\r\n");
        answer
    }

    /// Whether most of another message has arrived.
    pub(crate) const fn has_buffered(&self) -> bool {
        self.end - self.begin > LINE_BYTES
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
    pub(crate) fn next_payload(&mut self) -> Range<usize> {
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

    /// The next message as text, its headers included.
    pub(crate) fn next_text(&mut self) -> String {
        let payload = self.next_payload();
        String::from_utf8_lossy(&self.buffer[payload]).into_owned()
    }

    /// The bytes of a payload.
    pub(crate) fn bytes(&self, payload: Range<usize>) -> &[u8] {
        &self.buffer[payload]
    }
}

/// Appends the lines that publish one message; an empty reply subject is none.
pub(crate) fn put_publish(lines: &mut Vec<u8>, subject: &str, reply: &str, payload: &str) {
    let size = payload.len();
    write!(lines, "PUB {subject} {reply} {size}\r\n{payload}\r\n").expect("memory can be written");
}

/// The size of a message by its first line; `None` for a line that begins no message.
fn payload_size(line: &[u8]) -> Option<usize> {
    if !line.starts_with(b"MSG ") && !line.starts_with(b"HMSG ") {
        return None;
    }
    let size = line.rsplit(|&byte| byte == b' ').next()?;
    std::str::from_utf8(size).ok()?.parse().ok()
}
