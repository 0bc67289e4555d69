//! Takes orders and charges for them, once an order however often the client asks.
//!
//! Two things make it so: the engine in `main`, and its layer in `router`.

mod client;
mod scene;
mod stage;

use std::error::Error;
use std::io::{ErrorKind, IsTerminal, stdin};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json, Router, routing::get};
use clap::Parser;
use idemptx::store::AnyStore;
use idemptx::{Engine, Execution, Policy};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Takes orders, charges once, and shows it.
#[derive(Debug, Parser)]
struct Flags {
    /// Where to listen [default: 127.0.0.1:8080, or a free port].
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Where records are kept: `sqlite:path`, `postgres://user@host/database`,
    /// `redis://host:port/database`, `memory:`.
    #[arg(long, default_value = "sqlite:orders.db")]
    store: String,
    /// End after the scene, also in a terminal.
    #[arg(long)]
    scene_only: bool,
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let flags = Flags::parse();

    // A duplicate that comes while the first is being handled waits for its answer.
    let policy =
        Policy::draft().into_builder().wait(Duration::from_secs(5)).waiters_max(100).build()?;
    let engine = Engine::builder(AnyStore::from_url(&flags.store)?).policy(policy).build()?;
    let promise = engine.check().await?.guarantee;

    let shop = Arc::new(Shop::default());
    let listener = listen(flags.listen).await?;
    let address = listener.local_addr()?;
    let (close, closed) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, router(&engine, shop.clone()))
        .with_graceful_shutdown(async { drop(closed.await) });
    let server = tokio::spawn(server.into_future());

    let held = scene::play(address, &promise, &shop).await?;
    if stdin().is_terminal() && !flags.scene_only {
        println!("\nServing on http://{address} until Ctrl-C.");
        tokio::signal::ctrl_c().await?;
    }

    // First the requests whose clients are there, then the handlers whose clients have left.
    drop(close);
    server.await??;
    engine.drain().await;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn router(engine: &Engine<AnyStore>, shop: Arc<Shop>) -> Router {
    Router::new().route("/orders", get(list).post(create)).layer(engine.layer()).with_state(shop)
}

#[derive(Clone, Debug, Deserialize)]
struct Wish {
    item: String,
    cents: u32,
}

#[derive(Clone, Debug, Serialize)]
struct Order {
    id: usize,
    item: String,
    cents: u32,
}

async fn create(
    State(shop): State<Arc<Shop>>,
    execution: Option<Extension<Execution>>,
    Json(wish): Json<Wish>,
) -> impl IntoResponse {
    // The same for every attempt at this order: the bank, too, can tell a retry by it.
    let bank_key = execution.map(|Extension(execution)| execution.derive("charge"));
    shop.charge(wish.cents, bank_key.as_deref()).await;
    let order = shop.enter(wish);
    (StatusCode::CREATED, [(header::LOCATION, format!("/orders/{}", order.id))], Json(order))
}

async fn list(State(shop): State<Arc<Shop>>) -> Json<Vec<Order>> {
    Json(shop.orders())
}

/// What the service keeps: its orders, and how often it has charged somebody.
#[derive(Debug, Default)]
struct Shop {
    orders: Mutex<Vec<Order>>,
    charges: watch::Sender<usize>,
}

impl Shop {
    /// Stands for a call to a bank, which takes its time.
    async fn charge(&self, _cents: u32, _bank_key: Option<&str>) {
        self.charges.send_modify(|charges| *charges += 1);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    fn enter(&self, Wish { item, cents }: Wish) -> Order {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let order = Order { id: orders.len() + 1, item, cents };
        orders.push(order.clone());
        order
    }

    fn orders(&self) -> Vec<Order> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Listens where it is told, or on the usual port, or on any.
async fn listen(address: Option<SocketAddr>) -> std::io::Result<TcpListener> {
    let usual = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    match TcpListener::bind(address.unwrap_or(usual)).await {
        Err(error) if address.is_none() && error.kind() == ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await
        }
        bound => bound,
    }
}
