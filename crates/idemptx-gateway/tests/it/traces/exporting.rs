//! Export of spans, and collectors that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Response;
use idemptx_gateway::serve::StartError;
use idemptx_testkit::Signal;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::collector::Collector;
use super::{SHARED, metrics};
use crate::support::gateway_process::GatewayProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{PATIENCE, Secured, config, post, send, simple, started};

#[tokio::test]
async fn a_collector_that_never_answers_costs_spans_and_no_request() {
    let upstream = HyperService::mirror().await;
    // It takes connections, and nothing more.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "{}[traces]\nendpoint = \"http://{}\"\ntimeout_ms = 3_600_000\nqueue_max = 4\n\
         [admin]\naddress = \"127.0.0.1:0\"\n",
        simple(upstream.address, SHARED),
        silent.local_addr().unwrap()
    );
    let running = started(&text).await;
    for number in 0..20 {
        let reply = send(running.address, post(&format!("key-{number}"), "tea")).await;
        assert_eq!(reply.status, 201);
    }
    // Four spans each, of which four wait.
    assert_eq!(dropped(running.admin()).await, 20 * 4 - 4);
}

#[tokio::test]
async fn spans_that_a_collector_does_not_take_are_counted() {
    let upstream = HyperService::mirror().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let text = format!(
        "{}[traces]\nendpoint = \"http://{nobody}\"\ntimeout_ms = 1\nqueue_max = 1\n\
         [admin]\naddress = \"127.0.0.1:0\"\n",
        simple(upstream.address, SHARED),
    );
    let running = started(&text).await;
    assert_eq!(send(running.address, post("k", "tea")).await.status, 201);
    let admin = running.admin();
    let all = async {
        while dropped(admin).await < 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, all).await.expect("every one is dropped");
}

#[tokio::test]
async fn a_collector_gets_the_headers_and_the_name_of_the_file() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let text = format!(
        "{}{}service_name = \"shop-gateway\"\nheaders = {{ authorization = \"Bearer t\" }}\n",
        simple(upstream.address, SHARED),
        collector.table()
    );
    let running = started(&text).await;
    send(running.address, post("k", "tea")).await;
    running.gateway.drain().await;
    let (path, headers) = &collector.headers()[0];
    assert_eq!((&**path, &headers["authorization"]), ("/v1/traces", &"Bearer t".parse().unwrap()));
    assert_eq!(headers["content-type"], "application/x-protobuf");
    assert_eq!(collector.resource("service.name").as_deref(), Some("shop-gateway"));
    let version = collector.resource("service.version");
    assert_eq!(version.as_deref(), Some(env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_collector_is_spoken_to_over_tls_and_must_be_who_it_is() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let secured = Secured::in_front_of(collector.address).await;
    let ca = format!("ca = {:?}\n", secured.authority());
    for (trusted, reached) in [("", false), (&*ca, true)] {
        let text = format!(
            "{}[traces]\nendpoint = \"{}\"\n{trusted}",
            simple(upstream.address, SHARED),
            secured.url()
        );
        let running = started(&text).await;
        assert_eq!(send(running.address, post("k", "tea")).await.status, 201);
        running.gateway.drain().await;
        assert_eq!(!collector.spans().is_empty(), reached);
    }
    let text = format!("{}[traces]\nca = \"/nowhere\"\n", simple(upstream.address, SHARED));
    let refused = idemptx_gateway::serve::Gateway::start(config(&text)).await.unwrap_err();
    assert!(matches!(refused, StartError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn the_environment_says_what_the_file_does_not_and_all_is_sent_before_the_end() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idemptx.toml");
    std::fs::write(&file, format!("{}[traces]\n", simple(upstream.address, SHARED))).unwrap();
    for (sampler, is_traced) in [("parentbased_always_off", false), ("parentbased_always_on", true)]
    {
        let endpoint = format!("http://{}", collector.address);
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
            ("OTEL_SERVICE_NAME", "named-outside"),
            ("OTEL_TRACES_SAMPLER", sampler),
        ];
        let arguments = ["--config", file.to_str().unwrap()];
        let mut process = GatewayProcess::serve_with(&arguments, &variables);
        assert_eq!(send(process.address(), post("k", "tea")).await.status, 201);
        process.signal(Signal::TERM);
        assert!(process.exited().await.success());
        assert_eq!(!collector.spans().is_empty(), is_traced);
    }
    assert_eq!(collector.resource("service.name").as_deref(), Some("named-outside"));
}

#[tokio::test]
async fn a_collector_that_fails_is_told_of_once_and_so_is_its_return() {
    let upstream = HyperService::mirror().await;
    let is_well = Arc::new(AtomicBool::new(false));
    let well = Arc::clone(&is_well);
    let collector = HyperService::start(move |_, _| {
        let status = if well.load(Ordering::SeqCst) { 200 } else { 503 };
        async move { Response::builder().status(status).body(full("")).unwrap() }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("idemptx.toml");
    let traces = format!("[traces]\nendpoint = \"http://{}\"\n", collector.address);
    std::fs::write(&file, simple(upstream.address, SHARED) + &traces).unwrap();
    let arguments = ["--config", file.to_str().unwrap()];
    let process = GatewayProcess::serve_with(&arguments, &[("OTEL_BSP_SCHEDULE_DELAY", "10")]);
    for number in 1..=3 {
        let reply = send(process.address(), post(&format!("key-{number}"), "tea")).await;
        assert_eq!(reply.status, 201);
        let batch = async {
            while collector.requests() < number {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, batch).await.expect("it is tried again");
    }
    process.logs("the collector answered 503").await;
    is_well.store(true, Ordering::SeqCst);
    send(process.address(), post("key-4", "tea")).await;
    let said = process.logs("traces are exported again").await;
    assert_eq!(said.matches("traces cannot be exported").count(), 1);
}

#[tokio::test]
async fn another_collector_needs_a_new_start() {
    let (collector, upstream) = (Collector::start().await, HyperService::mirror().await);
    let text = format!("{}{}", simple(upstream.address, SHARED), collector.table());
    let running = started(&text).await;
    running.gateway.reload(&running.config).await.unwrap();
    let other = config(&format!("{text}sample_ratio = 0.5\n"));
    let refused = running.gateway.reload(&other).await.unwrap_err();
    assert_eq!(refused.to_string(), "[traces] has changed: restart the gateway to apply it");
}

/// The metrics about spans.
async fn dropped(admin: std::net::SocketAddr) -> u64 {
    let text = metrics(admin).await;
    let mut counts = text.lines().filter_map(|it| it.strip_prefix("idemptx_spans_dropped_total "));
    counts.next().unwrap().parse().unwrap()
}
