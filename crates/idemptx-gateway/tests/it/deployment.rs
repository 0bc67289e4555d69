//! The surroundings of a gateway: proxies and load balancers in front, addresses behind it, the
//! supervisor, and the issuer of tokens.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use idemptx_testkit::Signal;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::gateway_process::{GatewayProcess, configuration};
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{Reply, Running, post, send, simple, started};
use crate::support::raw_upstream::rest;

/// A gateway whose listener has these lines.
async fn listening(upstream: SocketAddr, lines: &str) -> Running {
    let text = simple(upstream, "protect = false")
        .replace("\n[[upstream]]", &format!("\n{lines}\n[[upstream]]"));
    started(&text).await
}

fn get(headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::get("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn what_a_trusted_proxy_forwards_is_added_to_and_what_others_do_is_replaced() {
    let upstream = HyperService::mirror().await;
    let forwarded = [("x-forwarded-for", "6.6.6.6, 10.0.0.7"), ("x-forwarded-proto", "https")];
    for (lines, expected, scheme) in [
        (
            "trusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']",
            "6.6.6.6, 10.0.0.7, 127.0.0.1",
            "https",
        ),
        ("trusted_proxies = ['10.0.0.0/8']", "127.0.0.1", "http"),
        ("", "127.0.0.1", "http"),
    ] {
        let gateway = listening(upstream.address, lines).await;
        let seen = send(gateway.address, get(&forwarded)).await;
        let line = format!("\nx-forwarded-for: {expected}\n");
        assert!(seen.text().contains(&line), "{lines}: {}", seen.text());
        assert!(seen.text().contains(&format!("x-forwarded-proto: {scheme}\n")), "{lines}");
    }
}

#[tokio::test]
async fn the_client_is_the_last_hop_that_no_trusted_proxy_is() {
    let upstream = HyperService::mirror().await;
    let tables =
        "[log]\nlevel = 'info'\naccess = true\n[[route]]\nupstream = 'app'\nprotect = false";
    let text = configuration(upstream.address, tables).replace(
        "address = '127.0.0.1:0'",
        "address = '127.0.0.1:0'\ntrusted_proxies = ['127.0.0.1', '10.0.0.0/8']",
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    let gateway = GatewayProcess::serve_in(folder, &["--config", file.to_str().unwrap()], &[]);
    for (name, value, client) in [
        ("x-forwarded-for", "6.6.6.6, 7.7.7.7, 10.0.0.7", "7.7.7.7"),
        ("x-forwarded-for", "10.0.0.8", "10.0.0.8"),
        ("x-forwarded-for", "8.8.8.8, nonsense, 10.0.0.9", "10.0.0.9"),
        ("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:80\";proto=https", "2001:db8::1"),
    ] {
        send(gateway.address(), get(&[(name, value)])).await;
        gateway.logs(&format!("client={client} ")).await;
    }
}

#[tokio::test]
async fn a_load_balancer_says_for_whom_it_connects() {
    let upstream = HyperService::mirror().await;
    let lines = "proxy_protocol = true\ntrusted_proxies = ['127.0.0.1']";
    let gateway = listening(upstream.address, lines).await;
    let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\x0A\0\0\x07\x0A\0\0\x01\x01\x02\x03\x04";
    let ask = async |address, bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        rest(&mut stream).await
    };
    let answer = ask(gateway.address, &[&header[..], request].concat()).await;
    assert_eq!(answer.statuses(), [201], "{answer:?}");
    assert!(answer.text.contains("x-forwarded-for: 10.0.0.7\n"), "{}", answer.text);
    let without = ask(gateway.address, request).await;
    assert!(without.text.is_empty() && without.closed, "{without:?}");
    // One that nobody trusts could name any client.
    let lines = "proxy_protocol = true\ntrusted_proxies = ['10.0.0.0/8']";
    let gateway = listening(upstream.address, lines).await;
    let stranger = ask(gateway.address, &[&header[..], request].concat()).await;
    assert!(stranger.text.is_empty() && stranger.closed, "{stranger:?}");
}

#[tokio::test]
async fn addresses_get_their_share_and_a_busy_one_gets_fewer() {
    let held = Arc::new(Notify::new());
    let (gate, quick) = (Arc::clone(&held), HyperService::mirror().await);
    let slow = HyperService::start(move |_, _| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            Response::new(full("at last"))
        }
    })
    .await;
    let pair = |first: SocketAddr, more: &str| {
        let both = format!("\"http://{first}\", \"http://{}\"]\n{more}", quick.address);
        simple(first, "protect = false").replace(&format!("\"http://{first}\"]"), &both)
    };
    let other = HyperService::mirror().await;
    let gateway = started(&pair(other.address, "weights = [3, 1]")).await;
    for _ in 0..8 {
        send(gateway.address, get(&[])).await;
    }
    assert_eq!((other.requests(), quick.requests()), (6, 2));
    let gateway = started(&pair(slow.address, "balance = \"least-requests\"")).await;
    let address = gateway.address;
    let waiting = tokio::spawn(send(address, get(&[])));
    while slow.requests() == 0 {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        send(address, get(&[])).await;
    }
    assert_eq!((slow.requests(), quick.requests()), (1, 7));
    held.notify_one();
    assert_eq!(waiting.await.unwrap().text(), "at last");
}

#[tokio::test]
async fn the_supervisor_is_told_of_the_beginning_and_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let supervisor = UnixDatagram::bind(&path).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let told = || {
        let mut text = [0; 256];
        let length = supervisor.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    };
    let arguments =
        ["--upstream", "http://127.0.0.1:9", "--listen", "127.0.0.1:0", "--store", "memory:"];
    let socket = [("NOTIFY_SOCKET", path.to_str().unwrap())];
    let mut gateway = GatewayProcess::serve_in(tempfile::tempdir().unwrap(), &arguments, &socket);
    assert_eq!(told(), "READY=1\nSTATUS=serving");
    gateway.signal(Signal::TERM);
    assert_eq!(told(), "STOPPING=1\nSTATUS=draining");
    assert!(gateway.exited().await.success());
}

/// An issuer whose set of keys changes.
#[derive(Clone)]
struct IssuerOfTokens {
    answer: Arc<Mutex<Option<String>>>,
    asked: Arc<AtomicUsize>,
    address: SocketAddr,
}

impl IssuerOfTokens {
    async fn start() -> Self {
        let answer: Arc<Mutex<Option<String>>> = Arc::default();
        let asked = Arc::new(AtomicUsize::new(0));
        let (shown, counted) = (Arc::clone(&answer), Arc::clone(&asked));
        let service = HyperService::start(move |_, _| {
            let shown = shown.lock().unwrap().clone();
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match shown {
                    Some(set) => Response::new(full(set)),
                    None => Response::builder().status(500).body(full("")).unwrap(),
                }
            }
        })
        .await;
        Self { answer, asked, address: service.address }
    }

    /// Answers with this from now on, and waits until it was asked for twice.
    async fn publishes(&self, answer: Option<String>) {
        *self.answer.lock().unwrap() = answer;
        let before = self.asked.load(Ordering::SeqCst);
        while self.asked.load(Ordering::SeqCst) < before + 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn signing_key() -> (EncodingKey, Value) {
    let pair = KeyPair::generate().unwrap();
    let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    (key, json!(jwk))
}

async fn with_token(gateway: &Running, key: &EncodingKey, name: &str) -> Reply {
    let claims = json!({ "sub": name, "exp": 4_000_000_000_u64 });
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, key).unwrap();
    let mut request = post("k", "tea");
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    send(gateway.address, request).await
}

#[tokio::test]
async fn keys_for_tokens_are_read_from_their_issuer_and_the_last_good_ones_stay() {
    let (upstream, issuer) = (HyperService::mirror().await, IssuerOfTokens::start().await);
    let ((first, one), (second, two)) = (signing_key(), signing_key());
    *issuer.answer.lock().unwrap() = Some(json!({ "keys": [one] }).to_string());
    let scope = format!(
        "policy = {{ scope = {{ jwt = \"sub\", jwks_url = \"http://{}/keys?v=1\", jwks_refresh_ms = 100 }} }}",
        issuer.address
    );
    let admin = "\n[admin]\naddress = \"127.0.0.1:0\"\n";
    let text = simple(upstream.address, &scope) + admin;
    let gateway = started(&text).await;
    assert_eq!(with_token(&gateway, &first, "ann").await.status, 201);
    with_token(&gateway, &second, "bob").await.refused(401, "scope-unresolved");
    let broken = [
        None,
        Some("no set".to_owned()),
        Some(json!({ "keys": [] }).to_string()),
        Some(json!({ "keys": [two], "padding": "x".repeat(2 << 20) }).to_string()),
    ];
    for answer in broken {
        issuer.publishes(answer).await;
        assert!(with_token(&gateway, &first, "ann").await.is_replay());
        with_token(&gateway, &second, "bob").await.refused(401, "scope-unresolved");
    }
    // A reload does not forget them.
    gateway.gateway.reload(&gateway.config).await.unwrap();
    assert!(with_token(&gateway, &first, "ann").await.is_replay());
    issuer.publishes(Some(json!({ "keys": [one, two] }).to_string())).await;
    assert_eq!(with_token(&gateway, &second, "bob").await.status, 201);
    let admin = gateway.admin();
    let operator =
        async |path: &str| send(admin, Request::get(path).body(Full::default()).unwrap()).await;
    let metrics = operator("/metrics").await;
    let keys = format!("idemptx_keys{{url=\"http://{}/keys?v=1\"}} 2", issuer.address);
    assert!(metrics.text().contains(&keys), "{}", metrics.text());
    assert_eq!(operator("/readyz").await.text(), "ready\n");
    issuer.publishes(None).await;
    assert_eq!(operator("/readyz").await.text(), "ready, but keys for tokens cannot be read\n");
}
