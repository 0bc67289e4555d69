//! Envoy in a process, with the configuration of the guide.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use idemptx_testkit::{ChildProcess, ReservedPort, released_program};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::gateway_process::GatewayProcess;

/// An Envoy with its processor, both killed when dropped.
#[derive(Debug)]
pub(crate) struct EnvoyProcess {
    process: ChildProcess,
    _port: ReservedPort,
    _processor_port: ReservedPort,
    processor: Option<GatewayProcess>,
    configuration: String,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl EnvoyProcess {
    /// Starts both in front of a service, configured as in the guide but for these lines in the
    /// default route, and these replacements in Envoy's file.
    pub(crate) async fn start(upstream: SocketAddr, route: &str, envoy: &[(&str, &str)]) -> Self {
        let default = "[[route]]\nupstream = \"shop\"\n\n";
        let route = format!("[[route]]\nupstream = \"shop\"\n{route}\n");
        Self::configured(upstream, &[(default, &route)], envoy).await
    }

    /// Does the same with any replacements in the processor's file.
    pub(crate) async fn configured(
        upstream: SocketAddr,
        processor: &[(&str, &str)],
        envoy: &[(&str, &str)],
    ) -> Self {
        let (port, processor_port) = (ReservedPort::reserve(), ReservedPort::reserve());
        let admin_port = ReservedPort::reserve();
        let configuration = replaced(block("toml"), processor)
            .replace("127.0.0.1:9100", &processor_port.address().to_string())
            .replace("sqlite:shop.db", "sqlite:@dir/shop.db");
        let processor = GatewayProcess::ext_proc(tempfile::tempdir().unwrap(), &configuration);
        let mut text = replaced(block("yaml"), envoy)
            .replace("0.0.0.0, port_value: 8080", &place(port.address()))
            .replace("127.0.0.1, port_value: 9000", &place(upstream))
            .replace("127.0.0.1, port_value: 9100", &place(processor_port.address()));
        let admin = place(admin_port.address());
        text += &format!("admin: {{ address: {{ socket_address: {{ address: {admin} }} }} }}\n");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("envoy.yaml");
        fs::write(&file, text).unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let process = ChildProcess::spawn(
            Command::new(released_program("envoy"))
                .args(["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "warning"])
                .arg("--config-path")
                .arg(file)
                .stdout(Stdio::null())
                .stderr(log),
            "run .ci/released.sh, as `make test` does",
        );
        let mut this = Self {
            process,
            processor: Some(processor),
            address: port.address(),
            _port: port,
            _processor_port: processor_port,
            configuration,
            directory,
        };
        this.ready(admin_port.address()).await;
        this
    }

    /// Returns the processor.
    pub(crate) fn processor(&self) -> &GatewayProcess {
        self.processor.as_ref().unwrap()
    }

    /// Kills the processor and starts another one on the same store and address.
    pub(crate) fn restart_processor(&mut self) {
        let directory = self.processor.take().unwrap().killed();
        self.processor = Some(GatewayProcess::ext_proc(directory, &self.configuration));
    }

    pub(crate) fn processor_mut(&mut self) -> &mut GatewayProcess {
        self.processor.as_mut().unwrap()
    }

    /// Returns the processor's file.
    pub(crate) fn configuration(&self) -> String {
        let directory = self.processor().directory().to_str().unwrap();
        self.configuration.replace("@dir", directory)
    }

    /// Returns Envoy's log up to now.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    async fn ready(&mut self, admin: SocketAddr) {
        let began = Instant::now();
        loop {
            let answer = async {
                let mut stream = TcpStream::connect(admin).await?;
                stream.write_all(READY).await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                std::io::Result::Ok(answer)
            };
            if answer.await.is_ok_and(|answer| answer.contains(" 200 ")) {
                return;
            }
            assert!(self.process.exit_status().is_none(), "Envoy has ended: {}", self.log());
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(60), "Envoy is not ready: {}", self.log());
            // Nothing else tells of another program's readiness.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Returns the first block of the guide in this language.
fn block(language: &str) -> String {
    let guide = fs::read_to_string(root().join("docs/guides/envoy.md")).unwrap();
    let (_, block) = guide.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0.to_owned()
}

fn replaced(mut text: String, replacements: &[(&str, &str)]) -> String {
    for (old, new) in replacements {
        assert!(text.contains(old), "{old:?} is not in {text}");
        text = text.replacen(old, new, 1);
    }
    text
}

fn place(address: SocketAddr) -> String {
    format!("{}, port_value: {}", address.ip(), address.port())
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

const READY: &[u8] = b"GET /ready HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
