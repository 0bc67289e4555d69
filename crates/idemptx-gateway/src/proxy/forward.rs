//! Forwards requests, and classifies failures.

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, FORWARDED, HOST, HeaderName, HeaderValue, VIA,
};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use idemptx::tower::RequestBody;
use idemptx::{Execution, Scope};
use idemptx_core::response_headers::IDEMPOTENCY_OUTCOME;
use tower_service::Service;

use super::fault::ProxyError;
use super::headers::{ATTEMPT, DERIVED, FENCE};
use super::request_id::REQUEST_ID;
use super::routing_table::ActiveRoute;
use super::target;
use crate::config::{Forwarded, ForwardedRule, Listener, Network, OnAmbiguous, UpstreamVersion};
use crate::connection_limit::RequestConnection;
use crate::network::ClientAddress;
use crate::request_body::{BodyLimitError, ClientBody, UpstreamRequestBody};
use crate::traces::TraceContext;
use crate::upstream::{SendError, UpstreamBody};

/// The client's end of a connection.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: ClientAddress,
    /// The address, as a field value; a Unix socket adds nothing to `X-Forwarded-For`.
    forwarded_for: Option<HeaderValue>,
    /// The part of the element of `Forwarded` (RFC 7239 §4) that all requests share.
    forwarded: String,
    tls: bool,
    rule: ForwardedRule,
    /// The proxies whose word counts, of which this peer is one; empty if it is none.
    trusted: Arc<[Network]>,
    /// The client, as its certificate names it.
    pub(crate) certificate: Option<Scope>,
    pub(super) connection: RequestConnection,
    /// The host of the last request: most connections name only one.
    last_host: Mutex<Option<Arc<KnownHost>>>,
}

/// A host as requests name it, and what follows from it.
#[derive(Debug)]
pub(super) struct KnownHost {
    /// `Host`, once the target is resolved.
    line: HeaderValue,
    /// In lower case.
    pub(super) name: Box<str>,
    /// The element of `Forwarded` for requests of this peer to this host.
    forwarded: Option<HeaderValue>,
}

impl Peer {
    pub(crate) fn new(
        address: ClientAddress,
        tls: bool,
        listener: &Listener,
        certificate: Option<Scope>,
        connection: RequestConnection,
    ) -> Self {
        let proxies = &listener.trusted_proxies;
        let is_trusted = proxies.iter().any(|network| network.contains(address));
        let rule = match (proxies.is_empty(), is_trusted) {
            (true, _) => listener.forwarded,
            (false, true) => ForwardedRule::Append,
            (false, false) => ForwardedRule::Replace,
        };
        let trusted = if is_trusted { proxies.as_slice().into() } else { Arc::default() };
        let forwarded_for = match address {
            ClientAddress::Ip(address) => HeaderValue::try_from(address.to_string()).ok(),
            ClientAddress::UnixSocket => None,
        };
        let scheme = scheme(tls);
        let forwarded = match address {
            ClientAddress::Ip(IpAddr::V4(address)) => format!("for={address};proto={scheme}"),
            ClientAddress::Ip(IpAddr::V6(address)) => {
                format!("for=\"[{address}]\";proto={scheme}")
            }
            // RFC 7239 §6.2.
            ClientAddress::UnixSocket => format!("for=unknown;proto={scheme}"),
        };
        Self {
            address,
            forwarded_for,
            forwarded,
            tls,
            rule,
            trusted,
            certificate,
            connection,
            last_host: Mutex::default(),
        }
    }

    /// Resolves the target of a request, as [`target::resolve`] does, and returns its host.
    pub(super) fn resolve<B>(
        &self,
        request: &mut Request<B>,
    ) -> Result<Arc<KnownHost>, ProxyError> {
        let mut lines = request.headers().get_all(HOST).iter();
        if let (Some(line), None) = (lines.next(), lines.next())
            && let Some(known) = self.known_host(line)
            && target::is_origin_form(request)
        {
            return Ok(known);
        }
        target::resolve(request)?;
        let line = request.headers().get(HOST).ok_or(ProxyError::BadTarget)?;
        let known = Arc::new(KnownHost {
            // A copy: the request's own is a part of the buffer that it was read into.
            line: HeaderValue::from_bytes(line.as_bytes()).map_err(|_| ProxyError::BadTarget)?,
            name: target::host_in(line).into(),
            forwarded: self.forwarded_element(Some(line)),
        });
        *self.last_host.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&known));
        Ok(known)
    }

    /// Returns what follows from a host, if the last request had named it, too.
    fn known_host(&self, line: &HeaderValue) -> Option<Arc<KnownHost>> {
        let last = self.last_host.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|last| last.line == line).map(Arc::clone)
    }

    /// Returns the element that a request to this host adds to `Forwarded` (RFC 7239 §4).
    fn forwarded_element(&self, host: Option<&HeaderValue>) -> Option<HeaderValue> {
        let element = match host.map(HeaderValue::to_str) {
            Some(Ok(host)) => format!("{};host=\"{host}\"", self.forwarded),
            _ => self.forwarded.clone(),
        };
        HeaderValue::try_from(element).ok()
    }

    pub(crate) const fn scheme(&self) -> &'static str {
        scheme(self.tls)
    }

    /// Returns the address of the client, as far as trusted proxies forward it.
    ///
    /// # Security
    ///
    /// From the last hop back, what the last trusted proxy says counts: anything before that may
    /// have been sent by the client.
    pub(crate) fn client(&self, headers: &HeaderMap) -> ClientAddress {
        if self.trusted.is_empty() {
            return self.address;
        }
        let mut client = self.address;
        for hop in forwarded_hops(headers).into_iter().rev() {
            let Some(address) = hop_address(&hop) else { break };
            client = address.into();
            if !self.trusted.iter().any(|network| network.contains(address)) {
                break;
            }
        }
        client
    }
}

const fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

/// The inner service of the idempotency layer: forwards to the route's upstream.
#[derive(Clone, Debug)]
pub(super) struct ForwardService {
    pub(super) route: Arc<ActiveRoute>,
    pub(super) peer: Arc<Peer>,
    pub(super) request_id: HeaderValue,
}

impl Service<Request<RequestBody<ClientBody>>> for ForwardService {
    type Response = Response<UpstreamBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<RequestBody<ClientBody>>) -> Self::Future {
        let Self { route, peer, request_id } = self.clone();
        let execution = request.extensions_mut().remove::<Execution>();
        // Requests under a key may run in a task other than the connection's.
        let context = TraceContext::of(request.extensions_mut());
        let is_read = execution.is_some();
        let request = request.map(|body| UpstreamRequestBody::layered(body, is_read));
        let forwarded = async move {
            Ok(forward_request(&route, &peer, request, execution, &request_id).await)
        };
        Box::pin(context.instrument(forwarded))
    }
}

/// Forwards a request; a failure becomes a problem response.
pub(super) async fn forward_request(
    route: &ActiveRoute,
    peer: &Peer,
    mut request: Request<UpstreamRequestBody>,
    execution: Option<Execution>,
    request_id: &HeaderValue,
) -> Response<UpstreamBody> {
    rewrite_for_upstream(route, peer, request_id, &mut request);
    if let Some(execution) = &execution {
        add_execution_headers(route, execution, request.headers_mut());
    }
    state_absent_body(&mut request);
    match route.send(&mut request, execution.is_some()).await {
        // The request did not ask for an upgrade.
        Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            fault_response(route, ProxyError::lost(route))
        }
        Ok(answer) => answer,
        Err(lost) => send_error_response(route, &lost, request_id, execution.is_some()),
    }
}

/// Sets the version and adds the proxy fields.
pub(super) fn rewrite_for_upstream<B>(
    route: &ActiveRoute,
    peer: &Peer,
    request_id: &HeaderValue,
    request: &mut Request<B>,
) {
    let config = &route.upstream.config;
    let host = request.headers().get(HOST).cloned();
    let via = via(request.version());
    let headers = request.headers_mut();
    add_forwarded_headers(peer, host.as_ref(), headers);
    headers.append(VIA, via);
    headers.insert(REQUEST_ID, request_id.clone());
    *request.version_mut() = match config.version {
        UpstreamVersion::Http1 => Version::HTTP_11,
        UpstreamVersion::Http2 => Version::HTTP_2,
    };
}

/// States that there is no body where a server may require it (RFC 9110 §8.6).
///
/// HTTP/2 ends a request with its head, which HTTP/1.1 cannot express.
fn state_absent_body(request: &mut Request<UpstreamRequestBody>) {
    let expects_body = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
    let headers = request.headers();
    if expects_body
        && request.version() == Version::HTTP_11
        && request.body().is_end_stream()
        && !headers.contains_key(CONTENT_LENGTH)
    {
        request.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
}

/// Adds `Forwarded` (RFC 7239) and the older `X-Forwarded-*`.
fn add_forwarded_headers(peer: &Peer, host: Option<&HeaderValue>, headers: &mut HeaderMap) {
    // The clients of most gateways send none of them; one scan is cheaper than the removals.
    let mut given = headers.keys().any(|name| PROXY_FIELDS.contains(&name.as_str()));
    if given && peer.rule == ForwardedRule::Replace {
        for name in PROXY_FIELDS {
            headers.remove(name);
        }
        given = false;
    }
    headers.reserve(ADDED_LINES);
    if let Some(forwarded_for) = &peer.forwarded_for {
        if given && headers.contains_key(FORWARDED_FOR) {
            let mut addresses = list(headers, &FORWARDED_FOR);
            let _ = write!(addresses, "{}", peer.address);
            set(headers, FORWARDED_FOR, addresses);
        } else {
            headers.insert(FORWARDED_FOR, forwarded_for.clone());
        }
    }
    let element = match host.and_then(|line| peer.known_host(line)) {
        Some(known) => known.forwarded.clone(),
        None => peer.forwarded_element(host),
    };
    if let Some(element) = element {
        if given && headers.contains_key(FORWARDED) {
            let elements = list(headers, &FORWARDED) + element.to_str().unwrap_or_default();
            set(headers, FORWARDED, elements);
        } else {
            headers.insert(FORWARDED, element);
        }
    }
    if !given || !headers.contains_key(FORWARDED_PROTO) {
        headers.insert(FORWARDED_PROTO, HeaderValue::from_static(peer.scheme()));
    }
    if let Some(host) = host.filter(|_| !given || !headers.contains_key(FORWARDED_HOST)) {
        headers.insert(FORWARDED_HOST, host.clone());
    }
}

/// Returns the hops that a request has come over, the nearest last: those of `X-Forwarded-For`, or
/// else of `Forwarded` (RFC 7239 §5.2).
fn forwarded_hops(headers: &HeaderMap) -> Vec<String> {
    let elements = |name: &HeaderName| -> Vec<String> {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        lines.flat_map(|line| line.split(',')).map(|it| it.trim().to_owned()).collect()
    };
    if headers.contains_key(FORWARDED_FOR) {
        return elements(&FORWARDED_FOR);
    }
    let hop = |element: String| {
        let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
        let node = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"));
        // An element without `for` is a hop all the same.
        node.map(|(_, node)| node.trim_matches('"').to_owned()).unwrap_or_default()
    };
    elements(&FORWARDED).into_iter().map(hop).collect()
}

/// Parses an address with or without brackets and port.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let bare = hop.trim_start_matches('[').split(']').next()?;
    bare.parse().ok().or_else(|| hop.parse().ok().map(|it: SocketAddr| it.ip()))
}

/// Returns a list field's value, ready to be appended to.
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

/// The `Via` element (RFC 9110 §7.6.3).
fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 idemptx",
        Version::HTTP_2 => "2 idemptx",
        _ => "1.1 idemptx",
    })
}

/// Adds the fields that describe the execution.
pub(super) fn add_execution_headers(
    route: &ActiveRoute,
    execution: &Execution,
    headers: &mut HeaderMap,
) {
    // A stored response must suit every retry, whatever codings that one accepts.
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

/// Classifies and logs a failure.
///
/// The body of a request under a key was read completely before, so a client cannot cause it.
pub(super) fn send_error_response(
    route: &ActiveRoute,
    lost: &SendError,
    request_id: &HeaderValue,
    keyed: bool,
) -> Response<UpstreamBody> {
    let fault = match lost {
        SendError::Unsent(error) if error.kind() == io::ErrorKind::QuotaExceeded => {
            ProxyError::Busy
        }
        SendError::Unsent(_) => ProxyError::Unreachable,
        SendError::Late => ProxyError::late(route),
        SendError::Ambiguous => ProxyError::lost(route),
        SendError::Broken(error) => match client_fault(error) {
            Some(fault) if !keyed => fault,
            _ => ProxyError::lost(route),
        },
    };
    route.log_lost(Some(request_id), &lost.to_string());
    fault_response(route, fault)
}

/// Returns the problem response, with the outcome that the engine applies.
///
/// The gateway runs no handler whose panic could decide: `on_ambiguous` stands in the place of
/// `on_panic`, and a generated 502 or 504 states the outcome in `Idempotency-Outcome`.
pub(super) fn fault_response(route: &ActiveRoute, fault: ProxyError) -> Response<UpstreamBody> {
    let mut response = fault.into_response();
    let protection = route.config.protection.as_ref();
    let word = match (fault, protection.map(|it| it.on_ambiguous)) {
        (ProxyError::Failed { .. } | ProxyError::Late { .. }, Some(OnAmbiguous::Unknown)) => {
            "unknown"
        }
        _ => "release",
    };
    response.headers_mut().insert(IDEMPOTENCY_OUTCOME, HeaderValue::from_static(word));
    response
}

/// Returns the client's fault, if the client caused the failure.
fn client_fault(error: &hyper::Error) -> Option<ProxyError> {
    if !error.is_user() {
        return None;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(fault) = error.downcast_ref::<BodyLimitError>() {
            return Some(match fault {
                BodyLimitError::TooLarge => ProxyError::BodyTooLarge,
                BodyLimitError::TooSlow => ProxyError::BodyTooSlow,
            });
        }
        cause = error.source();
    }
    Some(ProxyError::BodyBroken)
}

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// The fields that say who the client is, and how it has come here.
const PROXY_FIELDS: [&str; 6] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-real-ip",
];
/// The lines that are added to a request: these fields, `Via`, `X-Request-Id`, and those of an
/// execution.
const ADDED_LINES: usize = 9;
