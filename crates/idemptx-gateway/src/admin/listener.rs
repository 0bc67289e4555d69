//! The admin listener: few connections, small requests.

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

use super::desk::Desk;
use crate::network::{TcpListener, TcpStream};
use crate::proxy::Plan;

/// Answers operators until it is dropped.
pub(crate) async fn listen(socket: TcpListener, desk: Arc<Desk>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    // Nobody needs one connection for longer, and idle ones must not fill the room.
                    let served = serve(TokioIo::new(stream), peer, desk);
                    if timeout(CONNECTION_MAX, served).await.is_err() {
                        tracing::debug!("an operator's connection was open for too long");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept an operator's connection: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Asks the store now and then whether it is there, when requests do not.
pub(crate) async fn look_after_store(plans: watch::Receiver<Arc<Plan>>) {
    let nobody = RecordId::from_bytes([0; RecordId::BYTES]);
    loop {
        let store = Arc::clone(&plans.borrow().store);
        let health = store.observer().health();
        if !health.has_answered_within(LOOK_EVERY) {
            health.asked();
            // An answer of any kind is taken down by the observer on its way.
            let _ = timeout(LOOK_EVERY, store.lookup(&nobody)).await;
        }
        sleep(LOOK_EVERY).await;
    }
}

async fn serve(io: TokioIo<TcpStream>, peer: SocketAddr, desk: Arc<Desk>) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(desk.answer(peer.ip(), request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(io, service).await {
        tracing::debug!("an operator's connection ended: {error}");
    }
}

const CONNECTIONS_MAX: usize = 64;
const CONNECTION_MAX: Duration = Duration::from_secs(600);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
