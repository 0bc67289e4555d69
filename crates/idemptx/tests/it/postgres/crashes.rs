//! Deaths and broken connections at every point of a claim and of a settlement: before the
//! statement has arrived, when half of it has, when it was carried out and its answer has not
//! arrived, and when half of that has.

use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};

use idemptx::store::postgres::PostgresStore;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::store::{Claim, ClaimRequest, RecordSnapshot, Store};
use idemptx_testkit::PostgresServer;
use idemptx_testkit::faulty_proxy::{Direction, Fault, FaultyProxy};

use super::fixture::{claim_request, done, eventually, granted, id, number, patient, started};

/// The points at which a step is interrupted: the direction, the number of bytes, and whether the
/// server has carried it out by then.
const POINTS: [(Direction, usize, bool); 4] = [
    (Direction::ToServer, 0, false),
    (Direction::ToServer, 40, false),
    (Direction::ToClient, 0, true),
    (Direction::ToClient, 20, true),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Claim,
    Settle,
}

const STEPS: [Step; 2] = [Step::Claim, Step::Settle];

/// The connection breaks after one more byte each time, until the step needs no more of them.
#[tokio::test]
async fn a_connection_that_breaks_at_any_byte_costs_no_step_and_takes_none_twice() {
    let (server, direct) = started(&[]).await;
    let proxy = FaultyProxy::to(server.port()).await;
    let store = through(&proxy).connect().await.unwrap();
    let mut key = 0;
    for step in STEPS {
        for direction in [Direction::ToServer, Direction::ToClient] {
            for bytes in (0..).step_by(STRIDE_BYTES) {
                key += 1;
                let claim_request = claim_request();
                let claim = async || granted_in_the_end(&store, key, &claim_request).await;
                if step == Step::Settle {
                    claim().await;
                }
                proxy.plan(direction, bytes, Fault::Disconnect);
                let lease = claim().await;
                let result = done(key.to_string());
                eventually(async || store.settle(&lease, &result).await).await.unwrap();
                assert_eq!(payload(&direct, key, claim_request.token).await, key.to_string());
                if !proxy.has_faulted() {
                    assert!(bytes > 100, "{step:?} {direction:?}: nothing broke");
                    break;
                }
            }
        }
    }
    assert!(key > 40, "{key}");
    assert_eq!(number(&server, "SELECT count(*) FROM idemptx.records").await, key as i64);
}

#[tokio::test]
async fn nothing_is_lost_or_half_done_when_the_client_is_killed_at_any_point() {
    if let Ok(url) = std::env::var(CLIENT_URL) {
        return obey(url).await;
    }
    let (server, direct) = started(&[]).await;
    let proxy = FaultyProxy::to(server.port()).await;
    for (key, (step, point)) in (0..).zip(every_point()) {
        let mut client = Client::start(&proxy);
        client.tell(Step::Claim, 100 + key).await;
        client.tell(Step::Settle, 100 + key).await;
        if step == Step::Settle {
            client.tell(Step::Claim, key).await;
        }
        let (direction, bytes, is_done) = point;
        proxy.plan(direction, bytes, Fault::Stall);
        client.begin(step, key);
        proxy.wait_for_fault().await;
        client.kill();
        proxy.disconnect();

        let token = client.token(key);
        assert_eq!(payload(&direct, 100 + key, client.token(100 + key)).await, "done");
        let found = direct.lookup(&id(key)).await.unwrap();
        match (step, is_done, &found) {
            (Step::Claim, false, None) => {}
            (Step::Claim, true, Some(RecordSnapshot::Held(holder)))
            | (Step::Settle, false, Some(RecordSnapshot::Held(holder))) => {
                assert!(holder.token == token && !holder.is_orphan(), "{step:?} {point:?}");
            }
            (Step::Settle, true, Some(RecordSnapshot::Settled(record))) => {
                assert!(record.token == token && record.payload == "done", "{record:?}");
            }
            _ => panic!("{step:?} {point:?}: {found:?}"),
        }
        // Nobody executes again what may have been.
        let claim = direct.claim(&id(key), &claim_request()).await.unwrap();
        assert_eq!(matches!(claim, Claim::Granted(_)), found.is_none(), "{claim:?}");
    }
}

#[tokio::test]
async fn nothing_is_lost_or_half_done_when_the_server_is_killed_at_any_point() {
    let mut server = PostgresServer::start(&[]);
    let proxy = FaultyProxy::to(server.port()).await;
    let store = through(&proxy).connect().await.unwrap();
    for (key, (step, point)) in (0..).zip(every_point()) {
        let earlier = granted(&store, id(100 + key)).await;
        store.settle(&earlier, &done("done")).await.unwrap();
        let claim_request = claim_request();
        if step == Step::Settle {
            granted_in_the_end(&store, key, &claim_request).await;
        }
        let (direction, bytes, _) = point;
        proxy.plan(direction, bytes, Fault::Stall);
        let step_taken = async {
            let lease = granted_in_the_end(&store, key, &claim_request).await;
            eventually(async || store.settle(&lease, &done("done")).await).await.unwrap();
        };
        let killed = async {
            proxy.wait_for_fault().await;
            server.kill();
            proxy.disconnect();
            server.restart();
        };
        tokio::join!(step_taken, killed);
        for (key, token) in [(key, claim_request.token), (100 + key, earlier.token)] {
            assert_eq!(payload(&store, key, token).await, "done", "{step:?} {point:?}");
        }
    }
    let taken_twice = "SELECT count(*) FROM idemptx.records WHERE attempt > 1";
    assert_eq!(number(&server, taken_twice).await, 0);
}

fn every_point() -> impl Iterator<Item = (Step, (Direction, usize, bool))> {
    STEPS.into_iter().flat_map(|step| POINTS.map(|point| (step, point)))
}

fn through(proxy: &FaultyProxy) -> idemptx::store::postgres::PostgresStoreBuilder {
    let url = format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port());
    // Over one connection a step's bytes are its own.
    patient(url).sessions(1)
}

/// Repeats the same claim until it is granted, as a driver does without a verdict.
async fn granted_in_the_end(
    store: &PostgresStore,
    key: u64,
    claim_request: &ClaimRequest,
) -> Lease {
    match eventually(async || store.claim(&id(key), claim_request).await).await {
        Ok(Claim::Granted(lease)) => {
            assert_eq!(lease.attempt, 1, "{key}");
            lease
        }
        other => panic!("{key}: {other:?}"),
    }
}

async fn payload(store: &PostgresStore, key: u64, token: Token) -> bytes::Bytes {
    match eventually(async || store.lookup(&id(key)).await).await {
        Ok(Some(RecordSnapshot::Settled(record))) if record.token == token => record.payload,
        other => panic!("{key}: {other:?}"),
    }
}

#[tokio::test]
async fn claims_survive_a_crash_of_a_server_that_does_not_wait_for_its_commits() {
    // What is not flushed with a commit is flushed ten seconds later.
    let (mut server, store) =
        started(&["synchronous_commit = off", "wal_writer_delay = 10s"]).await;
    let requests: Vec<_> = (0..50).map(|key| (key, claim_request())).collect();
    for (key, request) in &requests {
        store.claim(&id(*key), request).await.unwrap();
    }
    server.kill();
    server.restart();
    for (key, request) in &requests {
        match eventually(async || store.lookup(&id(*key)).await).await.unwrap() {
            Some(RecordSnapshot::Held(holder)) => assert_eq!(holder.token, request.token),
            other => panic!("{key}: {other:?}"),
        }
    }
}

/// A process that takes steps on command.
struct Client {
    child: Child,
    orders: ChildStdin,
    said: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Client {
    fn start(proxy: &FaultyProxy) -> Self {
        let name = "postgres::crashes::nothing_is_lost_or_half_done_when_the_client_is_killed_at_any_point";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CLIENT_URL, proxy.port().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let (says, said) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            use std::io::BufRead;
            // Whoever listens may have heard enough.
            out.lines().map_while(Result::ok).all(|line| says.send(line).is_ok())
        });
        Self { child, orders, said }
    }

    fn begin(&mut self, step: Step, key: u64) {
        writeln!(self.orders, "{step:?} {key}").unwrap();
    }

    /// Has a step taken, and waits until it is acknowledged.
    async fn tell(&mut self, step: Step, key: u64) {
        self.begin(step, key);
        let acknowledgement = format!("acknowledged {step:?} {key}");
        while self.said.recv().await.expect("it goes on") != acknowledgement {}
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The token that it claim requests with.
    fn token(&self, key: u64) -> Token {
        token_of(self.child.id(), key)
    }
}

#[allow(clippy::print_stdout, reason = "it is how a process tells the one that started it")]
async fn obey(port: String) {
    let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
    let store = patient(url).sessions(1).connect().await.unwrap();
    let mut lease = None;
    for order in std::io::stdin().lines().map(Result::unwrap) {
        let (step, key) = order.split_once(' ').unwrap();
        let key: u64 = key.parse().unwrap();
        if step == "Claim" {
            let mut claim_request = claim_request();
            claim_request.token = token_of(std::process::id(), key);
            lease = Some(granted_in_the_end(&store, key, &claim_request).await);
        } else {
            store.settle(&lease.take().unwrap(), &done("done")).await.unwrap();
        }
        println!("acknowledged {order}");
    }
}

fn token_of(process: u32, key: u64) -> Token {
    let mut token = [0xC1; Token::BYTES];
    token[..4].copy_from_slice(&process.to_be_bytes());
    token[8..].copy_from_slice(&key.to_be_bytes());
    Token::from_bytes(token)
}

/// Every byte would take minutes, and two in the same field are the same.
const STRIDE_BYTES: usize = 13;
const CLIENT_URL: &str = "IDEMPTX_TEST_CRASHING_CLIENT";
