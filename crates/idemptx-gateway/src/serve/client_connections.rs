//! The connections of clients: accepted within limits, served, and closed when nothing comes.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, ready};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout};

use crate::activity::{ActiveBody, Activity, Inactive};
use crate::config;
use crate::connection_limit::{ClientConnection, ConnectionLimit, ConnectionPermit};
use crate::network::{ClientAddress, Listener, Stream};
use crate::proxy::{DownstreamBody, Peer, RoutingTable, answer, probe};
use crate::proxy_protocol;
use crate::recorder::Recorder;
use crate::shutdown::ShutdownWatch;
use crate::strict_http1::{StrictHttp1, UpgradeFlag};
use crate::tls::{Accepted, Acceptor, Negotiated};
use crate::upstream::UpstreamBody;
use crate::workers::Workers;
use crate::write_timeout::WriteTimeout;

/// State shared by the connections of one listener.
pub(super) struct ListenerContext {
    pub(super) number: usize,
    pub(super) listener: config::Listener,
    pub(super) tables: watch::Receiver<Arc<RoutingTable>>,
    pub(super) shutdown_watch: ShutdownWatch,
    pub(super) limit: ConnectionLimit,
    pub(super) workers: Workers,
}

impl ListenerContext {
    fn recorder(&self) -> Arc<Recorder> {
        Arc::clone(self.tables.borrow().store.recorder())
    }
}

/// Accepts connections until it is dropped.
pub(super) async fn accept(socket: Listener, context: Arc<ListenerContext>) {
    let mut failures = 0_u64;
    loop {
        let Some(reserved) = context.limit.reserve().await else { return };
        let accepted = socket.accept().await;
        if accepted.is_ok() && failures > 0 {
            tracing::info!("connections are accepted again, after {failures} failures");
            failures = 0;
        }
        let (workers, shared) = (&context.workers, Arc::clone(&context));
        let served = match accepted {
            Ok((stream, address)) if context.listener.proxy_protocol => {
                workers.serve(stream, move |it| introduced(it, address, reserved, shared))
            }
            Ok((stream, address)) => match context.limit.try_acquire(address, reserved) {
                Some(permit) => {
                    workers.serve(stream, move |it| connection(it, address, permit, shared))
                }
                None => {
                    context.recorder().connection_refused(address, "limit");
                    continue;
                }
            },
            Err(error) => Err(error),
        };
        // Most likely out of file descriptors: connections may close in the meantime.
        if let Err(error) = served {
            failures += 1;
            context.recorder().accept_failed("a connection", &error);
            sleep(ACCEPT_PAUSE).await;
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
        let own = if is_spoken(version, spoken) {
            probes.then(|| probe(&table, &request)).flatten()
        } else {
            Some(version_refused())
        };
        let answered = match own {
            Some(response) => Either::Left(ready(response)),
            None => Either::Right(answer(table, peer, request)),
        };
        // Boxed, so that an idle connection does not reserve memory for a request.
        Box::pin(answered.map(move |mut response| {
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                upgraded.set();
            } else if closes && version <= Version::HTTP_11 {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            Ok::<_, Infallible>(response.map(|body| ActiveBody::new(body, active)))
        }))
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
