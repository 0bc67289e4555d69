//! What is decided before the store is asked.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri};

use crate::fingerprint::{Fingerprint, FingerprintConfig, Fingerprinter};
use crate::key::{InvalidKey, Key, Names, RecordId, Scope};
use crate::outcome::{Bypass, Code, Rejection};
use crate::policy::{KeySpace, Policy, ScopeRule};
use crate::secret::Secret;

/// A policy made ready: what can be computed once is.
pub struct Rules {
    policy: Policy,
    /// One for each secret, or one without; so are the names.
    fingerprints: Vec<FingerprintConfig>,
    names: Vec<Names>,
}

impl Rules {
    /// Makes a policy ready.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        let rule = policy.fingerprint.as_ref();
        let bind = match &policy.scope {
            Some(ScopeRule::Bind(headers)) => headers.as_slice(),
            _ => &[],
        };
        let fingerprints =
            secrets(&policy).map(|secret| FingerprintConfig::new(rule, bind, secret)).collect();
        let names = secrets(&policy).map(Names::new).collect();
        Self { policy, fingerprints, names }
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The fingerprints of work that is not an HTTP request, from its parts: one for each id of
    /// an operation.
    #[must_use]
    pub fn fingerprints(&self, parts: &[&[u8]]) -> Vec<Fingerprint> {
        secrets(&self.policy).map(|secret| Fingerprint::of(parts, secret)).collect()
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("profile", &self.policy.profile).finish_non_exhaustive()
    }
}

/// A request's head, as far as the protocol looks at it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target.
    pub uri: &'a Uri,
    /// All field lines.
    pub headers: &'a HeaderMap,
    /// What the adapter's own function made of [`ScopeRule::Custom`].
    pub scope: Option<Scope>,
    /// The application's own check of a key's form.
    pub accepts: Option<&'a (dyn Fn(&Key) -> bool + Sync)>,
}

impl fmt::Debug for Head<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head").field("method", self.method).finish_non_exhaustive()
    }
}

impl<'a> Head<'a> {
    /// A request's head.
    #[must_use]
    pub const fn new(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        Self { method, uri, headers, scope: None, accepts: None }
    }

    /// The same, with the scope that the adapter resolved.
    #[must_use]
    pub fn in_scope(mut self, scope: Option<Scope>) -> Self {
        self.scope = scope;
        self
    }

    /// The same, with the application's own check of a key's form.
    #[must_use]
    pub fn accepting(mut self, accepts: Option<&'a (dyn Fn(&Key) -> bool + Sync)>) -> Self {
        self.accepts = accepts;
        self
    }
}

/// What a request under a key is about; cheap to clone.
#[derive(Clone, Debug)]
pub struct Operation(Arc<Named>);

#[derive(Debug)]
struct Named {
    key: Key,
    scope: Scope,
    /// The first signs; the others are of older secrets.
    ids: Vec<RecordId>,
}

impl Operation {
    /// The operation that a key names in a scope.
    #[must_use]
    pub fn new(rules: &Rules, scope: Scope, key: Key) -> Self {
        Self::on_route(rules, scope, key, None)
    }

    /// The operation that a key names in a scope, and on a route (method and raw path) if the
    /// policy's [`key_space`](Policy::key_space) is [`KeySpace::Route`].
    #[must_use]
    pub fn on_route(rules: &Rules, scope: Scope, key: Key, route: Option<(&str, &str)>) -> Self {
        let route = route.filter(|_| rules.policy.key_space == KeySpace::Route);
        let named = |names| RecordId::new(&scope, &key, route, names);
        let ids = rules.names.iter().map(named).collect();
        Self(Arc::new(Named { key, scope, ids }))
    }

    /// The client's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// Whose key it is.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// The names of its record: the one it is written under, then those of older secrets.
    #[must_use]
    pub fn ids(&self) -> &[RecordId] {
        &self.0.ids
    }

    /// Derives a key for a call to another system; the same in every attempt.
    #[must_use]
    pub fn derive(&self, label: &str, rules: &Rules) -> String {
        let derive = |names: &Names| names.derive(self.scope(), self.key(), label);
        rules.names.first().map(derive).unwrap_or_default()
    }

    /// One fingerprinter for each id, to be fed the request's body.
    #[must_use]
    pub fn fingerprinters(rules: &Rules, head: &Head<'_>) -> Vec<Fingerprinter> {
        let start = |config: &FingerprintConfig| config.start(head.method, head.uri, head.headers);
        rules.fingerprints.iter().map(start).collect()
    }
}

pub(super) enum Admission {
    Pass(Bypass),
    Refuse(Rejection),
    Open(Operation),
}

/// The gate of semantics §3, in its order.
pub(super) fn admit(rules: &Rules, head: &Head<'_>) -> Admission {
    let policy = &rules.policy;
    // Nothing but the method: an `Upgrade` offer (h2c, as Java's client sends with every request) or a
    // content type (gRPC) is the client's to choose, and must not switch the protection off.
    if *head.method == Method::CONNECT {
        return Admission::Pass(Bypass::NotHttp);
    }
    if !policy.methods.contains(head.method) {
        let keyed = policy.header_names.iter().any(|name| head.headers.contains_key(name));
        return Admission::Pass(Bypass::Method { keyed });
    }
    let lines = policy.header_names.iter().flat_map(|name| head.headers.get_all(name));
    let key = match Key::from_lines(lines, policy.key_syntax, policy.key_bytes_max) {
        Ok(Some(key)) => key,
        Ok(None) if policy.required => return refuse(policy, Code::MissingKey),
        Ok(None) => return Admission::Pass(Bypass::NoKey),
        Err(invalid) => return Admission::Refuse(invalid_key(policy, invalid)),
    };
    if let Err(invalid) = policy.check_key(&key) {
        return Admission::Refuse(invalid_key(policy, invalid));
    }
    if head.accepts.is_some_and(|accepts| !accepts(&key)) {
        return Admission::Refuse(invalid_key(policy, InvalidKey::Refused));
    }
    let scope = match resolve(policy, head) {
        Ok(scope) => scope,
        Err(status) => {
            let mut rejection = Rejection::new(Code::ScopeUnresolved, policy);
            rejection.status = status;
            return Admission::Refuse(rejection);
        }
    };
    let route = (head.method.as_str(), head.uri.path());
    Admission::Open(Operation::on_route(rules, scope, key, Some(route)))
}

fn refuse(policy: &Policy, code: Code) -> Admission {
    Admission::Refuse(Rejection::new(code, policy))
}

fn invalid_key(policy: &Policy, invalid: InvalidKey) -> Rejection {
    let mut rejection = Rejection::new(Code::InvalidKey, policy);
    rejection.invalid_key = Some(invalid);
    rejection
}

/// Whose key it is, or the status that says it cannot be told.
fn resolve(policy: &Policy, head: &Head<'_>) -> Result<Scope, StatusCode> {
    match &policy.scope {
        Some(ScopeRule::Shared | ScopeRule::Bind(_)) => Ok(Scope::shared()),
        Some(ScopeRule::Custom) => head.scope.clone().ok_or(StatusCode::UNAUTHORIZED),
        Some(ScopeRule::Header(name)) => {
            let mut lines = head.headers.get_all(name).iter();
            match (lines.next(), lines.next()) {
                (Some(line), None) if !line.is_empty() => Ok(Scope::new(line)),
                (None, _) if *name == http::header::AUTHORIZATION => Err(StatusCode::UNAUTHORIZED),
                _ => Err(StatusCode::BAD_REQUEST),
            }
        }
        None => Err(StatusCode::BAD_REQUEST),
    }
}

fn secrets(policy: &Policy) -> impl Iterator<Item = Option<&Secret>> {
    let without = policy.secrets.is_empty().then_some(None);
    policy.secrets.iter().map(Some).chain(without)
}
