//! The running gateway: listeners, connections, and a routing table that can be replaced.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use idemptx::CheckError;
use idemptx::store::{AnyStore, SafetyCheck};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use crate::error::StartError;
pub use crate::tls::TlsError;
pub use crate::token::TokenError;

use crate::activity::{ActiveBody, Activity, Inactive};
use crate::admin::{self, AdminService};
use crate::config::{self, Config, ListenAddress, SOCKET_MODE};
use crate::connection_limit::{ClientConnection, ConnectionLimit, ConnectionPermit};
use crate::network::{self, ClientAddress, Listener, SocketFile, Stream};
use crate::proxy::{
    DownstreamBody, ExtProcServer, LoggedFindings, Peer, RoutingTable, answer, probe,
};
use crate::proxy_protocol;
use crate::recorder::{RecordedStore, Recorder};
use crate::shutdown::{ShutdownTrigger, ShutdownWatch};
use crate::strict_http1::{StrictHttp1, UpgradeFlag};
use crate::tls::{Accepted, Acceptor, Negotiated};
use crate::upstream::UpstreamBody;
use crate::write_timeout::WriteTimeout;

/// A running gateway.
///
/// # Cancel safety
///
/// Dropping it closes its listeners and connections at once; [`drain`](Self::drain) waits for them.
#[derive(Debug)]
pub struct Gateway {
    addresses: Vec<ListenAddress>,
    /// The files of Unix sockets, which go before the sockets do.
    socket_files: Vec<SocketFile>,
    admin_file: Option<SocketFile>,
    /// The configuration at the start; some sections cannot be reloaded.
    config: Config,
    admin_address: Option<ListenAddress>,
    ext_proc_address: Option<SocketAddr>,
    recorder: Arc<Recorder>,
    /// Runs until the end of the drain, so that operators can watch it.
    operating: JoinSet<()>,
    table: watch::Sender<Arc<RoutingTable>>,
    /// Replaced routing tables that still have requests in flight.
    retired: Mutex<Vec<Arc<RoutingTable>>>,
    logged: LoggedFindings,
    shutdown: ShutdownTrigger,
    accept_tasks: JoinSet<()>,
}

impl Gateway {
    /// Binds the listeners, checks the store and starts to serve; the store may be unavailable.
    ///
    /// # Errors
    ///
    /// [`StartError`] if an address cannot be bound or the store's URL is invalid.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        let store = crate::store::open(&config.store)?;
        Self::start_over(store, config).await
    }

    /// Starts over a store that is open already.
    pub(crate) async fn start_over(store: AnyStore, config: Config) -> Result<Self, StartError> {
        for warning in &config.warnings {
            tracing::warn!("{warning}");
        }
        let recorder = match &config.admin {
            Some(_) => Recorder::with_admin(config.log),
            None => Recorder::without_admin(config.log),
        };
        let traces = crate::traces::Tracer::start(config.traces.as_ref())?;
        let recorder = Arc::new(recorder.with_traces(traces));
        recorder.readiness().require_store(config.store.required_for_readiness);
        let store = Arc::new(RecordedStore::new(store, Arc::clone(&recorder)));
        let table = Arc::new(RoutingTable::new(&config, Arc::clone(&store), None)?);
        let (mut sockets, mut socket_files) = (Vec::new(), Vec::new());
        for listener in &config.listeners {
            let (socket, file) = match listener.inherit {
                true => network::inherited()
                    .map(|socket| (socket, None))
                    .map_err(|error| StartError::Listen(listener.address.clone(), error))?,
                false => bind(&listener.address, listener.socket_mode).await?,
            };
            sockets.push(socket);
            socket_files.extend(file);
        }
        let (admin_socket, admin_file) = match &config.admin {
            Some(admin) => {
                let (socket, file) = bind(&admin.address, admin.socket_mode).await?;
                (Some(socket), file)
            }
            None => (None, None),
        };
        let ext_proc = match &config.ext_proc {
            Some(ext_proc) => Some(ExtProcServer::bind(ext_proc, &config.limits).await?),
            None => None,
        };
        let logged = LoggedFindings::default();
        tokio::join!(table.check_store(&logged), table.start_key_sets());
        table.start_health_checks();
        let (table, tables) = watch::channel(table);
        let (shutdown, shutdown_watch) = crate::shutdown::channel();
        let limit = ConnectionLimit::new(&config.limits);
        let (mut addresses, mut accept_tasks) = (Vec::new(), JoinSet::new());
        for (number, (listener, socket)) in config.listeners.iter().zip(sockets).enumerate() {
            addresses.push(socket.address().unwrap_or_else(|| listener.address.clone()));
            let context = ListenerContext {
                number,
                listener: listener.clone(),
                tables: tables.clone(),
                shutdown_watch: shutdown_watch.clone(),
                limit: limit.clone(),
            };
            accept_tasks.spawn(accept(socket, Arc::new(context)));
        }
        let ext_proc_address = ext_proc.as_ref().map(ExtProcServer::address);
        if let Some(ext_proc) = ext_proc {
            accept_tasks.spawn(ext_proc.serve(tables.clone(), shutdown_watch));
        }
        let mut admin_tasks = JoinSet::new();
        let mut admin_address = None;
        if let Some((admin, socket)) = config.admin.as_ref().zip(admin_socket) {
            admin_address = Some(socket.address().unwrap_or_else(|| admin.address.clone()));
            let service = Arc::new(AdminService::new(admin, tables, Arc::clone(&recorder)));
            admin_tasks.spawn(admin::listen(socket, service));
        }
        let is_probed = config.admin.is_some()
            || config.ext_proc.is_some()
            || config.listeners.iter().any(|listener| listener.probes);
        if is_probed {
            admin_tasks.spawn(crate::recorder::poll(store));
        }
        Ok(Self {
            addresses,
            socket_files,
            admin_file,
            config,
            admin_address,
            ext_proc_address,
            recorder,
            operating: admin_tasks,
            table,
            retired: Mutex::default(),
            logged,
            shutdown,
            accept_tasks,
        })
    }

    /// The listeners' addresses, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// The address of the admin listener, if there is one.
    #[must_use]
    pub const fn admin_address(&self) -> Option<&ListenAddress> {
        self.admin_address.as_ref()
    }

    /// The address of the listener for Envoy, if there is one.
    #[must_use]
    pub const fn ext_proc_address(&self) -> Option<SocketAddr> {
        self.ext_proc_address
    }

    /// Applies a new configuration; requests in flight finish under the previous one.
    ///
    /// # Errors
    ///
    /// [`StartError`] if the configuration cannot be applied; the previous one stays in force.
    ///
    /// # Cancel safety
    ///
    /// Dropped, the previous configuration stays in force.
    pub async fn reload(&self, config: &Config) -> Result<(), StartError> {
        let applied = self.take(config).await;
        self.recorder.reloaded(applied.is_ok());
        applied
    }

    /// Counts a reload that was refused before there was a configuration.
    pub(crate) fn note_unreadable(&self) {
        self.recorder.reloaded(false);
    }

    async fn take(&self, config: &Config) -> Result<(), StartError> {
        if let Some(section) = self.config.restart_section(config) {
            return Err(StartError::RequiresRestart(section));
        }
        let retired = Arc::clone(&self.table.borrow());
        let table =
            Arc::new(RoutingTable::new(config, Arc::clone(&retired.store), Some(&retired))?);
        tokio::join!(table.check_store(&self.logged), table.start_key_sets());
        table.start_health_checks();
        retired.stop_health_checks(Some(&table));
        retired.stop_store_checks();
        self.table.send_replace(Arc::clone(&table));
        let mut leaving = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.push(retired);
        leaving.retain(|it| Arc::strong_count(it) > 1 || it.in_flight_beside(&table) > 0);
        Ok(())
    }

    /// The store's guarantee, in one line.
    ///
    /// # Errors
    ///
    /// Those of [`Engine::check`](idemptx::Engine::check) for the first protected route.
    ///
    /// # Cancel safety
    ///
    /// Can be dropped and called again.
    pub async fn store_guarantee(&self) -> Result<String, CheckError> {
        let table = Arc::clone(&self.table.borrow());
        match table.routes.iter().find_map(|route| route.engine.as_ref()) {
            Some(engine) => {
                let report = table.store.check().await.map_err(CheckError::Unreachable)?;
                Ok(engine.judge(report)?.guarantee)
            }
            None => Ok(String::new()),
        }
    }

    /// Reports to probes that the gateway is about to end, while it goes on serving, and returns the
    /// time for which a load balancer needs that.
    ///
    /// Zero where no listener answers probes.
    #[must_use]
    pub fn announce_end(&self) -> Duration {
        self.recorder.readiness().start_draining();
        let is_probed = self.config.admin.is_some()
            || self.config.ext_proc.is_some()
            || self.config.listeners.iter().any(|it| it.probes);
        if is_probed { self.table.borrow().limits.lame_duck } else { Duration::ZERO }
    }

    /// Stops accepting, and waits for requests in flight for as long as the policies allow.
    pub async fn drain(mut self) {
        self.recorder.readiness().start_draining();
        let table = Arc::clone(&self.table.borrow());
        table.stop_health_checks(None);
        // While the sockets listen, so that no other process takes a file for a stale one.
        self.socket_files.clear();
        self.accept_tasks.shutdown().await;
        let all = async {
            self.shutdown.finish().await;
            table.drain().await;
            let retired = std::mem::take(&mut self.retired);
            for table in retired.into_inner().unwrap_or_else(PoisonError::into_inner) {
                table.drain().await;
            }
        };
        if timeout(table.drain_max(), all).await.is_err() {
            tracing::warn!("drain timed out with requests in flight; their claims will lapse");
        }
        self.recorder.traces().end().await;
        drop(self.admin_file.take());
        self.operating.shutdown().await;
    }
}

async fn bind(
    address: &ListenAddress,
    mode: Option<u32>,
) -> Result<(Listener, Option<SocketFile>), StartError> {
    let bound = Listener::bind(address, mode.unwrap_or(SOCKET_MODE)).await;
    bound.map_err(|error| StartError::Listen(address.clone(), error))
}

/// State shared by the connections of one listener.
struct ListenerContext {
    number: usize,
    listener: config::Listener,
    tables: watch::Receiver<Arc<RoutingTable>>,
    shutdown_watch: ShutdownWatch,
    limit: ConnectionLimit,
}

impl ListenerContext {
    fn recorder(&self) -> Arc<Recorder> {
        Arc::clone(self.tables.borrow().store.recorder())
    }
}

async fn accept(socket: Listener, context: Arc<ListenerContext>) {
    let mut failures = 0_u64;
    loop {
        let Some(reserved) = context.limit.reserve().await else { return };
        let accepted = socket.accept().await;
        if accepted.is_ok() && failures > 0 {
            tracing::info!("connections are accepted again, after {failures} failures");
            failures = 0;
        }
        match accepted {
            Ok((stream, address)) if context.listener.proxy_protocol => {
                let context = Arc::clone(&context);
                tokio::spawn(introduced(stream, address, reserved, context));
            }
            Ok((stream, address)) => match context.limit.try_acquire(address, reserved) {
                Some(permit) => {
                    let context = Arc::clone(&context);
                    tokio::spawn(connection(stream, address, permit, context));
                }
                None => context.recorder().connection_refused(address, "limit"),
            },
            // Most likely out of file descriptors: connections may close in the meantime.
            Err(error) => {
                failures += 1;
                context.recorder().accept_failed("a connection", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves a connection for which a load balancer says who the client is.
async fn introduced(
    mut stream: Stream,
    balancer: ClientAddress,
    reserved: OwnedSemaphorePermit,
    context: Arc<ListenerContext>,
) {
    let trusted = &context.listener.trusted_proxies;
    let limit = context.tables.borrow().limits.handshake;
    let client = if trusted.iter().any(|network| network.contains(balancer)) {
        proxy_protocol::read_header(&mut stream, limit).await
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    };
    let client = match client {
        Ok(client) => client.map_or(balancer, ClientAddress::Ip),
        Err(error) => {
            tracing::debug!("closing a connection without its header: {error}");
            return context.recorder().connection_refused(balancer, "proxy-protocol");
        }
    };
    match context.limit.try_acquire(client, reserved) {
        Some(permit) => connection(stream, client, permit, context).await,
        None => context.recorder().connection_refused(client, "limit"),
    }
}

async fn connection(
    stream: Stream,
    address: ClientAddress,
    permit: ConnectionPermit,
    context: Arc<ListenerContext>,
) {
    let open = context.tables.borrow().store.recorder().connection_opened();
    let connection = ClientConnection::new(permit, open, context.shutdown_watch.clone());
    // A response in two segments must not wait for the acknowledgement of the first.
    let _ = stream.set_nodelay();
    let stream = WriteTimeout::new(stream, context.tables.borrow().limits.pause);
    let tls = context.tables.borrow().tls.get(context.number).cloned().flatten();
    let Some(tls) = tls else {
        let peer = Peer::new(address, false, &context.listener, None, connection.downgrade());
        let (http1, http2) = (context.listener.http1, context.listener.http2);
        return serve_http(stream, peer, (http1, http2), &context).await;
    };
    // Boxed, so that a clear-text connection does not reserve memory for TLS.
    Box::pin(serve_tls(tls, stream, address, &connection, &context)).await;
}

async fn serve_tls(
    tls: Acceptor,
    stream: WriteTimeout<Stream>,
    address: ClientAddress,
    connection: &ClientConnection,
    context: &ListenerContext,
) {
    match tls.accept(stream).await {
        Ok(Accepted { stream, negotiated, certificate }) => {
            let listener = &context.listener;
            let peer = Peer::new(address, true, listener, certificate, connection.downgrade());
            let spoken = match negotiated {
                Some(Negotiated::Http1) => (true, false),
                Some(Negotiated::Http2) => (false, true),
                None => (context.listener.http1, context.listener.http2),
            };
            serve_http(stream, peer, spoken, context).await;
        }
        Err(error) => {
            context.recorder().connection_refused(address, "tls");
            tracing::debug!("TLS handshake with a client failed: {error}");
        }
    }
}

/// Serves a connection; `spoken` enables HTTP/1.1 and HTTP/2.
async fn serve_http<S>(stream: S, peer: Peer, spoken: (bool, bool), context: &ListenerContext)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (tables, probes) = (context.tables.clone(), context.listener.probes);
    let upgraded = UpgradeFlag::default();
    let head_bytes_max = tables.borrow().limits.head_bytes_max;
    let activity = Activity::new();
    let io = StrictHttp1::new(stream, head_bytes_max, upgraded.clone(), Arc::clone(&activity));
    let io = TokioIo::new(io);
    let builder = builder(context);
    let client = peer.address;
    let peer = Arc::new(peer);
    let requests = Arc::clone(&activity);
    let service = service_fn(move |request: Request<Incoming>| {
        let (table, peer) = (Arc::clone(&tables.borrow()), Arc::clone(&peer));
        let active = requests.request(request.version() == Version::HTTP_2);
        let upgraded = upgraded.clone();
        let version = request.version();
        // The next request is for another gateway: none must meet the end of this connection.
        let closes = table.store.recorder().readiness().is_draining();
        async move {
            let probed = probes.then(|| probe(&table, &request)).flatten();
            let mut response = match probed {
                _ if !is_spoken(request.version(), spoken) => version_refused(),
                Some(response) => response,
                // Boxed, so that an idle connection does not reserve memory for a request.
                None => Box::pin(answer(table, peer, request)).await,
            };
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                upgraded.set();
            } else if closes && version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| ActiveBody::new(body, active)))
        }
    });
    let connection = builder.serve_connection_with_upgrades(io, service);
    let mut connection = std::pin::pin!(connection);
    let mut shutdown_watch = context.shutdown_watch.clone();
    let (head, pause) = {
        let limits = &context.tables.borrow().limits;
        (limits.head, limits.pause)
    };
    let watch = async {
        tokio::select! {
            why = activity.inactive(head, pause) => Some(why),
            () = shutdown_watch.requested() => None,
        }
    };
    // A set of one, which polls it when it was woken: not whenever the connection is.
    let mut watch = FuturesUnordered::from_iter([watch]);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        Some(inactive) = watch.next() => {
            if let Some(why) = inactive {
                tracing::debug!("closing a client connection: {why:?}");
            }
            if matches!(inactive, Some(Inactive::Stalled | Inactive::Flooding)) {
                return;
            }
            // A client of HTTP/2 is told (RFC 9113 §6.8); a request that comes meanwhile is served.
            connection.as_mut().graceful_shutdown();
            match inactive {
                None => connection.await,
                Some(_) => loop {
                    match timeout(pause.min(FAREWELL_MAX), connection.as_mut()).await {
                        Ok(ended) => break ended,
                        Err(_) if activity.has_no_request() => return,
                        Err(_) => {}
                    }
                },
            }
        }
    };
    if let Err(error) = ended {
        if error.downcast_ref().is_some_and(hyper::Error::is_parse) {
            context.recorder().connection_refused(client, "malformed");
        }
        tracing::debug!("client connection ended: {error}");
    }
}

/// Returns whether the connection may speak this version; hyper takes either where it also takes
/// upgrades.
fn is_spoken(version: Version, (http1, http2): (bool, bool)) -> bool {
    if version == Version::HTTP_2 { http2 } else { http1 }
}

fn version_refused() -> Response<DownstreamBody> {
    let mut response = Response::new(DownstreamBody::plain(UpstreamBody::from_bytes(Bytes::new())));
    *response.status_mut() = StatusCode::HTTP_VERSION_NOT_SUPPORTED;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn builder(context: &ListenerContext) -> auto::Builder<TokioExecutor> {
    let limits = context.tables.borrow().limits.clone();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    let mut http1 = builder.http1();
    // The limit for heads is that for connections without a request, which is watched anyway.
    http1.header_read_timeout(None);
    http1.max_headers(limits.head_lines_max).max_buf_size(limits.head_bytes_max);
    let mut http2 = builder.http2();
    http2.timer(TokioTimer::new());
    http2.max_concurrent_streams(limits.streams_max);
    http2.max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX));
    http2.keep_alive_interval(limits.pause).keep_alive_timeout(limits.pause);
    builder
}

/// The time for a client to notice that its idle connection ends.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
