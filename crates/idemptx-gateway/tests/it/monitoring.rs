//! The files under `deploy`, checked against the gateway that they are for.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use idemptx_testkit::{RedisServer, Signal};
use serde_json::Value;

use crate::support::command::idemptx;
use crate::support::http_client::{get, post};
use crate::support::operated_gateway::{OperatedGateway, eventually};

#[test]
fn dashboard_alerts_and_reference_name_metrics_that_there_are() {
    let exposed = exposed();
    for file in ["deploy/monitoring/grafana-dashboard.json", "deploy/monitoring/alerts.yml"] {
        let named = names(&text(file));
        assert!(named.len() >= 6, "{file} names metrics: {named:?}");
        let unknown: Vec<_> = named.difference(&exposed).collect();
        assert!(unknown.is_empty(), "{file} names what there is not: {unknown:?}");
    }
    let described = names(&text("docs/reference/metrics.md"));
    let families: BTreeSet<_> = exposed.iter().map(|name| family(name)).collect();
    let described: BTreeSet<_> = described.iter().map(|name| family(name)).collect();
    assert_eq!(described, families, "the reference has every one");
}

#[test]
fn labels_that_are_asked_for_have_values_that_there_are() {
    let reference = text("docs/reference/metrics.md");
    for file in ["deploy/monitoring/grafana-dashboard.json", "deploy/monitoring/alerts.yml"] {
        let text = text(file).replace("\\\"", "\"");
        for label in ["outcome", "reason", "operation", "result", "answer"] {
            for rest in text.split(&format!("{label}=")).skip(1) {
                let values = rest.trim_start_matches('~').split('"').nth(1).unwrap();
                for value in values.split('|') {
                    let is_code = idemptx::Code::ALL.iter().any(|code| code.as_str() == value);
                    let is_known = is_code || reference.contains(&format!("`{value}`"));
                    assert!(is_known, "{label}={value} in {file}");
                }
            }
        }
    }
}

#[test]
fn what_alerts_count_is_there_before_it_happens() {
    let gateway = OperatedGateway::start("");
    let metrics = gateway.metrics();
    for series in [
        "idemptx_requests_total{route=\"orders\",outcome=\"refused\",reason=\"outcome-unknown\"} 0",
        "idemptx_requests_total{route=\"orders\",outcome=\"unstored\",reason=\"\"} 0",
        "idemptx_upstream_answers_total{upstream=\"shop\",answer=\"late\"} 0",
        "idemptx_reloads_total{result=\"refused\"} 0",
        "idemptx_own_answers_total{code=\"no-route\"} 0",
        "idemptx_connections_refused_total{reason=\"limit\"} 0",
        "idemptx_orphans_total 0",
    ] {
        assert!(metrics.contains(series), "{series} is not in\n{metrics}");
    }
    post(gateway.public, "/a/../b", "tea").reply();
    let one = "idemptx_own_answers_total{code=\"ambiguous-path\"} 1";
    eventually(|| gateway.metrics().contains(one));
}

#[test]
fn what_a_store_no_longer_promises_is_noticed_measured_and_refused_and_logged_once() {
    let redis = RedisServer::start(&["appendonly yes", "appendfsync always"]);
    let policy = "profile = \"payments\"\n[route.policy]\nscope = \"shared\"\nstore_check_ms = 100\n\
                  store_timeout_ms = { claim = 20000 }";
    let gateway = OperatedGateway::at(&redis.patient_url(), policy, "[log]\nlevel = \"info\"\n");
    let send = |key: &str| post(gateway.public, "/orders", "tea").key(key).reply();
    eventually(|| gateway.metrics().contains("idemptx_store_findings{severity=\"warning\"} 0"));
    assert_eq!(send("first").status, 201);
    let finding = "maxmemory-policy allkeys-lru deletes claims";
    for round in 1..=2 {
        redis.configure("maxmemory-policy", "allkeys-lru");
        eventually(|| gateway.metrics().contains("idemptx_store_unsafe 1\n"));
        let key = format!("refused-{round}");
        eventually(|| send(&key).status == 503);
        assert!(gateway.metrics().contains("idemptx_store_findings{severity=\"unsafe\"} 1"));
        assert!(gateway.metrics().contains("idemptx_store_refused 1\n"));
        let check = idemptx(&["check", "--config", gateway.config().to_str().unwrap()]);
        assert_eq!(check.code, 1, "{check:?}");
        assert!(check.stdout.contains(&format!("\n  Unsafe: {finding}")), "{check:?}");
        redis.configure("maxmemory-policy", "noeviction");
        eventually(|| gateway.metrics().contains("idemptx_store_unsafe 0\n"));
        eventually(|| send(&key).status == 201);
        assert!(gateway.metrics().contains("idemptx_store_refused 0\n"));
        // A warning when it came, another with the refusal, and a word when it had gone.
        eventually(|| gateway.log().matches("not any more: ").count() == round);
        assert_eq!(gateway.log().matches(finding).count(), 3 * round, "{}", gateway.log());
        assert_eq!(gateway.log().matches("found good again").count(), round);
    }
}

#[test]
fn the_rules_are_rules_of_prometheus() {
    let rules: Value = serde_saphyr::from_str(&text("deploy/monitoring/alerts.yml")).unwrap();
    let rules = rules["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 6);
    let mut titles = BTreeSet::new();
    for rule in rules {
        assert!(titles.insert(rule["alert"].as_str().unwrap()), "{rule}");
        let expression = rule["expr"].as_str().unwrap();
        assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{rule}");
        assert!(["warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()));
        assert!(rule["annotations"]["summary"].is_string(), "{rule}");
        assert!(rule["annotations"]["description"].is_string(), "{rule}");
        if let Some(runbook) = rule["annotations"]["runbook"].as_str() {
            let (_, anchor) = runbook.split_once("operations.md#").unwrap();
            let guide = text("docs/guides/operations.md");
            let headings = guide.lines().filter_map(|line| line.strip_prefix("## "));
            let mut anchors = headings.map(|it| it.to_lowercase().replace(' ', "-"));
            assert!(anchors.any(|it| it == anchor), "{runbook}");
        }
    }
    let scrape: Value = serde_saphyr::from_str(&text("deploy/monitoring/prometheus.yml")).unwrap();
    assert_eq!(scrape["rule_files"][0], "alerts.yml");
}

#[test]
fn the_dashboard_is_whole() {
    let dashboard: Value =
        serde_json::from_str(&text("deploy/monitoring/grafana-dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(panel["title"].is_string() && panel["description"].is_string(), "{panel}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
        let place = &panel["gridPos"];
        let (x, w) = (place["x"].as_u64().unwrap(), place["w"].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        assert!(places.insert((place["y"].as_u64().unwrap(), x)), "two panels at one place");
    }
}

#[test]
fn systemd_takes_the_unit() {
    // Not every machine that builds has systemd, nor should it be installed for this.
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // It wants the program to be there.
    let binary = env!("CARGO_BIN_EXE_idemptx");
    let unit = text("deploy/systemd/idemptx.service").replace("/usr/bin/idemptx", binary);
    let path = folder.path().join("idemptx.service");
    fs::write(&path, unit).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8(verified.stderr).unwrap();
    let ours: Vec<_> = said.lines().filter(|line| line.contains("idemptx.service")).collect();
    assert!(verified.status.success() && ours.is_empty(), "{said}");
}

/// The names of all metrics of a gateway on which everything has happened.
fn exposed() -> BTreeSet<String> {
    // A set of keys that cannot be read has its series all the same.
    let keys = "[[route]]\npath = \"/by-token\"\nupstream = \"shop\"\n\
        policy = { scope = { jwt = \"sub\", jwks_url = \"http://127.0.0.1:1/\" } }\n";
    let gateway = OperatedGateway::configured("policy = { scope = \"shared\" }", "", keys);
    post(gateway.public, "/orders", "tea").key("k").reply();
    post(gateway.public, "/orders", "coffee").key("k").reply();
    get(gateway.public, "/orders").reply();
    gateway.signal(Signal::HUP);
    eventually(|| gateway.metrics().contains("result=\"taken\""));
    let text = gateway.metrics();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    samples.map(name).filter(|name| name.starts_with("idemptx_")).collect()
}

/// The names of our metrics in a text.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |it: char| it.is_ascii_lowercase() || it == '_';
    text.match_indices("idemptx_")
        .map(|(at, _)| text[at..].chars().take_while(|it| is_part(*it)).collect())
        .collect()
}

/// A metric without what a sample of it ends with.
fn family(name: &str) -> String {
    let ends = ["_bucket", "_count", "_sum"];
    ends.into_iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
}

fn text(file: &str) -> String {
    let path = format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
