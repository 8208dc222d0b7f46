//! The rows of the evidence.

/// One row.
pub(crate) struct Row {
    /// What it is called in the table, and where a promise names it.
    pub(crate) name: &'static str,
    /// What is done to the daemon.
    pub(crate) fault: &'static str,
    /// What had to hold.
    pub(crate) held: &'static str,
    /// What the table shows of what was counted; the rest is folded.
    pub(crate) foremost: &'static [&'static str],
    /// What shows it.
    pub(crate) proofs: &'static [Proof],
    /// How long it may take, shared by its tests.
    pub(crate) seconds: Seconds,
    /// Whether nothing else may run beside it: it needs both cores, or measures.
    pub(crate) is_alone: bool,
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
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "simulation",
        fault: "thousands of deployments in one process, real protocol code, everything around it simulated: a crash between any two steps, late, lost and repeated answers, clocks, roll-backs, take-overs",
        held: "every invariant after every step; at rest every digest that is due, once",
        foremost: &[
            "simulated worlds",
            "simulated deliveries",
            "crashes of a daemon",
            "crashes of a worker",
            "digests and dead letters judged",
        ],
        proofs: &[sim("nothing_is_lost_in_any_world")],
        seconds: Seconds {
            hour: 150,
            full: 640,
        },
        is_alone: true,
    },
    Row {
        name: "planted-faults",
        fault: "one fault a time planted into the simulated daemon",
        held: "a check with a name catches each",
        foremost: &["planted faults noticed"],
        proofs: &[sim("every_planted_fault_is_noticed_by_a_named_check")],
        seconds: Seconds { hour: 40, full: 40 },
        is_alone: false,
    },
    Row {
        name: "daemon-killed",
        fault: "kill -9 of the daemon under traffic, a third of the times while it recovers",
        held: "every digest that the input demands is in the output, once, with its bytes and its id",
        foremost: &[
            "kill -9 of the daemon",
            "of these before it had recovered",
            "messages in the input",
            "digests checked",
        ],
        proofs: &[it("crash::kills_of_the_daemon_lose_and_repeat_nothing")],
        seconds: Seconds {
            hour: 150,
            full: 500,
        },
        is_alone: false,
    },
    Row {
        name: "broker-killed",
        fault: "kill -9 of nats-server, with and without `sync_interval: always`",
        held: "the same, and what was confirmed to a publisher is in the stream",
        foremost: &[
            "kill -9 of nats-server",
            "kill -9 of nats-server with sync_interval: always",
            "messages in the input",
            "digests checked",
        ],
        proofs: &[it("crash::kills_of_the_broker_lose_and_repeat_nothing")],
        seconds: Seconds {
            hour: 100,
            full: 360,
        },
        is_alone: false,
    },
    Row {
        name: "both-killed",
        fault: "kill -9 of the daemon and of nats-server at once",
        held: "the same",
        foremost: &[
            "kill -9 of nats-server and the daemon at once",
            "messages in the input",
            "digests checked",
        ],
        proofs: &[it(
            "crash::kills_of_the_broker_and_of_the_daemon_at_once_lose_and_repeat_nothing",
        )],
        seconds: Seconds {
            hour: 60,
            full: 210,
        },
        is_alone: false,
    },
    Row {
        name: "stopped",
        fault: "SIGTERM in the middle of a burst",
        held: "exit status 0, and the next start goes on where it was",
        foremost: &[
            "SIGTERM of the daemon, ended with 0",
            "messages published during the stops",
            "digests checked",
        ],
        proofs: &[it(
            "crash::stops_of_the_daemon_within_a_burst_are_clean_and_lose_and_repeat_nothing",
        )],
        seconds: Seconds {
            hour: 40,
            full: 100,
        },
        is_alone: false,
    },
    Row {
        name: "split-digests",
        fault: "digests in many parts, kills, freezes, another number of actors",
        held: "every digest whole, its parts in order, once",
        foremost: &[
            "kill -9 of the daemon, then another number of actors",
            "SIGSTOP of the daemon for a moment",
            "kill -9 of nats-server",
            "digests checked",
        ],
        proofs: &[it(
            "crash::split_digests_survive_kills_freezes_and_another_number_of_actors",
        )],
        seconds: Seconds {
            hour: 40,
            full: 100,
        },
        is_alone: false,
    },
    Row {
        name: "core-answered",
        fault: "kill -9 of the daemon, and power cuts, on core NATS with publishers that wait for their answer",
        held: "every answered change is in a digest",
        foremost: &[
            "kill -9 of the daemon",
            "power cuts of a disk",
            "answered changes found in digests",
        ],
        proofs: &[
            it("crash::on_core_nats_every_answered_change_is_in_a_digest_after_kills"),
            it("power_loss::on_core_nats_every_answered_change_outlives_a_power_cut"),
        ],
        seconds: Seconds {
            hour: 100,
            full: 250,
        },
        is_alone: false,
    },
    Row {
        name: "core-counted",
        fault: "more on core NATS than the queue of the reader holds",
        held: "what is dropped is counted to the message; everything else is applied",
        foremost: &[
            "messages published",
            "messages applied",
            "messages lost, and said to be lost",
            "largest memory, and its bound",
        ],
        proofs: &[it(
            "burst::what_the_queue_cannot_hold_is_counted_to_the_message",
        )],
        seconds: Seconds { hour: 30, full: 60 },
        is_alone: true,
    },
    Row {
        name: "frozen",
        fault: "SIGSTOP of the daemon, and of nats-server, for less and for longer than every time-out; of the daemon between a publish and its confirmation",
        held: "nothing lost, nothing twice",
        foremost: &[
            "SIGSTOP of the daemon for 13 s",
            "SIGSTOP of the daemon for 35 s",
            "SIGSTOP of nats-server for 13 s",
            "SIGSTOP of nats-server for 35 s",
            "SIGSTOP between a publish and its confirmation",
            "digests checked",
        ],
        proofs: &[
            it("freeze::freezes_of_the_daemon_lose_and_repeat_nothing"),
            it("freeze::freezes_of_the_broker_lose_and_repeat_nothing"),
            it("freeze::freezes_between_a_publish_and_its_confirmation_repeat_nothing"),
        ],
        seconds: Seconds {
            hour: 200,
            full: 500,
        },
        is_alone: false,
    },
    Row {
        name: "store-takes-over",
        fault: "a daemon frozen beyond its claim wakes when another, with another store, owns the input",
        held: "the one that woke writes and publishes nothing, and says why",
        foremost: &[
            "SIGSTOP of the owner beyond its claim",
            "standbys that took over",
            "digests checked",
        ],
        proofs: &[it(
            "zombie::stores_that_take_over_from_each_other_lose_and_repeat_nothing",
        )],
        seconds: Seconds {
            hour: 60,
            full: 170,
        },
        is_alone: false,
    },
    Row {
        name: "cluster",
        fault: "three nats-servers with replicated streams lose the leader of a stream: kill -9, SIGSTOP",
        held: "nothing lost, nothing twice",
        foremost: &[
            "kill -9 of the node that leads a stream",
            "SIGSTOP of the node that leads a stream",
            "digests checked",
        ],
        proofs: &[it(
            "cluster::a_cluster_that_loses_its_leaders_loses_and_repeats_nothing",
        )],
        seconds: Seconds {
            hour: 100,
            full: 280,
        },
        is_alone: false,
    },
    Row {
        name: "bad-link",
        fault: "a link that delays, throttles, falls silent in one direction, is reset, cut within a message, refused",
        held: "nothing lost, nothing twice; the daemon notices",
        foremost: &[
            "links faulty",
            "connections made anew by the daemon",
            "digests checked",
        ],
        proofs: &[it("bad_link::faults_of_the_link_lose_and_repeat_nothing")],
        seconds: Seconds {
            hour: 100,
            full: 320,
        },
        is_alone: false,
    },
    Row {
        name: "silent-link",
        fault: "a link that is open and silent for longer than the ping",
        held: "the daemon finds it dead and connects again; nothing lost, nothing twice",
        foremost: &[
            "links silent until the daemon found them dead",
            "digests checked",
        ],
        proofs: &[it(
            "bad_link::a_link_silent_for_longer_than_the_ping_is_found_dead_and_loses_and_repeats_nothing",
        )],
        seconds: Seconds {
            hour: 50,
            full: 100,
        },
        is_alone: false,
    },
    Row {
        name: "history-rewritten",
        fault: "the input deleted and made anew, purged, rolled back to an older copy",
        held: "said at error level; nothing lost; repeats only of what the older copy made due again",
        foremost: &[
            "input streams deleted and made anew",
            "brokers rolled back to an older copy",
            "input streams purged",
            "unread messages purged, each counted",
            "digests checked",
        ],
        proofs: &[it(
            "history::rewritten_histories_lose_and_repeat_nothing_and_are_said",
        )],
        seconds: Seconds {
            hour: 90,
            full: 210,
        },
        is_alone: false,
    },
    Row {
        name: "streams-deleted",
        fault: "the streams of digests, of dead letters and of the claim purged or deleted under way",
        held: "made anew, and every digest that was not yet confirmed is published; repeats, under the same id, only of what the deleted stream had kept, or what was published while there was none",
        foremost: &[
            "streams deleted under way",
            "streams purged under way",
            "digests checked",
            "digests heard again under their id",
        ],
        proofs: &[it(
            "history::streams_of_ours_purged_or_deleted_under_way_lose_no_digest",
        )],
        seconds: Seconds {
            hour: 70,
            full: 140,
        },
        is_alone: false,
    },
    Row {
        name: "broker-refuses",
        fault: "full streams, a lowered `max_payload`, JetStream switched off, permissions revoked",
        held: "waited for and said; nothing lost, nothing twice once it takes again",
        foremost: &[
            "refusals of a broker",
            "permissions revoked and given back",
            "digests checked",
        ],
        proofs: &[
            it("refusals::refusals_of_the_broker_lose_and_repeat_nothing"),
            it("refusals::permissions_taken_and_given_back_lose_and_repeat_nothing"),
            it("refusals::a_digest_that_was_stored_whole_does_not_come_again_in_parts"),
        ],
        seconds: Seconds {
            hour: 130,
            full: 210,
        },
        is_alone: false,
    },
    Row {
        name: "wrong-clock",
        fault: "a clock a day behind, a day ahead, too fast, too slow, and jumping under the daemon",
        held: "digests as with the right clock; the wrong one is said",
        foremost: &[
            "starts with a clock a day or more off",
            "starts with a clock that goes wrong by a tenth",
            "jumps of the wall clock under the daemon",
            "digests checked",
        ],
        proofs: &[
            it("clock::a_clock_that_jumps_under_the_daemon_loses_and_repeats_nothing_and_is_said"),
            it("clock::starts_under_wrong_clocks_lose_and_repeat_nothing"),
        ],
        seconds: Seconds {
            hour: 90,
            full: 210,
        },
        is_alone: false,
    },
    Row {
        name: "disk-fails",
        fault: "write, fsync, rename, open and read that fail, each at any time; an fsync that fails on a block device; a disk that refuses everything",
        held: "exit status 74, or 2 where it was starting, and one line with file and cause; on the mended disk nothing lost, nothing twice",
        foremost: &[
            "calls of the store that failed",
            "fsyncs that failed on a block device",
            "disks that refused every write",
            "digests checked",
        ],
        proofs: &[
            it("disk::each_call_of_the_store_may_fail_at_any_time"),
            it("disk::what_an_fsync_failed_to_write_is_neither_lost_nor_believed"),
            it("disk::on_a_disk_that_died_every_start_says_so_and_a_mended_one_loses_nothing"),
        ],
        seconds: Seconds {
            hour: 160,
            full: 430,
        },
        is_alone: false,
    },
    Row {
        name: "disk-full",
        fault: "a full disk, a limit on the size of files",
        held: "the same",
        foremost: &[
            "disks that ran full",
            "file-size limits reached",
            "digests checked",
        ],
        proofs: &[
            it("disk::a_full_disk_ends_the_daemon_and_loses_nothing_once_there_is_room"),
            it("disk::a_limit_on_the_size_of_files_ends_the_daemon_with_a_line_and_loses_nothing"),
        ],
        seconds: Seconds {
            hour: 60,
            full: 140,
        },
        is_alone: false,
    },
    Row {
        name: "disk-slow",
        fault: "an fsync of seconds, longer than the claim lasts",
        held: "the daemon lives, its watchdog is fed, it keeps its claim",
        foremost: &[
            "fsyncs that took seconds",
            "longest fsync",
            "digests checked",
        ],
        proofs: &[it(
            "disk::while_an_fsync_takes_seconds_the_daemon_lives_and_keeps_its_claim",
        )],
        seconds: Seconds { hour: 30, full: 60 },
        is_alone: false,
    },
    Row {
        name: "power-cut",
        fault: "power cuts at every call of the store and under the daemon: what was not flushed is lost in any part and order",
        held: "what was acknowledged is there",
        foremost: &[
            "power cuts, one after each call",
            "different disks that they left",
            "calls of the store that failed",
            "power cuts of a disk",
            "digests checked",
        ],
        proofs: &[
            it("power_loss::after_a_power_cut_at_any_call_everything_acknowledged_is_there"),
            it(
                "power_loss::whichever_call_fails_everything_acknowledged_is_there_at_the_next_start",
            ),
            it("power_loss::a_power_cut_under_the_daemon_loses_and_repeats_nothing"),
        ],
        seconds: Seconds {
            hour: 150,
            full: 430,
        },
        is_alone: false,
    },
    Row {
        name: "damage",
        fault: "bytes, lengths and files of a store changed, cut, removed, swapped",
        held: "recovered, or refused with the file and what to do; never a wrong state, never a panic",
        foremost: &[
            "damaged stores",
            "changed bytes that were refused",
            "journals cut short at rest",
            "digests checked",
        ],
        proofs: &[
            it("damage::a_damaged_store_is_refused_or_as_it_was"),
            it("store_faults::a_changed_byte_anywhere_in_any_file_is_found"),
            it("damage::a_journal_cut_short_at_rest_loses_no_alarm_of_a_stream"),
        ],
        seconds: Seconds {
            hour: 120,
            full: 320,
        },
        is_alone: false,
    },
    Row {
        name: "little-memory",
        fault: "a long backlog under a limit of 300 MiB; kills for want of memory",
        held: "drained below it, every digest right; a kill loses nothing",
        foremost: &[
            "messages in the backlog",
            "largest memory with the pages of its files",
            "OOM kills of the daemon",
            "digests checked",
        ],
        proofs: &[
            it("memory::a_long_backlog_is_drained_below_a_limit_of_memory"),
            it("memory::a_backlog_of_large_messages_is_drained_below_a_limit_of_memory"),
            it("memory::kills_for_want_of_memory_lose_and_repeat_nothing"),
        ],
        seconds: Seconds {
            hour: 150,
            full: 500,
        },
        is_alone: true,
    },
    Row {
        name: "overload",
        fault: "ten times what the daemon can take",
        held: "memory below its bound, nothing lost, back at its usual latency",
        foremost: &[
            "messages published in overload",
            "rate of the overload",
            "largest memory, and its bound",
            "usual latency again within",
        ],
        proofs: &[it(
            "overload::ten_times_what_the_daemon_can_take_waits_and_is_lost_nowhere",
        )],
        seconds: Seconds {
            hour: 100,
            full: 140,
        },
        is_alone: true,
    },
    Row {
        name: "greedy-user",
        fault: "one user who is half the traffic and always asks",
        held: "the others have their digests as quickly as before",
        foremost: &[
            "request to digest without the neighbour",
            "request to digest beside the neighbour",
        ],
        proofs: &[it(
            "overload::a_user_who_is_half_the_traffic_and_always_asks_delays_nobody_else",
        )],
        seconds: Seconds { hour: 30, full: 60 },
        is_alone: true,
    },
    Row {
        name: "soak",
        fault: "one process for long, one store for long, with faults at random",
        held: "memory, files, threads and store as at the beginning; nothing lost, nothing twice",
        foremost: &[
            "messages in the input",
            "SIGSTOP and SIGCONT of the daemon",
            "kill -9 of nats-server",
            "kill -9 of the daemon",
            "memory",
        ],
        proofs: &[
            it("soak::one_process_for_long_uses_no_more_than_at_first"),
            it("soak::one_store_for_long_uses_no_more_than_at_first"),
        ],
        seconds: Seconds {
            hour: 150,
            full: 860,
        },
        is_alone: true,
    },
    Row {
        name: "hostile-messages",
        fault: "everything that a publisher can write, beside good messages",
        held: "applied as the specification says, or a dead letter with its bytes; good ones wait for none",
        foremost: &[
            "hostile messages published",
            "hostile messages answered",
            "dead letters checked, with their bytes",
            "a good user's digest, beside them",
        ],
        proofs: &[
            it("hostile::hostile_messages_are_applied_or_dead_letters_and_good_ones_wait_for_none"),
            it("hostile::on_core_nats_every_hostile_message_is_answered_as_the_specification_says"),
            it("hostile::headers_that_no_client_can_read_stop_nothing"),
        ],
        seconds: Seconds {
            hour: 90,
            full: 280,
        },
        is_alone: true,
    },
    Row {
        name: "fuzzed",
        fault: "messages, rows, store files, configurations and times from a coverage-guided fuzzer",
        held: "no panic; what is taken comes out again, and an independent reader agrees",
        foremost: &[
            "inputs of configuration",
            "inputs of messages",
            "inputs of store",
            "inputs of times",
        ],
        proofs: &[Proof::Fuzz],
        seconds: Seconds {
            hour: 60,
            full: 430,
        },
        is_alone: true,
    },
];

/// Faults that were not made, and why.
pub(crate) const NOT_MADE: &[(&str, &str)] = &[
    (
        "power loss of the broker's machine",
        "a nats-server that is killed leaves its pages to the kernel; what its disk holds after a power cut is its own matter, and a history that ends earlier than ours is `history-rewritten`",
    ),
    (
        "two of three nodes of a cluster lost",
        "without a quorum nothing is taken and nothing is promised; a broker that takes nothing is waited for in `broker-killed` and `frozen`",
    ),
    (
        "a file system in use made read-only by hand",
        "the kernel refuses it while a file is open for writing; ext4 that makes itself read-only after errors is in `disk-fails`",
    ),
    (
        "packets dropped, reordered or damaged by a network",
        "no such module of the kernel is at hand; TCP mends them, and what is left of them, delay and silence, is in `bad-link` and `silent-link`",
    ),
    (
        "a wrong clock of the broker",
        "nats-server is a static program, which libfaketime does not reach",
    ),
    ("a monotonic clock that goes back", "no kernel has one"),
];
