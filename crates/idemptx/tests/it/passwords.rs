//! Passwords that change under load.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use idemptx::store::postgres::PostgresStore;
use idemptx::store::redis::RedisStore;
use idemptx_core::store::Store;
use idemptx_testkit::{PostgresServer, RedisServer, server_directory};

use crate::postgres::number;
use crate::store_load::{Load, id};
use crate::support::records::PATIENCE;

/// Every change cuts the connections, and the file has the new password a moment later than the
/// server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_of_redis_that_changes_again_and_again_fails_no_request() {
    let server = RedisServer::start(&["appendfsync no"]);
    let directory = server_directory();
    let file = directory.path().join("password");
    let change = async |password: &str| {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg(&["app", "on", "~*", "&*", "+@all", "resetpass"]);
        user.arg(format!(">{password}")).exec(&mut server.connection()).unwrap();
        let mut cut = redis::cmd("CLIENT");
        cut.arg("KILL").arg("USER").arg("app").exec(&mut server.connection()).unwrap();
        written_later(&file, password).await;
    };
    change("first").await;
    let url = format!("redis://app@127.0.0.1:{}?password_file={}", server.port(), file.display());
    let mut handles = Vec::new();
    for _ in 0..3 {
        let store = RedisStore::builder(&url).timeout(PATIENCE).connect_timeout(PATIENCE);
        handles.push(Arc::new(store.connect().await.unwrap()));
    }
    nothing_fails_while(&handles, change).await;
}

/// The client library alone would log in as the default user.
#[tokio::test]
async fn a_user_of_redis_without_a_password_is_the_one_of_the_url() {
    let server = RedisServer::start(&["appendfsync no"]);
    let mut user = redis::cmd("ACL");
    user.arg("SETUSER").arg(&["guest", "on", "nopass", "~*", "&*", "+@all"]);
    user.exec(&mut server.connection()).unwrap();
    let url = format!("redis://guest@127.0.0.1:{}", server.port());
    let _store = RedisStore::connect(url).await.unwrap();
    let clients: String = redis::cmd("CLIENT").arg("LIST").query(&mut server.connection()).unwrap();
    assert!(clients.contains("user=guest"), "{clients}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_of_postgresql_that_changes_again_and_again_fails_no_request() {
    let directory = server_directory();
    let hba = directory.path().join("hba.conf");
    let rules = "local all postgres trust\nhost all app 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(&hba, rules).unwrap();
    let file = directory.path().join("password");
    let server = PostgresServer::start_in(directory, &[&format!("hba_file = '{}'", hba.display())]);
    let session = server.session().await;
    let role = "CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app";
    session.batch_execute(role).await.unwrap();
    let change = async |password: &str| {
        // One that is only being opened would be cut before it has met a password.
        while number(&server, YOUNG).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let change = format!("ALTER ROLE app PASSWORD '{password}'");
        session.batch_execute(&change).await.unwrap();
        server.cut_sessions_of("app").await;
        written_later(&file, password).await;
    };
    change("first").await;
    let url = format!("{}?sessions=1&password_file={}", server.url_of("app"), file.display());
    let mut handles = Vec::new();
    for _ in 0..3 {
        let store = PostgresStore::builder(&url).timeout(PATIENCE).connect_timeout(PATIENCE);
        handles.push(Arc::new(store.connect().await.unwrap()));
    }
    nothing_fails_while(&handles, change).await;
}

/// Changes the password again and again under load.
async fn nothing_fails_while<S: Store>(handles: &[Arc<S>], change: impl AsyncFn(&str)) {
    let load = Load::start(handles, 4, id);
    for number in 0..CHANGES {
        load.go_on_for(KEYS).await;
        change(&format!("password-{number}")).await;
    }
    load.go_on_for(KEYS).await;
    let tally = load.stop().await;
    let failed = tally.refused.load(Ordering::Relaxed) + tally.unknown.load(Ordering::Relaxed);
    assert_eq!(failed, 0, "of {}: {:?}", tally.executed(), tally.reasons());
    assert_eq!(tally.doubles(), 0);
}

/// Writes the password after the server has it.
async fn written_later(file: &Path, password: &str) {
    tokio::time::sleep(Duration::from_millis(30)).await;
    std::fs::write(file, password).unwrap();
}

const YOUNG: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' \
                     AND backend_start > clock_timestamp() - interval '1 second'";
const CHANGES: u32 = 6;
const KEYS: u64 = 12;
