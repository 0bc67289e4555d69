//! A consumer of messages that a broker may deliver more than once.
//!
//! ```console
//! $ cargo run -p examples --bin consumer
//! ```
//!
//! A message is acknowledged when its work is done or was done before. The message that fails
//! stays in the queue, is delivered again, and then succeeds.

use std::collections::VecDeque;
use std::error::Error;

use idemptx::store::MemoryStore;
use idemptx::{Engine, RunError};

/// Stands for the broker's message; its id stays the same when it is delivered again.
#[derive(Clone)]
struct Message {
    id: &'static str,
    body: &'static str,
}

/// Ships the item; the printer is out of paper during the second delivery.
async fn ship(item: &str, delivery: u32) -> Result<String, String> {
    if delivery == 2 {
        return Err("no paper".into());
    }
    println!("shipping {item}");
    Ok(format!("parcel of {item}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A service of several processes takes a shared store: `AnyStore::from_url("redis://…")`.
    let engine = Engine::builder(MemoryStore::new()).build()?;
    let tea = Message { id: "m-1", body: "tea" };
    let cake = Message { id: "m-2", body: "cake" };
    let mut queue = VecDeque::from([tea.clone(), cake, tea]);
    let mut deliveries = 0;

    while let Some(message) = queue.pop_front() {
        deliveries += 1;
        let Message { id, body } = message;
        let work = async move |_| ship(body, deliveries).await;
        match engine.run(id, body.as_bytes(), work).await {
            Ok(parcel) => println!("acknowledged {id}: {parcel}"),
            // The work failed and its key is free, or another consumer is at it: deliver it again.
            Err(RunError::Failed(_) | RunError::Refused(_)) => queue.push_back(message),
            // The same id with another body, say: no delivery will ever succeed.
            Err(error) => println!("put {id} aside: {error}"),
        }
    }
    Ok(())
}
