//! `tocsin digest`: one request and its digest, readable.

use super::EXIT_STATUSES;
use super::arguments::{ClientArgs, parse_user};
use crate::core::ids::UserId;

/// The arguments of `tocsin digest`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_STATUSES)]
pub struct Args {
    /// The user whose digest is asked for.
    #[arg(value_parser = parse_user)]
    pub user: UserId,
    /// What every one-shot command has.
    #[command(flatten)]
    pub client: ClientArgs,
}
