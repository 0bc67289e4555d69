//! The store of the records.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::invalid_config::InvalidSetting;
use super::values::{positive_millis, seconds};

/// The store of the records.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Store {
    /// `memory:`, `sqlite:path`, `redis://…` or `postgres://…`.
    pub url: String,
    /// The size of the near cache, which replays without a round trip; 0 disables it.
    #[serde(default)]
    pub near_bytes: usize,
    /// The lifetime of an entry, for which changes by other processes may go unnoticed.
    #[serde(rename = "near_hold_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<1>")]
    pub near_hold: Duration,
    /// Makes `/readyz` answer 503 while the store is unavailable.
    ///
    /// By default a gateway without its store stays in its load balancer: it refuses requests with
    /// a key, and forwards all others.
    #[serde(default)]
    pub required_for_readiness: bool,
    /// The encryption of results, if any.
    pub seal: Option<SealConfig>,
}

/// The encryption of results.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SealConfig {
    /// The keys: the first one seals, the others open.
    pub keys: Option<String>,
    /// A file with the keys, in the place of `keys`.
    pub file: Option<PathBuf>,
    /// Accepts unsealed results, until they have expired.
    #[serde(default)]
    pub accept_unsealed: bool,
}

impl Store {
    /// Returns a store without near cache and encryption.
    #[must_use]
    pub const fn new(url: String) -> Self {
        Self {
            url,
            near_bytes: 0,
            near_hold: seconds::<1>(),
            required_for_readiness: false,
            seal: None,
        }
    }

    pub(super) fn validate(&self) -> Result<(), InvalidSetting> {
        let Some(seal) = &self.seal else { return Ok(()) };
        let invalid = |text| Err(InvalidSetting::at(["store", "seal"], text));
        if !cfg!(feature = "seal") {
            return invalid(NO_SEAL);
        }
        match seal.keys.is_some() == seal.file.is_some() {
            true => invalid("give one of `keys` and `file`"),
            false => Ok(()),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new("memory:".to_owned())
    }
}

impl fmt::Debug for Store {
    /// Omits the URL, which may hold a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("Store").field("scheme", &scheme).finish_non_exhaustive()
    }
}

impl fmt::Debug for SealConfig {
    /// Omits the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealConfig").field("file", &self.file).finish_non_exhaustive()
    }
}

const NO_SEAL: &str = "this program was built without sealing: build it with `--features seal`";
