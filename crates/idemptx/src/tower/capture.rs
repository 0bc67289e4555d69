//! The inner service's call under a claim, and what a store keeps of its response.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::response::Parts;
use http::{Request, Response};
use http_body::Body;
use idemptx_core::exchange::{Directive, Handled, InvalidDirective, Rules, classified_status};
use idemptx_core::policy::Mode;
use idemptx_core::response::{StorableParts, StoredResponse, is_live};
use idemptx_core::store::Store;
use tower_service::Service;

use super::body::{BodyError, Read, RequestBody, ResponseBody, Whole, read};
use super::live::LiveBody;
use crate::drive::{Work, WorkResult, body_flow};
use crate::engine::Inner;
use crate::execution::Execution;

/// A request, and the service that is ready for it.
///
/// Boxed wherever it is kept: what moves from future to future is a pointer.
pub(super) struct Call<T, B> {
    pub(super) inner: T,
    pub(super) request: Request<RequestBody<B>>,
}

/// The inner service's call, as the driver runs it.
pub(super) struct Handler<S, T, B> {
    pub(super) call: Box<Call<T, B>>,
    pub(super) engine: Arc<Inner<S>>,
}

/// The result of the inner service's call.
pub(super) enum HandlerOutput<C, E> {
    /// A response whose body is whole, or flowing.
    Response(Response<ResponseBody<C>>),
    /// The service's error.
    Error(E),
}

impl<S, T, B, C> Work for Handler<S, T, B>
where
    S: Store,
    T: Service<Request<RequestBody<B>>, Response = Response<C>> + Send + 'static,
    T::Future: Send + 'static,
    T::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    type Product = HandlerOutput<C, T::Error>;

    async fn run(self, execution: Execution) -> WorkResult<Self::Product> {
        let Self { call, engine } = self;
        let running = {
            let Call { mut inner, mut request } = *call;
            request.extensions_mut().insert(execution.clone());
            inner.call(request)
        };
        match running.await {
            Err(error) => {
                let product = Some(HandlerOutput::Error(error));
                WorkResult { product, ..WorkResult::failed(execution.outcome()) }
            }
            Ok(response) => capture(response, &execution, &engine).await,
        }
    }
}

/// An extension of a response that no retry may get, although it can be kept: only its head is
/// stored, and a retry is refused with `result-unavailable`.
///
/// For a response whose end cannot be told from a break.
#[derive(Clone, Copy, Debug)]
pub struct NotReplayable;

/// Reads a response's body as far as it may be stored; a larger or live one flows on.
async fn capture<S, C, E>(
    response: Response<C>,
    execution: &Execution,
    engine: &Inner<S>,
) -> WorkResult<HandlerOutput<C, E>>
where
    S: Store,
    C: Body<Data = Bytes> + Send + 'static,
    C::Error: Into<BodyError>,
{
    let rules = engine.rules();
    let (mut parts, body) = response.into_parts();
    let status = parts.status;
    let said = Directive::take(&mut parts.headers);
    let may_replay = parts.extensions.remove::<NotReplayable>().is_none();
    let body = Box::pin(body);
    let is_live = is_live(status, &parts.headers, body.size_hint().exact());
    let limit = if is_live { 0 } else { rules.policy().response_bytes_max as u64 };
    let read = if is_live && !body.is_end_stream() {
        Read::TooLarge(Whole::default(), body)
    } else {
        read(body, limit, |_| {}).await
    };
    match read {
        Read::Broken(half, error) => {
            let directive = directive(&mut parts, said, execution);
            // The client gets what it would get without this layer: half a body.
            let product = (rules.policy().mode == Mode::Shadow).then(|| {
                let body = RequestBody::<Pin<Box<C>>>::broken(half, error);
                let body = ResponseBody::live(LiveBody::new(body, true));
                HandlerOutput::Response(Response::from_parts(parts, body))
            });
            let handled = Handled::BrokenOff { directive };
            WorkResult { handled, product, payload: None, flow: None }
        }
        Read::Whole(mut whole) => {
            let said = said.or_else(|| Directive::take(whole.trailers_mut()?));
            let directive = directive(&mut parts, said, execution);
            let (headers, body, trailers) = (&parts.headers, whole.joined(), whole.trailers());
            let replay = &rules.policy().replay;
            let classified = classified_status(status, headers, &body, trailers);
            let stored = StorableParts::of(status, headers, &body, trailers, replay);
            let (payload, handled) = if may_replay && stored.is_storable() {
                let payload = stored.encode_after(execution.description());
                (payload, Handled::Whole { status: classified, directive })
            } else {
                let payload = head(&parts, rules, execution);
                (payload, Handled::Partial { status: classified, directive })
            };
            drop(body);
            let response = Response::from_parts(parts, ResponseBody::whole(whole));
            let product = Some(HandlerOutput::Response(response));
            WorkResult { handled, product, payload: Some(payload), flow: None }
        }
        Read::TooLarge(prefix, rest) => {
            let directive = directive(&mut parts, said, execution);
            let payload = Some(head(&parts, rules, execution));
            let mut body = RequestBody::inner(rest);
            body.put_back(prefix);
            let (flow, watch) = body_flow();
            let declared = parts.headers.get(CONTENT_LENGTH);
            let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
            let body = LiveBody::new(body, is_live);
            let body = body.until_end(flow, declared, engine.open_body());
            let response = Response::from_parts(parts, ResponseBody::live(body));
            let product = Some(HandlerOutput::Response(response));
            let handled = Handled::Flowing { status, directive };
            WorkResult { handled, product, payload, flow: Some(watch) }
        }
    }
}

/// Returns the handler's decision: an extension of its response, or else the field that was `said`,
/// or else [`Execution::set_outcome`].
fn directive(
    parts: &mut Parts,
    said: Option<Result<Directive, InvalidDirective>>,
    execution: &Execution,
) -> Option<Directive> {
    let extension = parts.extensions.remove::<Directive>();
    let field = said.map(|said| {
        said.unwrap_or_else(|invalid| {
            #[cfg(feature = "tracing")]
            crate::engine::warn_of_directive(invalid);
            parts.extensions.insert(invalid);
            Directive::Unknown
        })
    });
    extension.or(field).or_else(|| execution.outcome())
}

/// Encodes what is stored of a response whose body cannot be.
fn head(parts: &Parts, rules: &Rules, execution: &Execution) -> Bytes {
    let head = StoredResponse::capture_head(parts.status, &parts.headers, &rules.policy().replay);
    head.encode_after(execution.description())
}
