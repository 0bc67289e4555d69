//! Commits whose answers are lost.

use std::time::Duration;

use idemptx::Engine;
use idemptx::store::postgres::PostgresStore;
use idemptx_testkit::faulty_proxy::{Direction, FaultyProxy};

use super::shop::{App, Shop, engine, order, patient};

/// A process that has a session and has taken its first order.
async fn through(shop: &Shop) -> (FaultyProxy, Engine<PostgresStore>, App) {
    let proxy = FaultyProxy::to(shop.server.port()).await;
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    let engine = engine(patient(url).open().unwrap(), |policy| policy);
    let app = App::of(&engine, order);
    app.post("before", "201").await.answered(201, "order 1");
    (proxy, engine, app)
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_found_to_have_happened() {
    let shop = Shop::open().await;
    let (proxy, _, app) = through(&shop).await;
    proxy.disconnect_at(COMMIT, Direction::ToClient);
    let reply = app.post("k", "201").await;
    assert!(proxy.has_triggered());
    reply.answered(201, "order 2");
    assert!(reply.is_replay(), "{reply:?}");
    assert_eq!(shop.orders("k").await, [1]);
    app.post("k", "201").await.answered(201, "order 2");
}

#[tokio::test]
async fn a_commit_that_does_not_get_through_has_not_happened_and_may_be_tried_again() {
    let shop = Shop::open().await;
    let (proxy, _, app) = through(&shop).await;
    proxy.disconnect_at(COMMIT, Direction::ToServer);
    let reply = app.post("k", "201").await;
    assert!(proxy.has_triggered());
    reply.refused(503, "store-unavailable");
    assert_eq!(reply.problem()["retryable"], true);
    assert_eq!(shop.orders("k").await, [0_i32; 0]);
    app.post("k", "201").await.answered(201, "order 3");
    assert_eq!(shop.orders("k").await, [1]);
}

#[tokio::test]
async fn a_commit_that_the_database_refuses_may_be_tried_again() {
    let shop = Shop::open().await;
    let unique = "ALTER TABLE orders ADD UNIQUE (key) DEFERRABLE INITIALLY DEFERRED;
                  INSERT INTO orders (key) VALUES ('k')";
    shop.server.session().await.batch_execute(unique).await.unwrap();
    let app = shop.app();
    app.post("k", "201").await.refused(503, "store-unavailable");
    shop.server.session().await.batch_execute("DELETE FROM orders").await.unwrap();
    app.post("k", "201").await.answered(201, "order 3");
    assert_eq!(shop.orders("k").await, [1]);
}

/// The outcome is unknown while the server is away, and must not be reported as known.
#[tokio::test]
async fn a_server_that_is_gone_with_the_commit_answers_when_it_is_back() {
    let mut shop = Shop::open().await;
    let (proxy, engine, app) = through(&shop).await;
    shop.server.configure("fsync", "on").await;
    proxy.disconnect_at(COMMIT, Direction::ToClient);
    let client = app.client("k", "201");
    while !proxy.has_triggered() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    shop.server.kill();
    let first = client.await.unwrap();
    shop.server.restart();
    let mut reply = app.post("k", "201").await;
    while reply.status == 503 || reply.status == 409 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        reply = app.post("k", "201").await;
    }
    assert_eq!(reply.status, 201);
    let orders = shop.orders("k").await;
    assert_eq!(orders.len(), 1, "{first:?} then {reply:?}");
    if first.status == 201 {
        assert_eq!(first.body, reply.body);
    }
    assert!(engine.drain().await);
    assert_eq!(shop.orders("k").await, orders);
}

/// A commit in the simple query protocol.
const COMMIT: &[u8] = b"Q\0\0\0\x0bCOMMIT\0";
