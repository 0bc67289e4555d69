//! TLS, and the owner of a key: the upstream, the host, a certificate or a token.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::hyper_service::HyperService;
use crate::support::in_process::{
    Reply, Running, config, in_front_of, post, send, simple, started,
};
use crate::support::raw_upstream::send_raw;

/// An authority, and a folder for what it signs.
pub(crate) struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { folder, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A certificate and its key, as files.
    pub(crate) fn signs(&self, name: &str) -> (PathBuf, PathBuf) {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let paths = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        std::fs::write(&paths.0, certificate.pem()).unwrap();
        std::fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    /// A gateway with a certificate; `more` goes into its listener's `tls`.
    async fn secures(&self, upstream: SocketAddr, more: &str, route: &str) -> Running {
        let (certificate, key) = self.signs("gateway");
        let tls = format!(
            "tls = {{ certificate = \"{}\", key = \"{}\"{more} }}\n[[upstream]]",
            certificate.display(),
            key.display()
        );
        started(&simple(upstream, route).replace("[[upstream]]", &tls)).await
    }

    /// Sends a request over TLS with this client certificate.
    pub(crate) async fn send(
        &self,
        address: SocketAddr,
        identity: Option<&(PathBuf, PathBuf)>,
        alpn: &str,
        mut request: Request<Full<Bytes>>,
    ) -> Result<Reply, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path("ca.pem"))?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_file(certificate)?],
                PrivateKeyDer::from_pem_file(key)?,
            )?,
        };
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        }
        let stream = TcpStream::connect(address).await?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol().unwrap_or_default(), alpn.as_bytes());
        let io = TokioIo::new(stream);
        let response = if alpn == "h2" {
            let uri = format!("https://localhost{}", request.uri());
            *request.uri_mut() = uri.parse()?;
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            request.headers_mut().insert("host", "localhost".parse()?);
            let (mut sender, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        Ok(Reply::of(response).await)
    }
}

#[tokio::test]
async fn clients_speak_either_version_over_tls() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let gateway = authority.secures(upstream.address, "", "").await;
    let first = authority.send(gateway.address, None, "h2", post("k", "tea")).await.unwrap();
    assert!(first.text().contains("x-forwarded-proto: https"), "{}", first.text());
    assert!(first.text().contains("via: 2 idemptx"), "{}", first.text());
    let again = authority.send(gateway.address, None, "http/1.1", post("k", "tea")).await.unwrap();
    assert!(again.is_replay());
}

#[tokio::test]
async fn a_client_is_whom_its_certificate_names() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let ca = format!(", client_ca = \"{}\"", authority.path("ca.pem").display());
    let route = "policy = { scope = { mtls = \"subject\" } }";
    let gateway = authority.secures(upstream.address, &ca, route).await;
    let (ann, bob) = (authority.signs("ann"), authority.signs("bob"));
    let ann_again = authority.signs("ann");
    let ask = async |who| authority.send(gateway.address, who, "http/1.1", post("k", "tea")).await;
    assert!(!ask(Some(&ann)).await.unwrap().is_replay());
    assert!(!ask(Some(&bob)).await.unwrap().is_replay());
    assert!(
        ask(Some(&ann_again)).await.unwrap().is_replay(),
        "a renewed certificate is the same client"
    );
    assert!(ask(None).await.is_err(), "a certificate is required");
    let stranger = Authority::new().signs("ann");
    assert!(ask(Some(&stranger)).await.is_err());
    assert_eq!(upstream.requests(), 2);

    let optional = format!("{ca}, client_required = false");
    let gateway = authority.secures(upstream.address, &optional, route).await;
    let nobody = authority.send(gateway.address, None, "http/1.1", post("k", "tea")).await;
    nobody.unwrap().refused(401, "scope-unresolved");
}

#[tokio::test]
async fn an_upstream_is_spoken_to_over_tls_and_must_be_who_it_is() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let behind = authority.secures(upstream.address, "", "protect = false").await;
    let front = |ca: PathBuf, more: &str| {
        let urls = format!("https://localhost:{}", behind.address.port());
        let text = simple(behind.address, "").replace(&format!("http://{}", behind.address), &urls);
        let ca = format!("name = \"up\"\nca = \"{}\"{more}", ca.display());
        text.replace("name = \"up\"", &ca)
    };
    for more in ["", "\nhttp2 = true"] {
        let gateway = started(&front(authority.path("ca.pem"), more)).await;
        let answer = send(gateway.address, post("k", "tea")).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }
    let stranger = Authority::new();
    let gateway = started(&front(stranger.path("ca.pem"), "")).await;
    send(gateway.address, post("k", "tea")).await.refused(502, "upstream-unreachable");
    assert_eq!(upstream.requests(), 2);
}

#[tokio::test]
async fn an_upstream_knows_the_gateway_by_its_certificate() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let clients = format!(", client_ca = \"{}\"", authority.path("ca.pem").display());
    let behind = authority.secures(upstream.address, &clients, "protect = false").await;
    let (certificate, key) = authority.signs("front");
    let front = |more: &str| {
        let urls = format!("https://localhost:{}", behind.address.port());
        let text = simple(behind.address, "").replace(&format!("http://{}", behind.address), &urls);
        let ca = format!("name = \"up\"\nca = {:?}\n{more}", authority.path("ca.pem"));
        text.replace("name = \"up\"", &ca)
    };
    let gateway = started(&front("")).await;
    assert_eq!(send(gateway.address, post("k", "tea")).await.status, 502);
    let shown = format!("client_certificate = {certificate:?}\nclient_key = {key:?}");
    let gateway = started(&front(&shown)).await;
    assert_eq!(send(gateway.address, post("k", "tea")).await.status, 201);
}

#[tokio::test]
async fn a_listener_has_a_certificate_for_each_name() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let other = Authority::new();
    let (certificate, key) = other.signs("other");
    // What the client trusts tells which one it was shown.
    let more = format!(", certificates = [{{ certificate = {certificate:?}, key = {key:?} }}]");
    let gateway = authority.secures(upstream.address, &more, "").await;
    let shown = other.send(gateway.address, None, "http/1.1", post("k", "tea")).await;
    assert_eq!(shown.unwrap().status, 201);
    assert!(authority.send(gateway.address, None, "http/1.1", post("k", "tea")).await.is_err());
}

/// A token with these claims.
fn token(algorithm: Algorithm, key: &EncodingKey, claims: &serde_json::Value) -> String {
    jsonwebtoken::encode(&Header::new(algorithm), claims, key).unwrap()
}

fn soon() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() + 600
}

async fn with_token(gateway: &Running, token: &str) -> Reply {
    let mut request = post("k", "tea");
    let value = format!("Bearer {token}");
    request.headers_mut().insert("authorization", value.parse().unwrap());
    send(gateway.address, request).await
}

#[tokio::test]
async fn a_client_is_whom_a_claim_of_its_token_names() {
    let upstream = HyperService::mirror().await;
    let secret = "correct horse battery staple";
    let route = format!(
        "policy = {{ scope = {{ jwt = \"sub\", secret = \"{secret}\", issuer = [\"me\"], \
         audience = [\"shop\"] }} }}"
    );
    let gateway = in_front_of(upstream.address, &route).await;
    let key = EncodingKey::from_secret(secret.as_bytes());
    let claims = |sub: &str| json!({ "sub": sub, "exp": soon(), "iss": "me", "aud": "shop" });
    let good = |sub: &str| token(Algorithm::HS256, &key, &claims(sub));
    assert!(!with_token(&gateway, &good("ann")).await.is_replay());
    assert!(!with_token(&gateway, &good("bob")).await.is_replay());
    // A fresh token of the same account is the same client.
    let mut later = claims("ann");
    later["exp"] = json!(soon() + 60);
    assert!(with_token(&gateway, &token(Algorithm::HS256, &key, &later)).await.is_replay());

    let other = EncodingKey::from_secret(b"another secret of the same kind");
    let without = |name: &str| {
        let mut claims = claims("ann");
        claims.as_object_mut().unwrap().remove(name);
        token(Algorithm::HS256, &key, &claims)
    };
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = claims("ann");
        claims[name] = value;
        token(Algorithm::HS256, &key, &claims)
    };
    let signed = good("ann");
    let (head, rest) = signed.split_once('.').unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", rest.split_once('.').unwrap().0);
    let tampered = format!("{head}.{}", rest.replacen('e', "f", 1));
    for bad in [
        token(Algorithm::HS256, &other, &claims("ann")),
        token(Algorithm::HS384, &key, &claims("ann")),
        without("exp"),
        without("iss"),
        without("aud"),
        without("sub"),
        with("exp", json!(1)),
        with("nbf", json!(soon())),
        with("iss", json!("you")),
        with("aud", json!("bank")),
        with("sub", json!("")),
        with("sub", json!(["ann"])),
        unsigned,
        tampered,
        "nonsense".to_owned(),
        String::new(),
    ] {
        with_token(&gateway, &bad).await.refused(401, "scope-unresolved");
    }
    assert_eq!(upstream.requests(), 2);
    // Without a key nobody has to be known.
    let plain = Request::post("/").body(Full::default()).unwrap();
    assert_eq!(send(gateway.address, plain).await.status, 201);
}

#[tokio::test]
async fn a_token_may_be_verified_with_a_public_key() {
    let upstream = HyperService::mirror().await;
    let pair = KeyPair::generate().unwrap();
    let public = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(public.path(), pair.public_key_pem()).unwrap();
    let route = format!(
        "policy = {{ scope = {{ jwt = \"account\", key = \"{}\" }} }}",
        public.path().display()
    );
    let gateway = in_front_of(upstream.address, &route).await;
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let claims = json!({ "account": 7, "exp": soon() });
    let good = token(Algorithm::ES256, &key, &claims);
    assert_eq!(with_token(&gateway, &good).await.status, 201);
    assert!(with_token(&gateway, &good).await.is_replay());
    // Who takes the public key for a secret is not believed.
    let forged = EncodingKey::from_secret(pair.public_key_pem().as_bytes());
    let forged = token(Algorithm::HS256, &forged, &claims);
    with_token(&gateway, &forged).await.refused(401, "scope-unresolved");
}

#[tokio::test]
async fn a_token_names_its_key_in_a_set() {
    let upstream = HyperService::mirror().await;
    let keys: Vec<_> = (0..2)
        .map(|_| {
            let pair = KeyPair::generate().unwrap();
            EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap()
        })
        .collect();
    let set: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
            jwk.common.key_id = Some(format!("key {number}"));
            jwk
        })
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": set }).to_string()).unwrap();
    let path = file.path().display();
    let route = format!("policy = {{ scope = {{ jwt = \"sub\", jwks = \"{path}\" }} }}");
    let gateway = in_front_of(upstream.address, &route).await;
    let token = |named: usize, signed: usize| {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(format!("key {named}"));
        let claims = json!({ "sub": "ann", "exp": soon() });
        jsonwebtoken::encode(&header, &claims, &keys[signed]).unwrap()
    };
    assert!(!with_token(&gateway, &token(0, 0)).await.is_replay());
    assert!(with_token(&gateway, &token(1, 1)).await.is_replay());
    with_token(&gateway, &token(0, 1)).await.refused(401, "scope-unresolved");
    with_token(&gateway, &token(2, 0)).await.refused(401, "scope-unresolved");
}

#[tokio::test]
async fn keys_of_a_set_that_are_for_others_do_not_spoil_those_that_are_for_us() {
    let upstream = HyperService::mirror().await;
    let pairs: Vec<_> = (0..2).map(|_| KeyPair::generate().unwrap()).collect();
    let keys: Vec<_> = pairs
        .iter()
        .map(|pair| EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap())
        .collect();
    // Neither ids nor algorithms, as some issuers publish them.
    let mut set: Vec<_> = keys
        .iter()
        .map(|key| {
            let mut jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(key, Algorithm::ES256).unwrap();
            (jwk.common.key_id, jwk.common.key_algorithm) = (None, None);
            json!(jwk)
        })
        .collect();
    let mut for_encryption = set[0].clone();
    for_encryption["use"] = json!("enc");
    for_encryption["alg"] = json!("ECDH-ES");
    set.insert(0, for_encryption);
    set.insert(
        0,
        json!({ "kty": "RSA", "use": "enc", "alg": "RSA-OAEP", "n": "AQAB", "e": "AQAB" }),
    );
    set.insert(0, json!({ "kty": "AKP", "alg": "ML-DSA-44", "pub": "AQAB" }));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), json!({ "keys": set }).to_string()).unwrap();
    let path = file.path().display();
    let route = format!("policy = {{ scope = {{ jwt = \"sub\", jwks = \"{path}\" }} }}");
    let gateway = in_front_of(upstream.address, &route).await;
    let signed = |key| token(Algorithm::ES256, key, &json!({ "sub": "ann", "exp": soon() }));
    assert!(!with_token(&gateway, &signed(&keys[0])).await.is_replay());
    assert!(with_token(&gateway, &signed(&keys[1])).await.is_replay());
    let stranger = KeyPair::generate().unwrap();
    let stranger = EncodingKey::from_ec_pem(stranger.serialize_pem().as_bytes()).unwrap();
    with_token(&gateway, &signed(&stranger)).await.refused(401, "scope-unresolved");
}

#[tokio::test]
async fn a_name_counts_with_its_issuer_and_its_kind() {
    let upstream = HyperService::mirror().await;
    let secret = "correct horse battery staple";
    let route = format!("policy = {{ scope = {{ jwt = \"sub\", secret = \"{secret}\" }} }}");
    let gateway = in_front_of(upstream.address, &route).await;
    let key = EncodingKey::from_secret(secret.as_bytes());
    for claims in [
        json!({ "sub": "42", "iss": "one", "exp": soon() }),
        json!({ "sub": "42", "iss": "two", "exp": soon() }),
        json!({ "sub": "42", "exp": soon() }),
        json!({ "sub": 42, "iss": "one", "exp": soon() }),
    ] {
        let signed = token(Algorithm::HS256, &key, &claims);
        assert!(!with_token(&gateway, &signed).await.is_replay(), "{claims}");
        assert!(with_token(&gateway, &signed).await.is_replay(), "{claims}");
    }
}

#[tokio::test]
async fn a_listener_without_http1_does_not_speak_it() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let gateway = {
        let (certificate, key) = authority.signs("gateway");
        let tls = format!(
            "http1 = false\ntls = {{ certificate = {certificate:?}, key = {key:?} }}\n[[upstream]]"
        );
        started(&simple(upstream.address, "").replace("[[upstream]]", &tls)).await
    };
    // Without ALPN nothing is negotiated.
    let sent = authority.send(gateway.address, None, "", post("k", "tea")).await;
    assert_eq!(sent.unwrap().status, 505);
    assert_eq!(upstream.requests(), 0);
    let sent = authority.send(gateway.address, None, "h2", post("k", "tea")).await;
    assert_eq!(sent.unwrap().status, 201);
}

#[tokio::test]
async fn a_reload_shows_a_new_certificate() {
    let (former, upstream) = (Authority::new(), HyperService::mirror().await);
    let gateway = former.secures(upstream.address, "", "").await;
    let later = Authority::new();
    let (certificate, key) = later.signs("gateway");
    std::fs::copy(certificate, former.path("gateway.pem")).unwrap();
    std::fs::copy(key, former.path("gateway.key")).unwrap();
    let ask = async |authority: &Authority| {
        authority.send(gateway.address, None, "h2", post("k", "tea")).await
    };
    assert!(ask(&former).await.is_ok() && ask(&later).await.is_err());
    gateway.gateway.reload(&gateway.config).await.unwrap();
    assert!(ask(&former).await.is_err() && ask(&later).await.is_ok());
}

#[tokio::test]
async fn a_client_that_does_not_shake_hands_is_let_go() {
    let (authority, upstream) = (Authority::new(), HyperService::mirror().await);
    let (certificate, key) = authority.signs("gateway");
    let (certificate, key) = (certificate.display(), key.display());
    let tls = format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n[[upstream]]");
    let text = simple(upstream.address, "").replace("[[upstream]]", &tls);
    let gateway = started(&(text + "[limits]\nhandshake_ms = 100\n")).await;
    assert!(send_raw(gateway.address, b"").await.closed);
    let clear = send_raw(gateway.address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(clear.closed && clear.statuses().is_empty(), "{clear:?}");
}

fn to_host(host: &str) -> Request<Full<Bytes>> {
    let mut request = post("k", "tea");
    request.headers_mut().insert("host", host.parse().unwrap());
    request
}

#[tokio::test]
async fn upstreams_on_one_store_share_no_record() {
    let (shop, bank) = (HyperService::mirror().await, HyperService::mirror().await);
    let route = "host = \"shop.example\"\npolicy = { scope = \"shared\" }";
    let more = format!(
        "{route}\n[[upstream]]\nname = \"bank\"\nurls = [\"http://{}\"]\n\
         [[route]]\nupstream = \"bank\"\npolicy = {{ scope = \"shared\" }}",
        bank.address
    );
    let gateway = started(&simple(shop.address, &more)).await;
    let ask = |host: &'static str| send(gateway.address, to_host(host));
    assert!(!ask("shop.example").await.is_replay());
    assert!(!ask("bank.example").await.is_replay());
    assert!(ask("shop.example").await.is_replay() && ask("bank.example").await.is_replay());
    assert_eq!((shop.requests(), bank.requests()), (1, 1));
}

#[tokio::test]
async fn a_reload_moves_a_route_to_the_records_of_its_new_upstream() {
    let (shop, bank) = (HyperService::mirror().await, HyperService::mirror().await);
    let other = format!("[[upstream]]\nname = \"bank\"\nurls = [\"http://{}\"]\n", bank.address);
    let text = simple(shop.address, "") + &other;
    let gateway = started(&text).await;
    assert!(!send(gateway.address, post("k", "tea")).await.is_replay());
    let moved =
        config(&text.replace("[[route]]\nupstream = \"up\"", "[[route]]\nupstream = \"bank\""));
    gateway.gateway.reload(&moved).await.unwrap();
    assert!(!send(gateway.address, post("k", "tea")).await.is_replay());
    gateway.gateway.reload(&gateway.config).await.unwrap();
    assert!(send(gateway.address, post("k", "tea")).await.is_replay());
    assert_eq!((shop.requests(), bank.requests()), (1, 1));
}

#[tokio::test]
async fn a_key_is_bound_to_the_host_unless_the_route_names_a_scope() {
    for (policy, is_bound) in [("", true), ("policy = { scope = \"shared\" }", false)] {
        let upstream = HyperService::mirror().await;
        let gateway = in_front_of(upstream.address, policy).await;
        assert_eq!(send(gateway.address, to_host("a.example")).await.status, 201);
        let other = send(gateway.address, to_host("b.example")).await;
        match is_bound {
            true => other.refused(422, "key-reused"),
            false => assert!(other.is_replay(), "{other:?}"),
        }
        assert!(send(gateway.address, to_host("a.example")).await.is_replay());
        assert_eq!(upstream.requests(), 1);
    }
}
