//! The services that requests are forwarded to: addresses, connections, and retries.
//!
//! The pool is built on hyper's connections directly. Pools above them retry on their own or lose
//! the request in an error; hyper itself returns a request that it has not begun to write, which is
//! the only proof that the upstream cannot have seen it.
//! Such a request may be sent again, over another connection or to another address; a request of
//! which a byte was written is never sent twice, save one with a safe method and without a key that
//! met the closing of an idle connection.

mod address;
mod address_health;
mod connection;
mod health_checks;
mod response_body;
mod streams;

use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use http::header::TRANSFER_ENCODING;
use http::response::Parts;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use idemptx::tower::NotReplayable;
use tokio::time::{Instant, timeout};

use self::address::{Address, SendOutcome};
use self::health_checks::HealthChecks;
pub(crate) use self::health_checks::random;
use self::response_body::StreamEnd;
pub(crate) use self::response_body::UpstreamBody;
use crate::config::{self, Balance, Origin, RouteLimits, UpstreamVersion};
use crate::logging::LogRate;
use crate::observation::UpstreamResult;
use crate::recorder::AnsweredBy;
use crate::request_body::{Upload, UpstreamRequestBody};
use crate::tls::{Connector, TlsError};
use crate::traces::UpstreamSpan;

/// A service with its addresses and connections.
#[derive(Debug)]
pub(crate) struct UpstreamPool {
    pub(crate) config: config::Upstream,
    addresses: Box<[Arc<Address>]>,
    /// The positions of addresses, each as often as its weight says.
    turns: Box<[usize]>,
    next: AtomicUsize,
    checks: OnceLock<HealthChecks>,
    /// Held while it is decided whether one more address may be ejected.
    ejecting: Mutex<()>,
    /// The limit of lines about the health of addresses.
    health_lines: LogRate,
}

/// A request that got no response.
#[derive(Debug)]
pub(crate) enum SendError {
    /// The request was not sent, or the upstream rejected it unprocessed.
    Unsent(io::Error),
    /// The upstream may have seen the request; then the connection broke.
    Broken(hyper::Error),
    /// The upstream may have seen the request; no response arrived in time.
    Late,
    /// The response is framed ambiguously.
    Ambiguous,
}

impl UpstreamPool {
    pub(crate) fn new(config: config::Upstream) -> Result<Self, TlsError> {
        let tls = Connector::new(&config)?;
        let address = |origin: &Origin| Address::new(origin.clone(), tls.clone(), &config);
        let addresses = config.origins.iter().map(|origin| Arc::new(address(origin))).collect();
        let turns = turns(config.origins.len(), &config.weights).into();
        Ok(Self {
            addresses,
            turns,
            config,
            next: AtomicUsize::new(0),
            checks: OnceLock::new(),
            ejecting: Mutex::default(),
            health_lines: LogRate::default(),
        })
    }

    /// Starts the health checks, if they are configured and not running.
    pub(crate) fn start_health_checks(&self) {
        if let Some(health) = &self.config.health {
            self.checks
                .get_or_init(|| HealthChecks::start(&self.config.name, &self.addresses, health));
        }
    }

    /// Stops the health checks for good.
    pub(crate) fn stop_health_checks(&self) {
        if let Some(checks) = self.checks.get() {
            checks.stop();
        }
    }

    /// Returns the states of the addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = AddressState> {
        let now = Instant::now();
        self.addresses.iter().map(move |it| AddressState {
            upstream: self.config.name.clone(),
            address: it.label.to_string(),
            is_up: !it.health().is_last_resort(now),
            ejections: it.health().ejections(),
        })
    }

    /// Sends a request and waits for the response's head; one that `is_repeatable` may reach the
    /// upstream twice.
    ///
    /// Leaves an empty request. If requests are logged, the response has an [`AnsweredBy`].
    ///
    /// # Cancel safety
    ///
    /// Dropped, the connection in use is closed.
    pub(crate) async fn send(
        &self,
        request: &mut Request<UpstreamRequestBody>,
        limits: &RouteLimits,
        is_repeatable: bool,
        is_logged: bool,
    ) -> Result<Response<UpstreamBody>, SendError> {
        let began = is_logged.then(Instant::now);
        let mut unsent = None;
        for (number, address) in self.candidates().enumerate() {
            let span = UpstreamSpan::begin(&self.config.name, &address.origin, number, request);
            match self.send_to(address, request, limits, is_repeatable).await {
                Ok(mut answer) => {
                    self.note_status(address, answer.status());
                    if let Some(began) = began {
                        let (address, took) = (Arc::clone(&address.label), began.elapsed());
                        answer.extensions_mut().insert(AnsweredBy { address, took });
                    }
                    span.end(UpstreamResult::Status(answer.status()));
                    return Ok(answer);
                }
                Err(AttemptError::Unsent(error)) => {
                    span.end(UpstreamResult::Unsent);
                    if error.kind() != io::ErrorKind::QuotaExceeded {
                        self.note_unreachable(address, &error);
                    }
                    let text = format!("{}: {error}", address.label);
                    unsent = Some(io::Error::new(error.kind(), text));
                }
                Err(AttemptError::Final(lost)) => {
                    span.end(UpstreamResult::from(&lost));
                    if !lost.is_caused_by_client() {
                        self.note_failure(address, &lost);
                    }
                    return Err(lost);
                }
            }
        }
        let no_address = || io::Error::other("the upstream has no address");
        Err(SendError::Unsent(unsent.unwrap_or_else(no_address)))
    }

    /// Notes the status of a response, which may be a failure.
    fn note_status(&self, address: &Address, status: StatusCode) {
        if self.config.ejection.as_ref().is_some_and(|it| it.statuses.contains(status)) {
            return self.note_failure(address, &format_args!("status {}", status.as_u16()));
        }
        if address.health().succeeded(Instant::now)
            && let Some(suppressed) = self.health_lines.admit()
        {
            let (upstream, address) = (&*self.config.name, &*address.label);
            tracing::info!(upstream, address, "in use again{suppressed}");
        }
    }

    /// Notes a connect that failed.
    fn note_unreachable(&self, address: &Address, error: &io::Error) {
        if address.mark_unreachable()
            && let Some(suppressed) = self.health_lines.admit()
        {
            let (upstream, address) = (&*self.config.name, &*address.label);
            tracing::warn!(
                upstream,
                address,
                "cannot be reached; used as last resort: {error}{suppressed}"
            );
        }
        self.note_failure(address, error);
    }

    /// Counts a failure, and ejects the address after several in a row, unless too many others are
    /// out of use.
    fn note_failure(&self, address: &Address, reason: &dyn fmt::Display) {
        let Some(ejection) = &self.config.ejection else { return };
        let now = Instant::now();
        let failures = address.health().failed(now);
        if failures < ejection.failures {
            return;
        }
        let one_by_one = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let others = self.addresses.iter().filter(|it| !std::ptr::eq(Arc::as_ptr(it), address));
        let out = others.filter(|it| it.health().is_last_resort(now)).count();
        if out >= ejection.addresses_max(self.addresses.len()) {
            return;
        }
        // Another request may have done so just now.
        let Some(time) = address.health().eject(now, ejection) else { return };
        drop(one_by_one);
        if let Some(suppressed) = self.health_lines.admit() {
            let (upstream, address) = (&*self.config.name, &*address.label);
            tracing::warn!(
                upstream,
                address,
                "ejected for {time:?} after {failures} failures in a row: {reason}{suppressed}"
            );
        }
    }

    /// Returns every address once: available ones first, starting from the one whose turn it is.
    fn candidates(&self) -> impl Iterator<Item = &Arc<Address>> {
        // Most upstreams have one, and nothing to put in order.
        let (only, several) = match &*self.addresses {
            [only] => (Some(only), Vec::new()),
            _ => (None, self.in_order()),
        };
        only.into_iter().chain(several)
    }

    fn in_order(&self) -> Vec<&Arc<Address>> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let first = self.turns.get(number % self.turns.len().max(1)).copied().unwrap_or(0);
        let turn = |position: usize| {
            let count = self.addresses.len().max(1);
            let position = (first + position) % count;
            self.addresses.get(position).map(|it| (position, it))
        };
        let mut all: Vec<_> = (0..self.addresses.len()).filter_map(turn).collect();
        if self.config.balance == Balance::LeastRequests {
            // Stable, so that equal ones take turns.
            all.sort_by_key(|(position, address)| {
                let weight = self.config.weights.get(*position).copied().unwrap_or(1);
                address.in_flight() * LOAD_UNIT / u64::from(weight)
            });
        }
        let all = all.into_iter().map(|(_, address)| address);
        let now = Instant::now();
        // Collected now: an address that fails during its turn is not tried again.
        let (up, down): (Vec<_>, Vec<_>) =
            all.partition(|address| !address.health().is_last_resort(now));
        // A request waits for a place only where no other address has one.
        let (free, full): (Vec<_>, Vec<_>) = up.into_iter().partition(|address| !address.is_full());
        free.into_iter().chain(full).chain(down).collect()
    }

    /// Sends a request to one address; it is still there if it could not be sent.
    async fn send_to(
        &self,
        address: &Arc<Address>,
        request: &mut Request<UpstreamRequestBody>,
        limits: &RouteLimits,
        is_repeatable: bool,
    ) -> Result<Response<UpstreamBody>, AttemptError> {
        let response_timeout = limits.response_timeout(&self.config);
        address.direct(request);
        let mut fresh = false;
        for _ in 0..SENDS_MAX {
            let mut connection = match address.connection(fresh).await {
                Ok(connection) => connection,
                Err(error) => return Err(AttemptError::Unsent(error)),
            };
            let repeated = (is_repeatable && connection.is_reused() && !fresh)
                .then(|| repetition(request))
                .flatten();
            let is_http2 = address.version() == UpstreamVersion::Http2;
            let mut upload = request.body_mut().upload(is_http2);
            let sent = std::mem::replace(request, Request::new(UpstreamRequestBody::empty()));
            let answer = std::pin::pin!(connection.send(sent));
            let pause_max = limits.pause_timeout(&self.config);
            match await_response(answer, upload.as_deref_mut(), response_timeout, pause_max).await {
                None => {
                    connection.mark_suspect();
                    return Err(AttemptError::Final(SendError::Late));
                }
                Some(SendOutcome::Answer(head)) if is_ambiguously_framed(head.headers()) => {
                    return Err(AttemptError::Final(SendError::Ambiguous));
                }
                Some(SendOutcome::Answer(head)) => {
                    let (mut parts, response_body) = head.into_parts();
                    if is_ended_by_closing(&parts, &response_body) && address.tls().is_none() {
                        parts.extensions.insert(NotReplayable);
                    }
                    let stream = is_http2.then_some(StreamEnd { upload });
                    let response_body = match parts.status {
                        StatusCode::SWITCHING_PROTOCOLS => {
                            UpstreamBody::switching(response_body, connection)
                        }
                        _ => UpstreamBody::new(response_body, connection, pause_max, stream),
                    };
                    return Ok(Response::from_parts(parts, response_body));
                }
                // The upstream had closed the idle connection.
                Some(SendOutcome::Unsent(back)) => *request = *back,
                Some(SendOutcome::Broken(error)) if is_refused_stream(&error) => {
                    let unsent = SendError::Unsent(io::Error::other(error));
                    return Err(AttemptError::Final(unsent));
                }
                Some(SendOutcome::Broken(error)) => {
                    if let Some(repeated) = repeated.filter(|_| is_closed_unanswered(&error)) {
                        (*request, fresh) = (repeated, true);
                        continue;
                    }
                    return Err(AttemptError::Final(SendError::Broken(error)));
                }
            }
        }
        let error = io::Error::other("every connection closed before the request was sent");
        Err(AttemptError::Unsent(error))
    }
}

/// An address, as metrics show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddressState {
    pub(crate) upstream: String,
    pub(crate) address: String,
    /// True if it is as good as others, or the last resort.
    pub(crate) is_up: bool,
    pub(crate) ejections: u64,
}

impl SendError {
    /// Returns whether the client broke its request off, which says nothing of the upstream.
    fn is_caused_by_client(&self) -> bool {
        matches!(self, Self::Broken(error) if error.is_user())
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsent(error) => write!(f, "not sent: {error}"),
            Self::Late => f.write_str("sent, but no response in time"),
            Self::Ambiguous => f.write_str("sent, but the response is framed ambiguously"),
            Self::Broken(error) => match error.source() {
                Some(cause) => write!(f, "sent, then {error}: {cause}"),
                None => write!(f, "sent, then {error}"),
            },
        }
    }
}

impl From<&SendError> for UpstreamResult {
    fn from(lost: &SendError) -> Self {
        match lost {
            SendError::Unsent(_) => Self::Unsent,
            SendError::Broken(_) | SendError::Ambiguous => Self::Broken,
            SendError::Late => Self::Late,
        }
    }
}

/// Returns the order in which addresses have their turns: each as often as its weight says, and
/// those of one address spread over the others.
fn turns(count: usize, weights: &[u32]) -> Vec<usize> {
    let weights: Vec<i64> =
        (0..count).map(|at| weights.get(at).copied().unwrap_or(1).into()).collect();
    let total: i64 = weights.iter().sum();
    let mut credits = vec![0; count];
    let mut turn = || {
        credits.iter_mut().zip(&weights).for_each(|(credit, weight)| *credit += weight);
        // The first of those with the most credit.
        let most = credits.iter().copied().max()?;
        let position = credits.iter().position(|credit| *credit == most)?;
        *credits.get_mut(position)? -= total;
        Some(position)
    };
    (0..total).filter_map(|_| turn()).collect()
}

/// The failure of one address.
enum AttemptError {
    Unsent(io::Error),
    Final(SendError),
}

/// Returns whether the end of a response is ambiguous (RFC 9112 §6.3).
///
/// hyper prefers the coding to a length, treats an unknown coding as none, and merges equal
/// lengths.
fn is_ambiguously_framed(headers: &HeaderMap) -> bool {
    let mut is_framed = false;
    headers.iter().any(|(name, value)| {
        let is_usual = match name.as_str() {
            "content-length" => value.as_bytes().iter().all(u8::is_ascii_digit),
            "transfer-encoding" => value.as_bytes().eq_ignore_ascii_case(b"chunked"),
            _ => return false,
        };
        std::mem::replace(&mut is_framed, true) || !is_usual
    })
}

/// Returns whether the end of a response is the end of its connection (RFC 9112 §6.3, item 8).
///
/// Half of such a response looks like the whole one, unless TLS marks the end.
fn is_ended_by_closing(head: &Parts, body: &Incoming) -> bool {
    head.version <= Version::HTTP_11
        && body.size_hint().exact().is_none()
        && !head.headers.contains_key(TRANSFER_ENCODING)
}

/// Returns the same request again, if it has no body.
fn repetition(request: &Request<UpstreamRequestBody>) -> Option<Request<UpstreamRequestBody>> {
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = request.uri().clone();
    parts.version = request.version();
    parts.headers = request.headers().clone();
    let is_bodiless = request.body().is_end_stream();
    is_bodiless.then(|| Request::from_parts(parts, UpstreamRequestBody::empty()))
}

/// Returns whether a connection closed before it had answered.
fn is_closed_unanswered(error: &hyper::Error) -> bool {
    let cause = error.source();
    error.is_incomplete_message()
        || cause.is_some_and(|it| it.is::<io::Error>())
        || cause.and_then(|it| it.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_io)
}

/// Waits for the response, within the limit, which starts when the request is sent; the request may
/// not stay untaken for longer than `pause_max`.
async fn await_response(
    mut answer: Pin<&mut impl Future<Output = SendOutcome>>,
    upload: Option<&mut Upload>,
    limit: Duration,
    pause_max: Duration,
) -> Option<SendOutcome> {
    if let Some(upload) = upload {
        let stalled = upload.stalled(pause_max);
        tokio::select! {
            answer = &mut answer => return Some(answer),
            () = upload.over() => {}
            () = stalled => return None,
        }
    }
    timeout(limit, answer).await.ok()
}

/// Returns whether an HTTP/2 server rejected a request unprocessed: it refused the stream or closed
/// the connection before (RFC 9113 §8.7, §6.8).
fn is_refused_stream(error: &hyper::Error) -> bool {
    let error = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    error.is_some_and(|error| {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        let gone = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        error.is_remote() && (refused || gone)
    })
}

/// Requests in flight are compared in fractions of this, as weights divide them.
const LOAD_UNIT: u64 = 1 << 20;
/// The number of connections tried that were closed before they took the request.
const SENDS_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use super::turns;

    #[test]
    fn addresses_have_as_many_turns_as_they_have_weight() {
        assert_eq!(turns(3, &[]), [0, 1, 2]);
        assert_eq!(turns(3, &[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(turns(2, &[2, 3]), [1, 0, 1, 0, 1]);
        assert_eq!(turns(0, &[]), Vec::<usize>::new());
    }
}
