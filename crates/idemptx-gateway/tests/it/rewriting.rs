//! The requests that an upstream receives, and the routes that they take.

use http::Request;
use http_body_util::Full;

use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{in_front_of, post, send, send_http2, simple, started};
use crate::support::raw_upstream::{RawUpstream, send_raw};

#[tokio::test]
async fn a_path_that_is_written_otherwise_takes_the_same_route() {
    let upstream = HyperService::mirror().await;
    let route = "path = \"/payments/*\"\nhost = \"API.example.com.\"\n\
                 policy = { required = true }\n[[route]]\nupstream = \"up\"\n\
                 path = \"/caf%c3%a9/%40m%65/**\"\npolicy = { required = true }\n\
                 [[route]]\nupstream = \"up\"\nprotect = false";
    let gateway = in_front_of(upstream.address, route).await;
    for (path, host) in [
        ("/payments/1", "api.example.com"),
        ("/%70ayments/1", "api.example.com"),
        ("/p%61yments/%31", "api.example.com"),
        ("/payments;v=2/1", "api.example.com"),
        ("/payments/1;x", "API.example.com"),
        ("/payments/1", "api.example.com."),
        ("/payments/1", "api.example.com.:443"),
        ("/caf%c3%a9/@me", "any"),
        ("/caf%C3%A9/%40me/orders", "any"),
        ("/ca%66%C3%a9/@%6de;x", "any"),
    ] {
        let request = Request::post(path).header("host", host).body(Full::default()).unwrap();
        send(gateway.address, request).await.refused(400, "missing-key");
    }
    let request = Request::post("/payments/%C3%A9").header("host", "api.example.com");
    let request = request.header("idempotency-key", "k").body(Full::default()).unwrap();
    let sent = send(gateway.address, request).await;
    assert!(sent.text().starts_with("1 POST /payments/%C3%A9\n"), "forwarded as it was sent");
}

#[tokio::test]
async fn a_field_that_says_what_a_request_is_cannot_be_nominated_on_any_route() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "protect = false").await;
    let names =
        ["host", "content-type", "cookie", "authorization", "Content-Length", "content-encoding"];
    for name in names {
        let request = Request::post("/").header("connection", name).body(Full::default()).unwrap();
        assert_eq!(send(gateway.address, request).await.status, 400, "{name}");
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn a_field_that_differs_in_an_underscore_only_is_not_passed_off_as_the_gateways() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let request = Request::post("/")
        .header("X_Forwarded_For", "6.6.6.6")
        .header("x-forwarded_proto", "https")
        .header("idempotency_key", "k")
        .header("Idempotency_Attempt", "9")
        .header("my_field", "stays")
        .body(Full::default())
        .unwrap();
    let seen = send(gateway.address, request).await;
    let names: Vec<_> = seen.text().lines().filter_map(|line| line.split_once(": ")).collect();
    let with_underscore: Vec<_> = names.iter().filter(|(name, _)| name.contains('_')).collect();
    assert_eq!(with_underscore, [&("my_field", "stays")]);
}

#[tokio::test]
async fn each_address_is_sent_its_own_host() {
    let (one, other) = (HyperService::mirror().await, HyperService::mirror().await);
    for more in ["", "\nhttp2 = true"] {
        let urls = format!(
            "urls = [\"http://{}\", \"http://{}\"]\nhost = \"upstream\"{more}",
            one.address, other.address
        );
        let text = simple(one.address, "protect = false")
            .replace(&format!("urls = [\"http://{}\"]", one.address), &urls);
        let gateway = started(&text).await;
        let mut seen = Vec::new();
        for _ in 0..2 {
            let request = Request::get("/").body(Full::default()).unwrap();
            let text = send(gateway.address, request).await.text().to_owned();
            let addresses = [one.address.to_string(), other.address.to_string()];
            let is_named = |it: &&String| {
                text.contains(&format!("\nhost: {it}\n"))
                    || text.contains(&format!("GET http://{it}/\n"))
            };
            seen.extend(addresses.iter().filter(is_named).cloned());
        }
        seen.sort();
        let mut both = [one.address.to_string(), other.address.to_string()];
        both.sort();
        assert_eq!(seen, both, "{more}");
    }
}

#[tokio::test]
async fn a_request_without_a_body_states_so_where_its_method_has_one() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    for method in ["POST", "PUT", "PATCH"] {
        for key in [false, true] {
            let mut request = Request::builder().method(method).uri("/");
            if key {
                request = request.header("idempotency-key", method);
            }
            let seen = send_http2(gateway.address, request.body(Full::default()).unwrap()).await;
            assert!(seen.text().contains("\ncontent-length: 0\n"), "{}", seen.text());
        }
    }
    let get = Request::get("/").body(Full::default()).unwrap();
    assert!(!send_http2(gateway.address, get).await.text().contains("content-length"));
}

#[tokio::test]
async fn an_answer_may_have_more_header_lines_than_a_request() {
    let upstream = HyperService::start(async |_, _| {
        let mut answer = http::Response::new(full("many"));
        for number in 0..150 {
            answer.headers_mut().append("x-line", number.into());
        }
        answer
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    for is_replay in [false, true] {
        let answer = send_http2(gateway.address, post("k", "tea")).await;
        assert_eq!((answer.status.as_u16(), answer.is_replay()), (200, is_replay));
        assert_eq!(answer.headers.get_all("x-line").iter().count(), 150);
    }
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn a_request_does_not_wait_for_a_full_address_beside_a_free_one() {
    // Takes one request and never answers it.
    let hung =
        RawUpstream::start(async |_, mut connection| while connection.read().await > 0 {}).await;
    let free = HyperService::mirror().await;
    let urls = format!(
        "urls = [\"http://{}\", \"http://{}\"]\nconnections_max = 1\nconnect_timeout_ms = 15000",
        hung.address, free.address
    );
    let text = simple(hung.address, "protect = false")
        .replace(&format!("urls = [\"http://{}\"]", hung.address), &urls);
    let gateway = started(&text).await;
    let address = gateway.address;
    let stuck = tokio::spawn(async move { send_raw(address, HELLO).await });
    while hung.received().is_empty() {
        // The first of the two goes there; if it went elsewhere, the next does.
        if stuck.is_finished() {
            tokio::spawn(async move { send_raw(address, HELLO).await });
        }
        tokio::task::yield_now().await;
    }
    for _ in 0..4 {
        let request = Request::get("/").body(Full::default()).unwrap();
        let asked =
            tokio::time::timeout(std::time::Duration::from_secs(10), send(address, request));
        assert_eq!(asked.await.expect("it waited for the full address").status, 201);
    }
}

const HELLO: &[u8] = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";

#[tokio::test]
async fn scripts_of_an_allowed_origin_can_read_what_the_gateway_answers() {
    let upstream = HyperService::start(async |_, request| {
        let origin = request.headers()["origin"].clone();
        let answer = http::Response::builder().header("access-control-allow-origin", origin);
        answer.header("vary", "Origin").body(full("done")).unwrap()
    })
    .await;
    let route = "policy = { scope = \"shared\" }\ncors = { origins = [\"https://shop.example\"] }";
    let gateway = in_front_of(upstream.address, route).await;
    let ask = async |origin: &str, key: &str, body: &str| {
        let mut request = post(key, body);
        request.headers_mut().insert("origin", origin.parse().unwrap());
        let answer = send(gateway.address, request).await;
        let allowed = answer.header("access-control-allow-origin").map(str::to_owned);
        (answer.status.as_u16(), answer.is_replay(), allowed)
    };
    let (shop, other) = ("https://shop.example", "https://other.example");
    let readable = |origin: &str| Some(origin.to_owned());
    // The upstream's own answer, and its replay to the origin that it was for.
    assert_eq!(ask(other, "k", "tea").await, (200, false, readable(other)));
    assert_eq!(ask(other, "k", "tea").await, (200, true, readable(other)));
    // A replay to another origin, and a refusal, by the gateway's own setting.
    assert_eq!(ask(shop, "k", "tea").await, (200, true, readable(shop)));
    assert_eq!(ask(shop, "k", "cake").await, (422, false, readable(shop)));
    assert_eq!(ask("https://evil.example", "k", "tea").await, (200, true, None));
    assert_eq!(ask("https://evil.example", "k", "cake").await, (422, false, None));
}
