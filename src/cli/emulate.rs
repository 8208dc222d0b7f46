//! `tocsin emulate`: realistic traffic, and with `--check` the proof that every digest held what it must.

use std::num::NonZeroU64;
use std::process;
use std::time::{Duration, Instant as Clock};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::arguments::{ClientArgs, OutputFormat, parse_duration};
use super::style::{CLEARED, CRITICAL, DIM, WARNING};
use super::{Exit, Failure, help, oneshot, print, threads};
use crate::app::AppError;
use crate::check::emulate::pacer::{Burst, Pace};
use crate::check::emulate::summary::{Alarm, Finding, Input, Latency, Summary, Verdict};
use crate::check::emulate::{self, Limit, Settings};
use crate::check::messages::Instant;
use crate::check::traffic::{Asking, Recipe, Share};

/// Digests that are held before they are read.
const SUBSCRIPTION_CAPACITY: usize = 1 << 20;
/// How long a run is where nothing says it.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// The longest prefix: an id has 256 bytes, and a number follows.
const MAX_PREFIX: usize = 200;

const EXAMPLES: &str = "\
  tocsin emulate                           # 1,000 messages a second for 10 s
  tocsin emulate --check                   # the same, and every digest must be right
  tocsin emulate --check --rate max --count 1M
  tocsin emulate --rate 200 --burst 5k --burst-every 30s --duration 10m
  tocsin emulate --seed 7 --start 2026-01-01T00:00:00Z --count 10k

  A run is repeated with the seed that it printed; the same --start gives the same users and times
  as well, for a service that does not know them yet. Ctrl-C ends the publishing and shows the
  summary; a second one ends at once.";

/// The arguments of `tocsin emulate`.
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = help::SHORT, after_long_help = help::epilog(EXAMPLES, &Exit::ALL))]
pub struct Args {
    /// How many users there are.
    #[arg(long, value_name = "N", default_value = "1000", value_parser = parse_number)]
    pub users: u32,
    /// How many alarms each user has.
    #[arg(long, value_name = "N", default_value = "10", value_parser = parse_number)]
    pub alarms: u32,
    /// Messages a second.
    #[arg(
        long,
        value_name = "N",
        default_value = "1000",
        value_parser = parse_rate,
        help = "Messages a second, on a schedule; 0 or max: as fast as the broker takes them"
    )]
    pub rate: Rate,
    /// How many messages come at once, on top of the rate.
    #[arg(long, value_name = "N", value_parser = parse_count, help = "So many messages at once, on top of the rate")]
    pub burst: Option<NonZeroU64>,
    /// How often they do.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help = "How often a burst comes")]
    pub burst_every: Duration,
    /// How many changes are late.
    #[arg(long, value_name = "SHARE", default_value = "10%", value_parser = parse_share, help = "How many changes arrive late")]
    pub disorder: Share,
    /// By how much at the most.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration, help = "How late they are at the most")]
    pub disorder_by: Duration,
    /// How many messages are changes that are sent again.
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = parse_share, help = "How many messages are changes that are sent again")]
    pub duplicates: Share,
    /// How many messages are unusable.
    #[arg(long, value_name = "SHARE", default_value = "0.1%", value_parser = parse_share, help = "How many messages cannot be used")]
    pub junk: Share,
    /// How many alarms and users use numbered subjects.
    #[arg(
        long,
        value_name = "SHARE",
        default_value = "5%",
        value_parser = parse_share,
        help = "How many alarms, and requests of users, are on numbered subjects such as AlarmStatusChanged.3"
    )]
    pub twins: Share,
    /// How rarely a message is a request.
    #[arg(
        long,
        value_name = "N",
        default_value = "20",
        value_parser = parse_number,
        conflicts_with = "digest_interval",
        help = "One message in so many, at random, is a request for a random user's digest"
    )]
    pub digest_every: u32,
    /// How often each user asks.
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, help = "Instead, each user asks for the digest once in so long")]
    pub digest_interval: Option<Duration>,
    /// How many messages are published.
    #[arg(long, value_name = "N", value_parser = parse_count, help = "How many messages are published, such as 500, 10k, 1M")]
    pub count: Option<NonZeroU64>,
    /// For how long messages are published.
    #[arg(
        long,
        value_name = "DURATION",
        value_parser = parse_duration,
        conflicts_with = "count",
        help = "For how long messages are published [default: 10s, unless --count is given]"
    )]
    pub duration: Option<Duration>,
    /// Where the random numbers begin.
    #[arg(
        long,
        value_name = "N",
        help = "The same seed gives the same messages [default: a random one, which is printed]"
    )]
    pub seed: Option<u64>,
    /// When the first change happens.
    #[arg(long, value_name = "TIME", value_parser = parse_time, help = "When the first change happens, in RFC 3339 [default: now]")]
    pub start: Option<Instant>,
    /// What the name of every user begins with.
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = parse_prefix,
        help = "What the name of every user begins with [default: made from --seed and --start]"
    )]
    pub prefix: Option<String>,
    /// Whether every digest is judged.
    #[arg(
        long,
        help = "Judge every digest; end with 1 at the first that is wrong, and when none comes for --timeout while one is owed"
    )]
    pub check: bool,
    /// What every client command has.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Messages a second; none: as many as the broker takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rate(pub Option<NonZeroU64>);

fn parse_rate(text: &str) -> Result<Rate, String> {
    if matches!(text, "0" | "max") {
        return Ok(Rate(None));
    }
    parse_count(text)
        .map(|rate| Rate(Some(rate)))
        .map_err(|_| "must be a number such as 500, 10k or 1M, or max".to_owned())
}

fn parse_count(text: &str) -> Result<NonZeroU64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b'k') => (text.trim_end_matches('k'), 1000),
        Some(b'M') => (text.trim_end_matches('M'), 1_000_000),
        Some(_) | None => (text, 1),
    };
    let number = digits.parse::<u64>().ok();
    let number = number.and_then(|number| number.checked_mul(factor));
    number
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "must be a number from 1 on, such as 500, 10k or 1M".to_owned())
}

fn parse_number(text: &str) -> Result<u32, String> {
    let number = parse_count(text)?;
    u32::try_from(number.get()).map_err(|_| "must be below 4 billion".to_owned())
}

fn parse_share(text: &str) -> Result<Share, String> {
    let (digits, whole) = match text.strip_suffix('%') {
        Some(digits) => (digits, 100.0),
        None => (text, 1.0),
    };
    let share = digits.parse::<f64>().ok();
    share
        .and_then(|share| Share::new(share / whole))
        .ok_or_else(|| "must be a share from 0 to 1, or from 0% to 100%".to_owned())
}

fn parse_time(text: &str) -> Result<Instant, String> {
    Instant::parse(text).ok_or_else(|| "write it like 2026-01-31T00:00:00Z".to_owned())
}

fn parse_prefix(text: &str) -> Result<String, String> {
    let is_plain = |it: u8| it.is_ascii_alphanumeric() || b"-_.".contains(&it);
    if text.is_empty() || text.len() > MAX_PREFIX || !text.bytes().all(is_plain) {
        return Err(format!(
            "must be 1 to {MAX_PREFIX} letters, digits, dashes, underscores or dots"
        ));
    }
    Ok(text.to_owned())
}

impl Args {
    fn settings(&self) -> Result<Settings, Failure> {
        let unusable = |line: &str| Failure::new(Exit::Unusable, &line);
        let pace = match (self.rate.0, self.burst) {
            (Some(rate), burst) => Pace::Steady {
                rate,
                burst: burst.map(|size| Burst {
                    size: size.get(),
                    every: self.burst_every,
                }),
            },
            (None, None) => Pace::Max,
            (None, Some(_)) => {
                return Err(unusable(
                    "--burst comes on top of a rate; give one with --rate, or leave --burst away",
                ));
            }
        };
        let asking = match self.digest_interval {
            None => Asking::Every(self.digest_every),
            Some(_) if pace == Pace::Max => {
                return Err(unusable(
                    "--digest-interval needs a schedule; give one with --rate, or use --digest-every",
                ));
            }
            Some(interval) => Asking::Interval(interval),
        };
        let seed = self.seed.map_or_else(random_seed, Ok)?;
        let start = self.start.unwrap_or_else(now);
        let recipe = Recipe {
            seed,
            start,
            step: pace.step(),
            prefix: self
                .prefix
                .clone()
                .unwrap_or_else(|| Recipe::default_prefix(seed, start)),
            users: self.users,
            alarms: self.alarms,
            disorder: self.disorder,
            max_delay: self.disorder_by,
            duplicates: self.duplicates,
            junk: self.junk,
            twins: self.twins,
            asking,
        };
        let duration = self.duration.unwrap_or(DEFAULT_DURATION);
        Ok(Settings {
            recipe,
            pace,
            limit: self
                .count
                .map_or(Limit::Duration(duration), |count| Limit::Count(count.get())),
            is_checked: self.check,
            timeout: self.client.timeout,
        })
    }

    /// The command line that gives the same messages again.
    fn again(&self, seed: u64, start: &str) -> String {
        let millis = |duration: Duration| format!("{}ms", duration.as_millis());
        let rate = self
            .rate
            .0
            .map_or_else(|| "max".to_owned(), |it| it.to_string());
        let mut words = vec![
            ("seed", seed.to_string()),
            ("start", start.to_owned()),
            ("users", self.users.to_string()),
            ("alarms", self.alarms.to_string()),
            ("rate", rate),
            ("disorder", self.disorder.get().to_string()),
            ("disorder-by", millis(self.disorder_by)),
            ("duplicates", self.duplicates.get().to_string()),
            ("junk", self.junk.get().to_string()),
            ("twins", self.twins.get().to_string()),
        ];
        words.push(match self.digest_interval {
            Some(interval) => ("digest-interval", millis(interval)),
            None => ("digest-every", self.digest_every.to_string()),
        });
        if let Some(burst) = self.burst {
            words.push(("burst", burst.to_string()));
            words.push(("burst-every", millis(self.burst_every)));
        }
        words.extend(self.count.map(|count| ("count", count.to_string())));
        words.extend(self.duration.map(|it| ("duration", millis(it))));
        words.extend(self.prefix.clone().map(|prefix| ("prefix", prefix)));
        let words = words
            .iter()
            .map(|(name, value)| format!(" --{name} {value}"));
        let mut line = format!("tocsin emulate{}", words.collect::<String>());
        if self.check {
            line.push_str(" --check");
        }
        line
    }
}

fn random_seed() -> Result<u64, Failure> {
    // Short enough to be typed.
    getrandom::u32().map(u64::from).map_err(|error| {
        let line = format!("failed to get a random seed: {error}; name one (--seed)");
        Failure::new(Exit::Defect, &line)
    })
}

/// Now, in whole milliseconds.
fn now() -> Instant {
    let now = Instant::now().0;
    Instant(now - now % 1_000_000)
}

/// Publishes, and judges where that is asked for.
///
/// # Errors
/// Usage that contradicts itself, and a broker that cannot be reached.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let settings = args.settings()?;
    let summary = threads()?.block_on(emulate(args, settings))?;
    print(&match args.client.output {
        OutputFormat::Text => in_words(args, &summary),
        OutputFormat::Json => {
            let mut json = json!(summary);
            if let Some(fields) = json.as_object_mut() {
                fields.insert(
                    "again".to_owned(),
                    json!(args.again(summary.seed, &summary.start)),
                );
            }
            format!("{json}\n")
        }
    })?;
    Ok(match summary.verdict {
        Verdict::Right | Verdict::Unchecked => Exit::Well,
        Verdict::Wrong => Exit::NotTaken,
        Verdict::Unknown if args.check => Exit::NotTaken,
        Verdict::Unknown => Exit::Unreachable,
    })
}

async fn emulate(args: &Args, settings: Settings) -> Result<Summary, Failure> {
    let publishing = oneshot::connect(&args.client).await?;
    let receiving = oneshot::connect_with(&args.client, SUBSCRIPTION_CAPACITY).await?;
    let stop = stop_at_signals()?;
    let mut progress = Progress::new();
    let mut observe = |summary: &Summary| progress.show(summary);
    let running = emulate::run(settings, publishing, receiving, stop, &mut observe);
    let ended = Box::pin(running).await;
    progress.bar.finish_and_clear();
    ended.map_err(|error| Failure::from(AppError::Bus(error)))
}

/// Turns `true` at the first Ctrl-C or SIGTERM; the second ends the program.
fn stop_at_signals() -> Result<watch::Receiver<bool>, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::from(AppError::System {
                action: "listen for signals",
                error,
            })
        })
    };
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if stop.send_replace(true) {
                process::exit(i32::from(Exit::NotTaken as u8));
            }
        }
    });
    Ok(stopped)
}

/// The bar on a terminal; nothing elsewhere.
struct Progress {
    bar: ProgressBar,
    before: (Clock, u64),
    rate_now: f64,
}

impl Progress {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        Self {
            bar,
            before: (Clock::now(), 0),
            rate_now: 0.0,
        }
    }

    fn show(&mut self, summary: &Summary) {
        if self.bar.is_hidden() {
            return;
        }
        if let Some(planned) = summary.planned
            && self.bar.length().is_none()
        {
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg}");
            self.bar
                .set_style(style.expect("the template is well formed"));
            self.bar.set_length(planned);
        }
        let (then, published) = self.before;
        if then.elapsed() >= Duration::from_millis(500) {
            let more = summary.published.total - published;
            self.rate_now = more as f64 / then.elapsed().as_secs_f64();
            self.before = (Clock::now(), summary.published.total);
        }
        let latency = summary
            .latency
            .map_or_else(String::new, |it| format!(", {}", latency_in_words(&it)));
        self.bar.set_position(summary.published.total);
        self.bar.set_message(format!(
            "{}/s now, {}/s mean, {} requests, {} digests, {} owed{latency}",
            grouped(self.rate_now as u64),
            grouped(summary.rate as u64),
            grouped(summary.published.requests),
            grouped(summary.received.digests),
            grouped(summary.received.owed),
        ));
    }
}

fn in_words(args: &Args, summary: &Summary) -> String {
    let input = match summary.input {
        Input::JetStream => "a stream",
        Input::Core => "core NATS",
    };
    let Summary {
        published,
        received,
        broker,
        ..
    } = summary;
    let asked = summary.asked_rate.map_or_else(
        || "as fast as they were taken".to_owned(),
        |rate| format!("{} asked for", decimal(rate)),
    );
    let mut lines = vec![
        headline(summary),
        format!("input      {input}"),
        format!(
            "traffic    --seed {} --start {}, users {}…",
            summary.seed, summary.start, summary.prefix
        ),
        format!(
            "published  {} in {:.3} s: {} a second, {asked}",
            grouped(published.total),
            summary.seconds,
            decimal(summary.rate),
        ),
        format!(
            "           {} changes ({} late), {} sent again, {} requests, {} unusable; {} on numbered subjects",
            grouped(published.changes),
            grouped(published.late),
            grouped(published.duplicates),
            grouped(published.requests),
            grouped(published.junk),
            grouped(published.numbered),
        ),
        format!(
            "digests    {} with {} alarms, {} repeated, {} {}",
            grouped(received.digests),
            grouped(received.alarms),
            grouped(received.repeats),
            grouped(received.owed),
            if summary.absorbed.is_some() {
                "owed"
            } else {
                "requests without one"
            },
        ),
    ];
    if let Some(absorbed) = summary.absorbed {
        lines.push(format!(
            "absorbed   {} stale changes, {} duplicates, {} requests without anything due",
            grouped(absorbed.stale),
            grouped(absorbed.duplicates),
            grouped(absorbed.empty),
        ));
    }
    if let Some(latency) = summary.latency {
        lines.push(format!("latency    {}", latency_in_words(&latency)));
    }
    if broker.reconnects > 0 || broker.lost > 0 {
        lines.push(format!(
            "broker     {WARNING}{} reconnects, {} messages lost{WARNING:#}",
            grouped(broker.reconnects),
            grouped(broker.lost),
        ));
    }
    if let Some(finding) = &summary.wrong {
        lines.push(String::new());
        lines.extend(finding_in_words(finding));
        lines.push(format!(
            "again      {}",
            args.again(summary.seed, &summary.start)
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn headline(summary: &Summary) -> String {
    let why = summary.why.as_deref().unwrap_or_default();
    match summary.verdict {
        Verdict::Right => format!(
            "{CLEARED}right{CLEARED:#}: each of {} digests held exactly what was due",
            grouped(summary.received.digests)
        ),
        Verdict::Wrong => format!("{CRITICAL}wrong{CRITICAL:#}: see below"),
        Verdict::Unknown => format!("{WARNING}nothing is proven{WARNING:#}: {why}"),
        Verdict::Unchecked => format!("{DIM}nothing was checked (--check){DIM:#}"),
    }
}

fn finding_in_words(finding: &Finding) -> Vec<String> {
    let user = finding.user.as_deref().unwrap_or("unknown");
    let asked = finding.asked.map_or_else(
        || "by nobody".to_owned(),
        |number| format!("by message {} of the run", grouped(number)),
    );
    let mut lines = vec![
        format!("{CRITICAL}wrong      {}{CRITICAL:#}", finding.what),
        format!("user       {user}"),
        format!("asked      {asked}"),
    ];
    lines.extend(alarms_in_words("expected", &finding.expected));
    match &finding.found {
        Some(found) => lines.extend(alarms_in_words("found", found)),
        None => lines.push("found      nothing".to_owned()),
    }
    lines.push("messages   the last of this user, numbered as they were made".to_owned());
    for sent in &finding.messages {
        lines.push(format!(
            "  {:>8} {} {}",
            sent.number, sent.subject, sent.payload
        ));
    }
    lines
}

fn alarms_in_words(heading: &str, alarms: &[Alarm]) -> Vec<String> {
    let lines = alarms.iter().enumerate().map(|(i, alarm)| {
        let heading = if i == 0 { heading } else { "" };
        let Alarm { alarm, status, at } = alarm;
        format!("{heading:<10} {status:<8} {alarm} since {at}")
    });
    let lines: Vec<_> = lines.collect();
    if lines.is_empty() {
        return vec![format!("{heading:<10} no alarm")];
    }
    lines
}

fn latency_in_words(latency: &Latency) -> String {
    let Latency { p50, p99, max } = latency;
    let millis = |seconds: &f64| format!("{:.1} ms", seconds * 1000.0);
    format!(
        "p50 {}, p99 {}, max {}",
        millis(p50),
        millis(p99),
        millis(max)
    )
}

/// With a digit behind the point, where it is no whole number.
fn decimal(number: f64) -> String {
    let tenths = (number * 10.0).round() as u64;
    match tenths % 10 {
        0 => grouped(tenths / 10),
        tenth => format!("{}.{tenth}", grouped(tenths / 10)),
    }
}

/// With commas between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches};

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Args, clap::Error> {
        let matches = Args::augment_args(clap::Command::new("emulate").no_binary_name(true))
            .try_get_matches_from(arguments)?;
        Args::from_arg_matches(&matches)
    }

    #[test]
    fn counts_shares_and_rates_are_read() {
        let args = parse(&[
            "--users",
            "10k",
            "--rate",
            "1M",
            "--junk",
            "0.5%",
            "--disorder",
            "0.25",
            "--burst",
            "500",
            "--count",
            "2M",
            "--start",
            "2026-01-01T01:00:00+01:00",
        ]);
        let settings = args.unwrap().settings().unwrap();
        assert_eq!(settings.recipe.users, 10_000);
        assert_eq!(settings.recipe.junk, Share::new(0.005).unwrap());
        assert_eq!(settings.recipe.disorder, Share::new(0.25).unwrap());
        assert_eq!(settings.recipe.start.to_string(), "2026-01-01T00:00:00Z");
        assert_eq!(settings.limit, Limit::Count(2_000_000));
        assert_eq!(settings.pace.per_second(), Some(1_000_050.0));
        assert!(!settings.is_checked);
    }

    #[test]
    fn what_contradicts_itself_or_means_nothing_is_refused() {
        for arguments in [
            &["--users", "0"][..],
            &["--rate", "fast"],
            &["--rate", "-1"],
            &["--junk", "1.5"],
            &["--junk", "101%"],
            &["--junk", "nan"],
            &["--count", "1G"],
            &["--count", "5", "--duration", "5s"],
            &["--digest-every", "5", "--digest-interval", "5s"],
            &["--prefix", "a\"b"],
            &["--prefix", ""],
            &["--start", "yesterday"],
            &["--seed", "-1"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
        for arguments in [
            &["--rate", "max", "--burst", "5"][..],
            &["--rate", "0", "--digest-interval", "5s"],
        ] {
            let failure = parse(arguments).unwrap().settings().unwrap_err();
            assert_eq!(failure.exit, Exit::Unusable, "{arguments:?}");
        }
    }

    #[test]
    fn a_run_can_be_repeated_from_what_it_prints() {
        let args = parse(&[
            "--rate",
            "max",
            "--count",
            "1k",
            "--duplicates",
            "12.5%",
            "--prefix",
            "p-",
            "--check",
        ]);
        let args = args.unwrap();
        let first = args.settings().unwrap();
        let recipe = first.recipe.clone();
        let line = args.again(recipe.seed, &recipe.start.to_string());
        let words: Vec<_> = line.split(' ').skip(2).collect();
        let again = parse(&words).unwrap().settings().unwrap();
        assert_eq!((again.recipe, again.limit), (recipe, first.limit));
    }

    #[test]
    fn seed_and_start_give_the_users_their_names() {
        let parse = |words: &[&str]| parse(words).unwrap().settings().unwrap().recipe.prefix;
        let one = ["--seed", "7", "--start", "2026-01-01T00:00:00Z"];
        let other = ["--seed", "7", "--start", "2026-01-02T00:00:00Z"];
        assert_eq!(parse(&one), parse(&one));
        assert_ne!(parse(&one), parse(&other));
        assert!(parse(&one).starts_with("emulate-"));
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(decimal(1000.04), "1,000");
        assert_eq!(decimal(999.96), "1,000");
        assert_eq!(decimal(12.34), "12.3");
    }
}
