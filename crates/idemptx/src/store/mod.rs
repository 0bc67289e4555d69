//! Stores: where records are kept.

#[cfg(feature = "redis")]
pub mod redis;
mod safety;

pub use self::safety::{Finding, SafetyReport, Severity};
