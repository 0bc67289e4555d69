//! One engine, clients that leave, and a store that fails.

mod blocking;
mod claims;
mod duplicates;
mod limits;
mod orphaned_claims;
mod secrets;
mod settling;
