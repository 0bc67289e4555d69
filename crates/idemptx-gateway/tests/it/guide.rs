//! Tests of the guide: its commands run, its files can be read, its problems are all there.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use idemptx_gateway::config::Config;
use idemptx_testkit::ReservedPort;

#[test]
fn every_configuration_in_the_guide_can_be_read() {
    let mut blocks = blocks("toml");
    assert!(blocks.len() >= 8, "{blocks:?}");
    blocks.retain(|block| cfg!(feature = "otel") || !block.starts_with("[traces]"));
    for block in blocks {
        let text = whole(&block);
        let read = Config::parse("guide", &text, |name| Some(format!("the value of {name}")));
        assert!(read.is_ok(), "{read:?} in {text}");
    }
}

#[test]
fn the_reference_writes_out_the_defaults() {
    let blocks = blocks("toml");
    for (table, least) in [
        ("[[listener]]\n", "[[listener]]\naddress = '127.0.0.1:8080'"),
        ("[[upstream]]\n", "[[upstream]]\nname = 'shop'\nurls = ['http://127.0.0.1:9000']"),
        ("[limits]\n", "[limits]"),
        ("[ext_proc]\n", "[ext_proc]\naddress = '127.0.0.1:9100'"),
        ("[log]\n", "[log]"),
        (
            "[traces]\n",
            "[traces]\nendpoint = 'http://127.0.0.1:4318'\nservice_name = 'idemptx'\nsample_ratio = 1.0",
        ),
    ] {
        if table == "[traces]\n" && !cfg!(feature = "otel") {
            continue;
        }
        let block = blocks.iter().rfind(|block| block.starts_with(table)).unwrap();
        let read = |text: &str| Config::parse("reference", &whole(text), |_| None).unwrap();
        assert_eq!(read(block), read(least), "{block}");
    }
}

#[test]
fn the_quick_start_does_what_it_says() {
    let reserved = [(); 2].map(|()| ReservedPort::reserve());
    let ports = reserved.each_ref().map(ReservedPort::number);
    let commands: Vec<String> = blocks("console")[..2].iter().flat_map(|it| commands(it)).collect();
    let [service, build, serve, key, first, again] = &*commands else { panic!("{commands:?}") };
    assert!(build.starts_with("cargo build"), "it is built already: {build}");
    assert_eq!(key, "KEY=$(uuidgen)");
    let program = serve.replace("target/release/idemptx", env!("CARGO_BIN_EXE_idemptx"));
    let directory = tempfile::tempdir().unwrap();
    let here = |command: &str| {
        let command = command.replace(":8080", &format!(":{}", ports[0]));
        let command = command.replace("9000", &ports[1].to_string());
        command.replace("examples/", &format!("{}/examples/", root().display()))
    };
    let start = |command: &str| {
        let command = here(command.trim_end_matches(" &"));
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("exec {command}")).current_dir(directory.path());
        Ended(shell.stdout(std::process::Stdio::null()).spawn().unwrap())
    };
    let _running = [start(service), start(&program)];
    ports.iter().for_each(|port| wait_for(*port));
    let answers = [first, again].map(|command| {
        let output = Command::new("sh")
            .arg("-c")
            .arg(here(command))
            .env("KEY", "8e03978e")
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().to_lowercase()
    });
    let blocks = blocks("console");
    let told = outputs_of(&blocks[1]);
    for (answer, told) in answers.iter().zip(&told[1..]) {
        assert!(told.len() >= 3, "{told:?}");
        for line in told {
            assert!(answer.contains(&line.to_lowercase()), "{line:?} is not in {answer}");
        }
    }
    assert!(!answers[0].contains("idempotent-replayed"));
}

#[test]
fn every_problem_of_the_gateway_has_its_place_in_the_guide() {
    let faults = root().join("crates/idemptx-gateway/src/proxy/fault.rs");
    let faults = fs::read_to_string(faults).unwrap();
    let codes: Vec<_> =
        faults.split("code: \"").skip(1).filter_map(|it| it.split('"').next()).collect();
    assert!(codes.len() >= 13, "{codes:?}");
    let guide = guide();
    for code in codes {
        assert!(guide.contains(&format!("\n### `{code}`\n")), "{code} is missing");
    }
}

/// A part of a file, with what it leaves out.
fn whole(part: &str) -> String {
    let mut text = part.replace('\'', "\"");
    for (table, missing) in MISSING {
        if !text.contains(table) {
            text = format!("{text}\n{missing}");
        }
    }
    for name in ["shop", "bank"] {
        if !text.contains(&format!("name = \"{name}\"")) {
            text = format!("{text}\n[[upstream]]\nname = \"{name}\"\nurls = [\"http://a\"]");
        }
    }
    text
}

/// The commands of a block.
fn commands(block: &str) -> Vec<String> {
    block.lines().filter_map(|line| Some(line.strip_prefix("$ ")?.to_owned())).collect()
}

/// Returns the output that a block shows for each of its commands.
fn outputs_of(block: &str) -> Vec<Vec<&str>> {
    let answers = block.split("$ ").skip(1);
    answers.map(|it| it.lines().skip(1).filter(|line| !line.is_empty()).collect()).collect()
}

/// The blocks of the guide, then those of the reference.
fn blocks(language: &str) -> Vec<String> {
    let reference = fs::read_to_string(root().join("docs/reference/gateway.md")).unwrap();
    let (pages, fence) = (guide() + &reference, format!("```{language}\n"));
    let blocks = pages.split(&*fence).skip(1);
    blocks.filter_map(|it| Some(it.split_once("```")?.0.to_owned())).collect()
}

fn guide() -> String {
    fs::read_to_string(root().join("docs/guides/gateway.md")).unwrap()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn wait_for(port: u16) {
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(began.elapsed() < Duration::from_secs(60), "nobody listens on {port}");
        // Nothing else tells of another program's readiness.
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A process that ends with this value.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const MISSING: [(&str, &str); 2] = [
    ("[[listener]]", "[[listener]]\naddress = \"127.0.0.1:1\""),
    ("[[route]]", "[[route]]\nupstream = \"shop\""),
];
