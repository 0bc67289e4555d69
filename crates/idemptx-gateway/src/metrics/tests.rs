use idemptx_core::store::ErrorKind;

use super::*;

#[test]
fn a_request_is_counted_by_route_outcome_and_reason() {
    let metrics = Metrics::new();
    let orders: Arc<str> = "orders".into();
    let took = Duration::from_millis(3);
    metrics.request(&orders, ("replayed", ""), took);
    metrics.request(&orders, ("refused", "key-reused"), took);
    metrics.request(&orders, ("passed", "unprotected-route"), took);
    let text = metrics.text(&CurrentValues::default()).unwrap();
    for line in [
        r#"idemptx_requests_total{route="orders",outcome="replayed",reason=""} 1"#,
        r#"idemptx_requests_total{route="orders",outcome="refused",reason="key-reused"} 1"#,
        r#"idemptx_requests_total{route="orders",outcome="passed",reason="unprotected-route"} 1"#,
        r#"idemptx_request_seconds_count{route="orders"} 3"#,
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert_eq!(metrics.count(&orders, "replayed", ""), 1);
    assert_eq!(metrics.count(&"other".into(), "replayed", ""), 0);
}

#[test]
fn what_is_at_hand_is_read_when_it_is_asked_for() {
    let metrics = Metrics::new();
    let current =
        CurrentValues { executing: 2, waiting: 3, store: Some(true), ..CurrentValues::default() };
    let text = metrics.text(&current).unwrap();
    for line in ["idemptx_executing 2", "idemptx_waiting 3", "idemptx_store_up 1"] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(metrics.text(&CurrentValues::default()).unwrap().contains("idemptx_executing 0"));
}

#[test]
fn a_step_of_the_store_is_timed_by_what_came_of_it() {
    let metrics = Metrics::new();
    metrics.step(StoreOperation::Claim, StoreResult::Orphan, Duration::from_micros(70));
    metrics.step(
        StoreOperation::Settle,
        StoreResult::Failed(ErrorKind::Unavailable),
        Duration::from_secs(1),
    );
    let text = metrics.text(&CurrentValues::default()).unwrap();
    for line in [
        r#"idemptx_store_step_seconds_bucket{le="0.0001",operation="claim",result="orphan"} 1"#,
        r#"idemptx_store_step_seconds_count{operation="settle",result="unavailable"} 1"#,
        "idemptx_orphans_total 1",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}
