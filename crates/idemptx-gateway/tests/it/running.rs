//! Starting, reloading, ending, and dying.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{Request, Response};
use http_body_util::Full;
use idemptx_testkit::{RedisServer, Signal};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::support::command::run;
use crate::support::gateway_process::{GatewayProcess, PATIENT, PATIENT_JSON};
use crate::support::hyper_service::{HyperService, full};
use crate::support::in_process::{
    PATIENCE, config, in_front_of, post, send, simple, started, try_send,
};
use crate::support::raw_upstream::rest;

/// Writes a configuration to a temporary file.
fn file(text: &str) -> tempfile::TempPath {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file.into_temp_path()
}

#[tokio::test]
async fn what_cannot_be_meant_ends_with_status_2_and_a_word() {
    let mistaken = file("[[listener]]\naddress = \"127.0.0.1:0\"\ncolour = 1\n");
    let mistaken = mistaken.to_str().unwrap();
    let place = format!("{mistaken}:3:1: unknown field `colour`");
    let up = ["--upstream", "http://127.0.0.1:9"];
    let cases: [(&[&str], &str); 16] = [
        (&["serve"], "<--config <FILE>|--upstream <URL>>"),
        (&["check"], "<--config <FILE>|--upstream <URL>>"),
        (&["serve", "--colour", "red"], "--colour"),
        (&["serve", "--upstream", "ftp://a"], "write `http://host:port`"),
        (&["serve", up[0], up[1], "--listen", "nonsense"], "--listen"),
        (&["serve", up[0], up[1], "--store", "ftp://a"], "no such store"),
        (&["serve", up[0], up[1], "--store", "sqlite"], "no such store"),
        (&["serve", up[0], up[1], "--store", "keys.db"], "did you mean `sqlite:keys.db`?"),
        (
            &["serve", up[0], up[1], "--store", "redis://h?timeout_ms=0"],
            "the setting `timeout_ms` of the store's URL must be a number of milliseconds from 1",
        ),
        (&["serve", up[0], up[1], "--store", "redis://${IDEMPTX_NOT_SET}/"], "`IDEMPTX_NOT_SET`"),
        (&["serve", up[0], up[1], "--profile", "none"], "`draft`"),
        (&["serve", up[0], up[1], "--policy", "[]"], "give one JSON object"),
        (&["serve", up[0], up[1], "--policy", "{\"wait\":1}"], "did you mean `wait_ms`?"),
        (&["serve", "--config", "/nowhere.toml"], "/nowhere.toml: cannot be read"),
        (&["serve", "--config", mistaken], &place),
        (&["check", "--config", mistaken], &place),
    ];
    for (arguments, word) in cases {
        let ended = run(arguments).await;
        let said = ended.stderr;
        assert_eq!(ended.code, 2, "{arguments:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(word), "{arguments:?}: {said}");
        assert!(ended.stdout.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn what_will_hardly_do_what_it_is_meant_to_is_said() {
    let text = "[[listener]]\naddress = '127.0.0.1:0'\n\
        [[upstream]]\nname = 'up'\nurls = ['http://127.0.0.1:9']\n\
        [[route]]\nname = 'puts'\nmethods = ['PUT', 'GET']\nupstream = 'up'\n\
        [[route]]\nname = 'both'\nmethods = ['PUT', 'POST']\nhost = 'b'\nupstream = 'up'\n\
        [[route]]\nname = 'reads'\nmethods = ['GET', 'HEAD']\nhost = 'b'\nupstream = 'up'\n\
        [[route]]\nname = 'put'\nmethods = ['PUT']\nhost = 'b'\nupstream = 'up'\n\
        policy = { methods = ['PUT'] }\n\
        [[route]]\nname = 'odd'\npath = '/a/*//%2e%2e/**'\nupstream = 'up'\n\
        [[route]]\nname = 'all'\nupstream = 'up'\n\
        [[route]]\nname = 'payments'\npath = '/payments/**'\nupstream = 'up'\n\
        policy = { scope = { mtls = 'subject' } }\n\
        [[route]]\nname = 'tokens'\nhost = 'a'\nupstream = 'up'\n\
        policy = { scope = { jwt = 'sub', secret = 'sixteen letters!' } }\n";
    let said = run(&["check", "--config", file(text).to_str().unwrap()]).await.stdout;
    for warning in [
        "Warning: there is no [store]: records are kept in memory",
        "Warning: route puts protects nothing: it is for PUT, GET, and its policy covers POST, PATCH",
        "Warning: route odd is never reached: /a/x//../x is a path that `strict_paths` refuses",
        "Warning: route payments is never reached: all stands before it",
        "Warning: route payments takes the scope from clients' certificates, for which no listener",
        "Warning: route tokens is never reached: all stands before it",
        "Warning: route tokens verifies tokens with a secret of 16 bytes, fewer than",
    ] {
        assert!(said.contains(warning), "{warning}\n{said}");
    }
    assert_eq!(said.matches("protects nothing").count(), 1, "{said}");
    let twice = "[[listener]]\naddress = '127.0.0.1:8080'\n".repeat(2);
    let short = text.replace("sixteen letters!", "abc");
    for (text, error) in [
        (
            text.replace("[[listener]]\naddress = '127.0.0.1:0'\n", &twice),
            "another listener has the",
        ),
        (short, "`secret`: 3 bytes can be guessed"),
    ] {
        let ended = run(&["check", "--config", file(&text).to_str().unwrap()]).await;
        assert_eq!(ended.code, 2, "{ended:?}");
        assert!(ended.stderr.contains(error), "{error}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_check_prints_what_is_in_force() {
    let upstream = HyperService::mirror().await;
    let text = simple(upstream.address, "[route.policy]\nwait_ms = 5");
    let checked = run(&["check", "--config", file(&text).to_str().unwrap()]).await;
    assert_eq!(checked.code, 0, "{checked:?}");
    let printed = checked.stdout;
    for line in [
        "listener: http://127.0.0.1:0",
        &format!("upstream up: http://{}", upstream.address),
        "route /**: to up, under draft",
        "* wait_ms = 5  (not 0)",
        "  retain_ms = 86400000",
        "* on_large_body = \"stream\"  (not \"reject\")",
        "  on_ambiguous = \"unknown\"",
    ] {
        assert!(printed.lines().any(|it| it == line), "{line}\n{printed}");
    }
    assert!(printed.contains("  store: memory: "), "{printed}");
    let away = text.replace("memory:", "redis://127.0.0.1:1/");
    let checked = run(&["check", "--config", file(&away).to_str().unwrap()]).await;
    assert_eq!(checked.code, 1);
    assert!(checked.stdout.contains("store: the store cannot be reached"));
}

#[tokio::test]
async fn the_demo_holds_what_it_claims() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}/demo.db", folder.path().display());
    let shown = run(&["demo", "--scene-only", "--listen", "127.0.0.1:0", "--store", &store]).await;
    assert_eq!(shown.code, 0, "{shown:?}");
    let printed = shown.stdout;
    assert_eq!(printed.matches("   ok ").count(), 6, "{printed}");
}

#[tokio::test]
async fn a_hang_up_reloads_and_a_mistake_keeps_the_former_configuration() {
    let upstream = HyperService::mirror().await;
    let path = file(&simple(upstream.address, ""));
    let gateway = GatewayProcess::serve(&["--config", path.to_str().unwrap()]);
    assert_eq!(send(gateway.address(), post("k", "tea")).await.status, 201);
    let unkeyed = || Request::post("/").body(Full::default()).unwrap();
    assert_eq!(send(gateway.address(), unkeyed()).await.status, 201);

    std::fs::write(&path, simple(upstream.address, "[route.policy]\nrequired = true")).unwrap();
    gateway.signal(Signal::HUP);
    gateway.logs("reloaded").await;
    send(gateway.address(), unkeyed()).await.refused(400, "missing-key");
    // The store is the same one: what was done stays done.
    assert!(send(gateway.address(), post("k", "tea")).await.is_replay());

    std::fs::write(&path, simple(upstream.address, "colour = \"red\"")).unwrap();
    gateway.signal(Signal::HUP);
    gateway.logs("the previous configuration stays in force").await;
    gateway.logs("unknown field `colour`").await;
    send(gateway.address(), unkeyed()).await.refused(400, "missing-key");
}

#[tokio::test]
async fn reloads_under_load_lose_no_request_and_repeat_none() {
    let upstream = HyperService::start(|number, _| async move {
        Response::builder().status(201).body(full(number.to_string())).unwrap()
    })
    .await;
    let gateway = in_front_of(upstream.address, "").await;
    let texts = [config(&simple(upstream.address, "")), {
        let text = simple(upstream.address, "[route.policy]\nretain_ms = 60000");
        config(&text.replace("response_timeout_ms = 15000", "response_timeout_ms = 14000"))
    }];
    let (address, over) = (gateway.address, Arc::new(AtomicBool::new(false)));
    let done = Arc::new(AtomicUsize::new(0));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (over, done) = (Arc::clone(&over), Arc::clone(&done));
            tokio::spawn(async move {
                let mut keys = 0;
                while !over.load(Ordering::SeqCst) {
                    let key = format!("{client}-{keys}");
                    let first = send(address, post(&key, "tea")).await;
                    assert_eq!(first.status, 201, "{first:?}");
                    let again = send(address, post(&key, "tea")).await;
                    assert!(again.is_replay() && again.body == first.body, "{again:?}");
                    keys += 1;
                    done.fetch_add(1, Ordering::SeqCst);
                }
                keys
            })
        })
        .collect();
    for reload in 0..40 {
        let seen = done.load(Ordering::SeqCst);
        while done.load(Ordering::SeqCst) < seen + 3 {
            tokio::task::yield_now().await;
        }
        gateway.gateway.reload(&texts[reload % 2]).await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    let mut keys = 0;
    for client in clients {
        keys += client.await.unwrap();
    }
    assert_eq!(upstream.requests(), keys);
}

#[tokio::test]
async fn what_only_a_new_start_can_change_is_refused_by_a_reload() {
    let upstream = HyperService::mirror().await;
    let gateway = in_front_of(upstream.address, "").await;
    let text = simple(upstream.address, "");
    for (changed, what) in [
        (text.replace("memory:", "sqlite:other.db"), "[store]"),
        (text.replace("address = \"127.0.0.1:0\"", "address = \"127.0.0.1:1\""), "[[listener]]"),
    ] {
        let refused = gateway.gateway.reload(&config(&changed)).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            format!("{what} has changed: restart the gateway to apply it")
        );
    }
}

/// Starts an upstream that notifies when a request begins, and answers once it is allowed to.
async fn slow() -> (HyperService, Arc<Notify>, Arc<Notify>) {
    let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes_on) = (Arc::clone(&begun), Arc::clone(&go_on));
    let upstream = HyperService::start(move |number, _| {
        let (begins, goes_on) = (Arc::clone(&begins), Arc::clone(&goes_on));
        async move {
            begins.notify_one();
            goes_on.notified().await;
            Response::new(full(format!("run {number}")))
        }
    })
    .await;
    (upstream, begun, go_on)
}

#[tokio::test]
async fn a_terminated_gateway_finishes_what_runs_and_accepts_no_more() {
    let redis = RedisServer::start(&[]);
    for client_stays in [true, false] {
        let (upstream, begun, go_on) = slow().await;
        let up = format!("http://{}", upstream.address);
        let url = redis.patient_url();
        // The host has another port at each gateway.
        let policy = format!("{{\"scope\":\"shared\",{PATIENT_JSON}}}");
        let flags =
            ["--listen", "127.0.0.1:0", "--upstream", &up, "--store", &url, "--policy", &policy];
        let mut gateway = GatewayProcess::serve(&flags);
        let key = format!("stays-{client_stays}");
        let first = tokio::spawn(try_send(gateway.address(), post(&key, "tea")));
        timeout(PATIENCE, begun.notified()).await.unwrap();
        gateway.signal(Signal::TERM);
        let refused = async {
            while TcpStream::connect(gateway.address()).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, refused).await.unwrap();
        if client_stays {
            go_on.notify_one();
            assert_eq!(first.await.unwrap().unwrap().text(), "run 1");
        } else {
            first.abort();
            go_on.notify_one();
        }
        assert_eq!(gateway.exited().await.code(), Some(0));
        let successor = GatewayProcess::serve(&flags);
        let replay = send(successor.address(), post(&key, "tea")).await;
        assert!(replay.is_replay() && replay.text() == "run 1", "{replay:?}");
        assert_eq!(upstream.requests(), 1);
    }
}

#[tokio::test]
async fn what_a_killed_gateway_was_doing_is_dealt_with_by_policy() {
    let redis = RedisServer::start(&[]);
    let url = redis.patient_url();
    for (key, fate) in [("reexecute", "run 2"), ("quarantine", "outcome-unknown")] {
        let (upstream, begun, go_on) = slow().await;
        let up = format!("http://{}", upstream.address);
        let policy = format!(
            "{{\"on_orphan\":\"{key}\",\"lease_ms\":300,\"scope\":\"shared\",{PATIENT_JSON}}}"
        );
        let flags =
            ["--listen", "127.0.0.1:0", "--upstream", &up, "--store", &url, "--policy", &policy];
        let (mut gateway, successor) =
            (GatewayProcess::serve(&flags), GatewayProcess::serve(&flags));
        let lost = tokio::spawn(try_send(gateway.address(), post(key, "tea")));
        timeout(PATIENCE, begun.notified()).await.unwrap();
        gateway.signal(Signal::KILL);
        gateway.exited().await;
        assert!(lost.await.unwrap().is_err());
        go_on.notify_one();
        // Until the lease lapses it counts as running.
        let again = async {
            loop {
                let answer = send(successor.address(), post(key, "tea")).await;
                match answer.status.as_u16() {
                    409 if answer.code() == "in-progress" => tokio::task::yield_now().await,
                    _ => return answer,
                }
            }
        };
        go_on.notify_one();
        let answer = timeout(PATIENCE, again).await.unwrap();
        if fate == "run 2" {
            assert_eq!(answer.text(), fate);
        } else {
            answer.refused(409, fate);
        }
    }
}

#[tokio::test]
async fn two_gateways_on_one_redis_execute_each_key_once() {
    let redis = RedisServer::start(&[]);
    let upstream = HyperService::start(|number, _| async move {
        tokio::task::yield_now().await;
        Response::builder().status(201).body(full(number.to_string())).unwrap()
    })
    .await;
    let (up, url) = (format!("http://{}", upstream.address), redis.patient_url());
    let policy =
        format!("{{\"wait_ms\":20000,\"waiters_max\":100,\"scope\":\"shared\",{PATIENT_JSON}}}");
    let flags =
        ["--listen", "127.0.0.1:0", "--upstream", &up, "--store", &url, "--policy", &policy];
    let (one, other) = (GatewayProcess::serve(&flags), GatewayProcess::serve(&flags));
    let keys = 40;
    let mut sent = Vec::new();
    for key in 0..keys {
        for client in 0..4 {
            let address = if client % 2 == 0 { one.address() } else { other.address() };
            let key = format!("k{key}");
            sent.push(tokio::spawn(async move {
                let answer = send(address, post(&key, "tea")).await;
                assert_eq!(answer.status, 201, "{answer:?}");
                (key, answer.text().to_owned())
            }));
        }
    }
    let mut answers = std::collections::HashMap::new();
    for one in sent {
        let (key, text) = one.await.unwrap();
        let first = answers.entry(key.clone()).or_insert_with(|| text.clone());
        assert_eq!(*first, text, "{key}");
    }
    assert_eq!((upstream.requests(), answers.len()), (keys, keys));
}

#[tokio::test]
async fn a_request_that_began_before_a_reload_ends_as_it_began() {
    let (upstream, begun, go_on) = slow().await;
    let gateway = in_front_of(upstream.address, "").await;
    let running = tokio::spawn(send(gateway.address, post("running", "tea")));
    timeout(PATIENCE, begun.notified()).await.unwrap();
    let mut uploading = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k\r\nContent-Length: 3\r\n\
                Expect: 100-continue\r\n\r\n";
    uploading.write_all(head.as_bytes()).await.unwrap();
    let begins = rest(&mut uploading).await;
    assert!(begins.text.starts_with("HTTP/1.1 100 Continue"), "{begins:?}");

    let required = simple(upstream.address, "[route.policy]\nrequired = true");
    gateway.gateway.reload(&config(&required)).await.unwrap();
    uploading.write_all(b"tea").await.unwrap();
    timeout(PATIENCE, begun.notified()).await.unwrap();
    go_on.notify_one();
    go_on.notify_one();
    assert_eq!(running.await.unwrap().status, 200);
    let both = async {
        loop {
            go_on.notify_one();
            let said = rest(&mut uploading).await;
            if !said.text.is_empty() {
                return said;
            }
        }
    };
    assert_eq!(timeout(PATIENCE, both).await.unwrap().statuses(), [200]);
}

#[tokio::test]
async fn one_route_that_refuses_the_store_leaves_the_others_alone() {
    let redis = RedisServer::start(&["maxmemory 100mb", "maxmemory-policy allkeys-lru"]);
    let upstream = HyperService::mirror().await;
    let routes = "path = \"/payments\"\nprofile = \"payments\"\npolicy = { scope = \"shared\" }\n\
                  [[route]]\nupstream = \"up\"\n[route.policy]\n";
    let text = simple(upstream.address, &format!("{routes}{PATIENT}"));
    let text = text.replace("memory:", &redis.patient_url());
    let gateway = started(&text).await;
    let payment = Request::post("/payments").header("idempotency-key", "k");
    let payment = payment.body(Full::default()).unwrap();
    send(gateway.address, payment).await.refused(503, "store-unavailable");
    assert_eq!(send(gateway.address, post("k", "tea")).await.status, 201);
    assert_eq!(upstream.requests(), 1);
}

#[tokio::test]
async fn what_is_kept_at_hand_and_sealed_is_replayed_without_the_store() {
    let mut redis = RedisServer::start(&[]);
    let upstream = HyperService::mirror().await;
    let key = "4f6c64206b6579732073746179207468657265207768696c65206e6565646564";
    let store = format!("{}\"\nnear_bytes = 100000\nnear_hold_ms = 60000", redis.url());
    let store = format!("{store}\nseal = {{ keys = \"1:{key}\" }}\n# \"");
    let gateway = started(&simple(upstream.address, "").replace("memory:", &store)).await;
    let first = send(gateway.address, post("k", "secret tea")).await;
    assert_eq!(first.status, 201);
    let kept: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut redis.connection()).unwrap();
    for key in kept {
        let value: Vec<u8> = redis::cmd("GET").arg(&key).query(&mut redis.connection()).unwrap();
        assert!(!String::from_utf8_lossy(&value).contains("secret tea"), "{key} is readable");
    }
    redis.kill();
    let again = send(gateway.address, post("k", "secret tea")).await;
    assert!(again.is_replay() && again.body == first.body, "{again:?}");
    send(gateway.address, post("new", "tea")).await.refused(503, "store-unavailable");
}
