//! A server, and how to connect to it.

use std::convert::Infallible;
use std::fmt::{self, Write};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use base64ct::{Base64, Encoding};
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo,
    ProtocolVersion, PushInfo, RedisConnectionInfo, RedisResult, TlsCertificates,
    io::tcp::TcpSettings,
};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::coalescing_writer::{self, CoalescingWriter, keepalive};
use super::redis_failure::RedisFailure;
use super::url::{self, InvalidUrl};
use crate::store::server_access::{ServerAccess, TlsFiles, system_roots, with_password};

/// Address of a server, with what opens its door.
#[derive(Clone)]
pub(super) struct Endpoint {
    info: ConnectionInfo,
    access: Arc<ServerAccess>,
    name: Arc<str>,
}

impl Endpoint {
    /// The server at an address, with the certificates of both sides, and the source of the
    /// password if that is not in the address.
    pub(super) fn new(info: ConnectionInfo, mut access: ServerAccess) -> Result<Self, InvalidUrl> {
        let name = url::name(&info).into();
        let mut settings = info
            .redis_settings()
            .clone()
            .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
        if settings.username().is_some() && settings.password().is_none() {
            // The client library would say nothing of a user without a password, and be another's.
            settings = settings.set_password("");
        }
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(coalescing_writer::SILENCE_MAX);
        let info = info.set_tcp_settings(tcp).set_redis_settings(settings);
        access.tls = verified(access.tls, &info)?;
        let endpoint = Self { info, access: Arc::new(access), name };
        let opened = endpoint.client(endpoint.info.clone());
        opened.map_err(|error| InvalidUrl::certificates(error.to_string()))?;
        Ok(endpoint)
    }

    /// Another server with the same credentials and certificates.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        let address = match self.info.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: host.to_owned(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.to_owned(), port),
        };
        let info = self.info.clone().set_addr(address);
        Self { name: url::address(host, port).into(), info, access: self.access.clone() }
    }

    /// Sets the name for messages.
    pub(super) fn named(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Returns the host and the port, unless it is a socket file.
    pub(super) fn address(&self) -> Option<(&str, u16)> {
        match self.info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                Some((host, *port))
            }
            _ => None,
        }
    }

    /// Makes an attempt to connect, with the password as it is now.
    pub(super) async fn attempt<T, F>(
        &self,
        mut attempt: impl FnMut(ConnectionInfo) -> F,
    ) -> Result<T, RedisFailure>
    where
        F: Future<Output = Result<T, RedisFailure>>,
    {
        let unreadable = |error: &_| RedisFailure::no_password(&self.name, error);
        let attempt = |password: Option<String>| {
            let Some(password) = password else { return attempt(self.info.clone()) };
            let settings = self.info.redis_settings().clone().set_password(password);
            attempt(self.info.clone().set_redis_settings(settings))
        };
        let source = self.access.password.as_ref();
        with_password(source, unreadable, RedisFailure::is_of_authentication, attempt).await
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        if !is_tls(&info) {
            return Client::open(info);
        }
        choose_cryptography();
        let client_tls = self.access.tls.client.clone();
        let client_tls =
            client_tls.map(|(client_cert, client_key)| ClientTlsConfig { client_cert, client_key });
        let certificates = TlsCertificates { client_tls, root_cert: self.access.tls.ca.clone() };
        Client::build_with_tls(info, certificates)
    }

    /// Opens a connection for commands.
    ///
    /// Commands of many tasks are one write, except over TLS, where the client library connects.
    pub(super) async fn connect(&self, info: ConnectionInfo) -> RedisResult<Line> {
        let settings = info.redis_settings();
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                Self::driven(settings, CoalescingWriter::tcp(host, *port).await?).await
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                Self::driven(settings, CoalescingWriter::unix(path).await?).await
            }
            _ => {
                let (client, config) = (self.client(info)?, patient());
                let opening = client.get_multiplexed_async_connection_with_config(&config);
                Ok(Line::driven_elsewhere(opening.await?))
            }
        }
    }

    async fn driven<S>(settings: &RedisConnectionInfo, stream: S) -> RedisResult<Line>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let opening = MultiplexedConnection::new_with_config(settings, stream, patient());
        let (connection, driver) = opening.await?;
        let mut task = JoinSet::new();
        task.spawn(driver);
        Ok(Line::new(connection, task))
    }

    /// Opens a connection for subscriptions, whose messages and end go to `receive`.
    pub(super) async fn listen(
        &self,
        info: ConnectionInfo,
        receive: impl Fn(PushInfo) -> Result<(), Infallible> + Send + Sync + 'static,
    ) -> RedisResult<Line> {
        // Pushes need RESP3; commands get on with what every server and proxy speaks.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let (client, config) =
            (self.client(info.set_redis_settings(settings))?, patient().set_push_sender(receive));
        let opening = client.get_multiplexed_async_connection_with_config(&config);
        Ok(Line::driven_elsewhere(opening.await?))
    }

    /// Returns true if records and passwords cross a network in plain text.
    pub(super) fn is_plaintext(&self) -> bool {
        !self.is_tls() && !self.is_local()
    }

    /// Returns true if the server is on this host, as far as the address says.
    pub(super) fn is_local(&self) -> bool {
        self.address().is_none_or(|(host, _)| {
            let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
            is_loopback || host == "localhost"
        })
    }

    /// Returns true if connections are encrypted.
    pub(super) fn is_tls(&self) -> bool {
        is_tls(&self.info)
    }

    /// Returns the failure of a connect that took too long.
    pub(super) fn late(&self, after: Duration) -> RedisFailure {
        match self.is_tls() {
            true => RedisFailure::no_handshake(&self.name, after),
            false => RedisFailure::timed_out(&self.name, after),
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
    /// Promotions that were heard of before it was opened, where sentinels are asked.
    pub(super) switches: u64,
    /// [Generation](super::data_history::DataHistory::generation) in which it was opened.
    pub(super) generation: u64,
    /// True once its subscriptions are no longer in force.
    pub(super) is_cut_off: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Line {
    fn new(connection: MultiplexedConnection, tasks: JoinSet<()>) -> Self {
        Self { connection, switches: 0, generation: 0, is_cut_off: Arc::default(), tasks }
    }

    /// Runs a task for as long as the line is there.
    pub(super) fn run(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Creates a line whose task belongs to the client library and ends with the last clone.
    fn driven_elsewhere(connection: MultiplexedConnection) -> Self {
        Self::new(connection, JoinSet::new())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.name).finish()
    }
}

/// Leaves every time-out to us: ours replace the connection, the client library's do not.
fn patient() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

fn is_tls(info: &ConnectionInfo) -> bool {
    matches!(info.addr(), ConnectionAddr::TcpTls { .. })
}

/// Returns the certificates for this address, with the authorities that the system trusts if none
/// were named.
fn verified(mut tls: TlsFiles, info: &ConnectionInfo) -> Result<TlsFiles, InvalidUrl> {
    if !is_tls(info) {
        let needs_tls = Err(InvalidUrl::certificates_without_tls());
        return if tls.is_empty() { Ok(tls) } else { needs_tls };
    }
    match &tls.ca {
        Some(pem) if !holds_certificate(pem) => {
            Err(InvalidUrl::certificates("there is none in them".to_owned()))
        }
        Some(_) => Ok(tls),
        None => {
            // Where the system has none, the client library's own count.
            tls.ca = pem_of(system_roots());
            Ok(tls)
        }
    }
}

fn pem_of(certificates: &[CertificateDer<'_>]) -> Option<Vec<u8>> {
    let mut pem = String::new();
    for certificate in certificates {
        let text = Base64::encode_string(certificate);
        let _ = writeln!(pem, "-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----");
    }
    (!pem.is_empty()).then(|| pem.into_bytes())
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
