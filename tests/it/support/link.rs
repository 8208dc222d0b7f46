//! A link to a broker that the test makes bad while it is used: a TCP proxy.
//!
//! | condition | how |
//! |---|---|
//! | slow | every byte takes its time, or only so many pass in a second |
//! | silent, in one direction or both | nothing is read any more, and the connection stays open: what was sent arrives when it ends, as TCP sends again what a network has swallowed |
//! | reset | RST to both sides |
//! | cut | the connection ends behind some of the bytes of a message: the rest never comes |
//! | refused | nobody listens, and what was connected is reset |
//!
//! What it did is counted, so that a test can demand that its fault happened.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// Bytes that are under way at the most, in each direction of a connection.
const MAX_UNDER_WAY: usize = 4 << 20;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Direction {
    /// From who connected to the server.
    ToServer,
    /// From the server to who connected.
    ToClient,
}

/// A link to one server. Dropped, it and its connections are gone.
pub(crate) struct Link {
    address: SocketAddr,
    conditions: Arc<watch::Sender<Conditions>>,
    counts: Arc<Counts>,
    _listening: AbortOnDropHandle<()>,
}

#[derive(Clone, Debug, Default)]
struct Conditions {
    delay: Duration,
    bytes_per_second: Option<u64>,
    is_silent: [bool; 2],
    is_refused: bool,
    /// How often everything was reset: a connection of an earlier number ends.
    num_resets: u64,
    /// How often a cut was asked for, in each direction, and behind how much of a message.
    cuts: [(u64, u64); 2],
}

/// What a link has done.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Connections accepted.
    pub(crate) accepted: AtomicU64,
    /// Connections reset.
    pub(crate) reset: AtomicU64,
    /// Messages cut, with their connection.
    pub(crate) cut: AtomicU64,
    /// Bytes that came later than they could have.
    pub(crate) slowed: AtomicU64,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Closed,
    Reset,
    Cut,
}

impl Link {
    /// A perfect link to the server with this address.
    pub(crate) async fn to(url: &str) -> Self {
        let server = url.replace("nats://", "");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has one");
        let conditions = Arc::new(watch::Sender::new(Conditions::default()));
        let counts = Arc::<Counts>::default();
        let listening = listen(
            listener,
            address,
            server,
            Arc::clone(&conditions),
            Arc::clone(&counts),
        );
        Self {
            address,
            conditions,
            counts,
            _listening: AbortOnDropHandle::new(tokio::spawn(listening)),
        }
    }

    /// Where to connect.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// What it has done.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// From now on a byte takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.conditions.send_modify(|now| now.delay = delay);
    }

    /// From now on so many bytes pass in a second, in each direction of each connection.
    pub(crate) fn throttle(&self, bytes_per_second: u64) {
        let rate = Some(bytes_per_second);
        self.conditions
            .send_modify(|now| now.bytes_per_second = rate);
    }

    /// From now on nothing passes that way, and nobody is told.
    pub(crate) fn silence(&self, direction: Direction) {
        self.conditions
            .send_modify(|now| now.is_silent[direction as usize] = true);
    }

    /// Nobody listens any more, and what was connected is reset.
    pub(crate) fn refuse(&self) {
        self.conditions.send_modify(|now| {
            now.is_refused = true;
            now.num_resets += 1;
        });
    }

    /// Resets every connection.
    pub(crate) fn reset(&self) {
        self.conditions.send_modify(|now| now.num_resets += 1);
    }

    /// Of each connection, cuts the next message that goes that way, behind a part of it that the draw chooses.
    pub(crate) fn cut(&self, direction: Direction, draw: u64) {
        self.conditions.send_modify(|now| {
            let (num, kept) = &mut now.cuts[direction as usize];
            *num += 1;
            *kept = draw;
        });
    }

    /// Is a perfect link again; what is cut or reset stays so.
    pub(crate) fn heal(&self) {
        self.conditions.send_modify(|now| {
            *now = Conditions {
                num_resets: now.num_resets,
                cuts: now.cuts,
                ..Conditions::default()
            };
        });
    }
}

async fn listen(
    listener: TcpListener,
    address: SocketAddr,
    server: String,
    conditions: Arc<watch::Sender<Conditions>>,
    counts: Arc<Counts>,
) {
    let mut listener = Some(listener);
    let mut changes = conditions.subscribe();
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let is_refused = changes.borrow_and_update().is_refused;
        if is_refused {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
            if listener.is_none() {
                // Another test's client may have this port as its own for a moment.
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        }
        let accepting = async {
            match &listener {
                Some(listener) => listener.accept().await.expect("a connection").0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            near = accepting => {
                // The server may be away: then who connected is closed.
                let Ok(far) = TcpStream::connect(&server).await else { continue };
                counts.accepted.fetch_add(1, Ordering::Relaxed);
                let (changes, counts) = (conditions.subscribe(), Arc::clone(&counts));
                connections.spawn(carry(near, far, changes, counts));
            }
            seen = changes.changed() => if seen.is_err() { return },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection to its end.
async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    conditions: watch::Receiver<Conditions>,
    counts: Arc<Counts>,
) {
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let end = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let way = |direction| Way {
            direction,
            num_cuts: conditions.borrow().cuts[direction as usize].0,
            conditions: conditions.clone(),
            counts: Arc::clone(&counts),
        };
        let num_resets = conditions.borrow().num_resets;
        let mut conditions = conditions.clone();
        let is_reset = async {
            drop(conditions.wait_for(|now| now.num_resets > num_resets).await);
            End::Reset
        };
        tokio::select! {
            biased;
            end = is_reset => end,
            end = way(Direction::ToServer).pass_on(near_read, far_write) => end,
            end = way(Direction::ToClient).pass_on(far_read, near_write) => end,
        }
    };
    match end {
        End::Closed => {}
        End::Reset => {
            near.set_zero_linger().ok();
            far.set_zero_linger().ok();
            counts.reset.fetch_add(1, Ordering::Relaxed);
        }
        End::Cut => {
            counts.cut.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One direction of a connection.
struct Way {
    direction: Direction,
    /// How many cuts were asked for that are not for this connection, or not any more.
    num_cuts: u64,
    conditions: watch::Receiver<Conditions>,
    counts: Arc<Counts>,
}

impl Way {
    async fn pass_on(mut self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> End {
        let mut under_way = VecDeque::<(Instant, Vec<u8>)>::new();
        let mut num_under_way = 0;
        let mut buffer = vec![0; 64 * 1024];
        let mut end = None;
        loop {
            let now = self.conditions.borrow_and_update().clone();
            let is_silent = now.is_silent[self.direction as usize];
            let may_read = end.is_none() && !is_silent && num_under_way < MAX_UNDER_WAY;
            let first = under_way.front().map(|(at, _)| *at);
            if let (true, Some(end)) = (under_way.is_empty(), end) {
                return end;
            }
            tokio::select! {
                changed = self.conditions.changed() => if changed.is_err() { return End::Closed },
                () = sleep_until(first.unwrap_or_else(Instant::now)), if first.is_some() && !is_silent => {
                    let (_, bytes) = under_way.pop_front().expect("there is a first");
                    num_under_way -= bytes.len();
                    if self.send(&mut to, &bytes).await.is_err() {
                        return End::Closed;
                    }
                }
                read = from.read(&mut buffer), if may_read => {
                    let Ok(len @ 1..) = read else {
                        end = Some(End::Closed);
                        continue;
                    };
                    let mut bytes = buffer[..len].to_vec();
                    if let Some(kept) = self.kept_of(&bytes) {
                        bytes.truncate(kept);
                        end = Some(End::Cut);
                    }
                    if !now.delay.is_zero() {
                        self.slowed(bytes.len());
                    }
                    num_under_way += bytes.len();
                    under_way.push_back((Instant::now() + now.delay, bytes));
                }
            }
        }
    }

    async fn send(&self, to: &mut WriteHalf<'_>, bytes: &[u8]) -> std::io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            let rate = self.conditions.borrow().bytes_per_second;
            let len = rate.map_or(left.len(), |rate| {
                left.len().min((rate / 20).max(1) as usize)
            });
            let (now, later) = left.split_at(len);
            to.write_all(now).await?;
            left = later;
            if rate.is_some() {
                self.slowed(len);
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn slowed(&self, num_bytes: usize) {
        let slowed = &self.counts.slowed;
        slowed.fetch_add(num_bytes as u64, Ordering::Relaxed);
    }

    /// How many of the bytes pass, when a message among them is to be cut.
    fn kept_of(&mut self, bytes: &[u8]) -> Option<usize> {
        let (num_cuts, draw) = self.conditions.borrow().cuts[self.direction as usize];
        if num_cuts == self.num_cuts {
            return None;
        }
        let (begin, len) = message_in(bytes)?;
        self.num_cuts = num_cuts;
        let kept = begin + 1 + (draw % (len as u64 - 1)) as usize;
        Some(kept.min(bytes.len()))
    }
}

/// Where the first message with a payload begins that begins in these bytes, and how long it is.
fn message_in(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while let Some(len) = bytes[at..].windows(2).position(|pair| pair == b"\r\n") {
        let line = std::str::from_utf8(&bytes[at..at + len]).unwrap_or_default();
        let is_message = ["PUB ", "HPUB ", "MSG ", "HMSG "]
            .iter()
            .any(|operation| line.starts_with(operation));
        let size = line.rsplit(' ').next().and_then(|size| size.parse().ok());
        if let (true, Some(size @ 1..)) = (is_message, size) {
            let size: usize = size;
            return Some((at, len + 2 + size + 2));
        }
        at += len + 2;
    }
    None
}
