//! The run: the smoke test, the rules, the random histories.
//!
//! Rules whose messages no service can break under are checked all at once. Then come those that it may break
//! under, one after another, so that the one that broke it is named; what follows that one is not checked.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::history::{self, NUM_USERS, Step};
use super::play::{Play, Watch};
use super::refusals;
use super::report::{Problem, Report, RuleReport, Verdict};
use super::rules::{Check, Rule};
use super::scenario::{Message, Names, Scenario};
use super::session::{DeadLetter, Lost, Session};
use crate::bus::connection::Connection;

/// How long a history that went wrong is tried without some of its steps.
const SHORTEN_WITHIN: Duration = Duration::from_secs(10);

/// Which rules are checked, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the random histories are made from.
    pub seed: u64,
    /// How long nothing may come while something is waited for.
    pub timeout: Duration,
    /// The rules to check after the smoke test.
    pub rules: Vec<&'static Rule>,
}

/// What happens during a run.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// It listens, and publishes from now on.
    Waiting,
    /// The smoke test passed.
    SmokePassed,
    /// A rule was checked, or could not be.
    Checked(&'a RuleReport),
}

static SMOKE: Rule = Rule {
    name: "smoke-test",
    sentence: "a few status changes and a request give the right digest",
    section: "Compatibility with the challenge container",
    check: Check::OutOfSight("it is no rule of its own"),
};

/// Checks the service at this broker. Without an answer to the smoke test, no rule is checked.
///
/// # Errors
/// When the connection does not last.
pub async fn verify(
    connection: &Connection,
    options: &Options,
    on_event: &mut (dyn FnMut(Event<'_>) + Send),
) -> Result<Report, Lost> {
    let began = Instant::now();
    let run = getrandom::u64().unwrap_or_default() ^ super::super::messages::Instant::now().0;
    let mut verifier = Verifier {
        session: Session::open(connection, options.timeout).await?,
        names: Names::new(options.seed, run),
        seed: options.seed,
        refused: Vec::new(),
        rules: Vec::new(),
        broken_since: None,
        on_event,
    };
    let smoke = verifier.smoke().await?;
    if !smoke.problems.iter().any(|problem| problem.is_silence) {
        verifier.check(&options.rules).await?;
    }
    Ok(Report {
        seed: options.seed,
        smoke,
        rules: verifier.rules,
        elapsed: began.elapsed(),
    })
}

struct Verifier<'a> {
    session: Session,
    names: Names,
    seed: u64,
    /// Everything that was sent and must have been refused.
    refused: Vec<Message>,
    rules: Vec<RuleReport>,
    /// The rule under which the service stopped to answer.
    broken_since: Option<&'static str>,
    on_event: &'a mut (dyn FnMut(Event<'_>) + Send),
}

/// A rule's scenarios while they are played.
struct Tally {
    rule: &'static Rule,
    began: Instant,
    num_scenarios: usize,
    num_ended: usize,
    difference: Option<String>,
    problems: Vec<Problem>,
}

impl Tally {
    fn new(rule: &'static Rule, num_scenarios: usize) -> Self {
        Self {
            rule,
            began: Instant::now(),
            num_scenarios,
            num_ended: 0,
            difference: None,
            problems: Vec::new(),
        }
    }

    fn add(&mut self, play: &Play) {
        self.num_ended += 1;
        self.problems.extend(Problem::of(play));
        if let Check::Form(watch, _) = self.rule.check
            && self.difference.is_none()
        {
            let came = play.difference(watch);
            self.difference = came.map(|came| format!("{}: {came}", otherwise(watch)));
        }
    }

    fn report(&self) -> RuleReport {
        let verdict = match (self.problems.is_empty(), &self.difference) {
            (false, _) => Verdict::Failed,
            (true, Some(_)) => Verdict::Different,
            (true, None) => Verdict::Passed,
        };
        RuleReport {
            rule: self.rule,
            verdict,
            elapsed: self.began.elapsed(),
            num_scenarios: self.num_scenarios,
            note: self.difference.clone(),
            problems: self.problems.clone(),
        }
    }
}

const fn otherwise(watch: Watch) -> &'static str {
    match watch {
        Watch::Bytes => "the same in other bytes",
        Watch::Times => "the same time in another form",
        Watch::Empty => "a request with nothing due is answered",
    }
}

impl Verifier<'_> {
    async fn smoke(&mut self) -> Result<RuleReport, Lost> {
        let user = self.names.user();
        let scenario = Scenario::example(user, "aC3 bC2 aW1 cC4 cX5 bC2 dW1 S");
        (self.on_event)(Event::Waiting);
        let mut tally = Tally::new(&SMOKE, 1);
        let mut plays = [Play::without_barrier(scenario)];
        self.session
            .play(&mut plays, |_, play| tally.add(play))
            .await?;
        let report = tally.report();
        if report.verdict == Verdict::Passed {
            (self.on_event)(Event::SmokePassed);
        }
        Ok(report)
    }

    async fn check(&mut self, rules: &[&'static Rule]) -> Result<(), Lost> {
        self.check_together(rules).await?;
        for rule in rules {
            let report = match (rule.check, self.broken_since) {
                (Check::Together(_) | Check::Form(..), _) => continue,
                (Check::OutOfSight(why), _) => RuleReport::not_checked(rule, why),
                (_, Some(broken)) => {
                    let why = format!("the service does not answer any more since {broken}");
                    RuleReport::not_checked(rule, &why)
                }
                (Check::Alone(scenarios), None) => {
                    let scenarios = scenarios(&mut self.names);
                    self.check_alone(rule, scenarios).await?
                }
                (Check::Random, None) => self.check_random(rule).await?,
                (Check::DeadLetters, None) => self.check_letters(rule).await?,
            };
            self.look_whether_broken(&[&report]).await?;
            self.end(report);
        }
        Ok(())
    }

    fn end(&mut self, report: RuleReport) {
        (self.on_event)(Event::Checked(&report));
        self.rules.push(report);
    }

    async fn check_together(&mut self, rules: &[&'static Rule]) -> Result<(), Lost> {
        let (mut tallies, mut plays, mut of_play) = (Vec::new(), Vec::new(), Vec::new());
        for rule in rules {
            let (Check::Together(scenarios) | Check::Form(_, scenarios)) = rule.check else {
                continue;
            };
            let scenarios = scenarios(&mut self.names);
            of_play.extend(scenarios.iter().map(|_| tallies.len()));
            tallies.push(Tally::new(rule, scenarios.len()));
            plays.extend(scenarios.into_iter().map(Play::new));
        }
        let Self {
            session,
            rules: reports,
            on_event,
            ..
        } = self;
        let on_end = |place: usize, play: &Play| {
            let tally = of_play.get(place).and_then(|it| tallies.get_mut(*it));
            let Some(tally) = tally else { return };
            tally.add(play);
            if tally.num_ended == tally.num_scenarios {
                let report = tally.report();
                on_event(Event::Checked(&report));
                reports.push(report);
            }
        };
        session.play(&mut plays, on_end).await?;
        let reports = self.rules.clone();
        self.look_whether_broken(&reports.iter().collect::<Vec<_>>())
            .await
    }

    async fn check_alone(
        &mut self,
        rule: &'static Rule,
        scenarios: Vec<Scenario>,
    ) -> Result<RuleReport, Lost> {
        let (tally, _) = self.play_for(rule, scenarios).await?;
        Ok(tally.report())
    }

    /// Plays all scenarios of one rule, and counts how they end.
    async fn play_for(
        &mut self,
        rule: &'static Rule,
        scenarios: Vec<Scenario>,
    ) -> Result<(Tally, Vec<Play>), Lost> {
        let mut tally = Tally::new(rule, scenarios.len());
        let mut plays: Vec<_> = scenarios.into_iter().map(Play::new).collect();
        let Self {
            session, refused, ..
        } = self;
        let on_end = |_, play: &Play| {
            tally.add(play);
            refused.extend(play.refused().cloned());
        };
        session.play(&mut plays, on_end).await?;
        Ok((tally, plays))
    }

    /// After a silence: asks whether anybody is there at all.
    async fn look_whether_broken(&mut self, reports: &[&RuleReport]) -> Result<(), Lost> {
        let mut problems = reports.iter().flat_map(|it| &it.problems);
        let silent = problems.find(|it| it.is_silence);
        let Some(report) = reports.first().filter(|_| silent.is_some()) else {
            return Ok(());
        };
        let mut plays = [Play::new(Scenario::example(self.names.user(), "aC1 S"))];
        let mut is_silent = false;
        self.session
            .play(&mut plays, |_, play| {
                is_silent = Problem::of(play).is_some_and(|it| it.is_silence);
            })
            .await?;
        self.broken_since = is_silent.then_some(report.rule.name);
        Ok(())
    }

    async fn check_random(&mut self, rule: &'static Rule) -> Result<RuleReport, Lost> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let histories: Vec<_> = (0..NUM_USERS)
            .map(|_| history::random(&mut random))
            .collect();
        let titles = (1..).map(|number| format!("user {number} of {NUM_USERS}"));
        let scenarios = histories.iter().zip(titles);
        let scenarios: Vec<_> = scenarios
            .map(|(steps, title)| history::scenario(steps, &title, &self.names.user()))
            .collect();
        let (tally, plays) = self.play_for(rule, scenarios).await?;
        let mut report = tally.report();
        let failed = plays.iter().zip(&histories).find_map(|(play, steps)| {
            let problem = Problem::of(play).filter(|it| !it.is_silence)?;
            Some((problem, steps))
        });
        if let Some((problem, steps)) = failed {
            let num_failed = report.problems.len();
            report.note = Some(format!("{num_failed} of {NUM_USERS} users"));
            report.problems = vec![self.shorten(problem, steps.clone()).await?];
            report.elapsed = tally.began.elapsed();
        }
        Ok(report)
    }

    /// Leaves out what is not needed for the history to go wrong.
    async fn shorten(&mut self, found: Problem, steps: Vec<Step>) -> Result<Problem, Lost> {
        let (mut shortest, mut steps) = (found, steps);
        let title = format!("{}, made shorter", shortest.scenario);
        let deadline = Instant::now() + SHORTEN_WITHIN;
        let mut num_left_out = steps.len() / 2;
        while num_left_out > 0 && Instant::now() < deadline {
            let candidates = history::without_each(&steps, num_left_out);
            let plays = candidates.iter().map(|steps| {
                let scenario = history::scenario(steps, &title, &self.names.user());
                Play::new(scenario)
            });
            let mut plays: Vec<_> = plays.collect();
            self.session.play(&mut plays, |_, _| {}).await?;
            let failed = plays.iter().zip(candidates).find_map(|(play, steps)| {
                let problem = Problem::of(play).filter(|it| !it.is_silence)?;
                Some((problem, steps))
            });
            match failed {
                Some((problem, shorter)) => (shortest, steps) = (problem, shorter),
                None => num_left_out /= 2,
            }
        }
        Ok(shortest)
    }

    async fn check_letters(&mut self, rule: &'static Rule) -> Result<RuleReport, Lost> {
        let mut tally = Tally::new(rule, 0);
        if self.refused.is_empty() {
            let scenarios = refusals::unknown_status(&mut self.names);
            self.check_alone(rule, scenarios).await?;
        }
        let refused = &self.refused;
        let is_ours = |letter: &DeadLetter| refused.iter().any(|it| it.payload == letter.payload);
        let is_complete = |letters: &[DeadLetter]| {
            letters.len() >= refused.len() && missing_letter(refused, letters).is_none()
        };
        let session = &mut self.session;
        if !session.letters(|_| true).await?.iter().any(is_ours) {
            let why = "nothing came there: this service keeps none, or elsewhere";
            return Ok(RuleReport::not_checked(rule, why));
        }
        let letters = session.letters(is_complete).await?;
        tally.num_scenarios = refused.len();
        tally.problems.extend(missing_letter(refused, letters));
        Ok(tally.report())
    }
}

/// The first refused message without a dead letter that says what it was.
fn missing_letter(refused: &[Message], letters: &[DeadLetter]) -> Option<Problem> {
    let with_reason = letters.iter().filter(|letter| {
        let reason = letter.reason.as_deref().unwrap_or_default();
        !reason.is_empty()
    });
    let known: HashSet<_> = with_reason
        .map(|letter| (letter.subject.as_deref(), letter.payload.as_slice()))
        .collect();
    let missing = refused
        .iter()
        .find(|it| !known.contains(&(Some(it.subject.as_str()), it.payload.as_slice())))?;
    Some(Problem::of_missing_letter(missing))
}
