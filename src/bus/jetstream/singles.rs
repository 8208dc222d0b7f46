//! The next messages of a stream, each asked for by itself: past one that no client can read.
//!
//! A publisher may write any header block, the broker stores it, and a client ends its connection at some: every
//! consumer that begins before such a message breaks in the same way. The answer to a request has the block as
//! bytes. So who reads asks for the next messages here once a consumer broke before its first, and then tries a
//! consumer again.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use super::api::{Api, ApiError};
use super::pull::{MAX_BYTES, Meta, Pulled};

/// How many messages are asked for until a consumer is tried again.
const MAX_SINGLES: usize = 100;

/// The next messages behind a sequence and up to the last: [`MAX_SINGLES`], or fewer once they have [`MAX_BYTES`].
/// None when the stream holds no more.
pub(super) async fn singles(
    api: &Api,
    stream: &str,
    behind: u64,
    last: u64,
) -> Result<Vec<Pulled>, ApiError> {
    let mut singles = Vec::new();
    let (mut sequence, mut num_bytes) = (behind, 0);
    while singles.len() < MAX_SINGLES && num_bytes < MAX_BYTES && sequence < last {
        let Some(message) = api.message_from(stream, sequence + 1).await? else {
            break;
        };
        sequence = message.sequence;
        num_bytes += (message.headers.len() + message.payload.len()) as u64;
        singles.push(Pulled {
            meta: Meta {
                sequence,
                timestamp: message.timestamp,
                num_pending: last.saturating_sub(sequence),
            },
            subject: message.subject.as_str().into(),
            headers: Some(readable(&message.headers)),
            payload: message.payload,
        });
    }
    Ok(singles)
}

/// What can be read of a header block.
fn readable(block: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(block).lines() {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_str(name),
            HeaderValue::from_str(value.trim()),
        ) {
            headers.append(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_of_a_header_block_is_read() {
        let headers = readable(
            b"NATS/1.0 12 no status\r\nno colon\r\n: no name\r\na name: x\r\nNats-Msg-Id:7\r\nA:\xff\r\nNats-Msg-Id: 8\r\n\r\n",
        );
        let id = headers.get("Nats-Msg-Id").map(HeaderValue::as_str);
        assert_eq!(id, Some("7"));
        assert!(readable(b"\xff").is_empty());
    }
}
