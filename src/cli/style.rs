//! How what is printed for people looks. [`super::print()`] leaves colours out where nobody would see them.
//!
//! A style is written before a text, and its end behind it: `{CRITICAL}disk{CRITICAL:#}`.

use anstyle::{AnsiColor, Style};
use clap::builder::Styles;

/// A critical alarm, a check that failed.
pub const CRITICAL: Style = AnsiColor::Red.on_default().bold();
/// A warning, something that is only different.
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
/// A cleared alarm, a check that passed.
pub const CLEARED: Style = AnsiColor::Green.on_default();
/// What a section or a table is headed with.
pub const HEADING: Style = Style::new().bold();
/// What is beside the point: ages, counts, hints.
pub const DIM: Style = Style::new().dimmed();
/// Help texts.
pub const HELP: Styles = Styles::styled()
    .header(HEADING)
    .usage(HEADING)
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(DIM);
