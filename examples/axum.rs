//! An axum service that takes each order once, however often its client sends it.
//!
//! ```console
//! $ cargo run -p examples --bin axum
//! $ KEY=$(uuidgen)
//! $ curl -i http://127.0.0.1:8080/orders -H "Idempotency-Key: $KEY" --json '{"item": "tea"}'
//! ```
//!
//! Send the same request twice: the second response is the stored first one, with the header
//! `Idempotent-Replayed: true`. Stop and start the service in between: it still is.

use std::env;
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use axum::{Json, Router, routing::post};
use idemptx::store::AnyStore;
use idemptx::{Engine, Policy};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

#[derive(Deserialize, Serialize)]
struct Order {
    #[serde(default)]
    number: u32,
    item: String,
}

/// The handler needs no change: it runs only for a key that is new.
async fn take(Json(order): Json<Order>) -> (StatusCode, Json<Order>) {
    static ORDERS: AtomicU32 = AtomicU32::new(0);
    let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    (StatusCode::CREATED, Json(Order { number, ..order }))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // `redis://…` or `postgres://…` shares the records between several hosts.
    let url = env::var("STORE").unwrap_or_else(|_| "sqlite:orders.db".into());
    // A duplicate that arrives while the first request runs waits for its response.
    let policy = Policy::draft().into_builder().wait(Duration::from_secs(5)).waiters_max(100);
    let engine = Engine::builder(AnyStore::from_url(&url)?).policy(policy.build()?).build()?;
    // What the store may lose is known at the start, not after an accident.
    eprintln!("{}", engine.check().await?.guarantee);

    let app = Router::new().route("/orders", post(take)).layer(engine.layer());
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    // A handler whose client has left still finishes.
    engine.drain().await;
    Ok(())
}
