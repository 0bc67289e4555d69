//! Clients that are served by several threads.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use idemptx_gateway::serve::Gateway;
use idemptx_gateway::workers::Workers;
use tokio::net::TcpStream;

#[cfg(any(feature = "postgres", feature = "redis"))]
use crate::support::gateway_process::PATIENT;
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{Reply, config, post, simple};

/// A gateway that serves clients on two threads.
async fn on_two_threads(text: &str) -> Gateway {
    Gateway::start_on(Workers::start_threads(2).unwrap(), config(text)).await.unwrap()
}

/// Returns the configuration of a gateway on another store than memory.
#[cfg(any(feature = "postgres", feature = "redis"))]
fn on_store(upstream: &HyperService, store: &str) -> String {
    let policy = format!("[route.policy]\n{PATIENT}");
    simple(upstream.address, &policy).replace("url = \"memory:\"", store)
}

fn address(gateway: &Gateway) -> SocketAddr {
    gateway.addresses()[0].tcp().unwrap()
}

/// A connection, which stays on the thread that it was given to.
struct Client(SendRequest<Full<Bytes>>);

impl Client {
    /// Connects, and waits until the connection is served.
    async fn connect(gateway: &Gateway) -> Self {
        let stream = TcpStream::connect(address(gateway)).await.unwrap();
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut client = Self(sender);
        let nowhere = Request::options("*").body(Full::default()).unwrap();
        client.send(nowhere).await;
        client
    }

    async fn send(&mut self, mut request: Request<Full<Bytes>>) -> Reply {
        request.headers_mut().insert("host", "shop.example".parse().unwrap());
        Reply::of(self.0.send_request(request).await.unwrap()).await
    }
}

#[tokio::test]
async fn connections_are_given_to_the_threads_in_turns_and_each_has_its_own_to_the_upstream() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "protect = false")
        .replace("name = \"up\"", "name = \"up\"\nhttp2 = true");
    let gateway = on_two_threads(&text).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = Client::connect(&gateway).await;
        assert_eq!(client.send(post("k", "tea")).await.status, 201);
        clients.push(client);
    }
    assert_eq!(upstream.connections(), 2);
}

/// The only connection to the upstream belongs to the thread that opened it, but all may use it.
#[tokio::test]
async fn an_upstreams_last_connection_serves_the_clients_of_all_threads() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "protect = false")
        .replace("name = \"up\"", "name = \"up\"\nconnections_max = 1");
    let gateway = on_two_threads(&text).await;
    let clients = join_all((0..4).map(|_| Client::connect(&gateway))).await;
    let before = upstream.requests();
    join_all(clients.into_iter().map(async |mut client| {
        for _ in 0..50 {
            assert_eq!(client.send(post("k", "tea")).await.status, 201);
        }
    }))
    .await;
    assert_eq!((upstream.requests() - before, upstream.connections()), (200, 1));
}

#[tokio::test]
async fn one_key_is_executed_once_by_requests_on_all_threads() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "policy = { wait_ms = 10000 }");
    let gateway = on_two_threads(&text).await;
    let mut clients = join_all((0..6).map(|_| Client::connect(&gateway))).await;
    let before = upstream.requests();
    for key in (1..=50).map(|number| format!("k{number}")) {
        let sent = clients.iter_mut().map(|client| client.send(post(&key, "tea")));
        let replies = join_all(sent).await;
        let first = replies.iter().filter(|reply| !reply.is_replay()).count();
        assert_eq!(first, 1, "{replies:?}");
        assert!(replies.iter().all(|it| it.status == 201 && it.body == replies[0].body));
    }
    assert_eq!(upstream.requests() - before, 50);
}

#[cfg(feature = "redis")]
#[tokio::test]
async fn each_thread_is_connected_to_redis_before_its_first_request() {
    let server = idemptx_testkit::RedisServer::start(&[]);
    let upstream = HyperService::mirror().await;
    let text = on_store(&upstream, &format!("url = \"{}\"", server.patient_url()));
    let before = server.connections();
    let gateway = on_two_threads(&text).await;
    // The third is that of operators and checks; the count is a connection, too.
    let opened = server.connections();
    assert!(opened >= before + 3, "{before}, then {opened}");
    let mut clients = join_all((0..4).map(|_| Client::connect(&gateway))).await;
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.send(post(&format!("k{number}"), "tea")).await.status, 201);
    }
    assert!(server.connections() <= opened + 1, "{opened}, then {}", server.connections());
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgresql_has_no_sessions_for_each_thread() {
    let server = idemptx_testkit::PostgresServer::start(&[]);
    let upstream = HyperService::mirror().await;
    let text = on_store(&upstream, &format!("url = \"{}\"\nsessions = 1", server.patient_url()));
    let gateway = on_two_threads(&text).await;
    let mut clients = join_all((0..4).map(|_| Client::connect(&gateway))).await;
    for round in 0..5 {
        let sent = clients
            .iter_mut()
            .enumerate()
            .map(|(number, client)| client.send(post(&format!("k{round}-{number}"), "tea")));
        assert!(join_all(sent).await.iter().all(|reply| reply.status == 201));
    }
    let counted = "SELECT count(*) FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let sessions = server.session().await.query_one(counted, &[]).await.unwrap();
    assert_eq!(sessions.get::<_, i64>(0), 1);
}
