//! Which bus the configuration and the server ask for.

use std::sync::Arc;

use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::bus::connection::{Connector, Settings};
use crate::bus::core_nats::{self, CoreNats};
use crate::bus::jetstream::{
    CLAIM_TTL, ClaimStream, InputStream, JetStream, OutputStream, Streams, has_streams,
};
use crate::bus::{Bus, BusError, wire};
use crate::config::{Config, InputMode, InputStart, Nats};

/// How the configuration says to log in.
#[must_use]
pub fn login(nats: &Nats) -> Settings {
    Settings {
        urls: nats.url.expose().to_vec(),
        name: nats.name.clone(),
        inbox_prefix: Some(nats.inbox_prefix.clone()),
        credentials_file: nats.credentials_file.clone(),
        user: nats.user.clone(),
        password: nats
            .password
            .as_ref()
            .map(|secret| secret.expose().to_owned()),
        token: nats.token.as_ref().map(|secret| secret.expose().to_owned()),
        tls_ca_file: nats.tls_ca_file.clone(),
        tls_cert_file: nats.tls_cert_file.clone(),
        tls_key_file: nats.tls_key_file.clone(),
    }
}

/// Connects, and waits for the broker for as long as it takes.
pub(super) async fn connect(config: &Config) -> Result<Arc<dyn Bus>, BusError> {
    let connector = Connector::new(login(&config.nats), Handle::current());
    let is_core = match config.input.mode {
        InputMode::JetStream => false,
        InputMode::Core => true,
        InputMode::Auto => {
            let asking = connector.connect("mode", 1024).await?;
            !has_streams(&asking).await
        }
    };
    if is_core {
        warn!(
            "core NATS: what the network or a crash before the commit loses is lost, unless the publisher waits \
             for the reply and repeats"
        );
        if config.input.start != InputStart::First {
            warn!("input.start has no meaning on core NATS, which keeps nothing");
        }
        let subjects = (&wire::CHANGE_SUBJECTS, &wire::REQUEST_SUBJECTS);
        let settings = core_nats::Settings {
            allow_stream_positions: config.input.mode == InputMode::Core,
            ..core_nats::Settings::new(subjects.0, subjects.1, wire::OWNER)
        };
        return Ok(Arc::new(CoreNats::connect(connector, settings).await?));
    }
    info!(
        "JetStream: every message in the stream is applied once, every digest published until confirmed"
    );
    Ok(Arc::new(
        JetStream::open(&connector, streams(config)).await?,
    ))
}

/// The stream that says who owns the input.
#[must_use]
pub fn claim_stream() -> ClaimStream {
    ClaimStream {
        name: wire::CLAIM_STREAM.to_owned(),
        subject: wire::CLAIM.to_owned(),
        ttl: CLAIM_TTL,
    }
}

/// The streams that the configuration asks for.
#[must_use]
pub fn streams(config: &Config) -> Streams {
    let output = |name: &str, subject: &str| OutputStream {
        name: name.to_owned(),
        subject: subject.to_owned(),
        max_age: config.output.stream_max_age,
        max_bytes: config.output.stream_max_bytes,
        duplicate_window: config.output.duplicate_window,
    };
    Streams {
        input: InputStream {
            name: wire::INPUT_STREAM.to_owned(),
            subjects: wire::INPUT_SUBJECTS.map(str::to_owned).to_vec(),
            max_age: config.input.stream_max_age,
            max_bytes: config.input.stream_max_bytes,
        },
        outputs: vec![
            output(wire::OUTPUT_STREAM, wire::DIGEST),
            output(wire::DEAD_LETTER_STREAM, wire::DEAD_LETTER),
        ],
        claim: claim_stream(),
        replicas: config.input.replicas,
    }
}
