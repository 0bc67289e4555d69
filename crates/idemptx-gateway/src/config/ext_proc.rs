//! The listener for Envoy's external processing filter.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;

use super::invalid_config::InvalidSetting;
use super::values::{count, positive, positive_millis, seconds};
use super::{Config, Listener, ListenerTls, Route, ScopeSource, Upstream};

/// The listener for Envoy's external processing filter; times are milliseconds in the file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExtProc {
    /// The address; port 0 picks a free port.
    pub address: SocketAddr,
    /// The certificate; clear text without one. With `client_ca`, Envoy must have one, too.
    pub tls: Option<ListenerTls>,
    /// The maximum number of requests that are processed at the same time.
    #[serde(deserialize_with = "positive", default = "count::<10_000>")]
    pub streams_max: u32,
    /// The maximum size of one message from Envoy: a head, or a body.
    #[serde(deserialize_with = "positive", default = "message_bytes_max")]
    pub message_bytes_max: usize,
    /// The `message_timeout` of Envoy's filter: no answer of a policy may take longer.
    #[serde(rename = "message_timeout_ms", deserialize_with = "positive_millis")]
    #[serde(default = "seconds::<15>")]
    pub message_timeout: Duration,
    /// Envoy speaks HTTP/2 to the services, so that a response without a length has an end.
    #[serde(default)]
    pub upstream_http2: bool,
}

impl ExtProc {
    /// Returns the listener, for its address and its TLS settings.
    pub(crate) fn listener(&self) -> Listener {
        let (http1, tls) = (false, self.tls.clone());
        Listener { http1, tls, ..Listener::new(self.address.into()) }
    }

    /// Checks that a route's answers fit into the limits.
    pub(super) fn validate(&self, route: &Route, position: &str) -> Result<(), InvalidSetting> {
        let Some(protection) = &route.protection else { return Ok(()) };
        let policy = &protection.policy;
        if protection.scope == ScopeSource::Certificate {
            let text = "Envoy ends TLS: take the scope from a header that it sets, such as \
                        `x-forwarded-client-cert`";
            return Err(InvalidSetting::at(["route", position, "policy", "scope"], text));
        }
        let slowest = (policy.wait + policy.claim_timeout).max(policy.settle_timeout);
        if slowest >= self.message_timeout {
            let text = format!(
                "an answer on route {} can take {slowest:?}: set Envoy's `message_timeout`, and \
                 this, above it",
                route.name
            );
            return Err(InvalidSetting::at(["ext_proc", "message_timeout_ms"], text));
        }
        Ok(())
    }
}

impl Config {
    /// Returns what the gateway needs of this configuration; `None` without a listener.
    #[must_use]
    pub fn into_gateway(mut self) -> Option<Self> {
        self.ext_proc = None;
        (!self.listeners.is_empty()).then_some(self)
    }

    /// Returns what a processor for Envoy needs of this configuration, which forwards nothing; `None`
    /// without `[ext_proc]`.
    ///
    /// The upstreams become names, which keep the records of services apart.
    #[must_use]
    pub fn into_ext_proc(mut self) -> Option<Self> {
        self.ext_proc.as_ref()?;
        self.listeners.clear();
        let names: BTreeSet<_> = self.routes.iter().map(|route| &route.upstream).collect();
        self.upstreams = names.into_iter().map(|name| Upstream::new(name, Vec::new())).collect();
        Some(self)
    }
}

/// A body of the default limits, a head, and room.
const fn message_bytes_max() -> usize {
    4 << 20
}
