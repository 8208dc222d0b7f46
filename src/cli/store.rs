//! `tocsin store`: what is in the store of a daemon that is stopped, whether it is whole, and reading the input
//! again.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::arguments::{ConfigArgs, OutputFormat};
use super::style::{CLEARED, CRITICAL, DIM, WARNING};
use super::{Exit, Failure, help, print, threads};
use crate::app::AppError;
use crate::app::upkeep::{self, Rewind, Stats, Verification};
use crate::config::{Config, StoreKind};
use crate::core::position::{Origin, Position, RewindTo};
use crate::core::time::Timestamp;
use crate::domains::alarms::Status;
use crate::store::inspect::{CheckedFile, Verdict};

const EXAMPLES: &str = "\
  tocsin store stats
  tocsin store verify --set store.path=./tocsin-data/store
  tocsin store rewind --to 2026-01-31T08:00:00Z";

const STATS_EXAMPLES: &str = "\
  tocsin store stats                       # the store that `tocsin serve` would use here
  tocsin store stats --set store.path=./tocsin-data/store
  tocsin store stats --config /etc/tocsin/tocsin.toml -o json";

const VERIFY_EXAMPLES: &str = "\
  tocsin store verify
  tocsin store verify --set store.path=/backup/tocsin -o json";

const REWIND_EXAMPLES: &str = "\
  tocsin store rewind --to first           # everything that the stream still holds
  tocsin store rewind --to 120000
  tocsin store rewind --to 2026-01-31T08:00:00Z --yes";

/// The arguments of `tocsin store`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::OF_LOCAL))]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Counts what is in the store; changes nothing.
    Stats(StatsArgs),
    /// Reads every byte of the store and checks every checksum; changes nothing.
    Verify(VerifyArgs),
    /// Has the daemon read its input again, from a sequence or a time, at its next start.
    Rewind(RewindArgs),
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(STATS_EXAMPLES, &Exit::OF_LOCAL))]
struct StatsArgs {
    #[command(flatten)]
    looking: Looking,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(VERIFY_EXAMPLES, &Exit::OF_LOCAL))]
struct VerifyArgs {
    #[command(flatten)]
    looking: Looking,
}

#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(REWIND_EXAMPLES, &Exit::OF_LOCAL))]
struct RewindArgs {
    /// What is read first: `first`, the message of a sequence of `TOCSIN_IN`, or the first message not before a
    /// time such as 2026-01-31T08:00:00Z.
    #[arg(long, value_name = "first|SEQUENCE|TIME", value_parser = parse_target)]
    to: RewindTo,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    looking: Looking,
}

/// Which store, and how it is shown.
#[derive(clap::Args, Clone, Debug)]
struct Looking {
    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: OutputFormat,
    #[command(flatten)]
    config: ConfigArgs,
}

fn parse_target(text: &str) -> Result<RewindTo, String> {
    let wanted = "must be first, a sequence from 1 on, or a time such as 2026-01-31T08:00:00Z";
    if text == "first" {
        return Ok(RewindTo::First);
    }
    match text.parse() {
        Ok(0) => Err(wanted.to_owned()),
        Ok(sequence) => Ok(RewindTo::Sequence(sequence)),
        Err(_) => Timestamp::parse(text)
            .map(RewindTo::Time)
            .map_err(|_| wanted.to_owned()),
    }
}

/// Runs `tocsin store`.
///
/// # Errors
/// When there is no such store, a daemon uses it, or it is damaged.
pub fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Stats(StatsArgs { looking }) => {
            let folder = looking.folder()?;
            let stats = upkeep::stats(&folder).map_err(AppError::from)?;
            print(&match looking.output {
                OutputFormat::Text => stats_in_words(&folder.display().to_string(), &stats),
                OutputFormat::Json => format!("{}\n", stats_as_json(&stats)),
            })?;
        }
        Command::Verify(VerifyArgs { looking }) => {
            let folder = looking.folder()?;
            let found = upkeep::verify(&folder).map_err(AppError::from)?;
            print(&match looking.output {
                OutputFormat::Text => verification_in_words(&found),
                OutputFormat::Json => format!("{}\n", verification_as_json(&found)),
            })?;
            if let Some(damage) = found.damage {
                return Err(AppError::from(damage).into());
            }
        }
        Command::Rewind(args) => rewind(&args)?,
    }
    Ok(Exit::Well)
}

impl Looking {
    /// The folder of the store that the configuration names.
    fn folder(&self) -> Result<PathBuf, Failure> {
        let store = Config::load(&self.config.clone().into_sources())?
            .config
            .store;
        match store.kind {
            StoreKind::Embedded => Ok(store.path),
            StoreKind::Memory => Err(Failure::new(
                Exit::Unusable,
                &"store.kind is \"memory\": such a store ends with its daemon, and there is nothing to look into",
            )),
        }
    }
}

fn rewind(args: &RewindArgs) -> Result<(), Failure> {
    let folder = args.looking.folder()?;
    let plan = Rewind::plan(&folder, args.to)?;
    let (lowest, highest) = plan.read_up_to;
    let (base, num_partitions) = (plan.base, plan.num_partitions());
    let told = format!(
        "store {}, {num_partitions} {}\n\
         read up to    {}\n\
         reads again   {}, as generation {}\n\
         Messages that are read again change nothing that is newer. Requests among them are answered again, with what \
         is due then and under new ids; refused messages go to the dead letters again.\n",
        folder.display(),
        if num_partitions == 1 {
            "partition"
        } else {
            "partitions"
        },
        reached(&lowest, &highest),
        begins(&base),
        base.cursor.generation,
    );
    if args.looking.output == OutputFormat::Text {
        print(&told)?;
    }
    if !args.yes && !is_agreed(args.looking.output)? {
        return print("nothing was changed\n");
    }
    threads()?.block_on(plan.commit()).map_err(AppError::from)?;
    print(&match args.looking.output {
        OutputFormat::Text => "done: the next start reads from there\n".to_owned(),
        OutputFormat::Json => {
            let rewound = json!({
                "Partitions": num_partitions,
                "Lowest": position_as_json(&lowest),
                "Highest": position_as_json(&highest),
                "Begins": position_as_json(&base),
            });
            format!("{rewound}\n")
        }
    })
}

/// Asks whoever sits at the terminal.
fn is_agreed(output: OutputFormat) -> Result<bool, Failure> {
    let mut input = io::stdin().lock();
    if output == OutputFormat::Json || !io::stdin().is_terminal() {
        let line = "nobody can be asked here, and nothing was changed; add --yes to rewind";
        return Err(Failure::new(Exit::Unusable, &line));
    }
    // Asked on standard error: standard output may be a file.
    drop(write!(io::stderr(), "Rewind? [y/N] "));
    let mut answer = String::new();
    // What cannot be read is no yes.
    drop(input.read_line(&mut answer));
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn reached(lowest: &Position, highest: &Position) -> String {
    let place = |position: &Position| {
        let sequence = match position.cursor.sequence {
            0 => "no message yet".to_owned(),
            sequence => format!("sequence {sequence}"),
        };
        format!("{sequence} ({})", position.timestamp)
    };
    let generation = highest.cursor.generation;
    if lowest.cursor == highest.cursor {
        format!("{} of generation {generation}", place(highest))
    } else {
        let (lowest, highest) = (place(lowest), place(highest));
        format!("{lowest} at the least, {highest} at the most, of generation {generation}")
    }
}

fn begins(base: &Position) -> String {
    match base.cursor.sequence {
        0 if base.timestamp == Timestamp::EPOCH => "from the first message on".to_owned(),
        0 => format!("from {} on", base.timestamp),
        before => format!("from sequence {} on", before + 1),
    }
}

fn position_as_json(position: &Position) -> Value {
    let stream = match position.origin {
        Origin::Stream { created } => json!({ "Created": created.to_string() }),
        Origin::Session => Value::Null,
    };
    json!({
        "Generation": position.cursor.generation,
        "Sequence": position.cursor.sequence,
        "Time": position.timestamp.to_string(),
        "Stream": stream,
    })
}

fn stats_in_words(folder: &str, stats: &Stats) -> String {
    let num_active = stats.num_of(Status::Critical) + stats.num_of(Status::Warning);
    let input = match &stats.read_up_to {
        None => "nothing was read yet".to_owned(),
        Some((lowest, highest)) => {
            let from = match highest.origin {
                Origin::Stream { created } => format!("stream created {created}"),
                Origin::Session => "core NATS, no stream".to_owned(),
            };
            format!("read up to {}; {from}", reached(lowest, highest))
        }
    };
    let torn = stats.torn_tail.as_ref().map(|torn| {
        format!(
            "torn tail    {} bytes at byte {} of {}: a crash interrupted that write, the next start cuts it\n",
            torn.num_bytes,
            torn.offset,
            torn.path.display()
        )
    });
    let (journal, snapshots) = (stats.journal, stats.snapshots);
    format!(
        "store        {folder}\n\
         id           {}, format {}, {} partitions, claimed {} to {} times\n\
         alarms       {num_active} active ({CRITICAL}{} CRITICAL{CRITICAL:#}, {WARNING}{} WARNING{WARNING:#}), {} due; \
         {} tombstones\n\
         users        {}\n\
         owed         {} messages, {} bytes\n\
         input        {input}\n\
         journal      {} bytes in {} files\n\
         snapshots    {} bytes in {} files\n{}",
        stats.id,
        stats.format,
        stats.num_partitions,
        stats.epochs.0.0,
        stats.epochs.1.0,
        stats.num_of(Status::Critical),
        stats.num_of(Status::Warning),
        stats.num_due,
        stats.num_of(Status::Cleared),
        stats.num_users,
        stats.num_owed,
        stats.owed_bytes,
        journal.num_bytes,
        journal.num,
        snapshots.num_bytes,
        snapshots.num,
        torn.unwrap_or_default(),
    )
}

fn stats_as_json(stats: &Stats) -> Value {
    let by_status: serde_json::Map<_, _> = Status::ALL
        .into_iter()
        .map(|status| (status.as_str().to_owned(), stats.num_of(status).into()))
        .collect();
    json!({
        "Id": stats.id.to_string(),
        "Format": stats.format,
        "Partitions": stats.num_partitions,
        "Epochs": { "Lowest": stats.epochs.0.0, "Highest": stats.epochs.1.0 },
        "Users": stats.num_users,
        "Alarms": by_status,
        "Due": stats.num_due,
        "Owed": { "Messages": stats.num_owed, "Bytes": stats.owed_bytes },
        "Lowest": stats.read_up_to.map(|(lowest, _)| position_as_json(&lowest)),
        "Highest": stats.read_up_to.map(|(_, highest)| position_as_json(&highest)),
        "Journal": { "Files": stats.journal.num, "Bytes": stats.journal.num_bytes },
        "Snapshots": { "Files": stats.snapshots.num, "Bytes": stats.snapshots.num_bytes },
        "TornTailBytes": stats.torn_tail.as_ref().map_or(0, |torn| torn.num_bytes),
    })
}

fn verification_in_words(found: &Verification) -> String {
    let files = found.files.iter().map(|file| {
        let (style, verdict) = match &file.verdict {
            Verdict::Well => (CLEARED, "well"),
            Verdict::Torn(_) => (CLEARED, "torn tail"),
            Verdict::Leftover => (CLEARED, "leftover"),
            Verdict::Damaged(_) => (CRITICAL, "DAMAGED"),
            Verdict::Unchecked => (WARNING, "unchecked"),
        };
        let (path, num_bytes) = (file.path.display(), file.num_bytes);
        let detail = detail(file).map_or_else(String::new, |detail| format!(": {detail}"));
        format!("{style}{verdict:<10}{style:#} {path} {DIM}{num_bytes} bytes{DIM:#}{detail}\n")
    });
    let files = files.collect::<String>();
    if found.damage.is_some() {
        return files;
    }
    let num_rows = found.num_rows;
    format!(
        "{files}the store is well: every checksum is right, and all {num_rows} rows can be read\n"
    )
}

fn detail(file: &CheckedFile) -> Option<String> {
    match &file.verdict {
        Verdict::Well => None,
        Verdict::Torn(torn) => Some(format!(
            "a crash interrupted the write at byte {}; the next start cuts its {} bytes, which nobody was told of",
            torn.offset, torn.num_bytes
        )),
        Verdict::Leftover => Some("a crash left it; the next start removes it".to_owned()),
        Verdict::Damaged(error) => Some(error.to_string()),
        Verdict::Unchecked => {
            Some("its checksums cannot be told without the file store".to_owned())
        }
    }
}

fn verification_as_json(found: &Verification) -> Value {
    let files = found.files.iter().map(|file| {
        json!({
            "File": file.path.display().to_string(),
            "Bytes": file.num_bytes,
            "Verdict": match &file.verdict {
                Verdict::Well => "well",
                Verdict::Torn(_) => "torn tail",
                Verdict::Leftover => "leftover",
                Verdict::Damaged(_) => "damaged",
                Verdict::Unchecked => "unchecked",
            },
            "Detail": detail(file),
        })
    });
    json!({
        "Well": found.damage.is_none(),
        "Error": found.damage.as_ref().map(ToString::to_string),
        "Rows": found.num_rows,
        "Files": files.collect::<Vec<_>>(),
    })
}
