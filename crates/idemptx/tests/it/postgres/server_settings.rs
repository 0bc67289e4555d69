//! Settings of a server that weaken durability, and its certificate.

use idemptx::store::postgres::{PostgresStore, SynchronousCommit};
use idemptx::store::{AnyStore, SafetyCheck, SafetyReport, Severity};
use idemptx_core::store::{ErrorKind, Store};
use idemptx_testkit::{CertificateAuthority, PostgresServer, server_directory};

use super::fixture::{done, eventually, granted, id, number, patient, reason, soon, started};

#[tokio::test]
async fn the_check_says_in_one_line_what_a_server_promises() {
    let (server, store) = started(&[]).await;
    let report = store.check().await.unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
    let guarantee = format!(
        " at 127.0.0.1:{}/postgres: claims survive a crash of PostgreSQL and of its host; no \
         standbys",
        server.port()
    );
    assert!(report.guarantee.starts_with("postgresql "), "{}", report.guarantee);
    assert!(report.guarantee.ends_with(&guarantee), "{}", report.guarantee);
    assert!(store.capabilities().durable);

    server.configure("synchronous_commit", "off").await;
    server.configure("full_page_writes", "off").await;
    server.configure("fsync", "off").await;
    let unlogged = "ALTER TABLE idemptx.records SET UNLOGGED";
    server.session().await.batch_execute(unlogged).await.unwrap();
    // Of a session that was told of the new settings.
    let store = patient(server.url()).connect().await.unwrap();
    let report = store.check().await.unwrap();
    let unsafe_ones = |report: &SafetyReport| {
        report.findings.iter().filter(|finding| finding.severity == Severity::Unsafe).count()
    };
    // Its own commits are waited for all the same.
    assert_eq!((report.findings.len(), unsafe_ones(&report)), (4, 3), "{report:?}");
    assert!(!store.capabilities().durable);

    let logged = "ALTER TABLE idemptx.records SET LOGGED";
    server.session().await.batch_execute(logged).await.unwrap();
    assert_eq!(unsafe_ones(&store.check().await.unwrap()), 2);
    assert!(store.capabilities().durable);

    // The last word is the URL's.
    let url = format!("{}?options=-c%20synchronous_commit%3Doff", server.url());
    let told = patient(url).connect().await.unwrap();
    let report = told.check().await.unwrap();
    assert_eq!(unsafe_ones(&report), 3, "{report:?}");
    assert!(report.guarantee.contains("last claims do not survive"), "{}", report.guarantee);
    assert!(!told.capabilities().durable);
    let local = patient(server.url()).synchronous_commit(SynchronousCommit::Local);
    assert!(local.connect().await.unwrap().check().await.is_ok());
}

#[tokio::test]
async fn a_url_leads_to_this_store() {
    let server = PostgresServer::start(&[]);
    for scheme in ["postgres", "postgresql"] {
        let store = AnyStore::from_url(&server.url().replace("postgres:", &format!("{scheme}:")));
        let store = store.unwrap();
        let guarantee = SafetyCheck::check(&store).await.unwrap().guarantee;
        assert!(guarantee.starts_with("postgresql "), "{guarantee}");
        assert!(store.watch(&id(1)).await.is_some());
    }
    let refused = AnyStore::from_url("postgres://app:hunter2@localhost:port/").unwrap_err();
    let cause = std::error::Error::source(&refused).unwrap().to_string();
    assert!(cause.contains("port") && !cause.contains("hunter2"), "{cause}");
}

#[tokio::test]
async fn tls_is_verified_against_the_authority_that_was_named() {
    let (authority, stranger) =
        (CertificateAuthority::generate(), CertificateAuthority::generate());
    let directory = server_directory();
    authority.issue_into(directory.path());
    let path = |name: &str| directory.path().join(name).display().to_string();
    let lines = [
        "ssl = on".to_owned(),
        format!("ssl_cert_file = '{}'", path("server.pem")),
        format!("ssl_key_file = '{}'", path("server.key")),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let server = PostgresServer::start_in(directory, &lines);
    let url = format!("{}?sslmode=verify-full", server.url());

    let trusting = patient(url.clone()).ca_certificates(authority.pem()).connect().await;
    let store = trusting.unwrap();
    let lease = granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    store.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;

    for wary in [patient(url.clone()).ca_certificates(stranger.pem()), patient(url)] {
        let error = wary.connect().await.unwrap_err();
        assert!(reason(&error).contains("certificate"), "{}", reason(&error));
    }
}

/// Everything is in the URL, as in the configuration of a program that only takes one.
#[tokio::test]
async fn certificates_tables_and_a_password_that_changes_are_in_the_url() {
    let authority = CertificateAuthority::generate();
    let directory = server_directory();
    authority.issue_into(directory.path());
    authority.issue_client_into(directory.path(), "app");
    let path = |name: &str| directory.path().join(name).display().to_string();
    // Everybody but the superuser on the socket needs a password and a certificate.
    std::fs::write(
        path("hba.conf"),
        "local all postgres trust\nhostssl all app 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n\
         host all postgres 127.0.0.1/32 trust\n",
    )
    .unwrap();
    std::fs::write(path("password"), "first\n").unwrap();
    let lines = [
        "ssl = on".to_owned(),
        format!("ssl_cert_file = '{}'", path("server.pem")),
        format!("ssl_key_file = '{}'", path("server.key")),
        format!("ssl_ca_file = '{}'", path("ca.pem")),
        format!("hba_file = '{}'", path("hba.conf")),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let (ca, certificate, key, password) =
        (path("ca.pem"), path("client.pem"), path("client.key"), path("password"));
    let server = PostgresServer::start_in(directory, &lines);
    let session = server.session().await;
    let role = "CREATE ROLE app LOGIN PASSWORD 'first'; GRANT CREATE ON DATABASE postgres TO app";
    session.batch_execute(role).await.unwrap();
    let url = format!(
        "{}?sslmode=verify-full&ca_file={ca}&schema=shop&table=keys&sessions=1",
        server.url_of("app")
    );
    let anonymous = format!("{url}&password_file={password}");
    assert!(patient(anonymous).connect().await.is_err());

    let identified = format!("{url}&cert_file={certificate}&key_file={key}");
    let command = format!("{identified}&password_command=cat%20{password}");
    for url in [format!("{identified}&password_file={password}"), command] {
        let verifying = patient(format!("{url}&migrate=false")).connect().await;
        assert_eq!(verifying.is_err(), number(&server, TABLES).await == 0);
        let store = patient(url).connect().await.unwrap();
        let lease = granted(&store, id(1)).await;
        // A new session asks for the password that there is by then.
        std::fs::write(&password, "second\n").unwrap();
        session.batch_execute("ALTER ROLE app PASSWORD 'second'").await.unwrap();
        server.cut_sessions_of("app").await;
        eventually(async || store.release(&lease).await).await.unwrap();
        std::fs::write(&password, "first\n").unwrap();
        session.batch_execute("ALTER ROLE app PASSWORD 'first'").await.unwrap();
    }
    assert_eq!(number(&server, TABLES).await, 1);
    let wrong = format!("{identified}&password_command=echo%20hunter2;exit%201");
    let error = patient(wrong).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("the command gives no password"), "{}", reason(&error));
    assert!(!reason(&error).contains("hunter2"));
}

const TABLES: &str =
    "SELECT count(*) FROM pg_tables WHERE schemaname = 'shop' AND tablename = 'keys'";

#[tokio::test]
async fn a_server_without_tls_is_not_spoken_to_in_plain_text_when_tls_was_asked_for() {
    let server = PostgresServer::start(&["ssl = off"]);
    let url = format!("{}?sslmode=verify-full", server.url());
    let error = PostgresStore::connect(url).await.unwrap_err();
    assert!(reason(&error).contains("TLS"), "{}", reason(&error));
}
