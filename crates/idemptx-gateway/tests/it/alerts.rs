//! The alerts, fired by what a gateway exposes when what they are for has happened.
//!
//! `promtool` of Prometheus evaluates the rules over series that are made of two scrapes: a counter
//! goes on increasing as it has between them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use idemptx_testkit::{RedisServer, Signal};
use redis::Commands as _;

use crate::support::http_client::post;
use crate::support::operated_gateway::{OperatedGateway, eventually};

#[test]
fn every_alert_fires_on_the_metrics_of_a_gateway_to_which_it_happens() {
    let mut redis = RedisServer::start(&[]);
    let gateway = OperatedGateway::at(&redis.patient_url(), POLICY, TABLES);
    let send = |path: &str, key: &str| post(gateway.public, path, "tea").key(key).reply().status;
    assert_eq!(send("/orders", "warm"), 201);
    let quiet = gateway.metrics();

    for number in 0..LOST {
        assert_eq!(send("/die", &format!("lost-{number}")), 502);
        assert_eq!(send("/fail", &format!("failed-{number}")), 503);
    }
    assert_eq!(send("/die", "lost-0"), 409, "its outcome is unknown");
    assert_eq!(send("/away", "away"), 502);
    spoil_record(&gateway, &redis);
    assert_eq!(send("/orders", "warm"), 409, "its record cannot be read");
    delay_claim(&gateway, &redis);
    fs::write(gateway.config(), "nonsense").unwrap();
    gateway.signal(Signal::HUP);
    eventually(|| gateway.metrics().contains("reloads_total{result=\"refused\"} 1"));
    make_unsafe(&gateway, &redis);
    let away = outage(&gateway, &mut redis);
    meet_orphan(&gateway, &redis);

    let loud = merged(&gateway.metrics(), &away);
    let alerts = alerts();
    let names: Vec<_> =
        alerts.lines().filter_map(|it| it.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() >= 12, "{names:?}");
    let fires = names.iter().map(|name| sample(name)).collect::<String>();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("alerts.yml"), &alerts).unwrap();
    let tests = [scenario(&quiet, &quiet, "[]"), scenario(&quiet, &loud, &format!("\n{fires}"))];
    let file =
        format!("rule_files: [alerts.yml]\nevaluation_interval: 1m\ntests:\n{}", tests.concat());
    fs::write(folder.path().join("test.yml"), file).unwrap();
    promtool(folder.path(), &["check", "rules", "alerts.yml"], "");
    promtool(folder.path(), &["test", "rules", "test.yml"], "");
    promtool(folder.path(), &["check", "metrics"], &gateway.metrics());
}

/// Overwrites the only record with bytes that are none.
fn spoil_record(gateway: &OperatedGateway, redis: &RedisServer) {
    let records = gateway.ask("/api/records?view=completed").json()["records"].clone();
    let id = records[0]["id"].as_str().unwrap();
    let _: () = redis.connection().set(format!("idem:{{{id}}}"), "spoilt").unwrap();
}

/// Makes a claim wait for the store.
fn delay_claim(gateway: &OperatedGateway, redis: &RedisServer) {
    let pause = redis::cmd("CLIENT").arg("PAUSE").arg(400).query::<()>(&mut redis.connection());
    pause.unwrap();
    assert_eq!(post(gateway.public, "/orders", "tea").key("slow").reply().status, 201);
}

/// Makes the store one that can delete records, which the route `strict` refuses.
fn make_unsafe(gateway: &OperatedGateway, redis: &RedisServer) {
    assert_eq!(post(gateway.public, "/strict", "tea").key("safe").reply().status, 201);
    redis.configure("maxmemory-policy", "allkeys-lru");
    eventually(|| gateway.metrics().contains("idemptx_store_refused 1\n"));
    assert_eq!(post(gateway.public, "/strict", "tea").key("unsafe").reply().status, 503);
}

/// Lets a handler end while the store is away, and returns the metrics of that time.
fn outage(gateway: &OperatedGateway, redis: &mut RedisServer) -> String {
    let (public, before) = (gateway.public, gateway.upstream.executed());
    let client = std::thread::spawn(move || post(public, "/slow", "tea").key("late").reply());
    gateway.upstream.reach(before + 1);
    redis.kill();
    gateway.upstream.open();
    let is_up = |metrics: &str| !metrics.contains("idemptx_store_up 0\n");
    eventually(|| !is_up(&gateway.metrics()));
    let away = gateway.metrics();
    assert!(!away.contains("idemptx_unconfirmed 0\n"), "{away}");
    redis.restart();
    assert_eq!(client.join().unwrap().status, 201);
    eventually(|| is_up(&gateway.metrics()));
    away
}

/// Sends a request whose first gateway was killed.
fn meet_orphan(gateway: &OperatedGateway, redis: &RedisServer) {
    let other = OperatedGateway::at(&redis.patient_url(), POLICY, "");
    let public = other.public;
    let client = std::thread::spawn(move || {
        // Its gateway dies under it.
        std::panic::catch_unwind(|| post(public, "/slow", "tea").key("orphan").reply())
    });
    other.upstream.reach(1);
    other.signal(Signal::KILL);
    drop(client.join());
    eventually(|| post(gateway.public, "/slow", "tea").key("orphan").reply().status == 201);
    assert!(gateway.metrics().contains("idemptx_orphans_total 1\n"));
}

/// Returns the samples of one scrape, with the gauges of another.
fn merged(counters: &str, gauges: &str) -> String {
    let is_counter = |line: &&str| is_counter(line.split(['{', ' ']).next().unwrap_or_default());
    let counters = counters.lines().filter(is_counter);
    counters
        .chain(gauges.lines().filter(|it| !is_counter(it)))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// A test of promtool: some minutes like the first scrape, then what leads to the second one.
fn scenario(quiet: &str, loud: &str, fires: &str) -> String {
    let (before, mut text) = (samples(quiet), String::from(" - interval: 1m\n   input_series:\n"));
    for (series, after) in samples(loud) {
        let values = match before.get(&series) {
            Some(before) if is_counter(&series) => {
                format!("{before}x5 {before}+{}x40", after - before)
            }
            Some(before) => format!("{before}x5 {after}x40"),
            // As Prometheus sees what was not there from the start.
            None => format!("_x5 {after}x40"),
        };
        let _ = writeln!(text, "    - series: '{series}'\n      values: '{values}'");
    }
    let firing = "group by (alertname) (ALERTS{alertstate=\"firing\"})";
    let _ = writeln!(
        text,
        "   promql_expr_test:\n    - expr: '{firing}'\n      eval_time: 40m\n      exp_samples: {fires}"
    );
    text
}

fn sample(alert: &str) -> String {
    format!("       - {{ labels: '{{alertname=\"{alert}\"}}', value: 1 }}\n")
}

fn samples(metrics: &str) -> BTreeMap<String, f64> {
    let lines = metrics.lines().filter(|line| line.starts_with("idemptx_"));
    let sample = |line: &str| {
        let (series, value) = line.rsplit_once(' ').unwrap();
        (series.to_owned(), value.parse().unwrap())
    };
    lines.map(sample).collect()
}

fn is_counter(series: &str) -> bool {
    let name = series.split('{').next().unwrap_or_default();
    ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end))
}

fn alerts() -> String {
    let path = format!("{}/../../deploy/monitoring/alerts.yml", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).unwrap()
}

/// Runs promtool in a folder; it must be content.
fn promtool(folder: &Path, arguments: &[&str], input: &str) {
    let mut command = Command::new("promtool");
    command.args(arguments).current_dir(folder).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("`make test` installs promtool, of Debian's prometheus");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = child.wait_with_output().unwrap();
    let [out, error] = [ended.stdout, ended.stderr].map(|it| String::from_utf8(it).unwrap());
    assert!(ended.status.success() && error.is_empty(), "{arguments:?}: {out}\n{error}");
}

/// Enough a minute for alerts on rates.
const LOST: usize = 20;
const POLICY: &str =
    "policy = { scope = \"shared\", lease_ms = 1000, store_timeout_ms = { claim = 20000 } }";
const TABLES: &str = "[[upstream]]\nname = \"away\"\nurls = [\"http://127.0.0.1:1\"]\ndown_ms = 600000\n\
     [[route]]\nname = \"away\"\npath = \"/away\"\nupstream = \"away\"\n\
     [[route]]\nname = \"strict\"\npath = \"/strict\"\nupstream = \"shop\"\n\
     policy = { scope = \"shared\", on_unsafe_store = \"refuse\", store_check_ms = 100 }\n";
