//! A fleet whose gateways are replaced one after the other while clients go on.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_testkit::{RedisServer, Signal};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::support::gateway_process::{GatewayProcess, PATIENT, configuration};
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::PATIENCE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_replaced_under_load_without_a_lost_request() {
    let redis = RedisServer::start(&[]);
    let upstream = HyperService::start(async |_, _| {
        sleep(Duration::from_millis(5)).await;
        Response::builder().status(201).body(full("done")).unwrap()
    })
    .await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let tables = format!(
        "[store]\nurl = '{}'\n[limits]\nlame_duck_ms = 300\n\
         [[route]]\nupstream = 'app'\n[route.policy]\n{PATIENT}\n",
        redis.patient_url()
    );
    let lines = "address = '127.0.0.1:0'\ninherit = true\nprobes = true";
    let text = configuration(upstream.address, &tables).replace("address = '127.0.0.1:0'", lines);
    let start = || GatewayProcess::inheriting(OwnedFd::from(socket.try_clone().unwrap()), &text);
    let mut fleet = vec![start(), start(), start()];

    let load = Arc::new(Load::default());
    let clients: Vec<_> = (0..6)
        .map(|number| tokio::spawn(client(address, number, number % 3 == 0, Arc::clone(&load))))
        .collect();
    for _ in 0..fleet.len() {
        load.goes_on().await;
        let mut old = fleet.remove(0);
        fleet.push(start());
        old.signal(Signal::TERM);
        assert!(old.exited().await.success());
    }
    load.goes_on().await;
    load.is_over.store(true, Ordering::SeqCst);
    for client in clients {
        timeout(PATIENCE, client).await.unwrap().unwrap();
    }
    let answered = load.answered.load(Ordering::SeqCst);
    let lost = load.lost.lock().unwrap();
    assert!(lost.is_empty(), "{} beside {answered}: {:?}", lost.len(), lost.first());
    assert_eq!(upstream.requests(), answered, "each is executed once");
    drop(fleet);
}

#[derive(Default)]
struct Load {
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Load {
    fn lose(&self, why: String) {
        self.lost.lock().unwrap().push(why);
    }

    /// Waits for more answers.
    async fn goes_on(&self) {
        let before = self.answered.load(Ordering::SeqCst);
        while self.answered.load(Ordering::SeqCst) < before + 200 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn connect(address: SocketAddr, is_http2: bool) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            return Self::Http2(sender);
        }
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self::Http1(sender)
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>> {
        match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        }
    }
}

/// Sends requests until the load is over; one that was certainly not sent goes over another
/// connection, as clients do it.
async fn client(address: SocketAddr, number: usize, is_http2: bool, load: Arc<Load>) {
    let mut sender = Sender::connect(address, is_http2).await;
    let mut count = 0;
    while !load.is_over.load(Ordering::SeqCst) {
        count += 1;
        let uri = if is_http2 { "http://shop/orders" } else { "/orders" };
        let mut request = Request::post(uri);
        if !is_http2 {
            request = request.header("host", "shop");
        }
        let request = request.header("idempotency-key", format!("{number}-{count}"));
        let mut unsent = Some(request.body(Full::from("tea")).unwrap());
        while let Some(request) = unsent.take() {
            match sender.send(request).await {
                Ok(response) => {
                    let closes = response.headers().contains_key("connection");
                    let is_good = response.status() == 201;
                    let body = response.into_body().collect().await;
                    match body {
                        Ok(_) if is_good => _ = load.answered.fetch_add(1, Ordering::SeqCst),
                        body => load.lose(format!("{body:?}")),
                    }
                    if closes {
                        sender = Sender::connect(address, is_http2).await;
                    }
                }
                Err(mut error) => {
                    unsent = error.take_message();
                    if unsent.is_none() {
                        load.lose(format!("{error:?}"));
                    }
                    sender = Sender::connect(address, is_http2).await;
                }
            }
        }
    }
}
