//! `tocsin digest`: one request and its digest, readable.

use super::arguments::{ClientArgs, OutputFormat, parse_user};
use super::{Exit, Failure, help, oneshot, present, print, threads};
use crate::bus::{wall_clock, wire};
use crate::core::ids::UserId;
use crate::domains::alarms::Digest;

const EXAMPLES: &str = "\
  tocsin digest ann
  tocsin digest ann -o json --timeout 1s
  tocsin digest ann --config /etc/tocsin/tocsin.toml";

/// The arguments of `tocsin digest`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::ALL))]
pub struct Args {
    /// The user whose digest is asked for.
    #[arg(value_parser = parse_user)]
    pub user: UserId,
    /// What every one-shot command has.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Asks for the digest, and prints the one that comes: as text, or in its own bytes.
///
/// # Errors
/// When the broker cannot be reached, or no daemon answers.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let joined = threads()?.block_on(async {
        let connection = oneshot::connect(&args.client).await?;
        oneshot::ask(&connection, &args.user, args.client.timeout).await
    })?;
    let nothing = Digest {
        user: args.user.clone(),
        alarms: Vec::new(),
    };
    print(&match args.client.output {
        OutputFormat::Json => {
            let payload = joined.map_or_else(|| wire::encode_digest(&nothing), |it| it.payload);
            format!("{}\n", String::from_utf8_lossy(&payload))
        }
        OutputFormat::Text => {
            let digest = joined.map_or(nothing, |it| it.digest);
            if digest.alarms.is_empty() {
                format!("nothing is new for {}\n", present::shown(&digest.user))
            } else {
                present::digest(&digest, wall_clock())
            }
        }
    })?;
    Ok(Exit::Well)
}
