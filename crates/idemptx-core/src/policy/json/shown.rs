//! Writing the values of a policy that are more than a word or a number.

use http::HeaderName;
use serde_json::{Value, json};

use crate::fingerprint::{BodyRule, FingerprintRule, HeaderRule, QueryRule};
use crate::policy::statuses::Term;
use crate::policy::{Policy, ScopeRule, Statuses};
use crate::response::ReplayRules;
use crate::secret::Secret;
use crate::time::millis;

pub(super) fn texts<T: ToString>(list: &[T]) -> Value {
    list.iter().map(T::to_string).collect()
}

pub(super) fn headers(names: &[HeaderName]) -> Value {
    match names {
        [name] => name.as_str().into(),
        names => texts(names),
    }
}

pub(super) fn scope(rule: Option<&ScopeRule>) -> Value {
    match rule {
        None => Value::Null,
        Some(ScopeRule::Bind(names)) => json!({ "bind": texts(names) }),
        Some(ScopeRule::Header(name)) => json!({ "header": name.as_str() }),
        Some(ScopeRule::Custom) => "custom".into(),
        Some(ScopeRule::Shared) => "shared".into(),
    }
}

pub(super) fn statuses(statuses: &Statuses) -> Value {
    let value = |term| match term {
        Term::Status(status) => Value::from(status),
        Term::Class(hundreds) => Value::from(format!("{hundreds}xx")),
    };
    statuses.terms().map(value).collect()
}

pub(super) fn fingerprint(rule: Option<&FingerprintRule>) -> Value {
    let Some(rule) = rule else { return false.into() };
    let body = match &rule.body {
        BodyRule::Raw => "raw".into(),
        BodyRule::Json => "json".into(),
        BodyRule::Form => "form".into(),
        BodyRule::Multipart => "multipart".into(),
        BodyRule::Fields(pointers) => json!({ "fields": pointers }),
        BodyRule::None => "none".into(),
    };
    let query = match &rule.query {
        QueryRule::Raw => "raw".into(),
        QueryRule::Sorted => "sorted".into(),
        QueryRule::Only(names) => texts(names),
        QueryRule::None => "none".into(),
    };
    let headers = match &rule.headers {
        HeaderRule::Only(names) => texts(names),
        HeaderRule::All => "all".into(),
    };
    json!({ "body": body, "query": query, "headers": headers })
}

pub(super) fn replay(rules: &ReplayRules) -> Value {
    let allow = rules.allow.as_deref().map(texts);
    json!({ "allow": allow, "deny": texts(&rules.deny), "set_cookie": rules.set_cookie })
}

pub(super) fn secrets(secrets: &[Secret]) -> Value {
    secrets.iter().map(secret).collect()
}

pub(super) fn secret(secret: &Secret) -> Value {
    json!({ "id": secret.id() })
}

pub(super) fn store_timeout(policy: &Policy) -> Value {
    json!({ "claim": millis(policy.claim_timeout), "settle": millis(policy.settle_timeout) })
}
