//! The `tocsin` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    tocsin::cli::run()
}
