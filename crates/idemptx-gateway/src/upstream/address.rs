//! One address of an upstream, with its connections.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::connection;
use crate::config::{self, Origin, UpstreamVersion};
use crate::proxy::UpstreamRequestBody;
use crate::tls::Connector;

/// An address, its idle connections, and whether it can be connected to.
pub(crate) struct Address {
    pub(super) origin: Origin,
    tls: Option<Connector>,
    version: UpstreamVersion,
    connect_timeout: Duration,
    /// How long it may not take what it is sent.
    write_timeout: Duration,
    idle_timeout: Duration,
    down: Duration,
    idle: Mutex<VecDeque<IdleConnection>>,
    /// HTTP/2: the connection that all requests share.
    shared: tokio::sync::Mutex<Option<SharedConnection>>,
    room: Arc<Semaphore>,
    /// Somebody gave a connection back, or closed one.
    freed: Notify,
    down_until: Mutex<Option<Instant>>,
    /// What checks have found.
    unhealthy: AtomicBool,
}

struct IdleConnection {
    sender: http1::SendRequest<UpstreamRequestBody>,
    until: Instant,
}

/// A connection that a request may be sent over.
pub(crate) enum PooledConnection {
    Http1 { sender: http1::SendRequest<UpstreamRequestBody>, address: Arc<Address> },
    Http2(SharedConnection),
}

/// A connection that speaks HTTP/2, for many requests at a time.
#[derive(Clone)]
pub(crate) struct SharedConnection {
    sender: http2::SendRequest<UpstreamRequestBody>,
    /// Something did not come in time over it; it may be cut off without anybody's knowing.
    is_suspect: Arc<AtomicBool>,
}

/// What became of a request.
pub(super) enum SendOutcome {
    Answer(Response<Incoming>),
    /// Nothing of it was written.
    Unsent(Box<Request<UpstreamRequestBody>>),
    Broken(hyper::Error),
}

impl Address {
    pub(super) fn new(origin: Origin, tls: Option<Connector>, config: &config::Upstream) -> Self {
        Self {
            tls: tls.filter(|_| origin.tls),
            origin,
            version: config.version,
            connect_timeout: config.connect_timeout,
            write_timeout: config.pause_timeout,
            idle_timeout: config.idle_timeout,
            down: config.down,
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            room: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
            freed: Notify::new(),
            down_until: Mutex::default(),
            unhealthy: AtomicBool::new(false),
        }
    }

    /// It could not be connected to: others are tried first for a while.
    pub(super) fn mark_unreachable(&self) {
        let until = Instant::now() + self.down;
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Checks have found it well, or sick: then others are tried first until it is well again.
    pub(super) fn set_health(&self, well: bool) {
        self.unhealthy.store(!well, Ordering::Relaxed);
        if well {
            *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    pub(super) fn is_unhealthy(&self) -> bool {
        self.unhealthy.load(Ordering::Relaxed)
    }

    pub(super) const fn tls(&self) -> Option<&Connector> {
        self.tls.as_ref()
    }

    pub(super) const fn version(&self) -> UpstreamVersion {
        self.version
    }

    /// Whether others are tried first.
    pub(super) fn is_deprioritized(&self, now: Instant) -> bool {
        if self.is_unhealthy() {
            return true;
        }
        let until = *self.down_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    /// An idle connection, or a new one.
    pub(super) async fn connection(self: &Arc<Self>) -> io::Result<PooledConnection> {
        match self.version {
            UpstreamVersion::Http1 => self.http1().await,
            UpstreamVersion::Http2 => self.http2().await.map(PooledConnection::Http2),
        }
    }

    async fn http1(self: &Arc<Self>) -> io::Result<PooledConnection> {
        if let Some(sender) = self.take_ready() {
            return Ok(PooledConnection::Http1 { sender, address: Arc::clone(self) });
        }
        let deadline = Instant::now() + self.connect_timeout;
        loop {
            let freed = self.freed.notified();
            if let Some(sender) = self.take_ready() {
                return Ok(PooledConnection::Http1 { sender, address: Arc::clone(self) });
            }
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                let room = ConnectionSlot { address: Arc::clone(self), _permit: permit };
                // Boxed, as a request that need not connect should not keep room for it.
                let connecting = Box::pin(connection::http1(
                    &self.origin,
                    self.tls.as_ref(),
                    self.write_timeout,
                    room,
                ));
                let sender =
                    timeout_at(deadline, connecting).await.map_err(|_| connect_timed_out())??;
                return Ok(PooledConnection::Http1 { sender, address: Arc::clone(self) });
            }
            timeout_at(deadline, freed).await.map_err(|_| connections_exhausted())?;
        }
    }

    async fn http2(self: &Arc<Self>) -> io::Result<SharedConnection> {
        let deadline = Instant::now() + self.connect_timeout;
        // Whoever waits for another request to connect has not more time for it than that one.
        let mut shared =
            timeout_at(deadline, self.shared.lock()).await.map_err(|_| connect_timed_out())?;
        if let Some(usable) = shared.as_ref().filter(|it| it.is_usable()) {
            return Ok(usable.clone());
        }
        let connecting =
            Box::pin(connection::http2(&self.origin, self.tls.as_ref(), self.write_timeout));
        let sender = timeout_at(deadline, connecting).await.map_err(|_| connect_timed_out())??;
        let new = SharedConnection { sender, is_suspect: Arc::default() };
        *shared = Some(new.clone());
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(new)
    }

    /// The connection that was used last and can take a request at once.
    fn take_ready(&self) -> Option<http1::SendRequest<UpstreamRequestBody>> {
        let now = Instant::now();
        let mut idle = self.idle();
        // The longest idle stand in front.
        while idle.front().is_some_and(|it| it.until <= now) {
            idle.pop_front();
        }
        let mut busy = Vec::new();
        let ready = loop {
            match idle.pop_back() {
                Some(it) if it.sender.is_closed() => {}
                Some(it) if it.sender.is_ready() => break Some(it.sender),
                // Its task has not come round yet.
                Some(it) if busy.len() < BUSY_MAX => busy.push(it),
                Some(it) => {
                    busy.push(it);
                    break None;
                }
                None => break None,
            }
        };
        idle.extend(busy.into_iter().rev());
        ready
    }

    /// Keeps a connection whose answer is read to its end.
    pub(super) fn release_connection(&self, sender: http1::SendRequest<UpstreamRequestBody>) {
        if !sender.is_closed() && !self.idle_timeout.is_zero() {
            let until = Instant::now() + self.idle_timeout;
            self.idle().push_back(IdleConnection { sender, until });
        }
        self.freed.notify_one();
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PooledConnection {
    pub(super) fn send(
        &mut self,
        request: Request<UpstreamRequestBody>,
    ) -> impl Future<Output = SendOutcome> + use<> {
        let sending = match self {
            Self::Http1 { sender, .. } => Either::One(sender.try_send_request(request)),
            Self::Http2(shared) => Either::Two(shared.sender.try_send_request(request)),
        };
        async move {
            let sent = match sending {
                Either::One(sending) => sending.await,
                Either::Two(sending) => sending.await,
            };
            sent.map_or_else(SendOutcome::from, SendOutcome::Answer)
        }
    }

    /// The answer did not come in time: what else runs over it may end, nothing new is sent.
    pub(super) fn mark_suspect(self) {
        if let Self::Http2(shared) = self {
            shared.is_suspect.store(true, Ordering::Relaxed);
        }
    }

    /// The answer was read to its end.
    pub(super) fn release_connection(self) {
        if let Self::Http1 { sender, address } = self {
            address.release_connection(sender);
        }
    }
}

impl SharedConnection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.is_suspect.load(Ordering::Relaxed)
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

/// A place among an address' connections, given back when the connection ends.
pub(super) struct ConnectionSlot {
    address: Arc<Address>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.address.freed.notify_one();
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("origin", &self.origin).finish_non_exhaustive()
    }
}

fn connect_timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not accept a connection in time")
}

fn connections_exhausted() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "all connections to it are in use")
}

/// How many connections that are not ready yet are passed over.
const BUSY_MAX: usize = 4;
