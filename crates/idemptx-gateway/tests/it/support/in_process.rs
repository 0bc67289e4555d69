//! A gateway with an upstream of one's own, and clients that say exactly what they mean.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_gateway::config::Config;
use idemptx_gateway::serve::Gateway;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long anything that must happen may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway in this process.
pub(crate) struct Running {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    pub(crate) config: Config,
}

/// Reads a configuration.
pub(crate) fn config(text: &str) -> Config {
    Config::parse("test.toml", text, |_| None).unwrap_or_else(|mistake| panic!("{mistake}"))
}

/// Starts a gateway with a configuration.
pub(crate) async fn started(text: &str) -> Running {
    let config = config(text);
    let gateway = Gateway::start(config.clone()).await.unwrap();
    let address = gateway.addresses()[0];
    Running { gateway, address, config }
}

/// Starts a gateway in front of one upstream, on memory; `more` goes into its route's table.
pub(crate) async fn in_front_of(upstream: SocketAddr, more: &str) -> Running {
    started(&simple(upstream, more)).await
}

/// The configuration of such a gateway.
pub(crate) fn simple(upstream: SocketAddr, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"up\"\nurls = [\"http://{upstream}\"]\n\
         response_timeout_ms = 15000\n\
         [[route]]\nupstream = \"up\"\n{more}\n\
         [store]\nurl = \"memory:\"\n"
    )
}

/// A gateway that speaks TLS, as `localhost`, and passes everything on.
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

    /// The file of the authority that vouches for it.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("cert")
    }
}

/// An answer, whole.
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

    /// The code of the problem document that it must be.
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

/// A POST under a key.
pub(crate) fn post(key: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::post("/orders").header("idempotency-key", key);
    request.body(Full::from(body.to_owned())).unwrap()
}

/// Sends a request over a connection of its own, in HTTP/1.1.
pub(crate) async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    try_send(address, request).await.unwrap()
}

/// The same; an error if there is no answer.
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

/// Sends a request in HTTP/2, without asking first.
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
