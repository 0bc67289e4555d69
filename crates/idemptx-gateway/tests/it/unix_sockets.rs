//! Unix sockets on both sides of a gateway, and for its operators.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use idemptx_testkit::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::support::command::run;
use crate::support::gateway_process::GatewayProcess;
use crate::support::hyper_service::HyperService;
use crate::support::in_process::{PATIENCE, Reply, post};

/// A folder for sockets, with a configuration of a gateway between two of them.
struct Sockets {
    folder: tempfile::TempDir,
}

impl Sockets {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a configuration with these lines in its listener, its upstream and its route.
    fn text(&self, listener: &str, upstream: &str, route: &str) -> String {
        let (front, back) = (self.path("front.sock"), self.path("back.sock"));
        let (front, back) = (front.display(), back.display());
        format!(
            "[[listener]]\naddress = 'unix:{front}'\n{listener}\n\
             [[upstream]]\nname = 'up'\nurls = ['unix:{back}']\n{upstream}\n\
             [[route]]\nupstream = 'up'\n{route}\n\
             [store]\nurl = 'memory:'\n[log]\naccess = true\n"
        )
    }

    fn start(&self, text: &str) -> GatewayProcess {
        let file = self.path("gateway.toml");
        std::fs::write(&file, text).unwrap();
        GatewayProcess::serve(&["--config", file.to_str().unwrap()])
    }
}

#[tokio::test]
async fn requests_go_from_one_socket_to_another_in_either_version() {
    for (line, is_http2) in [("", false), ("http2 = true", true)] {
        let sockets = Sockets::new();
        let upstream = HyperService::mirror_at(&sockets.path("back.sock"));
        let gateway = sockets.start(&sockets.text("", line, ""));
        let first = send(&sockets.path("front.sock"), is_http2, post("k", "tea")).await;
        assert_eq!(first.status, StatusCode::CREATED, "{first:?}");
        let text = first.text();
        // The client's own, and nothing that claims to be an address.
        let host =
            if is_http2 { "POST http://shop.example/orders\n" } else { "host: shop.example\n" };
        assert!(text.contains(host), "{text}");
        assert!(!text.contains("x-forwarded-for"), "{text}");
        assert!(
            text.contains("forwarded: for=unknown;proto=http;host=\"shop.example\"\n"),
            "{text}"
        );
        let again = send(&sockets.path("front.sock"), is_http2, post("k", "tea")).await;
        assert!(again.is_replay());
        assert_eq!((again.body, upstream.requests()), (first.body, 1));
        let log = gateway.logs("outcome=replayed").await;
        let address = format!("address=unix:{}", sockets.path("back.sock").display());
        assert!(log.contains("client=unix: ") && log.contains(&address), "{log}");
    }
}

#[tokio::test]
async fn an_upstream_at_a_socket_is_named_as_the_configuration_says() {
    for (lines, name) in [
        ("host = 'upstream'", "localhost"),
        ("host = 'upstream'\nauthority = 'shop:81'", "shop:81"),
        ("host = 'upstream'\nauthority = 'shop:81'\nhttp2 = true", "shop:81"),
    ] {
        let sockets = Sockets::new();
        let upstream = HyperService::mirror_at(&sockets.path("back.sock"));
        let check = "health = { path = '/healthz', interval_ms = 20 }";
        let gateway = sockets.start(&sockets.text("", &format!("{lines}\n{check}"), ""));
        let reply = send(&sockets.path("front.sock"), false, post("k", "tea")).await;
        let host = match lines.contains("http2") {
            true => format!("POST http://{name}/orders\n"),
            false => format!("host: {name}\n"),
        };
        assert!(reply.text().contains(&host), "{lines}: {}", reply.text());
        // Checks get there, too.
        while upstream.requests() < 5 {
            tokio::task::yield_now().await;
        }
        assert!(!gateway.log().contains("unhealthy"), "{}", gateway.log());
    }
}

#[tokio::test]
async fn a_proxy_at_the_socket_is_believed_where_it_is_trusted() {
    for (line, expected, client) in [
        ("", None, "client=unix: "),
        ("trusted_proxies = ['10.0.0.0/8']", None, "client=unix: "),
        ("trusted_proxies = ['unix:']", Some("7.7.7.7"), "client=7.7.7.7 "),
        ("forwarded = 'append'", Some("7.7.7.7"), "client=unix: "),
    ] {
        let sockets = Sockets::new();
        let _upstream = HyperService::mirror_at(&sockets.path("back.sock"));
        let gateway = sockets.start(&sockets.text(line, "", "protect = false"));
        let request = Request::get("/").header("x-forwarded-for", "7.7.7.7");
        let request = request.body(Full::default()).unwrap();
        let reply = send(&sockets.path("front.sock"), false, request).await;
        let line = reply.text().lines().find_map(|it| it.strip_prefix("x-forwarded-for: "));
        assert_eq!(line, expected, "{}", reply.text());
        gateway.logs(client).await;
    }
}

#[tokio::test]
async fn a_load_balancer_at_the_socket_says_for_whom_it_connects() {
    let sockets = Sockets::new();
    let _upstream = HyperService::mirror_at(&sockets.path("back.sock"));
    let lines = "proxy_protocol = true\ntrusted_proxies = ['unix:']";
    let text = sockets.text(lines, "", "protect = false");
    let _gateway = sockets.start(&format!("{text}[limits]\nconnections_per_ip_max = 1\n"));
    let ask = async || {
        let mut stream = UnixStream::connect(sockets.path("front.sock")).await.unwrap();
        let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\x0A\0\0\x07\x0A\0\0\x01\x01\x02\x03\x04";
        stream.write_all(header).await.unwrap();
        // A connection beyond the limit may be closed before it is written to.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        stream
    };
    let mut first = ask().await;
    let mut text = String::new();
    while !text.contains("x-forwarded-for: 10.0.0.7\n") {
        let mut bytes = [0; 1024];
        let read = timeout(PATIENCE, first.read(&mut bytes)).await.unwrap().unwrap();
        assert_ne!(read, 0, "{text}");
        text += &String::from_utf8_lossy(&bytes[..read]);
    }
    // That client has its one connection.
    let mut text = String::new();
    let _ = timeout(PATIENCE, ask().await.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "");
}

#[tokio::test]
async fn a_socket_is_there_while_its_gateway_is_and_no_longer() {
    let sockets = Sockets::new();
    let _upstream = HyperService::mirror_at(&sockets.path("back.sock"));
    let (front, admin) = (sockets.path("front.sock"), sockets.path("admin.sock"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let text = sockets.text("socket_mode = '666'", "", "protect = false")
        + &format!("[admin]\naddress = 'unix:{}'\n", admin.display());
    let mut gateway = sockets.start(&text);
    assert_eq!((mode(&front), mode(&admin)), (0o666, 0o660));
    let get = |path: &str| Request::get(path).body(Full::default()).unwrap();
    assert_eq!(send(&admin, false, get("/metrics")).await.status, StatusCode::OK);
    assert_eq!(send(&front, false, get("/")).await.status, StatusCode::CREATED);
    // Another one cannot take it away, and is not the end of it.
    let file = sockets.path("gateway.toml");
    let second = run(&["serve", "--config", file.to_str().unwrap()]).await;
    assert_eq!(second.code, 2);
    let told = format!("cannot listen on unix:{}: another process listens there", front.display());
    assert!(second.stderr.contains(&told), "{}", second.stderr);
    assert_eq!(send(&front, false, get("/")).await.status, StatusCode::CREATED);
    // One that was killed leaves its files behind, which its successor replaces.
    gateway.kill();
    assert!(front.exists() && admin.exists());
    let mut gateway = sockets.start(&text);
    assert_eq!(send(&front, false, get("/")).await.status, StatusCode::CREATED);
    gateway.signal(Signal::TERM);
    assert!(gateway.exited().await.success());
    assert!(!front.exists() && !admin.exists());
}

#[tokio::test]
async fn a_supervisor_keeps_a_socket_over_a_rolling_restart() {
    let sockets = Sockets::new();
    let _upstream = HyperService::mirror_at(&sockets.path("back.sock"));
    let front = sockets.path("front.sock");
    let socket = std::os::unix::net::UnixListener::bind(&front).unwrap();
    let text = sockets.text("inherit = true", "", "protect = false");
    let start = || GatewayProcess::inheriting(OwnedFd::from(socket.try_clone().unwrap()), &text);
    let get = || Request::get("/").body(Full::default()).unwrap();
    let mut old = start();
    assert_eq!(send(&front, false, get()).await.status, StatusCode::CREATED);
    let new = start();
    old.signal(Signal::TERM);
    assert!(old.exited().await.success());
    assert_eq!(send(&front, false, get()).await.status, StatusCode::CREATED);
    new.logs("client=unix: ").await;
}

#[tokio::test]
async fn flags_take_sockets_and_a_check_says_what_is_wrong_with_them() {
    let sockets = Sockets::new();
    let _upstream = HyperService::mirror_at(&sockets.path("back.sock"));
    let (front, back) = (sockets.path("front.sock"), sockets.path("back.sock"));
    let url = |path: &Path| format!("unix:{}", path.display());
    let (listen, upstream) = (url(&front), url(&back));
    let flags = ["--listen", &listen, "--upstream", &upstream, "--store", "memory:"];
    let gateway = GatewayProcess::serve(&flags);
    assert!(send(&front, false, post("k", "tea")).await.status.is_success());
    let checked = run(&[&["check"][..], &flags].concat()).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    for line in [format!("listener: {listen}"), format!("upstream upstream: {upstream}")] {
        assert!(checked.stdout.lines().any(|it| it == line), "{}", checked.stdout);
    }
    drop(gateway);
    let nowhere = url(&sockets.path("none/a.sock"));
    std::fs::write(sockets.path("file"), "").unwrap();
    let file = url(&sockets.path("file"));
    for (address, word) in
        [(&nowhere, "there is no folder"), (&file, "there is a file that is no socket")]
    {
        let flags = ["--listen", address, "--upstream", &upstream, "--store", "memory:"];
        let checked = run(&[&["check"][..], &flags].concat()).await;
        assert_eq!(checked.code, 1, "{checked:?}");
        assert!(checked.stdout.contains(&format!("{address}: {word}")), "{}", checked.stdout);
    }
    for (arguments, word) in [
        (["--listen", "8080"], "write an address as `127.0.0.1:8080`"),
        (["--listen", "unix:"], "after `unix:` write the path"),
        (["--admin", "unix://run/a"], "as `unix:/run/"),
        (["--upstream", "unix:@name"], "after `unix:` write the path"),
    ] {
        let more = if arguments[0] == "--upstream" { &[][..] } else { &["--upstream", &upstream] };
        let ended = run(&[&["check"][..], &arguments, more].concat()).await;
        assert!(ended.code == 2 && ended.stderr.contains(word), "{arguments:?}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_service_that_does_not_listen_at_its_socket_is_unreachable_and_named() {
    let sockets = Sockets::new();
    let gateway = sockets.start(&sockets.text("", "", ""));
    let reply = send(&sockets.path("front.sock"), false, post("k", "tea")).await;
    reply.refused(502, "upstream-unreachable");
    gateway.logs(&format!("not sent: unix:{}: ", sockets.path("back.sock").display())).await;
}

/// Sends a request over a new connection to a socket.
async fn send(path: &Path, is_http2: bool, request: Request<Full<Bytes>>) -> Reply {
    let io = TokioIo::new(UnixStream::connect(path).await.unwrap());
    let (mut parts, body) = request.into_parts();
    let sent = async {
        if is_http2 {
            parts.uri = format!("http://shop.example{}", parts.uri).parse().unwrap();
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            return sender.send_request(Request::from_parts(parts, body)).await;
        }
        let host = if parts.uri.path() == "/metrics" { "localhost" } else { "shop.example" };
        parts.headers.insert("host", host.parse().unwrap());
        let (mut sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        sender.send_request(Request::from_parts(parts, body)).await
    };
    Reply::of(timeout(PATIENCE, sent).await.expect("in time").unwrap()).await
}
