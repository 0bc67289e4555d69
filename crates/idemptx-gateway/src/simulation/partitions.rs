//! One partition at a time, at a chosen moment.

use std::time::Duration;

use super::backend::{Backend, Behavior};
use super::caller::Reply;
use super::cluster::{Cluster, GATEWAYS, SERVICE, settings};

const HTTP2: [&str; 2] = ["http2 = false", "http2 = true"];
const RELEASE: &str = "on_ambiguous = \"release\"";
const WAIT: &str = "policy = { wait_ms = 20000 }";
/// The time from an execution until half of its response has arrived.
const HALF: Duration = Duration::from_millis(600);
const HERE: &str = GATEWAYS[0];
const THERE: &str = GATEWAYS[1];

#[test]
fn an_answer_that_is_lost_on_its_way_back_is_replayed() {
    let mut cluster = Cluster::calm("", "");
    let first = cluster.post(HERE, "k");
    cluster.until(|it| it.backend.executions("k") == 1);
    cluster.network.partition_oneway(HERE, first.caller.as_str());
    cluster.answer(&first).unwrap_err();
    for gateway in GATEWAYS {
        is_replay(&cluster.reply(gateway, "k"), "execution 1 of k, done");
    }
    assert_eq!(cluster.backend.executions("k"), 1);
}

#[test]
fn a_client_that_is_cut_off_does_not_end_its_execution() {
    let mut cluster = Cluster::calm("", "");
    let first = cluster.post(HERE, "k");
    cluster.until(|it| it.backend.executions("k") == 1);
    // Not even its disconnect reaches the gateway.
    cluster.network.partition(first.caller.as_str(), HERE);
    cluster.pass(Duration::from_secs(1));
    is_replay(&cluster.reply(THERE, "k"), "execution 1 of k, done");
}

#[test]
fn a_client_that_leaves_does_not_end_its_execution() {
    let mut cluster = Cluster::calm("", "");
    let first = cluster.post_for(Duration::from_millis(300), HERE, "k");
    cluster.answer(&first).unwrap_err();
    assert_eq!(cluster.backend.executions("k"), 1);
    cluster.reply(HERE, "k").refused(409, "in-progress");
    cluster.pass(Duration::from_secs(1));
    is_replay(&cluster.reply(THERE, "k"), "execution 1 of k, done");
}

#[test]
fn a_cut_behind_a_request_that_was_sent_leaves_its_outcome_unknown() {
    for http2 in HTTP2 {
        let mut cluster = Cluster::calm(http2, "");
        let first = cluster.post(HERE, "k");
        cluster.until(|it| it.backend.executions("k") == 1);
        cluster.network.partition(HERE, SERVICE);
        cluster.answer(&first).unwrap().refused(504, "upstream-timeout");
        cluster.network.repair(HERE, SERVICE);
        for gateway in GATEWAYS {
            cluster.reply(gateway, "k").refused(409, "outcome-unknown");
        }
        assert_eq!(cluster.backend.executions("k"), 1);
    }
}

#[test]
fn a_cut_behind_a_request_that_was_sent_frees_the_key_where_that_is_chosen() {
    let mut cluster = Cluster::calm("", RELEASE);
    let first = cluster.post(HERE, "k");
    cluster.until(|it| it.backend.executions("k") == 1);
    cluster.network.partition(HERE, SERVICE);
    cluster.answer(&first).unwrap().refused(504, "upstream-timeout");
    cluster.network.repair(HERE, SERVICE);
    assert_eq!(cluster.reply(HERE, "k").body, "execution 2 of k, done");
    is_replay(&cluster.reply(THERE, "k"), "execution 2 of k, done");
}

#[test]
fn a_cut_before_a_request_is_sent_frees_the_key() {
    for http2 in HTTP2 {
        let mut cluster = Cluster::calm(http2, "");
        // The connection is refused at once, or never answered.
        cluster.network.partition(HERE, SERVICE);
        cluster.reply(HERE, "k").refused(502, "upstream-unreachable");
        cluster.network.repair(HERE, SERVICE);
        cluster.network.hold(HERE, SERVICE);
        cluster.reply(HERE, "k").refused(502, "upstream-unreachable");
        cluster.network.release(HERE, SERVICE);
        cluster.pass(Duration::from_secs(1));
        assert_eq!(cluster.backend.executions("k"), 0);
        assert_eq!(cluster.reply(HERE, "k").body, "execution 1 of k, done");
    }
}

#[test]
fn half_an_answer_is_never_kept() {
    for http2 in HTTP2 {
        let mut cluster = Cluster::calm(http2, "");
        let first = cluster.post(HERE, "k");
        cluster.until(|it| it.backend.executions("k") == 1);
        cluster.pass(HALF);
        cluster.network.partition(HERE, SERVICE);
        cluster.answer(&first).unwrap().refused(502, "upstream-failed");
        cluster.network.repair(HERE, SERVICE);
        for gateway in GATEWAYS {
            cluster.reply(gateway, "k").refused(409, "outcome-unknown");
        }
    }
}

#[test]
fn a_request_that_meets_a_dead_connection_is_not_sent_again() {
    let mut cluster = Cluster::calm("", "");
    assert_eq!(cluster.reply(HERE, "before").body, "execution 1 of before, done");
    // The backend restarts without its connections, and the gateway gets no notice.
    cluster.network.partition(HERE, SERVICE);
    cluster.network.bounce(SERVICE);
    cluster.network.repair(HERE, SERVICE);
    cluster.reply(HERE, "k").refused(502, "upstream-failed");
    cluster.reply(THERE, "k").refused(409, "outcome-unknown");
    assert_eq!(cluster.backend.executions("k"), 0);
    // Later requests do not get that connection.
    assert_eq!(cluster.reply(HERE, "after").body, "execution 1 of after, done");
}

#[test]
fn a_connection_without_an_answer_in_time_is_not_used_again() {
    // Bytes lost on it are never sent again, and block all later ones.
    for (silent, half) in [(Duration::ZERO, "upstream-timeout"), (HALF, "upstream-failed")] {
        let mut cluster = Cluster::calm("http2 = true", "");
        let first = cluster.post(HERE, "k");
        cluster.until(|it| it.backend.executions("k") == 1);
        cluster.pass(silent);
        cluster.network.partition(HERE, SERVICE);
        let answer = cluster.answer(&first).unwrap();
        assert_eq!(answer.code().as_deref(), Some(half));
        cluster.network.repair(HERE, SERVICE);
        assert_eq!(cluster.reply(HERE, "after").body, "execution 1 of after, done");
    }
}

#[test]
fn waiters_get_the_answer_when_the_link_comes_back() {
    let mut cluster = Cluster::calm("", WAIT);
    let first = cluster.post(HERE, "k");
    cluster.until(|it| it.backend.executions("k") == 1);
    cluster.network.hold(HERE, SERVICE);
    let mut calls: Vec<_> = [HERE, HERE, THERE].map(|at| cluster.post(at, "k")).into();
    cluster.pass(Duration::from_millis(1500));
    assert!(calls.iter().all(|call| call.is_open()));
    cluster.network.release(HERE, SERVICE);
    calls.push(first);
    for call in &calls {
        assert_eq!(cluster.answer(call).unwrap().body, "execution 1 of k, done");
    }
}

#[test]
fn waiters_take_over_what_a_cut_has_freed() {
    let mut cluster = Cluster::calm("", &format!("{RELEASE}\n{WAIT}"));
    let first = cluster.post(HERE, "k");
    cluster.until(|it| it.backend.executions("k") == 1);
    cluster.network.partition(HERE, SERVICE);
    let calls = [THERE, THERE, THERE].map(|at| cluster.post(at, "k"));
    cluster.answer(&first).unwrap().refused(504, "upstream-timeout");
    for call in &calls {
        assert_eq!(cluster.answer(call).unwrap().body, "execution 2 of k, done");
    }
    assert_eq!(cluster.backend.executions("k"), 2);
}

#[test]
fn requests_that_wait_for_one_connection_give_up_together() {
    for http2 in HTTP2 {
        let mut cluster = Cluster::calm(http2, "");
        cluster.network.hold(HERE, SERVICE);
        let began = cluster.network.elapsed();
        let calls = ["k1", "k2", "k3", "k4", "k5"].map(|key| cluster.post(HERE, key));
        for call in &calls {
            cluster.answer(call).unwrap().refused(502, "upstream-unreachable");
        }
        // Connecting may take one second.
        let took = cluster.network.elapsed() - began;
        assert!(took < Duration::from_millis(1500), "{http2}: {took:?}");
    }
}

#[test]
fn a_drain_behind_a_cut_ends() {
    for http2 in HTTP2 {
        let mut cluster = Cluster::calm(http2, WAIT);
        let first = cluster.post(HERE, "k");
        cluster.until(|it| it.backend.executions("k") == 1);
        let waiting = cluster.post(THERE, "k");
        cluster.pass(Duration::from_millis(100));
        for (caller, gateway) in [(&first, HERE), (&waiting, THERE)] {
            cluster.network.partition(gateway, SERVICE);
            cluster.network.partition(caller.caller.as_str(), gateway);
        }
        let began = cluster.network.elapsed();
        cluster.drain();
        // After the response timeout of two seconds both the execution and the wait end.
        let took = cluster.network.elapsed() - began;
        assert!(took < Duration::from_secs(4), "{http2}: {took:?}");
    }
}

#[test]
fn a_service_that_vanishes_behind_a_request_leaves_its_outcome_unknown() {
    let pause = Duration::from_millis(200);
    for behavior in [Behavior::Disconnect(pause), Behavior::Truncate(pause)] {
        let backend = Backend::new(move || behavior);
        let mut cluster = Cluster::new(0, Duration::from_millis(5), &settings("", ""), backend);
        cluster.reply(HERE, "k").refused(502, "upstream-failed");
        cluster.reply(THERE, "k").refused(409, "outcome-unknown");
        assert_eq!(cluster.backend.executions("k"), 1);
    }
}

#[track_caller]
fn is_replay(reply: &Reply, body: &str) {
    assert_eq!(reply.body, body, "{reply:?}");
    assert!(reply.is_replay(), "{reply:?}");
}
