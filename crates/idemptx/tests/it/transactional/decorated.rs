//! Transactions through a store that is sealed and held near.

use idemptx::store::AnyStore;
use idemptx::store::seal::{SealKey, SealKeys};

use super::shop::{App, Shop, engine, order};

#[tokio::test]
async fn a_transaction_commits_through_sealing_and_the_near_cache() {
    let shop = Shop::open().await;
    let key: SealKey =
        "1:4f6c64206b6579732073746179207468657265207768696c65206e6565646564".parse().unwrap();
    let keys = SealKeys::new(key);
    let store = AnyStore::from_url(&shop.server.url()).unwrap().sealed(keys).near(1 << 20);
    let app = App::of(&engine(store, |policy| policy), order);
    app.post("k", "201").await.answered(201, "order 1");
    let retry = app.post("k", "201").await;
    retry.answered(201, "order 1");
    assert!(retry.is_replay(), "{retry:?}");
    app.post("refused", "422").await.answered(422, "order 2");
    assert_eq!((shop.orders("k").await, shop.orders("refused").await), (vec![1], vec![]));
    let clear = "SELECT count(*) FROM idemptx.records WHERE position('order' IN record) > 0";
    assert_eq!(shop.number(clear).await, 0, "a response stands in the table as it was");
}

#[test]
fn a_store_without_a_database_is_refused_whatever_is_around_it() {
    let store = AnyStore::from_url("memory:").unwrap().near(1 << 20);
    let refused = idemptx::Engine::builder(store).transactional().build().unwrap_err();
    assert!(refused.to_string().contains("PostgreSQL or SQLite"), "{refused}");
}
