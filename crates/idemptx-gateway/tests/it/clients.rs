//! Clients that other people wrote.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::support::counting_service::CountingService;
use crate::support::gateway_process::GatewayProcess;

#[test]
fn curl_is_replayed_to_in_both_versions() {
    let (service, gateway) = started("");
    for (number, version) in ["--http1.1", "--http2-prior-knowledge"].into_iter().enumerate() {
        let key = format!("Idempotency-Key: curl-{number}");
        let curl = |body: &str| {
            run(Command::new("curl")
                .args(["--silent", "--include", "--max-time", "60", version])
                .args(["--header", &key, "--data", body])
                .arg(gateway.url("/")))
        };
        let (first, again) = (curl("hi"), curl("hi"));
        assert!(first.ends_with(&format!("a curl-{number} 1")), "{first}");
        assert!(!first.contains("idempotent-replayed"), "{first}");
        assert!(again.ends_with(&format!("a curl-{number} 1")), "{again}");
        assert!(again.contains("idempotent-replayed: true"), "{again}");
        let other = curl("something else");
        assert!(other.contains(" 422"), "{other}");
    }
    assert!(service.executions().values().all(|count| *count == 1));
}

#[test]
fn a_large_upload_waits_for_100_and_is_replayed_to() {
    let (service, gateway) = started("");
    let file = gateway.directory().join("upload");
    std::fs::write(&file, vec![b'x'; 5 << 20]).unwrap();
    let curl = || {
        run(Command::new("curl")
            .args(["--silent", "--include", "--max-time", "60", "--http1.1", "--request", "POST"])
            .args(["--header", "Idempotency-Key: large", "--upload-file"])
            .arg(&file)
            .arg(gateway.url("/")))
    };
    let (first, again) = (curl(), curl());
    assert!(first.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201"), "{first}");
    assert!(again.contains("idempotent-replayed: true"), "{again}");
    assert!(again.ends_with("a large 1"), "{again}");
    assert_eq!(service.executions().values().sum::<usize>(), 1);
}

#[test]
fn many_streams_under_one_key_are_one_execution() {
    let (service, gateway) = started("wait_ms = 60000\nwaiters_max = 1000");
    let body = gateway.directory().join("body");
    std::fs::write(&body, "hi").unwrap();
    for version in ["--npn-list=h2c", "--h1"] {
        let key = format!("idempotency-key: load{version}");
        let load = run(Command::new("h2load")
            .args([version, "-n2000", "-c8", "-m16", "-H", &key, "-d"])
            .arg(&body)
            .arg(gateway.url("/")));
        assert!(load.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{load}");
        assert!(load.contains("status codes: 2000 2xx"), "{load}");
    }
    let executions = service.executions();
    assert_eq!(executions.len(), 2);
    assert!(executions.values().all(|count| *count == 1), "{executions:?}");
}

#[test]
fn the_clients_of_the_guide_send_an_order_until_it_is_answered() {
    for (language, command) in clients_of_the_guide() {
        let (service, gateway) = started("");
        let told = run(command(gateway.directory()).arg(gateway.url("/")));
        assert_eq!(told.trim(), "201", "{language}");
        assert_eq!(service.executions().values().sum::<usize>(), 1, "{language}");
    }
}

#[test]
fn the_clients_of_the_guide_take_a_date_in_retry_after_for_no_advice() {
    let directory = tempfile::tempdir().unwrap();
    for (language, command) in clients_of_the_guide() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let busy = "503 Busy\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT";
        let service = std::thread::spawn(move || {
            for head in [busy, "201 Created"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut read = Vec::new();
                while !read.ends_with(b"}") {
                    let mut bytes = [0; 1024];
                    let count = stream.read(&mut bytes).unwrap();
                    assert!(count > 0, "the request broke off");
                    read.extend_from_slice(&bytes[..count]);
                }
                let answer =
                    format!("HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(run(command(directory.path()).arg(url)).trim(), "201", "{language}");
        service.join().unwrap();
    }
}

/// Returns the programs in the guide, each with what writes it into a directory.
fn clients_of_the_guide() -> [(&'static str, impl Fn(&Path) -> Command); 2] {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let python = root.join("target/venv/bin/python");
    assert!(python.exists(), "`make python` makes {}", python.display());
    let programs = [("python", python, "client.py"), ("javascript", "node".into(), "client.mjs")];
    programs.map(|(language, program, file)| {
        let guide = std::fs::read_to_string(root.join("docs/guides/clients.md")).unwrap();
        let (_, block) = guide.split_once(&format!("```{language}\n")).unwrap();
        let text = block.split_once("```\n").unwrap().0.to_owned();
        let command = move |directory: &Path| {
            let script = directory.join(file);
            std::fs::write(&script, &text).unwrap();
            let mut command = Command::new(&program);
            command.arg(script);
            command
        };
        (language, command)
    })
}

#[test]
fn httpx_gets_one_answer_for_fifty_requests() {
    let (service, gateway) = started("wait_ms = 60000\nwaiters_max = 1000");
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/venv/bin/python");
    assert!(python.exists(), "`make python` makes {}", python.display());
    let script = gateway.directory().join("client.py");
    std::fs::write(&script, HTTPX).unwrap();
    let told = run(Command::new(python).arg(script).arg(gateway.url("/")));
    assert_eq!(told.trim(), "50 answers, 1 text, 49 replays");
    assert_eq!(service.executions().values().sum::<usize>(), 1);
}

const HTTPX: &str = r#"
import asyncio, httpx, sys

async def main():
    async with httpx.AsyncClient(timeout=60) as client:
        headers = {"Idempotency-Key": '"quoted"'}
        post = lambda: client.post(sys.argv[1], json={"item": "tea"}, headers=headers)
        answers = await asyncio.gather(*(post() for _ in range(50)))
    assert all(answer.status_code == 201 for answer in answers), answers
    texts = {answer.text for answer in answers}
    replays = sum(answer.headers.get("Idempotent-Replayed") == "true" for answer in answers)
    print(f"{len(answers)} answers, {len(texts)} text, {replays} replays")

asyncio.run(main())
"#;

fn started(policy: &str) -> (CountingService, GatewayProcess) {
    let service = CountingService::start("a");
    let route = format!("[[route]]\nupstream = 'app'\n[route.policy]\nscope = 'shared'\n{policy}");
    let gateway = GatewayProcess::start(service.address(), &route);
    (service, gateway)
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("`make test` installs what this test runs");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
