//! Marks of an exchange on its response.

use http::{HeaderMap, HeaderValue, Response};
use idemptx_core::exchange::{Operation, Rules};
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::outcome::{Outcome, Rejection};
use idemptx_core::problem::Problem;
use idemptx_core::response_headers::mark;
use idemptx_core::store::Store;

use super::body::{ResponseBody, Whole};
use crate::engine::{Inner, RenderFn};

/// Makes refusals, and adds to responses what the exchange has to say to the client and to the
/// layers outside.
pub(super) struct Marker<'a> {
    pub(super) rules: &'a Rules,
    pub(super) operation: Option<&'a Operation>,
    pub(super) print: Option<&'a Fingerprint>,
    /// The content type of a gRPC call.
    pub(super) grpc: Option<&'a HeaderValue>,
    pub(super) render: Option<&'a RenderFn>,
    /// Set if the outcome is in the extensions of the response, too, and not in its body alone.
    pub(super) fills_extensions: bool,
}

impl<'a> Marker<'a> {
    pub(super) const fn of(rules: &'a Rules) -> Self {
        let (operation, print, grpc, render) = (None, None, None, None);
        Self { rules, operation, print, grpc, render, fills_extensions: true }
    }

    pub(super) fn before_body<S: Store>(
        engine: &'a Inner<S>,
        grpc: Option<&'a HeaderValue>,
    ) -> Self {
        let (render, fills_extensions) = (engine.render(), engine.fills_extensions());
        Self { grpc, render, fills_extensions, ..Self::of(engine.rules()) }
    }

    /// Makes the response of a refusal, in the form that the client of this call understands.
    pub(super) fn refusal<C>(&self, rejection: &Rejection) -> Response<ResponseBody<C>> {
        let response = match (self.grpc, self.render) {
            (Some(grpc), _) => Problem::from(rejection).into_grpc_response(grpc.clone()),
            (None, Some(render)) => render(rejection),
            (None, None) => Problem::from(rejection).into_response(),
        };
        let mut response =
            response.map(|body| ResponseBody::whole(Whole::of(body, HeaderMap::new())));
        response.extensions_mut().insert(rejection.clone());
        response
    }

    /// Adds to a response what the client and the layers outside are to know of its outcome.
    pub(super) fn mark<C>(
        &self,
        mut response: Response<ResponseBody<C>>,
        outcome: Outcome,
    ) -> Response<ResponseBody<C>> {
        mark(response.headers_mut(), self.rules, &outcome, self.operation, self.print);
        if self.fills_extensions {
            response.extensions_mut().insert(outcome.clone());
            if let Some(operation) = self.operation {
                response.extensions_mut().insert(operation.id());
            }
        }
        response.body_mut().end_exchange(outcome, self.operation.cloned());
        response
    }
}
