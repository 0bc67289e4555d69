//! A request that can be sent as often as wanted, to any target.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Response};
use hyper_util::client::legacy::{Client, Error, connect::HttpConnector};
use tokio::task::JoinHandle;

use crate::{Answer, Target};

pub(crate) type Connections = Client<HttpConnector, Full<Bytes>>;

/// A request; sending it leaves it as it was, so sending it again is a retry.
#[derive(Clone, Debug)]
pub struct Request {
    connections: Connections,
    origin: String,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Request {
    pub(crate) fn new(connections: Connections, origin: &str, method: Method, path: &str) -> Self {
        let (origin, path) = (origin.to_owned(), path.to_owned());
        let (headers, body) = (HeaderMap::new(), Bytes::new());
        Self { connections, origin, method, path, headers, body }
    }

    /// With an `Idempotency-Key`, as it stands.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// With an `Authorization`.
    #[must_use]
    pub fn credential(self, credential: &str) -> Self {
        self.header(AUTHORIZATION.as_str(), credential)
    }

    /// With one more field line, of any bytes a field may have.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a field name");
        self.headers.append(name, HeaderValue::from_bytes(value.as_ref()).expect("a field value"));
        self
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// With a JSON body, as it stands.
    #[must_use]
    pub fn json(self, text: &str) -> Self {
        self.header(CONTENT_TYPE.as_str(), "application/json").body(text.to_owned())
    }

    /// Uses a separate connection, which a server may close when it refuses a body unread or breaks
    /// down.
    #[must_use]
    pub fn alone(self) -> Self {
        self.header(CONNECTION.as_str(), "close")
    }

    /// Addresses the same request to another process.
    #[must_use]
    pub fn to(mut self, target: &Target) -> Self {
        self.origin = target.origin();
        self
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn send(&self) -> Answer {
        let (method, path) = (&self.method, &self.path);
        self.try_send()
            .await
            .unwrap_or_else(|error| panic!("no answer to {method} {path}: {error}"))
    }

    /// Sends it and waits for the whole answer.
    ///
    /// # Errors
    ///
    /// A text, if the connection fails or the answer breaks off.
    ///
    /// # Cancel safety
    ///
    /// Dropped before the end it closes its connection, as a client that gives up does.
    pub async fn try_send(&self) -> Result<Answer, String> {
        let whole = async {
            let (head, body) =
                self.open().await.map_err(|error| format!("{error:?}"))?.into_parts();
            let body = body.collect().await.map_err(|error| format!("{error:?}"))?.to_bytes();
            Ok(Answer { status: head.status, headers: head.headers, body })
        };
        tokio::time::timeout(ANSWER_MAX, whole).await.unwrap_or_else(|_| Err("too slow".into()))
    }

    /// Sends it and waits for the answer's head; its body comes as it comes.
    ///
    /// # Errors
    ///
    /// If the connection fails.
    pub async fn open(&self) -> Result<Response<Incoming>, Error> {
        let mut request = hyper::Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = format!("{}{}", self.origin, self.path).parse().expect("a target");
        *request.headers_mut() = self.headers.clone();
        self.connections.request(request).await
    }

    /// Sends it in a task, which may be aborted as a client that leaves is.
    #[must_use]
    pub fn start(&self) -> JoinHandle<Answer> {
        let request = self.clone();
        tokio::spawn(async move { request.send().await })
    }

    /// Sends `count` of them at once and returns all their answers.
    ///
    /// # Panics
    ///
    /// If one has none.
    pub async fn send_at_once(&self, count: usize) -> Vec<Answer> {
        let mut sent = tokio::task::JoinSet::new();
        for _ in 0..count {
            let request = self.clone();
            sent.spawn(async move { request.send().await });
        }
        sent.join_all().await
    }
}

/// The longest that an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(60);
