//! The hidden `tocsin __nats-server`: the launcher that the child broker of `up` is started through.

use std::ffi::OsString;

/// The arguments of `tocsin __nats-server`, handed on unread.
#[derive(clap::Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// The parent's process id, the nats-server program, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}
