//! What a route promises: pure data, the same names in Rust, JSON, TOML and Python.
//!
//! A [`Policy`] comes from a [`Profile`] and a [`PolicyBuilder`], or from JSON laid over a profile
//! (feature `serde`).
//! Whatever is wrong with it is a [`ConfigError`] at start-up, never a surprise under load.

use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use crate::fingerprint::FingerprintRule;
use crate::response::ReplayRules;
use crate::secret::Secret;

pub use self::builder::PolicyBuilder;
pub use self::error::ConfigError;
pub use self::statuses::Statuses;

mod builder;
mod error;
#[cfg(feature = "serde")]
mod json;
mod profiles;
mod statuses;
mod validate;
mod words;

/// The rules for the requests of a route.
///
/// Start from a profile ([`draft`](Self::draft), [`stripe`](Self::stripe),
/// [`payments`](Self::payments), [`idemptx`](Self::idemptx)) and change what you need with a
/// [`PolicyBuilder`].
///
/// ```
/// use std::time::Duration;
/// use idemptx_core::policy::{Policy, ScopeRule};
///
/// let policy = Policy::payments()
///     .into_builder()
///     .required(true)
///     .scope(ScopeRule::Header("x-account".parse()?))
///     .wait(Duration::from_secs(5))
///     .build()?;
/// assert!(policy.required);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// The profile's name, for messages.
    pub profile: Profile,
    /// Fields that may carry the key; two of them on one request are refused.
    pub header_names: Vec<HeaderName>,
    /// How a key is written.
    pub key_syntax: KeySyntax,
    /// Longest key, in bytes once unquoted.
    pub key_bytes_max: usize,
    /// Methods that keys are for; others pass.
    pub methods: Vec<Method>,
    /// Whether a request of these methods must have a key.
    pub required: bool,
    /// Whose keys they are; `None` in `payments`, which demands a choice.
    pub scope: Option<ScopeRule>,
    /// What a key names.
    pub key_space: KeySpace,
    /// How long a response is replayed, from settlement.
    pub retain: Duration,
    /// How long a key is remembered; at least [`retain`](Self::retain).
    pub key_retain: Duration,
    /// How long a claim holds without a heartbeat; the heartbeat comes at a third of it.
    pub lease: Duration,
    /// How long a duplicate waits for the first to finish; zero refuses at once.
    pub wait: Duration,
    /// How many may wait for one key in a process.
    pub waiters_max: usize,
    /// How many may wait in a process.
    pub waiters_total_max: usize,
    /// Status of `missing-key`.
    pub missing_status: StatusCode,
    /// Status of `in-progress`.
    pub in_flight_status: StatusCode,
    /// Status of `key-reused`.
    pub mismatch_status: StatusCode,
    /// What becomes of an operation whose executor vanished.
    pub on_orphan: OnOrphan,
    /// What becomes of an operation whose handler broke down.
    pub on_panic: OnPanic,
    /// What to do without a verdict of the store.
    pub on_store_error: OnStoreError,
    /// Statuses that are stored, unless they are in
    /// [`release_statuses`](Self::release_statuses) too; what is in neither gives the key up.
    pub store_statuses: Statuses,
    /// Statuses that give the key up.
    pub release_statuses: Statuses,
    /// Stored statuses (4xx only) that a corrected request may replace.
    pub rebind_statuses: Statuses,
    /// Largest request body under a key.
    pub request_bytes_max: u64,
    /// Largest response body that is kept.
    pub response_bytes_max: usize,
    /// What to do with a larger request.
    pub on_large_body: OnLargeBody,
    /// What makes two requests the same; `None` turns the comparison off.
    pub fingerprint: Option<FingerprintRule>,
    /// Which headers of a stored response a replay has.
    pub replay: ReplayRules,
    /// What responses tell besides the replay marker.
    pub expose: Vec<Expose>,
    /// The header of [`Expose::Status`].
    ///
    /// In [`Profile::Idemptx`] it is the original's `x-idempotency-status`, which says `new` and
    /// `hit` where others say `created` and `replayed`.
    pub status_header: HeaderName,
    /// The secrets of fingerprints, which rotate: the first signs, all verify.
    pub secrets: Vec<Secret>,
    /// The secret that names records and derives keys; it never rotates.
    ///
    /// Without one, a reader of the store can test guesses of keys, and derived keys can be
    /// computed by anyone who knows a client's key.
    pub naming_secret: Option<Secret>,
    /// How long the store may take to answer a claim.
    pub claim_timeout: Duration,
    /// How long settling may take, with retries, before the client gets its answer.
    pub settle_timeout: Duration,
    /// What to do about a store that can lose records.
    pub on_unsafe_store: OnUnsafeStore,
    /// How long shutdown waits for running handlers.
    pub drain: Duration,
    /// Whether refusals and replays happen or are only reported.
    pub mode: Mode,
    /// New keys a minute and scope in this process; `None` is no limit.
    pub new_keys_per_minute_max: Option<u32>,
}

/// A named set of defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Profile {
    /// The IETF draft's defaults.
    Draft,
    /// As Stripe's v1 API: 400 for a mismatch, 5xx stored.
    Stripe,
    /// Never a second execution, whatever happens: somebody looks at what is in doubt.
    Payments,
    /// As the original Python package.
    Idemptx,
}

/// How a key is written in its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeySyntax {
    /// A Structured Field String, or bare text.
    Lenient,
    /// A Structured Field String and nothing else (RFC 8941 §3.3.3).
    StrictSf,
}

/// Whose keys they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeRule {
    /// One scope, and a key belongs to who used it first: these headers must be the same on a
    /// retry.
    Bind(Vec<HeaderName>),
    /// The value of a header that something trusted in front of us sets or verifies.
    Header(HeaderName),
    /// The adapter's own function.
    Custom,
    /// Everybody shares one scope.
    Shared,
}

/// What a key names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeySpace {
    /// One operation in its scope, whatever the route.
    Scope,
    /// One operation on its method and path.
    Route,
}

/// What becomes of an operation whose executor vanished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnOrphan {
    /// The next request executes again.
    Reexecute,
    /// It stays refused until somebody resolves it.
    Quarantine,
    /// A hook of the application is asked.
    Probe,
}

/// What becomes of an operation whose handler broke down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnPanic {
    /// The next request executes again.
    Release,
    /// Its outcome is unknown.
    Quarantine,
}

/// What to do without a verdict of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnStoreError {
    /// Refuse.
    FailClosed,
    /// Run unprotected.
    FailOpen,
}

/// What to do with a request body over the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnLargeBody {
    /// Refuse.
    Reject,
    /// Run unprotected.
    Skip,
    /// Fingerprint it on its way through a file, if the fingerprint's rule does not look into it;
    /// else refuse.
    Stream,
}

/// What to do about a store that can lose records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnUnsafeStore {
    /// Say so at start.
    Warn,
    /// Refuse to use it.
    Refuse,
}

/// Whether refusals and replays happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// They do.
    Enforce,
    /// They are only reported; every request executes.
    Shadow,
}

/// What a response tells besides the replay marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Expose {
    /// What became of the request, in the policy's [`status_header`](Policy::status_header).
    Status,
    /// The key, echoed.
    Key,
    /// The fingerprint.
    Signature,
    /// When the response will be forgotten.
    Expiry,
}

#[cfg(test)]
mod tests;
