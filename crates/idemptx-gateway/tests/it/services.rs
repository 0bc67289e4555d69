//! Services in three languages, none of which knows of retries, downstream of `idemptx serve` as
//! it is started from a shell.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[test]
fn a_python_service_becomes_safe_to_retry() {
    let mut python = Command::new("python3");
    python.arg(example("orders.py"));
    becomes_safe_to_retry(python);
}

#[test]
fn a_node_service_becomes_safe_to_retry() {
    let mut node = Command::new("node");
    node.arg(example("orders.js"));
    becomes_safe_to_retry(node);
}

#[test]
fn a_rust_service_becomes_safe_to_retry() {
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("orders");
    let mut rustc = Command::new("rustc");
    rustc.arg("--edition=2024").arg(example("orders.rs")).arg("-o").arg(&program);
    assert!(rustc.status().unwrap().success());
    becomes_safe_to_retry(Command::new(program));
}

/// Two calls, then one under another key.
fn becomes_safe_to_retry(mut service: Command) {
    let directory = tempfile::tempdir().unwrap();
    let service = Running::start(service.arg("0"));
    let mut serve = Command::new(env!("CARGO_BIN_EXE_idemptx"));
    serve.args(["serve", "--upstream", &service.url, "--listen", "127.0.0.1:0"]);
    let gateway = Running::start(serve.current_dir(directory.path()));
    let first = order(&gateway.url, "4711");
    assert!(first.starts_with("HTTP/1.1 201 Created\r\n"), "{first}");
    assert!(!first.contains("idempotent-replayed"), "{first}");
    assert_eq!(number(&first), 1);
    let again = order(&gateway.url, "4711");
    assert!(again.starts_with("HTTP/1.1 201 Created\r\n"), "{again}");
    assert!(again.contains("idempotent-replayed: true\r\n"), "{again}");
    assert_eq!(number(&again), 1);
    assert_eq!(number(&order(&gateway.url, "4712")), 2);
    // By default the records are in a file, where the program was started.
    assert!(directory.path().join("idemptx.db").exists());
}

fn order(url: &str, key: &str) -> String {
    let curl = Command::new("curl")
        .args(["--silent", "--include", "--max-time", "10"])
        .args(["--header", &format!("Idempotency-Key: {key}")])
        .args(["--json", r#"{"item": "tea"}"#])
        .arg(format!("{url}/orders"))
        .output()
        .unwrap();
    String::from_utf8(curl.stdout).unwrap()
}

/// The order's number.
fn number(answer: &str) -> u32 {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let order: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(order.get("item").unwrap(), "tea");
    u32::try_from(order.get("order").unwrap().as_u64().unwrap()).unwrap()
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/gateway").join(name)
}

/// A program that says where it listens; killed when dropped.
struct Running {
    process: Child,
    url: String,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let started = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let mut process = started.expect("`make test` installs what this test runs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("it listens").to_owned();
        Self { process, url }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
