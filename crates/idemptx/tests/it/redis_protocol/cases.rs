//! States of a record and steps on it, generated.

use std::time::Duration;

use bytes::Bytes;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{ClaimRequest, Expected, Settlement};
use proptest::collection::vec;
use proptest::prelude::*;

use super::redis_probe::World;

/// An operation on the record.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    Claim(ClaimRequest),
    Settle(Lease, Settlement),
    Release(Lease),
    Renew(Lease),
    Lookup,
    Watch,
}

pub(crate) fn cases() -> impl Strategy<Value = (World, Wish)> {
    (worlds(), wishes())
}

pub(crate) fn id() -> RecordId {
    RecordId::from_bytes([0xA7; RecordId::BYTES])
}

pub(crate) fn token(number: u8) -> Token {
    Token::from_bytes([number; Token::BYTES])
}

pub(crate) fn claim_request(number: u8) -> ClaimRequest {
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    ClaimRequest::new(token(number), fingerprint, Duration::from_secs(30), Duration::from_secs(600))
}

pub(crate) fn lease(number: u8) -> Lease {
    Lease::granted(id(), &claim_request(number), 7, 1)
}

fn worlds() -> impl Strategy<Value = World> {
    let response = prop_oneof![
        1 => Just((None, ABSENT)),
        2 => (vec(any::<u8>(), 0..50), ttls()).prop_map(|(response, pttl)| (Some(response), pttl)),
    ];
    let record = prop_oneof![
        1 => Just((None, ABSENT)),
        10 => records().prop_map(|(record, pttl)| (Some(record), pttl)),
        3 => (records(), damage()).prop_map(|((record, pttl), damage)| {
            (Some(damage.done_to(record)), pttl)
        }),
    ];
    (record, response).prop_map(|((record, record_pttl), (response, response_pttl))| World {
        record,
        record_pttl,
        response,
        response_pttl,
    })
}

/// Records of this id, and what is left of them.
fn records() -> impl Strategy<Value = (Vec<u8>, i64)> {
    let claims = (0..=1_u8, 0..FENCE_MAX, 1..1000_u32, 0..100_000_u64, 100_000..1_000_000_u64);
    let flags = (any::<bool>(), any::<bool>());
    let states = prop_oneof![
        4 => Just(State::Running),
        3 => settled_states(),
        1 => Just(State::ResponseExpired),
    ];
    (claims, flags, states, vec(any::<u8>(), 0..50), ages()).prop_map(
        |((number, fence, attempt, term, retain), (awaited, apart), state, payload, age)| {
            let mut record = Record::running(&lease(number));
            (record.fence, record.attempt) = (fence, attempt);
            (record.term, record.retain) =
                (Duration::from_millis(term), Duration::from_millis(retain));
            (record.awaited, record.apart) = (awaited, apart);
            (record.state, record.payload) = (state, payload.into());
            (record.encode(), age.pttl(term, retain))
        },
    )
}

/// The age of a claim.
#[derive(Clone, Copy, Debug)]
enum Age {
    /// Just written.
    None,
    /// So many milliseconds before its lease lapses.
    Short(u64),
    /// So many milliseconds after.
    Lapsed(u64),
    /// The expiry was removed.
    Unknown,
    /// The expiry was put off by so many milliseconds.
    Negative(u64),
}

impl Age {
    fn pttl(self, term: u64, retain: u64) -> i64 {
        let age = match self {
            Self::None => 0,
            Self::Short(millis) => term.saturating_sub(millis),
            Self::Lapsed(millis) => term + millis,
            Self::Unknown => return PERSISTENT,
            Self::Negative(millis) => return i64::try_from(retain + millis).unwrap(),
        };
        // Nothing may expire during the test.
        i64::try_from(retain.saturating_sub(age).max(TTL_MIN)).unwrap()
    }
}

fn ages() -> impl Strategy<Value = Age> {
    prop_oneof![
        Just(Age::None),
        // About as long as it takes until somebody looks.
        (0..5_u64).prop_map(Age::Short),
        (0..100_000_u64).prop_map(Age::Short),
        (0..100_000_u64).prop_map(Age::Lapsed),
        Just(Age::Unknown),
        (0..100_000_u64).prop_map(Age::Negative),
    ]
}

fn ttls() -> impl Strategy<Value = i64> {
    prop_oneof![Just(PERSISTENT), 100_000..1_000_000_i64]
}

/// Damage to a record.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Byte(usize, u8),
    Replaced(Vec<u8>),
}

impl Damage {
    fn done_to(self, mut record: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Cut(length) => record.truncate(length),
            Self::Byte(place, byte) => record[place] = byte,
            Self::Replaced(bytes) => return bytes,
        }
        record
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (0..Record::HEAD_BYTES).prop_map(Damage::Cut),
        // The version, the state, the flags, the id and the token.
        (0..3_usize, any::<u8>()).prop_map(|(place, byte)| Damage::Byte(place, byte)),
        (3..51_usize, any::<u8>()).prop_map(|(place, byte)| Damage::Byte(place, byte)),
        vec(any::<u8>(), 0..200).prop_map(Damage::Replaced),
    ]
}

fn wishes() -> impl Strategy<Value = Wish> {
    prop_oneof![
        4 => claim_requests().prop_map(Wish::Claim),
        2 => (0..=1_u8, settlements()).prop_map(|(number, done)| Wish::Settle(lease(number), done)),
        1 => (0..=1_u8).prop_map(|number| Wish::Release(lease(number))),
        1 => (0..=1_u8).prop_map(|number| Wish::Renew(lease(number))),
        1 => Just(Wish::Lookup),
        1 => Just(Wish::Watch),
    ]
}

fn claim_requests() -> impl Strategy<Value = ClaimRequest> {
    let expected = prop_oneof![
        Just(None),
        (0..=1_u8).prop_map(|number| Some(Expected::Orphan(token(number)))),
        (0..=1_u8).prop_map(|number| Some(Expected::Settled(token(number)))),
    ];
    (0..=2_u8, expected, 0..100_000_u64, 100_000..1_000_000_u64).prop_map(
        |(number, expected, term, retain)| {
            let mut claim_request = claim_request(number);
            claim_request.expected = expected;
            claim_request.term = Duration::from_millis(term);
            claim_request.retain = Duration::from_millis(retain);
            claim_request
        },
    )
}

fn settlements() -> impl Strategy<Value = Settlement> {
    let retain = || (100..1000_u64).prop_map(Duration::from_secs);
    (settled_states(), vec(any::<u8>(), 0..50), retain(), retain()).prop_map(
        |(state, payload, retain, key_retain)| {
            Settlement::new(state, Bytes::from(payload), retain, key_retain)
        },
    )
}

fn settled_states() -> impl Strategy<Value = State> {
    prop_oneof![Just(State::Completed), Just(State::NotReplayable), Just(State::Unknown)]
}

/// The reply of `PTTL` for a missing key.
const ABSENT: i64 = -2;
const PERSISTENT: i64 = -1;
const TTL_MIN: u64 = 60_000;
/// Lua counts exactly up to 2⁵³, which is the year 2255 in microseconds.
const FENCE_MAX: u64 = 1 << 52;
