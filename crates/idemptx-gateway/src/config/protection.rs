//! The policy of a route, as the gateway carries it out.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use http::HeaderName;
use http::header::AUTHORIZATION;
use idemptx::{ConfigError, Policy, PolicyBuilder, Profile};
use idemptx_core::policy::{OnLargeBody, OnPanic, ScopeRule};
use jsonwebtoken::Algorithm;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use toml::{Spanned, Value};

use super::error::{InvalidConfig, SourceText};

/// How the requests of a route are made safe to retry.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Protection {
    /// The policy.
    pub policy: Policy,
    /// Whose keys they are.
    pub scope: ScopeSource,
    /// What becomes of an operation whose answer was lost on its way.
    pub on_ambiguous: OnAmbiguous,
    /// What the upstream is told of the execution.
    pub forward: Vec<Forwarded>,
    /// The label that `Idempotency-Derived` is derived for.
    pub derive: String,
}

impl Protection {
    /// The defaults of a profile, as a gateway has them.
    ///
    /// Large bodies are fingerprinted on their way through a file, and an operation whose answer
    /// was lost counts as unknown.
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        Self::with(policy, OnAmbiguous::Unknown)
    }

    /// A policy, and what becomes of an operation whose answer was lost.
    ///
    /// In the place of a handler that breaks down the gateway has an upstream that does not answer,
    /// or not to the end: the policy's `on_panic` follows `on_ambiguous`.
    #[must_use]
    pub fn with(mut policy: Policy, on_ambiguous: OnAmbiguous) -> Self {
        policy.on_panic = match on_ambiguous {
            OnAmbiguous::Unknown => OnPanic::Quarantine,
            OnAmbiguous::Release => OnPanic::Release,
        };
        let (scope, derive) = (ScopeSource::Policy, DERIVE.to_owned());
        Self { policy, scope, on_ambiguous, forward: Vec::new(), derive }
    }

    /// The policy that a JSON object makes of a profile.
    ///
    /// # Errors
    ///
    /// As [`Policy::from_json`].
    pub fn from_json(
        profile: Profile,
        json: &str,
        on_ambiguous: OnAmbiguous,
    ) -> Result<Self, ConfigError> {
        let policy = start(profile).overlay_json(json)?.build()?;
        Ok(Self::with(policy, on_ambiguous))
    }
}

/// Whose keys they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeSource {
    /// As the policy's `scope` says.
    Policy,
    /// Whoever the client's certificate names.
    Certificate,
    /// Whoever a claim of a signed token names.
    Token(Jwt),
}

/// Which tokens are good, and whom they name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Jwt {
    /// The claim that names the account.
    pub claim: String,
    /// The field that the token comes in, behind `Bearer` or alone.
    pub header: HeaderName,
    /// What verifies it.
    pub key: JwtKey,
    /// The algorithms that are accepted; the usual one for the key if empty.
    pub algorithms: Vec<Algorithm>,
    /// Who may have issued it; anybody with the key if empty.
    pub issuer: Vec<String>,
    /// Whom it must be for; not looked at if empty.
    pub audience: Vec<String>,
}

/// What verifies a token.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtKey {
    /// A secret that its issuer shares with us.
    Secret(String),
    /// A public key, as PEM.
    Pem(PathBuf),
    /// A set of public keys (RFC 7517), as JSON.
    Set(PathBuf),
}

impl fmt::Debug for JwtKey {
    /// Without the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Secret(_) => f.write_str("Secret"),
            Self::Pem(path) => f.debug_tuple("Pem").field(path).finish(),
            Self::Set(path) => f.debug_tuple("Set").field(path).finish(),
        }
    }
}

/// What becomes of an operation that was sent and whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnAmbiguous {
    /// Its outcome is unknown: retries are refused until somebody resolves it.
    Unknown,
    /// The key is free again: a retry executes.
    Release,
}

/// What the upstream is told of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Forwarded {
    /// `Idempotency-Attempt`: which execution it is, from 1.
    Attempt,
    /// `Idempotency-Fence`: a number greater than that of any earlier execution.
    Fence,
    /// `Idempotency-Derived`: a key for the systems that the upstream calls.
    Derived,
}

/// The `[route.policy]` table: its entries as they are written, with their places.
#[derive(Debug, Default)]
pub(super) struct PolicyTable(Vec<(Spanned<String>, Spanned<Value>)>);

impl PolicyTable {
    /// Lays the entries over a profile.
    pub(super) fn over(
        mut self,
        profile: Profile,
        place: &Range<usize>,
        source: SourceText<'_>,
    ) -> Result<(Policy, ScopeSource), InvalidConfig> {
        // As they were written: one may change what an earlier one has set.
        self.0.sort_by_key(|(name, _)| name.span().start);
        let mut builder = start(profile);
        let mut scope = ScopeSource::Policy;
        for (name, value) in &self.0 {
            let wrong = |text: String| source.error_at(&name.span(), text);
            match name.as_ref().as_str() {
                "on_panic" => return Err(wrong(NO_PANIC.to_owned())),
                "scope" if has(value.as_ref(), "mtls") || has(value.as_ref(), "jwt") => {
                    scope =
                        source_of(value.as_ref()).map_err(|it| wrong(format!("`scope`: {it}")))?;
                    builder = builder.scope(ScopeRule::Custom);
                }
                field => {
                    let json = json(value.as_ref()).map_err(wrong)?;
                    let entry = serde_json::json!({ field: json }).to_string();
                    let overlaid = builder.overlay_json(&entry);
                    builder = overlaid.map_err(|error| wrong(error.to_string()))?;
                }
            }
        }
        let policy = builder.build().map_err(|error| {
            let root = error.field().split(['.', '[']).next().unwrap_or_default();
            let named = self.0.iter().find(|(name, _)| name.as_ref() == root);
            let span = named.map_or_else(|| place.clone(), |(name, _)| name.span());
            source.error_at(&span, error.to_string())
        })?;
        Ok((policy, scope))
    }
}

impl<'de> Deserialize<'de> for PolicyTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = PolicyTable;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of policy fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PolicyTable, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(PolicyTable(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

/// A profile with what a gateway does otherwise than a library.
fn start(profile: Profile) -> PolicyBuilder {
    Policy::profile(profile).into_builder().on_large_body(OnLargeBody::Stream)
}

fn has(value: &Value, name: &str) -> bool {
    value.as_table().is_some_and(|table| table.contains_key(name))
}

/// `{ mtls = "subject" }` or `{ jwt = claim, … }`.
fn source_of(value: &Value) -> Result<ScopeSource, String> {
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
    let key = match (table.secret, table.key, table.jwks) {
        (Some(secret), None, None) => JwtKey::Secret(secret),
        (None, Some(path), None) => JwtKey::Pem(path),
        (None, None, Some(path)) => JwtKey::Set(path),
        _ => return Err("give one of `secret`, `key` and `jwks`".to_owned()),
    };
    let header = match table.header {
        None => AUTHORIZATION,
        Some(name) => name.parse().map_err(|_| "`header` is the name of a header".to_owned())?,
    };
    let (claim, algorithms) = (table.jwt, table.algorithms);
    let jwt =
        Jwt { claim, header, key, algorithms, issuer: table.issuer, audience: table.audience };
    Ok(ScopeSource::Token(jwt))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JwtTable {
    jwt: String,
    header: Option<String>,
    secret: Option<String>,
    key: Option<PathBuf>,
    jwks: Option<PathBuf>,
    #[serde(default)]
    algorithms: Vec<Algorithm>,
    #[serde(default)]
    issuer: Vec<String>,
    #[serde(default)]
    audience: Vec<String>,
}

/// The JSON that says the same.
fn json(value: &Value) -> Result<serde_json::Value, String> {
    Ok(match value {
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Boolean(truth) => (*truth).into(),
        Value::Float(_) => return Err("write a whole number".to_owned()),
        Value::Datetime(_) => return Err("a date has no meaning here".to_owned()),
        Value::Array(items) => items.iter().map(json).collect::<Result<_, _>>()?,
        Value::Table(table) => {
            let entry = |(name, value): (&String, &Value)| Ok((name.clone(), json(value)?));
            let entries = table.iter().map(entry).collect::<Result<_, String>>()?;
            serde_json::Value::Object(entries)
        }
    })
}

const DERIVE: &str = "upstream";
const NO_PANIC: &str = "`on_panic`: a gateway runs no handler; the route's `on_ambiguous` says \
     what becomes of an operation whose answer was lost";
