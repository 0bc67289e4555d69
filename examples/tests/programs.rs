//! Runs each of the programs and compares what it does with what it shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use idemptx_gateway::config::Config;
use idemptx_gateway::serve::Gateway;
use serde_json::{Value, json};
use target_tests::SharedStore;

#[test]
fn the_axum_service_takes_an_order_once_even_when_it_is_started_again() {
    takes_an_order_once(env!("CARGO_BIN_EXE_axum"));
}

#[test]
fn so_does_the_actix_service() {
    takes_an_order_once(env!("CARGO_BIN_EXE_actix"));
}

fn takes_an_order_once(program: &str) {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}/orders.db", folder.path().display());
    let order = |key: &str| {
        let service = Service::start(program, &store);
        service.post(key, TEA)
    };
    let (first, again) = (order("1"), order("1"));
    assert!(first.starts_with("HTTP/1.1 201 Created\r\n"), "{first}");
    assert!(!first.contains("idempotent-replayed"), "{first}");
    assert!(again.contains("idempotent-replayed: true\r\n"), "{again}");
    assert_eq!(body(&first), json!({ "number": 1, "item": "tea" }));
    assert_eq!(body(&again), body(&first));
    assert!(!order("2").contains("idempotent-replayed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_postgres_service_has_an_order_for_each_key_that_succeeded() {
    let server = SharedStore::named("postgres").await;
    let connecting = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await;
    let (session, connection) = connecting.unwrap();
    tokio::spawn(connection);
    let table = "CREATE TABLE orders (number bigserial PRIMARY KEY, item text NOT NULL)";
    session.batch_execute(table).await.unwrap();
    let service = Service::start(env!("CARGO_BIN_EXE_axum-postgres"), &server.url());
    let (first, again) = (service.post("1", "tea"), service.post("1", "tea"));
    assert!(first.ends_with("\r\n\r\norder 1: tea"), "{first}");
    assert!(again.contains("idempotent-replayed: true\r\n"), "{again}");
    assert!(again.ends_with("\r\n\r\norder 1: tea"), "{again}");
    let refused = service.post("2", "");
    assert!(refused.starts_with("HTTP/1.1 422 "), "{refused}");
    let orders = session.query("SELECT item FROM orders", &[]).await.unwrap();
    let items: Vec<String> = orders.iter().map(|row| row.get(0)).collect();
    assert_eq!(items, ["tea"]);
}

#[test]
fn the_job_runs_once_a_day() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}/jobs.db", folder.path().display());
    let run =
        |day: &str| printed(Command::new(env!("CARGO_BIN_EXE_job")).arg(day).env("STORE", &store));
    let report = "2026-11-29: 17 invoices were sent\n";
    assert_eq!(run("2026-11-29"), format!("sending the invoices of 2026-11-29\n{report}"));
    assert_eq!(run("2026-11-29"), report);
    assert!(run("2026-11-30").starts_with("sending the invoices of 2026-11-30\n"));
}

#[test]
fn the_consumer_ships_each_message_once() {
    let lines = printed(&mut Command::new(env!("CARGO_BIN_EXE_consumer")));
    assert_eq!(
        lines,
        "shipping tea\n\
         acknowledged m-1: parcel of tea\n\
         acknowledged m-1: parcel of tea\n\
         shipping cake\n\
         acknowledged m-2: parcel of cake\n"
    );
}

#[test]
fn the_second_attempt_does_not_charge_again() {
    let lines = printed(&mut Command::new(env!("CARGO_BIN_EXE_steps")));
    let lines: Vec<_> = lines.lines().collect();
    let [charging, printing, failed, again @ ..] = &*lines else { panic!("{lines:?}") };
    assert_eq!([*charging, *printing], ["charging the card", "printing the ticket"]);
    assert!(failed.starts_with("failed: "), "{failed}");
    assert_eq!(again, ["printing the ticket", "booked: ticket-1", "booked: ticket-1"]);
}

#[test]
fn the_store_keeps_the_contract() {
    let lines = printed(&mut Command::new(env!("CARGO_BIN_EXE_store")));
    assert!(lines.contains("Granted"), "{lines}");
}

#[test]
fn the_operator_releases_what_is_in_doubt() {
    let lines = printed(&mut Command::new(env!("CARGO_BIN_EXE_operators")));
    let lines: Vec<_> = lines.lines().collect();
    let [first, rest @ ..] = &*lines else { panic!("{lines:?}") };
    assert!(first.starts_with("the first attempt: "), "{first}");
    let rest_expected =
        ["a retry: outcome-unknown", "in doubt: unknown", "a retry after the release: paid"];
    assert_eq!(rest, rest_expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gateway_protects_a_service_as_its_configuration_says() {
    let mut python = Command::new("python3");
    let service = Service::run(python.args(["gateway/orders.py", "0"]));
    let folder = tempfile::tempdir().unwrap();
    let text = include_str!("../gateway/idemptx.toml")
        .replace("127.0.0.1:8080", "127.0.0.1:0")
        .replace("127.0.0.1:9090", "127.0.0.1:0")
        .replace("http://127.0.0.1:9000", &service.url)
        .replace("orders.db\"", &format!("{}/orders.db\"", folder.path().display()));
    let config = Config::parse("idemptx.toml", &text, |_| None).unwrap();
    let gateway = Gateway::start(config).await.unwrap();
    let url = format!("http://{}", gateway.addresses().first().unwrap());
    let (first, again) = (post(&url, "1", TEA), post(&url, "1", TEA));
    assert!(first.starts_with("HTTP/1.1 201 Created\r\n"), "{first}");
    assert!(again.contains("idempotent-replayed: true\r\n"), "{again}");
    assert_eq!(body(&again), json!({ "order": 1, "item": "tea" }));
    assert_eq!(body(&post(&url, "2", TEA)), json!({ "order": 2, "item": "tea" }));
}

/// Returns what a program prints, which has to succeed.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the response to an order, head and body.
fn post(url: &str, key: &str, body: &str) -> String {
    let output = Command::new("curl")
        .args(["--silent", "--include", "--max-time", "30", "--data", body])
        .args(["--header", "Content-Type: application/json"])
        .args(["--header", &format!("Idempotency-Key: {key}")])
        .arg(format!("{url}/orders"))
        .output()
        .expect("`make test` installs curl");
    String::from_utf8(output.stdout).unwrap()
}

fn body(response: &str) -> Value {
    serde_json::from_str(response.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// A service on a free port; killed when dropped.
struct Service {
    process: Child,
    url: String,
}

impl Service {
    fn start(program: &str, store: &str) -> Self {
        Self::run(Command::new(program).env("LISTEN", "127.0.0.1:0").env("STORE", store))
    }

    fn run(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("it listens").to_owned();
        Self { process, url }
    }

    fn post(&self, key: &str, body: &str) -> String {
        post(&self.url, key, body)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const TEA: &str = r#"{"item": "tea"}"#;
