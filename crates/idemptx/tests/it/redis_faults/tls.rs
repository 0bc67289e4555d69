//! Certificates of a Redis server.

use idemptx_testkit::{
    CertificateAuthority, RedisCluster, RedisSentinels, RedisServer, ReservedPort, server_directory,
};

use super::*;

/// Everything is in the URL, as in the configuration of a program that only takes one.
#[tokio::test]
async fn certificates_a_prefix_and_a_password_that_changes_are_in_the_url() {
    let authority = CertificateAuthority::generate();
    let directory = server_directory();
    authority.issue_into(directory.path());
    authority.issue_client_into(directory.path(), "app");
    let reserved = ReservedPort::reserve();
    let port = reserved.number();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let lines = [
        format!("tls-port {port}"),
        format!("tls-cert-file {}", path("server.pem")),
        format!("tls-key-file {}", path("server.key")),
        format!("tls-ca-cert-file {}", path("ca.pem")),
        "tls-auth-clients yes".to_owned(),
        "requirepass first".to_owned(),
    ];
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    std::fs::write(path("password"), "first\n").unwrap();
    let (ca, certificate, key, password) =
        (path("ca.pem"), path("client.pem"), path("client.key"), path("password"));
    let server = RedisServer::start_in(directory, &lines);
    let trusting = format!("rediss://127.0.0.1:{port}?ca_file={ca}&prefix=a%3A");
    let identified = format!("{trusting}&cert_file={certificate}&key_file={key}");
    let anonymous = format!("{trusting}&password_file={password}");
    assert!(RedisStore::connect(anonymous).await.is_err());

    let command = format!("{identified}&password_command=cat%20{password}");
    for url in [format!("{identified}&password_file={password}"), command] {
        std::fs::write(&password, "first\n").unwrap();
        let store = RedisStore::builder(url).timeout(PATIENCE).connect_timeout(PATIENCE);
        let store = store.connect().await.unwrap();
        let lease = granted(&store, id(1)).await;
        let mut admin = redis::Client::open(format!("redis+unix://{}", server.socket().display()))
            .unwrap()
            .get_connection()
            .unwrap();
        redis::cmd("AUTH").arg("first").exec(&mut admin).unwrap();
        let keys: Vec<String> = redis::cmd("KEYS").arg("a:*").query(&mut admin).unwrap();
        assert_eq!(keys.len(), 1);
        // A new connection asks for the password that there is by then.
        std::fs::write(&password, "second\n").unwrap();
        let set = |admin: &mut redis::Connection, password: &str| {
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg("requirepass").arg(password).exec(admin).unwrap();
        };
        set(&mut admin, "second");
        redis::cmd("CLIENT").arg("KILL").arg("TYPE").arg("normal").exec(&mut admin).unwrap();
        eventually(async || store.release(&lease).await).await.unwrap();
        set(&mut admin, "first");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_a_cluster_and_what_they_lead_to_are_verified() {
    let (authority, stranger) =
        (CertificateAuthority::generate(), CertificateAuthority::generate());
    let directory = server_directory();
    authority.issue_into(directory.path());
    let cluster = RedisCluster::start_encrypted(3, 0, &[], Some(directory.path()));
    assert!(cluster.url().starts_with("rediss+cluster://"));
    let store = RedisStore::builder(cluster.url()).ca_certificates(authority.pem());
    let store = store.connect().await.unwrap();
    // Records of all three nodes, each of which is found by what another one says.
    for number in 0..12 {
        let lease = granted(&store, id(number)).await;
        let watch = store.watch(&id(number)).await.unwrap();
        store.settle(&lease, &done("done")).await.unwrap();
        soon(watch).await;
    }
    assert!(store.check().await.unwrap().guarantee.contains("cluster of 3 primaries"));
    let wary = RedisStore::builder(cluster.url()).ca_certificates(stranger.pem());
    let error = wary.connect().await.unwrap_err();
    assert!(reason(&error).contains("certificate"), "{}", reason(&error));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_the_servers_that_they_name_are_verified_also_after_a_failover() {
    let (authority, stranger) =
        (CertificateAuthority::generate(), CertificateAuthority::generate());
    let directory = server_directory();
    authority.issue_into(directory.path());
    authority.issue_client_into(directory.path(), "app");
    let servers = RedisSentinels::start_encrypted(1, None, Some(directory.path()));
    let (url, path) = (servers.url(), directory.path().display().to_string());
    assert!(url.starts_with("rediss+sentinel://"));
    // The sentinels are trusted by the servers' authority, unless they have another.
    let own = format!(
        "ca_file={path}/ca.pem&sentinel_cert_file={path}/client.pem\
                       &sentinel_key_file={path}/client.key"
    );
    let mut stores = Vec::new();
    for (number, settings) in (0..).zip([format!("ca_file={path}/ca.pem"), own]) {
        let store = RedisStore::builder(format!("{url}?{settings}"));
        let store = store.timeout(PATIENCE).connect_timeout(PATIENCE).connect().await.unwrap();
        granted(&store, id(number)).await;
        stores.push(store);
    }
    tokio::task::block_in_place(|| servers.failover());
    for (number, store) in (2..).zip(stores) {
        let request = claim_request();
        eventually(async || store.claim(&id(number), &request).await).await.unwrap();
    }
    std::fs::write(directory.path().join("stranger.pem"), stranger.pem()).unwrap();
    let wary = format!("{url}?ca_file={path}/ca.pem&sentinel_ca_file={path}/stranger.pem");
    let error = RedisStore::connect(wary).await.unwrap_err();
    assert!(reason(&error).contains("certificate"), "{}", reason(&error));
}

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

#[tokio::test]
async fn tls_to_a_port_that_speaks_none_is_named() {
    let server = RedisServer::start(&[]);
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let error = RedisStore::connect(url).await.unwrap_err();
    assert!(reason(&error).contains("write redis:// instead of rediss://"), "{}", reason(&error));
}
