//! `tocsin change`: one change of an alarm.

use std::time::SystemTime;

use super::oneshot::Client;
use super::{CliError, print, runtime};
use crate::bus::wire;
use crate::core::ids::{Id, UserId};
use crate::core::time::Timestamp;
use crate::domains::Command;
use crate::domains::alarms::{AlarmId, Status};

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Whose alarm.
    #[arg(value_parser = id)]
    user: Id,
    /// Which alarm.
    #[arg(value_parser = id)]
    alarm: Id,
    /// CLEARED, WARNING or CRITICAL.
    #[arg(value_parser = status)]
    status: Status,
    /// When it changed, as in 2026-11-20T10:00:00Z; now where it is not given.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<Timestamp>,
    #[command(flatten)]
    client: Client,
}

/// Reads an id of a user or an alarm.
pub(super) fn id(text: &str) -> Result<Id, String> {
    Id::new(text).ok_or_else(|| "must have 1 to 256 bytes".to_owned())
}

fn status(text: &str) -> Result<Status, String> {
    Status::parse(text).ok_or_else(|| "must be CLEARED, WARNING or CRITICAL".to_owned())
}

fn time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| error.to_string())
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let changed_at = args.at.unwrap_or_else(|| Timestamp::EPOCH.plus(since_1970));
    let (subject, payload) = wire::encode_command(&Command::StatusChanged {
        user: UserId(args.user.clone()),
        alarm: AlarmId(args.alarm.clone()),
        status: args.status,
        changed_at,
    });
    runtime()?.block_on(async {
        let connection = args.client.connect().await?;
        args.client.publish(&connection, subject, payload).await
    })?;
    print(&format!(
        "{} {} of {} since {changed_at}",
        args.alarm,
        args.status.as_str(),
        args.user
    ));
    Ok(())
}
