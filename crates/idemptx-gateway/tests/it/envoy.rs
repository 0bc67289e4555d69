//! `idemptx ext-proc` behind a real Envoy, with the configuration of the guide.

mod failures;
mod limits_of_bodies;
mod passing;
mod replays;

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use idemptx_gateway::serve::Gateway;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use crate::identity::Authority;
use crate::support::command::run;
use crate::support::hyper_service::{Body, HyperService, full};
use crate::support::in_process::{PATIENCE, config, post};

#[tokio::test]
async fn a_file_is_for_the_gateway_for_envoy_or_for_both() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shop.toml");
    let path = file.to_str().unwrap();
    let route = "[[route]]\nupstream = 'shop'\n[store]\nurl = 'memory:'\n";
    std::fs::write(&file, format!("[ext_proc]\naddress = '127.0.0.1:9100'\n{route}")).unwrap();
    let checked = run(&["check", "--config", path]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    assert!(checked.stdout.starts_with("processor for Envoy: grpc://127.0.0.1:9100\n"));
    assert!(checked.stdout.contains("\nroute /**: to shop, under draft\n"), "{checked:?}");
    let served = run(&["serve", "--config", path]).await;
    assert_eq!(served.code, 2);
    assert!(served.stderr.contains("run `idemptx ext-proc`"), "{served:?}");
    let gateway = "[[listener]]\naddress = '127.0.0.1:0'\n\
                   [[upstream]]\nname = 'shop'\nurls = ['http://127.0.0.1:9']\n";
    std::fs::write(&file, format!("{gateway}{route}")).unwrap();
    let processed = run(&["ext-proc", "--config", path]).await;
    assert_eq!(processed.code, 2);
    assert!(processed.stderr.contains("there is no section [ext_proc]"), "{processed:?}");
}

#[tokio::test]
async fn a_reload_shows_envoy_a_new_certificate() {
    let (former, later) = (Authority::new(), Authority::new());
    let (certificate, key) = former.signs("gateway");
    let text = format!(
        "[ext_proc]\naddress = '127.0.0.1:0'\n\
         tls = {{ certificate = {certificate:?}, key = {key:?} }}\n\
         [[route]]\nupstream = 'shop'\n[store]\nurl = 'memory:'\n"
    );
    let config = config(&text).into_ext_proc().unwrap();
    let gateway = Gateway::start(config.clone()).await.unwrap();
    let address = gateway.ext_proc_address().unwrap();
    // A request that is no gRPC call gets an answer, too.
    let ask = async |authority: &Authority| {
        authority.send(address, None, "h2", post("k", "tea")).await.is_ok()
    };
    assert!(ask(&former).await && !ask(&later).await);
    let (new_certificate, new_key) = later.signs("gateway");
    std::fs::copy(new_certificate, certificate).unwrap();
    std::fs::copy(new_key, key).unwrap();
    gateway.reload(&config).await.unwrap();
    assert!(!ask(&former).await && ask(&later).await);
}

#[tokio::test]
async fn a_connection_to_the_processor_without_a_call_is_closed() {
    let text = "[ext_proc]\naddress = '127.0.0.1:0'\n[limits]\nhead_ms = 200\n\
                [[route]]\nupstream = 'shop'\n[store]\nurl = 'memory:'\n";
    let gateway = Gateway::start(config(text).into_ext_proc().unwrap()).await.unwrap();
    let address = gateway.ext_proc_address().unwrap();
    for bytes in [&b""[..], b"PRI * HT", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "open after {bytes:?}");
    }
    // One that answers pings, too.
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    assert!(timeout(PATIENCE, connection).await.is_ok());
    drop(client);
}

/// A service that tells of each request and answers `201 order <number>` when it is let go on.
struct HeldService {
    service: HyperService,
    arrived: mpsc::UnboundedReceiver<usize>,
    released: Arc<Semaphore>,
}

impl HeldService {
    async fn start() -> Self {
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let released = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&released);
        let service = HyperService::start(move |number, _| {
            let permits = Arc::clone(&permits);
            arrivals.send(number).unwrap();
            async move {
                permits.acquire().await.unwrap().forget();
                order(number)
            }
        })
        .await;
        Self { service, arrived, released }
    }

    async fn arrival(&mut self) -> usize {
        self.arrived.recv().await.unwrap()
    }

    fn release(&self, requests: usize) {
        self.released.add_permits(requests);
    }
}

/// A service that answers each request at once.
async fn orders() -> HyperService {
    HyperService::start(|number, _: Request<Incoming>| async move { order(number) }).await
}

fn order(number: usize) -> Response<Body> {
    Response::builder().status(201).body(full(format!("order {number}"))).unwrap()
}
