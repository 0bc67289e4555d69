//! An upstream on hyper, in the runtime of the test.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

/// The body of a response.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// An upstream that counts its requests.
#[derive(Clone, Debug)]
pub(crate) struct HyperService {
    pub(crate) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl HyperService {
    /// Starts one that responds with `answer`, which gets the request's number, from 1.
    pub(crate) async fn start<F, R>(answer: F) -> Self
    where
        F: Fn(usize, Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Response<Body>> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (requests, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
        let counted = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let (counted, answer) = (Arc::clone(&counted), Arc::clone(&answer));
                let service = service_fn(move |request| {
                    let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
                    let answer = Arc::clone(&answer);
                    async move { Ok::<_, Infallible>(answer(number, request).await) }
                });
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    let io = TokioIo::new(stream);
                    let _ = server.serve_connection_with_upgrades(io, service).await;
                });
            }
        });
        Self { address, requests }
    }

    /// Starts one that echoes each request: the lines of its head, and its body.
    pub(crate) async fn mirror() -> Self {
        Self::start(|number, request| async move {
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
        })
        .await
    }

    /// Returns the number of requests it has received.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

/// Returns a body of this text.
pub(crate) fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}
