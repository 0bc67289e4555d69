//! The admin listener.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use idemptx_core::key::RecordId;
use idemptx_core::store::Store;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::router::AdminService;
use crate::network::{TcpListener, TcpStream};
use crate::proxy::RoutingTable;

/// Serves operators until it is dropped.
pub(crate) async fn listen(socket: TcpListener, desk: Arc<AdminService>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    // Idle connections must not exhaust the limit.
                    let served = serve(TokioIo::new(stream), peer, desk);
                    if timeout(CONNECTION_MAX, served).await.is_err() {
                        tracing::debug!("closed an admin connection after its maximum age");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept an admin connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Queries the store now and then when requests do not.
pub(crate) async fn poll_store(tables: watch::Receiver<Arc<RoutingTable>>) {
    let absent_id = RecordId::from_bytes([0; RecordId::BYTES]);
    loop {
        let store = Arc::clone(&tables.borrow().store);
        let health = store.recorder().readiness();
        if !health.store_answered_within(POLL_INTERVAL) {
            health.store_asked();
            // The recorded store notes any reply.
            let _ = timeout(POLL_INTERVAL, store.lookup(&absent_id)).await;
        }
        sleep(POLL_INTERVAL).await;
    }
}

async fn serve(io: TokioIo<TcpStream>, peer: SocketAddr, desk: Arc<AdminService>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(peer.ip(), request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!("admin connection ended: {error}");
    }
}

const CONNECTIONS_MAX: usize = 64;
const CONNECTION_MAX: Duration = Duration::from_secs(600);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
