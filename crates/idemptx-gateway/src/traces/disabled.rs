//! No-op tracing, for builds without the feature `otel`.

use std::sync::Arc;

use http::{Extensions, Request};
use idemptx_core::lease::Lease;

use crate::config;
use crate::config::{Origin, Pattern};
use crate::error::StartError;
use crate::network::ClientAddress;
use crate::observation::CompletedRequest;
use crate::observation::{StoreOperation, StoreResult, UpstreamResult};

#[derive(Debug)]
pub(crate) struct Tracer;

impl Tracer {
    pub(crate) const fn disabled() -> Self {
        Self
    }

    pub(crate) const fn start(_: Option<&config::Traces>) -> Result<Self, StartError> {
        Ok(Self)
    }

    pub(crate) const fn check(_: Option<&config::Traces>) -> Result<(), StartError> {
        Ok(())
    }

    pub(crate) const fn start_request<B>(
        &self,
        _: &mut Request<B>,
        _: &str,
        _: ClientAddress,
    ) -> RequestSpan {
        RequestSpan
    }

    pub(crate) const fn start_step(&self, _: StoreOperation, _: Option<&Lease>) -> StoreSpan {
        StoreSpan
    }

    pub(crate) const fn lease_granted(&self, _: &Lease) {}

    pub(crate) const fn lease_ended(&self, _: &Lease) {}

    pub(crate) const fn dropped(&self) -> u64 {
        0
    }

    pub(crate) async fn end(&self) {}
}

pub(crate) struct RequestSpan;

impl RequestSpan {
    pub(crate) const fn routed(&self, _: &Pattern, _: &Arc<str>) {}

    pub(crate) fn instrument<F>(&self, future: F) -> F {
        future
    }

    pub(crate) const fn end(self, _: &CompletedRequest<'_>) {}
}

pub(crate) struct TraceContext;

impl TraceContext {
    pub(crate) const fn of(_: &mut Extensions) -> Self {
        Self
    }

    pub(crate) fn instrument<F>(&self, future: F) -> F {
        future
    }
}

pub(crate) struct UpstreamSpan;

impl UpstreamSpan {
    pub(crate) const fn begin<B>(_: &str, _: &Origin, _: usize, _: &mut Request<B>) -> Self {
        Self
    }

    pub(crate) const fn end(self, _: UpstreamResult) {}
}

pub(crate) struct StoreSpan;

impl StoreSpan {
    pub(crate) const fn is_recording(&self) -> bool {
        false
    }

    pub(crate) const fn end(self, _: StoreResult) {}
}
