//! `tocsin config`: the effective configuration with the origin of every value, or whether it is valid.
//!
//! `print` gives a valid configuration file: every key with its value, and in a comment who set it.
//! Secrets are shown as `[redacted]`.

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::{ConfigArgs, OutputFormat};
use super::{EXIT_STATUSES, Exit, Failure, print};
use crate::config::{Config, Loaded, Origin, Setting};

/// The arguments of `tocsin config`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Prints every key with its value and who set it.
    Print(Reading),
    /// Says whether the configuration is valid, and where it comes from.
    Check(Reading),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = EXIT_STATUSES)]
struct Reading {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

/// Runs `tocsin config`.
///
/// # Errors
/// What is wrong with the configuration, or that standard output cannot be written.
pub fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Print(reading) => {
            let loaded = Config::load(&reading.config.into_sources())?;
            print(&match reading.output {
                OutputFormat::Text => as_toml(&loaded.settings),
                OutputFormat::Json => format!("{}\n", as_json(&loaded.settings)),
            })?;
        }
        Command::Check(reading) => check(reading)?,
    }
    Ok(Exit::Well)
}

fn check(reading: Reading) -> Result<(), Failure> {
    let loaded = Config::load(&reading.config.into_sources());
    if reading.output == OutputFormat::Text {
        let num_changed = num_changed(&loaded?);
        return print(&format!(
            "the configuration is valid; keys that differ from the default: {num_changed}\n"
        ));
    }
    let verdict = match &loaded {
        Ok(loaded) => json!({"Valid": true, "Changed": num_changed(loaded)}),
        Err(error) => json!({"Valid": false, "Error": error.to_string()}),
    };
    print(&format!("{verdict}\n"))?;
    loaded?;
    Ok(())
}

fn num_changed(loaded: &Loaded) -> usize {
    let is_changed = |setting: &&Setting| setting.origin != Origin::Default;
    loaded.settings.iter().filter(is_changed).count()
}

fn as_toml(settings: &[Setting]) -> String {
    let lines: Vec<_> = settings
        .iter()
        .map(|setting| {
            // JSON's quoted strings are TOML's basic strings; there is no null.
            let value = if setting.value.is_null() {
                "\"\"".to_owned()
            } else {
                setting.value.to_string()
            };
            (format!("{} = {value}", setting.key), &setting.origin)
        })
        .collect();
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    lines.iter().fold(String::new(), |text, (line, origin)| {
        text + &format!("{line:width$}  # {origin}\n")
    })
}

fn as_json(settings: &[Setting]) -> Value {
    settings
        .iter()
        .map(|setting| {
            json!({
                "Key": setting.key,
                "Value": setting.value,
                "Origin": setting.origin.to_string(),
            })
        })
        .collect()
}
