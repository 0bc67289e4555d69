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
use crate::proxy::Outgoing;
use crate::tls::Connector;

/// An address, its idle connections, and whether it can be connected to.
pub(crate) struct Address {
    pub(super) origin: Origin,
    tls: Option<Connector>,
    version: UpstreamVersion,
    connect_timeout: Duration,
    /// How long it may not take what it is sent.
    stall_max: Duration,
    idle_timeout: Duration,
    down: Duration,
    idle: Mutex<VecDeque<Idle>>,
    /// HTTP/2: the connection that all requests share.
    shared: tokio::sync::Mutex<Option<Shared>>,
    room: Arc<Semaphore>,
    /// Somebody gave a connection back, or closed one.
    freed: Notify,
    down_until: Mutex<Option<Instant>>,
    /// What checks have found.
    sick: AtomicBool,
}

struct Idle {
    sender: http1::SendRequest<Outgoing>,
    until: Instant,
}

/// A connection that a request may be sent over.
pub(crate) enum Connection {
    Http1 { sender: http1::SendRequest<Outgoing>, address: Arc<Address> },
    Http2(Shared),
}

/// A connection that speaks HTTP/2, for many requests at a time.
#[derive(Clone)]
pub(crate) struct Shared {
    sender: http2::SendRequest<Outgoing>,
    /// Something did not come in time over it; it may be cut off without anybody's knowing.
    is_doubtful: Arc<AtomicBool>,
}

/// What became of a request.
pub(super) enum Sent {
    Answer(Response<Incoming>),
    /// Nothing of it was written.
    Unsent(Box<Request<Outgoing>>),
    Broken(hyper::Error),
}

impl Address {
    pub(super) fn new(origin: Origin, tls: Option<Connector>, config: &config::Upstream) -> Self {
        Self {
            tls: tls.filter(|_| origin.tls),
            origin,
            version: config.version,
            connect_timeout: config.connect_timeout,
            stall_max: config.pause_timeout,
            idle_timeout: config.idle_timeout,
            down: config.down,
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            room: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
            freed: Notify::new(),
            down_until: Mutex::default(),
            sick: AtomicBool::new(false),
        }
    }

    /// It could not be connected to: others are tried first for a while.
    pub(super) fn went_down(&self) {
        let until = Instant::now() + self.down;
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Checks have found it well, or sick: then others are tried first until it is well again.
    pub(super) fn found(&self, well: bool) {
        self.sick.store(!well, Ordering::Relaxed);
        if well {
            *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    pub(super) fn is_sick(&self) -> bool {
        self.sick.load(Ordering::Relaxed)
    }

    pub(super) const fn tls(&self) -> Option<&Connector> {
        self.tls.as_ref()
    }

    pub(super) const fn version(&self) -> UpstreamVersion {
        self.version
    }

    /// Whether others are tried first.
    pub(super) fn is_down(&self, now: Instant) -> bool {
        if self.is_sick() {
            return true;
        }
        let until = *self.down_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| now < until)
    }

    /// An idle connection, or a new one.
    pub(super) async fn connection(self: &Arc<Self>) -> io::Result<Connection> {
        match self.version {
            UpstreamVersion::Http1 => self.http1().await,
            UpstreamVersion::Http2 => self.http2().await.map(Connection::Http2),
        }
    }

    async fn http1(self: &Arc<Self>) -> io::Result<Connection> {
        if let Some(sender) = self.take_idle() {
            return Ok(Connection::Http1 { sender, address: Arc::clone(self) });
        }
        let deadline = Instant::now() + self.connect_timeout;
        loop {
            let freed = self.freed.notified();
            if let Some(sender) = self.take_idle() {
                return Ok(Connection::Http1 { sender, address: Arc::clone(self) });
            }
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() {
                let room = Room { address: Arc::clone(self), _permit: permit };
                // Boxed, as a request that need not connect should not keep room for it.
                let connecting = Box::pin(connection::http1(
                    &self.origin,
                    self.tls.as_ref(),
                    self.stall_max,
                    room,
                ));
                let sender = timeout_at(deadline, connecting).await.map_err(|_| late())??;
                return Ok(Connection::Http1 { sender, address: Arc::clone(self) });
            }
            timeout_at(deadline, freed).await.map_err(|_| full())?;
        }
    }

    async fn http2(self: &Arc<Self>) -> io::Result<Shared> {
        let deadline = Instant::now() + self.connect_timeout;
        // Whoever waits for another request to connect has not more time for it than that one.
        let mut shared = timeout_at(deadline, self.shared.lock()).await.map_err(|_| late())?;
        if let Some(usable) = shared.as_ref().filter(|it| it.is_usable()) {
            return Ok(usable.clone());
        }
        let connecting =
            Box::pin(connection::http2(&self.origin, self.tls.as_ref(), self.stall_max));
        let sender = timeout_at(deadline, connecting).await.map_err(|_| late())??;
        let new = Shared { sender, is_doubtful: Arc::default() };
        *shared = Some(new.clone());
        *self.down_until.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(new)
    }

    /// The connection that was used last and can take a request at once.
    fn take_idle(&self) -> Option<http1::SendRequest<Outgoing>> {
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
    pub(super) fn give_back(&self, sender: http1::SendRequest<Outgoing>) {
        if !sender.is_closed() && !self.idle_timeout.is_zero() {
            let until = Instant::now() + self.idle_timeout;
            self.idle().push_back(Idle { sender, until });
        }
        self.freed.notify_one();
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    pub(super) fn send(
        &mut self,
        request: Request<Outgoing>,
    ) -> impl Future<Output = Sent> + use<> {
        let sending = match self {
            Self::Http1 { sender, .. } => Either::One(sender.try_send_request(request)),
            Self::Http2(shared) => Either::Two(shared.sender.try_send_request(request)),
        };
        async move {
            let sent = match sending {
                Either::One(sending) => sending.await,
                Either::Two(sending) => sending.await,
            };
            sent.map_or_else(Sent::from, Sent::Answer)
        }
    }

    /// The answer did not come in time: what else runs over it may end, nothing new is sent.
    pub(super) fn doubt(self) {
        if let Self::Http2(shared) = self {
            shared.is_doubtful.store(true, Ordering::Relaxed);
        }
    }

    /// The answer was read to its end.
    pub(super) fn give_back(self) {
        if let Self::Http1 { sender, address } = self {
            address.give_back(sender);
        }
    }
}

impl Shared {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && !self.is_doubtful.load(Ordering::Relaxed)
    }
}

impl From<TrySendError<Request<Outgoing>>> for Sent {
    fn from(mut error: TrySendError<Request<Outgoing>>) -> Self {
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
pub(super) struct Room {
    address: Arc<Address>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.address.freed.notify_one();
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address").field("origin", &self.origin).finish_non_exhaustive()
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "it did not accept a connection in time")
}

fn full() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "all connections to it are in use")
}

/// How many connections that are not ready yet are passed over.
const BUSY_MAX: usize = 4;
