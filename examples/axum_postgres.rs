//! Orders in PostgreSQL, exactly once: the order and the record of its request are committed in
//! one transaction, so that no crash can leave one without the other.
//!
//! ```console
//! $ STORE=postgres://app@localhost/shop cargo run -p examples --bin axum-postgres
//! $ curl -i http://127.0.0.1:8080/orders -H "Idempotency-Key: $(uuidgen)" --data tea
//! ```

use std::env;
use std::error::Error;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Router, routing::post};
use idemptx::store::postgres::PostgresStore;
use idemptx::{Engine, IdempotentTransaction, TransactionError};
use tokio::net::TcpListener;

/// Inserts the order; the layer commits once there is a response.
async fn take(tx: IdempotentTransaction, item: String) -> Result<impl IntoResponse, Failed> {
    let insert = "INSERT INTO orders (item) VALUES ($1) RETURNING number";
    let number: i64 = tx.query_one(insert, &[&item]).await?.get(0);
    if item.is_empty() {
        // A status of 400 or more rolls the transaction back.
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, "order something".to_owned()));
    }
    Ok((StatusCode::CREATED, format!("order {number}: {item}")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The records have to be in the same database as the orders.
    let store = PostgresStore::connect(&env::var("STORE")?).await?;
    let engine = Engine::builder(store).transactional().build()?;
    let app = Router::new().route("/orders", post(take)).layer(engine.layer());
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let stop = async { drop(tokio::signal::ctrl_c().await) };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    engine.drain().await;
    Ok(())
}

struct Failed(TransactionError);

impl From<TransactionError> for Failed {
    fn from(error: TransactionError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0.to_string()).into_response()
    }
}
