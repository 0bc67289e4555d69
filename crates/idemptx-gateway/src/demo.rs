//! `idemptx demo`: a service that ignores keys, with the gateway in front of it.
//!
//! It doubles as a test: the scenario checks everything that it prints.

mod client;
mod scenario;
mod service;

use std::error::Error;
use std::io::{IsTerminal as _, stdin};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use idemptx::Policy;
use tokio::net::TcpListener;

use self::scenario::Scenario;
use self::service::DemoService;
use crate::config::{Config, ListenAddress, Origin, Protection};
use crate::serve::Gateway;

/// Runs the scenario; `true` if every check passed.
///
/// In a terminal it serves until it is interrupted, so that users can try their own requests.
///
/// # Errors
///
/// If a port cannot be bound or the store's file cannot be opened.
pub async fn play(
    listen: SocketAddr,
    store: &str,
    scene_only: bool,
) -> Result<bool, Box<dyn Error>> {
    if let Some(directory) = store.strip_prefix("sqlite:").and_then(|path| Path::new(path).parent())
    {
        std::fs::create_dir_all(directory)?;
    }
    let service = DemoService::start().await?;
    // A duplicate of a running request waits for its response.
    let policy = Policy::draft().into_builder().wait(Duration::from_secs(5)).waiters_max(100);
    let upstream = Origin::parse(&format!("http://{}", service.address))?;
    let protection = Some(Protection::of(policy.build()?));
    let listen = available(listen).await;
    let gateway =
        Gateway::start(Config::simple(listen, upstream, store.to_owned(), protection)).await?;
    let address = gateway.addresses().first().and_then(ListenAddress::tcp).unwrap_or(listen);
    let held = Scenario::new(address, &service)?.play(&gateway.store_guarantee().await?).await?;
    if stdin().is_terminal() && !scene_only {
        scenario::print_invitation(address)?;
        tokio::signal::ctrl_c().await?;
    }
    gateway.drain().await;
    Ok(held)
}

/// Returns the address, or a free port if it is taken.
async fn available(address: SocketAddr) -> SocketAddr {
    match TcpListener::bind(address).await {
        Ok(_) => address,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}
