//! The service downstream of the gateways, and its counts, which survive a restart.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::time::sleep;
use turmoil::net::TcpListener;

use super::cluster::SERVICE_PORT;

type Body = Either<Full<Bytes>, Channel<Bytes, io::Error>>;

/// The end of every complete response.
pub(super) const END: &str = "done";

/// The behavior of the backend towards one request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Behavior {
    /// Executes it, and responds after this pause, in two parts with half the pause between them.
    Answer(Duration),
    /// Executes it, and closes the connection after this pause.
    Disconnect(Duration),
    /// Executes it, and closes the connection after half a response.
    Truncate(Duration),
    /// Executes nothing, and responds with 503.
    Decline,
}

/// A backend that counts executions; its clones share the counts.
#[derive(Clone)]
pub(super) struct Backend {
    executions: Arc<Mutex<BTreeMap<String, u32>>>,
    behavior: Arc<Mutex<Box<dyn FnMut() -> Behavior + Send>>>,
}

impl Backend {
    /// Creates one that asks `behavior` for each request.
    pub(super) fn new(behavior: impl FnMut() -> Behavior + Send + 'static) -> Self {
        let executions = Arc::default();
        Self { executions, behavior: Arc::new(Mutex::new(Box::new(behavior))) }
    }

    /// Returns the number of executions under a key.
    pub(super) fn executions(&self, key: &str) -> u32 {
        self.counts().get(key).copied().unwrap_or_default()
    }

    /// Serves the host that it is called on.
    pub(super) async fn serve(self) -> turmoil::Result {
        let listener = TcpListener::bind(("0.0.0.0", SERVICE_PORT)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let this = self.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| this.clone().answer(request));
                let server = auto::Builder::new(TokioExecutor::new());
                // An error here is a partition, which the tests cause on purpose.
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        body.collect().await.map_err(io::Error::other)?;
        let key = parts.headers.get("idempotency-key").and_then(|it| it.to_str().ok());
        let key = key.ok_or_else(|| io::Error::other("no key"))?;
        let behavior = (self.behavior.lock().unwrap_or_else(PoisonError::into_inner))();
        let mut response = Response::new(Either::Left(Full::new(Bytes::new())));
        let (Behavior::Answer(pause) | Behavior::Disconnect(pause) | Behavior::Truncate(pause)) =
            behavior
        else {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        };
        let number = self.execute(key);
        sleep(pause).await;
        if matches!(behavior, Behavior::Disconnect(_)) {
            return Err(io::Error::other("closed on purpose"));
        }
        let (mut parts, body) = Channel::new(1);
        let first = format!("execution {number} of {key}, ");
        tokio::spawn(async move {
            let _ = parts.send_data(first.into()).await;
            sleep(pause / 2).await;
            match behavior {
                Behavior::Answer(_) => drop(parts.send_data(END.into()).await),
                _ => parts.abort(io::Error::other("closed on purpose")),
            }
        });
        *response.status_mut() = StatusCode::CREATED;
        *response.body_mut() = Either::Right(body);
        Ok(response)
    }

    fn execute(&self, key: &str) -> u32 {
        let mut counts = self.counts();
        let count = counts.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.executions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
