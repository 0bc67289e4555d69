use std::time::Duration;

use super::{KeyMeter, TypicalTime};
use crate::key::{Names, Scope};
use crate::time::Timestamp;

fn id(scope: &str) -> [u8; 16] {
    Names::new("", None).meter_id(&Scope::new(scope), &[])
}

#[test]
fn a_scope_has_so_many_new_keys_a_minute() {
    let (mut meter, last) = (KeyMeter::default(), Timestamp::from_millis(59_999));
    let admitted = [(); 3].map(|()| meter.admits(id("a"), 2, last));
    assert_eq!(admitted, [true, true, false]);
    assert!(meter.admits(id("b"), 2, last), "another's keys are not its own");
    assert!(meter.admits(id("a"), 2, Timestamp::from_millis(60_000)), "the minute is over");
}

#[test]
fn more_scopes_than_can_be_counted_are_refused_until_the_minute_is_over() {
    let (mut meter, now) = (KeyMeter::default(), Timestamp::from_millis(1));
    for number in 0..KeyMeter::PRINCIPALS_MAX {
        assert!(meter.admits(id(&number.to_string()), 9, now));
    }
    assert!(!meter.admits(id("one more"), 9, now));
    assert!(meter.admits(id("0"), 9, now), "who is counted already goes on");
    assert!(meter.admits(id("one more"), 9, Timestamp::from_millis(60_000)));
    assert_eq!(meter.0.len(), 1, "nothing of the last minute is kept");
}

#[test]
fn what_is_typical_follows_what_was_seen() {
    let (typical, now) = (TypicalTime::default(), Timestamp::default());
    typical.took(Duration::ZERO);
    assert_eq!(typical.at(now), Duration::from_micros(1), "it is known, however short");
    for _ in 0..100 {
        typical.took(Duration::from_millis(80));
    }
    let after = typical.at(now);
    assert!(after > Duration::from_millis(79) && after <= Duration::from_millis(80), "{after:?}");
}

#[test]
fn without_a_history_what_is_typical_grows_from_nothing() {
    let typical = TypicalTime::default();
    for (now, expected) in [(5_000, 0), (5_000, 0), (6_000, 1_000), (8_500, 3_500)] {
        let seen = typical.at(Timestamp::from_millis(now));
        assert_eq!(seen, Duration::from_millis(expected));
    }
    typical.took(Duration::from_millis(80));
    assert_eq!(typical.at(Timestamp::from_millis(9_000)), Duration::from_millis(80));
}
