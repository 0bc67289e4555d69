//! Lines of the log about what begins and ends: the gateway, and addresses of a service.

use idemptx_testkit::ReservedPort;

use crate::support::gateway_process::{GatewayProcess, configuration};
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{post, send};

#[tokio::test]
async fn the_log_tells_of_the_beginning_and_of_an_address_that_goes_and_comes() {
    let (reserved, well) = (ReservedPort::reserve(), HyperService::mirror().await);
    let away = reserved.address();
    let urls = format!("'http://{away}', 'http://{}'", well.address);
    let text = configuration(well.address, "down_ms = 0\n[[route]]\nupstream = 'app'\n")
        .replace(&format!("'http://{}'", well.address), &urls);
    let gateway = GatewayProcess::configured(&text);
    gateway.logs(&format!("serves clients on {}", gateway.address())).await;
    let ask = async |key: &str| {
        assert_eq!(send(gateway.address(), post(key, "tea")).await.status, 201);
    };
    for key in ["1", "2", "3", "4"] {
        ask(key).await;
    }
    let refused = "used as last resort: Connection refused (os error 111)";
    let log = gateway.logs(&format!("{refused} upstream=app address=http://{away}")).await;
    assert_eq!(log.matches("cannot be reached").count(), 1, "{log}");
    let back = HyperService::mirror_on(away).await;
    for key in ["5", "6", "7", "8"] {
        ask(key).await;
    }
    assert!(back.requests() > 0);
    gateway.logs(&format!("in use again upstream=app address=http://{away}")).await;
}
