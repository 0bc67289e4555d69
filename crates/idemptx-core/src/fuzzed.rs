//! Properties over arbitrary bytes.
//!
//! The targets under `fuzz/` run them guided by coverage, the tests below over random input.
//! Each function panics if its property does not hold.

mod input;
mod sequence;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Uri};

pub use self::sequence::exchange;

use self::input::Input;
use crate::fingerprint::{BodyRule, Fingerprint, FingerprintConfig, FingerprintRule};
use crate::key::{Key, RecordId};
use crate::policy::KeySyntax;
#[cfg(feature = "serde")]
use crate::policy::{Policy, Profile};
use crate::record::Record;
use crate::response::StoredResponse;

/// A key is bounded and printable, and both syntaxes read its quoted form as the same key.
pub fn key(data: &[u8]) {
    const BYTES_MAX: usize = 255;
    let Ok(line) = HeaderValue::from_bytes(data) else { return };
    let lenient = Key::from_lines([&line], KeySyntax::Lenient, BYTES_MAX);
    if let Ok(strict) = Key::from_lines([&line], KeySyntax::StrictSf, BYTES_MAX) {
        assert_eq!(lenient, Ok(strict));
    }
    let Ok(Some(key)) = lenient else { return };
    assert!((1..=BYTES_MAX).contains(&key.as_str().len()));
    let escaped = key.as_str().replace('\\', r"\\").replace('"', r#"\""#);
    let quoted = HeaderValue::from_str(&format!("\"{escaped}\"")).expect("a key is printable");
    for syntax in [KeySyntax::Lenient, KeySyntax::StrictSf] {
        assert_eq!(Key::from_lines([&quoted], syntax, BYTES_MAX), Ok(Some(key.clone())));
    }
}

/// A policy that is accepted is written as JSON that is accepted as the same policy.
#[cfg(feature = "serde")]
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for profile in [Profile::Draft, Profile::Stripe, Profile::Payments, Profile::Idemptx] {
        let Ok(policy) = Policy::from_json(profile, text) else { continue };
        if !policy.secrets.is_empty() || policy.naming_secret.is_some() {
            continue; // A secret is written as its id.
        }
        let written = policy.to_json();
        let read = Policy::from_json(profile, &written).expect("what was written is accepted");
        assert_eq!(read.to_json(), written);
    }
}

/// A record that can be read is written as a record with the same content.
pub fn record(data: &[u8]) {
    let Some(id) = data.get(3..35).and_then(|id| id.try_into().ok()) else { return };
    let id = RecordId::from_bytes(id);
    let Ok(record) = Record::decode(&id, &Bytes::copy_from_slice(data)) else { return };
    let written = Bytes::from(record.encode());
    assert_eq!(Record::decode(&id, &written), Ok(record));
}

/// A response that can be read is written as a response with the same content.
pub fn response(data: &[u8]) {
    let Ok(response) = StoredResponse::decode(&Bytes::copy_from_slice(data)) else { return };
    let read = StoredResponse::decode(&response.encode()).expect("what was written can be read");
    assert_eq!(read.status, response.status);
    assert_eq!(read.headers, response.headers);
    assert_eq!(read.body, response.body);
    assert_eq!(read.trailers, response.trailers);
}

/// A JSON body has the fingerprint of its chunks, however they are cut.
pub fn json(data: &[u8]) {
    cut(data, BodyRule::Json, "application/json");
}

/// A form has the fingerprint of its chunks, however they are cut.
pub fn form(data: &[u8]) {
    cut(data, BodyRule::Form, "application/x-www-form-urlencoded");
}

/// A multipart body has the fingerprint of its chunks, however they are cut.
pub fn multipart(data: &[u8]) {
    cut(data, BodyRule::Multipart, "multipart/form-data; boundary=b");
}

fn cut(data: &[u8], body: BodyRule, content_type: &'static str) {
    let mut input = Input::new(data);
    let cuts = [input.byte(), input.byte(), input.byte()].map(usize::from);
    let body_bytes = input.rest();
    let rule = FingerprintRule { body, ..FingerprintRule::default() };
    let config = FingerprintConfig::new(Some(&rule), &[], None);
    let whole = fingerprint(&config, content_type, &[body_bytes]);
    let mut rest = body_bytes;
    let mut chunks = Vec::new();
    for at in cuts {
        let (chunk, others) = rest.split_at(at.min(rest.len()));
        chunks.push(chunk);
        rest = others;
    }
    chunks.push(rest);
    assert_eq!(fingerprint(&config, content_type, &chunks), whole);
}

fn fingerprint(
    config: &FingerprintConfig,
    content_type: &'static str,
    chunks: &[&[u8]],
) -> Fingerprint {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    let mut fingerprinter = config.start(&Method::POST, &Uri::from_static("/"), &headers);
    for chunk in chunks {
        fingerprinter.update(chunk);
    }
    fingerprinter.finish()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes as they come, and bytes in which a parser gets further.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let words = [
            "\"",
            "\\",
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "1",
            "0.0",
            "e5",
            "\\u0041",
            "null",
            "a",
            "&",
            "=",
            "%41",
            "+",
            "--b",
            "--",
            "\r\n",
            "\r\n\r\n",
            "\x02D\x01",
            "\x02R\x01",
            "\0",
            "\x7f",
            "content-disposition: form-data; name=a",
            "\"retain_ms\":",
            "\"methods\":",
            "\"5xx\"",
        ];
        let word = prop::sample::select(words.to_vec()).prop_map(|it| it.as_bytes().to_vec());
        let any_bytes = prop::collection::vec(any::<u8>(), 0..40);
        let piece = prop_oneof![3 => word, 1 => any_bytes];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn every_property_holds_over_arbitrary_bytes(data in bytes()) {
            key(&data);
            #[cfg(feature = "serde")]
            policy(&data);
            record(&data);
            response(&data);
            json(&data);
            form(&data);
            multipart(&data);
        }

        #[test]
        fn exchanges_keep_their_promises_over_arbitrary_events(
            data in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            exchange(&data);
        }
    }
}
