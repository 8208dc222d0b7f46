//! `tocsin man`: the manual pages, made of what `--help` says.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap_mangen::Man;

use super::{Exit, Failure, command, help, print};

const EXAMPLES: &str = "\
  tocsin man | man -l -                    # the page of tocsin itself
  tocsin man config check | man -l -
  tocsin man --dir /usr/local/share/man/man1";

/// The arguments of `tocsin man`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::OF_LOCAL))]
pub struct Args {
    /// The command to print the page of, for example: config check [default: tocsin itself].
    #[arg(value_name = "COMMAND")]
    pub path: Vec<String>,
    /// The folder to write every page to, instead of printing one; made where it is missing.
    #[arg(long, value_name = "DIR", conflicts_with = "path")]
    pub dir: Option<PathBuf>,
}

/// Prints a page, or writes all of them.
///
/// # Errors
/// When there is no such command, or a page cannot be written.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let mut root = command().disable_help_subcommand(true);
    root.build();
    let Some(folder) = &args.dir else {
        let page = page(find(&root, &args.path)?.clone());
        print(&page.text)?;
        return Ok(Exit::Well);
    };
    let mut pages = Vec::new();
    collect(&root, &mut pages);
    write(folder, &pages).map_err(|error| {
        let line = format!(
            "failed to write manual pages to {}: {error}",
            folder.display()
        );
        Failure::new(Exit::WriteFailed, &line)
    })?;
    print(&format!(
        "{} manual pages are in {}\n",
        pages.len(),
        folder.display()
    ))?;
    Ok(Exit::Well)
}

fn find<'a>(root: &'a clap::Command, path: &[String]) -> Result<&'a clap::Command, Failure> {
    path.iter().try_fold(root, |command, name| {
        command.find_subcommand(name).ok_or_else(|| {
            let line = format!("there is no command {}; see --help", path.join(" "));
            Failure::new(Exit::Unusable, &line)
        })
    })
}

struct Page {
    file_name: String,
    text: String,
}

/// The pages of a command and of what is below it.
fn collect(command: &clap::Command, pages: &mut Vec<Page>) {
    pages.push(page(command.clone()));
    let shown = command.get_subcommands().filter(|it| !it.is_hide_set());
    shown.for_each(|below| collect(below, pages));
}

fn write(folder: &Path, pages: &[Page]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for Page { file_name, text } in pages {
        fs::write(folder.join(file_name), text)?;
    }
    Ok(())
}

fn page(command: clap::Command) -> Page {
    let epilog = command.get_after_long_help().map(ToString::to_string);
    let has_options = command.get_arguments().any(|it| !it.is_hide_set());
    let has_subcommands = command.get_subcommands().any(|it| !it.is_hide_set());
    let source = concat!("tocsin ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).source(source).manual("tocsin");
    let mut text = Vec::new();
    let rendered = (|| {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        if has_options {
            man.render_options_section(&mut text)?;
        }
        if has_subcommands {
            man.render_subcommands_section(&mut text)?;
        }
        io::Result::Ok(())
    })();
    rendered.expect("a vector can be written to");
    let mut text = String::from_utf8_lossy(&text).into_owned();
    for block in epilog.unwrap_or_default().split("\n\n") {
        text.push_str(&section(block));
    }
    Page {
        file_name: man.get_filename(),
        text,
    }
}

/// A block below a help text as it stands there: `Title:`, then indented lines.
fn section(block: &str) -> String {
    let (heading, lines) = match block.split_once('\n') {
        Some((title, lines)) if !title.starts_with(' ') => {
            let title = title.trim_end_matches(':').to_uppercase();
            (format!(".SH \"{title}\"\n"), lines)
        }
        Some(_) | None => (".PP\n".to_owned(), block),
    };
    let lines = lines.lines().map(|line| {
        let line = line.strip_prefix("  ").unwrap_or(line);
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A line must not begin as a request does.
        format!("\\&{line}\n")
    });
    format!("{heading}.nf\n{}.fi\n", lines.collect::<String>())
}
