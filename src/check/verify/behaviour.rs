//! The scenarios of the rules on the state of an alarm and on digests.

use super::super::messages::{
    self,
    Status::{Critical, Warning},
};
use super::scenario::{Names, Scenario, nano, second};
use crate::bus::wire::{CHANGE, REQUEST};

/// How many alarms a large digest has: as many as still fit into one message of 1 MiB.
const NUM_LARGE: u64 = 4000;

/// One scenario a line, in the notation of the examples.
pub(super) fn play(names: &mut Names, histories: &[&str]) -> Vec<Scenario> {
    let example = |notation: &&str| Scenario::example(names.user(), notation);
    histories.iter().map(example).collect()
}

pub(super) fn examples(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "S",
            "aC1 aW2 S",
            "aC2 aW1 S",
            "aC1 S S",
            "aC1 S aC2 S",
            "aC1 S aX2 aC3 S",
            "aW1 S aC2 aW3 S",
            "aC1 S aC3 aW2 S",
            "aX2 aC1 S",
            "bC2 aW1 S",
            "aC2 S bW1 S",
            "aC1 aX1 S",
        ],
    )
}

pub(super) fn newest_wins(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aW1 aC2 aW3 S",
            "aW1 aW3 aC2 S",
            "aC2 aW1 aW3 S",
            "aC2 aW3 aW1 S",
            "aW3 aW1 aC2 S",
            "aW3 aC2 aW1 S",
            "aC1 aX2 S",
            "aX1 aC2 S",
            "aC3 S aX5 aW4 S aW6 S",
        ],
    )
}

pub(super) fn older_changes_nothing(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aC2 aX1 S",
            "aC2 S aW1 S",
            "aC2 S aX1 aC3 S",
            "aW9 aC8 aX7 aC6 S",
        ],
    )
}

pub(super) fn same_instant_new_status_wins(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aC1 aX1 S",
            "aX1 aC1 S",
            "aC1 aW1 S",
            "aW1 aC1 S",
            "aW1 aX1 aC1 S",
            "aC1 S aW1 S",
            "aC1 S aX1 S",
        ],
    )
}

pub(super) fn same_instant_seen_status_is_duplicate(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aC1 aX1 aC1 S",
            "aX1 aC1 aX1 S",
            "aW1 aC1 aW1 S",
            "aC1 aW1 aX1 aW1 aC1 S",
            "aC2 aX2 aW1 aC2 S",
            "aC1 S aX1 aC1 S",
            "aC1 aX1 aC2 S",
            "aC1 aX1 S aC1 S",
        ],
    )
}

pub(super) fn tombstone(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aX2 aC1 S",
            "aX2 S aC1 S",
            "aC1 S aX3 S aW2 S",
            "aX3 aW2 aC1 S aC4 S",
        ],
    )
}

pub(super) fn reported_once(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aC1 S S S",
            "aC1 S aC2 S aC3 S",
            "aC1 S aC1 S",
            "aC1 bW2 S cC3 S dW4 S",
            "aW1 S aW2 bW3 S",
        ],
    )
}

pub(super) fn raised_again_is_due(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &["aC1 S aX2 aC3 S", "aC1 S aX2 S aC3 S", "aW1 S aX2 aC3 S"],
    )
}

pub(super) fn other_status_is_due(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aW1 S aC2 S",
            "aC1 S aW2 S",
            "aW1 S aC2 aW3 S",
            "aC1 S aW2 aC3 S aC4 S",
        ],
    )
}

pub(super) fn late_alarm_is_due(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &["aC9 S bW1 S", "aC9 S bW8 cC1 S", "aX9 S bW1 cC20 S"],
    )
}

pub(super) fn only_active_alarms(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &["aC1 aX2 bW3 S", "aX1 bX2 S", "aW1 bX2 cC3 dX4 S bC5 S"],
    )
}

pub(super) fn each_alarm_once(names: &mut Names) -> Vec<Scenario> {
    play(
        names,
        &[
            "aW1 aC2 aW3 S",
            "aC1 aC2 S",
            "aC2 aC1 S",
            "aC1 bC2 aC3 bC4 aC5 S",
            "aC1 aC1 aC1 bW1 S",
        ],
    )
}

pub(super) fn oldest_first(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios = play(
        names,
        &[
            "bC2 aW1 S",
            "aC3 bW2 cC1 S",
            "cW2 aC3 bC1 dW4 S",
            "aC1 bC2 aC3 S",
        ],
    );
    // Numbers that are not ordered as their texts are, and times of different lengths.
    let mut scenario = Scenario::new("a hundred alarms", names.user());
    for number in 0..100 {
        let at = nano(number * 37 % 100 * 10_000_000);
        scenario = scenario.change(&number.to_string(), Warning, at);
    }
    scenarios.push(scenario.request());
    scenarios
}

pub(super) fn ties_by_bytes(names: &mut Names) -> Vec<Scenario> {
    // In UTF-16, as some languages compare, the last two are the other way round.
    let ids = [
        "",
        "0",
        "1",
        "10",
        "2",
        "9",
        "A",
        "B",
        "a",
        "a b",
        "a-",
        "a.b",
        "aa",
        "b",
        "z",
        "\u{e9}",
        "\u{df}",
        "\u{ff21}",
        "\u{1f514}",
    ];
    let ids = ids.iter().filter(|id| !id.is_empty());
    let forwards: Vec<_> = ids.copied().collect();
    let backwards: Vec<_> = forwards.iter().rev().copied().collect();
    [("forwards", forwards), ("backwards", backwards)]
        .into_iter()
        .map(|(title, ids)| {
            let scenario = Scenario::new(title, names.user());
            let add = |scenario: Scenario, id: &str| scenario.change(id, Critical, second(1));
            ids.into_iter().fold(scenario, add).request()
        })
        .collect()
}

pub(super) fn one_request_one_digest(names: &mut Names) -> Vec<Scenario> {
    play(names, &["aC1 bW2 cC3 S", "aC1 S bC2 S cC3 S", "aC1 S S"])
}

pub(super) fn change_before_request(names: &mut Names) -> Vec<Scenario> {
    let mut scenarios: Vec<_> = (0..20)
        .map(|_| {
            let scenario = Scenario::new("a change and at once a request", names.user());
            (1..=5).fold(scenario, |scenario, at| {
                scenario
                    .change(&format!("alarm-{at}"), Critical, second(at))
                    .request()
            })
        })
        .collect();
    for (of_change, of_request) in [
        (CHANGE, "SendAlarmDigest.1"),
        ("AlarmStatusChanged.1", REQUEST),
        ("AlarmStatusChanged.1", "SendAlarmDigest.1"),
        ("AlarmStatusChanged.1", "SendAlarmDigest.2"),
    ] {
        let user = names.user();
        let mut scenario = Scenario::new(format!("{of_change}, {of_request}"), user.clone());
        for at in 1..=5 {
            let (alarm, at) = (format!("alarm-{at}"), second(at));
            let payload = messages::change(&user, &alarm, Warning, at);
            scenario = scenario
                .change_written(of_change, payload, &alarm, Warning, at)
                .request_written(of_request, messages::request(&user));
        }
        scenarios.push(scenario);
    }
    let mut scenario = Scenario::new("300 changes and at once a request", names.user());
    for at in 1..=300 {
        scenario = scenario.change(&format!("alarm-{}", at % 150), Critical, second(at));
    }
    scenarios.push(scenario.request());
    scenarios
}

pub(super) fn users_are_apart(names: &mut Names) -> Vec<Scenario> {
    let mut two = |title: &str, build: fn(Scenario, &str, &str) -> Scenario| {
        let (u, v) = (names.user(), names.user());
        build(Scenario::new(title, u.clone()), &u, &v)
    };
    vec![
        two("both have alarm a", |it, u, v| {
            it.then("aC1")
                .user(v)
                .then("aW2 S")
                .user(u)
                .request()
                .request()
        }),
        two("one clears its own", |it, u, v| {
            it.then("aC1")
                .user(v)
                .then("aX2 S")
                .user(u)
                .request()
                .user(v)
                .request()
        }),
        two("one has none", |it, u, v| {
            it.then("aC1 bW2").user(v).request().user(u).request()
        }),
        two("one was told", |it, u, v| {
            it.then("aC1 S").user(v).then("aC1 S").user(u).then("aW2 S")
        }),
    ]
}

pub(super) fn empty_digests(names: &mut Names) -> Vec<Scenario> {
    play(names, &["S", "aX1 S", "aC1 S S", "aC1 aX2 S"])
}

pub(super) fn large_digest(names: &mut Names) -> Vec<Scenario> {
    let mut scenario = Scenario::new(format!("{NUM_LARGE} alarms"), names.user());
    for number in 0..NUM_LARGE {
        // 1,009 is prime to their number: every place once, in no order.
        let at = second(1 + number * 1009 % NUM_LARGE);
        scenario = scenario.change(&format!("alarm-{number}"), Critical, at);
    }
    vec![scenario.request().request()]
}
