//! Validation of policies.

use std::collections::BTreeSet;

use http::{HeaderName, StatusCode};

use super::statuses::STATUSES;
use super::{ConfigError, Policy, ScopeRule, Statuses};
use crate::fingerprint::{BodyRule, FingerprintRule, HeaderRule, QueryRule};
use crate::time::millis;

impl Policy {
    /// Validates every field, as [`PolicyBuilder::build`](super::PolicyBuilder::build) does.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`], which names the first field that is wrong and the value to write
    /// instead.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_numbers()?;
        self.validate_keys()?;
        self.validate_scope()?;
        self.validate_statuses()?;
        self.fingerprint.as_ref().map_or(Ok(()), validate_fingerprint)?;
        check(self.problem.has_valid_codes(), "problem.codes", || {
            "write each code's name in 1 to 64 visible letters".to_owned()
        })?;
        check(self.problem.has_valid_base(), "problem.base", || {
            "write the address that a code is appended to, as `https://example.com/errors/`"
                .to_owned()
        })?;
        listed("replay_headers.allow", self.replay.allow.as_deref().unwrap_or_default())?;
        let in_vain = self.replay.allowed_in_vain();
        check(in_vain.is_none(), "replay_headers.allow", || {
            let name = in_vain.map_or("", |name| name.as_str());
            if name == "set-cookie" {
                "set `set_cookie` as well, which lets `set-cookie` through".to_owned()
            } else {
                format!("leave `{name}` out, which belongs to one exchange and is never replayed")
            }
        })?;
        listed("replay_headers.deny", &self.replay.deny)
    }

    fn validate_numbers(&self) -> Result<(), ConfigError> {
        let new_keys = self.new_keys_per_minute_max.map_or(1, u64::from);
        for (field, value, min, max) in [
            ("key_bytes_max", self.key_bytes_max as u64, 1, KEY_BYTES_MAX),
            ("retain_ms", millis(self.retain), 1, RETAIN_MS_MAX),
            ("key_retain_ms", millis(self.key_retain), 1, RETAIN_MS_MAX),
            ("lease_ms", millis(self.lease), LEASE_MS_MIN, HOUR_MS),
            ("wait_ms", millis(self.wait), 0, HOUR_MS),
            ("waiters_max", self.waiters_max as u64, 1, WAITERS_MAX),
            ("waiters_total_max", self.waiters_total_max as u64, 1, WAITERS_MAX),
            ("request_bytes_max", self.request_bytes_max, 0, REQUEST_BYTES_MAX),
            ("response_bytes_max", self.response_bytes_max as u64, 0, RESPONSE_BYTES_MAX),
            ("store_timeout_ms.claim", millis(self.claim_timeout), 1, HOUR_MS),
            ("store_timeout_ms.settle", millis(self.settle_timeout), 1, HOUR_MS),
            ("store_check_ms", millis(self.store_check), 0, HOUR_MS),
            ("drain_ms", millis(self.drain), 0, HOUR_MS),
            ("new_keys_per_minute_max", new_keys, 1, u64::from(u32::MAX)),
        ] {
            check((min..=max).contains(&value), field, || {
                format!("give a number from {min} to {max}, not {value}")
            })?;
        }
        let store_check = millis(self.store_check);
        check(store_check == 0 || store_check >= STORE_CHECK_MS_MIN, "store_check_ms", || {
            format!("give 0 for one check at start, or at least {STORE_CHECK_MS_MIN}")
        })?;
        check(self.key_retain >= self.retain, "key_retain_ms", || {
            let retain = millis(self.retain);
            format!("a key must be remembered as long as its response: give at least {retain}")
        })
    }

    fn validate_keys(&self) -> Result<(), ConfigError> {
        named("header_name", &self.header_names)?;
        let distinct: BTreeSet<_> = self.header_names.iter().map(|name| name.as_str()).collect();
        check(distinct.len() == self.header_names.len(), "header_name", || {
            "name each header once".to_owned()
        })?;
        check(!self.header_names.contains(&self.status_header), "status_header", || {
            "a header cannot carry both the key and the status; choose another".to_owned()
        })?;
        named("methods", &self.methods)?;
        listed("expose", &self.expose)?;
        let ids: BTreeSet<_> = self.secrets.iter().map(|secret| secret.id()).collect();
        check(ids.len() == self.secrets.len(), "secrets", || {
            "two secrets have one id; give each another id, for good".to_owned()
        })
    }

    fn validate_scope(&self) -> Result<(), ConfigError> {
        match &self.scope {
            None => Err(ConfigError::new("scope", format!("{} {SCOPE_CHOICE}", self.profile))),
            Some(ScopeRule::Bind(names)) => {
                named("scope.bind", names)?;
                check(!names.iter().any(|it| self.header_names.contains(it)), "scope.bind", || {
                    OWN_KEY.to_owned()
                })
            }
            Some(ScopeRule::Header(name)) => {
                check(!self.header_names.contains(name), "scope.header", || OWN_KEY.to_owned())
            }
            Some(ScopeRule::Cookie(name)) => {
                // A cookie's name is a token, as a header's is (RFC 6265 §4.1.1).
                let is_token = HeaderName::from_bytes(name.as_bytes()).is_ok();
                check(is_token, "scope.cookie", || "write the name of a cookie".to_owned())
            }
            Some(ScopeRule::Custom | ScopeRule::Shared) => Ok(()),
        }
    }

    fn validate_statuses(&self) -> Result<(), ConfigError> {
        check(self.missing_status.is_client_error(), "missing_status", || {
            "give a status from 400 to 499".to_owned()
        })?;
        one_of("in_flight_status", self.in_flight_status, &IN_FLIGHT_STATUSES)?;
        one_of("mismatch_status", self.mismatch_status, &MISMATCH_STATUSES)?;
        check(
            self.challenge.to_str().is_ok_and(|text| !text.trim().is_empty()),
            "challenge",
            || "write a challenge (RFC 9110 §11.6.1), such as `Bearer realm=\"api\"`".to_owned(),
        )?;
        let within = |field, statuses: &Statuses| {
            check(statuses.all_within(&STATUSES), field, || {
                "name statuses from 100 to 599 only".to_owned()
            })
        };
        within("store_statuses", &self.store_statuses)?;
        within("release_statuses", &self.release_statuses)?;
        check(self.rebind_statuses.all_within(&(400..=499)), "rebind_statuses", || {
            "name 4xx only: after anything else another request could execute twice".to_owned()
        })
    }
}

fn validate_fingerprint(rule: &FingerprintRule) -> Result<(), ConfigError> {
    if let BodyRule::Fields(pointers) | BodyRule::Exclude(pointers) = &rule.body {
        named("fingerprint.body", pointers)?;
        check(rule.body.malformed_pointer().is_none(), "fingerprint.body", || {
            "write each field as a JSON pointer (RFC 6901), such as `/amount`".to_owned()
        })?;
    }
    if let QueryRule::Only(names) = &rule.query {
        named("fingerprint.query", names)?;
    }
    match &rule.headers {
        HeaderRule::Only(names) => listed("fingerprint.headers", names),
        HeaderRule::All => Ok(()),
    }
}

fn named<T>(field: &'static str, list: &[T]) -> Result<(), ConfigError> {
    check(!list.is_empty(), field, || "name at least one".to_owned())?;
    listed(field, list)
}

fn listed<T>(field: &'static str, list: &[T]) -> Result<(), ConfigError> {
    check(list.len() <= LIST_MAX, field, || format!("name {LIST_MAX} at most"))
}

fn one_of(field: &'static str, status: StatusCode, choice: &[u16]) -> Result<(), ConfigError> {
    check(choice.contains(&status.as_u16()), field, || {
        let choice: Vec<_> = choice.iter().map(u16::to_string).collect();
        format!("give one of {}", choice.join(", "))
    })
}

fn check(
    holds: bool,
    field: &'static str,
    advice: impl FnOnce() -> String,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::new(field, advice())) }
}

const SCOPE_CHOICE: &str = "has no default; choose a header that names the account, `bind` to the \
     credential, a function, or `shared`";
/// Two clients with one key would have one scope.
const OWN_KEY: &str = "the header of the key says nothing of its owner; name one that does";
const IN_FLIGHT_STATUSES: [u16; 4] = [409, 423, 425, 503];
const MISMATCH_STATUSES: [u16; 3] = [400, 409, 422];
const KEY_BYTES_MAX: u64 = 1024;
const LEASE_MS_MIN: u64 = 100;
const STORE_CHECK_MS_MIN: u64 = 100;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// The longest retention, a hundred years: no store overflows.
const RETAIN_MS_MAX: u64 = 100 * 365 * 24 * HOUR_MS;
const WAITERS_MAX: u64 = 1_000_000;
const REQUEST_BYTES_MAX: u64 = 1 << 30;
const RESPONSE_BYTES_MAX: u64 = 256 << 20;
const LIST_MAX: usize = 64;
