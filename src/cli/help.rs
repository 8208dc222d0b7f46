//! What stands below help texts: examples that work, and how the command may end.
//!
//! `-h` ends with [`SHORT`]. `--help` ends with an [`epilog`], whose blocks the manual pages show, too.

use std::fmt::Write;

use super::style::HELP;
use super::{EXIT_STATUSES, Exit};

/// Stands below a short help text.
pub const SHORT: &str = "See --help for examples and exit statuses.";

/// Examples, a command a line, and the exit statuses that the command has; below a long help text. The first line
/// of the examples is indented here: a text that begins behind `"\` loses its space.
#[must_use]
pub fn epilog(examples: &str, exits: &[Exit]) -> String {
    let heading = HELP.get_header();
    let mut statuses = EXIT_STATUSES.lines();
    let title = statuses.next().unwrap_or_default();
    let mut epilog =
        format!("{heading}Examples:{heading:#}\n  {examples}\n\n{heading}{title}{heading:#}");
    for line in statuses {
        let number = line.split_whitespace().next();
        let is_ours = |exit: &Exit| number == Some((*exit as u8).to_string().as_str());
        if exits.iter().any(is_ours) {
            write!(epilog, "\n{line}").expect("a text can be written to");
        }
    }
    epilog
}
