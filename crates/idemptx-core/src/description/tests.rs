use http::{HeaderMap, StatusCode};

use super::*;
use crate::response::StoredResponse;

fn description() -> Description {
    Description {
        method: "POST".into(),
        path: "/accounts/17/payments".into(),
        route: "payments".into(),
        service: "bank".into(),
    }
}

#[test]
fn what_is_described_is_read_back() {
    let encoded = description().encode();
    assert_eq!(Description::of(&encoded), Some(description()));
    assert_eq!(Description::of(&Bytes::new()), None);
    let bare = Description { route: String::new(), service: String::new(), ..description() };
    assert_eq!(Description::of(&bare.encode()), Some(bare));
}

#[test]
fn a_reader_that_does_not_know_descriptions_reads_the_response() {
    let mut headers = HeaderMap::new();
    headers.insert("location", "/payments/1".parse().unwrap());
    let body = Bytes::from_static(b"paid");
    let stored =
        StoredResponse { status: StatusCode::CREATED, headers, body, trailers: HeaderMap::new() };
    let payload = described(&description().encode(), stored.encode());
    assert_eq!(StoredResponse::decode(&payload), Ok(stored.clone()));
    assert_eq!(Description::of(&payload), Some(description()));
    assert_eq!(encoded(&payload), description().encode());
    assert_eq!(described(&Bytes::new(), stored.encode()), stored.encode());
    assert_eq!(encoded(&stored.encode()), Bytes::new());
    assert_eq!(described(&description().encode(), Bytes::new()), description().encode());
}

#[test]
fn a_description_is_short_whatever_the_client_sends() {
    let long = |text: &str| text.repeat(10_000);
    let described =
        Description { method: long("M"), path: long("/ü"), route: long("r"), service: long("s") };
    let encoded = described.encode();
    assert!(encoded.len() <= Description::BYTES_MAX - SEALED_BYTES, "{}", encoded.len());
    let read = Description::of(&encoded).unwrap();
    assert!(read.path.starts_with("/ü/ü") && read.path.ends_with("..."), "{}", read.path);
    assert!(read.path.len() <= Description::PATH_BYTES_MAX);
    assert_eq!(read.method.len(), Description::PART_BYTES_MAX);
}

#[test]
fn a_description_that_is_cut_short_is_none() {
    let encoded = description().encode();
    for length in 0..encoded.len() {
        assert_eq!(Description::of(&encoded.slice(..length)), None, "{length}");
    }
}

/// The bytes that sealing adds.
const SEALED_BYTES: usize = 64;
