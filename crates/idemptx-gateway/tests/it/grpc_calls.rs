//! Calls of gRPC for which the gateway has an answer of its own.

use http::Request;
use http_body_util::Full;
use idemptx_testkit::ReservedPort;

use crate::support::hyper_service::HyperService;
use crate::support::in_process::{Reply, Running, in_front_of, send, send_http2, simple, started};
use crate::support::raw_upstream::RawUpstream;

#[tokio::test]
async fn a_call_whose_answer_is_lost_fails_as_calls_do() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nContent-Length: 9\r\n\r\n12";
    for (key, answers) in [("nothing", ""), ("half", begun)] {
        for (more, released) in [("", false), ("on_ambiguous = \"release\"", true)] {
            let upstream = upstream(answers).await;
            let gateway = in_front_of(upstream.address, more).await;
            let lost = call(&gateway, "/a.B/C", Some(key)).await;
            lost.failed_with("13", "upstream-failed", released);
            assert_eq!(lost.header("idempotency-stored"), Some("false"), "{lost:?}");
            let again = call(&gateway, "/a.B/C", Some(key)).await;
            match released {
                true => again.failed_with("13", "upstream-failed", true),
                false => again.failed_with("2", "outcome-unknown", false),
            }
            assert_eq!(upstream.request_lines().len(), 1 + usize::from(released));
            if answers.is_empty() {
                // Of half an answer without a key the client has seen the beginning.
                let unkeyed = call(&gateway, "/a.B/C", None).await;
                unkeyed.failed_with("13", "upstream-failed", released);
            }
        }
    }
}

#[tokio::test]
async fn a_call_without_an_answer_in_time_is_past_its_deadline() {
    let upstream = RawUpstream::start(|_, mut wire| async move {
        wire.request().await;
        while wire.read().await > 0 {}
    })
    .await;
    let text = simple(upstream.address, "").replace("timeout_ms = 15000", "timeout_ms = 200");
    let gateway = started(&text).await;
    let late = call(&gateway, "/a.B/C", Some("k")).await;
    late.failed_with("4", "upstream-timeout", false);
}

/// Clients of gRPC repeat what is UNAVAILABLE by themselves.
#[tokio::test]
async fn only_a_call_that_was_not_sent_is_unavailable() {
    let nobody = ReservedPort::reserve();
    let gateway = in_front_of(nobody.address(), "").await;
    for key in [Some("k"), Some("k"), None] {
        let unsent = call(&gateway, "/a.B/C", key).await;
        unsent.failed_with("14", "upstream-unreachable", true);
        assert_eq!(unsent.header("retry-after"), Some("1"));
    }
}

#[tokio::test]
async fn a_call_that_no_route_is_for_is_unimplemented() {
    let upstream = HyperService::mirror().await;
    let more = "path = \"/a.B/*\"\nmethods = [\"POST\"]";
    let gateway = in_front_of(upstream.address, more).await;
    call(&gateway, "/c.D/E", Some("k")).await.failed_with("12", "no-route", false);
    call(&gateway, "/a.B/../C", Some("k")).await.failed_with("3", "ambiguous-path", false);
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn the_own_answers_to_grpc_web_are_read_by_browsers() {
    let nobody = ReservedPort::reserve();
    let gateway =
        in_front_of(nobody.address(), "cors = { origins = [\"https://shop.example\"] }").await;
    let request = Request::post("/a.B/C").header("host", "a").header("idempotency-key", "k");
    let request = request.header("content-type", "application/grpc-web+proto");
    let request = request.header("origin", "https://shop.example");
    let unsent = send(gateway.address, request.body(Full::default()).unwrap()).await;
    assert_eq!(unsent.header("content-type"), Some("application/grpc-web+proto"));
    assert_eq!(unsent.header("grpc-status"), Some("14"));
    assert_eq!(unsent.header("access-control-allow-origin"), Some("https://shop.example"));
}

impl Reply {
    /// Asserts that it is a failed call, without messages, as gRPC has them.
    #[track_caller]
    fn failed_with(&self, status: &str, code: &str, retryable: bool) {
        assert_eq!((self.status.as_u16(), self.text()), (200, ""), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/grpc+proto"), "{self:?}");
        assert_eq!(self.header("grpc-status"), Some(status), "{self:?}");
        assert!(self.header("grpc-message").is_some_and(|it| !it.is_empty()), "{self:?}");
        for name in ["idempotency-outcome", "link", "cache-control"] {
            assert_eq!(self.header(name), None, "{self:?}");
        }
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        let details = decoded(self.header("grpc-status-details-bin").unwrap());
        let field = |name: &str, value: &str| {
            let length = |text: &str| char::from(u8::try_from(text.len()).unwrap());
            format!("\n{}{name}\x12{}{value}", length(name), length(value))
        };
        for field in [field("code", code), field("retryable", &retryable.to_string())] {
            assert!(details.contains(&field), "{details:?} has no {field:?}");
        }
    }
}

async fn call(gateway: &Running, path: &str, key: Option<&str>) -> Reply {
    let request = Request::post(path).header("content-type", "application/grpc+proto");
    let request = match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    };
    send_http2(gateway.address, request.body(Full::default()).unwrap()).await
}

/// An upstream that answers with this, and then closes the connection.
async fn upstream(answers: &'static str) -> RawUpstream {
    RawUpstream::start(move |_, mut wire| async move {
        if wire.request().await {
            wire.write(answers).await;
        }
    })
    .await
}

/// Decodes base64 without padding, as text.
fn decoded(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextet = |digit: u8| DIGITS.iter().position(|it| *it == digit).unwrap() as u32;
    let bytes = text.as_bytes().chunks(4).flat_map(|group| {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | sextet(*digit));
        let bits = bits << (6 * (4 - group.len()));
        bits.to_be_bytes()[1..group.len()].to_vec()
    });
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}
