//! Decisions on a request's head, before the first call of the store.

use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName, Method, StatusCode, Uri};

use crate::description::DescribedRoute;
use crate::fingerprint::{Fingerprint, FingerprintConfig, Fingerprinters, lines_of};
use crate::key::{FieldLines, InvalidKey, Key, Names, RecordId, Scope};
use crate::outcome::{Bypass, Code, Rejection};
use crate::policy::{KeySpace, Policy, ScopeRule};
use crate::secret::Secret;

/// A policy with the values computed from it once: fingerprint configurations and names.
pub struct Rules {
    policy: Policy,
    /// The configuration with the first secret, if there is any: claims store that fingerprint.
    fingerprint: FingerprintConfig,
    /// The configurations with the other secrets.
    former_fingerprints: Vec<FingerprintConfig>,
    // The naming secret never rotates, because one operation must have one record.
    names: Names,
    namespace: Box<str>,
    /// The part of each description that is the same for all requests.
    described: DescribedRoute,
}

impl Rules {
    /// Prepares a policy, in the empty namespace.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::in_namespace(policy, "")
    }

    /// Prepares a policy in a namespace, which separates services on one store.
    #[must_use]
    pub fn in_namespace(policy: Policy, namespace: &str) -> Self {
        let rule = policy.fingerprint.as_ref();
        let bind = bound(&policy);
        let config = |secret| FingerprintConfig::new(rule, bind, secret);
        let mut secrets = policy.secrets.iter().map(Some);
        let fingerprint = config(secrets.next().flatten());
        let former_fingerprints = secrets.map(config).collect();
        let names = Names::new(namespace, policy.naming_secret.as_ref());
        let described = DescribedRoute::new("", namespace);
        let namespace = namespace.into();
        Self { policy, fingerprint, former_fingerprints, names, namespace, described }
    }

    /// Sets the name of the route, by which records describe their requests to operators.
    #[must_use]
    pub fn on_route(mut self, name: &str) -> Self {
        self.described = DescribedRoute::new(name, &self.namespace);
        self
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns the fingerprints of work that is not an HTTP request, from its parts: one for each
    /// secret.
    #[must_use]
    pub fn fingerprints(&self, parts: &[&[u8]]) -> Vec<Fingerprint> {
        let operation = self.names.work_operation();
        let print = |secret| Fingerprint { operation, ..Fingerprint::of(parts, secret) };
        secrets(&self.policy).map(print).collect()
    }
}

impl fmt::Debug for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("profile", &self.policy.profile).finish_non_exhaustive()
    }
}

/// The parts of a request's head that the protocol reads.
#[derive(Clone)]
#[non_exhaustive]
pub struct Head<'a> {
    /// The method.
    pub method: &'a Method,
    /// The target.
    pub uri: &'a Uri,
    /// The header field lines.
    pub headers: &'a HeaderMap,
    /// The path as the client sent it, where a router has cut a prefix off [`uri`](Self::uri).
    pub client_path: Option<&'a str>,
    /// The scope that the adapter's function resolved for [`ScopeRule::Custom`].
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
    /// Creates a head without client path, scope and key check.
    #[must_use]
    pub const fn new(method: &'a Method, uri: &'a Uri, headers: &'a HeaderMap) -> Self {
        Self { method, uri, headers, client_path: None, scope: None, accepts: None }
    }

    /// Sets the path as the client sent it, where a router has cut a prefix off the target.
    ///
    /// The operation digest covers the path: without the prefix, operations on two path parameters
    /// in it, such as two tenants, would count as one.
    #[must_use]
    pub const fn sent_to(mut self, client_path: Option<&'a str>) -> Self {
        self.client_path = client_path;
        self
    }

    /// Sets the scope that the adapter resolved.
    #[must_use]
    pub fn in_scope(mut self, scope: Option<Scope>) -> Self {
        self.scope = scope;
        self
    }

    /// Sets the application's own check of a key's form.
    #[must_use]
    pub fn accepting(mut self, accepts: Option<&'a (dyn Fn(&Key) -> bool + Sync)>) -> Self {
        self.accepts = accepts;
        self
    }

    fn path(&self) -> &'a str {
        self.client_path.unwrap_or(self.uri.path())
    }
}

/// The operation that a request's key names; cheap to clone.
#[derive(Clone, Debug)]
pub struct Operation(Arc<Named>);

#[derive(Debug)]
struct Named {
    key: Key,
    scope: Scope,
    /// The lines of the headers to which the key is bound: few requests ask for their digest.
    bound_to: BoundTo,
    id: RecordId,
    /// The encoded [`Description`](crate::description::Description) of the request; none for work
    /// that is not an HTTP request, nor for a request that is not to be claimed.
    description: OnceLock<Bytes>,
}

/// Header field lines that may be credentials, so that `Debug` shows none.
struct BoundTo(FieldLines);

impl fmt::Debug for BoundTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.0.iter().count())
    }
}

impl Operation {
    /// Creates the operation that a key names in a scope.
    #[must_use]
    pub fn new(rules: &Rules, scope: Scope, key: Key) -> Self {
        Self::on_route(rules, scope, key, None)
    }

    /// Creates the operation that a key names in a scope and, if the policy's
    /// [`key_space`](Policy::key_space) is [`KeySpace::Route`], on a route (method and raw path).
    #[must_use]
    pub fn on_route(rules: &Rules, scope: Scope, key: Key, route: Option<(&str, &str)>) -> Self {
        Self::bound(rules, scope, key, route, FieldLines::default())
    }

    fn bound(
        rules: &Rules,
        scope: Scope,
        key: Key,
        route: Option<(&str, &str)>,
        bound_to: FieldLines,
    ) -> Self {
        let route = route.filter(|_| rules.policy.key_space == KeySpace::Route);
        let id = RecordId::new(&scope, &key, route, &rules.names);
        Self(Arc::new(Named {
            key,
            scope,
            bound_to: BoundTo(bound_to),
            id,
            description: OnceLock::new(),
        }))
    }

    /// Returns the client's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.0.key
    }

    /// Returns the scope of the key.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.0.scope
    }

    /// Returns the id of the operation's record.
    #[must_use]
    pub fn id(&self) -> RecordId {
        self.0.id
    }

    /// Derives a key for a call to another system.
    ///
    /// Every attempt derives the same key, also after a rotation of secrets.
    /// Two principals who chose the same key derive different ones, and so do two routes where it
    /// names an operation on each.
    #[must_use]
    pub fn derive(&self, label: &str, rules: &Rules) -> String {
        let mut binding = self.binding(rules);
        if rules.policy.key_space == KeySpace::Route {
            binding.extend_from_slice(self.id().as_bytes());
        }
        rules.names.derive(self.scope(), &binding, self.key(), label)
    }

    /// Returns the name under which the new keys of the operation's principal are counted; see
    /// [`KeyMeter`](crate::stats::KeyMeter).
    #[must_use]
    pub fn meter_id(&self, rules: &Rules) -> [u8; 16] {
        rules.names.meter_id(self.scope(), &self.binding(rules))
    }

    fn binding(&self, rules: &Rules) -> Vec<u8> {
        rules.names.binding(bound(&rules.policy), &self.0.bound_to.0)
    }

    pub(super) fn describe(&self, rules: &Rules, head: &Head<'_>) {
        let described = || rules.described.describe(head.method.as_str(), head.path());
        self.0.description.get_or_init(described);
    }

    pub(super) fn description(&self) -> Bytes {
        self.0.description.get().cloned().unwrap_or_default()
    }

    pub(super) fn fingerprinters(&self, rules: &Rules, head: &Head<'_>) -> Fingerprinters {
        let operation = rules.names.http_operation(head.method.as_str(), head.path());
        let start = |config: &FingerprintConfig| {
            let lines = &self.0.bound_to.0;
            config.start_bound(head.method, head.uri, head.headers, lines).of_operation(operation)
        };
        let others = rules.former_fingerprints.iter().map(start).collect();
        Fingerprinters::new(start(&rules.fingerprint), others)
    }
}

pub(super) enum Admission {
    Pass(Bypass),
    Refuse(Rejection),
    Open(Operation),
}

/// Admits a request head: method, key, scope, in this order.
pub(super) fn admit(rules: &Rules, head: &Head<'_>) -> Admission {
    let policy = &rules.policy;
    // Only the method exempts a request. The client chooses an `Upgrade` offer (Java's client sends
    // h2c with every request) and a content type (gRPC): neither may switch the protection off.
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
            rejection.challenge =
                (status == StatusCode::UNAUTHORIZED).then(|| policy.challenge.clone());
            return Admission::Refuse(rejection);
        }
    };
    let route = (head.method.as_str(), head.path());
    let bound_to = lines_of(bound(policy), head.headers);
    Admission::Open(Operation::bound(rules, scope, key, Some(route), bound_to))
}

fn refuse(policy: &Policy, code: Code) -> Admission {
    Admission::Refuse(Rejection::new(code, policy))
}

fn invalid_key(policy: &Policy, invalid: InvalidKey) -> Rejection {
    let mut rejection = Rejection::new(Code::InvalidKey, policy);
    rejection.invalid_key = Some(invalid);
    rejection
}

/// Resolves the key's scope, or returns the status of the refusal.
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
        Some(ScopeRule::Cookie(name)) => {
            let mut values = cookies(head.headers, name);
            match (values.next(), values.next()) {
                (None, _) | (Some(b""), None) => Err(StatusCode::UNAUTHORIZED),
                (Some(value), None) => Ok(Scope::new(value)),
                // Parsers differ in which of two cookies counts (RFC 6265 §5.4).
                _ => Err(StatusCode::BAD_REQUEST),
            }
        }
        None => Err(StatusCode::BAD_REQUEST),
    }
}

/// Returns the values of the cookies of this name (RFC 6265 §4.2.1).
fn cookies<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs.filter_map(move |pair| {
        let equals = pair.iter().position(|byte| *byte == b'=')?;
        let (of, value) = pair.split_at_checked(equals)?;
        (of.trim_ascii() == name.as_bytes()).then(|| value.get(1..))?.map(<[u8]>::trim_ascii)
    })
}

/// Returns the names of the headers to which a key is bound.
fn bound(policy: &Policy) -> &[HeaderName] {
    match &policy.scope {
        Some(ScopeRule::Bind(headers)) => headers,
        _ => &[],
    }
}

fn secrets(policy: &Policy) -> impl Iterator<Item = Option<&Secret>> {
    let without = policy.secrets.is_empty().then_some(None);
    policy.secrets.iter().map(Some).chain(without)
}
