//! The named sets of defaults.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, Method, StatusCode};

use super::{
    Expose, KeySpace, KeySyntax, Mode, OnLargeBody, OnOrphan, OnPanic, OnStoreError, OnUnsafeStore,
    Policy, Profile, ScopeRule, Statuses,
};
use crate::fingerprint::FingerprintRule;
use crate::response::ReplayRules;

impl Policy {
    /// The defaults of a profile.
    #[must_use]
    pub fn profile(profile: Profile) -> Self {
        match profile {
            Profile::Draft => Self::draft(),
            Profile::Stripe => Self::stripe(),
            Profile::Payments => Self::payments(),
            Profile::Idemptx => Self::idemptx(),
        }
    }

    /// What draft-ietf-httpapi-idempotency-key-header asks for, and safe choices where it leaves
    /// them open.
    #[must_use]
    pub fn draft() -> Self {
        Self {
            profile: Profile::Draft,
            header_names: vec![HeaderName::from_static("idempotency-key")],
            key_syntax: KeySyntax::Lenient,
            key_bytes_max: 255,
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            scope: Some(ScopeRule::Bind(vec![AUTHORIZATION])),
            key_space: KeySpace::Scope,
            retain: DAY,
            key_retain: DAY,
            lease: Duration::from_secs(15),
            wait: Duration::ZERO,
            waiters_max: 16,
            waiters_total_max: 10_000,
            missing_status: StatusCode::BAD_REQUEST,
            in_flight_status: StatusCode::CONFLICT,
            mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
            on_orphan: OnOrphan::Reexecute,
            on_panic: OnPanic::Release,
            on_store_error: OnStoreError::FailClosed,
            store_statuses: Statuses::classes(&[2, 3, 4]),
            release_statuses: Statuses::of(&TRANSIENT).and(Statuses::classes(&[5])),
            rebind_statuses: Statuses::of(&[400, 422]),
            request_bytes_max: MIB,
            response_bytes_max: MIB as usize,
            on_large_body: OnLargeBody::Reject,
            fingerprint: Some(FingerprintRule::default()),
            replay: ReplayRules::default(),
            expose: Vec::new(),
            status_header: HeaderName::from_static("idempotency-status"),
            secrets: Vec::new(),
            naming_secret: None,
            claim_timeout: Duration::from_secs(1),
            settle_timeout: Duration::from_secs(5),
            on_unsafe_store: OnUnsafeStore::Warn,
            drain: Duration::from_secs(30),
            mode: Mode::Enforce,
            new_keys_per_minute_max: None,
        }
    }

    /// As Stripe's v1 API: 400 for a key used for another request, and a 5xx is the result like
    /// any other.
    #[must_use]
    pub fn stripe() -> Self {
        Self {
            profile: Profile::Stripe,
            mismatch_status: StatusCode::BAD_REQUEST,
            store_statuses: Statuses::classes(&[2, 3, 4, 5]),
            release_statuses: Statuses::of(&TRANSIENT),
            ..Self::draft()
        }
    }

    /// Never a second execution: what is in doubt stays refused until somebody has looked.
    ///
    /// Whose keys they are must be chosen: without a [`scope`](Policy::scope) it is refused.
    #[must_use]
    pub fn payments() -> Self {
        Self {
            profile: Profile::Payments,
            scope: None,
            key_retain: 90 * DAY,
            lease: Duration::from_secs(30),
            on_orphan: OnOrphan::Quarantine,
            on_panic: OnPanic::Quarantine,
            store_statuses: Statuses::classes(&[2, 3, 4, 5]),
            release_statuses: Statuses::of(&TRANSIENT),
            rebind_statuses: Statuses::default(),
            on_unsafe_store: OnUnsafeStore::Refuse,
            ..Self::draft()
        }
    }

    /// As the original Python package: a key counts on one method and path, for five minutes, and
    /// responses carry its three headers.
    #[must_use]
    pub fn idemptx() -> Self {
        Self {
            profile: Profile::Idemptx,
            key_space: KeySpace::Route,
            retain: Duration::from_secs(300),
            key_retain: Duration::from_secs(300),
            expose: vec![Expose::Key, Expose::Signature, Expose::Status],
            status_header: HeaderName::from_static("x-idempotency-status"),
            ..Self::draft()
        }
    }
}

/// Answers that say "not this time": keeping them would pin a passing state for as long as a
/// response is kept.
const TRANSIENT: [u16; 9] = [401, 403, 407, 408, 409, 421, 423, 425, 429];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1 << 20;
