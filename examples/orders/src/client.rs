//! A client with one connection for each request, so that it can go away in the middle of one.

use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Orders `body` under `key`.
///
/// Dropping the future closes the connection.
pub(crate) async fn order(
    address: SocketAddr,
    key: &str,
    body: &str,
) -> Result<Answer, Box<dyn Error>> {
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
        Ok::<_, hyper::Error>((head, body.collect().await?.to_bytes()))
    };
    // The connection ends once the exchange has let go of it.
    let (answered, _) = tokio::join!(exchange, connection);
    let (head, body) = answered?;
    Ok(Answer { status: head.status, headers: head.headers, body, took: began.elapsed() })
}
