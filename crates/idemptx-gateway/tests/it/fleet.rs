//! Several gateways, some of which die or freeze, in front of one service and on one Redis.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use idemptx_testkit::{RedisServer, ReservedPort, Signal};

use crate::support::counting_service::CountingService;
use crate::support::gateway_process::{GatewayProcess, PATIENT, configuration};
use crate::support::raw_client::{Answer, RawClient, post};

#[test]
fn two_gateways_execute_every_key_once() {
    let (redis, service) = (RedisServer::start(&[]), CountingService::start("a"));
    let gateways = [(); 2].map(|()| start(&service, &redis, "wait_ms = 20000"));
    let addresses = gateways.each_ref().map(GatewayProcess::address);
    let answers: Vec<_> = thread::scope(|scope| {
        let mut clients = Vec::new();
        for group in 0..GROUPS {
            let together = Arc::new(Barrier::new(EACH));
            for number in 0..EACH {
                let (together, address) = (Arc::clone(&together), addresses[number % 2]);
                clients.push(scope.spawn(move || {
                    let mut client = RawClient::connect(address);
                    let mut answers = Vec::new();
                    for key in (group..KEYS).step_by(GROUPS) {
                        together.wait();
                        let answer = client.exchange(post("/", &format!("key-{key}"), "hi"));
                        answers.push((key, answer));
                    }
                    answers
                }));
            }
        }
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let mut first = HashMap::new();
    for (key, answer) in answers {
        let logs = || gateways.each_ref().map(GatewayProcess::log);
        let expected = (201, format!("a key-{key} 1"));
        assert_eq!((answer.status, answer.text()), expected, "{:#?}", logs());
        *first.entry(key).or_insert(0) += usize::from(!answer.is_replay());
    }
    assert!(first.values().all(|count| *count == 1), "one own answer for each key: {first:?}");
    assert_eq!(service.executions().values().filter(|count| **count == 1).count(), KEYS);
}

#[test]
fn what_a_killed_gateway_had_begun_is_taken_over_once_its_lease_has_lapsed() {
    let (redis, service) = (RedisServer::start(&[]), CountingService::start("a"));
    let mut killed = start(&service, &redis, SHORT_LEASE);
    let other = start(&service, &redis, &format!("{SHORT_LEASE}\nwait_ms = 20000"));
    let under_way: Vec<_> = (0..FEW).map(|key| sent(&killed, key)).collect();
    service.begun(FEW);
    killed.kill();
    let retries: Vec<_> = (0..FEW).map(|key| sent(&other, key)).collect();
    service.begun(2 * FEW);
    service.release();
    for (key, mut retry) in retries.into_iter().enumerate() {
        let answer = retry.answer().unwrap();
        assert_eq!((answer.status, answer.text()), (201, format!("a key-{key} 2")));
        assert!(exchanged(&other, key).is_replay());
    }
    for mut client in under_way {
        assert!(client.answer().is_err());
    }
    assert!(service.executions().values().all(|count| *count == 2));
}

#[test]
fn what_a_killed_gateway_had_begun_is_unknown_where_that_is_asked_for() {
    let (redis, service) = (RedisServer::start(&[]), CountingService::start("a"));
    let policy = format!("{SHORT_LEASE}\non_orphan = 'quarantine'\nwait_ms = 20000");
    let [mut killed, other] = [(); 2].map(|()| start(&service, &redis, &policy));
    let under_way: Vec<_> = (0..FEW).map(|key| sent(&killed, key)).collect();
    service.begun(FEW);
    killed.kill();
    for key in 0..FEW {
        let answer = exchanged(&other, key);
        assert_eq!(answer.status, 409);
        assert!(answer.text().contains("outcome-unknown"), "{}", answer.text());
    }
    drop(under_way);
    assert!(service.executions().values().all(|count| *count == 1));
}

#[test]
fn a_gateway_that_was_frozen_does_not_answer_with_what_was_taken_over() {
    let (redis, service) = (RedisServer::start(&[]), CountingService::start("a"));
    let frozen = start(&service, &redis, SHORT_LEASE);
    let other = start(&service, &redis, &format!("{SHORT_LEASE}\nwait_ms = 20000"));
    let under_way: Vec<_> = (0..FEW).map(|key| sent(&frozen, key)).collect();
    service.begun(FEW);
    frozen.signal(Signal::STOP);
    let retries: Vec<_> = (0..FEW).map(|key| sent(&other, key)).collect();
    service.begun(2 * FEW);
    service.release();
    for (key, mut retry) in retries.into_iter().enumerate() {
        assert_eq!(retry.answer().unwrap().text(), format!("a key-{key} 2"));
    }
    frozen.signal(Signal::CONT);
    for (key, mut client) in under_way.into_iter().enumerate() {
        let answer = client.answer().unwrap();
        assert!(!answer.text().ends_with(" 1"), "a second success: {}", answer.text());
        let replayed = exchanged(&frozen, key);
        assert_eq!((replayed.text(), replayed.is_replay()), (format!("a key-{key} 2"), true));
    }
}

#[test]
fn a_service_that_is_away_has_not_seen_the_request() {
    let reserved = ReservedPort::reserve();
    let address = reserved.address();
    let gateway = GatewayProcess::start(address, ROUTE);
    let answer = exchanged(&gateway, 1);
    assert_eq!((answer.status, answer.header("retry-after")), (502, Some("1")));
    assert!(answer.text().contains("upstream-unreachable"), "{}", answer.text());
    let service = CountingService::on(TcpListener::bind(address).unwrap(), "back");
    assert_eq!(exchanged(&gateway, 1).text(), "back key-1 1");
    assert!(exchanged(&gateway, 1).is_replay());
    assert_eq!(service.executions()["key-1"], 1);
}

/// A request may have been understood as soon as any part of it has arrived.
#[test]
fn a_request_of_which_a_byte_was_sent_is_not_sent_again() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = GatewayProcess::start(upstream.local_addr().unwrap(), ROUTE);
    let arrivals = Arc::new(AtomicUsize::new(0));
    let reading = Arc::new(AtomicUsize::new(1));
    let (seen, limit) = (Arc::clone(&arrivals), Arc::clone(&reading));
    thread::spawn(move || {
        for stream in upstream.incoming() {
            let (mut stream, mut bytes) = (stream.unwrap(), vec![0; limit.load(Ordering::SeqCst)]);
            if std::io::Read::read_exact(&mut stream, &mut bytes).is_ok() {
                seen.fetch_add(1, Ordering::SeqCst);
            }
            // Counted by now. What is left unread makes the system reset the connection.
            drop(stream);
        }
    });
    for bytes in 1..HEAD_BYTES {
        reading.store(bytes, Ordering::SeqCst);
        let answer = exchanged(&gateway, bytes);
        assert_eq!(answer.status, 502, "after {bytes} bytes");
        assert_eq!(arrivals.swap(0, Ordering::SeqCst), 1, "after {bytes} bytes");
        assert_eq!(exchanged(&gateway, bytes).status, 409, "after {bytes} bytes");
        assert_eq!(arrivals.swap(0, Ordering::SeqCst), 0, "after {bytes} bytes");
    }
}

#[test]
fn reloading_under_load_loses_no_request() {
    let services = ["one", "two"].map(CountingService::start);
    let files = services.each_ref().map(|service| configuration(service.address(), ROUTE));
    let gateway = GatewayProcess::configured(&files[0]);
    let (address, done) = (gateway.address(), AtomicBool::new(false));
    let answered = thread::scope(|scope| {
        let load = |client: usize| {
            let done = &done;
            move || {
                let (mut connection, mut count) = (RawClient::connect(address), 0);
                while !done.load(Ordering::SeqCst) {
                    let key = format!("{client}-{count}");
                    let answer = connection.exchange(post("/", &key, "hi"));
                    assert_eq!(answer.status, 201, "{}", answer.text());
                    assert!(answer.text().ends_with(&format!(" {key} 1")), "{}", answer.text());
                    count += 1;
                }
                count
            }
        };
        let clients: Vec<_> = (0..8).map(|client| scope.spawn(load(client))).collect();
        for reload in 1..=RELOADS {
            // They begin with the second, and every third is not one.
            let text = if reload % 3 == 0 { "[[listener" } else { &*files[reload % 2] };
            gateway.reload(text);
            let told = if reload % 3 == 0 {
                "the previous configuration stays in force"
            } else {
                "reloaded"
            };
            let refused = reload / 3;
            let count = if reload % 3 == 0 { refused } else { reload - refused };
            gateway.logged(told, count);
        }
        done.store(true, Ordering::SeqCst);
        clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>()
    });
    let executed = services.each_ref().map(|service| service.executions().len());
    assert!(executed.iter().all(|count| *count > 0), "both were in force: {executed:?}");
    assert_eq!(executed.iter().sum::<usize>(), answered);
}

fn start(service: &CountingService, redis: &RedisServer, policy: &str) -> GatewayProcess {
    if policy.contains(SHORT_LEASE) {
        service.hold();
    }
    let store = format!("[store]\nurl = '{}'", redis.patient_url());
    let route = format!("{ROUTE}[route.policy]\nscope = 'shared'\n{PATIENT}\n{policy}\n{store}");
    GatewayProcess::start(service.address(), &route.replace(SCOPE, ""))
}

/// Sends a request on a new connection, without waiting for the response.
fn sent(gateway: &GatewayProcess, key: usize) -> RawClient {
    let mut client = RawClient::connect(gateway.address());
    client.send(post("/", &format!("key-{key}"), "hi"));
    client
}

fn exchanged(gateway: &GatewayProcess, key: usize) -> Answer {
    sent(gateway, key).answer().unwrap()
}

const SCOPE: &str = "policy = { scope = 'shared' }\n";
const ROUTE: &str = "
[[route]]
upstream = 'app'
policy = { scope = 'shared' }
";
const SHORT_LEASE: &str = "lease_ms = 1000";
const KEYS: usize = 1500;
const EACH: usize = 9;
const GROUPS: usize = 4;
/// The number of requests in flight when a gateway fails.
const FEW: usize = 16;
const RELOADS: usize = 30;
/// Less than a request to the upstream has.
const HEAD_BYTES: usize = 120;
