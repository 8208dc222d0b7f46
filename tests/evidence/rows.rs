//! The rows of the evidence.

/// One row.
pub(crate) struct Row {
    /// What it is called in the table, and where a promise names it.
    pub(crate) name: &'static str,
    /// What is done to the daemon.
    pub(crate) fault: &'static str,
    /// What had to hold.
    pub(crate) held: &'static str,
    /// What shows it.
    pub(crate) proofs: &'static [Proof],
    /// How long it may take, shared by its tests.
    pub(crate) seconds: Seconds,
}

/// What shows a row.
pub(crate) enum Proof {
    /// A test of `cargo test --test TARGET`.
    Test {
        target: &'static str,
        test: &'static str,
    },
    /// Every target of `make fuzz`.
    Fuzz,
}

/// A row's part of the time.
pub(crate) struct Seconds {
    pub(crate) hour: u64,
    pub(crate) full: u64,
}

const fn it(test: &'static str) -> Proof {
    let target = "it";
    Proof::Test { target, test }
}

const fn sim(test: &'static str) -> Proof {
    let target = "sim";
    Proof::Test { target, test }
}

/// What is shown, in the order of the table.
pub(crate) const ROWS: &[Row] = &[Row {
    name: "daemon-killed",
    fault: "kill -9 of the daemon under traffic, a third of the times while it recovers",
    held: "every digest that the input demands is in the output, once, with its bytes and its id",
    proofs: &[it("crash::kills_of_the_daemon_lose_and_repeat_nothing")],
    seconds: Seconds {
        hour: 180,
        full: 900,
    },
}];

/// Faults that were not made, and why.
pub(crate) const NOT_MADE: &[(&str, &str)] = &[];
