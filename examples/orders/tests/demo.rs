//! The demo: its scene holds over every store, and killing it loses nothing.

#[path = "../src/client.rs"]
mod client;

use std::net::SocketAddr;
use std::process::Stdio;

use hyper::StatusCode;
use target_tests::SharedStore;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::client::order;

#[tokio::test]
async fn a_retry_is_replayed_by_the_demo_that_was_killed_and_started_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = format!("sqlite:{}", folder.path().join("orders.db").display());
    let (mut demo, address) = started(&store).await;
    let first = order(address, KEY, TEA).await.expect("an answer");
    assert!(first.status == StatusCode::CREATED && !first.is_replay(), "{}", first.text());
    // It is in the middle of its scene.
    assert_eq!(demo.try_wait().expect("a child"), None);
    demo.kill().await.expect("it can be killed");

    let (_again, address) = started(&store).await;
    let retry = order(address, KEY, TEA).await.expect("an answer");
    assert!(retry.is_replay(), "{}", retry.text());
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert_eq!(retry.headers.get("location"), first.headers.get("location"));
    println!("answered in {:?}, and again in {:?}", first.took, retry.took);
}

#[tokio::test]
async fn the_scene_holds_over_every_store() {
    assert_that_the_scene_holds("memory:").await;
    for name in ["redis", "sqlite", "postgres"] {
        let store = SharedStore::named(name).await;
        assert_that_the_scene_holds(&store.url()).await;
    }
}

async fn assert_that_the_scene_holds(store: &str) {
    let ended = demo(store).output().await.expect("it can be started");
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "over {store}: {said}");
    assert!(said.contains("3 orders created, 3 charges"), "over {store}: {said}");
}

/// The demo, and where it listens.
async fn started(store: &str) -> (Child, SocketAddr) {
    let mut child = demo(store).spawn().expect("it can be started");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let address = loop {
        let line = lines.next_line().await.expect("text").expect("it begins its scene");
        if let Some(address) = line.strip_prefix("http://") {
            break address.parse().expect("an address");
        }
    };
    // Somebody has to listen to the rest of it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, address)
}

fn demo(store: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orders"));
    command.args(["--listen", "127.0.0.1:0", "--scene-only", "--store", store]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command
}

const KEY: &str = "mine";
const TEA: &str = r#"{"item":"tea","cents":450}"#;
