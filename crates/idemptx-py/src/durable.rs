//! The engine's own stores, SQLite and PostgreSQL, for event loops.
//!
//! What waits is on threads that never touch Python: the stores' own, and one runtime of the
//! process.
//! A step is a future that is polled in the event loop's thread, and whose waker rings a
//! [`Bell`](bell::Bell): the first ring makes a descriptor readable, and the loop then takes all
//! that have been rung for at once.
//! So a finished step costs one wake-up of one thread at most, and steps that a group commit or a
//! batch finishes together share it.
//!
//! Everything here belongs to the process that made it: see [`Native`](native::Native).

mod bell;
mod depot;
mod desk;
mod native;
mod recipe;
mod runtime;
mod task;
mod under_way;

pub(crate) use self::depot::Depot;
pub(crate) use self::desk::{Desk, Vigil};
