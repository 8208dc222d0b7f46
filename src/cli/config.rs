//! `tocsin config`: what is in force and who set it, or what is wrong.

use serde_json::{Map, Value, json};

use super::{CliError, Settings, print};
use crate::config::Loaded;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Prints every key, its value and who set it; secrets are not shown.
    Print {
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", value_parser = ["text", "json"], default_value = "text")]
        output: String,
        #[command(flatten)]
        settings: Settings,
    },
    /// Says in one line what is wrong, and exits 2; starts nothing.
    Check {
        #[command(flatten)]
        settings: Settings,
    },
}

pub(super) fn run(args: &Args) -> Result<(), CliError> {
    match &args.command {
        Command::Print { output, settings } => {
            let loaded = settings.load()?;
            print(&if output == "json" {
                as_json(&loaded)
            } else {
                as_text(&loaded)
            });
        }
        Command::Check { settings } => {
            settings.load()?;
            print("the configuration is well");
        }
    }
    Ok(())
}

fn as_text(loaded: &Loaded) -> String {
    let assignments: Vec<_> = loaded
        .settings
        .iter()
        .map(|setting| {
            (
                format!("{} = {}", setting.key, setting.value),
                &setting.origin,
            )
        })
        .collect();
    let width = assignments
        .iter()
        .map(|(assignment, _)| assignment.len())
        .max()
        .unwrap_or(0);
    let lines = assignments
        .iter()
        .map(|(assignment, origin)| format!("{assignment:<width$}  # {origin}"));
    lines.collect::<Vec<_>>().join("\n")
}

fn as_json(loaded: &Loaded) -> String {
    let settings = loaded.settings.iter().map(|setting| {
        let (key, value) = (setting.key.to_owned(), &setting.value);
        (
            key,
            json!({ "value": value, "origin": setting.origin.to_string() }),
        )
    });
    Value::Object(settings.collect::<Map<_, _>>()).to_string()
}
