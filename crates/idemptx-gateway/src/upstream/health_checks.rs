//! Active checks: whether an address answers as it should, asked over a connection of its own.
//!
//! A sick address is tried last, as one that could not be connected to; it is never left out.

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
use crate::proxy::UpstreamRequestBody;

/// Checks that go on until they are stopped.
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
    // Not all gateways, and not all addresses, at the same time.
    sleep(health.interval.mul_f64(random())).await;
    // Answers in a row that say the contrary of what is known.
    let mut contrary = 0;
    loop {
        let result = timeout(health.timeout, check(&address, &health)).await;
        let result = result.unwrap_or_else(|_| Err("it did not answer in time".to_owned()));
        let (is_healthy, was_healthy) = (result.is_ok(), !address.is_unhealthy());
        contrary = if is_healthy == was_healthy { 0 } else { contrary + 1 };
        let needed = if is_healthy { health.healthy_after } else { health.unhealthy_after };
        if contrary >= needed {
            contrary = 0;
            address.set_health(is_healthy);
            match result {
                Ok(()) => tracing::info!(upstream, address = %address.origin, "it is well again"),
                Err(reason) => tracing::warn!(
                    upstream,
                    address = %address.origin,
                    "it is sick, and tried last: {reason}"
                ),
            }
        }
        sleep(health.interval.mul_f64(0.9 + 0.2 * random())).await;
    }
}

/// Asks once; what is wrong, if anything is.
async fn check(address: &Address, health: &HealthCheck) -> Result<(), String> {
    match send_probe(address, health).await {
        Ok(status) if health.statuses.contains(status) => Ok(()),
        Ok(status) => Err(format!("it answered {}", status.as_u16())),
        Err(error) => Err(crate::error::error_text(&error)),
    }
}

async fn send_probe(address: &Address, health: &HealthCheck) -> io::Result<StatusCode> {
    let (origin, tls) = (&address.origin, address.tls());
    let request = Request::get(health.path.as_str()).header(USER_AGENT, USER_AGENT_VALUE);
    let mut request = request.body(UpstreamRequestBody::empty()).map_err(io::Error::other)?;
    let answer = match address.version() {
        UpstreamVersion::Http1 => {
            let host =
                HeaderValue::try_from(origin.authority.as_str()).map_err(io::Error::other)?;
            request.headers_mut().insert(HOST, host);
            let mut sender = connection::http1(origin, tls, health.timeout, ()).await?;
            sender.send_request(request).await
        }
        UpstreamVersion::Http2 => {
            *request.version_mut() = Version::HTTP_2;
            let target = format!("{origin}{}", health.path);
            *request.uri_mut() = Uri::try_from(target).map_err(io::Error::other)?;
            let mut sender = connection::http2(origin, tls, health.timeout).await?;
            sender.send_request(request).await
        }
    };
    Ok(answer.map_err(io::Error::other)?.status())
}

/// From 0 to 1, and different for everybody who asks.
fn random() -> f64 {
    let drawn = RandomState::new().hash_one(());
    f64::from(drawn as u32) / f64::from(u32::MAX)
}

const USER_AGENT_VALUE: HeaderValue = HeaderValue::from_static("idemptx");
