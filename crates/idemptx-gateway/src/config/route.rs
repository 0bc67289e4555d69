//! Routes: the requests that go to an upstream, and their protection.

use http::Method;
use http::uri::Authority;
use idemptx::{Policy, Profile};
use serde::{Deserialize, Deserializer};

use super::invalid_config::InvalidSetting;
use super::protection::{InvalidPolicy, PolicyOverlay};
use super::values::methods;
use super::{Cors, Forwarded, OnAmbiguous, Pattern, Protection, RouteLimits};

/// The requests that go to an upstream, and their protection.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Route {
    /// The name in logs and metrics.
    pub name: String,
    /// The host to match; all hosts if `None`.
    pub host: Option<String>,
    /// The methods to match; all methods if empty.
    pub methods: Vec<Method>,
    /// The paths to match.
    pub path: Pattern,
    /// The name of the upstream.
    pub upstream: String,
    /// The protection of requests; without it they pass through.
    pub protection: Option<Protection>,
    /// Answers requests whose key is ignored with `Idempotency-Status: ignored`.
    pub report_ignored: bool,
    /// The origins whose scripts may read refusals and replays; `None` leaves CORS to the upstream.
    pub cors: Option<Cors>,
    /// The limits that differ from those of other routes.
    pub limits: RouteLimits,
}

impl Route {
    /// Returns a route that matches every request.
    #[must_use]
    pub fn new(upstream: impl Into<String>, protection: Option<Protection>) -> Self {
        Self {
            name: "all".into(),
            host: None,
            methods: Vec::new(),
            path: Pattern::any(),
            upstream: upstream.into(),
            protection,
            report_ignored: false,
            cors: None,
            limits: RouteLimits::default(),
        }
    }

    /// Returns the policy, if the route is protected.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        self.protection.as_ref().map(|protection| &protection.policy)
    }
}

/// A `[[route]]` table, whose policy is relative to its profile.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteTable {
    name: Option<String>,
    host: Option<String>,
    #[serde(default, deserialize_with = "methods")]
    methods: Vec<Method>,
    #[serde(default = "Pattern::any")]
    path: Pattern,
    upstream: String,
    #[serde(default = "super::values::yes")]
    protect: bool,
    #[serde(default)]
    report_ignored: bool,
    cors: Option<Cors>,
    #[serde(default)]
    limits: RouteLimits,
    #[serde(default, deserialize_with = "profile")]
    profile: Option<Profile>,
    policy: Option<PolicyOverlay>,
    on_ambiguous: Option<OnAmbiguous>,
    forward: Option<Vec<Forwarded>>,
    derive: Option<String>,
}

impl RouteTable {
    /// Returns the route at this position of the file.
    pub(super) fn into_route(mut self, position: &str) -> Result<Route, InvalidSetting> {
        if self.cors.as_ref().is_some_and(Cors::is_refused_by_browsers) {
            let text = "with `credentials` browsers do not take `*`: name the origins";
            return Err(InvalidSetting::at(["route", position, "cors"], text));
        }
        let host = self.host.take().map(|host| {
            normalised_host(&host)
                .ok_or_else(|| InvalidSetting::at(["route", position, "host"], HOST_ADVICE))
        });
        Ok(Route {
            protection: self.take_protection(position)?,
            name: self.name.unwrap_or_else(|| self.path.to_string()),
            host: host.transpose()?,
            methods: self.methods,
            path: self.path,
            upstream: self.upstream,
            report_ignored: self.report_ignored,
            cors: self.cors,
            limits: self.limits,
        })
    }

    fn take_protection(&mut self, position: &str) -> Result<Option<Protection>, InvalidSetting> {
        if !self.protect {
            let unused = [
                ("profile", self.profile.is_some()),
                ("policy", self.policy.is_some()),
                ("on_ambiguous", self.on_ambiguous.is_some()),
                ("forward", self.forward.is_some()),
                ("derive", self.derive.is_some()),
            ];
            return match unused.into_iter().find(|(_, is_given)| *is_given) {
                Some((field, _)) => {
                    let text = "this route is not protected: remove `protect = false` or this";
                    Err(InvalidSetting::at(["route", position, field], text))
                }
                None => Ok(None),
            };
        }
        let place = match (&self.policy, &self.profile) {
            (Some(_), _) => "policy",
            (None, Some(_)) => "profile",
            (None, None) => "upstream",
        };
        let overlay = self.policy.take().unwrap_or_default();
        let overlaid = overlay.over(self.profile.unwrap_or(Profile::Draft));
        let (policy, scope) = overlaid.map_err(|InvalidPolicy { field, text }| match field {
            Some(field) => InvalidSetting::at_key(["route", position, "policy", &field], text),
            None => InvalidSetting::at(["route", position, place], text),
        })?;
        let on_ambiguous = self.on_ambiguous.unwrap_or(OnAmbiguous::Unknown);
        let mut protection = Protection::with(policy, on_ambiguous);
        protection.scope = scope;
        protection.forward = self.forward.take().unwrap_or_default();
        if let Some(label) = self.derive.take() {
            protection.derive = label;
        }
        Ok(Some(protection))
    }
}

/// Returns a host as requests are compared with it; `None` for one that no request could have.
fn normalised_host(host: &str) -> Option<String> {
    // A dot at the end names the same host (RFC 3986 §3.2.2).
    let host = host.strip_suffix('.').unwrap_or(host);
    let authority: Authority = host.parse().ok()?;
    let is_name = authority.host() == host && !host.contains('*');
    let is_whole = !host.split('.').any(str::is_empty);
    (is_name && is_whole).then(|| host.to_ascii_lowercase())
}

fn profile<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Profile>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(serde::de::Error::custom)
}

const HOST_ADVICE: &str = "write one host without a port, as `api.example.com`; a route without \
     `host` is for all hosts";
