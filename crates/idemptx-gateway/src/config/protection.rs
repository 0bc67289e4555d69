//! The protection of a route: its policy, and the settings that only a gateway has.

use std::fmt;
use std::path::PathBuf;

use http::HeaderName;
use http::header::{AUTHORIZATION, HOST};
use idemptx::{ConfigError, Policy, PolicyBuilder, Profile};
use idemptx_core::policy::{OnLargeBody, OnPanic, ScopeRule};
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::{Spanned, Value};

use super::RemoteKeySet;

/// The settings that make a route's requests safe to retry.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Protection {
    /// The policy.
    pub policy: Policy,
    /// The source of the scope.
    pub scope: ScopeSource,
    /// The state of an operation whose response was lost.
    pub on_ambiguous: OnAmbiguous,
    /// The fields that describe the execution to the upstream.
    pub forward: Vec<Forwarded>,
    /// The label from which `Idempotency-Derived` is derived.
    pub derive: String,
}

impl Protection {
    /// Returns the protection of a policy, under which a lost response makes the outcome unknown.
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        Self::with(policy, OnAmbiguous::Unknown)
    }

    /// Returns the protection of a policy.
    ///
    /// The gateway has no handler that could panic, but an upstream whose response may be lost:
    /// `on_ambiguous` determines the policy's `on_panic`.
    #[must_use]
    pub fn with(mut policy: Policy, on_ambiguous: OnAmbiguous) -> Self {
        policy.on_panic = match on_ambiguous {
            OnAmbiguous::Unknown => OnPanic::Quarantine,
            OnAmbiguous::Release => OnPanic::Release,
        };
        let (scope, derive) = (ScopeSource::Policy, DERIVE.to_owned());
        Self { policy, scope, on_ambiguous, forward: Vec::new(), derive }
    }

    /// Returns the protection of a profile with overridden fields.
    ///
    /// # Errors
    ///
    /// Those of [`Policy::from_json`].
    pub fn from_json(
        profile: Profile,
        json: &str,
        on_ambiguous: OnAmbiguous,
    ) -> Result<Self, ConfigError> {
        let policy = gateway_profile(profile).overlay_json(json)?.build()?;
        Ok(Self::with(policy, on_ambiguous))
    }
}

/// The source of a key's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeSource {
    /// The policy's `scope`.
    Policy,
    /// The subject of the client's certificate.
    Certificate,
    /// A claim of a signed token.
    Token(Box<Jwt>),
}

/// The verification of tokens, and the claim that is the scope.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Jwt {
    /// The claim that names the account.
    pub claim: String,
    /// The header that holds the token, with or without `Bearer`.
    pub header: HeaderName,
    /// The verification key.
    pub key: JwtKey,
    /// The accepted algorithms; if empty, the default of the key.
    pub algorithms: Vec<Algorithm>,
    /// The accepted issuers; if empty, all.
    pub issuer: Vec<String>,
    /// The accepted audiences; if empty, all.
    pub audience: Vec<String>,
}

/// The verification key of tokens.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtKey {
    /// A secret shared with the issuer.
    Secret(String),
    /// A public key, as PEM.
    Pem(PathBuf),
    /// A set of public keys (RFC 7517), as JSON.
    Set(PathBuf),
    /// Such a set, at a URL.
    Remote(RemoteKeySet),
}

impl fmt::Debug for JwtKey {
    /// Omits the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret"),
            Self::Pem(path) => f.debug_tuple("Pem").field(path).finish(),
            Self::Set(path) => f.debug_tuple("Set").field(path).finish(),
            Self::Remote(set) => f.debug_tuple("Remote").field(&set.url).finish(),
        }
    }
}

/// The state of an operation that was sent and whose response was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnAmbiguous {
    /// The outcome is unknown: retries are refused until an operator resolves it.
    Unknown,
    /// The key is released: a retry executes.
    Release,
}

/// A field that describes the execution to the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Forwarded {
    /// `Idempotency-Attempt`: the number of the execution, from 1.
    Attempt,
    /// `Idempotency-Fence`: the fencing token, greater than that of any earlier execution.
    Fence,
    /// `Idempotency-Derived`: a key for services that the upstream calls.
    Derived,
}

/// The `[route.policy]` table, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct PolicyOverlay(Vec<(Spanned<String>, Value)>);

/// An error in a policy, with the field of the overlay that it concerns, if it is one of them.
#[derive(Debug)]
pub(super) struct InvalidPolicy {
    pub(super) field: Option<String>,
    pub(super) text: String,
}

impl PolicyOverlay {
    /// Overrides fields of a profile.
    pub(super) fn over(mut self, profile: Profile) -> Result<(Policy, ScopeSource), InvalidPolicy> {
        // In the order of the file: a field may change what an earlier one has set.
        self.0.sort_by_key(|(name, _)| name.span().start);
        let mut builder = gateway_profile(profile);
        let mut scope = ScopeSource::Policy;
        for (name, value) in &self.0 {
            let invalid = |text| InvalidPolicy { field: Some(name.get_ref().clone()), text };
            match name.get_ref().as_str() {
                "on_panic" => return Err(invalid(NO_PANIC.to_owned())),
                "on_orphan" if value.as_str() == Some("probe") => {
                    return Err(invalid(NO_PROBE.to_owned()));
                }
                "scope" if has(value, "mtls") || has(value, "jwt") => {
                    scope =
                        scope_source(value).map_err(|text| invalid(format!("`scope`: {text}")))?;
                    builder = builder.scope(ScopeRule::Custom);
                }
                field => {
                    let json = json(value).map_err(invalid)?;
                    let entry = serde_json::json!({ field: json }).to_string();
                    let overlaid = builder.overlay_json(&entry);
                    builder = overlaid.map_err(|error| invalid(error.to_string()))?;
                }
            }
        }
        let policy = builder.build().map_err(|error| {
            let root = error.field().split(['.', '[']).next().unwrap_or_default();
            let named = self.0.iter().find(|(name, _)| name.get_ref() == root);
            let field = named.map(|(name, _)| name.get_ref().clone());
            InvalidPolicy { field, text: error.to_string() }
        })?;
        Ok((policy, scope))
    }
}

impl<'de> Deserialize<'de> for PolicyOverlay {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = PolicyOverlay;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of policy fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PolicyOverlay, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(PolicyOverlay(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// Returns a profile with the gateway's defaults: large bodies pass through a file, and a key is
/// bound to the host as well.
fn gateway_profile(profile: Profile) -> PolicyBuilder {
    let mut policy = Policy::profile(profile);
    // One upstream may serve a site for each host, which the path does not distinguish.
    if let Some(ScopeRule::Bind(headers)) = &mut policy.scope {
        headers.push(HOST);
    }
    // No layer outside answers CORS: what the upstream has said of it belongs to its answer.
    policy.replay.cors = true;
    policy.into_builder().on_large_body(OnLargeBody::Stream)
}

fn has(value: &Value, name: &str) -> bool {
    value.as_table().is_some_and(|table| table.contains_key(name))
}

/// Parses `{ mtls = "subject" }` or `{ jwt = claim, … }`.
fn scope_source(value: &Value) -> Result<ScopeSource, String> {
    if has(value, "mtls") {
        let subject = value.get("mtls").and_then(Value::as_str) == Some("subject");
        let alone = value.as_table().is_some_and(|table| table.len() == 1);
        return match subject && alone {
            true => Ok(ScopeSource::Certificate),
            false => Err("write `{ mtls = \"subject\" }`".to_owned()),
        };
    }
    let table: JwtTable =
        value.clone().try_into().map_err(|it: toml::de::Error| it.message().to_owned())?;
    let is_remote = table.jwks_url.is_some();
    if !is_remote && (table.jwks_ca.is_some() || table.jwks_refresh_ms.is_some()) {
        return Err("`jwks_ca` and `jwks_refresh_ms` go with `jwks_url`".to_owned());
    }
    let key = match (table.secret, table.key, table.jwks, table.jwks_url) {
        (Some(secret), None, None, None) if secret.len() < SECRET_BYTES_MIN => {
            return Err(format!(
                "`secret`: {} bytes can be guessed; give {SECRET_BYTES_MIN} at least, and 32 for HS256 \
                 (RFC 7518 §3.2)",
                secret.len()
            ));
        }
        (Some(secret), None, None, None) => JwtKey::Secret(secret),
        (None, Some(path), None, None) => JwtKey::Pem(path),
        (None, None, Some(path), None) => JwtKey::Set(path),
        (None, None, None, Some(url)) => {
            JwtKey::Remote(RemoteKeySet::parse(url, table.jwks_ca, table.jwks_refresh_ms)?)
        }
        _ => return Err("give one of `secret`, `key`, `jwks` and `jwks_url`".to_owned()),
    };
    let header = match table.header {
        None => AUTHORIZATION,
        Some(name) => {
            name.parse().map_err(|_| "`header` must be the name of a header".to_owned())?
        }
    };
    let (claim, algorithms) = (table.jwt, table.algorithms);
    let jwt =
        Jwt { claim, header, key, algorithms, issuer: table.issuer, audience: table.audience };
    Ok(ScopeSource::Token(Box::new(jwt)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtTable {
    jwt: String,
    header: Option<String>,
    secret: Option<String>,
    key: Option<PathBuf>,
    jwks: Option<PathBuf>,
    jwks_url: Option<String>,
    jwks_ca: Option<PathBuf>,
    jwks_refresh_ms: Option<u64>,
    #[serde(default)]
    algorithms: Vec<Algorithm>,
    #[serde(default)]
    issuer: Vec<String>,
    #[serde(default)]
    audience: Vec<String>,
}

/// Converts a TOML value to JSON.
fn json(value: &Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Boolean(truth) => (*truth).into(),
        Value::Float(_) => return Err("write a whole number".to_owned()),
        Value::Datetime(_) => return Err("a date is not a policy value".to_owned()),
        Value::Array(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        Value::Table(table) => {
            let entry = |(name, value): (&String, &Value)| Ok((name.clone(), json(value)?));
            let entries = table.iter().map(entry).collect::<Result<_, String>>()?;
            serde_json::Value::Object(entries)
        }
    })
}

/// A shorter key of HMAC-SHA-256 is weaker than the signature.
const SECRET_BYTES_MIN: usize = 16;
const DERIVE: &str = "upstream";
const NO_PROBE: &str =
    "`on_orphan`: a gateway has no hook to ask; write `reexecute` or `quarantine`";
const NO_PANIC: &str = "`on_panic`: a gateway runs no handler; use the route's `on_ambiguous`, \
     the state of an operation whose response was lost";
