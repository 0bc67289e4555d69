//! A scheduled job that runs once a day, on however many hosts the scheduler starts it.
//!
//! ```console
//! $ cargo run -p examples --bin job -- 2026-11-29
//! $ cargo run -p examples --bin job -- 2026-11-29
//! ```
//!
//! The second run sends nothing and prints the report of the first.

use std::env;
use std::error::Error;
use std::io;

use idemptx::store::AnyStore;
use idemptx::{Engine, RunError};
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Report {
    day: String,
    invoices: u32,
}

async fn send_invoices(day: String) -> Result<Report, io::Error> {
    println!("sending the invoices of {day}");
    Ok(Report { day, invoices: 17 })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::var("STORE").unwrap_or_else(|_| "sqlite:jobs.db".into());
    let day = env::args().nth(1).ok_or("give a day, such as 2026-11-29")?;
    let engine = Engine::builder(AnyStore::from_url(&url)?).build()?;

    // The key names what may happen once; the second argument is what the work depends on, so
    // that a key that is used again for other work is refused.
    let key = format!("invoices-{day}");
    let work = day.clone();
    let ran = engine.run(&key, day.as_bytes(), async move |_| send_invoices(work).await).await;
    match ran {
        Ok(Report { day, invoices }) => println!("{day}: {invoices} invoices were sent"),
        // Another host is at it, or the store is away: nothing ran here.
        Err(RunError::Refused(rejection)) => println!("not now: {}", rejection.code),
        // The key is free again, so that the scheduler may retry.
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
