//! `tocsin config`: the effective configuration with the origin of every value, whether it is valid, and its
//! schema.
//!
//! `print` gives a valid configuration file: every key with its value, and in a comment who set it.
//! Secrets are shown as `[redacted]`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::{ConfigArgs, OutputFormat};
use super::{Exit, Failure, complain, help, print};
use crate::config::{Config, Loaded, Origin, Setting};

const EXAMPLES: &str = "\
  tocsin config print                      # every setting, and who set it
  tocsin config check /etc/tocsin/tocsin.toml
  tocsin config schema > tocsin.schema.json";

const PRINT_EXAMPLES: &str = "\
  tocsin config print                      # every setting, and who set it
  tocsin config print > tocsin.toml        # a file to begin with; secrets are [redacted]
  tocsin config print -o json --set input.mode=core";

const CHECK_EXAMPLES: &str = "\
  tocsin config check                      # what `tocsin serve` would use here
  tocsin config check tocsin.yaml
  tocsin config check tocsin.toml -o json";

const SCHEMA_EXAMPLES: &str = "\
  tocsin config schema > tocsin.schema.json

  first line of tocsin.toml (Taplo, Even Better TOML):  #:schema ./tocsin.schema.json
  first line of tocsin.yaml (yaml-language-server):     # yaml-language-server: $schema=./tocsin.schema.json
  a key of tocsin.json:                                 \"$schema\": \"./tocsin.schema.json\"";

/// The arguments of `tocsin config`.
#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = help::SHORT,
    after_long_help = help::epilog(EXAMPLES, &Exit::OF_LOCAL)
)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Prints every key with its value and who set it.
    Print(PrintArgs),
    /// Says whether the configuration is valid, and where it comes from; starts nothing.
    Check(CheckArgs),
    /// Prints the JSON Schema of a configuration file, for editors.
    #[command(
        after_help = help::SHORT,
        after_long_help = help::epilog(SCHEMA_EXAMPLES, &Exit::OF_LOCAL)
    )]
    Schema,
}

#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = help::SHORT,
    after_long_help = help::epilog(PRINT_EXAMPLES, &Exit::OF_LOCAL)
)]
struct PrintArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
}

#[derive(clap::Args, Clone, Debug)]
#[command(
    after_help = help::SHORT,
    after_long_help = help::epilog(CHECK_EXAMPLES, &Exit::OF_LOCAL)
)]
struct CheckArgs {
    /// The file to check, the same as --config FILE.
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
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
        Command::Print(args) => {
            let loaded = Config::load(&args.config.into_sources())?;
            print(&match args.output {
                OutputFormat::Text => as_toml(&loaded.settings),
                OutputFormat::Json => format!("{}\n", as_json(&loaded.settings)),
            })?;
        }
        Command::Check(args) => check(args)?,
        Command::Schema => print(&format!("{:#}\n", Config::schema()))?,
    }
    Ok(Exit::Well)
}

fn check(args: CheckArgs) -> Result<(), Failure> {
    let mut config = args.config;
    config.config = config.config.or(args.file);
    let loaded = Config::load(&config.into_sources());
    if args.output == OutputFormat::Text {
        let loaded = loaded?;
        for warning in &loaded.warnings {
            complain(&format!("warning: {warning}"));
        }
        let file = match &loaded.file {
            Some(file) => format!("file {file}"),
            None => "no file".to_owned(),
        };
        let num_changed = num_changed(&loaded);
        return print(&format!(
            "the configuration is valid: {file}; keys that differ from the default: {num_changed}\n"
        ));
    }
    let verdict = match &loaded {
        Ok(loaded) => json!({
            "Valid": true,
            "File": loaded.file.as_ref().map(|file| file.path.display().to_string()),
            "Changed": num_changed(loaded),
            "Warnings": loaded.warnings,
        }),
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
