//! `tocsin store`: what it says of a real daemon's store, what it leaves alone, and reading the input again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::judge::{judge, read_stream};
use crate::support::nats::Nats;
use crate::support::program::run;
use crate::support::traffic::{change, publish_taken, request};

/// Runs `tocsin store …` on a folder.
fn store(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let set = format!("store.path={}", folder.display());
    let (status, out, err) = run(&[&["store"], arguments, &["--set", &set]].concat());
    assert!(err.lines().count() <= 1, "more than one line: {err}");
    (status, out, err)
}

fn json_of(folder: &Path, arguments: &[&str]) -> Value {
    let (status, out, err) = store(folder, &[arguments, &["-o", "json"]].concat());
    assert_eq!((status, err.as_str()), (0, ""), "{arguments:?}");
    serde_json::from_str(&out).unwrap()
}

/// Every file with its bytes and the instant of its last change.
fn contents(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            let changed = fs::metadata(&path).unwrap().modified().unwrap();
            let bytes = fs::read(&path).unwrap();
            (path, (bytes, changed))
        })
        .collect()
}

fn copy_of(folder: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for path in contents(folder).keys() {
        fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn last_segment(folder: &Path) -> PathBuf {
    let is_segment = |path: &PathBuf| path.to_string_lossy().contains("journal-");
    contents(folder)
        .into_keys()
        .filter(is_segment)
        .max()
        .unwrap()
}

async fn ring(client: &async_nats::Client, user: &str, alarm: &str, status: &str, second: u64) {
    let change = change(user, alarm, status, second);
    publish_taken(client, "AlarmStatusChanged", change).await;
}

async fn ask(client: &async_nats::Client, user: &str) {
    publish_taken(client, "SendAlarmDigest", request(user)).await;
}

async fn num_in(client: &async_nats::Client, stream: &str) -> usize {
    read_stream(client, stream).await.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn stats_and_verify_tell_what_a_daemon_left_and_change_no_byte() {
    for partitions in [1, 64] {
        let nats = Nats::start().await;
        let client = nats.connect().await.client().clone();
        let setup = Setup::new(&nats).set(&format!("store.partitions={partitions}"));
        let daemon = setup.start_ready();
        ring(&client, "ann", "disk", "CRITICAL", 1).await;
        ask(&client, "ann").await;
        ring(&client, "ann", "net", "WARNING", 2).await;
        ring(&client, "bob", "disk", "CLEARED", 3).await;
        judge(&client).await;
        for command in [
            &["stats"][..],
            &["verify"],
            &["rewind", "--to", "first", "--yes"],
        ] {
            let (status, out, err) = store(&setup.store(), command);
            assert_eq!((status, out.as_str()), (2, ""), "{command:?}");
            assert!(
                err.contains("is in use by another process; stop it first"),
                "{err}"
            );
        }
        assert_eq!(daemon.stop().code(), Some(0));

        let before = contents(&setup.store());
        let counted = json_of(&setup.store(), &["stats"]);
        assert_eq!(counted["Partitions"], partitions);
        assert_eq!(counted["Format"], 1);
        let alarms = serde_json::json!({"CRITICAL": 1, "WARNING": 1, "CLEARED": 1});
        assert_eq!(
            (&counted["Alarms"], &counted["Users"]),
            (&alarms, &2.into())
        );
        assert_eq!(
            (&counted["Due"], &counted["Owed"]["Messages"]),
            (&1.into(), &0.into())
        );
        assert_eq!(
            (
                &counted["Highest"]["Sequence"],
                &counted["Highest"]["Generation"]
            ),
            (&4.into(), &0.into())
        );
        assert_eq!(counted["Lowest"], counted["Highest"]);
        assert_eq!(counted["Epochs"]["Highest"], 1);
        assert_eq!(counted["Journal"]["Files"], 1);
        let (status, words, _) = store(&setup.store(), &["stats"]);
        assert_eq!(status, 0);
        assert!(
            words.contains("2 active (1 CRITICAL, 1 WARNING), 1 due; 1 tombstones"),
            "{words}"
        );
        assert!(words.contains("read up to sequence 4 ("), "{words}");

        let found = json_of(&setup.store(), &["verify"]);
        assert_eq!(
            (&found["Well"], &found["Error"]),
            (&true.into(), &Value::Null)
        );
        assert!(
            found["Files"]
                .as_array()
                .unwrap()
                .iter()
                .all(|it| it["Verdict"] == "well"),
            "{found}"
        );
        assert!(found["Rows"].as_u64().unwrap() >= 4, "{found}");
        let (status, words, _) = store(&setup.store(), &["verify"]);
        assert_eq!(status, 0);
        assert!(
            words.contains("the store is well: every checksum is right"),
            "{words}"
        );
        assert_eq!(contents(&setup.store()), before, "something was changed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_names_every_damaged_file_and_a_torn_tail_is_well() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    ring(&client, "ann", "disk", "CRITICAL", 1).await;
    ask(&client, "ann").await;
    judge(&client).await;
    assert_eq!(daemon.stop().code(), Some(0));
    let segment = last_segment(&setup.store());
    let name = segment.file_name().unwrap().to_str().unwrap().to_owned();

    let torn = copy_of(&setup.store());
    fs::remove_file(torn.path().join("lock")).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes.extend([1, 2, 3]);
    fs::write(torn.path().join(&name), &bytes).unwrap();
    fs::write(torn.path().join("snapshot-0003.7.tmp"), "half").unwrap();
    let before = contents(torn.path());
    let (status, words, err) = store(torn.path(), &["verify"]);
    assert_eq!((status, err.as_str()), (0, ""));
    for said in [
        "torn tail",
        "the next start cuts its 3 bytes",
        "leftover",
        "the store is well",
    ] {
        assert!(words.contains(said), "{words}");
    }
    assert_eq!(json_of(torn.path(), &["stats"])["TornTailBytes"], 3);
    assert_eq!(contents(torn.path()), before, "something was changed");

    let damaged = copy_of(&setup.store());
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(damaged.path().join(&name), &bytes).unwrap();
    fs::write(
        damaged.path().join("snapshot-0000"),
        "no snapshot, but long enough for a head",
    )
    .unwrap();
    let (status, words, err) = store(damaged.path(), &["verify"]);
    assert_eq!(status, 2);
    assert_eq!(words.matches("DAMAGED").count(), 2, "{words}");
    assert!(
        words.contains("well       ") && !words.contains("the store is well"),
        "{words}"
    );
    assert!(
        err.contains(&name)
            && err.contains(" is damaged at byte ")
            && err.contains("restore the folder"),
        "{err}"
    );
    let (status, out, _) = store(damaged.path(), &["verify", "-o", "json"]);
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &found["Well"]), (2, &false.into()));
    for command in [&["stats"][..], &["rewind", "--to", "first", "--yes"]] {
        let (status, out, err) = store(damaged.path(), command);
        assert_eq!((status, out.as_str()), (2, ""));
        assert!(err.contains("is damaged at byte "), "{err}");
    }

    fs::write(damaged.path().join("store"), "junk").unwrap();
    let (status, words, _) = store(damaged.path(), &["verify"]);
    assert_eq!(status, 2);
    assert!(
        words.contains("DAMAGED") && words.contains("unchecked"),
        "{words}"
    );
    fs::remove_file(damaged.path().join("store")).unwrap();
    let (status, _, err) = store(damaged.path(), &["verify"]);
    assert!(
        status == 2 && err.contains("the file is missing, and its journal is not"),
        "{err}"
    );
}

#[test]
fn what_is_no_store_is_refused_and_nothing_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing");
    for command in [
        &["stats"][..],
        &["verify"],
        &["rewind", "--to", "first", "--yes"],
    ] {
        for path in [folder.path(), &missing] {
            let expected = format!(
                "tocsin: there is no store in {}; name its folder with --set store.path=DIR\n",
                path.display()
            );
            assert_eq!(store(path, command), (2, String::new(), expected));
        }
        let memory = run(&[&["store"], command, &["--set", "store.kind=memory"]].concat());
        assert_eq!((memory.0, memory.1.as_str()), (2, ""));
        assert!(
            memory.2.contains("there is nothing to look into"),
            "{}",
            memory.2
        );
    }
    assert_eq!(contents(folder.path()).len(), 0, "something was created");
}

/// A daemon that has read a change, two requests and junk, and is stopped; its store.
async fn read_some(setup: &Setup, client: &async_nats::Client) {
    let daemon = setup.start_ready();
    publish_taken(client, "SendAlarmDigest", "junk one").await;
    ask(client, "bob").await;
    ring(client, "ann", "disk", "CRITICAL", 1).await;
    ask(client, "ann").await;
    publish_taken(client, "SendAlarmDigest", "junk two").await;
    ring(client, "bob", "net", "WARNING", 2).await;
    judge(client).await;
    assert_eq!(daemon.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rewind_the_input_is_read_again_from_there_and_nothing_is_lost() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    read_some(&setup, &client).await;
    let first = read_stream(&client, "TOCSIN_OUT").await;
    assert_eq!(first.len(), 1);

    // Nobody can be asked, and what lies ahead is not skipped: nothing changes.
    let before = contents(&setup.store());
    let (status, told, err) = store(&setup.store(), &["rewind", "--to", "2"]);
    assert_eq!(status, 2);
    assert!(
        told.contains("64 partitions") && told.contains("from sequence 2 on, as generation 1"),
        "{told}"
    );
    assert!(
        err.contains("nothing was changed; add --yes to rewind"),
        "{err}"
    );
    let (status, _, err) = store(&setup.store(), &["rewind", "--to", "7", "--yes"]);
    assert!(
        status == 2 && err.contains("sequence 7 was not read yet, the store was read into up to 6"),
        "{err}"
    );
    let (status, _, err) = store(
        &setup.store(),
        &["rewind", "--to", "2100-01-01T00:00:00Z", "--yes"],
    );
    assert!(status == 2 && err.contains("was not reached yet"), "{err}");
    assert_eq!(contents(&setup.store()), before, "something was changed");

    let (status, told, err) = store(&setup.store(), &["rewind", "--to", "2", "--yes"]);
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(
        told.ends_with("done: the next start reads from there\n"),
        "{told}"
    );
    let counted = json_of(&setup.store(), &["stats"]);
    assert_eq!(
        (&counted["Lowest"], &counted["Lowest"]["Sequence"]),
        (&counted["Highest"], &1.into())
    );
    assert_eq!(counted["Highest"]["Generation"], 1);

    let daemon = setup.start_ready();
    // What follows is answered as ever: once, with what is new.
    ring(&client, "ann", "cpu", "WARNING", 5).await;
    ask(&client, "ann").await;
    eventually("three digests", async || {
        num_in(&client, "TOCSIN_OUT").await >= 3
    })
    .await;
    assert_eq!(daemon.stop().code(), Some(0));
    let digests: Vec<(String, String)> = read_stream(&client, "TOCSIN_OUT")
        .await
        .into_iter()
        .map(|it| (it.id, String::from_utf8(it.payload).unwrap()))
        .collect();
    assert_eq!(digests.len(), 3, "{digests:#?}");
    assert_eq!(
        digests[0].1,
        String::from_utf8(first[0].payload.clone()).unwrap()
    );
    let of = |user: &str, alarm: &str, status: &str, second: u64| {
        format!(
            "{{\"UserID\":\"{user}\",\"ActiveAlarms\":[{{\"AlarmID\":\"{alarm}\",\"Status\":\"{status}\",\"LatestChangedAt\":\"2026-01-01T00:00:0{second}Z\"}}]}}"
        )
    };
    // Those of two users come in any order.
    let of_bob = digests[1].0.starts_with("2-");
    let (again, new) = if of_bob {
        (&digests[1], &digests[2])
    } else {
        (&digests[2], &digests[1])
    };
    // The request of bob, sequence 2, is answered with what is due by now.
    assert!(
        again.0.starts_with("2-") && again.0.ends_with("-1"),
        "{}",
        again.0
    );
    assert_eq!(again.1, of("bob", "net", "WARNING", 2));
    assert!(
        new.0.starts_with("8-") && new.0.ends_with("-1"),
        "{}",
        new.0
    );
    assert_eq!(new.1, of("ann", "cpu", "WARNING", 5));
    let letters = read_stream(&client, "TOCSIN_DEAD_LETTER").await;
    let letters: Vec<_> = letters.iter().map(|it| it.payload.as_slice()).collect();
    assert_eq!(
        letters,
        [&b"junk one"[..], b"junk two", b"junk two"],
        "read again from sequence 2"
    );
    let counted = json_of(&setup.store(), &["stats"]);
    assert_eq!(
        (&counted["Highest"]["Sequence"], &counted["Due"]),
        (&8.into(), &0.into())
    );
    assert!(!setup.log().contains("rewritten"), "{}", setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_root_rewinds_stays_the_daemons_own() {
    const NOBODY: u32 = 65534;
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats).set("store.partitions=1");
    read_some(&setup, &client).await;
    let files = || {
        let files = fs::read_dir(setup.store()).unwrap();
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    for path in files().iter().chain([&setup.store()]) {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("this test is run by root");
    }
    let (status, _, err) = store(&setup.store(), &["rewind", "--to", "first", "--yes"]);
    assert_eq!((status, err.as_str()), (0, ""));
    for path in files() {
        let owner = fs::metadata(&path).unwrap();
        assert_eq!((owner.uid(), owner.gid()), (NOBODY, NOBODY), "{path:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_to_a_time_or_to_the_first_message_reads_from_there() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats).set("store.partitions=1");
    read_some(&setup, &client).await;
    let input = read_stream(&client, "TOCSIN_IN").await;
    let fifth = time::OffsetDateTime::from_unix_timestamp_nanos(input[4].nanos).unwrap();
    let fifth = fifth
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap();
    // Junk stands at 1 and at 5.
    for (to, num_letters, generation) in [(fifth.as_str(), 3, 1), ("first", 5, 2)] {
        let rewound = json_of(&setup.store(), &["rewind", "--to", to, "--yes"]);
        assert_eq!(rewound["Begins"]["Generation"], generation);
        assert_eq!(rewound["Partitions"], 1);
        let daemon = setup.start_ready();
        eventually("the dead letters", async || {
            num_in(&client, "TOCSIN_DEAD_LETTER").await >= num_letters
        })
        .await;
        assert_eq!(daemon.stop().code(), Some(0));
        assert_eq!(
            num_in(&client, "TOCSIN_DEAD_LETTER").await,
            num_letters,
            "{to}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_byte_of_a_rewind_leaves_all_of_it_or_nothing() {
    let nats = Nats::start().await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    read_some(&setup, &client).await;
    let segment = last_segment(&setup.store());
    let before = fs::read(&segment).unwrap();
    let (status, _, _) = store(&setup.store(), &["rewind", "--to", "first", "--yes"]);
    assert_eq!(status, 0);
    let after = fs::read(&segment).unwrap();
    assert!(after.starts_with(&before) && after.len() > before.len());
    let copy = copy_of(&setup.store());
    let step = ((after.len() - before.len()) / 25).max(1);
    let mut generations = Vec::new();
    for end in (before.len()..after.len())
        .step_by(step)
        .chain([after.len()])
    {
        fs::write(
            copy.path().join(segment.file_name().unwrap()),
            &after[..end],
        )
        .unwrap();
        let counted = json_of(copy.path(), &["stats"]);
        let of = |place: &str| counted[place]["Generation"].as_u64().unwrap();
        assert_eq!(of("Lowest"), of("Highest"), "cut at byte {end}");
        generations.push(of("Lowest"));
    }
    assert!(
        generations.is_sorted() && generations.starts_with(&[0]) && generations.ends_with(&[1]),
        "{generations:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_core_nats_brought_and_what_was_never_read_cannot_be_rewound() {
    let nats = Nats::start_with(false, "").await;
    let client = nats.connect().await.client().clone();
    let setup = Setup::new(&nats);
    let daemon = setup.start_ready();
    ring(&client, "ann", "disk", "CRITICAL", 1).await;
    assert_eq!(daemon.stop().code(), Some(0));
    let (status, _, err) = store(&setup.store(), &["rewind", "--to", "first", "--yes"]);
    assert!(
        status == 2 && err.contains("read into over core NATS, which keeps no message"),
        "{err}"
    );
    let (_, words, _) = store(&setup.store(), &["stats"]);
    assert!(words.contains("core NATS, no stream"), "{words}");

    let fresh = tempfile::tempdir().unwrap();
    drop(tocsin::store::embedded::Embedded::open(
        fresh.path(),
        tocsin::store::embedded::Options::default(),
    ));
    let (status, _, err) = store(fresh.path(), &["rewind", "--to", "first", "--yes"]);
    assert!(
        status == 2 && err.contains("the store has read nothing yet"),
        "{err}"
    );
    assert_eq!(json_of(fresh.path(), &["stats"])["Highest"], Value::Null);
}
