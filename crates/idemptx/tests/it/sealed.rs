//! Sealed results against an attacker who can write to the store.

use std::error::Error;
use std::path::PathBuf;

use idemptx::operator::{OperatorError, RecordStatus, Resolution};
use idemptx::store::seal::{Seal, SealKey, SealKeys, Sealed};
use idemptx::store::sqlite::SqliteStore;
use idemptx_core::key::RecordId;
use idemptx_core::policy::{OnStoreError, PolicyBuilder};
use idemptx_core::record::Record;
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::support::app::{App, engine};
use crate::support::http_client::{posted, send};

#[tokio::test]
async fn a_result_moved_to_another_key_is_neither_replayed_nor_run() {
    let store = Store::new();
    let app = store.app(|policy| policy);
    app.post("k1").await.answered(200, "run 1");
    app.post("k2").await.answered(200, "run 2");
    let [first, second] = store.records();
    store.write(&first, &[&first[..HEAD], &second[HEAD..]].concat());
    store.write(&second, &[&second[..HEAD], &first[HEAD..]].concat());
    for key in ["k1", "k2"] {
        app.post(key).await.refused(409, "outcome-unknown");
    }
    // Nor was anything deleted: once it is put right, it replays.
    store.write(&first, &first);
    store.write(&second, &second);
    app.post("k1").await.answered(200, "run 1");
    app.post("k2").await.answered(200, "run 2");
    assert_eq!(app.runs.began(), 2);
}

#[tokio::test]
async fn a_whole_record_put_under_another_key_is_refused() {
    let store = Store::new();
    let app = store.app(|policy| policy);
    app.post("k1").await.answered(200, "run 1");
    app.post("k2").await.answered(200, "run 2");
    let [first, second] = store.records();
    // With the id inside set to that of its new name, which only sealing notices.
    let moved = [&first[..ID_AT], id_of(&second), &first[ID_AT + 32..]].concat();
    store.write(&second, &moved);
    app.post("k2").await.refused(409, "outcome-unknown");
    assert_eq!(app.runs.began(), 2);
}

#[tokio::test]
async fn a_result_made_to_look_like_that_of_another_request_is_refused() {
    let store = Store::new();
    let app = store.app(|policy| policy);
    let wish = |key| posted(key, "another order");
    app.post("k1").await.answered(200, "run 1");
    send(&app.router, wish("k2")).await.answered(200, "run 2");
    send(&app.router, wish("k1")).await.refused(422, "key-reused");
    let [first, second] = store.records();
    let prints = FINGERPRINT_AT..FINGERPRINT_AT + 52;
    let mut forged = first.clone();
    forged[prints.clone()].copy_from_slice(&second[prints]);
    store.write(&first, &forged);
    send(&app.router, wish("k1")).await.refused(409, "outcome-unknown");
    assert_eq!(app.runs.began(), 2);
}

#[tokio::test]
async fn a_changed_byte_is_refused_even_where_failures_of_the_store_are_passed_over() {
    let store = Store::new();
    let app = store.app(|policy| policy.on_store_error(OnStoreError::FailOpen));
    app.post("k").await.answered(200, "run 1");
    let [record] = store.records();
    for position in HEAD..record.len() {
        let mut bent = record.clone();
        bent[position] ^= 0x20;
        store.write(&record, &bent);
        app.post("k").await.refused(409, "outcome-unknown");
    }
    assert_eq!(app.runs.began(), 1);
}

#[tokio::test]
async fn a_result_that_somebody_wrote_unsealed_is_refused() {
    let store = Store::new();
    let sealed = store.app(|policy| policy);
    let unsealed = App::quick(engine(store.open(), |policy| policy));
    unsealed.post("k").await.answered(200, "run 1");
    sealed.post("k").await.refused(409, "outcome-unknown");
    let adopting = Seal::with(keys()).accept_unsealed(true);
    let adopting = App::quick(engine(Sealed::new(store.open(), adopting), |policy| policy));
    let retry = adopting.post("k").await;
    retry.answered(200, "run 1");
    assert!(retry.is_replay());
    assert_eq!(sealed.runs.began() + adopting.runs.began(), 0);
}

#[tokio::test]
async fn a_result_that_does_not_open_can_be_forgotten_and_nothing_else() {
    for is_bent in [false, true] {
        let store = Store::new();
        store.app(|policy| policy).post("k").await.answered(200, "run 1");
        let [record] = store.records();
        // Changed by somebody, or sealed under keys that this reader has not.
        let seed: u8 = if is_bent { 1 } else { 9 };
        let mut found = record.clone();
        *found.last_mut().unwrap() ^= u8::from(is_bent);
        store.write(&record, &found);
        let keys = SealKeys::new(SealKey::new(seed.into(), &[seed, 2, 3, 4].repeat(8)).unwrap());
        let app = App::quick(engine(Sealed::new(store.open(), keys), |policy| policy));
        app.post("k").await.refused(409, "outcome-unknown");
        let operator = app.engine.operator();
        let id = RecordId::from_bytes(id_of(&record).try_into().unwrap());

        let refused = operator.resolve(&id, Resolution::Release).await.unwrap_err();
        assert!(matches!(refused, OperatorError::Unreadable(_)), "{refused:?}");
        assert!(refused.to_string().contains("forget it"), "{refused}");
        assert!(refused.source().and_then(Error::source).is_some(), "{refused:?}");
        assert_eq!(store.records(), [found]);

        let was = operator.forget(&id).await.unwrap().was;
        assert_eq!((was.status, was.response), (RecordStatus::Completed, None));
        assert_eq!(was.payload_bytes, record.len() - HEAD);
        app.post("k").await.answered(200, "run 1");
        assert_eq!(app.runs.began(), 1);
    }
}

#[tokio::test]
async fn no_byte_of_a_response_is_in_the_file() {
    let store = Store::new();
    let app = store.app(|policy| policy);
    app.post("k").await.answered(200, "run 1");
    let files = || {
        let names = ["records.db", "records.db-wal"].map(|name| store.folder.path().join(name));
        names.map(|name| std::fs::read(name).unwrap()).concat()
    };
    let has = |text: &[u8]| files().windows(text.len()).any(|part| part == text);
    assert!(!has(b"run 1"));
    App::quick(engine(store.open(), |policy| policy)).post("other").await.answered(200, "run 1");
    assert!(has(b"run 1"), "an unsealed one is, so it was looked for in the right place");
}

/// A store in a file that an attacker can write to.
struct Store {
    folder: TempDir,
}

impl Store {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("records.db")
    }

    fn open(&self) -> SqliteStore {
        SqliteStore::open(self.path()).unwrap()
    }

    fn app(&self, change: impl FnOnce(PolicyBuilder) -> PolicyBuilder) -> App<Sealed<SqliteStore>> {
        App::quick(engine(Sealed::new(self.open(), keys()), change))
    }

    /// Returns the records, in the order in which they were claimed.
    fn records<const N: usize>(&self) -> [Vec<u8>; N] {
        let connection = Connection::open(self.path()).unwrap();
        let mut statement =
            connection.prepare("SELECT record FROM records ORDER BY rowid").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().try_into().unwrap()
    }

    /// Writes over the record that has the id of `place`.
    fn write(&self, place: &[u8], record: &[u8]) {
        let connection = Connection::open(self.path()).unwrap();
        let update = "UPDATE records SET record = ?2 WHERE id = ?1";
        assert_eq!(connection.execute(update, params![id_of(place), record]).unwrap(), 1);
    }
}

fn id_of(record: &[u8]) -> &[u8] {
    &record[ID_AT..ID_AT + 32]
}

fn keys() -> SealKeys {
    SealKeys::new(SealKey::new(1, &[1, 2, 3, 4].repeat(8)).unwrap())
}

const HEAD: usize = Record::HEAD_BYTES;
const ID_AT: usize = 3;
const FINGERPRINT_AT: usize = 63;
