//! Settings that are valid and will hardly do what they are meant to.

use http::Method;
use idemptx_core::policy::ScopeRule;
use jsonwebtoken::Algorithm;

use super::{Config, JwtKey, Protection, Route, ScopeSource};
use crate::proxy::is_ambiguous_path;

/// Returns a line for each such setting.
pub(super) fn warnings(config: &Config, has_store: bool) -> Vec<String> {
    let mut found = Vec::new();
    if !has_store {
        found.push(
            "there is no [store]: records are kept in memory, so that each gateway has its own \
             and a restart forgets them; write `url = \"memory:\"` if that is meant"
                .to_owned(),
        );
    }
    for upstream in config.upstreams.iter().filter(|it| it.ejection.is_some()) {
        if upstream.origins.len() < 2 {
            found.push(format!(
                "upstream {} has a single address, which is never ejected",
                upstream.name
            ));
        }
    }
    for (number, route) in config.routes.iter().enumerate() {
        let mut earlier = config.routes.iter().take(number);
        if let Some(cover) = earlier.find(|earlier| covers(earlier, route)) {
            found.push(format!(
                "route {} is never reached: {} stands before it and matches all of its requests",
                route.name, cover.name
            ));
        }
        found.extend(path_warning(config, route));
        found.extend(methods_warning(route));
        found.extend(timeout_warning(config, route));
        found.extend(scope_warning(config, route));
    }
    found
}

/// Returns a line for each route of this name whose earlier records a reload makes unfindable.
pub(crate) fn forgotten_records(before: &[Route], after: &[Route]) -> Vec<String> {
    let mut found = Vec::new();
    for route in after {
        let Some(former) = before.iter().find(|it| it.name == route.name) else { continue };
        let Some((now, then)) = route.protection.as_ref().zip(former.protection.as_ref()) else {
            continue;
        };
        let changes = [
            ("upstream", route.upstream != former.upstream),
            ("scope", names_scope(now) != names_scope(then)),
            ("key_space", now.policy.key_space != then.policy.key_space),
            ("naming_secret", now.policy.naming_secret != then.policy.naming_secret),
        ];
        if let Some((setting, _)) = changes.into_iter().find(|(_, is_changed)| *is_changed) {
            found.push(format!(
                "route {} has another `{setting}`: no earlier record is found under it, so that \
                 retries of earlier requests execute again",
                route.name
            ));
        }
    }
    found
}

/// Returns what names the scope of a key: its kind and its name; `None` for those that have the
/// shared one.
fn names_scope(protection: &Protection) -> Option<(&'static str, &str)> {
    match (&protection.scope, &protection.policy.scope) {
        (ScopeSource::Certificate, _) => Some(("mtls", "")),
        (ScopeSource::Token(jwt), _) => Some(("jwt", &jwt.claim)),
        (ScopeSource::Policy, Some(ScopeRule::Header(name))) => Some(("header", name.as_str())),
        (ScopeSource::Policy, Some(ScopeRule::Cookie(name))) => Some(("cookie", name)),
        (ScopeSource::Policy, _) => None,
    }
}

/// Returns whether every request of the second route matches the first one as well.
fn covers(first: &Route, second: &Route) -> bool {
    let is_host = first.host.is_none() || first.host == second.host;
    let has = |method| first.methods.contains(method);
    let is_method =
        first.methods.is_empty() || !second.methods.is_empty() && second.methods.iter().all(has);
    is_host && is_method && first.path.covers(&second.path)
}

/// Returns a line for a route whose paths are refused before they are compared with it.
fn path_warning(config: &Config, route: &Route) -> Option<String> {
    let sample = route.path.sample();
    (config.limits.strict_paths && is_ambiguous_path(&sample)).then(|| {
        format!(
            "route {} is never reached: {sample} is a path that `strict_paths` refuses; correct \
             `path`, or set `strict_paths = false` in [limits]",
            route.name
        )
    })
}

/// Returns a line for a protected route of which the policy covers no request.
fn methods_warning(route: &Route) -> Option<String> {
    let covered = &route.protection.as_ref()?.policy.methods;
    // Nobody expects reads to be protected.
    let is_changing = route.methods.iter().any(|method| !method.is_safe());
    if !is_changing || route.methods.iter().any(|method| covered.contains(method)) {
        return None;
    }
    let named =
        |methods: &[Method]| methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    Some(format!(
        "route {} protects nothing: it is for {}, and its policy covers {}; set `methods` in its \
         policy, or `protect = false`",
        route.name,
        named(&route.methods),
        named(covered)
    ))
}

/// Returns a line for a route that gives a claim more time than the store gives a step.
fn timeout_warning(config: &Config, route: &Route) -> Option<String> {
    let claim = route.protection.as_ref()?.policy.claim_timeout;
    let limit = config.store.step_limit().filter(|limit| claim > *limit)?;
    let advice = match config.store.url.starts_with("sqlite:") {
        true => "that is the most",
        false => "set `timeout_ms` in [store]",
    };
    Some(format!(
        "route {} gives a claim {} ms, and a step of the store has {} ms: {advice}",
        route.name,
        claim.as_millis(),
        limit.as_millis()
    ))
}

fn scope_warning(config: &Config, route: &Route) -> Option<String> {
    let protection = route.protection.as_ref()?;
    let asks = config
        .listeners
        .iter()
        .any(|it| it.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()));
    match &protection.scope {
        ScopeSource::Certificate if !asks => Some(format!(
            "route {} takes the scope from clients' certificates, for which no listener asks: all \
             of its keys will be refused; set `client_ca` in the listener's `tls`",
            route.name
        )),
        ScopeSource::Token(jwt) => match &jwt.key {
            JwtKey::Secret(secret) if secret.len() < secret_bytes_min(&jwt.algorithms) => {
                Some(format!(
                    "route {} verifies tokens with a secret of {} bytes, fewer than the algorithm \
                     asks for (RFC 7518 §3.2)",
                    route.name,
                    secret.len()
                ))
            }
            _ => None,
        },
        _ => None,
    }
}

/// The length of the digest, for the longest of these algorithms.
fn secret_bytes_min(algorithms: &[Algorithm]) -> usize {
    let bytes = |algorithm: &Algorithm| match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    };
    algorithms.iter().map(bytes).max().unwrap_or(32)
}
