//! An upstream on hyper, in the runtime of the test.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// The body of a response.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// An upstream that counts its requests.
#[derive(Clone, Debug)]
pub(crate) struct HyperService {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl HyperService {
    /// Starts one that responds with `answer`, which gets the request's number, from 1.
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(usize, Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), answer).await
    }

    async fn start_on<F, R>(address: SocketAddr, answer: F) -> Self
    where
        F: Fn(usize, Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let counted = Arc::clone(&requests);
        let connections = Arc::new(AtomicUsize::new(0));
        let accepted = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                tokio::spawn(serve(stream, Arc::clone(&counted), Arc::clone(&answer)));
            }
        });
        Self { address, requests, connections }
    }

    /// Starts one that echoes each request: the lines of its head, and its body.
    pub(crate) async fn mirror() -> Self {
        Self::start(mirrored).await
    }

    /// Starts one that does so at this address.
    pub(crate) async fn mirror_on(address: SocketAddr) -> Self {
        Self::start_on(address, mirrored).await
    }

    /// Starts one that does so at a Unix socket; its address is none.
    pub(crate) fn mirror_at(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&counted), Arc::new(mirrored)));
            }
        });
        Self { address: SocketAddr::from(([0; 4], 0)), requests, connections: Arc::default() }
    }

    /// Returns the number of connections it has accepted.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Returns the number of requests it has received.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve<I, F, R>(stream: I, counted: Arc<AtomicUsize>, answer: Arc<F>)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(usize, Request<Incoming>) -> R + Send + Sync + 'static,
    R: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = Arc::clone(&answer);
        async move { Ok::<_, Infallible>(answer(number, request).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn mirrored(number: usize, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut text = format!("{number} {} {}\n", parts.method, parts.uri);
    for (name, value) in &parts.headers {
        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    let body = body.collect().await.unwrap();
    if let Some(trailers) = body.trailers() {
        text += &format!("trailers: {trailers:?}\n");
    }
    text += &String::from_utf8_lossy(&body.to_bytes());
    Response::builder().status(201).body(full(text)).unwrap()
}

/// Returns a body of this text.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}
