//! An upstream address with its connections.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::iter;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::address_health::AddressHealth;
use super::connection::{self, HeadLimits};
use super::health_checks::random;
use super::streams::{OpenStream, Streams};
use crate::config::{self, HostRule, Origin, UpstreamVersion};
use crate::request_body::UpstreamRequestBody;
use crate::tls::Connector;
use crate::workers::PerWorker;

/// An address with its idle connections and its health.
pub(crate) struct Address {
    pub(super) origin: Origin,
    /// The origin as text.
    pub(super) label: Arc<str>,
    /// The origin's host and port, as a field value.
    authority: Option<HeaderValue>,
    host: HostRule,
    head_limits: HeadLimits,
    tls: Option<Connector>,
    version: UpstreamVersion,
    connect_timeout: Duration,
    /// The time for which a write may stall.
    write_timeout: Duration,
    idle_timeout: Duration,
    age_max: Duration,
    down: Duration,
    idle: PerWorker<IdleConnections>,
    /// HTTP/2: the connection that all requests of a thread share.
    shared: PerWorker<tokio::sync::Mutex<Option<SharedConnection>>>,
    room: Arc<Semaphore>,
    /// Notified when a connection is returned or closed.
    freed: Notify,
    /// Held by the request that waits for a connection; the others queue for it in the order in
    /// which they came.
    turn: tokio::sync::Mutex<()>,
    health: AddressHealth,
    in_flight: Arc<AtomicU64>,
}

type IdleConnections = Mutex<VecDeque<IdleConnection>>;

struct IdleConnection {
    sender: http1::SendRequest<UpstreamRequestBody>,
    until: Instant,
    /// The end of its use, however busy it is.
    expires: Instant,
}

/// A connection that can take a request.
pub(crate) struct PooledConnection {
    protocol: Protocol,
    is_reused: bool,
    _in_flight: InFlight,
}

enum Protocol {
    Http1 {
        sender: http1::SendRequest<UpstreamRequestBody>,
        address: Arc<Address>,
        expires: Instant,
    },
    Http2 {
        shared: SharedConnection,
        _stream: OpenStream,
    },
}

/// Counts a request until the end of its response.
struct InFlight(Arc<AtomicU64>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP/2 connection, shared by concurrent requests.
#[derive(Clone)]
pub(crate) struct SharedConnection {
    sender: http2::SendRequest<UpstreamRequestBody>,
    streams: Arc<Streams>,
    /// Set after a timeout: packets may be lost, and requests in flight finish, but no new one is
    /// sent.
    ///
    /// HTTP/2's own pings take up to 40 s to notice, and meanwhile every outcome would be unknown.
    is_suspect: Arc<AtomicBool>,
    /// The end of its use for new requests.
    expires: Instant,
}

/// The result of sending a request.
pub(super) enum SendOutcome {
    Answer(Response<Incoming>),
    /// Nothing was written.
    Unsent(Box<Request<UpstreamRequestBody>>),
    Broken(hyper::Error),
}

impl Address {
    pub(super) fn new(origin: Origin, tls: Option<Connector>, config: &config::Upstream) -> Self {
        Self {
            tls: tls.filter(|_| origin.tls),
            authority: HeaderValue::from_str(origin.authority.as_str()).ok(),
            label: origin.to_string().into(),
            origin,
            host: config.host,
            head_limits: HeadLimits { bytes: config.head_bytes_max, lines: config.head_lines_max },
            version: config.version,
            connect_timeout: config.connect_timeout,
            write_timeout: config.pause_timeout,
            idle_timeout: config.idle_timeout,
            age_max: config.connection_age_max,
            down: config.down,
            idle: PerWorker::default(),
            shared: PerWorker::default(),
            room: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
            freed: Notify::new(),
            turn: tokio::sync::Mutex::default(),
            health: AddressHealth::default(),
            in_flight: Arc::default(),
        }
    }

    pub(super) const fn health(&self) -> &AddressHealth {
        &self.health
    }

    /// Prefers other addresses for a while after a failed connect; returns whether it is the first
    /// since the last answer.
    pub(super) fn mark_unreachable(&self) -> bool {
        self.health.mark_unreachable(Instant::now(), self.down)
    }

    pub(super) const fn tls(&self) -> Option<&Connector> {
        self.tls.as_ref()
    }

    pub(super) const fn head_limits(&self) -> HeadLimits {
        self.head_limits
    }

    pub(super) const fn version(&self) -> UpstreamVersion {
        self.version
    }

    /// Returns whether a request would have to wait for a connection.
    pub(super) fn is_full(&self) -> bool {
        self.version == UpstreamVersion::Http1
            && self.room.available_permits() == 0
            && self.idle.iter().all(|it| lock(it).is_empty())
    }

    /// Names this address in a request, where it is the upstream's own host that counts, and brings
    /// the target into the form of the version.
    ///
    /// May be called again for another address.
    pub(super) fn direct(&self, request: &mut Request<UpstreamRequestBody>) {
        let own = self.authority.clone().filter(|_| self.host == HostRule::Upstream);
        if self.version == UpstreamVersion::Http1 {
            if let Some(own) = own {
                request.headers_mut().insert(HOST, own);
            }
            return;
        }
        let sent = request.headers_mut().remove(HOST);
        let known = request.uri().authority().map(|it| it.as_str().as_bytes().to_vec());
        let authority = own.or(sent).map(|it| it.as_bytes().to_vec()).or(known);
        let path = request.uri().path_and_query().cloned();
        if let (Some(authority), Some(path)) = (authority, path)
            && let Ok(uri) = Uri::builder()
                .scheme(self.origin.scheme())
                .authority(authority.as_slice())
                .path_and_query(path)
                .build()
        {
            *request.uri_mut() = uri;
        }
    }

    /// Returns an idle connection, or opens one; always a new one if it must be `fresh`.
    pub(super) async fn connection(self: &Arc<Self>, fresh: bool) -> io::Result<PooledConnection> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = InFlight(Arc::clone(&self.in_flight));
        let (protocol, is_reused) = self.protocol(fresh).await?;
        Ok(PooledConnection { protocol, is_reused, _in_flight: in_flight })
    }

    /// Returns the number of requests that have no complete response yet.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns a connection, and whether it was used before.
    async fn protocol(self: &Arc<Self>, fresh: bool) -> io::Result<(Protocol, bool)> {
        match self.version {
            UpstreamVersion::Http1 => self.http1(fresh).await,
            UpstreamVersion::Http2 => {
                let deadline = Instant::now() + self.connect_timeout;
                let (shared, is_reused) = self.http2(deadline).await?;
                let stream = timeout_at(deadline, shared.streams.open()).await;
                let stream = stream.map_err(|_| connections_exhausted())?;
                Ok((Protocol::Http2 { shared, _stream: stream }, is_reused))
            }
        }
    }

    async fn http1(self: &Arc<Self>, fresh: bool) -> io::Result<(Protocol, bool)> {
        // A returned connection is for whoever waits already.
        if !fresh
            && let Ok(_turn) = self.turn.try_lock()
            && let Some(protocol) = self.take_ready()
        {
            return Ok((protocol, true));
        }
        let deadline = Instant::now() + self.connect_timeout;
        loop {
            let found = timeout_at(deadline, self.next_connection(fresh)).await;
            match found.map_err(|_| connections_exhausted())? {
                Found::Ready(protocol) => return Ok((protocol, true)),
                Found::Room(permit) => {
                    let slot =
                        ConnectionSlot { _permit: permit, _freed: NotifyFreed(Arc::clone(self)) };
                    // Boxed: a request that finds an idle connection needs no memory for connecting.
                    let connecting = Box::pin(connection::http1(
                        &self.origin,
                        self.tls.as_ref(),
                        self.write_timeout,
                        self.head_limits,
                        slot,
                    ));
                    let sender = timeout_at(deadline, connecting)
                        .await
                        .map_err(|_| connect_timed_out())??;
                    let (address, expires) = (Arc::clone(self), self.expiry());
                    return Ok((Protocol::Http1 { sender, address, expires }, false));
                }
                Found::Busy(mut idle) => {
                    let is_ready = timeout_at(deadline, idle.sender.ready()).await;
                    if is_ready.map_err(|_| connections_exhausted())?.is_ok() {
                        return Ok((idle.lent_by(self), true));
                    }
                }
            }
        }
    }

    /// Waits for an idle connection, or for room for another one.
    async fn next_connection(self: &Arc<Self>, fresh: bool) -> Found {
        let _turn = self.turn.lock().await;
        loop {
            let freed = self.freed.notified();
            if let Some(protocol) = (!fresh).then(|| self.take_ready()).flatten() {
                return Found::Ready(protocol);
            }
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                return Found::Room(permit);
            }
            if let Some(idle) = (!fresh).then(|| self.take_any()).flatten() {
                return Found::Busy(idle);
            }
            freed.await;
        }
    }

    async fn http2(self: &Arc<Self>, deadline: Instant) -> io::Result<(SharedConnection, bool)> {
        // Waiting for another request's connect counts towards this request's time limit.
        let mut shared = timeout_at(deadline, self.shared.own().lock())
            .await
            .map_err(|_| connect_timed_out())?;
        if let Some(usable) = shared.as_ref().filter(|it| it.is_usable()) {
            return Ok((usable.clone(), true));
        }
        let streams = Arc::default();
        let connecting = Box::pin(connection::http2(
            &self.origin,
            self.tls.as_ref(),
            self.write_timeout,
            self.head_limits,
            Arc::clone(&streams),
        ));
        let sender = timeout_at(deadline, connecting).await.map_err(|_| connect_timed_out())??;
        let new = SharedConnection {
            sender,
            streams,
            is_suspect: Arc::default(),
            expires: self.expiry(),
        };
        *shared = Some(new.clone());
        self.health.mark_reachable();
        Ok((new, false))
    }

    /// Returns when a connection that is opened now is to be replaced.
    ///
    /// A tenth earlier or not, so that those that were opened together are not replaced together.
    fn expiry(&self) -> Instant {
        Instant::now() + self.age_max.mul_f64(0.9 + 0.1 * random())
    }

    /// Returns this thread's most recently used connection that is ready.
    fn take_ready(self: &Arc<Self>) -> Option<Protocol> {
        let now = Instant::now();
        let mut idle = lock(self.idle.own());
        // The longest idle connections are in front.
        while idle.front().is_some_and(|it| it.until <= now) {
            idle.pop_front();
        }
        let mut busy = Vec::new();
        let ready = loop {
            match idle.pop_back() {
                Some(it) if !it.is_usable(now) => {}
                Some(it) if it.sender.is_ready() => break Some(it),
                // Its task has not been scheduled since the last response.
                Some(it) if busy.len() < BUSY_MAX => busy.push(it),
                Some(it) => {
                    busy.push(it);
                    break None;
                }
                None => break None,
            }
        };
        idle.extend(busy.into_iter().rev());
        drop(idle);
        ready.map(|it| it.lent_by(self))
    }

    /// Returns an idle connection of whichever thread, which need not be ready.
    fn take_any(&self) -> Option<IdleConnection> {
        let now = Instant::now();
        self.idle.iter().find_map(|idle| {
            let mut idle = lock(idle);
            iter::from_fn(|| idle.pop_back()).find(|it| it.is_usable(now))
        })
    }

    /// Keeps a connection whose response was read to its end.
    fn release_connection(
        &self,
        sender: http1::SendRequest<UpstreamRequestBody>,
        expires: Instant,
    ) {
        let now = Instant::now();
        if !sender.is_closed() && !self.idle_timeout.is_zero() && now < expires {
            let until = now + self.idle_timeout;
            lock(self.idle.own()).push_back(IdleConnection { sender, until, expires });
        }
        self.freed.notify_one();
    }
}

impl IdleConnection {
    fn is_usable(&self, now: Instant) -> bool {
        !self.sender.is_closed() && now < self.until && now < self.expires
    }

    fn lent_by(self, address: &Arc<Address>) -> Protocol {
        let Self { sender, expires, .. } = self;
        Protocol::Http1 { sender, address: Arc::clone(address), expires }
    }
}

impl PooledConnection {
    pub(super) fn send(
        &mut self,
        request: Request<UpstreamRequestBody>,
    ) -> impl Future<Output = SendOutcome> + use<> {
        let sending = match &mut self.protocol {
            Protocol::Http1 { sender, .. } => Either::One(sender.try_send_request(request)),
            Protocol::Http2 { shared, .. } => Either::Two(shared.sender.try_send_request(request)),
        };
        async move {
            let sent = match sending {
                Either::One(sending) => sending.await,
                Either::Two(sending) => sending.await,
            };
            sent.map_or_else(SendOutcome::from, SendOutcome::Answer)
        }
    }

    /// Returns whether it was used before, so that the upstream may have closed it meanwhile.
    pub(super) const fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Excludes a connection from new requests after a timeout.
    pub(super) fn mark_suspect(self) {
        if let Protocol::Http2 { shared, .. } = self.protocol {
            shared.is_suspect.store(true, Ordering::Relaxed);
        }
    }

    /// Returns the connection to its address; the response was read to its end.
    pub(super) fn release_connection(self) {
        if let Protocol::Http1 { sender, address, expires } = self.protocol {
            address.release_connection(sender, expires);
        }
    }
}

impl SharedConnection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed()
            && !self.is_suspect.load(Ordering::Relaxed)
            && Instant::now() < self.expires
    }
}

impl From<TrySendError<Request<UpstreamRequestBody>>> for SendOutcome {
    fn from(mut error: TrySendError<Request<UpstreamRequestBody>>) -> Self {
        match error.take_message() {
            Some(request) => Self::Unsent(Box::new(request)),
            None => Self::Broken(error.into_error()),
        }
    }
}

enum Either<A, B> {
    One(A),
    Two(B),
}

/// Counts a connection of an address until it closes.
struct ConnectionSlot {
    _permit: OwnedSemaphorePermit,
    /// Dropped after the permit, or the request that is woken would not find it.
    _freed: NotifyFreed,
}

struct NotifyFreed(Arc<Address>);

impl Drop for NotifyFreed {
    fn drop(&mut self) {
        self.0.freed.notify_one();
    }
}

/// A connection, or the room for one, for a request that waits.
enum Found {
    Ready(Protocol),
    /// Room for a new one.
    Room(OwnedSemaphorePermit),
    /// One that another thread drives, or whose task has yet to see the last response's end.
    Busy(IdleConnection),
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Poisoning is ignored: no code in this file panics while it holds the lock.
fn lock(idle: &IdleConnections) -> MutexGuard<'_, VecDeque<IdleConnection>> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect_timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "connect timed out")
}

fn connections_exhausted() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "all connections are in use")
}

/// The number of connections that are not ready and are skipped.
const BUSY_MAX: usize = 4;

#[cfg(test)]
mod tests;
