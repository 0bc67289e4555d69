//! The named sets of defaults.

use std::borrow::Cow;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    Expose, KeyPattern, KeySpace, KeySyntax, Mode, OnLargeBody, OnNotReplayable, OnOrphan, OnPanic,
    OnPlaceholderKey, OnStoreError, OnUnsafeStore, Policy, ProblemFormat, Profile, ScopeRule,
    Statuses,
};
use crate::fingerprint::{BodyRule, FingerprintRule, HeaderRule, QueryRule};
use crate::outcome::Code;
use crate::problem::ProblemRules;
use crate::response::ReplayRules;

impl Policy {
    /// Returns the defaults of a profile.
    #[must_use]
    pub fn profile(profile: Profile) -> Self {
        match profile {
            Profile::Draft => Self::draft(),
            Profile::Stripe => Self::stripe(),
            Profile::Payments => Self::payments(),
            Profile::Idemptx => Self::idemptx(),
            Profile::Acp => Self::acp(),
            Profile::Ucp => Self::ucp(),
            Profile::Iceberg => Self::iceberg(),
        }
    }

    /// Follows draft-ietf-httpapi-idempotency-key-header, with safe choices where it leaves them
    /// open.
    #[must_use]
    pub fn draft() -> Self {
        Self {
            profile: Profile::Draft,
            header_names: vec![HeaderName::from_static("idempotency-key")],
            key_syntax: KeySyntax::Lenient,
            key_bytes_max: 255,
            key_pattern: None,
            on_placeholder_key: OnPlaceholderKey::Warn,
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            scope: Some(ScopeRule::Bind(vec![AUTHORIZATION, HeaderName::from_static("x-api-key")])),
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
            challenge: HeaderValue::from_static("Bearer realm=\"api\""),
            on_orphan: OnOrphan::Reexecute,
            on_not_replayable: OnNotReplayable::Refuse,
            on_panic: OnPanic::Release,
            on_store_error: OnStoreError::FailClosed,
            store_statuses: Statuses::classes(&[2, 3, 4]),
            release_statuses: Statuses::of(&NOT_APPLIED)
                .and(Statuses::of(&[408]))
                .and(Statuses::classes(&[5])),
            rebind_statuses: Statuses::of(&[400, 422]),
            request_bytes_max: MIB,
            response_bytes_max: MIB as usize,
            on_large_body: OnLargeBody::Reject,
            fingerprint: Some(FingerprintRule::default()),
            replay: ReplayRules::default(),
            expose: Vec::new(),
            status_header: HeaderName::from_static("idempotency-status"),
            problem: ProblemRules::default(),
            secrets: Vec::new(),
            naming_secret: None,
            claim_timeout: Duration::from_secs(1),
            settle_timeout: Duration::from_secs(5),
            on_unsafe_store: OnUnsafeStore::Warn,
            store_check: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            mode: Mode::Enforce,
            new_keys_per_minute_max: None,
        }
    }

    /// Follows Stripe's v1 API: 400 for a key used for another request, and a 5xx is stored as any
    /// other result.
    #[must_use]
    pub fn stripe() -> Self {
        Self {
            profile: Profile::Stripe,
            mismatch_status: StatusCode::BAD_REQUEST,
            store_statuses: Statuses::classes(&[2, 3, 4, 5]),
            release_statuses: Statuses::of(&NOT_APPLIED),
            ..Self::draft()
        }
    }

    /// Never executes twice: an operation in doubt is refused until an operator resolves it.
    ///
    /// A [`scope`](Policy::scope) must be chosen: the profile has none, and is refused without one.
    #[must_use]
    pub fn payments() -> Self {
        Self {
            profile: Profile::Payments,
            scope: None,
            on_placeholder_key: OnPlaceholderKey::Refuse,
            key_retain: 90 * DAY,
            lease: Duration::from_secs(30),
            on_orphan: OnOrphan::Quarantine,
            on_panic: OnPanic::Quarantine,
            store_statuses: Statuses::classes(&[2, 3, 4, 5]),
            release_statuses: Statuses::of(&NOT_APPLIED),
            rebind_statuses: Statuses::default(),
            on_unsafe_store: OnUnsafeStore::Refuse,
            ..Self::draft()
        }
    }

    /// Follows the original Python package: a key is unique for one method and path, for five
    /// minutes, and responses carry its three headers.
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

    /// Follows the Agentic Commerce Protocol (§6): every POST needs a key, which is unique for one
    /// path and is echoed; bodies are compared as JSON values, and errors are flat.
    #[must_use]
    pub fn acp() -> Self {
        let codes = [
            (Code::MissingKey, "idempotency_key_required"),
            (Code::KeyReused, "idempotency_conflict"),
            (Code::InProgress, "idempotency_in_flight"),
        ];
        let codes = codes.map(|(code, name)| (code, Cow::Borrowed(name)));
        Self {
            profile: Profile::Acp,
            methods: vec![Method::POST],
            required: true,
            key_space: KeySpace::Route,
            fingerprint: Some(FingerprintRule {
                body: BodyRule::Json,
                query: QueryRule::None,
                headers: HeaderRule::Only(Vec::new()),
            }),
            expose: vec![Expose::Key],
            problem: ProblemRules {
                format: ProblemFormat::Flat,
                codes: codes.into(),
                ..ProblemRules::default()
            },
            ..Self::draft()
        }
    }

    /// Follows the Universal Commerce Protocol: PUT has keys too, and a key used for another request
    /// is a 409.
    #[must_use]
    pub fn ucp() -> Self {
        Self {
            profile: Profile::Ucp,
            methods: vec![Method::POST, Method::PUT, Method::PATCH],
            mismatch_status: StatusCode::CONFLICT,
            ..Self::draft()
        }
    }

    /// Follows the Iceberg REST catalog: keys are UUIDs of version 7, DELETE has them too, and the
    /// time for which one is remembered is published.
    #[must_use]
    pub fn iceberg() -> Self {
        Self {
            profile: Profile::Iceberg,
            methods: vec![Method::POST, Method::DELETE],
            key_pattern: Some(KeyPattern::uuid_v7()),
            expose: vec![Expose::Expiry],
            ..Self::draft()
        }
    }
}

/// The statuses which say by definition that the method was not applied: storing them would pin a
/// passing state, or a fault that the client can correct.
///
/// 408 is missing: a time-out layer sends it while the handler may be half-way, so `stripe` and
/// `payments` store it as they store a 5xx.
const NOT_APPLIED: [u16; 23] = [
    307, 308, 401, 403, 404, 405, 406, 407, 409, 411, 412, 413, 414, 415, 416, 417, 421, 423, 425,
    426, 428, 429, 431,
];
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: u64 = 1 << 20;
