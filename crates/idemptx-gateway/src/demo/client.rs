//! A client with one connection per request, so that dropping a request closes its connection.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A response, and the time it took.
#[derive(Debug)]
pub(super) struct TimedResponse {
    pub(super) response: Response<Bytes>,
    pub(super) took: Duration,
}

impl TimedResponse {
    pub(super) fn is_replay(&self) -> bool {
        self.response.headers().get("idempotent-replayed").is_some_and(|it| it == "true")
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(self.response.body()).into_owned()
    }
}

/// Sends an order under a key; dropping the future closes the connection.
pub(super) async fn send_order(
    address: SocketAddr,
    key: &str,
    body: &str,
) -> Result<TimedResponse, Box<dyn Error + Send + Sync>> {
    let began = Instant::now();
    let request = Request::post("/orders")
        .header(HOST, address.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", key)
        .body(Full::<Bytes>::from(body.to_owned()))?;
    let stream = TcpStream::connect(address).await?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, body) = requests.send_request(request).await?.into_parts();
        Ok::<_, hyper::Error>(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    // The connection closes once the exchange has dropped its sender.
    let (answered, _) = tokio::join!(exchange, connection);
    Ok(TimedResponse { response: answered?, took: began.elapsed() })
}
