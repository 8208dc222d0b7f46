//! The contract of `trait Store`, run on every store; what the embedded one promises beyond it is in
//! `store_faults.rs`.

#![expect(
    clippy::indexing_slicing,
    reason = "clippy takes helpers outside of a #[test] for production code"
)]

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tocsin::core::ids::{CommitNumber, Epoch, PartitionId, StoreId};
use tocsin::core::partition::{Commit, Header, SnapshotHead};
use tocsin::core::position::{Cursor, Origin, Position};
use tocsin::core::rows::{CorruptRow, Rows};
use tocsin::core::time::Timestamp;
use tocsin::store::embedded::{Embedded, Options};
use tocsin::store::memory::Memory;
use tocsin::store::{Receipt, Recovery, Store, StoreError};

/// The rows of one partition, folded.
pub(crate) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Folds what is recovered.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Folded(pub(crate) BTreeMap<PartitionId, Map>);

impl Recovery for Folded {
    fn row(
        &mut self,
        partition: PartitionId,
        key: &[u8],
        value: Option<&[u8]>,
    ) -> Result<(), CorruptRow> {
        let map = self.0.entry(partition).or_default();
        match value {
            Some(value) => map.insert(key.to_vec(), value.to_vec()),
            None => map.remove(key),
        };
        Ok(())
    }
}

/// What the owner of one partition believes; every commit moves it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Owner {
    pub(crate) id: PartitionId,
    pub(crate) header: Header,
    pub(crate) map: Map,
}

impl Owner {
    pub(crate) fn claim(store: &dyn Store, partition: u16) -> Self {
        let id = PartitionId(partition);
        let mut folded = Folded::default();
        let headers = store.claim(&[id], &mut folded).expect("a claim");
        Self {
            id,
            header: headers[0],
            map: folded.0.remove(&id).unwrap_or_default(),
        }
    }

    /// The next commit; a value of `None` removes the key.
    pub(crate) fn next(&mut self, rows: &[(&str, Option<&str>)]) -> Commit {
        let mut encoded = Rows::default();
        for (key, value) in rows {
            encoded.push(key.as_bytes(), value.map(str::as_bytes));
            match value {
                Some(value) => self
                    .map
                    .insert(key.as_bytes().to_vec(), value.as_bytes().to_vec()),
                None => self.map.remove(key.as_bytes()),
            };
        }
        self.header.number = self.header.number.next();
        self.header.position = Some(position(self.header.number.0 * 10));
        Commit {
            partition: self.id,
            epoch: self.header.epoch,
            number: self.header.number,
            position: self.header.position,
            rows: encoded,
        }
    }

    pub(crate) fn head(&self) -> SnapshotHead {
        SnapshotHead {
            partition: self.id,
            header: self.header,
        }
    }

    pub(crate) fn rows(&self) -> Rows {
        let mut rows = Rows::default();
        for (key, value) in &self.map {
            rows.push(key, Some(value));
        }
        rows
    }
}

pub(crate) fn position(sequence: u64) -> Position {
    Position {
        origin: Origin::Stream {
            created: Timestamp::from_seconds(1000),
        },
        cursor: Cursor {
            generation: 0,
            sequence,
        },
        timestamp: Timestamp::from_seconds(5000 + sequence),
        fingerprint: Some(sequence * 7),
    }
}

/// Waits for a future that another thread resolves.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(30), future)
                .await
                .expect("the store answers")
        })
}

pub(crate) fn commit(store: &dyn Store, commit: Commit) -> Result<Receipt, StoreError> {
    wait(store.commit(vec![commit]))
}

/// Waits until something is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Segments so short that every test crosses several of them.
pub(crate) const SMALL: Options = Options {
    partitions: 4,
    segment_bytes: 4096,
    min_journal_bytes: 16 * 1024,
};

pub(crate) fn open(folder: &Path) -> Arc<dyn Store> {
    Arc::new(Embedded::open(folder, SMALL).expect("a store that opens"))
}

/// A store under test, and how to close and open it where it outlives its process.
trait Factory {
    fn open(&self) -> Arc<dyn Store>;
    fn is_durable(&self) -> bool;
}

struct InMemory;

impl Factory for InMemory {
    fn open(&self) -> Arc<dyn Store> {
        Arc::new(Memory::new(StoreId([1; 16]), 4))
    }

    fn is_durable(&self) -> bool {
        false
    }
}

struct InFolder(TempDir);

impl Factory for InFolder {
    fn open(&self) -> Arc<dyn Store> {
        open(self.0.path())
    }

    fn is_durable(&self) -> bool {
        true
    }
}

fn on_every_store(check: impl Fn(&dyn Factory)) {
    check(&InMemory);
    check(&InFolder(tempfile::tempdir().expect("a folder")));
}

/// Closes and opens it where that keeps something.
fn reopened(factory: &dyn Factory, store: Arc<dyn Store>) -> Arc<dyn Store> {
    if !factory.is_durable() {
        return store;
    }
    drop(store);
    factory.open()
}

#[test]
fn a_new_store_is_empty() {
    on_every_store(|factory| {
        let store = factory.open();
        assert_eq!(store.num_partitions(), 4);
        assert_eq!(store.headers(), vec![Header::default(); 4]);
        let id = store.id();
        let owner = Owner::claim(&*store, 2);
        assert_eq!(owner.header.epoch, Epoch(1));
        assert_eq!(owner.header.number, CommitNumber(0));
        assert_eq!(owner.map, Map::new());
        assert_eq!(reopened(factory, store).id(), id);
    });
}

#[test]
fn what_was_committed_is_read_again_in_order() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut owner = Owner::claim(&*store, 1);
        for rows in [
            &[("a", Some("1")), ("b", Some("1"))][..],
            &[("a", Some("2")), ("b", None), ("never", None)],
            &[],
            &[("c", Some("")), ("c", None), ("c", Some("3"))],
        ] {
            let next = owner.next(rows);
            let receipt = commit(&*store, next).expect("a commit");
            assert_eq!(receipt, Receipt::default());
        }
        assert_eq!(store.headers()[1], owner.header);
        let store = reopened(factory, store);
        assert_eq!(store.headers()[1], owner.header, "before any claim");
        let again = Owner::claim(&*store, 1);
        assert_eq!(again.map, owner.map);
        assert_eq!(again.header.epoch, Epoch(2));
        assert_eq!(again.header.number, owner.header.number);
        assert_eq!(again.header.position, owner.header.position);
    });
}

#[test]
fn one_call_commits_several_partitions_and_none_sees_another() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut owners: Vec<_> = (0..4).map(|id| Owner::claim(&*store, id)).collect();
        let commits = owners
            .iter_mut()
            .map(|owner| owner.next(&[("whose", Some(&owner.id.to_string()))]))
            .collect();
        assert!(wait(store.commit(commits)).is_ok());
        let store = reopened(factory, store);
        for owner in owners {
            assert_eq!(Owner::claim(&*store, owner.id.0).map, owner.map);
        }
        assert!(wait(store.commit(Vec::new())).is_ok());
    });
}

#[test]
fn a_commit_of_an_older_epoch_or_out_of_turn_is_fenced() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut old = Owner::claim(&*store, 0);
        let next = old.next(&[("a", Some("1"))]);
        assert!(commit(&*store, next.clone()).is_ok());
        let fenced = |commit_again: Commit| {
            let error = commit(&*store, commit_again).expect_err("it is fenced");
            assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
        };
        fenced(next.clone());
        fenced(Commit {
            number: CommitNumber(3),
            ..next.clone()
        });
        fenced(Commit {
            partition: PartitionId(4),
            ..next
        });
        let mut new = Owner::claim(&*store, 0);
        fenced(old.next(&[("a", Some("old"))]));
        assert!(commit(&*store, new.next(&[("a", Some("new"))])).is_ok());
        assert_eq!(Owner::claim(&*store, 0).map, new.map);
    });
}

#[test]
fn a_fenced_commit_does_not_hold_the_other_partitions_of_its_call() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut stale = Owner::claim(&*store, 0);
        let mut owner = Owner::claim(&*store, 1);
        Owner::claim(&*store, 0);
        let commits = vec![
            stale.next(&[("a", Some("1"))]),
            owner.next(&[("a", Some("1"))]),
        ];
        let error = wait(store.commit(commits)).expect_err("one is fenced");
        assert!(
            matches!(
                error,
                StoreError::Fenced {
                    partition: PartitionId(0),
                    stored_epoch: 2,
                    ..
                }
            ),
            "{error}"
        );
        let store = reopened(factory, store);
        assert_eq!(Owner::claim(&*store, 0).map, Map::new());
        assert_eq!(Owner::claim(&*store, 1).map, owner.map);
    });
}

#[test]
fn epochs_only_rise() {
    on_every_store(|factory| {
        let mut store = factory.open();
        for expected in 1..=5 {
            assert_eq!(Owner::claim(&*store, 3).header.epoch, Epoch(expected));
            store = reopened(factory, store);
            assert_eq!(store.headers()[3].epoch, Epoch(expected));
        }
    });
}

#[test]
fn claims_return_the_headers_in_the_order_asked_for() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut owner = Owner::claim(&*store, 2);
        assert!(commit(&*store, owner.next(&[])).is_ok());
        let asked = [3, 2, 0].map(PartitionId);
        let headers = store
            .claim(&asked, &mut Folded::default())
            .expect("a claim");
        let seen: Vec<_> = headers
            .iter()
            .map(|header| (header.epoch.0, header.number.0))
            .collect();
        assert_eq!(seen, vec![(1, 0), (2, 1), (1, 0)]);
    });
}

#[test]
fn a_row_that_the_caller_cannot_read_fails_the_claim() {
    struct Refuses;
    impl Recovery for Refuses {
        fn row(&mut self, _: PartitionId, _: &[u8], _: Option<&[u8]>) -> Result<(), CorruptRow> {
            Err(CorruptRow("it is refused"))
        }
    }
    on_every_store(|factory| {
        let store = factory.open();
        let mut owner = Owner::claim(&*store, 2);
        assert!(commit(&*store, owner.next(&[("a", Some("1"))])).is_ok());
        let error = store
            .claim(&[owner.id], &mut Refuses)
            .expect_err("the row is refused");
        assert!(
            matches!(
                error,
                StoreError::Corrupt {
                    partition: PartitionId(2),
                    ..
                }
            ),
            "{error}"
        );
    });
}

/// Four owners on threads of their own; partition 0 is claimed anew again and again meanwhile.
#[test]
fn partitions_are_claimed_and_committed_at_once() {
    on_every_store(|factory| {
        let store = factory.open();
        std::thread::scope(|scope| {
            for id in 1..4 {
                let store = &*store;
                scope.spawn(move || {
                    let mut owner = Owner::claim(store, id);
                    for i in 0..200 {
                        let key = format!("{}", i % 17);
                        let next = owner.next(&[(&key, Some(&i.to_string()))]);
                        commit(store, next).expect("a commit");
                    }
                    assert_eq!(Owner::claim(store, id).map, owner.map);
                });
            }
            let store = &*store;
            scope.spawn(move || {
                let mut last = Owner::claim(store, 0);
                for i in 0..50 {
                    let next = last.next(&[("i", Some(&i.to_string()))]);
                    commit(store, next).expect("a commit");
                    let again = Owner::claim(store, 0);
                    assert_eq!(again.map, last.map);
                    assert_eq!(again.header.epoch.0, last.header.epoch.0 + 1);
                    last = again;
                }
            });
        });
        let store = reopened(factory, store);
        let numbers: Vec<_> = store
            .headers()
            .iter()
            .map(|header| header.number.0)
            .collect();
        assert_eq!(numbers, vec![50, 200, 200, 200]);
    });
}

/// A call is taken in its turn when it is made, not when its future is first polled.
#[test]
fn commits_are_applied_in_the_order_of_the_calls() {
    on_every_store(|factory| {
        let store = factory.open();
        let mut owner = Owner::claim(&*store, 0);
        let first = store.commit(vec![owner.next(&[("a", Some("1"))])]);
        let second = store.commit(vec![owner.next(&[("a", Some("2"))])]);
        assert!(wait(second).is_ok());
        assert!(wait(first).is_ok());
        let abandoned = store.commit(vec![owner.next(&[("a", Some("3"))])]);
        drop(abandoned);
        assert_eq!(Owner::claim(&*store, 0).map, owner.map);
    });
}
