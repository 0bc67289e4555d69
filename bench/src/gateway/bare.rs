//! A plain proxy on hyper alone: no limits, no routes, no records, one header added.
//!
//! The gateway is built on hyper, so this is what its own work comes on top of.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::{HeaderValue, Request, Response};
use clap::Args;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use crate::Measured;

/// From where to where.
#[derive(Args, Clone, Debug)]
pub(crate) struct Flags {
    listen: SocketAddr,
    upstream: SocketAddr,
}

/// Passes on until killed.
pub(crate) fn run(flags: &Flags) -> Measured<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(flags.listen).await?;
        let pool = Pool { upstream: flags.upstream, idle: Arc::default() };
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let pool = pool.clone();
            let service = service_fn(move |request| pool.clone().pass(request));
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    })
}

/// Connections to the upstream that wait for a request.
#[derive(Clone)]
struct Pool {
    upstream: SocketAddr,
    idle: Arc<Mutex<Vec<SendRequest<Incoming>>>>,
}

impl Pool {
    async fn pass(
        self,
        mut request: Request<Incoming>,
    ) -> Result<Response<Incoming>, Box<dyn std::error::Error + Send + Sync>> {
        request.headers_mut().insert("x-forwarded-for", HeaderValue::from_static("127.0.0.1"));
        let mut sender = match self.ready() {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.upstream).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        let answer = sender.send_request(request).await?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Ok(answer)
    }

    fn ready(&self) -> Option<SendRequest<Incoming>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let last = idle.iter().rposition(SendRequest::is_ready)?;
        Some(idle.swap_remove(last))
    }
}
