//! Addresses that are left out because requests to them fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use idemptx_gateway::config::Config;
use idemptx_testkit::ReservedPort;
use tokio::time::timeout;

use crate::support::gateway_process::GatewayProcess;
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{PATIENCE, send};
use crate::support::raw_upstream::RawUpstream;

/// A service that answers with the status that it is told.
struct Service {
    service: HyperService,
    status: Arc<AtomicU16>,
}

impl Service {
    async fn start(status: u16) -> Self {
        let status = Arc::new(AtomicU16::new(status));
        let answered = Arc::clone(&status);
        let service = HyperService::start(move |_, _| {
            let status = answered.load(Ordering::SeqCst);
            async move { Response::builder().status(status).body(full("")).unwrap() }
        })
        .await;
        Self { service, status }
    }
}

/// Returns a configuration in front of these addresses.
fn text(addresses: &[SocketAddr], ejection: &str) -> String {
    let urls: Vec<_> = addresses.iter().map(|address| format!("http://{address}")).collect();
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n\
         [[upstream]]\nname = \"up\"\nurls = {urls:?}\ndown_ms = 0\nresponse_timeout_ms = 1000\n\
         {ejection}\n\
         [[route]]\nupstream = \"up\"\nprotect = false\n[store]\nurl = \"memory:\"\n"
    )
}

struct Gateway {
    process: GatewayProcess,
    admin: SocketAddr,
}

impl Gateway {
    fn start(addresses: &[SocketAddr], ejection: &str) -> Self {
        let mut process = GatewayProcess::configured(&text(addresses, ejection));
        let admin = process.admin_address();
        Self { process, admin }
    }

    /// Sends requests, and returns the statuses of the answers.
    async fn statuses(&self, count: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..count {
            statuses.push(send(self.process.address(), get("/")).await.status.as_u16());
        }
        statuses
    }

    /// Returns the value of a metric of an address.
    async fn metric(&self, name: &str, address: SocketAddr) -> u64 {
        let series = format!("{name}{{upstream=\"up\",address=\"http://{address}\"}} ");
        let metrics = send(self.admin, get("/metrics")).await;
        let mut values = metrics.text().lines().filter_map(|line| line.strip_prefix(&series));
        values.next().unwrap_or_else(|| panic!("{series} in {}", metrics.text())).parse().unwrap()
    }

    async fn ejections(&self, address: SocketAddr) -> u64 {
        self.metric("idemptx_upstream_ejections_total", address).await
    }
}

fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).body(Full::default()).unwrap()
}

#[tokio::test]
async fn an_address_that_fails_again_and_again_is_ejected_and_comes_back() {
    let (one, two) = (Service::start(503).await, Service::start(200).await);
    let addresses = [one.service.address, two.service.address];
    let gateway = Gateway::start(&addresses, "ejection = { failures = 3, base_ms = 500 }");
    assert_eq!(gateway.ejections(addresses[0]).await, 0, "the series is there from the start");
    // They take turns until the third failure.
    let statuses = gateway.statuses(6).await;
    assert_eq!(statuses.iter().filter(|it| **it == 503).count(), 3, "{statuses:?}");
    assert_eq!(gateway.ejections(addresses[0]).await, 1);
    let log = gateway.process.logs("ejected for 500ms after 3 failures in a row: status 503").await;
    assert!(log.contains(&format!("upstream=up address=http://{}", addresses[0])), "{log}");
    one.status.store(200, Ordering::SeqCst);
    let returned =
        async { while gateway.metric("idemptx_upstream_up", addresses[0]).await == 0 {} };
    timeout(PATIENCE, returned).await.expect("its time is over");
    assert_eq!(gateway.statuses(4).await, [200; 4]);
    gateway.process.logs("in use again upstream=up").await;
    assert_eq!((one.service.requests(), gateway.ejections(addresses[0]).await), (5, 1));
}

#[tokio::test]
async fn an_ejected_address_gets_nothing_while_others_answer() {
    let (one, two) = (Service::start(502).await, Service::start(200).await);
    let addresses = [one.service.address, two.service.address];
    let gateway = Gateway::start(&addresses, "ejection = { failures = 2 }");
    gateway.statuses(4).await;
    assert_eq!(gateway.statuses(8).await, [200; 8]);
    assert_eq!(one.service.requests(), 2);
    assert_eq!(gateway.metric("idemptx_upstream_up", addresses[0]).await, 0);
}

#[tokio::test]
async fn no_more_addresses_are_ejected_than_the_share_allows() {
    for (share, ejected) in [(50, 1), (70, 2), (100, 2)] {
        let services = [504; 3].map(Service::start);
        let services = futures_util::future::join_all(services).await;
        let addresses: Vec<_> = services.iter().map(|it| it.service.address).collect();
        let ejection = format!("ejection = {{ failures = 2, share_max = {share} }}");
        let gateway = Gateway::start(&addresses, &ejection);
        assert_eq!(gateway.statuses(30).await, [504; 30]);
        let mut count = 0;
        for address in addresses {
            count += gateway.ejections(address).await;
        }
        assert_eq!(count, ejected, "{share} %");
    }
}

#[tokio::test]
async fn what_counts_as_a_failure_is_no_answer_or_one_of_a_gateway() {
    let closed = ReservedPort::reserve();
    let broken = RawUpstream::start(async |_, mut wire| _ = wire.read().await).await;
    let (sick, busy) = (Service::start(500).await, Service::start(429).await);
    for (address, lines, is_ejected) in [
        (closed.address(), "ejection = { failures = 2 }", true),
        (broken.address, "ejection = { failures = 2 }", true),
        (sick.service.address, "ejection = { failures = 2 }", false),
        (sick.service.address, "ejection = { failures = 2, statuses = ['5xx'] }", true),
        (busy.service.address, "ejection = { failures = 2 }", false),
        (closed.address(), "", false),
    ] {
        let well = Service::start(200).await;
        let gateway = Gateway::start(&[address, well.service.address], lines);
        gateway.statuses(8).await;
        assert_eq!(gateway.ejections(address).await, u64::from(is_ejected), "{address} {lines}");
        assert_eq!(gateway.ejections(well.service.address).await, 0);
    }
}

#[test]
fn an_ejection_that_cannot_be_meant_is_refused() {
    let addresses = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let parsed = |addresses: &[SocketAddr], lines: &str| {
        Config::parse("test.toml", &text(addresses, lines), |_| None)
    };
    for (lines, word) in [
        ("ejection = { base_ms = 2000, max_ms = 1000 }", "`max_ms` must not be less"),
        ("ejection = { share_max = 0 }", "1 to 100 percent"),
        ("ejection = { failures = 0 }", "at least 1"),
        ("ejection = { statuses = [] }", "a list of statuses"),
        ("ejection = { interval_ms = 1 }", "unknown field"),
    ] {
        let error = parsed(&addresses, lines).unwrap_err().to_string();
        assert!(error.starts_with("test.toml:10:") && error.contains(word), "{lines}: {error}");
    }
    let single = parsed(&addresses[..1], "ejection = {}").unwrap();
    assert_eq!(single.warnings, ["upstream up has a single address, which is never ejected"]);
    assert!(parsed(&addresses, "ejection = {}").unwrap().warnings.is_empty());
}
