//! TLS for listeners and upstreams; the only module that knows rustls.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use idemptx::Scope;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use webpki::EndEntityCert;

use crate::config::{Listener, ListenerTls, Origin, Upstream, UpstreamVersion};

/// Terminates TLS for a listener.
#[derive(Clone)]
pub(crate) struct Acceptor {
    acceptor: TlsAcceptor,
    handshake: Duration,
}

/// A client's TLS connection.
pub(crate) struct Accepted<I> {
    pub(crate) stream: tokio_rustls::server::TlsStream<I>,
    pub(crate) negotiated: Option<Negotiated>,
    /// The client, as its certificate names it.
    pub(crate) certificate: Option<Scope>,
}

/// The version of HTTP on which client and listener agreed by ALPN (RFC 7301).
#[derive(Clone, Copy, Debug)]
pub(crate) enum Negotiated {
    Http1,
    Http2,
}

impl Acceptor {
    /// Returns a listener's acceptor, or `None` for clear text.
    pub(crate) fn new(listener: &Listener, handshake: Duration) -> Result<Option<Self>, TlsError> {
        let Some(tls) = &listener.tls else { return Ok(None) };
        let default = certified_key(&tls.certificate, &tls.key)?;
        let others = tls.certificates.iter().map(|it| certified_key(&it.certificate, &it.key));
        let chosen = CertificatesByName::new(default, others.collect::<Result<_, _>>()?);
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(&tls.certificate, error))?;
        let builder = match &tls.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(verifier(tls, ca)?),
        };
        let mut config = builder.with_cert_resolver(Arc::new(chosen));
        config.alpn_protocols = [(listener.http2, HTTP2), (listener.http1, HTTP1)]
            .into_iter()
            .filter(|(spoken, _)| *spoken)
            .map(|(_, name)| name.to_vec())
            .collect();
        Ok(Some(Self { acceptor: TlsAcceptor::from(Arc::new(config)), handshake }))
    }

    /// Performs the handshake, within the limit.
    pub(crate) async fn accept<I>(&self, stream: I) -> io::Result<Accepted<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = timeout(self.handshake, self.acceptor.accept(stream)).await??;
        let (_, session) = stream.get_ref();
        let negotiated = session.alpn_protocol().map(|name| match name {
            HTTP2 => Negotiated::Http2,
            _ => Negotiated::Http1,
        });
        let shown = session.peer_certificates().and_then(<[_]>::first);
        let certificate = shown.and_then(client_of);
        Ok(Accepted { stream, negotiated, certificate })
    }
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// Connects to an upstream over TLS.
#[derive(Clone)]
pub(crate) struct Connector(TlsConnector);

impl Connector {
    /// Returns an upstream's connector, or `None` if all its addresses are clear text.
    pub(crate) fn new(upstream: &Upstream) -> Result<Option<Self>, TlsError> {
        if !upstream.origins.iter().any(|origin| origin.tls) {
            return Ok(None);
        }
        let identity = upstream.client_certificate.as_deref().zip(upstream.client_key.as_deref());
        let mut config = client_as(upstream.ca.as_deref(), identity)?;
        let name = match upstream.version {
            UpstreamVersion::Http1 => HTTP1,
            UpstreamVersion::Http2 => HTTP2,
        };
        config.alpn_protocols = vec![name.to_vec()];
        Ok(Some(Self(TlsConnector::from(Arc::new(config)))))
    }

    /// Returns a connector for HTTP/1.1 that trusts these authorities, by default the public ones.
    pub(crate) fn http1(ca: Option<&Path>) -> Result<Self, TlsError> {
        let mut config = client(ca)?;
        config.alpn_protocols = vec![HTTP1.to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Performs the handshake with an address.
    pub(crate) async fn connect<I>(
        &self,
        origin: &Origin,
        stream: I,
    ) -> io::Result<tokio_rustls::client::TlsStream<I>>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let host = origin.authority.host().trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

/// Returns a client configuration that trusts these authorities, by default the public ones.
pub(crate) fn client(ca: Option<&Path>) -> Result<ClientConfig, TlsError> {
    client_as(ca, None)
}

/// Does the same, and shows servers a certificate, of which the key is the second file.
fn client_as(
    ca: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<ClientConfig, TlsError> {
    let roots = match ca {
        None => webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect(),
        Some(path) => authorities(path)?,
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(ca.unwrap_or(Path::new("")), error))?;
    let config = config.with_root_certificates(roots);
    let Some((certificate, key)) = identity else { return Ok(config.with_no_client_auth()) };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
    config
        .with_client_auth_cert(certificates(certificate)?, private)
        .map_err(|error| wrong(certificate, error))
}

/// The certificates of a listener, by the names that they are for.
#[derive(Debug)]
struct CertificatesByName {
    default: Arc<CertifiedKey>,
    named: Vec<(String, Arc<CertifiedKey>)>,
}

impl CertificatesByName {
    fn new(default: CertifiedKey, others: Vec<CertifiedKey>) -> Self {
        let mut named = Vec::new();
        for key in others.into_iter().map(Arc::new) {
            let names = key.cert.first().and_then(|it| EndEntityCert::try_from(it).ok());
            for name in names.iter().flat_map(|it| it.valid_dns_names()) {
                named.push((name.to_ascii_lowercase(), Arc::clone(&key)));
            }
        }
        Self { default: Arc::new(default), named }
    }

    /// Returns the certificate for a name: that of exactly this name before that of its domain.
    fn for_name(&self, name: &str) -> &Arc<CertifiedKey> {
        let find =
            |wanted: &str| self.named.iter().find(|(it, _)| it == wanted).map(|(_, key)| key);
        let domain = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        find(name).or_else(|| find(&domain?)).unwrap_or(&self.default)
    }
}

impl ResolvesServerCert for CertificatesByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        Some(Arc::clone(name.map_or(&self.default, |name| self.for_name(&name))))
    }
}

fn certified_key(certificate: &Path, key: &Path) -> Result<CertifiedKey, TlsError> {
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, error))?;
    CertifiedKey::from_der(certificates(certificate)?, private, &provider())
        .map_err(|error| wrong(certificate, error))
}

/// An invalid certificate or private key.
#[derive(Debug)]
pub struct TlsError {
    path: PathBuf,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cannot be used for TLS", self.path.display())
    }
}

impl Error for TlsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// Requests client certificates that one of these authorities signed.
fn verifier(
    tls: &ListenerTls,
    ca: &Path,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let roots = Arc::new(authorities(ca)?);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, provider());
    let builder = if tls.client_required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| wrong(ca, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(path, error))?;
    let read = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(path, error))?;
    if read.is_empty() { Err(wrong(path, "the file contains no certificate")) } else { Ok(read) }
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| wrong(path, error))?;
    }
    Ok(roots)
}

/// The client that a certificate names: by its issuer, its subject (both in DER), and its URIs,
/// which are the names of workloads (SPIFFE); `None` if it has neither subject nor URI.
///
/// # Security
///
/// Two authorities may each name a client with the same subject.
fn client_of(certificate: &CertificateDer<'_>) -> Option<Scope> {
    let parsed = EndEntityCert::try_from(certificate).ok()?;
    let uris: Vec<&str> = parsed.valid_uri_names().collect();
    if parsed.subject().is_empty() && uris.is_empty() {
        return None;
    }
    let mut name = Vec::new();
    let parts = [parsed.issuer(), parsed.subject()];
    for part in parts.into_iter().chain(uris.iter().map(|uri| uri.as_bytes())) {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part);
    }
    Some(Scope::new(name))
}

fn wrong(path: &Path, source: impl Into<Box<dyn Error + Send + Sync>>) -> TlsError {
    TlsError { path: path.to_owned(), source: source.into() }
}

/// Explicit: rustls panics on a process-wide default if two providers are linked.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

const HTTP1: &[u8] = b"http/1.1";
const HTTP2: &[u8] = b"h2";
