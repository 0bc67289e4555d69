//! One cut at a time, at a moment that matters.

use std::time::Duration;

use super::client::Reply;
use super::service::{Conduct, Service};
use super::world::{GATEWAYS, SERVICE, World, settings};

const HTTP2: [&str; 2] = ["http2 = false", "http2 = true"];
const RELEASE: &str = "on_ambiguous = \"release\"";
const WAIT: &str = "policy = { wait_ms = 20000 }";
/// From its execution until the first half of an answer has come, but not the second.
const HALF: Duration = Duration::from_millis(600);
const HERE: &str = GATEWAYS[0];
const THERE: &str = GATEWAYS[1];

#[test]
fn an_answer_that_is_lost_on_its_way_back_is_replayed() {
    let mut world = World::calm("", "");
    let first = world.post(HERE, "k");
    world.until(|it| it.service.executions("k") == 1);
    world.network.partition_oneway(HERE, first.caller.as_str());
    world.answer(&first).unwrap_err();
    for gateway in GATEWAYS {
        is_replay(&world.reply(gateway, "k"), "execution 1 of k, done");
    }
    assert_eq!(world.service.executions("k"), 1);
}

#[test]
fn a_client_that_is_cut_off_does_not_end_its_execution() {
    let mut world = World::calm("", "");
    let first = world.post(HERE, "k");
    world.until(|it| it.service.executions("k") == 1);
    // Neither its leaving nor anything else reaches the gateway.
    world.network.partition(first.caller.as_str(), HERE);
    world.pass(Duration::from_secs(1));
    is_replay(&world.reply(THERE, "k"), "execution 1 of k, done");
}

#[test]
fn a_client_that_leaves_does_not_end_its_execution() {
    let mut world = World::calm("", "");
    let first = world.post_for(Duration::from_millis(300), HERE, "k");
    world.answer(&first).unwrap_err();
    assert_eq!(world.service.executions("k"), 1);
    world.reply(HERE, "k").refused(409, "in-progress");
    world.pass(Duration::from_secs(1));
    is_replay(&world.reply(THERE, "k"), "execution 1 of k, done");
}

#[test]
fn a_cut_behind_a_request_that_was_sent_leaves_its_outcome_unknown() {
    for http2 in HTTP2 {
        let mut world = World::calm(http2, "");
        let first = world.post(HERE, "k");
        world.until(|it| it.service.executions("k") == 1);
        world.network.partition(HERE, SERVICE);
        world.answer(&first).unwrap().refused(504, "upstream-timeout");
        world.network.repair(HERE, SERVICE);
        for gateway in GATEWAYS {
            world.reply(gateway, "k").refused(409, "outcome-unknown");
        }
        assert_eq!(world.service.executions("k"), 1);
    }
}

#[test]
fn a_cut_behind_a_request_that_was_sent_frees_the_key_where_that_is_chosen() {
    let mut world = World::calm("", RELEASE);
    let first = world.post(HERE, "k");
    world.until(|it| it.service.executions("k") == 1);
    world.network.partition(HERE, SERVICE);
    world.answer(&first).unwrap().refused(504, "upstream-timeout");
    world.network.repair(HERE, SERVICE);
    assert_eq!(world.reply(HERE, "k").body, "execution 2 of k, done");
    is_replay(&world.reply(THERE, "k"), "execution 2 of k, done");
}

#[test]
fn a_cut_before_a_request_is_sent_frees_the_key() {
    for http2 in HTTP2 {
        let mut world = World::calm(http2, "");
        // Refused at once, or not answered.
        world.network.partition(HERE, SERVICE);
        world.reply(HERE, "k").refused(502, "upstream-unreachable");
        world.network.repair(HERE, SERVICE);
        world.network.hold(HERE, SERVICE);
        world.reply(HERE, "k").refused(502, "upstream-unreachable");
        world.network.release(HERE, SERVICE);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.service.executions("k"), 0);
        assert_eq!(world.reply(HERE, "k").body, "execution 1 of k, done");
    }
}

#[test]
fn half_an_answer_is_never_kept() {
    for http2 in HTTP2 {
        let mut world = World::calm(http2, "");
        let first = world.post(HERE, "k");
        world.until(|it| it.service.executions("k") == 1);
        world.pass(HALF);
        world.network.partition(HERE, SERVICE);
        world.answer(&first).unwrap().refused(502, "upstream-failed");
        world.network.repair(HERE, SERVICE);
        for gateway in GATEWAYS {
            world.reply(gateway, "k").refused(409, "outcome-unknown");
        }
    }
}

#[test]
fn a_request_that_meets_a_dead_connection_is_not_sent_again() {
    let mut world = World::calm("", "");
    assert_eq!(world.reply(HERE, "before").body, "execution 1 of before, done");
    // The service forgets its connections, and the gateway does not hear of it.
    world.network.partition(HERE, SERVICE);
    world.network.bounce(SERVICE);
    world.network.repair(HERE, SERVICE);
    world.reply(HERE, "k").refused(502, "upstream-failed");
    world.reply(THERE, "k").refused(409, "outcome-unknown");
    assert_eq!(world.service.executions("k"), 0);
    // The connection is gone for those that come later.
    assert_eq!(world.reply(HERE, "after").body, "execution 1 of after, done");
}

#[test]
fn a_connection_without_an_answer_in_time_is_not_used_again() {
    // What was lost on it is never sent again, and holds back whatever comes behind.
    for (silent, half) in [(Duration::ZERO, "upstream-timeout"), (HALF, "upstream-failed")] {
        let mut world = World::calm("http2 = true", "");
        let first = world.post(HERE, "k");
        world.until(|it| it.service.executions("k") == 1);
        world.pass(silent);
        world.network.partition(HERE, SERVICE);
        let answer = world.answer(&first).unwrap();
        assert_eq!(answer.code().as_deref(), Some(half));
        world.network.repair(HERE, SERVICE);
        assert_eq!(world.reply(HERE, "after").body, "execution 1 of after, done");
    }
}

#[test]
fn waiters_get_the_answer_when_the_link_comes_back() {
    let mut world = World::calm("", WAIT);
    let first = world.post(HERE, "k");
    world.until(|it| it.service.executions("k") == 1);
    world.network.hold(HERE, SERVICE);
    let mut calls: Vec<_> = [HERE, HERE, THERE].map(|at| world.post(at, "k")).into();
    world.pass(Duration::from_millis(1500));
    assert!(calls.iter().all(|call| call.is_open()));
    world.network.release(HERE, SERVICE);
    calls.push(first);
    for call in &calls {
        assert_eq!(world.answer(call).unwrap().body, "execution 1 of k, done");
    }
}

#[test]
fn waiters_take_over_what_a_cut_has_freed() {
    let mut world = World::calm("", &format!("{RELEASE}\n{WAIT}"));
    let first = world.post(HERE, "k");
    world.until(|it| it.service.executions("k") == 1);
    world.network.partition(HERE, SERVICE);
    let calls = [THERE, THERE, THERE].map(|at| world.post(at, "k"));
    world.answer(&first).unwrap().refused(504, "upstream-timeout");
    for call in &calls {
        assert_eq!(world.answer(call).unwrap().body, "execution 2 of k, done");
    }
    assert_eq!(world.service.executions("k"), 2);
}

#[test]
fn requests_that_wait_for_one_connection_give_up_together() {
    for http2 in HTTP2 {
        let mut world = World::calm(http2, "");
        world.network.hold(HERE, SERVICE);
        let began = world.network.elapsed();
        let calls = ["k1", "k2", "k3", "k4", "k5"].map(|key| world.post(HERE, key));
        for call in &calls {
            world.answer(call).unwrap().refused(502, "upstream-unreachable");
        }
        // Connecting may take one second.
        let took = world.network.elapsed() - began;
        assert!(took < Duration::from_millis(1500), "{http2}: {took:?}");
    }
}

#[test]
fn a_drain_behind_a_cut_ends() {
    for http2 in HTTP2 {
        let mut world = World::calm(http2, WAIT);
        let first = world.post(HERE, "k");
        world.until(|it| it.service.executions("k") == 1);
        let waiting = world.post(THERE, "k");
        world.pass(Duration::from_millis(100));
        for (caller, gateway) in [(&first, HERE), (&waiting, THERE)] {
            world.network.partition(gateway, SERVICE);
            world.network.partition(caller.caller.as_str(), gateway);
        }
        let began = world.network.elapsed();
        world.drain();
        // The answer may take two seconds; that there is none ends the execution and the wait.
        let took = world.network.elapsed() - began;
        assert!(took < Duration::from_secs(4), "{http2}: {took:?}");
    }
}

#[test]
fn a_service_that_vanishes_behind_a_request_leaves_its_outcome_unknown() {
    let pause = Duration::from_millis(200);
    for conduct in [Conduct::Vanish(pause), Conduct::BreakOff(pause)] {
        let service = Service::new(move || conduct);
        let mut world = World::new(0, Duration::from_millis(5), &settings("", ""), service);
        world.reply(HERE, "k").refused(502, "upstream-failed");
        world.reply(THERE, "k").refused(409, "outcome-unknown");
        assert_eq!(world.service.executions("k"), 1);
    }
}

#[track_caller]
fn is_replay(reply: &Reply, body: &str) {
    assert_eq!(reply.body, body, "{reply:?}");
    assert!(reply.is_replay(), "{reply:?}");
}
