//! The idempotency protocol as a pure state machine.

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod exchange;
pub mod fingerprint;
pub mod key;
pub mod lease;
pub mod marks;
pub mod outcome;
pub mod policy;
pub mod problem;
pub mod record;
pub mod response;
pub mod secret;
pub mod store;
pub mod time;
