//! `tocsin completions`: what a shell offers at the tabulator key.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::Shell;

use super::{Exit, Failure, command, help, print};

const EXAMPLES: &str = "\
  tocsin completions bash > ~/.local/share/bash-completion/completions/tocsin
  tocsin completions zsh > ~/.zfunc/_tocsin       # with fpath+=~/.zfunc before compinit
  tocsin completions fish > ~/.config/fish/completions/tocsin.fish
  tocsin completions elvish >> ~/.config/elvish/rc.elv";

/// The arguments of `tocsin completions`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::OF_LOCAL))]
pub struct Args {
    /// The shell to print the script for.
    #[arg(value_parser = shells())]
    pub shell: Shell,
}

/// The shells whose scripts are tested.
fn shells() -> impl TypedValueParser<Value = Shell> {
    PossibleValuesParser::new(["bash", "zsh", "fish", "elvish"])
        .map(|name| name.parse().expect("clap_complete knows these shells"))
}

/// Prints the script.
///
/// # Errors
/// When standard output cannot be written.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown(), "tocsin", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Well)
}

/// The command line without what is hidden, which bash would offer.
fn shown() -> clap::Command {
    let command = command();
    let below = command.get_subcommands().filter(|it| !it.is_hide_set());
    clap::Command::new("tocsin")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(below.cloned().collect::<Vec<_>>())
}
