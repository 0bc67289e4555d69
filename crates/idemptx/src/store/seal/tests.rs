#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::error::Error as _;
use std::time::Duration;

use bytes::Bytes;
use idemptx_core::description::Description;
use idemptx_core::fingerprint::Fingerprint;
use idemptx_core::key::RecordId;
use idemptx_core::lease::{Lease, Token};
use idemptx_core::record::{Record, State};
use idemptx_core::store::{
    Claim, ClaimRequest, ErrorKind, Inventory, Query, RecordSnapshot, Settlement, Store, StoreError,
};
use proptest::prelude::*;

use super::envelope::{self, SealContext};
use super::{InvalidKeys, Seal, SealKey, SealKeys, Sealed, Unopened};
use crate::store::{AnyStore, MemoryStore, SafetyCheck, Severity};

#[test]
fn the_format_is_what_other_implementations_make_of_it() {
    for golden in Golden::all() {
        let keys = SealKeys::new(golden.key.clone());
        let owner = SealContext::settling(&golden.lease, golden.state);
        let opened = envelope::open(&keys, owner, &golden.sealed).unwrap();
        assert_eq!(opened, golden.payload, "{}", golden.name);
        // How well a library compresses is not part of the format.
        if golden.sealed[1] == 0 {
            let sealed = envelope::seal(&golden.key, owner, &golden.payload, true, &golden.nonce);
            assert_eq!(sealed.unwrap(), golden.sealed, "{}", golden.name);
        }
    }
}

#[test]
fn a_change_of_any_bit_keeps_it_shut() {
    for golden in Golden::all() {
        let keys = SealKeys::new(golden.key.clone());
        let owner = SealContext::settling(&golden.lease, golden.state);
        for position in 0..golden.sealed.len() {
            for bit in 0..8 {
                let mut bent = golden.sealed.clone();
                bent[position] ^= 1 << bit;
                let opened = envelope::open(&keys, owner, &bent);
                assert!(opened.is_err(), "{}, byte {position}, bit {bit}", golden.name);
            }
        }
    }
}

#[test]
fn a_part_of_it_keeps_shut() {
    for golden in Golden::all() {
        let keys = SealKeys::new(golden.key.clone());
        let owner = SealContext::settling(&golden.lease, golden.state);
        for length in 0..golden.sealed.len() {
            assert!(envelope::open(&keys, owner, &golden.sealed[..length]).is_err());
        }
        let longer = [&golden.sealed[..], b"x"].concat();
        assert_eq!(envelope::open(&keys, owner, &longer), Err(Unopened::Foreign(golden.key.id())));
    }
}

#[test]
fn it_opens_for_its_own_record_alone() {
    let golden = Golden::all().remove(0);
    let keys = SealKeys::new(golden.key.clone());
    let mut others: Vec<Lease> = vec![golden.lease.clone(); 5];
    others[0].id = RecordId::from_bytes([9; RecordId::BYTES]);
    others[1].token = Token::from_bytes([9; Token::BYTES]);
    others[2].fingerprint.config += 1;
    others[3].fingerprint.digest[31] ^= 1;
    others[4].fingerprint.binding[0] ^= 1;
    for other in &others {
        let opened =
            envelope::open(&keys, SealContext::settling(other, State::Completed), &golden.sealed);
        assert_eq!(opened, Err(Unopened::Foreign(7)));
    }
    let elsewhere = SealContext::settling(&golden.lease, State::NotReplayable);
    assert_eq!(envelope::open(&keys, elsewhere, &golden.sealed), Err(Unopened::Foreign(7)));
}

#[test]
fn what_says_it_is_larger_than_anything_that_is_compressed_is_not_inflated() {
    // Sealed by somebody who has the key and ignores the limit.
    let (key, lease) = (key(1), lease());
    let claims = |length: u32| {
        let frame = zstd::bulk::compress(&[0; 2000], 1).unwrap();
        let inside = [&length.to_be_bytes()[..], &frame].concat();
        let owner = SealContext::settling(&lease, State::Completed);
        let mut sealed = envelope::seal(&key, owner, &inside, false, &[0; 24]).unwrap().to_vec();
        reseal_as_compressed(&mut sealed, &inside, &key, &lease);
        envelope::open(&SealKeys::new(key.clone()), owner, &sealed)
    };
    assert_eq!(claims(2000).unwrap().len(), 2000);
    assert_eq!(claims(1999), Err(Unopened::Malformed));
    assert_eq!(claims(2001), Err(Unopened::Malformed));
    assert_eq!(claims(64 << 20), Err(Unopened::Malformed));
    assert_eq!(claims((64 << 20) + 1), Err(Unopened::TooLarge((64 << 20) + 1)));
}

#[test]
fn only_what_gets_smaller_by_a_margin_is_compressed() {
    let noise: Vec<u8> = (0..4096_u32).flat_map(blake3_of).take(4096).collect();
    let text = b"idempotency ".repeat(341);
    for (payload, compressed) in [
        (&text[..], true),
        (&text[..1025], true),
        (&text[..1024], false),
        (&noise[..], false),
        (b"", false),
    ] {
        let owner_lease = lease();
        let owner = SealContext::settling(&owner_lease, State::Completed);
        let sealed = envelope::seal(&key(1), owner, payload, true, &[0; 24]).unwrap();
        assert_eq!(sealed[1] == 1, compressed, "{} bytes", payload.len());
        if !compressed {
            assert_eq!(sealed.len(), payload.len() + 46);
        }
        let plain = envelope::seal(&key(1), owner, payload, false, &[0; 24]).unwrap();
        assert_eq!(plain[1], 0);
    }
}

proptest! {
    #[test]
    fn what_is_sealed_opens_again(
        payload in proptest::collection::vec(any::<u8>(), 0..3000),
        repeats in 1_usize..5,
        compress: bool,
        nonce: [u8; 24],
        secret in proptest::collection::vec(any::<u8>(), 32..80),
    ) {
        let Ok(key) = SealKey::new(3, &secret) else { return Ok(()) };
        let payload = payload.repeat(repeats);
        let lease = lease();
        let owner = SealContext::settling(&lease, State::Completed);
        let sealed = envelope::seal(&key, owner, &payload, compress, &nonce).unwrap();
        prop_assert!(sealed.len() <= payload.len() + 46);
        prop_assert_eq!(envelope::open(&SealKeys::new(key), owner, &sealed).unwrap(), payload);
    }

    #[test]
    fn arbitrary_bytes_are_refused_and_nothing_worse(bytes: Vec<u8>, start: [u8; 6]) {
        let lease = lease();
        let owner = SealContext::settling(&lease, State::Completed);
        let keys = SealKeys::new(SealKey::new(u32::from_be_bytes([start[2], start[3], start[4], start[5]]), &[7, 8].repeat(16)).unwrap());
        for bytes in [bytes.clone(), [&[0xE1, start[1] & 1][..], &start[2..], &bytes].concat()] {
            prop_assert!(envelope::open(&keys, owner, &bytes).is_err());
        }
    }
}

#[tokio::test]
async fn the_store_beneath_sees_nothing_of_a_response() {
    let (store, lease) = claimed().await;
    let payload = Bytes::from("a secret that must not rest anywhere".repeat(50));
    store.settle(&lease, &done(&payload)).await.unwrap();
    let Some(RecordSnapshot::Settled(beneath)) = store.inner().lookup(&lease.id).await.unwrap()
    else {
        panic!("it was settled")
    };
    assert!(!beneath.payload.windows(8).any(|part| part == b"a secret"));
    assert!(beneath.payload.len() < payload.len() / 4, "and it is compressed");
    assert_eq!(settled(&store, &lease).await.unwrap().payload, payload);
}

#[tokio::test]
async fn two_sealings_of_one_response_have_nothing_in_common() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (store, lease) = claimed().await;
        store.settle(&lease, &done(b"the same")).await.unwrap();
        seen.push(settled(store.inner(), &lease).await.unwrap().payload);
    }
    assert_ne!(seen[0][6..], seen[1][6..]);
}

#[tokio::test]
async fn older_keys_open_until_they_are_taken_away() {
    let (store, lease) = claimed().await;
    store.settle(&lease, &done(b"sealed before")).await.unwrap();
    let beneath = store.into_inner();
    let rotated = SealKeys::new(key(2)).and(key(1)).unwrap();
    let store = Sealed::new(beneath, rotated);
    assert_eq!(&settled(&store, &lease).await.unwrap().payload[..], b"sealed before");
    let store = Sealed::new(store.into_inner(), SealKeys::new(key(2)));
    corrupt(settled(&store, &lease).await, Unopened::UnknownKey(1));
    // Another key under the same id is no better.
    let mistaken = SealKey::new(1, &[1, 2].repeat(16)).unwrap();
    let store = Sealed::new(store.into_inner(), SealKeys::new(mistaken));
    corrupt(settled(&store, &lease).await, Unopened::Foreign(1));
    // Neither refusal has harmed it.
    let store = Sealed::new(store.into_inner(), SealKeys::new(key(1)));
    assert_eq!(&settled(&store, &lease).await.unwrap().payload[..], b"sealed before");
}

#[tokio::test]
async fn what_was_never_sealed_is_refused_unless_it_is_being_adopted() {
    let beneath = MemoryStore::new();
    let lease = claim(&beneath).await;
    beneath.settle(&lease, &done(b"\x01\x40\xc8")).await.unwrap();
    let store = Sealed::new(beneath, SealKeys::new(key(1)));
    corrupt(settled(&store, &lease).await, Unopened::Unsealed);
    let adopting = Seal::with(SealKeys::new(key(1))).accept_unsealed(true);
    let store = Sealed::new(store.into_inner(), adopting);
    assert_eq!(&settled(&store, &lease).await.unwrap().payload[..], b"\x01\x40\xc8");
    let report = store.check().await.unwrap();
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.findings[0].severity, Severity::Warning);
    assert!(report.guarantee.ends_with("; results are sealed with XChaCha20-Poly1305 under key 1"));
}

#[tokio::test]
async fn adopting_does_not_let_a_damaged_seal_pass() {
    let beneath = MemoryStore::new();
    let lease = claim(&beneath).await;
    beneath.settle(&lease, &done(b"\xE1\x00 but cut short")).await.unwrap();
    let adopting = Seal::with(SealKeys::new(key(1))).accept_unsealed(true);
    let store = Sealed::new(beneath, adopting);
    corrupt(settled(&store, &lease).await, Unopened::Short);
}

#[tokio::test]
async fn an_outcome_that_is_unknown_has_nothing_to_seal() {
    let (store, lease) = claimed().await;
    let unknown = Settlement::new(State::Unknown, Bytes::new(), LONG, LONG);
    store.settle(&lease, &unknown).await.unwrap();
    let beneath = settled(store.inner(), &lease).await.unwrap();
    assert!(beneath.payload.is_empty());
    assert_eq!(settled(&store, &lease).await.unwrap(), beneath);
}

#[test]
fn keys_are_read_in_every_usual_spelling() {
    let bytes: Vec<u8> = (200..232).collect();
    let key = SealKey::new(9, &bytes).unwrap();
    for secret in [
        "c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7",
        "C8C9CACBCCCDCECFD0D1D2D3D4D5D6D7D8D9DADBDCDDDEDFE0E1E2E3E4E5E6E7",
        "yMnKy8zNzs/Q0dLT1NXW19jZ2tvc3d7f4OHi4+Tl5uc=",
        "yMnKy8zNzs_Q0dLT1NXW19jZ2tvc3d7f4OHi4-Tl5uc",
    ] {
        let read: SealKey = format!("9:{secret}").parse().unwrap();
        assert_eq!((read.id(), read.expose()), (9, key.expose()), "{secret}");
    }
}

#[test]
fn a_longer_secret_is_a_key_of_its_own() {
    let long: Vec<u8> = (0..48).collect();
    let key = SealKey::new(1, &long).unwrap();
    assert_ne!(key.expose()[..], long[..32]);
    assert_ne!(key.expose(), SealKey::new(1, &long[..47]).unwrap().expose());
}

#[test]
fn keys_that_are_none_are_refused_without_repeating_them() {
    let good = "1:c8c9cacbcccdcecfd0d1d2d3d4d5d6d7d8d9dadbdcdddedfe0e1e2e3e4e5e6e7";
    let twice = format!("{good}\n{good}");
    for (text, said) in [
        ("", "no keys"),
        ("# only a comment", "no keys"),
        ("c8c9cacb", "`ID:SECRET`"),
        ("one:c8c9cacb", "`ID:SECRET`"),
        ("-1:c8c9cacb", "`ID:SECRET`"),
        ("4294967296:c8c9cacb", "`ID:SECRET`"),
        ("1:c8c9cacb", "32 random bytes"),
        ("1:", "32 random bytes"),
        ("1:correct horse battery staple!", "`ID:SECRET`"),
        (&twice, "two keys have the id 1"),
    ] {
        let error = text.parse::<SealKeys>().unwrap_err().to_string();
        assert!(error.contains(said), "{text:?}: {error}");
        assert!(!error.contains("c8c9"), "{error}");
    }
    assert!(SealKey::new(1, &[0; 32]).is_err(), "zeros are no secret");
    assert!(SealKey::new(1, &[1, 2].repeat(513)).is_err());
}

#[test]
fn a_key_ring_is_read_from_a_file_with_comments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("seal.keys");
    assert!(SealKeys::from_file(&path).unwrap_err().source().is_some());
    let secret = |byte: u8| format!("{:02x}{:02x}", byte, byte + 1).repeat(16);
    let text = format!("# new\n2:{}  # since May\n\n  1:{}\n", secret(2), secret(1));
    std::fs::write(&path, text).unwrap();
    let keys = SealKeys::from_file(&path).unwrap();
    assert_eq!(keys.first().id(), 2);
    assert!(keys.find(1).is_some() && keys.find(3).is_none());
    let shown = format!("{keys:?} {:?}", Seal::with(keys.clone()));
    assert!(shown.contains("redacted") && !shown.contains("0203") && !shown.contains("[2, 3"));
}

#[test]
fn a_ring_has_a_limit() {
    let ring = |keys: u32| (1..keys).try_fold(SealKeys::new(key(0)), |ring, id| ring.and(key(id)));
    assert!(ring(256).is_ok());
    assert!(matches!(ring(257), Err(InvalidKeys { .. })));
}

#[tokio::test]
async fn any_store_is_sealed_beneath_what_is_near() {
    let one = AnyStore::from_url("memory:").unwrap().sealed(SealKeys::new(key(1))).near(1 << 20);
    let two = AnyStore::from_url("memory:").unwrap().near(1 << 20).sealed(SealKeys::new(key(1)));
    for store in [one, two] {
        let layers = format!("{store:?}");
        assert!(layers.starts_with("NearCache { store: Sealed { store: MemoryStore"), "{layers}");
        let lease = claim(&store).await;
        store.settle(&lease, &done(b"result")).await.unwrap();
        assert_eq!(&settled(&store, &lease).await.unwrap().payload[..], b"result");
        store.near_cache().unwrap().clear();
        assert_eq!(&settled(&store, &lease).await.unwrap().payload[..], b"result");
        let guarantee = store.check().await.unwrap().guarantee;
        assert!(guarantee.contains("sealed") && guarantee.contains("1000 ms"), "{guarantee}");
    }
}

#[tokio::test]
async fn what_describes_a_claim_is_sealed_and_its_operators_read_it() {
    let description = Description::of(&described()).unwrap();
    let store = Sealed::new(MemoryStore::new(), SealKeys::new(key(1)));
    let request = request().described(described());
    let Ok(Claim::Granted(lease)) = store.claim(&id(), &request).await else { panic!("refused") };
    assert_eq!(lease.description, described());
    assert_eq!(store.renew(&lease).await.unwrap(), lease);
    let listed = async |store: &Sealed<MemoryStore>| {
        store.list(&Query::all()).await.unwrap().entries.pop().unwrap()
    };
    let beneath = store.inner().list(&Query::all()).await.unwrap().entries.pop().unwrap();
    assert_eq!(beneath.description(), None);
    assert!(!beneath.payload_head.windows(7).any(|part| part == b"/orders"));
    assert_eq!(listed(&store).await.description(), Some(description.clone()));
    let unknown = Settlement::new(State::Unknown, Bytes::new(), LONG, LONG).describing(&lease);
    store.settle(&lease, &unknown).await.unwrap();
    assert_eq!(listed(&store).await.description(), Some(description));
    assert_eq!(settled(&store, &lease).await.unwrap().payload, described());
    // With other keys it is listed all the same.
    let stranger = Sealed::new(store.into_inner(), SealKeys::new(key(2)));
    assert_eq!(listed(&stranger).await.description(), None);
}

fn described() -> Bytes {
    let mut description = Description::default();
    description.method = "POST".into();
    description.path = "/orders".into();
    description.encode()
}

async fn claimed() -> (Sealed<MemoryStore>, Lease) {
    let store = Sealed::new(MemoryStore::new(), SealKeys::new(key(1)));
    let lease = claim(&store).await;
    (store, lease)
}

async fn claim<S: Store>(store: &S) -> Lease {
    match store.claim(&id(), &request()).await {
        Ok(Claim::Granted(lease)) => lease,
        other => panic!("{other:?}"),
    }
}

/// Returns the record that a later claim finds; a lookup must find the same.
async fn settled<S: Store>(store: &S, lease: &Lease) -> Result<Record, StoreError> {
    let mut other = request();
    other.token = Token::from_bytes([0xEE; Token::BYTES]);
    let seen = store.lookup(&lease.id).await;
    match store.claim(&lease.id, &other).await {
        Ok(Claim::Found(RecordSnapshot::Settled(record))) => {
            assert_eq!(seen.unwrap(), Some(RecordSnapshot::Settled(record.clone())));
            Ok(record)
        }
        Err(error) => {
            assert_eq!(seen.unwrap_err().kind(), error.kind());
            Err(error)
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn corrupt(result: Result<Record, StoreError>, why: Unopened) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(error.source().unwrap().downcast_ref::<Unopened>(), Some(&why));
}

fn key(id: u32) -> SealKey {
    SealKey::new(id, &blake3_of(id)).unwrap()
}

fn blake3_of(number: u32) -> [u8; 32] {
    *blake3::hash(&number.to_be_bytes()).as_bytes()
}

fn id() -> RecordId {
    RecordId::from_bytes([0xA7; RecordId::BYTES])
}

fn request() -> ClaimRequest {
    let fingerprint =
        Fingerprint { config: 1, digest: [2; 32], binding: [3; 16], operation: [4; 16] };
    ClaimRequest::new(Token::from_bytes([4; Token::BYTES]), fingerprint, LONG, LONG)
}

fn lease() -> Lease {
    Lease::granted(id(), &request(), 1, 1)
}

fn done(payload: &[u8]) -> Settlement {
    Settlement::new(State::Completed, Bytes::copy_from_slice(payload), LONG, LONG)
}

const LONG: Duration = Duration::from_secs(3600);

/// Sets the flag of a compressed payload, and the tag that goes with it.
fn reseal_as_compressed(sealed: &mut Vec<u8>, inside: &[u8], key: &SealKey, lease: &Lease) {
    use chacha20poly1305::aead::{Aead, Payload};
    use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
    sealed[1] = 1;
    let fingerprint = lease.fingerprint;
    let associated = [
        &sealed[..6],
        b"D",
        lease.id.as_bytes(),
        lease.token.as_bytes(),
        &fingerprint.config.to_be_bytes(),
        &fingerprint.digest,
        &fingerprint.binding,
        &fingerprint.operation,
    ]
    .concat();
    let cipher = XChaCha20Poly1305::new(key.expose().into());
    let payload = Payload { msg: inside, aad: &associated };
    let encrypted = cipher.encrypt(&XNonce::from([0; 24]), payload).unwrap();
    sealed.truncate(30);
    sealed.extend(encrypted);
}

/// A payload of the golden file.
struct Golden {
    name: String,
    key: SealKey,
    state: State,
    lease: Lease,
    nonce: [u8; 24],
    payload: Vec<u8>,
    sealed: Vec<u8>,
}

impl Golden {
    fn all() -> Vec<Self> {
        let text = include_str!("../../../tests/fixtures/seal/1.txt");
        let all: Vec<_> = text.split("\n[").skip(1).map(Self::read).collect();
        assert_eq!(all.len(), 4);
        all
    }

    fn read(block: &str) -> Self {
        let (name, lines) = block.split_once("]\n").unwrap();
        let value = |name: &str| {
            let mut lines = lines.lines().filter_map(|line| line.split_once(" = "));
            lines.find(|(it, _)| *it == name).unwrap().1
        };
        let bytes = |name: &str| -> Vec<u8> {
            let digits = value(name).as_bytes().chunks(2);
            let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            digits.map(byte).collect()
        };
        let fingerprint = Fingerprint {
            config: u32::from_be_bytes(bytes("config").try_into().unwrap()),
            digest: bytes("digest").try_into().unwrap(),
            binding: bytes("binding").try_into().unwrap(),
            operation: bytes("operation").try_into().unwrap(),
        };
        let token = Token::from_bytes(bytes("token").try_into().unwrap());
        let id = RecordId::from_bytes(bytes("id").try_into().unwrap());
        Self {
            name: name.to_owned(),
            key: value("key").parse().unwrap(),
            state: if value("state") == "N" { State::NotReplayable } else { State::Completed },
            lease: Lease::granted(id, &ClaimRequest::new(token, fingerprint, LONG, LONG), 1, 1),
            nonce: bytes("nonce").try_into().unwrap(),
            payload: bytes("payload"),
            sealed: bytes("sealed"),
        }
    }
}
