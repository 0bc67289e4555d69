//! Active health checks, each over a new connection.
//!
//! An unhealthy address is used as a last resort, like one that refuses connections; it is never
//! excluded.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::Arc;

use http::header::{HOST, USER_AGENT};
use http::{HeaderValue, Request, StatusCode, Uri, Version};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::address::Address;
use super::connection;
use crate::config::{HealthCheck, UpstreamVersion};
use crate::request_body::UpstreamRequestBody;

/// Running checks; dropping them stops them.
#[derive(Debug)]
pub(super) struct HealthChecks(Vec<AbortHandle>);

impl HealthChecks {
    pub(super) fn start(name: &str, addresses: &[Arc<Address>], health: &HealthCheck) -> Self {
        let check = |address: &Arc<Address>| {
            let (name, address, health) = (name.to_owned(), Arc::clone(address), health.clone());
            tokio::spawn(check_periodically(name, address, health)).abort_handle()
        };
        Self(addresses.iter().map(check).collect())
    }

    pub(super) fn stop(&self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for HealthChecks {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn check_periodically(upstream: String, address: Arc<Address>, health: HealthCheck) {
    // A random delay keeps gateways and addresses from checking in step.
    sleep(health.interval.mul_f64(random())).await;
    // Consecutive results that contradict the current health.
    let mut contrary = 0;
    loop {
        let result = timeout(health.timeout, check(&address, &health)).await;
        let result = result.unwrap_or_else(|_| Err("no response in time".to_owned()));
        let (is_healthy, was_healthy) = (result.is_ok(), !address.health().is_unhealthy());
        contrary = if is_healthy == was_healthy { 0 } else { contrary + 1 };
        let needed = if is_healthy { health.healthy_after } else { health.unhealthy_after };
        if contrary >= needed {
            contrary = 0;
            address.health().set_checked(is_healthy);
            match result {
                Ok(()) => tracing::info!(upstream, address = %address.origin, "healthy again"),
                Err(reason) => tracing::warn!(
                    upstream,
                    address = %address.origin,
                    "unhealthy; used as last resort: {reason}"
                ),
            }
        }
        sleep(health.interval.mul_f64(0.9 + 0.2 * random())).await;
    }
}

/// Sends one probe; returns what is wrong with the result.
async fn check(address: &Address, health: &HealthCheck) -> Result<(), String> {
    match send_probe(address, health).await {
        Ok(status) if health.statuses.contains(status) => Ok(()),
        Ok(status) => Err(format!("status {}", status.as_u16())),
        Err(error) => Err(crate::error::error_text(&error)),
    }
}

async fn send_probe(address: &Address, health: &HealthCheck) -> io::Result<StatusCode> {
    let (origin, tls, limits) = (&address.origin, address.tls(), address.head_limits());
    let request = Request::get(health.path.as_str()).header(USER_AGENT, USER_AGENT_VALUE);
    let mut request = request.body(UpstreamRequestBody::empty()).map_err(io::Error::other)?;
    let answer = match address.version() {
        UpstreamVersion::Http1 => {
            let host =
                HeaderValue::try_from(origin.authority.as_str()).map_err(io::Error::other)?;
            request.headers_mut().insert(HOST, host);
            let mut sender = connection::http1(origin, tls, health.timeout, limits, ()).await?;
            sender.send_request(request).await
        }
        UpstreamVersion::Http2 => {
            *request.version_mut() = Version::HTTP_2;
            let (scheme, authority) = (origin.scheme(), &origin.authority);
            let target = format!("{scheme}://{authority}{}", health.path);
            *request.uri_mut() = Uri::try_from(target).map_err(io::Error::other)?;
            let mut sender =
                connection::http2(origin, tls, health.timeout, limits, Arc::default()).await?;
            sender.send_request(request).await
        }
    };
    Ok(answer.map_err(io::Error::other)?.status())
}

/// A random number from 0 to 1.
pub(crate) fn random() -> f64 {
    let drawn = RandomState::new().hash_one(());
    f64::from(drawn as u32) / f64::from(u32::MAX)
}

const USER_AGENT_VALUE: HeaderValue = HeaderValue::from_static("idemptx");
