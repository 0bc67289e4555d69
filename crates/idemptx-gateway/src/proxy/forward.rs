//! Forwarding a request, and what is made of there being no answer.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{ACCEPT_ENCODING, FORWARDED, HOST, HeaderName, HeaderValue, VIA};
use http::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use idemptx::tower::RequestBody;
use idemptx::{Execution, Scope};
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use tower_service::Service;

use super::body::{BodyFault, ClientBody, Outgoing};
use super::fault::Fault;
use super::headers::{ATTEMPT, DERIVED, FENCE};
use super::plan::Route;
use crate::config::{Forwarded, ForwardedRule, HostRule, OnAmbiguous, UpstreamVersion};
use crate::traces::Trail;
use crate::upstream::{Lost, UpstreamBody};

/// Who is at the other end of a client's connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    /// The address as a field's value.
    forwarded_for: HeaderValue,
    /// What `Forwarded` tells of every request (RFC 7239 §4).
    forwarded: String,
    tls: bool,
    rule: ForwardedRule,
    /// Whose certificate the client has shown.
    pub(crate) certificate: Option<Scope>,
}

impl Peer {
    pub(crate) fn new(
        address: IpAddr,
        tls: bool,
        rule: ForwardedRule,
        certificate: Option<Scope>,
    ) -> Self {
        let text = address.to_string();
        let forwarded_for = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("_"));
        let scheme = scheme(tls);
        let forwarded = match address {
            IpAddr::V4(address) => format!("for={address};proto={scheme}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\";proto={scheme}"),
        };
        Self { address, forwarded_for, forwarded, tls, rule, certificate }
    }

    pub(crate) const fn scheme(&self) -> &'static str {
        scheme(self.tls)
    }
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// The handler behind the layer: the route's upstream.
#[derive(Clone, Debug)]
pub(super) struct Forward {
    pub(super) route: Arc<Route>,
    pub(super) peer: Arc<Peer>,
}

impl Service<Request<RequestBody<ClientBody>>> for Forward {
    type Response = Response<UpstreamBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<RequestBody<ClientBody>>) -> Self::Future {
        let Self { route, peer } = self.clone();
        let execution = request.extensions_mut().remove::<Execution>();
        // What runs under a key has a task of its own.
        let trail = Trail::of(request.extensions_mut());
        let request = request.map(Outgoing::keyed);
        let forwarded = async move { Ok(forwarded(&route, &peer, request, execution).await) };
        Box::pin(trail.along(forwarded))
    }
}

/// Sends a request on; without an answer, says what is known of it.
pub(super) async fn forwarded(
    route: &Route,
    peer: &Peer,
    mut request: Request<Outgoing>,
    execution: Option<Execution>,
) -> Response<UpstreamBody> {
    address(route, peer, &mut request);
    if let Some(execution) = &execution {
        tell(route, execution, request.headers_mut());
    }
    match route.send(request).await {
        // Nobody has asked for another protocol.
        Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            ended(route, Fault::lost(route))
        }
        Ok(answer) => answer,
        Err(lost) => unanswered(route, &lost, execution.is_some()),
    }
}

/// Makes a request the upstream's: its target, and who has asked.
pub(super) fn address<B>(route: &Route, peer: &Peer, request: &mut Request<B>) {
    let config = &route.upstream.config;
    let host = request.headers().get(HOST).cloned();
    let via = via(request.version());
    let headers = request.headers_mut();
    introduce(peer, host.as_ref(), headers);
    headers.append(VIA, via);
    if config.host == HostRule::Upstream
        && let Some(origin) = config.origins.first()
        && let Ok(value) = HeaderValue::from_str(origin.authority.as_str())
    {
        headers.insert(HOST, value);
    }
    *request.version_mut() = match config.version {
        UpstreamVersion::Http1 => Version::HTTP_11,
        UpstreamVersion::Http2 => {
            absolute(config.origins.iter().any(|origin| origin.tls), request);
            Version::HTTP_2
        }
    };
}

/// HTTP/2 has the host in the target.
fn absolute<B>(tls: bool, request: &mut Request<B>) {
    let host = request.headers_mut().remove(HOST);
    let path = request.uri().path_and_query().cloned();
    if let (Some(host), Some(path)) = (host, path)
        && let Ok(uri) = Uri::builder()
            .scheme(scheme(tls))
            .authority(host.as_bytes())
            .path_and_query(path)
            .build()
    {
        *request.uri_mut() = uri;
    }
}

/// Tells who has asked (RFC 7239, and what was there before it).
fn introduce(peer: &Peer, host: Option<&HeaderValue>, headers: &mut HeaderMap) {
    if peer.rule == ForwardedRule::Replace {
        for name in
            [FORWARDED, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, FORWARDED_PORT, REAL_IP]
        {
            headers.remove(name);
        }
    }
    if headers.contains_key(FORWARDED_FOR) {
        let mut addresses = list(headers, &FORWARDED_FOR);
        let _ = write!(addresses, "{}", peer.address);
        set(headers, FORWARDED_FOR, addresses);
    } else {
        headers.insert(FORWARDED_FOR, peer.forwarded_for.clone());
    }
    let mut forwarded = list(headers, &FORWARDED);
    forwarded.push_str(&peer.forwarded);
    if let Some(Ok(host)) = host.map(HeaderValue::to_str) {
        forwarded.extend([";host=\"", host, "\""]);
    }
    set(headers, FORWARDED, forwarded);
    if !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(peer.scheme()));
    }
    if let Some(host) = host.filter(|_| !headers.contains_key(FORWARDED_HOST)) {
        headers.insert(FORWARDED_HOST, host.clone());
    }
}

/// What a field holds so far, to be added to.
fn list(headers: &HeaderMap, name: &HeaderName) -> String {
    let mut text = String::with_capacity(96);
    for line in headers.get_all(name).iter().filter_map(|line| line.to_str().ok()) {
        text.extend([line, ", "]);
    }
    text
}

fn set(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// RFC 9110 §7.6.3.
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 idemptx",
        Version::HTTP_2 => "2 idemptx",
        _ => "1.1 idemptx",
    })
}

/// Tells the upstream of the execution that it is part of.
fn tell(route: &Route, execution: &Execution, headers: &mut HeaderMap) {
    // What is stored must suit every retry, whatever codings it accepts.
    headers.remove(ACCEPT_ENCODING);
    let Some(protection) = &route.config.protection else { return };
    for what in &protection.forward {
        let (name, value) = match what {
            Forwarded::Attempt => (ATTEMPT, execution.attempt().into()),
            Forwarded::Fence => (FENCE, execution.fence().into()),
            Forwarded::Derived => {
                match HeaderValue::from_str(&execution.derive(&protection.derive)) {
                    Ok(value) => (DERIVED, value),
                    Err(_) => continue,
                }
            }
        };
        headers.insert(name, value);
    }
}

/// What is known of a request without an answer.
///
/// A request under a key was read to its end before it was sent: what breaks off then is ours.
pub(super) fn unanswered(route: &Route, lost: &Lost, keyed: bool) -> Response<UpstreamBody> {
    let fault = match lost {
        Lost::Unsent(error) if error.kind() == io::ErrorKind::QuotaExceeded => Fault::Busy,
        Lost::Unsent(_) => Fault::Unreachable,
        Lost::Late => Fault::late(route),
        Lost::Ambiguous => Fault::lost(route),
        Lost::Broken(error) => match client_fault(error) {
            Some(fault) if !keyed => fault,
            _ => Fault::lost(route),
        },
    };
    tracing::warn!(
        route = route.config.name,
        upstream = route.upstream.config.name,
        "no answer: {}",
        told(lost)
    );
    ended(route, fault)
}

/// The answer to a fault, with what the engine has to know of it.
fn ended(route: &Route, fault: Fault) -> Response<UpstreamBody> {
    let mut response = fault.into_response();
    let protection = route.config.protection.as_ref();
    let word = match (fault, protection.map(|it| it.on_ambiguous)) {
        (Fault::Failed { .. } | Fault::Late { .. }, Some(OnAmbiguous::Unknown)) => "unknown",
        _ => "release",
    };
    response.headers_mut().insert(IDEMPOTENCY_OUTCOME, HeaderValue::from_static(word));
    response
}

/// Whether a request could not be sent to its end because of its client.
fn client_fault(error: &hyper::Error) -> Option<Fault> {
    if !error.is_user() {
        return None;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref::<BodyFault>() {
            return Some(match fault {
                BodyFault::TooLarge => Fault::BodyTooLarge,
                BodyFault::TooSlow => Fault::BodyTooSlow,
            });
        }
        cause = error.source();
    }
    Some(Fault::BodyBroken)
}

fn told(lost: &Lost) -> String {
    match lost {
        Lost::Unsent(error) => format!("never sent: {error}"),
        Lost::Late => "sent, and not answered in time".to_owned(),
        Lost::Ambiguous => "sent, and the end of the answer can be told in two ways".to_owned(),
        Lost::Broken(error) => match error.source() {
            Some(cause) => format!("sent, then {error}: {cause}"),
            None => format!("sent, then {error}"),
        },
    }
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
