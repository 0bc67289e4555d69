//! The fields of a policy, each declared once: its documentation, its type, its setter in the
//! builder, and its name in JSON.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    Expose, KeyPattern, KeySpace, KeySyntax, Mode, OnLargeBody, OnNotReplayable, OnOrphan, OnPanic,
    OnPlaceholderKey, OnStoreError, OnUnsafeStore, PolicyBuilder, Profile, ScopeRule, Statuses,
};
use crate::fingerprint::FingerprintRule;
use crate::problem::ProblemRules;
use crate::response::ReplayRules;
use crate::secret::Secret;

/// Generates [`Policy`], the setters of [`PolicyBuilder`] and the table of JSON fields.
///
/// A line is `field: Type, setter, "json name" ("member of it"), as Codec;`, where the last two
/// parts are optional, and the setter is one of those of `setter!`.
macro_rules! policy {
    ($(
        $(#[$doc:meta])*
        $field:ident: $type:ty, $setter:ident $(($argument:ty))?,
        $name:literal $(($member:literal))? $(, as $codec:ty)?;
    )+) => {
        /// The rules for the requests of a route.
        ///
        /// Start from a profile ([`draft`](Self::draft), [`stripe`](Self::stripe),
        /// [`payments`](Self::payments), [`idemptx`](Self::idemptx), [`acp`](Self::acp),
        /// [`ucp`](Self::ucp), [`iceberg`](Self::iceberg)) and change what you need with a
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
            /// The profile from which the policy started.
            pub profile: Profile,
            $($(#[$doc])* pub $field: $type,)+
        }

        impl PolicyBuilder {
            $(setter! { $(#[$doc])* $field: $type, $setter $(($argument))? })+
        }

        /// Every field in JSON, in the order of the reference.
        #[cfg(feature = "serde")]
        pub(super) const FIELDS: &[super::json::Field] = &[$(super::json::Field {
            name: $name,
            member: member!($($member)?),
            read: |builder, given| {
                let current = &builder.policy.$field;
                builder.policy.$field = codec!(read, $type $(, $codec)?)(given, current)?;
                builder.explicit.push(stringify!($field));
                Ok(())
            },
            write: |policy| codec!(write, $type $(, $codec)?)(&policy.$field),
        },)+];
    };
}

macro_rules! setter {
    ($(#[$doc:meta])* $field:ident: $type:ty, value) => {
        setter! { @ $(#[$doc])* $field, value: $type, value }
    };
    ($(#[$doc:meta])* $field:ident: $type:ty, some($argument:ty)) => {
        setter! { @ $(#[$doc])* $field, value: $argument, Some(value) }
    };
    ($(#[$doc:meta])* $field:ident: $type:ty, option($argument:ty)) => {
        setter! { @ $(#[$doc])* $field, value: impl Into<Option<$argument>>, value.into() }
    };
    ($(#[$doc:meta])* $field:ident: $type:ty, list($argument:ty)) => {
        setter! {
            @ $(#[$doc])*
            $field, values: impl IntoIterator<Item = $argument>, values.into_iter().collect()
        }
    };
    (@ $(#[$doc:meta])* $field:ident, $value:ident: $argument:ty, $converted:expr) => {
        $(#[$doc])*
        pub fn $field(mut self, $value: $argument) -> Self {
            self.policy.$field = $converted;
            self.explicit.push(stringify!($field));
            self
        }
    };
}

#[cfg(feature = "serde")]
macro_rules! codec {
    ($function:ident, $type:ty) => {
        <$type as super::values::JsonValue>::$function
    };
    ($function:ident, $type:ty, $codec:ty) => {
        <$codec>::$function
    };
}

#[cfg(feature = "serde")]
macro_rules! member {
    () => {
        None
    };
    ($member:literal) => {
        Some($member)
    };
}

policy! {
    /// The headers that may carry the key; two of them on one request are refused.
    header_names: Vec<HeaderName>, list(HeaderName), "header_name", as super::values::OneOrMore;
    /// The syntax of a key.
    key_syntax: KeySyntax, value, "key_syntax";
    /// The longest key, in bytes once unquoted: 1 to 1024.
    key_bytes_max: usize, value, "key_bytes_max";
    /// The form that a key must have; `None` accepts any.
    key_pattern: Option<KeyPattern>, option(KeyPattern), "key_pattern";
    /// The treatment of keys such as `undefined`; a [`key_pattern`](Policy::key_pattern) always
    /// refuses them.
    on_placeholder_key: OnPlaceholderKey, value, "on_placeholder_key";
    /// The methods to which keys apply; requests of other methods pass.
    methods: Vec<Method>, list(Method), "methods";
    /// Refuses requests of these methods without a key.
    required: bool, value, "required";
    /// The namespace of keys; `None` in `payments`, which demands a choice.
    scope: Option<ScopeRule>, some(ScopeRule), "scope";
    /// The range in which a key is unique.
    key_space: KeySpace, value, "key_space";
    /// The time for which a response is replayed, from settlement.
    ///
    /// Keys are remembered as long, unless the profile remembers them longer or
    /// [`key_retain`](Policy::key_retain) is set.
    retain: Duration, value, "retain_ms";
    /// The time for which a key is remembered; at least [`retain`](Policy::retain).
    key_retain: Duration, value, "key_retain_ms";
    /// The time for which a claim holds without a heartbeat, which is sent at a third of it: 100 ms
    /// to 1 h.
    lease: Duration, value, "lease_ms";
    /// The time for which a duplicate waits for the first request, 1 h at most; zero refuses at
    /// once.
    wait: Duration, value, "wait_ms";
    /// The most requests that wait for one key in a process.
    waiters_max: usize, value, "waiters_max";
    /// The most requests that wait in a process.
    waiters_total_max: usize, value, "waiters_total_max";
    /// The status of `missing-key`: any 4xx.
    missing_status: StatusCode, value, "missing_status";
    /// The status of `in-progress`: 409, 423, 425 or 503.
    in_flight_status: StatusCode, value, "in_flight_status";
    /// The status of `key-reused`: 400, 409 or 422.
    mismatch_status: StatusCode, value, "mismatch_status";
    /// The `WWW-Authenticate` of a 401 `scope-unresolved`, which must have one (RFC 9110 §15.5.2).
    challenge: HeaderValue, value, "challenge";
    /// The treatment of an operation whose executor stopped without a result.
    on_orphan: OnOrphan, value, "on_orphan";
    /// The treatment of a retry whose operation completed with a response that was not kept.
    on_not_replayable: OnNotReplayable, value, "on_not_replayable";
    /// The treatment of an operation whose handler failed.
    on_panic: OnPanic, value, "on_panic";
    /// The treatment of a request while the store is unavailable.
    on_store_error: OnStoreError, value, "on_store_error";
    /// The statuses that are stored, unless they are in
    /// [`release_statuses`](Policy::release_statuses) too; a status in neither releases the key.
    ///
    /// The builder takes these statuses out of the release set of the profile.
    store_statuses: Statuses, value, "store_statuses";
    /// The statuses that release the key, stored or not.
    release_statuses: Statuses, value, "release_statuses";
    /// The stored statuses (4xx only) that a corrected request may replace.
    rebind_statuses: Statuses, value, "rebind_statuses";
    /// The largest request body under a key, 1 GiB at most.
    request_bytes_max: u64, value, "request_bytes_max";
    /// The largest response body that is stored, 256 MiB at most.
    response_bytes_max: usize, value, "response_bytes_max";
    /// The treatment of a larger request; an adapter that cannot stream refuses
    /// [`OnLargeBody::Stream`] when it starts.
    on_large_body: OnLargeBody, value, "on_large_body";
    /// The parts of a request that count when two are compared; `None` compares nothing.
    fingerprint: Option<FingerprintRule>, option(FingerprintRule), "fingerprint";
    /// The headers of a stored response that are replayed.
    replay: ReplayRules, value, "replay_headers";
    /// The facts that responses reveal besides the replay marker.
    expose: Vec<Expose>, list(Expose), "expose";
    /// The header of [`Expose::Status`].
    ///
    /// In [`Profile::Idemptx`] it is the original's `x-idempotency-status`, which says `new` and
    /// `hit` where others say `created` and `replayed`.
    status_header: HeaderName, value, "status_header";
    /// The format of refusals, and the address of the pages that explain them.
    problem: ProblemRules, value, "problem";
    /// The secrets of fingerprints, each with another id, which rotate: the first signs, all
    /// verify.
    secrets: Vec<Secret>, list(Secret), "secrets";
    /// The secret that names records and derives keys; it never rotates.
    ///
    /// Without one, a reader of the store can test guesses of keys, and anyone who knows a client's
    /// key can compute the keys derived from it.
    naming_secret: Option<Secret>, option(Secret), "naming_secret";
    /// The time in which the store must answer a claim.
    claim_timeout: Duration, value, "store_timeout_ms" ("claim");
    /// The time for settling, with retries, before the client gets its response.
    settle_timeout: Duration, value, "store_timeout_ms" ("settle");
    /// The treatment of a store that can lose records.
    on_unsafe_store: OnUnsafeStore, value, "on_unsafe_store";
    /// The time between two checks of what the store promises, 100 ms to 1 h; zero checks once, at
    /// start.
    store_check: Duration, value, "store_check_ms";
    /// The time for which shutdown waits for running handlers, 1 h at most.
    drain: Duration, value, "drain_ms";
    /// The choice between enforcement and observation.
    mode: Mode, value, "mode";
    /// The most new keys a minute of one principal (scope and bound headers) in this process;
    /// `None` is no limit.
    new_keys_per_minute_max: Option<u32>, option(u32), "new_keys_per_minute_max";
}
