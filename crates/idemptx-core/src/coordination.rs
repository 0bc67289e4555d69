//! State shared by the requests of one process, as data: no thread, no task, no clock.
//!
//! - [`SingleFlight`]: one claim and one wake-up for all duplicates within a process.
//! - [`LeaseSchedule`]: the leases of running handlers, and when each is renewed.
//! - [`Journal`] and [`Confirmation`]: operations that the store has not confirmed, and when each
//!   is repeated.
//!
//! The Rust engine and the Python package drive the same three, each with its own channels, tasks
//! and locks.
//! Nothing here decides about a request: an [`Update`] is fed to its
//! [`Exchange`](crate::exchange::Exchange) as if it came from the store.

mod backoff;
mod confirmation;
mod lease_schedule;
mod single_flight;

pub use self::backoff::Backoff;
pub use self::confirmation::{Confirmation, Journal, Next, Unconfirmed};
pub use self::lease_schedule::LeaseSchedule;
pub use self::single_flight::{Entry, Place, SingleFlight, Update, WaitLimits, Waiting};

#[cfg(test)]
mod tests;
