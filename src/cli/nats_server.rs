//! The hidden `tocsin __nats-server`: the launcher that the child broker of `up` is started through.

use std::ffi::OsString;

use super::{Exit, Failure};
use crate::bus::server::exec_nats_server;

/// The arguments of `tocsin __nats-server`, handed on unread.
#[derive(clap::Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// The parent's process id, the nats-server program, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// Becomes nats-server; returns only to say why it cannot.
#[must_use]
pub fn run(args: Args) -> Failure {
    let error = exec_nats_server(args.args.into_iter());
    Failure::new(
        Exit::Unusable,
        &format!("failed to become nats-server: {error}"),
    )
}
