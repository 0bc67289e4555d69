//! The names of a client's key: its record, and the keys derived from it.

use http::Method;
use idemptx_core::exchange::{Exchange, Head, Operation};
use idemptx_core::key::{Key, RecordId, Scope};
use idemptx_core::policy::{KeySpace, ScopeRule};
use idemptx_core::store::Store;

use super::Operator;

impl<S: Store> Operator<S> {
    /// Returns the name of the record of a client's key.
    ///
    /// `route` is the request's method and raw path, which count where the policy's `key_space` is
    /// `route`; operations of [`Engine::run`](crate::Engine::run) have none.
    /// Under the policy's scopes `bind` and `shared` the scope is [`Scope::shared`].
    #[must_use]
    pub fn ids(&self, scope: &Scope, key: &Key, route: Option<(&Method, &str)>) -> Vec<RecordId> {
        let route = route.map(|(method, path)| (method.as_str(), path));
        let operation = Operation::on_route(&self.rules, scope.clone(), key.clone(), route);
        vec![operation.id()]
    }

    /// Returns the halves of ids that name a scope, for [`Query::in_scope`](super::Query::in_scope): one for each secret.
    ///
    /// Where the policy's `key_space` is `route`, each route counts as another scope.
    #[must_use]
    pub fn scopes(&self, scope: &Scope, route: Option<(&Method, &str)>) -> Vec<[u8; 16]> {
        // The key does not count for this half.
        let key = Key::new("any", self.policy().key_bytes_max.max(3));
        let ids = key.map(|key| self.ids(scope, &key, route)).unwrap_or_default();
        ids.iter().map(RecordId::scope_bytes).collect()
    }

    /// Returns the key that an execution derives for `label`, to look its effect up by.
    ///
    /// `None` where more than scope and key decides: under the scope `bind` the headers to which the
    /// key is bound, and where the policy's `key_space` is `route` the route. A guess would find no
    /// effect of an operation that has one; [`derive_for`](Self::derive_for) takes the request.
    #[must_use]
    pub fn derive(&self, scope: &Scope, key: &Key, label: &str) -> Option<String> {
        let policy = self.policy();
        let is_bound = matches!(policy.scope, Some(ScopeRule::Bind(_)));
        let operation = || Operation::new(&self.rules, scope.clone(), key.clone());
        let is_enough = !is_bound && policy.key_space == KeySpace::Scope;
        is_enough.then(|| operation().derive(label, &self.rules))
    }

    /// Returns the key that the execution of a request derives for `label`; `None` for a request that
    /// no key protects.
    ///
    /// The head needs what the policy looks at: method, path, the key, and the headers that name or
    /// bind its owner.
    #[must_use]
    pub fn derive_for(&self, head: &Head<'_>, label: &str) -> Option<String> {
        let exchange = Exchange::open(&self.rules, head).ok()?;
        Some(exchange.operation()?.derive(label, &self.rules))
    }
}
