//! Listings of a Redis server that holds other keys as well.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use idemptx::operator::{Inventory, Query, RecordStatus};
use idemptx::store::redis::RedisStore;
use idemptx_core::key::RecordId;
use idemptx_core::record::State;
use idemptx_core::store::{Settlement, Store};
use idemptx_testkit::RedisServer;

use crate::support::records::{granted, id};

#[tokio::test]
async fn nothing_but_records_of_this_store_is_listed() {
    let server = RedisServer::start(&["appendfsync no"]);
    let store = odd_store(&server);
    let other = RedisStore::builder(server.url()).timeout(PATIENCE).prefix("axb:").open().unwrap();
    granted(&other, id(1)).await;
    let lease = granted(&store, id(2)).await;
    // Its response is kept under a second key.
    let brief = Settlement::new(State::Completed, Bytes::from_static(b"brief"), HOUR / 2, HOUR);
    store.settle(&lease, &brief).await.unwrap();
    let mut connection = server.connection();
    let mut noise = redis::pipe();
    for number in 0..2_000 {
        noise.set(format!("noise-{number}"), 1).ignore();
    }
    noise.exec(&mut connection).unwrap();
    for name in ["a*b:wake", "a*b:{x}", "a*b:{}", "a*b:"] {
        redis::cmd("SET").arg(name).arg(1).exec(&mut connection).unwrap();
    }
    let (listed, unreadable) = listed(&store, Query::all().limit(1)).await;
    assert_eq!((listed, unreadable), (BTreeSet::from([id(2)]), BTreeSet::new()));
    assert_eq!(server.calls("keys"), 0);
}

#[tokio::test]
async fn what_is_no_record_is_told_of_and_left_alone() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    granted(&store, id(1)).await;
    let mut connection = server.connection();
    for (number, value) in [(2, "hello"), (3, "")] {
        redis::cmd("SET").arg(key(id(number))).arg(value).exec(&mut connection).unwrap();
    }
    redis::cmd("HSET").arg(key(id(4))).arg("field").arg(1).exec(&mut connection).unwrap();
    redis::cmd("COPY").arg(key(id(1))).arg(key(id(5))).exec(&mut connection).unwrap();
    let (found, unreadable) = listed(&store, Query::in_flight()).await;
    assert_eq!(found, BTreeSet::from([id(1)]));
    assert_eq!(unreadable, BTreeSet::from([id(2), id(3), id(4), id(5)]));
    let types: Vec<String> = (2..=5)
        .map(|number| redis::cmd("TYPE").arg(key(id(number))).query(&mut connection).unwrap())
        .collect();
    assert_eq!(types, ["string", "string", "hash", "string"]);
}

/// After `PERSIST` the age is unknown, and the record must not count as expired.
#[tokio::test]
async fn a_claim_without_an_expiry_is_no_orphan() {
    let server = RedisServer::start(&[]);
    let store = RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    granted(&store, id(1)).await;
    redis::cmd("PERSIST").arg(key(id(1))).exec(&mut server.connection()).unwrap();
    let page = store.list(&Query::all().only(id(1))).await.unwrap();
    let entry = &page.entries[0];
    assert_eq!((entry.status, entry.expires_in), (RecordStatus::Running, Duration::MAX));
    assert_eq!(entry.idle, Duration::ZERO);
}

#[tokio::test]
async fn a_user_with_the_documented_rights_may_list() {
    let user = "user app on >secret resetkeys ~idem:* resetchannels &idem:* -@all \
                +set +get +getrange +setrange +del +pexpire +pttl +time +eval +evalsha +publish \
                +scan +exists +strlen";
    let server = RedisServer::start(&[user]);
    let url = format!("redis://app:secret@127.0.0.1:{}", server.port());
    let store = RedisStore::builder(url).timeout(PATIENCE).open().unwrap();
    granted(&store, id(1)).await;
    for _ in 0..2 {
        // The second time after the server has forgotten the script.
        assert_eq!(listed(&store, Query::all()).await.0, BTreeSet::from([id(1)]));
        redis::cmd("SCRIPT").arg("FLUSH").exec(&mut server.connection()).unwrap();
    }
}

#[tokio::test]
async fn a_page_of_many_records_is_one_scan_and_one_batch() {
    let server = RedisServer::start(&["appendfsync no"]);
    let store = RedisStore::builder(server.url()).timeout(PATIENCE).open().unwrap();
    for number in 0..100 {
        granted(&store, id(number)).await;
    }
    let (found, _) = listed(&store, Query::all().limit(1_000)).await;
    assert_eq!(found.len(), 100);
    // One to learn the script, and that it was not known.
    let scripts = server.calls("eval") + server.calls("evalsha");
    assert_eq!((server.calls("scan"), scripts), (1, 200));
}

fn odd_store(server: &RedisServer) -> RedisStore {
    RedisStore::builder(server.url()).timeout(PATIENCE).prefix("a*b:").open().unwrap()
}

async fn listed(store: &RedisStore, query: Query) -> (BTreeSet<RecordId>, BTreeSet<RecordId>) {
    let (mut query, mut found, mut unreadable) = (query, BTreeSet::new(), BTreeSet::new());
    loop {
        let page = store.list(&query).await.unwrap();
        found.extend(page.entries.iter().map(|entry| entry.id));
        unreadable.extend(page.unreadable);
        match page.next {
            None => return (found, unreadable),
            next => query = query.after(next),
        }
    }
}

fn key(id: RecordId) -> String {
    format!("idem:{{{id}}}")
}

const PATIENCE: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_secs(3600);
