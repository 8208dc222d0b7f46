//! `tocsin digest`: one request and its digest, readable.

use futures::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use super::arguments::{ClientArgs, OutputFormat, parse_user};
use super::{Exit, Failure, help, oneshot, print, threads};
use crate::bus::wire;
use crate::core::ids::UserId;
use crate::domains::Command;
use crate::domains::alarms::Digest;

const EXITS: [Exit; 6] = [
    Exit::Well,
    Exit::NotTaken,
    Exit::Unusable,
    Exit::Unreachable,
    Exit::Defect,
    Exit::WriteFailed,
];

const EXAMPLES: &str = "\
  tocsin digest ann
  tocsin digest ann -o json --timeout 1s
  tocsin digest ann --config /etc/tocsin/tocsin.toml";

/// The arguments of `tocsin digest`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &EXITS))]
pub struct Args {
    /// The user whose digest is asked for.
    #[arg(value_parser = parse_user)]
    pub user: UserId,
    /// What every one-shot command has.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Asks for the digest, and prints the one that comes.
///
/// # Errors
/// When the broker cannot be reached, or nobody takes the request.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let digest = threads()?.block_on(ask(args))?;
    print(&match (args.client.output, digest) {
        (OutputFormat::Json, Some((_, payload))) => format!("{payload}\n"),
        (OutputFormat::Text, Some((digest, _))) => in_words(&digest),
        (OutputFormat::Json, None) => {
            format!(
                "{}\n",
                json!({ "UserID": args.user.to_string(), "ActiveAlarms": [] })
            )
        }
        (OutputFormat::Text, None) => {
            let limit = args.client.timeout;
            format!(
                "no digest for {} within {limit:?}: nothing is new, or no daemon is running\n",
                args.user
            )
        }
    })?;
    Ok(Exit::Well)
}

/// Asks, and waits for the first digest of this user; `None` when none comes in time.
async fn ask(args: &Args) -> Result<Option<(Digest, String)>, Failure> {
    let connection = oneshot::connect(&args.client).await?;
    // One connection: the server knows of the subscription before it sees the request.
    let listening = connection.client().subscribe(wire::DIGEST).await;
    let mut digests = listening.map_err(|error| {
        let line = format!("failed to listen on {}: {error}", wire::DIGEST);
        Failure::new(Exit::Unreachable, &line)
    })?;
    let request = Command::SendDigest {
        user: args.user.clone(),
    };
    let (subject, payload) = wire::encode_command(&request);
    oneshot::publish(&args.client, &connection, subject, payload).await?;
    let of_user = async {
        while let Some(message) = digests.next().await {
            if let Ok(digest) = wire::decode_digest(&message.payload)
                && digest.user == args.user
            {
                return Some((
                    digest,
                    String::from_utf8_lossy(&message.payload).into_owned(),
                ));
            }
        }
        None
    };
    Ok(timeout(args.client.timeout, of_user)
        .await
        .unwrap_or_default())
}

fn in_words(digest: &Digest) -> String {
    let num_alarms = digest.alarms.len();
    let alarms = if num_alarms == 1 { "alarm" } else { "alarms" };
    let entries = digest.alarms.iter().map(|entry| {
        let (status, alarm) = (entry.status.as_str(), &entry.alarm.0);
        format!("  {status:<8} {alarm} since {}\n", entry.changed_at)
    });
    format!(
        "{num_alarms} {alarms} for {}\n{}",
        digest.user,
        entries.collect::<String>()
    )
}
