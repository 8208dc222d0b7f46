//! The `tocsin` program: everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tocsin::cli::run()
}
