//! Recovery steps: an attempt that is run again does not repeat what an earlier one has done.
//!
//! ```console
//! $ cargo run -p examples --bin steps
//! ```
//!
//! The first attempt charges the card and then fails. The second one finds the charge stored and
//! goes on with the ticket.

use std::error::Error;

use idemptx::store::MemoryStore;
use idemptx::{Engine, Execution};

/// Stands for a call to a payment provider that honours idempotency keys.
async fn charge(key: &str) -> Result<String, String> {
    println!("charging the card");
    Ok(format!("charge-{}", key.get(..8).unwrap_or(key)))
}

/// Stands for a call that fails the first time.
async fn print_ticket(attempts: u32) -> Result<String, String> {
    println!("printing the ticket");
    if attempts == 0 { Err("the printer is offline".into()) } else { Ok("ticket-1".into()) }
}

async fn book(execution: Execution, attempts: u32) -> Result<(String, String), String> {
    // A process that dies within a step runs it again, so the provider gets a key as well: the
    // same one for every attempt.
    let key = execution.derive("charge");
    let paid = execution.step("charge", async || charge(&key).await).await;
    let paid = paid.map_err(|error| error.to_string())?;
    let ticket = execution.step("ticket", async || print_ticket(attempts).await).await;
    Ok((paid, ticket.map_err(|error| error.to_string())?))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MemoryStore::new()).build()?;
    for attempts in 0..3 {
        let work = async move |execution| book(execution, attempts).await;
        match engine.run("trip-4711", b"Berlin to Rome", work).await {
            Ok((_, ticket)) => println!("booked: {ticket}"),
            Err(error) => println!("failed: {error}"),
        }
    }
    Ok(())
}
