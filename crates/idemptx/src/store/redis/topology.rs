//! The server of the records, and how to connect to it.
//!
//! Today that is one server under one address.
//! A topology that asks sentinels or follows slots belongs here, with the same two methods.

use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ProtocolVersion, PushInfo,
    RedisResult, TlsCertificates, io::tcp::TcpSettings,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::coalescing_writer::{self, CoalescingWriter, keepalive};
use super::url::{self, InvalidUrl};

/// A single Redis server.
pub(super) struct Topology {
    commands: Client,
    pushes: Client,
    name: Arc<str>,
}

impl Topology {
    /// The server at an address, with the authorities that may vouch for it.
    pub(super) fn new(
        info: ConnectionInfo,
        ca_certificates: Option<Vec<u8>>,
    ) -> Result<Self, InvalidUrl> {
        let name = url::name(&info).into();
        let settings = info
            .redis_settings()
            .clone()
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(coalescing_writer::SILENCE_MAX);
        let info = info.set_tcp_settings(tcp);
        // Pushes need RESP3; commands get on with what every server and proxy speaks.
        let pushes = settings.clone().set_protocol(ProtocolVersion::RESP3);
        Ok(Self {
            commands: client(info.clone().set_redis_settings(settings), ca_certificates.clone())?,
            pushes: client(info.set_redis_settings(pushes), ca_certificates)?,
            name,
        })
    }

    /// Opens a connection for commands.
    ///
    /// Commands of many tasks are one write, except over TLS, where the client library connects.
    pub(super) async fn connect(&self) -> RedisResult<Line> {
        match self.commands.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => {
                self.driven(CoalescingWriter::tcp(host, *port).await?).await
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => self.driven(CoalescingWriter::unix(path).await?).await,
            _ => {
                let config = patient();
                let opening = self.commands.get_multiplexed_async_connection_with_config(&config);
                Ok(Line::driven_elsewhere(opening.await?))
            }
        }
    }

    async fn driven<S>(&self, stream: S) -> RedisResult<Line>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let settings = self.commands.get_connection_info().redis_settings();
        let opening = MultiplexedConnection::new_with_config(settings, stream, patient());
        let (connection, driver) = opening.await?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Line { connection, _task: task })
    }

    /// Opens a connection for subscriptions, whose messages and end go to `receive`.
    pub(super) async fn listen(
        &self,
        receive: impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static,
    ) -> RedisResult<Line> {
        let config = patient().set_push_sender(receive);
        let opening = self.pushes.get_multiplexed_async_connection_with_config(&config);
        Ok(Line::driven_elsewhere(opening.await?))
    }

    /// Returns true if records and passwords cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        match self.commands.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, _) => {
                let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
                !loopback && host != "localhost"
            }
            _ => false,
        }
    }

    /// Returns the address and the database, for messages.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

/// A connection with the task that drives it, which ends when this is dropped.
pub(super) struct Line {
    pub(super) connection: MultiplexedConnection,
    _task: JoinSet<()>,
}

impl Line {
    /// Creates a line whose task belongs to the client library and ends with the last clone.
    fn driven_elsewhere(connection: MultiplexedConnection) -> Self {
        Self { connection, _task: JoinSet::new() }
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Topology").field(&self.name).finish()
    }
}

/// Leaves every time-out to us: ours replace the connection, the client library's do not.
fn patient() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn client(info: ConnectionInfo, ca_certificates: Option<Vec<u8>>) -> Result<Client, InvalidUrl> {
    let is_tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
    if is_tls {
        choose_cryptography();
    }
    let client = match ca_certificates {
        None => Client::open(info),
        Some(_) if !is_tls => return Err(InvalidUrl::certificates_without_tls()),
        Some(pem) if !holds_certificate(&pem) => {
            return Err(InvalidUrl::certificates("there is none in them".to_owned()));
        }
        Some(pem) => {
            let trust = TlsCertificates { client_tls: None, root_cert: Some(pem) };
            Client::build_with_tls(info, trust)
        }
    };
    client.map_err(|error| InvalidUrl::certificates(error.to_string()))
}

/// The client library takes the process's default cryptography, and panics where features of other
/// crates leave rustls more than one to choose from; the application's own choice goes first.
fn choose_cryptography() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn holds_certificate(pem: &[u8]) -> bool {
    pem.windows(CERTIFICATE.len()).any(|window| window == CERTIFICATE)
}

const CERTIFICATE: &[u8] = b"-----BEGIN CERTIFICATE-----";
