//! The admin listener.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{sleep, timeout};

use super::router::AdminService;
use crate::connection_limit::ConnectionLimit;
use crate::network::{ClientAddress, Listener, Stream};

/// Serves operators until it is dropped.
pub(crate) async fn listen(socket: Listener, service: Arc<AdminService>) {
    let limit = ConnectionLimit::of(CONNECTIONS_MAX, CONNECTIONS_PER_IP_MAX);
    loop {
        let Some(reserved) = limit.reserve().await else { return };
        match socket.accept().await {
            Ok((stream, peer)) => {
                // Probes come here, too, and must find a place.
                let Some(permit) = limit.try_acquire(peer, reserved) else {
                    tracing::debug!("refused one more admin connection from {peer}");
                    continue;
                };
                let service = Arc::clone(&service);
                tokio::spawn(async move {
                    // Idle connections must not exhaust the limit.
                    let served = serve(TokioIo::new(stream), peer, service);
                    if timeout(CONNECTION_MAX, served).await.is_err() {
                        tracing::debug!("closed an admin connection after its maximum age");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                service.recorder.accept_failed("an admin connection", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(io: TokioIo<Stream>, peer: ClientAddress, service: Arc<AdminService>) {
    let answers = service_fn(move |request: http::Request<Incoming>| {
        let service = Arc::clone(&service);
        async move { Ok::<_, Infallible>(service.answer(peer, request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(io, answers).await {
        tracing::debug!("admin connection ended: {error}");
    }
}

const CONNECTIONS_MAX: usize = 64;
const CONNECTIONS_PER_IP_MAX: usize = 32;
const CONNECTION_MAX: Duration = Duration::from_secs(600);
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
