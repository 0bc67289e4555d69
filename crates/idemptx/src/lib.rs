//! Makes HTTP APIs safe to retry.

#[cfg(feature = "json")]
mod run;

mod drive;
mod engine;
mod execution;
mod flight;
mod keeper;
pub mod store;
#[cfg(feature = "tower")]
pub mod tower;

pub use idemptx_core::exchange::{Directive, Probed};
pub use idemptx_core::fingerprint::Fingerprint;
pub use idemptx_core::key::{Key, Scope};
pub use idemptx_core::lease::Token;
pub use idemptx_core::outcome::{Code, Outcome, Passed, Rejection};
pub use idemptx_core::policy::{ConfigError, Policy, PolicyBuilder, Profile};
pub use idemptx_core::response::StoredResponse;

pub use self::engine::{CheckError, Engine, EngineBuilder, EngineError, Orphan};
pub use self::execution::Execution;
#[cfg(feature = "json")]
pub use self::run::RunError;
#[cfg(feature = "tower")]
pub use self::tower::IdempotencyLayer;
