//! `tocsin digest`: one request, and the digest that answers it.

use futures::StreamExt;
use serde_json::json;
use tokio::time::timeout;

use super::change::id;
use super::oneshot::Client;
use super::{CliError, print, runtime};
use crate::bus::wire;
use crate::core::ids::{Id, UserId};
use crate::domains::Command;
use crate::domains::alarms::Digest;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Whose digest.
    #[arg(value_parser = id)]
    user: Id,
    /// How to print it: text for reading, json as it came.
    #[arg(short, long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
    output: String,
    #[command(flatten)]
    client: Client,
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let digest = runtime()?.block_on(ask(args))?;
    let is_json = args.output == "json";
    match digest {
        Some((_, payload)) if is_json => print(&payload),
        Some((digest, _)) => print(&in_words(&digest)),
        None if is_json => {
            print(&json!({ "UserID": args.user.to_string(), "ActiveAlarms": [] }).to_string());
        }
        None => {
            let limit = args.client.timeout();
            print(&format!(
                "nothing new for {} (no digest within {limit:?})",
                args.user
            ));
        }
    }
    Ok(())
}

/// Asks, and waits for the first digest of this user; `None` when none comes in time.
async fn ask(args: &Args) -> Result<Option<(Digest, String)>, CliError> {
    let connection = args.client.connect().await?;
    let lost =
        |error: String| CliError::Unreachable(format!("failed to listen for digests: {error}"));
    let client = connection.client();
    let mut digests = client
        .subscribe(wire::DIGEST)
        .await
        .map_err(|error| lost(error.to_string()))?;
    let user = UserId(args.user.clone());
    let (subject, payload) = wire::encode_command(&Command::SendDigest { user: user.clone() });
    // One connection: the server knows of the subscription before it sees the request.
    args.client.publish(&connection, subject, payload).await?;
    let of_user = async {
        while let Some(message) = digests.next().await {
            if let Ok(digest) = wire::decode_digest(&message.payload)
                && digest.user == user
            {
                return Some((
                    digest,
                    String::from_utf8_lossy(&message.payload).into_owned(),
                ));
            }
        }
        None
    };
    Ok(timeout(args.client.timeout(), of_user)
        .await
        .unwrap_or_default())
}

fn in_words(digest: &Digest) -> String {
    let num_alarms = digest.alarms.len();
    let alarms = if num_alarms == 1 { "alarm" } else { "alarms" };
    let mut lines = vec![format!("{num_alarms} {alarms} for {}", digest.user)];
    for entry in &digest.alarms {
        let (status, alarm) = (entry.status.as_str(), &entry.alarm.0);
        lines.push(format!("  {status:<8} {alarm} since {}", entry.changed_at));
    }
    lines.join("\n")
}
