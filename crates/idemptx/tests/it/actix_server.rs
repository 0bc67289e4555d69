//! The middleware for actix-web on actix's own server, over HTTP/1.1 and over HTTP/2 without TLS.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use actix_web::body::None as NoBody;
use actix_web::dev::{ServerHandle, Service as _};
use actix_web::rt::System;
use actix_web::{App, Error, HttpRequest, HttpResponse, HttpServer, web};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::channel::Channel;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx::Engine;
use idemptx::store::MemoryStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

#[tokio::test]
async fn a_retry_is_answered_alike_over_http_1_and_http_2() {
    for http in BOTH {
        let shop = Shop::open();
        let mut client = shop.connect(http).await;
        let first = client.answer(post("/orders", "k", "tea")).await;
        assert_eq!((first.status, &*first.text), (201, "run 1 of tea"), "{http:?}");
        assert_eq!(first.lines("set-cookie"), ["a=1", "b=2"]);
        for other in BOTH {
            let mut client = shop.connect(other).await;
            let retry = client.answer(post("/orders", "k", "tea")).await;
            assert_eq!((retry.status, &*retry.text), (201, "run 1 of tea"), "{http:?} {other:?}");
            assert_eq!(retry.lines("idempotent-replayed"), ["true"]);
            assert_eq!(retry.lines("content-length"), ["12"]);
            assert_eq!(retry.lines("x-multi"), ["first", "second"]);
        }
        assert_eq!(client.answer(post("/orders", "k", "coffee")).await.status, 422);
        let held = shop.connect(http).await.send(post("/gated", "held", ""));
        shop.state.began(2).await;
        assert_eq!(client.answer(post("/gated", "held", "")).await.status, 409);
        shop.state.gate.add_permits(1);
        assert_eq!(read(held.await.unwrap()).await.text, "run 2");
    }
}

/// Most of what handlers use in actix spawns local tasks, its client for HTTP for example.
#[tokio::test]
async fn a_handler_whose_client_has_left_spawns_local_tasks_as_before() {
    for http in BOTH {
        let shop = Shop::open();
        let mut client = shop.connect(http).await;
        let leaving = client.send(post("/gated", "k", ""));
        shop.state.began(1).await;
        leaving.abort();
        client.leave();
        // Over HTTP/2 actix runs each request in a task of its own, to its end.
        if http == Http::One {
            shop.state.ended(1).await;
        }
        shop.state.gate.add_permits(1);
        assert!(shop.engine.drain().await);
        let retry = shop.connect(http).await.answer(post("/gated", "k", "")).await;
        assert_eq!((retry.status, &*retry.text), (200, "run 1"), "{http:?}");
        assert_eq!(retry.lines("idempotent-replayed"), ["true"]);
    }
}

#[tokio::test]
async fn events_flow_and_a_key_that_they_release_is_free_when_they_end() {
    for http in BOTH {
        let shop = Shop::open();
        let (mut client, mut other) = (shop.connect(http).await, shop.connect(http).await);
        for (path, code) in [("/events", "result-unavailable"), ("/events?release", "in-progress")]
        {
            let mut events = client.send(post(path, path, "")).await.unwrap();
            let first = events.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(first, "data: 1\n\n", "{http:?}");
            let refused = other.answer(post(path, path, "")).await;
            assert!(refused.text.contains(code), "{http:?} {refused:?}");
            shop.state.gate.add_permits(2);
            assert_eq!(read(events).await.text, "data: 2\n\n", "{http:?}");
        }
        // With another body, which a record that is still there would refuse.
        shop.state.gate.add_permits(2);
        let next = other.answer(post("/events?release", "/events?release", "another")).await;
        assert_eq!(next.text, "data: 1\n\ndata: 2\n\n", "{http:?}");
    }
}

#[tokio::test]
async fn a_key_is_free_once_the_client_of_its_events_has_left() {
    for http in BOTH {
        let shop = Shop::open();
        let mut client = shop.connect(http).await;
        let mut events = client.send(post("/events?release", "k", "")).await.unwrap();
        events.frame().await.unwrap().unwrap();
        drop(events);
        client.leave();
        // Over HTTP/2 actix notices that a client has left when it has something to send.
        shop.state.gate.add_permits(2);
        assert!(shop.engine.drain().await);
        shop.state.gate.add_permits(2);
        let next = shop.connect(http).await.answer(post("/events?release", "k", "other")).await;
        assert_eq!(next.status, 200, "{http:?} {next:?}");
    }
}

#[tokio::test]
async fn half_a_body_claims_nothing() {
    for (http, length) in BOTH.into_iter().flat_map(|http| [(http, None), (http, Some(3))]) {
        let shop = Shop::open();
        let mut client = shop.connect(http).await;
        let (mut sending, body) = Channel::new(1);
        let mut half = post("/orders", "k", "").map(|_| body.boxed_unsync());
        if let Some(length) = length {
            half.headers_mut().insert("content-length", length.into());
        }
        let half = client.send(half);
        sending.send_data(Bytes::from_static(b"te")).await.unwrap();
        shop.state.called(1).await;
        half.abort();
        client.leave();
        shop.state.ended(1).await;
        let whole = shop.connect(http).await.answer(post("/orders", "k", "tea")).await;
        assert_eq!((whole.status, &*whole.text), (201, "run 1 of tea"), "{http:?} {length:?}");
    }
}

/// A length of 0 would say that the response to GET is empty.
#[tokio::test]
async fn a_response_without_a_body_declares_no_length() {
    for http in BOTH {
        let shop = Shop::open();
        let request = Request::head("/orders").body(Full::default());
        let request = request.unwrap().map(|body| body.map_err(io::Error::other).boxed_unsync());
        let head = shop.connect(http).await.answer(request).await;
        assert_eq!((head.status, head.lines("content-length").len()), (200, 0), "{http:?}");
    }
}

#[tokio::test]
async fn a_connection_is_upgraded() {
    let shop = Shop::open();
    let mut stream = TcpStream::connect(shop.address).await.unwrap();
    let request = "GET /echo HTTP/1.1\r\nhost: shop\r\nidempotency-key: k\r\n\
                   connection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        let read = timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        assert_ne!(read.unwrap().unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));
}

/// A shop that runs on both protocols, with two workers.
struct Shop {
    address: SocketAddr,
    engine: Engine<MemoryStore>,
    state: Arc<State>,
    server: ServerHandle,
}

/// The steps that requests have taken, and the gate for which some handlers wait.
struct State {
    called: watch::Sender<usize>,
    began: watch::Sender<usize>,
    ended: watch::Sender<usize>,
    gate: Semaphore,
}

/// A request that has ended once this is dropped, with a response or without.
struct Call(web::Data<State>);

impl Shop {
    fn open() -> Self {
        let engine = Engine::builder(MemoryStore::new()).build().unwrap();
        let state = Arc::new(State {
            called: watch::Sender::new(0),
            began: watch::Sender::new(0),
            ended: watch::Sender::new(0),
            gate: Semaphore::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = mpsc::channel();
        let (protected, data) = (engine.clone(), web::Data::from(Arc::clone(&state)));
        let app = move || {
            let watched = data.clone();
            App::new()
                .wrap(protected.middleware())
                .wrap_fn(move |request, service| {
                    let call = Call(watched.clone());
                    call.0.called.send_modify(|calls| *calls += 1);
                    let response = service.call(request);
                    async move {
                        let _call = call;
                        response.await
                    }
                })
                .app_data(data.clone())
                .configure(routes)
        };
        std::thread::spawn(move || {
            System::new().block_on(async move {
                let server = HttpServer::new(app).workers(2).disable_signals();
                let server = server.listen_auto_h2c(listener).unwrap().run();
                sender.send(server.handle()).unwrap();
                server.await.unwrap();
            });
        });
        Self { address, engine, state, server: receiver.recv().unwrap() }
    }

    async fn connect(&self, http: Http) -> Client {
        let stream = TcpStream::connect(self.address).await.unwrap();
        // So that a client that leaves is noticed at once: half a close may mean only that.
        stream.set_zero_linger().unwrap();
        let io = TokioIo::new(stream);
        let (sender, connection) = match http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                (Sender::One(sender), tokio::spawn(async { drop(connection.await) }))
            }
            Http::Two => {
                let handshake = http2::handshake(TokioExecutor::new(), io);
                let (sender, connection) = handshake.await.unwrap();
                (Sender::Two(sender), tokio::spawn(async { drop(connection.await) }))
            }
        };
        Client { sender, connection: connection.abort_handle() }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        drop(self.server.stop(false));
    }
}

impl State {
    async fn called(&self, calls: usize) {
        reached(&self.called, calls).await;
    }

    async fn began(&self, runs: usize) {
        reached(&self.began, runs).await;
    }

    async fn ended(&self, calls: usize) {
        reached(&self.ended, calls).await;
    }

    /// Returns the number of this run.
    fn begin(&self) -> usize {
        self.began.send_modify(|runs| *runs += 1);
        *self.began.borrow()
    }
}

async fn reached(counts: &watch::Sender<usize>, count: usize) {
    let mut counts = counts.subscribe();
    let reached = timeout(PATIENCE, counts.wait_for(|it| *it >= count)).await;
    reached.expect("in time").unwrap();
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.ended.send_modify(|calls| *calls += 1);
    }
}

fn routes(app: &mut web::ServiceConfig) {
    let head = || async { HttpResponse::Ok().body(NoBody::new()) };
    app.service(web::resource("/orders").post(order).route(web::head().to(head)))
        .route("/gated", web::post().to(gated))
        .route("/events", web::post().to(events))
        .route("/echo", web::get().to(echo));
}

async fn order(state: web::Data<State>, item: String) -> HttpResponse {
    HttpResponse::Created()
        .append_header(("x-multi", "first"))
        .append_header(("x-multi", "second"))
        .append_header(("set-cookie", "a=1"))
        .append_header(("set-cookie", "b=2"))
        .body(format!("run {} of {item}", state.begin()))
}

async fn gated(state: web::Data<State>) -> String {
    let run = state.begin();
    state.gate.acquire().await.unwrap().forget();
    actix_web::rt::spawn(async move { format!("run {run}") }).await.unwrap()
}

/// Two events, before whose second and end it waits for the gate.
async fn events(state: web::Data<State>, request: HttpRequest) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    if request.query_string() == "release" {
        answer.insert_header(("idempotency-outcome", "release"));
    }
    let events = stream::unfold(1, move |number| {
        let state = state.clone();
        async move {
            if number > 1 {
                state.gate.acquire().await.unwrap().forget();
            }
            let event = Ok::<_, Error>(Bytes::from(format!("data: {number}\n\n")));
            (number <= 2).then_some((event, number + 1))
        }
    });
    answer.content_type("text/event-stream").streaming(events)
}

async fn echo(payload: web::Payload) -> HttpResponse {
    let mut answer = HttpResponse::SwitchingProtocols();
    answer.upgrade("websocket").streaming(payload)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Http {
    One,
    Two,
}

type Sent = UnsyncBoxBody<Bytes, io::Error>;

struct Client {
    sender: Sender,
    connection: AbortHandle,
}

enum Sender {
    One(http1::SendRequest<Sent>),
    Two(http2::SendRequest<Sent>),
}

impl Client {
    fn send(&mut self, mut request: Request<Sent>) -> JoinHandle<Response<Incoming>> {
        match &mut self.sender {
            Sender::One(sender) => {
                request.headers_mut().insert("host", "shop".parse().unwrap());
                let answer = sender.send_request(request);
                tokio::spawn(async { answer.await.unwrap() })
            }
            Sender::Two(sender) => {
                let uri = format!("http://shop{}", request.uri());
                *request.uri_mut() = uri.parse().unwrap();
                let answer = sender.send_request(request);
                tokio::spawn(async { answer.await.unwrap() })
            }
        }
    }

    async fn answer(&mut self, request: Request<Sent>) -> Answer {
        if let Sender::One(sender) = &mut self.sender {
            timeout(PATIENCE, sender.ready()).await.expect("in time").unwrap();
        }
        let answer = timeout(PATIENCE, self.send(request)).await;
        read(answer.expect("in time").unwrap()).await
    }

    fn leave(self) {
        self.connection.abort();
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn lines(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

async fn read(response: Response<Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = timeout(PATIENCE, body.collect()).await.expect("in time").unwrap().to_bytes();
    let text = String::from_utf8(body.into()).unwrap();
    Answer { status: parts.status.as_u16(), headers: parts.headers, text }
}

fn post(path: &str, key: &str, body: &'static str) -> Request<Sent> {
    let body = Full::from(body).map_err(io::Error::other).boxed_unsync();
    Request::post(path).header("idempotency-key", key).body(body).unwrap()
}

const BOTH: [Http; 2] = [Http::One, Http::Two];
const PATIENCE: Duration = Duration::from_secs(20);
