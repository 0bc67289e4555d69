//! A gateway in the process of the test, and asynchronous clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_gateway::config::{Config, ListenAddress};
use idemptx_gateway::serve::Gateway;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The time after which a wait fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway in this process.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) config: Config,
}

impl Running {
    /// Returns the address of its admin listener.
    pub(crate) fn admin(&self) -> SocketAddr {
        self.gateway.admin_address().and_then(ListenAddress::tcp).unwrap()
    }
}

/// Parses a configuration.
pub(crate) fn config(text: &str) -> Config {
    Config::parse("test.toml", text, |_| None).unwrap_or_else(|mistake| panic!("{mistake}"))
}

/// Starts a gateway with a configuration.
pub(crate) async fn started(text: &str) -> Running {
    let config = config(text);
    let gateway = Gateway::start(config.clone()).await.unwrap();
    let address = gateway.addresses()[0].tcp().unwrap();
    Running { gateway, address, config }
}

/// Starts a gateway in front of one upstream, on memory, with these lines in its route.
pub(crate) async fn in_front_of(upstream: SocketAddr, more: &str) -> Running {
    started(&simple(upstream, more)).await
}

/// Returns the configuration of such a gateway.
pub(crate) fn simple(upstream: SocketAddr, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"up\"\nurls = [\"http://{upstream}\"]\n\
         response_timeout_ms = 15000\n\
         [[route]]\nupstream = \"up\"\n{more}\n\
         [store]\nurl = \"memory:\"\n"
    )
}

/// A gateway with TLS, as `localhost`, that protects nothing.
pub(crate) struct Secured {
    running: Running,
    folder: TempDir,
}

impl Secured {
    pub(crate) async fn in_front_of(upstream: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("cert"), folder.path().join("key"));
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let tls = format!("tls = {{ certificate = {certificate:?}, key = {key:?} }}\n");
        let text = simple(upstream, "protect = false")
            .replace("[[upstream]]", &format!("{tls}[[upstream]]"));
        Self { running: started(&text).await, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.running.address.port())
    }

    /// Returns the file with the certificate to trust.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("cert")
    }
}

/// A complete reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) async fn of(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.expect("in time").unwrap();
        let (status, headers) = (parts.status, parts.headers);
        Self { status, headers, body: body.to_bytes() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// Returns the code of the problem document that the reply must be.
    pub(crate) fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem["status"], self.status.as_u16());
        problem["code"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        assert_eq!(self.code(), code);
    }
}

/// Returns a POST with this key and body.
pub(crate) fn post(key: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/orders").header("idempotency-key", key);
    request.body(Full::from(body.to_owned())).unwrap()
}

/// Sends a request over HTTP/1.1, on a new connection.
pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    try_send(address, request).await.unwrap()
}

/// Does the same, and returns an error without a reply.
pub(crate) async fn try_send(
    address: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<Reply, hyper::Error> {
    if !request.headers().contains_key("host") {
        request.headers_mut().insert("host", address.to_string().parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let response = timeout(PATIENCE, sender.send_request(request)).await.expect("in time")?;
    let (parts, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await.expect("in time")?;
    connection.abort();
    let (status, headers) = (parts.status, parts.headers);
    Ok(Reply { status, headers, body: body.to_bytes() })
}

/// Sends a request over HTTP/2 with prior knowledge.
pub(crate) async fn send_http2(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    let stream = TcpStream::connect(address).await.unwrap();
    let (parts, body) = request.into_parts();
    let mut request = Request::from_parts(parts, body);
    let uri = format!("http://{address}{}", request.uri());
    *request.uri_mut() = uri.parse().unwrap();
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let response = timeout(PATIENCE, sender.send_request(request)).await.expect("in time");
    Reply::of(response.unwrap()).await
}
