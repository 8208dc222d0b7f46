//! A client that writes the protocol itself: what a client library would not send.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection.
pub(super) struct RawClient {
    reader: BufReader<TcpStream>,
}

impl RawClient {
    pub(super) fn connect(url: &str) -> Self {
        let address = url.rsplit_once('/').map_or(url, |(_, address)| address);
        let stream = TcpStream::connect(address).expect("the server listens");
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).expect("a time-out");
        let mut client = Self {
            reader: BufReader::new(stream),
        };
        assert!(client.line().starts_with("INFO "), "a server greets");
        client.write(b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true}\r\nSUB raw.answers 1\r\n");
        client
    }

    /// Publishes; returns the answer.
    pub(super) fn request(&mut self, subject: &str, headers: &[u8], payload: &[u8]) -> String {
        let (num, sum) = (headers.len(), headers.len() + payload.len());
        let line = format!("HPUB {subject} raw.answers {num} {sum}\r\n");
        self.write(&[line.as_bytes(), headers, payload, b"\r\n"].concat());
        loop {
            let line = self.line();
            if line == "PING" {
                self.write(b"PONG\r\n");
            } else if line.starts_with("MSG raw.answers ") {
                let num_bytes = line.rsplit_once(' ').and_then(|(_, num)| num.parse().ok());
                let mut answer = vec![0; num_bytes.expect("a length")];
                self.reader.read_exact(&mut answer).expect("an answer");
                return String::from_utf8(answer).expect("text");
            } else {
                assert!(line.is_empty() || line.starts_with("INFO "), "{line}");
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        self.reader
            .get_mut()
            .write_all(bytes)
            .expect("the server reads");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("the server writes");
        line.trim_end().to_owned()
    }
}
