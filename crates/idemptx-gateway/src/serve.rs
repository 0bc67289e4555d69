//! The gateway as it runs: listeners, connections, a plan that can be replaced.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
#[cfg(feature = "seal")]
use idemptx::store::seal::InvalidKeys;
use idemptx::store::{AnyStore, UnknownStore};
use idemptx::{CheckError, EngineError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use crate::proxy::TokenError;
pub use crate::tls::TlsError;

use crate::admin::{self, Desk};
use crate::config::{Admin, Config, Listener, Store, Traces};
use crate::framing::{HandedOver, Strict};
use crate::network::{TcpListener, TcpStream};
use crate::observe::{Observed, Observer};
use crate::patient::Patient;
use crate::proxy::{Peer, Plan, Told, answer, probe};
use crate::shutdown::{Closing, Ending};
use crate::tls::{Accepted, Acceptor};

/// A gateway that listens.
///
/// # Cancel safety
///
/// Dropping it closes its listeners and connections at once; [`drain`](Self::drain) lets them end.
#[derive(Debug)]
pub struct Gateway {
    addresses: Vec<SocketAddr>,
    admin: Option<Admin>,
    admin_address: Option<SocketAddr>,
    observer: Arc<Observer>,
    /// Goes on to the end, so that operators see it.
    _operating: JoinSet<()>,
    listeners: Vec<Listener>,
    store: Store,
    traces: Option<Traces>,
    plan: watch::Sender<Arc<Plan>>,
    /// Former plans under which something is still done.
    former: Mutex<Vec<Arc<Plan>>>,
    told: Told,
    ending: Ending,
    accepting: JoinSet<()>,
}

impl Gateway {
    /// Binds the listeners, looks at the store, and begins to serve; the store may be away.
    ///
    /// # Errors
    ///
    /// [`StartError`] when an address cannot be listened on, or the store's URL cannot be read.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let store = crate::store::open(&config.store)?;
        Self::start_over(store, config).await
    }

    /// The same over a store that is open.
    pub(crate) async fn start_over(store: AnyStore, config: Config) -> Result<Self, StartError> {
        let observer = match &config.admin {
            Some(_) => Observer::counting(config.log.access),
            None => Observer::logging(config.log.access),
        };
        let traces = crate::traces::Traces::start(config.traces.as_ref())?;
        let observer = Arc::new(observer.tracing(traces));
        let store = Arc::new(Observed::new(store, Arc::clone(&observer)));
        let plan = Arc::new(Plan::new(&config, store, None)?);
        let mut sockets = Vec::new();
        for Listener { address, .. } in &config.listeners {
            let socket = TcpListener::bind(address).await;
            sockets.push(socket.map_err(|error| StartError::Listen(*address, error))?);
        }
        let admin_socket = match &config.admin {
            Some(admin) => {
                let socket = TcpListener::bind(admin.address).await;
                Some(socket.map_err(|error| StartError::Listen(admin.address, error))?)
            }
            None => None,
        };
        let told = Told::default();
        plan.look_at_store(&told).await;
        plan.begin_checks();
        let (plan, plans) = watch::channel(plan);
        let (ending, closing) = crate::shutdown::ending();
        let room = Room::new(&config);
        let (mut addresses, mut accepting) = (Vec::new(), JoinSet::new());
        for (number, (listener, socket)) in config.listeners.iter().zip(sockets).enumerate() {
            addresses.push(socket.local_addr().unwrap_or(listener.address));
            let serving = Serving {
                number,
                listener: listener.clone(),
                plans: plans.clone(),
                closing: closing.clone(),
                room: room.clone(),
            };
            accepting.spawn(accept(socket, Arc::new(serving)));
        }
        let mut operating = JoinSet::new();
        let mut admin_address = None;
        if let Some((admin, socket)) = config.admin.as_ref().zip(admin_socket) {
            admin_address = Some(socket.local_addr().unwrap_or(admin.address));
            let desk = Arc::new(Desk::new(admin, plans.clone(), Arc::clone(&observer)));
            operating.spawn(admin::listen(socket, desk));
        }
        if config.admin.is_some() || config.listeners.iter().any(|listener| listener.probes) {
            operating.spawn(admin::look_after_store(plans));
        }
        Ok(Self {
            addresses,
            admin: config.admin,
            admin_address,
            observer,
            _operating: operating,
            listeners: config.listeners,
            store: config.store,
            traces: config.traces,
            plan,
            former: Mutex::default(),
            told,
            ending,
            accepting,
        })
    }

    /// Where it listens, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where operators come in, if they may.
    #[must_use]
    pub const fn admin_address(&self) -> Option<SocketAddr> {
        self.admin_address
    }

    /// Takes another configuration; requests under way end under the one that they began with.
    ///
    /// # Errors
    ///
    /// [`StartError`] for a configuration that cannot be used; the former one stays in force.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the former configuration stays in force.
    pub async fn reload(&self, config: &Config) -> Result<(), StartError> {
        let taken = self.take(config).await;
        self.observer.reloaded(taken.is_ok());
        taken
    }

    async fn take(&self, config: &Config) -> Result<(), StartError> {
        if config.admin != self.admin {
            return Err(StartError::Fixed("[admin]"));
        }
        if config.listeners != self.listeners {
            return Err(StartError::Fixed("[[listener]]"));
        }
        if config.store != self.store {
            return Err(StartError::Fixed("[store]"));
        }
        if config.traces != self.traces {
            return Err(StartError::Fixed("[traces]"));
        }
        let former = Arc::clone(&self.plan.borrow());
        let plan = Arc::new(Plan::new(config, Arc::clone(&former.store), Some(&former))?);
        plan.look_at_store(&self.told).await;
        plan.begin_checks();
        former.end_checks(Some(&plan));
        self.plan.send_replace(plan);
        let mut leaving = self.former.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.push(former);
        leaving.retain(|plan| Arc::strong_count(plan) > 1 || plan.in_flight() > 0);
        Ok(())
    }

    /// What the store promises, in one line.
    ///
    /// # Errors
    ///
    /// As [`Engine::check`](idemptx::Engine::check) of the first route that is protected.
    ///
    /// # Cancel safety
    ///
    /// May be dropped and called again.
    pub async fn promise(&self) -> Result<String, CheckError> {
        let plan = Arc::clone(&self.plan.borrow());
        match plan.routes.iter().find_map(|route| route.engine.as_ref()) {
            Some(engine) => Ok(engine.check().await?.guarantee),
            None => Ok(String::new()),
        }
    }

    /// Stops to accept, and waits until what runs has ended, for as long as policies allow.
    pub async fn drain(mut self) {
        self.observer.health().drain();
        let plan = Arc::clone(&self.plan.borrow());
        plan.end_checks(None);
        self.accepting.shutdown().await;
        let all = async {
            self.ending.finish().await;
            plan.drain().await;
            let former = std::mem::take(&mut self.former);
            for plan in former.into_inner().unwrap_or_else(PoisonError::into_inner) {
                plan.drain().await;
            }
        };
        if timeout(plan.drain_max(), all).await.is_err() {
            tracing::warn!("some requests have not ended in time; their claims will lapse");
        }
        self.observer.traces().end().await;
    }
}

/// Why a gateway does not start, or does not take a configuration.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    Listen(SocketAddr, io::Error),
    /// The store's URL cannot be read, or its file not be opened.
    Store(UnknownStore),
    /// The keys that results are sealed with cannot be used.
    #[cfg(feature = "seal")]
    Seal(InvalidKeys),
    /// A policy cannot be carried out.
    Policy(EngineError),
    /// A certificate or key cannot be used.
    Tls(TlsError),
    /// The keys of tokens cannot be used.
    Token(TokenError),
    /// Where traces go cannot be told.
    Traces(Box<dyn Error + Send + Sync>),
    /// Something that only a new start can change.
    Fixed(&'static str),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(address, _) => write!(f, "cannot listen on {address}"),
            Self::Store(_) => f.write_str("the store cannot be used"),
            #[cfg(feature = "seal")]
            Self::Seal(_) => f.write_str("[store.seal]"),
            Self::Tls(error) => error.fmt(f),
            Self::Token(error) => error.fmt(f),
            Self::Traces(_) => f.write_str("traces cannot be exported"),
            Self::Policy(_) => f.write_str("a policy cannot be carried out"),
            Self::Fixed(what) => write!(f, "{what} has changed, which needs a new start"),
        }
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Listen(_, error) => Some(error),
            Self::Store(error) => Some(error),
            #[cfg(feature = "seal")]
            Self::Seal(error) => Some(error),
            Self::Policy(error) => Some(error),
            Self::Tls(error) => error.source(),
            Self::Traces(error) => Some(&**error),
            Self::Token(_) | Self::Fixed(_) => None,
        }
    }
}

/// What the connections of a listener share.
struct Serving {
    number: usize,
    listener: Listener,
    plans: watch::Receiver<Arc<Plan>>,
    closing: Closing,
    room: Room,
}

async fn accept(socket: TcpListener, serving: Arc<Serving>) {
    loop {
        let Ok(permit) = Arc::clone(&serving.room.connections).acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok((stream, address)) => {
                if let Some(seat) = serving.room.seat(address.ip(), permit) {
                    tokio::spawn(connection(stream, address.ip(), seat, Arc::clone(&serving)));
                }
            }
            // Out of descriptors, most likely: what is there may end meanwhile.
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, address: IpAddr, _seat: Seat, serving: Arc<Serving>) {
    let _connected = serving.plans.borrow().store.observer().connected();
    // An answer in two segments need not wait for the first one's acknowledgement.
    let _ = stream.set_nodelay(true);
    let stream = Patient::new(stream, serving.plans.borrow().limits.pause);
    let tls = serving.plans.borrow().tls.get(serving.number).cloned().flatten();
    let Some(tls) = tls else {
        let peer = Peer::new(address, false, serving.listener.forwarded, None);
        let (http1, http2) = (serving.listener.http1, serving.listener.http2);
        return serve(stream, peer, (http1, http2), &serving).await;
    };
    // Boxed, so that a connection in clear text does not keep room for what TLS needs.
    Box::pin(secured(tls, stream, address, &serving)).await;
}

async fn secured(tls: Acceptor, stream: Patient<TcpStream>, address: IpAddr, serving: &Serving) {
    match tls.accept(stream).await {
        Ok(Accepted { stream, is_http2, certificate }) => {
            let peer = Peer::new(address, true, serving.listener.forwarded, certificate);
            serve(stream, peer, (!is_http2, is_http2), serving).await;
        }
        Err(error) => tracing::debug!("no TLS with a client: {error}"),
    }
}

/// Serves a connection; `spoken` says whether HTTP/1.1 may be, and HTTP/2.
async fn serve<S>(stream: S, peer: Peer, spoken: (bool, bool), serving: &Serving)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (plans, probes) = (serving.plans.clone(), serving.listener.probes);
    let handed_over = HandedOver::default();
    let head_bytes_max = plans.borrow().limits.head_bytes_max;
    let io = TokioIo::new(Strict::new(stream, head_bytes_max, handed_over.clone()));
    let builder = builder(spoken, serving);
    let peer = Arc::new(peer);
    let service = service_fn(move |request: Request<Incoming>| {
        let (plan, peer) = (Arc::clone(&plans.borrow()), Arc::clone(&peer));
        let handed_over = handed_over.clone();
        async move {
            let probed = probes.then(|| probe(&plan, &request)).flatten();
            let response = match probed {
                Some(response) => response,
                // Boxed, so that an idle connection does not keep room for a request.
                None => Box::pin(answer(plan, peer, request)).await,
            };
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                handed_over.tell();
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = builder.serve_connection_with_upgrades(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut closing = serving.closing.clone();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = closing.announced() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a client's connection ended: {error}");
    }
}

fn builder(spoken: (bool, bool), serving: &Serving) -> auto::Builder<TokioExecutor> {
    let limits = serving.plans.borrow().limits.clone();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let mut http1 = builder.http1();
    http1.timer(TokioTimer::new()).header_read_timeout(limits.head);
    http1.max_headers(limits.head_lines_max).max_buf_size(limits.head_bytes_max);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new());
    http2.max_concurrent_streams(limits.streams_max);
    http2.max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX));
    http2.keep_alive_interval(limits.pause).keep_alive_timeout(limits.pause);
    match spoken {
        (true, false) => builder.http1_only(),
        (false, true) => builder.http2_only(),
        _ => builder,
    }
}

/// How many may come in.
#[derive(Clone, Debug)]
struct Room {
    connections: Arc<Semaphore>,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    each_max: usize,
}

impl Room {
    fn new(config: &Config) -> Self {
        let all = config.limits.connections_max.min(Semaphore::MAX_PERMITS);
        Self {
            connections: Arc::new(Semaphore::new(all)),
            each: Arc::default(),
            each_max: config.limits.connections_per_ip_max,
        }
    }

    /// A place, unless this address has too many.
    fn seat(&self, address: IpAddr, permit: OwnedSemaphorePermit) -> Option<Seat> {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        let count = each.entry(address).or_default();
        if *count >= self.each_max {
            return None;
        }
        *count += 1;
        Some(Seat { address, each: Arc::clone(&self.each), _permit: permit })
    }
}

/// A connection's place.
struct Seat {
    address: IpAddr,
    each: Arc<Mutex<HashMap<IpAddr, usize>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = each.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                each.remove(&self.address);
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
