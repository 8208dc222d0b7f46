//! Every rule of the specification by name, and how it is checked.

use super::play::Watch;
use super::scenario::{Names, Scenario};
use super::{behaviour, forms, refusals};

/// How a rule is checked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Check {
    /// By these scenarios, all at once with those of other rules.
    Together(fn(&mut Names) -> Vec<Scenario>),
    /// The same; what is only written otherwise is said, and is not wrong.
    Form(Watch, fn(&mut Names) -> Vec<Scenario>),
    /// By these scenarios, with those of no other rule: the service may break under them.
    Alone(fn(&mut Names) -> Vec<Scenario>),
    /// By what came on the subject of dead letters during all this.
    DeadLetters,
    /// By random histories.
    Random,
    /// Not from outside, for this reason.
    OutOfSight(&'static str),
}

/// A rule of the specification.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Short and stable.
    pub name: &'static str,
    /// What a service must do.
    pub sentence: &'static str,
    /// Where the specification says so.
    pub section: &'static str,
    pub(super) check: Check,
}

impl Rule {
    /// The rule of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.name == name)
    }
}

const STATE: &str = "State of one alarm of one user";
const DIGEST: &str = "A digest";
const MESSAGES: &str = "Messages";
const REFUSED: &str = "Messages: anything else is refused";

const fn rule(
    name: &'static str,
    section: &'static str,
    check: Check,
    sentence: &'static str,
) -> Rule {
    Rule {
        name,
        sentence,
        section,
        check,
    }
}

/// All of them, in the order of the run.
pub static RULES: &[Rule] = &[
    rule(
        "examples",
        "Examples",
        Check::Together(behaviour::examples),
        "every line of the table of examples gives its digests",
    ),
    rule(
        "newest-wins",
        STATE,
        Check::Together(behaviour::newest_wins),
        "the message with the newest ChangedAt decides, in whatever order they come",
    ),
    rule(
        "older-changes-nothing",
        STATE,
        Check::Together(behaviour::older_changes_nothing),
        "a message that is older than what is on record changes nothing",
    ),
    rule(
        "same-instant-new-status-wins",
        STATE,
        Check::Together(behaviour::same_instant_new_status_wins),
        "at an equal ChangedAt, a status not yet seen at that instant wins",
    ),
    rule(
        "same-instant-seen-status-is-duplicate",
        STATE,
        Check::Together(behaviour::same_instant_seen_status_is_duplicate),
        "at an equal ChangedAt, a status already seen at that instant is a duplicate",
    ),
    rule(
        "tombstone",
        STATE,
        Check::Together(behaviour::tombstone),
        "CLEARED stays on record, so that a late older CRITICAL does not bring the alarm back",
    ),
    rule(
        "reported-once",
        STATE,
        Check::Together(behaviour::reported_once),
        "what was reported is not due again, also with the same status at a newer time",
    ),
    rule(
        "raised-again-is-due",
        STATE,
        Check::Together(behaviour::raised_again_is_due),
        "an alarm that was reported, cleared and raised again is due",
    ),
    rule(
        "other-status-is-due",
        STATE,
        Check::Together(behaviour::other_status_is_due),
        "an alarm whose status changed since it was reported is due",
    ),
    rule(
        "late-alarm-is-due",
        DIGEST,
        Check::Together(behaviour::late_alarm_is_due),
        "a late message about an older instant that makes an alarm due is in the next digest",
    ),
    rule(
        "only-active-alarms",
        DIGEST,
        Check::Together(behaviour::only_active_alarms),
        "a digest holds WARNING and CRITICAL only",
    ),
    rule(
        "each-alarm-once",
        DIGEST,
        Check::Together(behaviour::each_alarm_once),
        "a digest holds each alarm once, with its newest status and time",
    ),
    rule(
        "oldest-first",
        DIGEST,
        Check::Together(behaviour::oldest_first),
        "a digest is ordered by instant from oldest to newest",
    ),
    rule(
        "ties-by-bytes",
        DIGEST,
        Check::Together(behaviour::ties_by_bytes),
        "alarms of the same instant are ordered by the bytes of AlarmID",
    ),
    rule(
        "one-request-one-digest",
        DIGEST,
        Check::Together(behaviour::one_request_one_digest),
        "a request gets one digest and no more, and without a request there is none",
    ),
    rule(
        "change-before-request",
        DIGEST,
        Check::Together(behaviour::change_before_request),
        "a change published before the request on the same connection is in its digest",
    ),
    rule(
        "users-are-apart",
        DIGEST,
        Check::Together(behaviour::users_are_apart),
        "users never see each other's alarms",
    ),
    rule(
        "empty-digests",
        DIGEST,
        Check::Form(Watch::Empty, behaviour::empty_digests),
        "with nothing due there is no message, or one with an empty list",
    ),
    rule(
        "exact-bytes",
        MESSAGES,
        Check::Form(Watch::Bytes, forms::exact_bytes),
        "a digest is compact JSON with exactly these names in exactly this order",
    ),
    rule(
        "time-printed",
        MESSAGES,
        Check::Form(Watch::Times, forms::time_printed),
        "LatestChangedAt is in UTC with Z, and has as many fractional digits as needed",
    ),
    rule(
        "time-forms",
        MESSAGES,
        Check::Together(forms::time_forms),
        "every date-time of RFC 3339 with up to nine fractional digits is read",
    ),
    rule(
        "nanoseconds",
        MESSAGES,
        Check::Together(forms::nanoseconds),
        "times are kept to the nanosecond",
    ),
    rule(
        "opaque-ids",
        MESSAGES,
        Check::Together(forms::opaque_ids),
        "any non-empty string of up to 256 bytes is an id, and comes back as it was",
    ),
    rule(
        "case-sensitive-ids",
        MESSAGES,
        Check::Together(forms::case_sensitive_ids),
        "ids that differ in letter case only are different ids, UUIDs included",
    ),
    rule(
        "names-in-any-case",
        MESSAGES,
        Check::Together(forms::names_in_any_case),
        "names of input fields are matched without regard to letter case",
    ),
    rule(
        "unknown-fields-ignored",
        MESSAGES,
        Check::Together(forms::unknown_fields_ignored),
        "fields that are not known are ignored",
    ),
    rule(
        "repeated-field-takes-last",
        MESSAGES,
        Check::Together(forms::repeated_field_takes_last),
        "a repeated field takes its last value",
    ),
    rule(
        "any-json",
        MESSAGES,
        Check::Together(forms::any_json),
        "fields in another order, whitespace and escapes are read as JSON says",
    ),
    rule(
        "numbered-subjects",
        MESSAGES,
        Check::Together(forms::numbered_subjects),
        "AlarmStatusChanged.<n> and SendAlarmDigest.<n> are read as well, <n> being any one token",
    ),
    rule(
        "copied-change-is-duplicate",
        MESSAGES,
        Check::Together(forms::copied_change_is_duplicate),
        "a change that is copied to a numbered subject is a duplicate",
    ),
    rule(
        "copied-request-is-second",
        MESSAGES,
        Check::Together(forms::copied_request_is_second),
        "a request that is copied to a numbered subject is a second request",
    ),
    rule(
        "large-digest",
        DIGEST,
        Check::Alone(behaviour::large_digest),
        "a digest of several thousand alarms is complete and in order, in one message or in parts",
    ),
    rule(
        "refuses-bad-json",
        REFUSED,
        Check::Alone(refusals::bad_json),
        "what is not JSON changes nothing, and the service stays up",
    ),
    rule(
        "refuses-bad-utf8",
        REFUSED,
        Check::Alone(refusals::bad_utf8),
        "what is not UTF-8 changes nothing, and the service stays up",
    ),
    rule(
        "refuses-other-than-objects",
        REFUSED,
        Check::Alone(refusals::other_than_objects),
        "JSON that is not an object changes nothing, and the service stays up",
    ),
    rule(
        "refuses-missing-fields",
        REFUSED,
        Check::Alone(refusals::missing_fields),
        "a message without one of its fields changes nothing, and inherits none from an earlier message",
    ),
    rule(
        "refuses-empty-fields",
        REFUSED,
        Check::Alone(refusals::empty_fields),
        "a message with an empty field changes nothing",
    ),
    rule(
        "refuses-wrong-types",
        REFUSED,
        Check::Alone(refusals::wrong_types),
        "a message with a field that is no string changes nothing",
    ),
    rule(
        "refuses-long-ids",
        REFUSED,
        Check::Alone(refusals::long_ids),
        "a message with an id of more than 256 bytes changes nothing",
    ),
    rule(
        "refuses-unknown-status",
        REFUSED,
        Check::Alone(refusals::unknown_status),
        "a message with a status that does not exist changes nothing",
    ),
    rule(
        "refuses-lower-case-status",
        REFUSED,
        Check::Alone(refusals::lower_case_status),
        "a message whose status is not in upper case changes nothing",
    ),
    rule(
        "refuses-other-times",
        REFUSED,
        Check::Alone(refusals::other_times),
        "a message whose ChangedAt is not exactly RFC 3339 changes nothing",
    ),
    rule(
        "refuses-before-1970",
        REFUSED,
        Check::Alone(refusals::before_1970),
        "a message whose ChangedAt lies before 1970 changes nothing",
    ),
    rule(
        "refuses-far-future",
        REFUSED,
        Check::Alone(refusals::far_future),
        "a message whose ChangedAt lies more than 24 h ahead changes nothing, one less than that counts",
    ),
    rule(
        "random-history",
        DIGEST,
        Check::Random,
        "whatever the order, the repeats and the junk, every digest of many users is exactly what is due",
    ),
    rule(
        "dead-letters",
        REFUSED,
        Check::DeadLetters,
        "a refused message goes to the dead-letter subject with its bytes, its subject and the reason",
    ),
    rule(
        "refusals-are-counted",
        REFUSED,
        Check::OutOfSight("counters are not part of the messages"),
        "refused messages are counted by reason",
    ),
    rule(
        "crash-safety",
        DIGEST,
        Check::OutOfSight("the service would have to be killed"),
        "a crash at any point loses nothing and repeats at most what was in flight, under the same id",
    ),
    rule(
        "tombstone-retention",
        STATE,
        Check::OutOfSight("it takes two weeks"),
        "tombstones are kept for 14 days",
    ),
    rule(
        "split-digest",
        DIGEST,
        Check::OutOfSight("it depends on the server's max_payload"),
        "a digest that is larger than the server's max_payload comes in several messages",
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::play::Play;
    use super::*;

    fn scenarios(rule: &Rule, names: &mut Names) -> Vec<Scenario> {
        match rule.check {
            Check::Together(of) | Check::Form(_, of) | Check::Alone(of) => of(names),
            Check::DeadLetters | Check::Random | Check::OutOfSight(_) => Vec::new(),
        }
    }

    #[test]
    fn every_rule_has_a_name_of_its_own_and_a_scenario_that_asks() {
        let names: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
        assert_eq!(names.len(), RULES.len());
        for rule in RULES {
            let is_kebab = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(rule.name.chars().all(is_kebab), "{}", rule.name);
            assert!(!rule.sentence.ends_with('.'), "{}", rule.name);
            for scenario in scenarios(rule, &mut Names::new(1, 2)) {
                let num_sent = Play::new(scenario.clone()).advance().len();
                assert!(num_sent >= 2, "{}: {}", rule.name, scenario.title);
            }
        }
        assert_eq!(
            Rule::named("tombstone").map(|rule| rule.name),
            Some("tombstone")
        );
        assert!(Rule::named("tombstones").is_none());
    }

    #[test]
    fn no_two_scenarios_share_a_user() {
        let mut names = Names::new(1, 2);
        let mut users = BTreeSet::new();
        for rule in RULES {
            for scenario in scenarios(rule, &mut names) {
                for user in scenario.users.iter().chain(&scenario.strangers) {
                    assert!(users.insert(user.clone()), "{}: {user}", rule.name);
                    assert!(scenario.strangers.contains(user) || user.len() <= 256);
                }
            }
        }
    }

    #[test]
    fn what_is_written_by_hand_says_what_it_means() {
        use super::super::scenario::Meaning;

        let mut names = Names::new(1, 2);
        for rule in RULES {
            for message in scenarios(rule, &mut names)
                .into_iter()
                .flat_map(|it| it.messages)
            {
                let (Meaning::Change { user, .. } | Meaning::Request { user }) = message.meaning
                else {
                    continue;
                };
                let json: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
                let fields = json.as_object().unwrap();
                let is_named = fields.iter().any(|(name, value)| {
                    name.eq_ignore_ascii_case("UserID") && value.as_str() == Some(user.as_str())
                });
                assert!(is_named, "{}: {json}", rule.name);
            }
        }
    }
}
