//! An operator's tool: lists the operations whose outcome is unknown and releases one of them.
//!
//! ```console
//! $ cargo run -p examples --bin operators
//! ```

use std::error::Error;
use std::io;

use idemptx::operator::{Query, Resolution};
use idemptx::store::MemoryStore;
use idemptx::{Engine, Policy, RunError};
use idemptx_core::policy::OnPanic;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // Work that fails may have had its effect: its key is refused until an operator decides.
    let policy = Policy::draft().into_builder().on_panic(OnPanic::Quarantine).build()?;
    let engine = Engine::builder(MemoryStore::new()).policy(policy).build()?;
    let pay_out = async |connected| {
        let lost = io::Error::other("the connection to the bank was lost");
        let pay = async move |_| if connected { Ok("paid".to_owned()) } else { Err(lost) };
        engine.run("payout-17", b"100 EUR", pay).await
    };
    println!("the first attempt: {}", pay_out(false).await.unwrap_err());
    if let Err(RunError::Refused(rejection)) = pay_out(true).await {
        println!("a retry: {}", rejection.code);
    }

    // A tool of its own makes one with `Operator::new(store, policy)`: the services' policy.
    let operator = engine.operator();
    let mut query = Query::in_doubt();
    loop {
        let page = operator.list(&query).await?;
        for entry in &page.entries {
            println!("in doubt: {}", entry.status);
            // The bank says that nothing was paid. Had it been, `Resolution::Answer` would give
            // every retry the response.
            operator.resolve(&entry.id, Resolution::Release).await?;
        }
        match page.next {
            Some(next) => query = query.after(Some(next)),
            None => break,
        }
    }
    println!("a retry after the release: {}", pay_out(true).await?);
    Ok(())
}
