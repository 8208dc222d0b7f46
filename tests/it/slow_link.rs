//! A broker far away: every byte takes its time, and nothing else is wrong.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::support::daemon::Setup;
use crate::support::judge;
use crate::support::nats::Nats;
use crate::support::traffic::change_and_request;

/// How long a byte takes in each direction: a satellite's link.
const DELAY: Duration = Duration::from_millis(250);

/// Listens, and passes everything on to the server with a delay; returns where it listens.
async fn delayed(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener
        .local_addr()
        .expect("a bound socket has an address");
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&server)
                .await
                .expect("the server listens");
            let (near, far) = (near.into_split(), far.into_split());
            tokio::spawn(pass_on(near.0, far.1));
            tokio::spawn(pass_on(far.0, near.1));
        }
    });
    format!("nats://{address}")
}

async fn pass_on(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
) {
    let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(10_000);
    tokio::spawn(async move {
        while let Some((at, bytes)) = under_way.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        let sent = sender.send((Instant::now() + DELAY, buffer[..len].to_vec()));
        if sent.await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_half_a_second_away_is_read_all_the_same() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let url = delayed(nats.url().replace("nats://", "")).await;
    let setup = Setup::with_url(url);
    let _daemon = setup.start_ready();
    change_and_request(&client, "ann", "disk", "CRITICAL", 1).await;
    judge::judge(&client).await;
}
