//! `tocsin change`: one change of one alarm.

use serde_json::json;

use super::arguments::{ClientArgs, OutputFormat, parse_id, parse_user};
use super::present::{shown, style_of};
use super::{Exit, Failure, help, oneshot, print, threads};
use crate::bus::{wall_clock, wire};
use crate::core::ids::{Id, UserId};
use crate::core::time::Timestamp;
use crate::domains::Command;
use crate::domains::alarms::{AlarmId, Status};

const EXAMPLES: &str = "\
  tocsin change ann disk CRITICAL
  tocsin change ann disk CLEARED --at 2026-01-31T08:00:00Z
  tocsin change ann disk WARNING --url nats://broker:4222 -o json";

/// The arguments of `tocsin change`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::ALL))]
pub struct Args {
    /// The user whose alarm it is.
    #[arg(value_parser = parse_user)]
    pub user: UserId,
    /// The alarm.
    #[arg(value_parser = parse_id)]
    pub alarm: Id,
    /// CLEARED, WARNING or CRITICAL, in any case.
    #[arg(value_parser = parse_status)]
    pub status: Status,
    /// When it changed, in RFC 3339 [default: now].
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub at: Option<Timestamp>,
    /// What every one-shot command has.
    #[command(flatten)]
    pub client: ClientArgs,
}

fn parse_status(text: &str) -> Result<Status, String> {
    Status::parse(&text.to_ascii_uppercase())
        .ok_or_else(|| "must be CLEARED, WARNING or CRITICAL".to_owned())
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    Timestamp::parse(text).map_err(|error| format!("{error}; write it like 2026-01-31T00:00:00Z"))
}

/// Publishes the change, and says so once it is taken.
///
/// # Errors
/// When the broker cannot be reached, or nobody takes the message.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let changed_at = args.at.unwrap_or_else(wall_clock);
    let message = wire::encode_command(&Command::StatusChanged {
        user: args.user.clone(),
        alarm: AlarmId(args.alarm.clone()),
        status: args.status,
        changed_at,
    });
    threads()?.block_on(async {
        let connection = oneshot::connect(&args.client).await?;
        oneshot::publish(&connection, message.clone(), args.client.timeout).await
    })?;
    let (alarm, user) = (shown(&args.alarm), shown(&args.user));
    let (style, status) = (style_of(args.status), args.status.as_str());
    print(&match args.client.output {
        OutputFormat::Text => {
            format!("{alarm} {style}{status}{style:#} of {user} since {changed_at}\n")
        }
        OutputFormat::Json => {
            let (subject, payload) = message;
            let change: serde_json::Value = serde_json::from_slice(&payload).unwrap_or_default();
            format!("{}\n", json!({ "subject": subject, "message": change }))
        }
    })?;
    Ok(Exit::Well)
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        let matches = Args::augment_args(clap::Command::new("change").no_binary_name(true))
            .try_get_matches_from(arguments)?;
        Args::from_arg_matches(&matches)
    }

    #[test]
    fn user_alarm_status_and_time_are_read() {
        let args = parse(&["u1", "a.b", "critical", "--at", "2026-01-31T01:00:00+01:00"]).unwrap();
        assert_eq!(args.user, UserId(Id::new("u1").unwrap()));
        assert_eq!(args.alarm, Id::new("a.b").unwrap());
        assert_eq!(args.status, Status::Critical);
        assert_eq!(args.at.unwrap().to_string(), "2026-01-31T00:00:00Z");
        assert_eq!(args.client.timeout.as_secs(), 5);
    }

    #[test]
    fn what_the_daemon_would_refuse_is_refused_here() {
        for arguments in [
            &["u1", "a1"][..],
            &["", "a1", "WARNING"],
            &["u1", "a1", "BROKEN"],
            &["u1", "a1", "WARNING", "--at", "yesterday"],
            &["u1", "a1", "WARNING", "--timeout", "0s"],
            &["u1", "a1", "WARNING", "--timeout", "5"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
