//! Callers, which open a connection for each request.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use turmoil::net::TcpStream;

use super::cluster::GATEWAY_PORT;

/// A complete response.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|it| it == "true")
    }

    /// Returns the code of the problem document, if it is one.
    pub(super) fn code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem.get("code")?.as_str()?.to_owned())
    }

    #[track_caller]
    pub(super) fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.code().as_deref(), Some(code), "{self:?}");
    }
}

/// Sends a POST under a key, and disconnects without a response within `patience`.
pub(super) async fn post(gateway: &str, key: &str, patience: Duration) -> io::Result<Reply> {
    let answered = timeout(patience, posted(gateway, key)).await;
    answered.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn posted(gateway: &str, key: &str) -> io::Result<Reply> {
    let stream = TcpStream::connect((gateway, GATEWAY_PORT)).await?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(io::Error::other)?;
    let connection = Connection(tokio::spawn(connection));
    let request = Request::post("/orders")
        .header("host", "shop.example")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(format!("an order under {key}"))))
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    drop(connection);
    Ok(Reply { status: parts.status, headers: parts.headers, body })
}

/// A connection that closes when the caller leaves.
struct Connection<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Connection<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
