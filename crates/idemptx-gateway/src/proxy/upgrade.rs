//! WebSocket connections.
//!
//! The bytes after the request are not forwarded before the upstream has answered 101: until then
//! both connections speak HTTP, and hyper reads no further.

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;

use super::downstream_body::DownstreamBody;
use super::forward::{Peer, rewrite_for_upstream, send_error_response};
use super::headers::has_key;
use super::routing_table::ActiveRoute;
use super::tunnel;
use crate::config::UpstreamVersion;
use crate::request_body::{ClientBody, UpstreamRequestBody};

/// Returns the protocol, if the request may switch to it.
///
/// Only a `GET` with `Upgrade: websocket` may, without a key and without a body.
pub(super) fn permitted_protocol<B>(
    request: &Request<B>,
    route: &ActiveRoute,
) -> Option<HeaderValue> {
    let mut lines = request.headers().get_all(UPGRADE).iter();
    let (Some(protocol), None) = (lines.next(), lines.next()) else { return None };
    let names_it = request.headers().get_all(CONNECTION).iter().any(|line| {
        let mut names = line.as_bytes().split(|byte| *byte == b',');
        names.any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let keyed = match route.config.policy() {
        Some(policy) => policy.header_names.iter().any(|it| request.headers().contains_key(it)),
        None => has_key(request.headers()),
    };
    let has_body = [CONTENT_LENGTH, TRANSFER_ENCODING];
    let has_body = has_body.iter().any(|it| request.headers().contains_key(it));
    let may = *request.method() == Method::GET
        && route.upstream.config.version == UpstreamVersion::Http1
        && !has_body
        && request.version() == http::Version::HTTP_11
        && protocol.as_bytes().eq_ignore_ascii_case(b"websocket");
    (names_it && may && !keyed).then(|| protocol.clone())
}

/// Returns whether the request asks for a permitted upgrade.
pub(super) fn is_wanted<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// Forwards an upgrade request, and joins both connections if the upstream agrees.
pub(super) async fn answer(
    route: &ActiveRoute,
    peer: &Peer,
    mut request: Request<ClientBody>,
    request_id: &HeaderValue,
) -> Response<DownstreamBody> {
    let client = hyper::upgrade::on(&mut request);
    rewrite_for_upstream(route, peer, request_id, &mut request);
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    let mut request = request.map(|_| UpstreamRequestBody::empty());
    let mut response = match route.send(&mut request, false).await {
        Ok(response) => response,
        Err(lost) => {
            let problem = send_error_response(route, &lost, request_id, false);
            return problem.map(DownstreamBody::plain);
        }
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return response.map(DownstreamBody::plain);
    }
    let upstream = hyper::upgrade::on(&mut response);
    // The tunnel goes on counting as a connection of its client, and a drain waits for it; for the
    // upstream it counts as a request.
    let counted = (peer.connection.hold(), response.body_mut().take_connection());
    let idle_max = route.config.limits.pause_timeout(&route.upstream.config);
    tokio::spawn(async move {
        if let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) {
            tunnel::join(TokioIo::new(client), TokioIo::new(upstream), idle_max).await;
        }
        drop(counted);
    });
    response.map(DownstreamBody::plain)
}
