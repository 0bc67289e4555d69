//! One engine, clients that leave, and a store that fails.

mod blocking;
mod callers_task;
mod claims;
mod clients_that_leave;
mod duplicates;
mod limits;
mod orphaned_claims;
mod outcomes;
mod secrets;
mod settling;
