//! The gRPC server that Envoy calls.

use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};

use super::Dialogue;
use super::grpc::{self, MessageReader, Reply, ReplyBody, Status};
use super::messages::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use super::processor::Processor;
use crate::config::{ExtProc, Limits};
use crate::error::StartError;
use crate::network::{Stream, TcpListener};
use crate::proxy::RoutingTable;
use crate::shutdown::ShutdownWatch;
use crate::tls::Acceptor;
use crate::workers::Workers;
use crate::write_timeout::WriteTimeout;

/// The listener of the processor.
pub(crate) struct ExtProcServer {
    socket: TcpListener,
    pause: Duration,
    context: Arc<CallContext>,
}

/// State shared by all calls.
#[derive(Debug)]
struct CallContext {
    processor: Processor,
    calls: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl ExtProcServer {
    /// Binds the listener.
    ///
    /// # Errors
    ///
    /// [`StartError`] if that fails.
    pub(crate) async fn bind(config: &ExtProc, limits: &Limits) -> Result<Self, StartError> {
        let socket = TcpListener::bind(config.address).await;
        let socket = socket.map_err(|error| StartError::Listen(config.address.into(), error))?;
        let calls = usize::try_from(config.streams_max).unwrap_or(usize::MAX);
        let context = CallContext {
            processor: Processor::new(config.clone()),
            calls: Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS))),
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        };
        Ok(Self { socket, pause: limits.pause, context: Arc::new(context) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap_or(self.context.processor.settings.address)
    }

    /// Accepts connections until it is dropped; they end at the shutdown.
    pub(crate) async fn serve(
        self,
        tables: watch::Receiver<Arc<RoutingTable>>,
        shutdown: ShutdownWatch,
        workers: Workers,
    ) {
        loop {
            let connections = Arc::clone(&self.context.connections);
            let Ok(permit) = connections.acquire_owned().await else { return };
            let served = self.socket.accept().await.and_then(|(stream, peer)| {
                let connection = Connection {
                    context: Arc::clone(&self.context),
                    tables: tables.clone(),
                    shutdown: shutdown.clone(),
                    peer: peer.ip(),
                    _permit: permit,
                };
                let (tls, pause) = (tables.borrow().ext_proc_tls.clone(), self.pause);
                workers.serve(Stream::Tcp(stream), move |it| connection.accept(it, tls, pause))
            });
            // Most likely out of file descriptors: connections may close in the meantime.
            if let Err(error) = served {
                tracing::warn!("cannot accept a connection of Envoy: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl fmt::Debug for ExtProcServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtProcServer").field("context", &self.context).finish_non_exhaustive()
    }
}

struct Connection {
    context: Arc<CallContext>,
    tables: watch::Receiver<Arc<RoutingTable>>,
    shutdown: ShutdownWatch,
    peer: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    async fn accept(self, stream: Stream, tls: Option<Acceptor>, pause: Duration) {
        let _ = stream.set_nodelay();
        let stream = WriteTimeout::new(stream, pause);
        match tls {
            None => self.serve(stream, pause).await,
            Some(tls) => match tls.accept(stream).await {
                Ok(accepted) => self.serve(accepted.stream, pause).await,
                Err(error) => tracing::debug!("TLS handshake with Envoy failed: {error}"),
            },
        }
    }

    async fn serve<S>(self, stream: S, pause: Duration)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (context, tables, peer) = (Arc::clone(&self.context), self.tables.clone(), self.peer);
        let is_used = Arc::new(AtomicBool::new(false));
        let unused = unused(Arc::clone(&is_used), tables.borrow().limits.head);
        let service = service_fn(move |request: Request<Incoming>| {
            is_used.store(true, Ordering::Relaxed);
            let (context, table) = (Arc::clone(&context), Arc::clone(&tables.borrow()));
            async move { Ok::<_, Infallible>(call(request, context, table, peer).await) }
        });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new());
        let streams_max = self.context.processor.settings.streams_max;
        builder.max_concurrent_streams(streams_max);
        // Envoy resets a call for each client that leaves, a thousand at once where a proxy in front
        // of it gives up. That is no attack, and the end of the connection would be the end of all
        // other calls: of executions, too, whose outcomes would be unknown.
        builder.max_pending_accept_reset_streams(usize::try_from(streams_max).ok());
        builder.max_local_error_reset_streams(None);
        builder.keep_alive_interval(pause).keep_alive_timeout(pause);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut shutdown = self.shutdown.clone();
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = unused => {
                tracing::debug!("closing a connection without a call");
                connection.as_mut().graceful_shutdown();
                match timeout(FAREWELL_MAX, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
            () = shutdown.requested() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!("a connection of Envoy ended: {error}");
        }
    }
}

/// Resolves after a while, unless the connection has been used by then.
///
/// Envoy connects for a call. Another host that connects and makes none must not take all places.
async fn unused(is_used: Arc<AtomicBool>, limit: Duration) {
    sleep(limit).await;
    if is_used.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

async fn call(
    request: Request<Incoming>,
    context: Arc<CallContext>,
    table: Arc<RoutingTable>,
    peer: IpAddr,
) -> Response<ReplyBody> {
    if !grpc::is_call(&request) {
        return Status::unimplemented("not a gRPC call").into_response();
    }
    let path = request.uri().path().to_owned();
    let reader =
        MessageReader::new(request.into_body(), context.processor.settings.message_bytes_max);
    match &*path {
        PROCESS => process(reader, context, table, peer),
        HEALTH => health(reader, &table).await,
        _ => Status::unimplemented("no such method").into_response(),
    }
}

fn process(
    mut reader: MessageReader,
    context: Arc<CallContext>,
    table: Arc<RoutingTable>,
    peer: IpAddr,
) -> Response<ReplyBody> {
    let Ok(permit) = Arc::clone(&context.calls).try_acquire_owned() else {
        return Status::resource_exhausted("streams_max requests are being processed")
            .into_response();
    };
    let (replies, reply_receiver) = mpsc::channel(REPLIES_MAX);
    let (messages, inbound) = mpsc::channel(MESSAGES_MAX);
    let dialogue = Dialogue::new(inbound, replies.clone());
    tokio::spawn(async move {
        // Read on all the time: the end of the call says that Envoy, or its client, has left.
        let read = async move {
            loop {
                let message = match reader.next().await {
                    Ok(message) => message?,
                    Err(status) => return Some(status),
                };
                messages.send(message).await.ok()?;
            }
        };
        let status = tokio::select! {
            biased;
            status = context.processor.process(&dialogue, &table, peer) => Some(status),
            broken = read => broken,
        };
        if let Some(status) = status {
            // Without effect if Envoy is gone.
            let _ = replies.send(Reply::End(status)).await;
        }
        drop(permit);
    });
    grpc::response(reply_receiver)
}

/// Answers a health check (`grpc.health.v1`), as `/readyz` does.
async fn health(mut reader: MessageReader, table: &RoutingTable) -> Response<ReplyBody> {
    let asked = match reader.next::<HealthCheckRequest>().await {
        Ok(asked) => asked.unwrap_or_default(),
        Err(status) => return status.into_response(),
    };
    if !asked.service.is_empty() && asked.service != SERVICE {
        return Status::not_found("no such service").into_response();
    }
    let probe = table.store.recorder().readiness().probe("/readyz");
    let status = match probe.is_some_and(|(status, _)| status.is_success()) {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    let (sender, replies) = mpsc::channel(REPLIES_MAX);
    // There is room for both.
    let _ = sender.try_send(Reply::message(&HealthCheckResponse { status: status.into() }));
    let _ = sender.try_send(Reply::End(Status::ok()));
    grpc::response(replies)
}

const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
/// Connections of Envoy: each of its workers has one, or a few.
const CONNECTIONS_MAX: usize = 4096;
/// Messages that are read ahead; Envoy sends one and waits.
const MESSAGES_MAX: usize = 8;
/// Answers that wait to be written.
const REPLIES_MAX: usize = 8;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The time for a client to notice that its unused connection ends.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
