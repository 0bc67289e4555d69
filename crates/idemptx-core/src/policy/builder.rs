//! How a policy is put together.

use std::time::Duration;

use http::{HeaderName, Method, StatusCode};

use super::{
    ConfigError, Expose, KeySpace, KeySyntax, Mode, OnLargeBody, OnOrphan, OnPanic, OnStoreError,
    OnUnsafeStore, Policy, ScopeRule, Statuses,
};
use crate::fingerprint::FingerprintRule;
use crate::response::ReplayRules;
use crate::secret::Secret;

/// Changes a [`Policy`] field by field and checks the whole at the end.
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct PolicyBuilder {
    pub(super) policy: Policy,
    /// Keys are remembered as long as responses, but no shorter than this; `None` once the user
    /// has said how long.
    key_retain_floor: Option<Duration>,
}

impl Policy {
    /// Takes it as the start of another policy.
    pub fn into_builder(self) -> PolicyBuilder {
        PolicyBuilder::from(self)
    }
}

impl From<Policy> for PolicyBuilder {
    fn from(policy: Policy) -> Self {
        let follows = policy.key_retain == policy.retain;
        let floor = if follows { Duration::ZERO } else { policy.key_retain };
        Self { policy, key_retain_floor: Some(floor) }
    }
}

impl PolicyBuilder {
    /// The finished policy.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] as of [`Policy::validate`].
    pub fn build(self) -> Result<Policy, ConfigError> {
        let Self { mut policy, key_retain_floor } = self;
        if let Some(floor) = key_retain_floor {
            policy.key_retain = policy.retain.max(floor);
        }
        policy.validate()?;
        Ok(policy)
    }

    /// Fields that may carry the key; two of them on one request are refused.
    pub fn header_names(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.policy.header_names = names.into_iter().collect();
        self
    }

    /// How a key is written.
    pub fn key_syntax(mut self, syntax: KeySyntax) -> Self {
        self.policy.key_syntax = syntax;
        self
    }

    /// Longest key, in bytes once unquoted: 1 to 1024.
    pub fn key_bytes_max(mut self, bytes: usize) -> Self {
        self.policy.key_bytes_max = bytes;
        self
    }

    /// Methods that keys are for; others pass.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.policy.methods = methods.into_iter().collect();
        self
    }

    /// Whether a request of these methods must have a key.
    pub fn required(mut self, required: bool) -> Self {
        self.policy.required = required;
        self
    }

    /// Whose keys they are.
    pub fn scope(mut self, scope: ScopeRule) -> Self {
        self.policy.scope = Some(scope);
        self
    }

    /// What a key names.
    pub fn key_space(mut self, space: KeySpace) -> Self {
        self.policy.key_space = space;
        self
    }

    /// How long a response is replayed, from settlement.
    ///
    /// Keys are remembered as long, unless the policy had it longer or
    /// [`key_retain`](Self::key_retain) says otherwise.
    pub fn retain(mut self, retain: Duration) -> Self {
        self.policy.retain = retain;
        self
    }

    /// How long a key is remembered; at least as long as responses are.
    pub fn key_retain(mut self, retain: Duration) -> Self {
        self.policy.key_retain = retain;
        self.key_retain_floor = None;
        self
    }

    /// How long a claim holds without a heartbeat: 100 ms to 1 h.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.policy.lease = lease;
        self
    }

    /// How long a duplicate waits for the first to finish, 1 h at most; zero refuses at once.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.policy.wait = wait;
        self
    }

    /// How many may wait for one key in a process.
    pub fn waiters_max(mut self, waiters: usize) -> Self {
        self.policy.waiters_max = waiters;
        self
    }

    /// How many may wait in a process.
    pub fn waiters_total_max(mut self, waiters: usize) -> Self {
        self.policy.waiters_total_max = waiters;
        self
    }

    /// Status of `missing-key`: any 4xx.
    pub fn missing_status(mut self, status: StatusCode) -> Self {
        self.policy.missing_status = status;
        self
    }

    /// Status of `in-progress`: 409, 423, 425 or 503.
    pub fn in_flight_status(mut self, status: StatusCode) -> Self {
        self.policy.in_flight_status = status;
        self
    }

    /// Status of `key-reused`: 400, 409 or 422.
    pub fn mismatch_status(mut self, status: StatusCode) -> Self {
        self.policy.mismatch_status = status;
        self
    }

    /// What becomes of an operation whose executor vanished.
    pub fn on_orphan(mut self, choice: OnOrphan) -> Self {
        self.policy.on_orphan = choice;
        self
    }

    /// What becomes of an operation whose handler broke down.
    pub fn on_panic(mut self, choice: OnPanic) -> Self {
        self.policy.on_panic = choice;
        self
    }

    /// What to do without a verdict of the store.
    pub fn on_store_error(mut self, choice: OnStoreError) -> Self {
        self.policy.on_store_error = choice;
        self
    }

    /// Statuses that are stored, unless they are released.
    ///
    /// What this adds to the statuses stored so far is released no more: whoever names `5xx` wants
    /// it stored, while naming `4xx`, as the profiles do, keeps their exceptions.
    pub fn store_statuses(mut self, statuses: Statuses) -> Self {
        let added = statuses.without(&self.policy.store_statuses);
        self.policy.release_statuses = self.policy.release_statuses.without(&added);
        self.policy.store_statuses = statuses;
        self
    }

    /// Statuses that give the key up, stored or not.
    pub fn release_statuses(mut self, statuses: Statuses) -> Self {
        self.policy.release_statuses = statuses;
        self
    }

    /// Stored statuses (4xx only) that a corrected request may replace.
    pub fn rebind_statuses(mut self, statuses: Statuses) -> Self {
        self.policy.rebind_statuses = statuses;
        self
    }

    /// Largest request body under a key, 1 GiB at most.
    pub fn request_bytes_max(mut self, bytes: u64) -> Self {
        self.policy.request_bytes_max = bytes;
        self
    }

    /// Largest response body that is kept, 256 MiB at most.
    pub fn response_bytes_max(mut self, bytes: usize) -> Self {
        self.policy.response_bytes_max = bytes;
        self
    }

    /// What to do with a larger request; an adapter that cannot stream refuses
    /// [`OnLargeBody::Stream`] when it starts.
    pub fn on_large_body(mut self, choice: OnLargeBody) -> Self {
        self.policy.on_large_body = choice;
        self
    }

    /// What makes two requests the same; `None` turns the comparison off.
    pub fn fingerprint(mut self, rule: impl Into<Option<FingerprintRule>>) -> Self {
        self.policy.fingerprint = rule.into();
        self
    }

    /// Which headers of a stored response a replay has.
    pub fn replay(mut self, rules: ReplayRules) -> Self {
        self.policy.replay = rules;
        self
    }

    /// What responses tell besides the replay marker.
    pub fn expose(mut self, facts: impl IntoIterator<Item = Expose>) -> Self {
        self.policy.expose = facts.into_iter().collect();
        self
    }

    /// The header of [`Expose::Status`].
    pub fn status_header(mut self, name: HeaderName) -> Self {
        self.policy.status_header = name;
        self
    }

    /// The first signs, all verify; no two may have one id.
    pub fn secrets(mut self, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.policy.secrets = secrets.into_iter().collect();
        self
    }

    /// Sets the secret that names records and derives keys; keep it for good.
    pub fn naming_secret(mut self, secret: Option<Secret>) -> Self {
        self.policy.naming_secret = secret;
        self
    }

    /// How long the store may take to answer a claim.
    pub fn claim_timeout(mut self, timeout: Duration) -> Self {
        self.policy.claim_timeout = timeout;
        self
    }

    /// How long settling may take, with retries, before the client gets its answer.
    pub fn settle_timeout(mut self, timeout: Duration) -> Self {
        self.policy.settle_timeout = timeout;
        self
    }

    /// What to do about a store that can lose records.
    pub fn on_unsafe_store(mut self, choice: OnUnsafeStore) -> Self {
        self.policy.on_unsafe_store = choice;
        self
    }

    /// How long shutdown waits for running handlers, 1 h at most.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.policy.drain = drain;
        self
    }

    /// Whether refusals and replays happen or are only reported.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.policy.mode = mode;
        self
    }

    /// New keys a minute and scope in this process; `None` is no limit.
    pub fn new_keys_per_minute_max(mut self, keys: impl Into<Option<u32>>) -> Self {
        self.policy.new_keys_per_minute_max = keys.into();
        self
    }
}
