//! The builder of policies; `definition` generates its setters.

use std::time::Duration;

use super::{ConfigError, Policy};

/// Changes a [`Policy`] field by field and validates the result.
///
/// The order of the setters does not matter.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    pub(super) policy: Policy,
    /// The fields that were set, by their names in Rust.
    pub(super) explicit: Vec<&'static str>,
    /// The least `key_retain` while it is not set: `payments` remembers keys for 90 days, however
    /// short responses are kept.
    key_retain_min: Duration,
}

impl Policy {
    /// Starts another policy from this one.
    pub fn into_builder(self) -> PolicyBuilder {
        PolicyBuilder::from(self)
    }
}

impl From<Policy> for PolicyBuilder {
    fn from(policy: Policy) -> Self {
        let follows = policy.key_retain == policy.retain;
        let key_retain_min = if follows { Duration::ZERO } else { policy.key_retain };
        Self { policy, explicit: Vec::new(), key_retain_min }
    }
}

impl PolicyBuilder {
    /// Builds the policy.
    ///
    /// `key_retain` follows `retain` unless it is set.
    /// `store_statuses` take what they name out of the release set of the profile, unless
    /// `release_statuses` are set, which win over both.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] as [`Policy::validate`] does.
    pub fn build(self) -> Result<Policy, ConfigError> {
        let is_explicit = |field| self.explicit.contains(&field);
        let mut policy = self.policy;
        if !is_explicit("key_retain") {
            policy.key_retain = policy.retain.max(self.key_retain_min);
        }
        if is_explicit("store_statuses") && !is_explicit("release_statuses") {
            policy.release_statuses = policy.release_statuses.without(&policy.store_statuses);
        }
        policy.validate()?;
        Ok(policy)
    }
}
