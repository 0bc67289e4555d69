//! Policies: the rules of a route as plain data, the same in Rust, JSON, TOML and Python.
//!
//! A [`Policy`] is built from a [`Profile`] with a [`PolicyBuilder`], or from JSON laid over a
//! profile (feature `serde`).
//! A policy that cannot work is refused with a [`ConfigError`] at start-up.
//!
//! `definition` declares every field once: the struct, the setters of the builder, and reading and
//! writing JSON are generated from it.

pub use self::builder::PolicyBuilder;
pub use self::choices::{
    Expose, KeySpace, KeySyntax, Mode, OnLargeBody, OnNotReplayable, OnOrphan, OnPanic,
    OnPlaceholderKey, OnStoreError, OnUnsafeStore, ProblemFormat, Profile, ScopeRule,
};
pub use self::definition::Policy;
pub use self::error::ConfigError;
pub use self::key_pattern::KeyPattern;
pub use self::statuses::Statuses;

mod builder;
mod choices;
mod definition;
mod error;
#[cfg(feature = "serde")]
mod json;
#[cfg(feature = "serde")]
mod json_input;
mod key_pattern;
mod profiles;
mod statuses;
mod validate;
#[cfg(feature = "serde")]
mod values;

#[cfg(test)]
mod tests;
