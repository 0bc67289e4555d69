//! What the program does about traces where they are not built in: nothing.

use http::{Extensions, Request};
use idemptx_core::lease::Lease;

use crate::config;
use crate::config::Origin;
use crate::metrics::{Operation, StepResult, UpstreamAnswer};
use crate::observe::Ended;
use crate::proxy::{Peer, Route};
use crate::serve::StartError;

#[derive(Debug)]
pub(crate) struct Traces;

impl Traces {
    pub(crate) const fn none() -> Self {
        Self
    }

    pub(crate) const fn start(_: Option<&config::Traces>) -> Result<Self, StartError> {
        Ok(Self)
    }

    pub(crate) const fn check(_: Option<&config::Traces>) -> Result<(), StartError> {
        Ok(())
    }

    pub(crate) const fn passage<B>(&self, _: &mut Request<B>, _: &Peer) -> Passage {
        Passage
    }

    pub(crate) const fn step(&self, _: Operation, _: Option<&Lease>) -> Step {
        Step
    }

    pub(crate) const fn granted(&self, _: &Lease) {}

    pub(crate) const fn over(&self, _: &Lease) {}

    pub(crate) const fn dropped(&self) -> u64 {
        0
    }

    pub(crate) async fn end(&self) {}
}

pub(crate) struct Passage;

impl Passage {
    pub(crate) const fn routed(&self, _: &Route) {}

    pub(crate) fn along<F>(&self, future: F) -> F {
        future
    }

    pub(crate) const fn end(self, _: &Ended<'_>) {}
}

pub(crate) struct Trail;

impl Trail {
    pub(crate) const fn of(_: &mut Extensions) -> Self {
        Self
    }

    pub(crate) fn along<F>(&self, future: F) -> F {
        future
    }
}

pub(crate) struct Sending;

impl Sending {
    pub(crate) const fn begin<B>(_: &str, _: &Origin, _: usize, _: &mut Request<B>) -> Self {
        Self
    }

    pub(crate) const fn end(self, _: UpstreamAnswer) {}
}

pub(crate) struct Step;

impl Step {
    pub(crate) const fn is_recording(&self) -> bool {
        false
    }

    pub(crate) const fn end(self, _: StepResult) {}
}
