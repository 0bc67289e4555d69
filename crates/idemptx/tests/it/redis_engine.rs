//! Engines of several processes on one Redis.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use idemptx::store::Finding;
use idemptx::store::redis::RedisStore;
use idemptx::{Engine, Policy, PolicyBuilder};
use idemptx_core::policy::ScopeRule;
use idemptx_core::secret::Secret;
use idemptx_testkit::RedisServer;
use tokio::task::JoinHandle;

use crate::support::app::{App, engine};
use crate::support::http_client::Reply;

#[tokio::test]
async fn a_shared_store_without_a_secret_is_warned_about() {
    let server = RedisServer::start(&["appendonly yes"]);
    let report = async |policy: Policy| {
        let store = RedisStore::connect(server.url()).await.unwrap();
        let engine = Engine::builder(store).policy(policy).build().unwrap();
        engine.check().await.unwrap().findings
    };
    let warns = |findings: &[Finding]| findings.iter().any(|it| it.text.contains("`secrets`"));
    assert!(warns(&report(Policy::draft()).await));
    let secret = Secret::new(1, b"sixteen bytes or more").unwrap();
    let keyed = Policy::draft().into_builder().secrets([secret]).build().unwrap();
    assert!(!warns(&report(keyed).await));
}

/// A user who could claim and not settle would have every operation run again.
#[tokio::test]
async fn rights_that_a_user_lacks_to_end_its_claims_are_named() {
    let server = RedisServer::start(&["appendonly yes"]);
    let report = async |lacking: &str| {
        let mut user = redis::cmd("ACL");
        user.arg("SETUSER").arg("app").arg(&["reset", "on", ">secret"]);
        user.arg(LEAST_RIGHTS.split(' ').chain(lacking.split_whitespace()).collect::<Vec<_>>());
        user.exec(&mut server.connection()).unwrap();
        let url = server.url().replace("://", "://app:secret@");
        RedisStore::connect(url).await.unwrap().check().await.unwrap()
    };
    let whole = report("").await;
    assert!(!whole.is_unsafe(), "{whole:?}");
    for (lacking, says) in [
        ("-evalsha", "'evalsha'"),
        ("-eval", "'eval'"),
        ("-getrange -del", "+getrange +del"),
        ("-get -pexpire", "+get +pexpire"),
        ("resetkeys ~other:*", "keys"),
    ] {
        let report = report(lacking).await;
        assert!(report.is_fatal(), "{lacking}: {report:?}");
        let text = &report.findings[0].text;
        assert!(text.contains("no result is kept") && text.contains(says), "{lacking}: {text}");
    }
    let keys = redis::cmd("DBSIZE");
    assert_eq!(keys.query::<u64>(&mut server.connection()).unwrap(), 0);
}

/// After the first check the engine asks again by itself.
#[tokio::test]
async fn a_policy_that_demands_more_than_the_store_promises_refuses_from_then_on_until_it_does() {
    let server = RedisServer::start(&["appendonly yes", "appendfsync always"]);
    let often = |policy: Policy| {
        let policy = policy.into_builder().scope(ScopeRule::Shared);
        patient(policy).store_check(Duration::from_millis(100)).build().unwrap()
    };
    let store = RedisStore::connect(server.patient_url()).await.unwrap();
    let payments = Engine::builder(store).policy(often(Policy::payments())).build().unwrap();
    let draft = payments.with_policy(often(Policy::draft())).unwrap();
    assert!(payments.store_report().is_none());
    payments.check().await.unwrap();
    let number = AtomicU32::new(0);
    let is_taken = async |engine: &Engine<RedisStore>| {
        let key = format!("key-{}", number.fetch_add(1, Ordering::Relaxed));
        let run =
            engine.run(&key, b"order", async |_| Ok::<_, Infallible>("done".to_owned())).await;
        run.is_ok()
    };
    assert!(is_taken(&payments).await);
    for round in 0..2 {
        server.configure("maxmemory-policy", "allkeys-lru");
        until_async(async || !is_taken(&payments).await).await;
        assert!(is_taken(&draft).await, "a policy that only warns goes on");
        let report = payments.store_report().unwrap();
        assert!(report.is_unsafe() && report.guarantee.contains("allkeys-lru"), "{report:?}");
        server.configure("maxmemory-policy", "noeviction");
        until_async(async || is_taken(&payments).await).await;
        assert!(!draft.store_report().unwrap().is_unsafe(), "round {round}");
    }
}

#[tokio::test]
async fn a_duplicate_in_another_process_waits_and_is_woken() {
    let server = RedisServer::start(&[]);
    let [owner, other] = processes(&server, patient).await;
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let waiter = other.client("k");
    // It is subscribed, and has seen the claim since.
    until(|| server.calls("subscribe") > 0).await;
    owner.gate.open();
    first.await.unwrap().answered(200, "run 1");
    let retry = waiter.await.unwrap();
    retry.answered(200, "run 1");
    assert!(retry.is_replay());
    assert_eq!(other.runs.began(), 0);
}

#[tokio::test]
async fn a_duplicate_takes_over_what_another_process_gave_up() {
    let server = RedisServer::start(&[]);
    let [owner, other] = processes(&server, patient).await;
    owner.runs.answer_with(503);
    other.gate.open();
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let waiters: Vec<_> = (0..10).map(|_| other.client("k")).collect();
    until(|| server.calls("subscribe") > 0).await;
    owner.gate.open();
    first.await.unwrap().answered(503, "run 1");
    for waiter in waiters {
        waiter.await.unwrap().answered(200, "run 1");
    }
    assert_eq!((owner.runs.began(), other.runs.began()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_requests_for_each_of_many_keys_are_one_execution_each() {
    let server = RedisServer::start(&["appendfsync no"]);
    let apps = processes(&server, patient).await;
    apps.iter().for_each(|app| app.gate.open());
    let mut clients: Vec<JoinHandle<_>> = Vec::new();
    for key in 0..KEYS {
        for copy in 0..10 {
            clients.push(apps[copy % 2].client(&format!("key-{key}")));
        }
    }
    for client in clients {
        assert_eq!(client.await.unwrap().status, 200);
    }
    assert_eq!(apps[0].runs.began() + apps[1].runs.began(), KEYS);
}

#[tokio::test]
async fn new_keys_that_a_full_server_refuses_leave_no_work() {
    let server = RedisServer::start(&["maxmemory-policy noeviction"]);
    let [app, _] = processes(&server, |policy| policy).await;
    app.gate.open();
    app.post("warm").await;
    server.configure("maxmemory", "1");
    let scripts = || server.calls("evalsha") + server.calls("eval");
    let refuse = async |key: String| {
        let reply = app.post(&key).await;
        reply.refused(503, "store-unavailable");
        assert_eq!(reply.header("retry-after"), Some("5"));
    };
    // The first call of a script is sent twice.
    refuse("first".to_owned()).await;
    let before = scripts();
    for key in 0..20 {
        refuse(format!("key-{key}")).await;
    }
    assert!(app.post("warm").await.is_replay());
    // A release would follow its claim at once.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scripts(), before + 21);
    assert_eq!(app.runs.began(), 1);
}

#[tokio::test]
async fn a_hit_is_one_command_and_a_new_key_is_two() {
    let server = RedisServer::start(&[]);
    let [app, _] = processes(&server, |policy| policy).await;
    app.gate.open();
    app.post("warm").await;
    let before = commands(&server);
    for _ in 0..10 {
        assert!(app.post("warm").await.is_replay());
    }
    let hits = commands(&server);
    assert_eq!([hits[0] - before[0], hits[1] - before[1]], [10, 0]);
    for number in 0..10 {
        assert!(!app.post(&format!("new-{number}")).await.is_replay());
    }
    let new = commands(&server);
    // The script's own SET is counted among them.
    assert_eq!([new[0] - hits[0], new[1] - hits[1]], [20, 10]);
    assert_eq!(new[2], before[2], "nothing else was asked");
}

#[tokio::test]
async fn two_hundred_who_wait_for_another_process_ask_redis_as_one() {
    let server = RedisServer::start(&[]);
    let [owner, other] = processes(&server, patient).await;
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let waiters: Vec<_> = (0..200).map(|_| other.client("k")).collect();
    until(|| server.calls("subscribe") > 1).await;
    owner.gate.open();
    first.await.unwrap().answered(200, "run 1");
    for waiter in waiters {
        assert!(waiter.await.unwrap().is_replay());
    }
    assert_eq!(other.runs.began(), 0);
    let (subscribed, [_, evaluated, _]) = (server.calls("subscribe"), commands(&server));
    assert!(subscribed < 20, "subscribed {subscribed} times");
    assert!(evaluated < 50, "{evaluated} scripts");
}

#[tokio::test]
async fn a_result_survives_redis_that_was_killed_while_the_handler_ran() {
    let mut server = RedisServer::start(&[]);
    let [app, other] =
        processes(&server, |policy| policy.settle_timeout(Duration::from_millis(300))).await;
    let client = app.client("k");
    app.runs.reach(1).await;
    server.kill();
    app.gate.open();
    let reply = client.await.unwrap();
    reply.answered(200, "run 1");
    assert!(reply.is_unstored());
    server.restart();
    assert!(app.engine.drain().await);
    for app in [&app, &other] {
        let retry = retried(app).await;
        retry.answered(200, "run 1");
        assert!(retry.is_replay());
    }
    assert_eq!((app.runs.began(), other.runs.began()), (1, 0));
}

#[tokio::test]
async fn what_was_claimed_in_a_redis_that_lost_everything_is_not_a_success() {
    let server = RedisServer::start(&[]);
    let [app, _] = processes(&server, |policy| policy).await;
    let client = app.client("k");
    app.runs.reach(1).await;
    redis::cmd("FLUSHALL").exec(&mut server.connection()).unwrap();
    app.gate.open();
    client.await.unwrap().refused(409, "in-progress");
}

#[tokio::test]
async fn a_lease_lives_in_redis_while_its_handler_blocks_the_runtime() {
    let server = RedisServer::start(&[]);
    let lease = Duration::from_millis(1500);
    let [owner, _] = processes(&server, |policy| policy.lease(lease)).await;
    let first = owner.client("k");
    owner.runs.reach(1).await;
    let url = server.url();
    let rival = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let patience = Duration::from_secs(20);
            let store = RedisStore::builder(url).timeout(patience).open().unwrap();
            let rival =
                App::quick(engine(store, |policy| policy.lease(lease).claim_timeout(patience)));
            let reply = loop {
                let reply = rival.post("k").await;
                if reply.status != 409 {
                    break reply;
                }
            };
            (reply, rival.runs.began())
        })
    });
    std::thread::sleep(lease * 2);
    owner.gate.open();
    first.await.unwrap().answered(200, "run 1");
    let (reply, runs) = rival.join().unwrap();
    assert!(reply.is_replay());
    assert_eq!(runs, 0);
}

/// Retries as `Retry-After` says, and returns the last reply.
async fn retried(app: &App<RedisStore>) -> Reply {
    loop {
        let reply = app.post("k").await;
        if reply.status != 503 {
            return reply;
        }
        // A connection that failed is not tried again at once.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Two processes' engines, which share nothing but the server.
async fn processes(
    server: &RedisServer,
    change: impl Fn(PolicyBuilder) -> PolicyBuilder,
) -> [App<RedisStore>; 2] {
    let mut apps = Vec::new();
    for _ in 0..2 {
        // What is slow here is the machine, not the server.
        let store = RedisStore::builder(server.url()).timeout(Duration::from_secs(20));
        let store = store.connect().await.unwrap();
        apps.push(App::slow(engine(store, &change)));
    }
    apps.try_into().unwrap()
}

fn patient(policy: PolicyBuilder) -> PolicyBuilder {
    policy.wait(Duration::from_secs(60)).waiters_max(1000).claim_timeout(Duration::from_secs(20))
}

/// Calls of SET, of scripts by their hash, and of everything else the store may send.
fn commands(server: &RedisServer) -> [u64; 3] {
    let others = ["get", "eval", "subscribe", "time"].map(|name| server.calls(name));
    [server.calls("set"), server.calls("evalsha"), others.iter().sum()]
}

/// Polls the server until a condition holds.
async fn until(mut holds: impl FnMut() -> bool) {
    let reached = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap();
}

const KEYS: usize = 1500;

async fn until_async(mut is_so: impl AsyncFnMut() -> bool) {
    let holds = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), holds).await.expect("it never holds");
}

/// Those of the store's documentation, for one server.
const LEAST_RIGHTS: &str = "~idem:* &idem:* -@all +set +get +getrange +setrange +del +pexpire +pttl \
                            +time +eval +evalsha +publish +hello +subscribe +select +info \
                            +config|get";
