//! Certificates of a Redis server.

use idemptx_testkit::{CertificateAuthority, RedisServer, ReservedPort, server_directory};

use super::*;

#[tokio::test]
async fn tls_is_verified_against_the_authority_that_was_named() {
    let (authority, stranger) =
        (CertificateAuthority::generate(), CertificateAuthority::generate());
    let directory = server_directory();
    authority.issue_into(directory.path());
    let reserved = ReservedPort::reserve();
    let port = reserved.number();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let lines = [
        format!("tls-port {port}"),
        format!("tls-cert-file {}", path("server.pem")),
        format!("tls-key-file {}", path("server.key")),
        format!("tls-ca-cert-file {}", path("ca.pem")),
        "tls-auth-clients no".to_owned(),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    let _server = RedisServer::start_in(directory, &lines);
    let url = format!("rediss://127.0.0.1:{port}");

    let trusting = RedisStore::builder(&url).ca_certificates(authority.pem()).connect().await;
    let store = trusting.unwrap();
    let lease = granted(&store, id(1)).await;
    let watch = store.watch(&id(1)).await.unwrap();
    store.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;

    for wary in
        [RedisStore::builder(&url).ca_certificates(stranger.pem()), RedisStore::builder(&url)]
    {
        let error = wary.connect().await.unwrap_err();
        assert!(reason(&error).contains("certificate"), "{}", reason(&error));
    }
}
