//! The service behind the gateways, and the books that outlive it.

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

use super::world::SERVICE_PORT;

type Body = Either<Full<Bytes>, Channel<Bytes, io::Error>>;

/// What a whole answer ends with.
pub(super) const END: &str = "done";

/// What the service does with a request that has arrived.
#[derive(Clone, Copy, Debug)]
pub(super) enum Conduct {
    /// Executes it, and answers after a while, in two parts with half that while in between.
    Answer(Duration),
    /// Executes it, and closes the connection after a while.
    Vanish(Duration),
    /// Executes it, and closes the connection after half an answer.
    BreakOff(Duration),
    /// Executes nothing, and says so.
    Decline,
}

/// What was executed, whatever became of the answers.
#[derive(Clone)]
pub(super) struct Service {
    executions: Arc<Mutex<BTreeMap<String, u32>>>,
    conduct: Arc<Mutex<Box<dyn FnMut() -> Conduct + Send>>>,
}

impl Service {
    /// Treats each request as `conduct` says.
    pub(super) fn new(conduct: impl FnMut() -> Conduct + Send + 'static) -> Self {
        let executions = Arc::default();
        Self { executions, conduct: Arc::new(Mutex::new(Box::new(conduct))) }
    }

    /// How often the operation under a key was executed.
    pub(super) fn executions(&self, key: &str) -> u32 {
        self.books().get(key).copied().unwrap_or_default()
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
                // A client that is cut off is what this is about.
                let _ = server.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        body.collect().await.map_err(io::Error::other)?;
        let key = parts.headers.get("idempotency-key").and_then(|it| it.to_str().ok());
        let key = key.ok_or_else(|| io::Error::other("no key"))?;
        let conduct = (self.conduct.lock().unwrap_or_else(PoisonError::into_inner))();
        let mut response = Response::new(Either::Left(Full::new(Bytes::new())));
        let (Conduct::Answer(pause) | Conduct::Vanish(pause) | Conduct::BreakOff(pause)) = conduct
        else {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        };
        let number = self.execute(key);
        sleep(pause).await;
        if matches!(conduct, Conduct::Vanish(_)) {
            return Err(io::Error::other("gone"));
        }
        let (mut parts, body) = Channel::new(1);
        let first = format!("execution {number} of {key}, ");
        tokio::spawn(async move {
            let _ = parts.send_data(first.into()).await;
            sleep(pause / 2).await;
            match conduct {
                Conduct::Answer(_) => drop(parts.send_data(END.into()).await),
                _ => parts.abort(io::Error::other("gone")),
            }
        });
        *response.status_mut() = StatusCode::CREATED;
        *response.body_mut() = Either::Right(body);
        Ok(response)
    }

    fn execute(&self, key: &str) -> u32 {
        let mut books = self.books();
        let count = books.entry(key.to_owned()).or_default();
        *count += 1;
        *count
    }

    fn books(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.executions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
