//! The load under which the gateway is watched, before it is built again for what was seen.
//!
//! What never ran is built to be small, and so is what ran rarely beside the rest: everything that
//! is to be fast has its turn here, and all turns are as long.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use axum::http::{HeaderName, Request, Response, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_testkit::{CertificateAuthority, PostgresServer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::gateway::{Proxy, Upstream, idemptx};
use crate::redis_server::RedisServer;
use crate::{Measured, app};

/// Has the gateway that `BENCH_IDEMPTX` names answer requests with every store and protocol.
pub(crate) fn run() -> Measured<()> {
    let (upstream, redis) = (Upstream::start()?, RedisServer::start()?);
    let postgres = PostgresServer::start(&[]);
    let files = TempDir::new()?;
    CertificateAuthority::generate().issue_into(files.path());
    let sqlite = format!("sqlite:{}", files.path().join("keys.db").display());
    let near = format!("{}'\nnear_bytes = 67108864\nprefix = 'near:", redis.url());
    for store in ["memory:", &sqlite, &redis.url(), &near, &postgres.url()] {
        let clear = free_address()?;
        let encrypted = free_address()?;
        let directory = TempDir::new()?;
        let file = directory.path().join("gateway.toml");
        fs::write(&file, configuration([clear, encrypted, upstream.address], files.path(), store))?;
        let mut command = Command::new(idemptx());
        command.args(["serve", "--config"]).arg(&file);
        let _gateway = Proxy::launch(command, "the gateway", clear, directory)?;
        // Ends before the gateway, with its connections: what was seen is written at an orderly end.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for protocol in [Protocol::Http1, Protocol::Http2] {
            runtime.block_on(async {
                let stream = TcpStream::connect(clear).await?;
                stream.set_nodelay(true)?;
                visit(stream, protocol).await?;
                let stream = TcpStream::connect(encrypted).await?;
                stream.set_nodelay(true)?;
                let connector = trusting(files.path(), protocol)?;
                let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
                visit(connector.connect(name, stream).await?, protocol).await
            })?;
        }
    }
    Ok(())
}

/// The file of a gateway with two listeners, which also is its own upstream.
fn configuration(addresses: [SocketAddr; 3], certificates: &Path, store: &str) -> String {
    let [clear, encrypted, upstream] = addresses;
    let certificates = certificates.display();
    format!(
        "[[listener]]\naddress = '{clear}'\n\
         [[listener]]\naddress = '{encrypted}'\n\
         tls = {{ certificate = '{certificates}/server.pem', key = '{certificates}/server.key' }}\n\
         [[upstream]]\nname = 'app'\nurls = ['http://{upstream}']\n\
         [[upstream]]\nname = 'self'\nurls = ['http://{clear}']\nhttp2 = true\nhost = 'upstream'\n\
         [[route]]\nhost = '{THROUGH}'\nupstream = 'self'\nprotect = false\n\
         [[route]]\npath = '/plain'\nupstream = 'app'\nprotect = false\n\
         [[route]]\npath = '/json'\nupstream = 'app'\n\
         policy = {{ fingerprint = {{ body = 'json' }} }}\n\
         [[route]]\nupstream = 'app'\n\
         [log]\naccess = true\n\
         [store]\nurl = '{store}'\n"
    )
}

/// Sends requests of every kind over a connection.
async fn visit(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    protocol: Protocol,
) -> Measured<()> {
    let mut client = Client::connect(stream, protocol).await?;
    let large = app::WISH.repeat(LARGE_BYTES / app::WISH.len());
    let kinds = [
        (HOST, "/plain", app::WISH),
        (HOST, "/orders", app::WISH),
        (HOST, "/orders", &large),
        (HOST, "/json", app::WISH),
        (THROUGH, "/orders", app::WISH),
    ];
    for (host, path, body) in kinds {
        let key = format!("{:?}", std::time::Instant::now());
        for number in 0..REQUESTS {
            // None, a new one, and that one again.
            let key = (number % 3 > 0).then(|| format!("\"{key}-{}\"", number / 3));
            client.exchange(host, path, key, body).await?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

/// A connection to the gateway.
enum Client {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

impl Client {
    async fn connect(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        protocol: Protocol,
    ) -> Measured<Self> {
        let stream = TokioIo::new(stream);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Ok(Self::Http1(sender))
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Ok(Self::Http2(sender))
            }
        }
    }

    /// Sends a request, which must succeed, and reads the whole answer.
    async fn exchange(
        &mut self,
        host: &str,
        path: &str,
        key: Option<String>,
        body: &str,
    ) -> Measured<()> {
        let uri = match self {
            Self::Http1(_) => path.to_owned(),
            Self::Http2(_) => format!("http://{host}{path}"),
        };
        let mut request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "*/*")
            .header(header::AUTHORIZATION, "Bearer 8d1f7f3c2a")
            .header(header::USER_AGENT, "training/1.0");
        if matches!(self, Self::Http1(_)) {
            request = request.header(header::HOST, host);
        }
        if let Some(key) = key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
        let response: Response<Incoming> = match self {
            Self::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        };
        let status = response.status();
        let answer = response.into_body().collect().await?.to_bytes();
        if status.is_success() {
            return Ok(());
        }
        Err(format!("{host}{path}: {status} {}", String::from_utf8_lossy(&answer)).into())
    }
}

/// A client of TLS that trusts the authority in this directory, and speaks one protocol.
fn trusting(certificates: &Path, protocol: Protocol) -> Measured<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.join("ca.pem"))?)?;
    let mut config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
    if protocol == Protocol::Http2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    Ok(TlsConnector::from(Arc::new(config)))
}

fn free_address() -> Measured<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

type RequestBody = Full<Bytes>;

const REQUESTS: usize = 300;
const LARGE_BYTES: usize = 16 << 10;
const HOST: &str = "api.example.com";
/// The gateway's host for what it sends through itself, as another would over HTTP/2.
const THROUGH: &str = "through.example.com";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
