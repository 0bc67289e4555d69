//! An actix-web service that takes each order once, however often its client sends it.
//!
//! ```console
//! $ cargo run -p examples --bin actix
//! $ KEY=$(uuidgen)
//! $ curl -i http://127.0.0.1:8080/orders -H "Idempotency-Key: $KEY" --json '{"item": "tea"}'
//! ```
//!
//! Send the same request twice: the second response is the stored first one, with the header
//! `Idempotent-Replayed: true`.

use std::env;
use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};

use actix_web::{App, HttpResponse, HttpServer, web};
use idemptx::store::AnyStore;
use idemptx::{Engine, Policy};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Order {
    #[serde(default)]
    number: u32,
    item: String,
}

/// The handler needs no change: it runs only for a key that is new.
async fn take(web::Json(order): web::Json<Order>) -> HttpResponse {
    static ORDERS: AtomicU32 = AtomicU32::new(0);
    let number = ORDERS.fetch_add(1, Ordering::Relaxed) + 1;
    HttpResponse::Created().json(Order { number, ..order })
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // `redis://…` or `postgres://…` shares the records between several hosts.
    let url = env::var("STORE").unwrap_or_else(|_| "sqlite:orders.db".into());
    let engine = Engine::builder(AnyStore::from_url(&url)?).policy(Policy::draft()).build()?;
    eprintln!("{}", engine.check().await?.guarantee);

    let protected = engine.clone(); // one engine for all workers
    let app =
        move || App::new().wrap(protected.middleware()).route("/orders", web::post().to(take));
    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let server = HttpServer::new(app).disable_signals().bind(address)?;
    println!("listening on http://{}", server.addrs().first().ok_or("no address")?);
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(async move {
        drop(actix_web::rt::signal::ctrl_c().await);
        handle.pause().await;
        // A handler whose client has left still finishes, while its worker is there.
        engine.drain().await;
        handle.stop(true).await;
    });
    Ok(server.await?)
}
