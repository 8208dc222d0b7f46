//! What most rows begin with and end with: a server, a daemon's setup, and traffic.

use async_nats::Client;

use super::daemon::{Daemon, Setup};
use super::evidence::{Rounds, Row};
use super::judge;
use super::nats::Nats;
use super::random::Random;
use super::traffic::{Load, Traffic};

/// A row under way.
pub(crate) struct Rig {
    pub(crate) row: Row,
    pub(crate) nats: Nats,
    pub(crate) setup: Setup,
    pub(crate) client: Client,
    pub(crate) traffic: Traffic,
    /// The draws of the faults.
    pub(crate) random: Random,
}

impl Rig {
    /// Traffic that waits for a daemon, which is set so.
    pub(crate) async fn new(rounds: Rounds, nats: Nats, sets: &[&str], load: Load) -> Self {
        let (client, setup) = connected(&nats, sets).await;
        Self::with_traffic(rounds, nats, setup, client, load).await
    }

    /// The same, with a daemon that was ready before the traffic began.
    pub(crate) async fn ready(
        rounds: Rounds,
        nats: Nats,
        sets: &[&str],
        load: Load,
    ) -> (Self, Daemon) {
        let (client, setup) = connected(&nats, sets).await;
        let daemon = setup.start_ready();
        let rig = Self::with_traffic(rounds, nats, setup, client, load).await;
        (rig, daemon)
    }

    async fn with_traffic(
        rounds: Rounds,
        nats: Nats,
        setup: Setup,
        client: Client,
        load: Load,
    ) -> Self {
        let row = Row::new(rounds);
        let traffic = Traffic::start(&client, row.seed(), load).await;
        let random = Random(row.seed());
        Self {
            row,
            nats,
            setup,
            client,
            traffic,
            random,
        }
    }

    /// Ends the traffic, then the daemon, and judges: see [`judge::conclude`].
    pub(crate) async fn conclude(self, daemon: Daemon) {
        judge::conclude(self.row, &self.client, self.traffic, daemon).await;
    }
}

/// A connection of the test's own, and a daemon that is set so.
async fn connected(nats: &Nats, sets: &[&str]) -> (Client, Setup) {
    let client = nats.connect().await.client().clone();
    let setup = sets.iter().fold(Setup::new(nats), |it, set| it.set(set));
    (client, setup)
}
