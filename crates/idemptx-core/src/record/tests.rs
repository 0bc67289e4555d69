use proptest::prelude::*;

use super::*;

fn records() -> impl Strategy<Value = Record> {
    let states = [
        State::Running,
        State::Completed,
        State::NotReplayable,
        State::Unknown,
        State::ResponseExpired,
    ];
    let claim = (any::<[u8; 32]>(), any::<[u8; 16]>(), any::<u64>(), any::<u32>());
    let fingerprint = (any::<u32>(), any::<[u8; 32]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let times = (any::<u32>(), any::<u64>());
    let rest = (any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..64));
    (prop::sample::select(states.to_vec()), claim, fingerprint, times, rest).prop_map(
        |(
            state,
            (id, token, fence, attempt),
            (config, digest, binding, operation),
            times,
            rest,
        )| Record {
            id: RecordId::from_bytes(id),
            state,
            token: Token::from_bytes(token),
            fence,
            attempt,
            fingerprint: Fingerprint { config, digest, binding, operation },
            term: Duration::from_millis(times.0.into()),
            retain: Duration::from_millis(times.1),
            awaited: rest.0,
            apart: rest.1,
            payload: rest.2.into(),
        },
    )
}

fn sample() -> Record {
    Record {
        id: RecordId::from_bytes([0x11; 32]),
        state: State::Completed,
        token: Token::from_bytes([0x22; 16]),
        fence: 3,
        attempt: 4,
        fingerprint: Fingerprint {
            config: 5,
            digest: [0x66; 32],
            binding: [0x77; 16],
            operation: [0x88; 16],
        },
        term: Duration::from_secs(15),
        retain: Duration::from_secs(86_400),
        awaited: true,
        apart: false,
        payload: Bytes::from_static(b"payload"),
    }
}

#[test]
fn the_layout_is_settled() {
    let expected = [
        &b"\x02D\x01"[..],
        &[0x11; 32],
        &[0x22; 16],
        &3_u64.to_be_bytes(),
        &4_u32.to_be_bytes(),
        &5_u32.to_be_bytes(),
        &[0x66; 32],
        &[0x77; 16],
        &15_000_u32.to_be_bytes(),
        &86_400_000_u64.to_be_bytes(),
        &[0x88; 16],
        b"payload",
    ]
    .concat();
    let encoded = sample().encode();
    assert_eq!(encoded, expected);
    assert_eq!(encoded[Record::FLAGS_AT], AWAITED);
    assert_eq!(encoded[Record::TOKEN_AT..][..Token::BYTES], [0x22; 16]);
}

#[test]
fn what_is_no_record_of_the_id_is_refused() {
    let sample = sample();
    let damaged = |at: usize, byte: u8| {
        let mut bytes = sample.encode();
        bytes[at] = byte;
        Record::decode(&sample.id, &bytes.into())
    };
    assert_eq!(damaged(0, 0), Err(Undecodable::Version(0)));
    assert_eq!(damaged(0, 1), Err(Undecodable::Version(1)));
    assert_eq!(damaged(1, b'd'), Err(Undecodable::Malformed));
    assert_eq!(damaged(2, 0b100), Err(Undecodable::Malformed));
    assert_eq!(damaged(3, 0), Err(Undecodable::Foreign));
    assert_eq!(damaged(34, 0), Err(Undecodable::Foreign));
    let other = RecordId::from_bytes([0x12; 32]);
    assert_eq!(Record::decode(&other, &sample.encode().into()), Err(Undecodable::Foreign));
    for length in 0..Record::HEAD_BYTES {
        let short = Bytes::from(sample.encode()).slice(..length);
        assert_eq!(Record::decode(&sample.id, &short), Err(Undecodable::Short));
    }
}

#[test]
fn the_payload_is_not_copied() {
    let bytes = Bytes::from(sample().encode());
    let payload = Record::decode(&sample().id, &bytes).unwrap().payload;
    assert_eq!(payload.as_ptr(), bytes[Record::HEAD_BYTES..].as_ptr());
}

#[test]
fn a_term_too_long_to_be_written_is_as_long_as_can_be() {
    let endless = Record { term: Duration::MAX, retain: Duration::MAX, ..sample() };
    let decoded = Record::decode(&endless.id, &endless.encode().into()).unwrap();
    assert_eq!(decoded.term, Duration::from_millis(u32::MAX.into()));
    assert_eq!(decoded.retain, Duration::from_millis(u64::MAX));
}

#[test]
fn a_settled_record_is_its_owners() {
    let lease = sample().lease();
    let running = Record::running(&lease);
    assert_eq!((running.state, running.lease()), (State::Running, lease.clone()));
    assert!(running.payload.is_empty());
    let (retain, key_retain) = (Duration::from_secs(1), Duration::from_secs(2));
    let payload = Bytes::from_static(b"answer");
    let done = Settlement::new(State::Completed, payload.clone(), retain, key_retain);
    let settled = Record::settled(&lease, &done);
    assert_eq!((settled.state, &settled.payload), (State::Completed, &payload));
    assert_eq!((settled.token, settled.fence, settled.retain), (lease.token, 3, key_retain));
    let spent = settled.with_response_expired();
    assert_eq!(
        (spent.state, spent.payload.len(), spent.token),
        (State::ResponseExpired, 0, lease.token)
    );
}

proptest! {
    #[test]
    fn a_record_reads_back(record in records()) {
        let bytes = Bytes::from(record.encode());
        prop_assert_eq!(Record::decode(&record.id, &bytes), Ok(record));
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(id: [u8; 32], mut bytes: Vec<u8>, well_begun: bool) {
        let id = RecordId::from_bytes(id);
        if well_begun {
            bytes = [b"\x02R\x00", &id.as_bytes()[..], &[0; 108], &bytes].concat();
        }
        let bytes = Bytes::from(bytes);
        if let Ok(record) = Record::decode(&id, &bytes) {
            prop_assert_eq!(record.encode(), bytes);
        }
    }

    #[test]
    fn a_flipped_bit_is_never_the_same_record(record in records(), bit: prop::sample::Index) {
        let mut bytes = record.encode();
        let bit = bit.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_ne!(Record::decode(&record.id, &bytes.into()), Ok(record));
    }
}

#[test]
fn a_newer_record_is_beyond_this_process_and_anything_else_is_damaged() {
    assert_eq!(Undecodable::Version(VERSION + 1).error_kind(), ErrorKind::Full);
    for damaged in [
        Undecodable::Version(VERSION - 1),
        Undecodable::Short,
        Undecodable::Malformed,
        Undecodable::Foreign,
    ] {
        assert_eq!(damaged.error_kind(), ErrorKind::Corrupt, "{damaged:?}");
    }
}
