//! What a state takes: memory, disk, and the time to read it back.

use std::collections::HashMap;
use std::fs;
use std::iter::once;
use std::path::Path;
use std::time::Duration;

use super::{Bench, RECORD_BYTES, forget, pause, timed};
use crate::daemon::{Daemon, marker, wait_for_marker};
use crate::figures::{Figures, Must};
use crate::traffic::{ALARMS_PER_USER, Ids, every_alarm};

const NUM_ALARMS: u64 = 10_000_000;
/// Long enough for an allocator to give back what it means to.
const QUIET: Duration = Duration::from_secs(3);

pub(super) fn uuids(bench: &Bench, figures: &mut Figures) {
    measure(bench, figures, Ids::Uuids, 90.0);
}

pub(super) fn texts(bench: &Bench, figures: &mut Figures) {
    measure(bench, figures, Ids::Texts, 130.0);
}

fn measure(bench: &Bench, figures: &mut Figures, ids: Ids, max_bytes: f64) {
    let (server, num_alarms) = (bench.server(), bench.scaled(NUM_ALARMS));
    let store = bench.store();
    server.make_input();
    let daemon = Daemon::start(&server, &store, &[]);
    daemon.wait_until_ready();
    pause(QUIET);
    let empty = daemon.process.resident_bytes();
    let changes = every_alarm(ids, num_alarms / ALARMS_PER_USER, ALARMS_PER_USER, 0);
    server.load(changes.chain(once(marker(num_alarms))));
    wait_for_marker(&mut server.connect());
    pause(QUIET);
    let each = |bytes: u64| bytes.saturating_sub(empty) as f64 / num_alarms as f64;
    let filled = each(daemon.process.resident_bytes());
    figures.add("memory", "B an alarm", Must::AtMost(max_bytes), filled);
    daemon.stop();
    for _ in 0..bench.num_rounds {
        // The files are in the page cache from here on.
        let map = timed(|| read_and_insert(&store, num_alarms));
        let daemon = Daemon::start(&server, &store, &[]);
        let ready = daemon.wait_until_ready();
        figures.add(
            "speed of a start",
            "of the yardstick's",
            Must::AtLeast(0.5),
            map.as_secs_f64() / ready.as_secs_f64(),
        );
        figures.add("start to READY=1", "s", Must::Say, ready.as_secs_f64());
        pause(QUIET);
        let read_back = each(daemon.process.resident_bytes());
        figures.add(
            "memory after a start",
            "B an alarm",
            Must::AtMost(max_bytes),
            read_back,
        );
        daemon.stop();
    }
    forget(&server, &store);
}

/// An id, an instant, another and a few bits: what is kept of an alarm.
type Alarm = ([u8; 16], u64, u32, u8);

/// Reads every file of a folder in order, and makes a map as large as the state.
fn read_and_insert(store: &Path, num_alarms: u64) {
    let mut num_bytes = 0;
    for path in files(store) {
        num_bytes += fs::read(path).expect("it can be read").len();
    }
    assert!(num_bytes > 0, "there is a store");
    let mut map: HashMap<[u8; 16], Vec<Alarm>> = HashMap::new();
    for number in 0..num_alarms {
        let mut user = [0; 16];
        user[..8].copy_from_slice(&(number / ALARMS_PER_USER).to_be_bytes());
        map.entry(user)
            .or_default()
            .push((u128::from(number).to_be_bytes(), number, 0, 1));
    }
    assert!(!map.is_empty());
}

pub(super) fn size(bench: &Bench, figures: &mut Figures) {
    const CHANGES_PER_ALARM: u64 = 10;
    let (server, num_alarms) = (bench.server(), bench.scaled(NUM_ALARMS / 5));
    let store = bench.store();
    server.make_input();
    let daemon = Daemon::start(&server, &store, &[]);
    daemon.wait_until_ready();
    let mut bare = server.connect();
    for pass in 0..CHANGES_PER_ALARM {
        let changes = every_alarm(
            Ids::Uuids,
            num_alarms / ALARMS_PER_USER,
            ALARMS_PER_USER,
            pass * num_alarms,
        );
        server.load(changes.chain(once(marker((pass + 1) * num_alarms))));
        wait_for_marker(&mut bare);
    }
    let num_changes = (num_alarms * CHANGES_PER_ALARM) as f64;
    let written = daemon.process.written_bytes() as f64 / num_changes;
    figures.add(
        "written",
        "× a record of 57 B",
        Must::AtMost(3.0),
        written / RECORD_BYTES,
    );
    let folder: u64 = files(&store)
        .iter()
        .map(|path| fs::metadata(path).expect("it is there").len())
        .sum();
    let live = num_alarms as f64 * RECORD_BYTES;
    figures.add(
        "the folder",
        "× the live state",
        Must::AtMost(2.5),
        folder as f64 / live,
    );
    daemon.stop();
    forget(&server, &store);
}

fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).expect("the store");
    let mut files: Vec<_> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}
