//! A test that passes without the protection that it is there for proves nothing. Here each protection is taken
//! away in turn, in a copy of the tree, and its test must fail.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::root;
use crate::run::{Ended, folder, git, limited, run_into, say};

/// A protection, and how the code reads without it.
pub(crate) struct Protection {
    /// What it protects from, in words.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) file: &'static str,
    /// The text that protects; it stands there once.
    pub(crate) line: &'static str,
    /// What stands there without it.
    pub(crate) without: &'static str,
    /// The target of the test that must fail then: `lib`, `sim` or `it`.
    pub(crate) target: &'static str,
    /// That test.
    pub(crate) test: &'static str,
}

/// All that are taken away.
pub(crate) const PROTECTIONS: &[Protection] = &[
    Protection {
        name: "a message is dropped that was applied before",
        file: "src/core/partition.rs",
        line: "if delivery.cursor <= self.seen {",
        without: "if false {",
        target: "sim",
        test: "nothing_is_lost_in_any_world",
    },
    Protection {
        name: "what was owed is published after a restart",
        file: "src/core/partition.rs",
        line: "let owed = self.outbox.make_durable(self.outbox.last_key());",
        without: "let owed = self.outbox.make_durable(self.outbox.last_key()).into_iter().take(0);",
        target: "it",
        test: "crash::kills_of_the_daemon_lose_and_repeat_nothing",
    },
    Protection {
        name: "a parked message stays owed",
        file: "src/core/outbox.rs",
        line: "let lane = self.rows.get(&key)?.lane;",
        without: "let lane = self.rows.remove(&key)?.lane;",
        target: "sim",
        test: "nothing_is_lost_in_any_world",
    },
    Protection {
        name: "one message of a lane is on its way",
        file: "src/core/outbox.rs",
        line: ".filter(first_of_lane)",
        without: ".filter(|owed| first_of_lane(owed) || owed.key >= OutboxKey::default())",
        target: "sim",
        test: "nothing_is_lost_in_any_world",
    },
    Protection {
        name: "a snapshot waits for the commits that it contains",
        file: "src/core/partition.rs",
        line: "&& contains <= self.durable.number",
        without: "&& contains >= CommitNumber::default()",
        target: "sim",
        test: "nothing_is_lost_in_any_world",
    },
    Protection {
        name: "a stream that ends before our position was rolled back",
        file: "src/core/position.rs",
        line: "if stream.last_sequence < highest.cursor.sequence {",
        without: "if stream.last_sequence + 1_000_000 < highest.cursor.sequence {",
        target: "it",
        test: "history::rewritten_histories_lose_and_repeat_nothing_and_are_said",
    },
    Protection {
        name: "what may be forgotten by the broker is looked for before it is sent again",
        file: "src/core/attempts.rs",
        line: "self.remembered_until.is_none_or(|until| now > until)",
        without: "self.remembered_until.is_none_or(|until| now > until * 1000)",
        target: "sim",
        test: "nothing_is_lost_in_any_world",
    },
    Protection {
        name: "the age of a request is told by the broker's time",
        file: "src/runtime/producer.rs",
        line: "match now.map(|now| now.since(publish.owed.since)) {",
        without: "match now.map(|_| crate::bus::wall_clock().since(publish.owed.since)) {",
        target: "it",
        test: "clock::an_empty_store_under_a_wrong_clock_repeats_no_digest_that_is_older_than_the_window",
    },
    Protection {
        name: "a digest is split anew when the broker takes less",
        file: "src/runtime/producer.rs",
        line: "(shared.codec.encode)(owed, &stored, max_payload)",
        without: "(shared.codec.encode)(owed, &stored, max_payload.max(1 << 20))",
        target: "it",
        test: "refusals::refusals_of_the_broker_lose_and_repeat_nothing",
    },
    Protection {
        name: "what is too far ahead is told by the broker's time",
        file: "src/bus/wire/decode.rs",
        line: "if changed_at > at.plus(limits.max_future) {",
        without: "if changed_at > crate::bus::wall_clock().plus(limits.max_future) {",
        target: "it",
        test: "clock::a_change_is_too_far_ahead_by_the_brokers_time_and_by_no_other",
    },
    Protection {
        name: "a wrong clock is said",
        file: "src/bus/jetstream/monitor.rs",
        line: "let is_off = offset > MAX_OFFSET;",
        without: "let is_off = offset > MAX_OFFSET * 1_000_000;",
        target: "it",
        test: "clock::a_clock_that_jumps_under_the_daemon_loses_and_repeats_nothing_and_is_said",
    },
    Protection {
        name: "the claim's stream is made anew",
        file: "src/bus/jetstream/claim.rs",
        line: "self.make_anew().await;",
        without: "",
        target: "it",
        test: "history::a_broker_that_lost_its_disk_is_filled_again_under_the_daemon",
    },
    Protection {
        name: "only the stream that keeps digests confirms them",
        file: "src/bus/jetstream/publisher.rs",
        line: "Some(target) if target.stream.config.name != ack.stream =>",
        without: "Some(target) if target.stream.config.name.is_empty() =>",
        target: "it",
        test: "bus_jetstream::what_another_stream_has_stored_is_not_confirmed",
    },
    Protection {
        name: "an attempt that was given up leaves the client soon or never",
        file: "src/bus/jetstream/publisher.rs",
        line: "() = shared.stuck(&session) =>",
        without: "() = std::future::pending() =>",
        target: "it",
        test: "bus_jetstream::what_was_given_up_ends_with_its_connection_when_the_broker_takes_hardly_anything",
    },
    Protection {
        name: "a message that is too large for the stream goes in parts",
        file: "src/bus/jetstream/publisher.rs",
        line: "if size <= self.limit() {",
        without: "if false {",
        target: "it",
        test: "bus_jetstream::what_the_broker_would_never_take_is_refused_and_blocks_nothing",
    },
    Protection {
        name: "a status that a publisher wrote is no word of the broker",
        file: "src/bus/jetstream/pull.rs",
        line: "        let place = message\n            .reply\n",
        without: "        if let Some(status) = message.status {\n            self.on_status(status.as_u16(), \"\", &HeaderMap::new())?;\n            return Ok(None);\n        }\n        let place = message\n            .reply\n",
        target: "lib",
        test: "bus::jetstream::pull::tests::a_status_that_a_publisher_wrote_is_no_word_of_the_broker",
    },
    Protection {
        name: "a message that breaks the consumer is read by itself",
        file: "src/bus/jetstream/reader.rs",
        line: "self.is_stuck = !source.has_yielded();",
        without: "self.is_stuck = false;",
        target: "it",
        test: "hostile::headers_that_no_client_can_read_stop_nothing",
    },
    Protection {
        name: "a look goes on behind a message that breaks it",
        file: "src/bus/jetstream/publisher.rs",
        line: "let is_stuck = !pull.has_yielded();",
        without: "let is_stuck = search.last == 0;",
        target: "it",
        test: "hostile::what_stands_among_headers_that_no_client_can_read_is_found",
    },
    Protection {
        name: "a message is looked for since its request",
        file: "src/bus/jetstream/publisher.rs",
        line: "From::Time(since.minus(REWRITE_MARGIN))",
        without: "From::Time(since.plus(REWRITE_MARGIN))",
        target: "it",
        test: "bus_jetstream::what_a_stream_made_anew_holds_is_found_though_it_has_outgrown_the_old_sequence",
    },
    Protection {
        name: "messages that are read by themselves are bounded in bytes",
        file: "src/bus/jetstream/singles.rs",
        line: "&& num_bytes < MAX_BYTES && sequence < last",
        without: "&& num_bytes < MAX_BYTES << 20 && sequence < last",
        target: "it",
        test: "hostile::messages_behind_headers_that_no_client_can_read_are_taken_a_few_mebibytes_at_a_time",
    },
    Protection {
        name: "an own claim that is older than another's is no renewal",
        file: "src/bus/jetstream/claim.rs",
        line: ".is_none_or(|it| it.sequence < sequence)",
        without: ".is_none_or(|_| sequence > 0)",
        target: "it",
        test: "bus_jetstream::an_own_claim_in_a_stream_that_was_rolled_back_is_not_taken_before_the_others_time",
    },
    Protection {
        name: "a position of a rewind is as old as the stream says",
        file: "src/core/position.rs",
        line: "Some(_) | None => Timestamp::EPOCH,",
        without: "Some(_) | None => position.timestamp,",
        target: "lib",
        test: "core::position::tests::a_rewind_to_a_sequence_outlives_a_stream_that_is_stamped_anew",
    },
    Protection {
        name: "a request to the stream is bounded in bytes",
        file: "src/bus/jetstream/pull.rs",
        line: "max_bytes: MAX_BYTES,",
        without: "max_bytes: MAX_BYTES << 20,",
        target: "it",
        test: "memory::a_backlog_of_large_messages_is_drained_below_a_limit_of_memory",
    },
    Protection {
        name: "what was taken in is bounded in bytes",
        file: "src/runtime/reader.rs",
        line: "num_bytes.div_ceil(BYTES_PER_PERMIT).max(1)",
        without: "num_bytes.min(1).max(1)",
        target: "lib",
        test: "runtime::reader::tests::a_batch_weighs_what_its_messages_take",
    },
    Protection {
        name: "a message is looked for in every way that it was cut",
        file: "src/core/attempts.rs",
        line: "(is_forgotten || was_cut_otherwise())",
        without: "(is_forgotten || was_cut_otherwise() && false)",
        target: "it",
        test: "refusals::a_digest_that_was_stored_whole_does_not_come_again_in_parts",
    },
    Protection {
        name: "a silent link is found dead",
        file: "src/bus/connection.rs",
        line: "const PING_INTERVAL: Duration = Duration::from_secs(5);",
        without: "const PING_INTERVAL: Duration = Duration::from_secs(60);",
        target: "it",
        test: "bad_link::a_link_silent_for_longer_than_the_ping_is_found_dead_and_loses_and_repeats_nothing",
    },
    Protection {
        name: "what the queue drops is counted",
        file: "src/bus/core_nats/input.rs",
        line: "waiting.dropped += 1;",
        without: "waiting.dropped += 0;",
        target: "it",
        test: "bus_core::what_does_not_fit_is_counted_to_the_message",
    },
    Protection {
        name: "what waits owns its bytes",
        file: "src/bus/core_nats/input.rs",
        line: "message.payload = Bytes::copy_from_slice(&message.payload);",
        without: "message.payload = message.payload.slice(..);",
        target: "it",
        test: "bus_core::a_message_that_waits_keeps_no_memory_of_others",
    },
    Protection {
        name: "a record is flushed before anything is released",
        file: "src/store/journal.rs",
        line: "        files::sync(&active.file, &active.path)?;\n",
        without: "",
        target: "it",
        test: "power_loss::on_core_nats_every_answered_change_outlives_a_power_cut",
    },
    Protection {
        name: "the last segment is written anew at a start",
        file: "src/store/recovery.rs",
        line: "    let active = files::write_whole(&path, &mut found.last.prefix(found.end)?)?;",
        without: "    let active = File::options().append(true).open(&path).context(\"open\", &path)?;\n    active.set_len(found.end).context(\"cut\", &path)?;",
        target: "it",
        test: "disk::what_an_fsync_failed_to_write_is_neither_lost_nor_believed",
    },
    Protection {
        name: "a file is flushed before it is put in place",
        file: "src/store/files.rs",
        line: "    file.sync_all().context(\"fsync\", temp)?;\n",
        without: "",
        target: "it",
        test: "power_loss::after_a_power_cut_at_any_call_everything_acknowledged_is_there",
    },
    Protection {
        name: "a frame's checksum covers its content",
        file: "src/store/format.rs",
        line: "if crc32fast::hash(body) == self.checksum {",
        without: "if body.len() <= usize::MAX {",
        target: "lib",
        test: "store::format::tests::a_changed_body_is_noticed",
    },
    Protection {
        name: "a limit on the size of files is an error, not a signal",
        file: "src/app/supervisor.rs",
        line: "        drop(listen(SignalKind::from_raw(Number::XFSZ.as_raw()))?);\n",
        without: "",
        target: "it",
        test: "disk::a_limit_on_the_size_of_files_ends_the_daemon_with_a_line_and_loses_nothing",
    },
];

/// How long a test may take that misses its protection: some wait for what then never comes.
const DEADLINE: Duration = Duration::from_mins(5);
const BUILD_DEADLINE: Duration = Duration::from_mins(20);

/// Takes each protection away in turn, or those whose name holds `ONLY`; a test that does not notice is a failure.
pub(crate) fn replay() {
    let copy = Copy::new();
    let only = std::env::var("ONLY").unwrap_or_default();
    let is_wanted = |it: &&Protection| it.name.contains(&only);
    let wanted: Vec<&Protection> = PROTECTIONS.iter().filter(is_wanted).collect();
    assert!(!wanted.is_empty(), "no protection is called {only}");
    for protection in &wanted {
        let built = copy.cargo(protection, true);
        assert!(built.is_well, "with {}: {}", protection.name, built.last);
        // What fails anyway would notice everything.
        let tested = copy.cargo(protection, false);
        assert!(tested.is_well, "with {}: {}", protection.name, tested.last);
    }
    let mut unnoticed = Vec::new();
    say("every test passes with its protection in place");
    for protection in &wanted {
        let began = Instant::now();
        let path = copy.tree.join(protection.file);
        let whole = fs::read_to_string(&path).expect("the file was copied");
        let without = whole.replacen(protection.line, protection.without, 1);
        fs::write(&path, without).expect("the copy can be written");
        let built = copy.cargo(protection, true);
        assert!(built.is_well, "without {}: {}", protection.name, built.last);
        let tested = copy.cargo(protection, false);
        fs::write(&path, whole).expect("the copy can be written");
        let (name, test) = (protection.name, protection.test);
        let seconds = began.elapsed().as_secs();
        if tested.is_well {
            unnoticed.push(name);
            say(&format!("{name}: NOT NOTICED by {test}, {seconds} s"));
        } else {
            say(&format!("{name}: noticed by {test}, {seconds} s"));
        }
    }
    assert!(unnoticed.is_empty(), "not noticed: {unnoticed:#?}");
}

/// A copy of the tree, built beside it.
struct Copy {
    tree: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let tree = folder().join("protections");
        fs::remove_dir_all(&tree).ok();
        for file in git(&["ls-files"]).lines() {
            let to = tree.join(file);
            fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("a folder");
            let copied = Command::new("cp")
                .arg("-a")
                .arg(root().join(file))
                .arg(&to)
                .status();
            assert!(
                copied.is_ok_and(|it| it.success()),
                "{file} cannot be copied"
            );
        }
        fs::create_dir_all(tree.join("target")).expect("a folder for the tools");
        symlink(root().join("target/tools"), tree.join("target/tools"))
            .expect("the tools can be linked");
        Self { tree }
    }

    fn cargo(&self, protection: &Protection, only_build: bool) -> Ended {
        let within = if only_build { BUILD_DEADLINE } else { DEADLINE };
        let mut cargo = limited("cargo", within);
        cargo
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", folder().join("protections-target"))
            // Each is built once for one run of one test.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .arg("test");
        match protection.target {
            "lib" => cargo.arg("--lib"),
            target => cargo.args(["--test", target]),
        };
        if only_build {
            cargo.arg("--no-run");
        } else {
            cargo.args(["--", "--exact", protection.test]);
        }
        run_into(cargo, &folder().join("protections.log"))
    }
}
