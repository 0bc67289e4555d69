//! Bodies that are too large for memory.

use std::path::Path;

use axum::body::Body;
use axum::extract::Request;
use http_body_util::BodyExt;
use idemptx::store::MemoryStore;
use idemptx::{Bypass, Code, Engine, Outcome, Policy, Spool};
use idemptx_core::fingerprint::{BodyRule, FingerprintRule};
use idemptx_core::policy::{Mode, OnLargeBody, PolicyBuilder};

use super::app;
use crate::support::http_client::{post, posted, send};
use crate::support::scripted_body::{Piece, ScriptedBody};

const LIMIT: u64 = 1000;

fn engine(
    spool: &Spool,
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
) -> Engine<MemoryStore> {
    let policy = Policy::draft().into_builder().request_bytes_max(LIMIT);
    let policy = change(policy.on_large_body(OnLargeBody::Stream)).build().unwrap();
    Engine::builder(MemoryStore::new()).policy(policy).spool(spool.clone()).build().unwrap()
}

fn spool() -> Spool {
    Spool::new(std::env::temp_dir())
}

/// A body of so many bytes, none like its neighbour.
fn bytes(count: usize) -> Vec<u8> {
    (0..count).map(|number| (number % 251) as u8).collect()
}

async fn echo(request: Request) -> Vec<u8> {
    request.into_body().collect().await.unwrap().to_bytes().to_vec()
}

#[tokio::test]
async fn a_large_body_reaches_the_handler_whole_and_is_told_from_others() {
    let (spool, large) = (spool(), bytes(3_000_000));
    let engine = engine(&spool, |policy| policy.response_bytes_max(4_000_000));
    let (app, count) = app(&engine, echo);
    let first = send(&app, posted("k", large.clone())).await;
    assert_eq!((first.status.as_u16(), &first.body[..]), (200, &large[..]));
    let again = send(&app, posted("k", large.clone())).await;
    assert!(again.is_replay() && again.body == first.body, "{:?}", again.headers);

    let mut other = large;
    *other.last_mut().unwrap() ^= 1;
    send(&app, posted("k", other)).await.refused(422, "key-reused");
    assert_eq!(count.runs(), 1);
    assert_eq!(spool.used(), 0, "nothing is left behind");
}

#[tokio::test]
async fn a_large_body_has_one_fingerprint_however_it_comes() {
    let (spool, large) = (spool(), bytes(5_000));
    let engine = engine(&spool, |policy| policy);
    let (app, count) = app(&engine, echo);
    let declared = send(&app, posted("k", large.clone())).await;
    assert_eq!(declared.status, 200);
    let pieces: Vec<_> = large.chunks(7).map(|it| Piece::data(it.to_vec())).collect();
    let streamed = send(&app, posted("k", Body::new(ScriptedBody::new(pieces)))).await;
    assert!(streamed.is_replay());
    assert_eq!(count.runs(), 1);
}

#[tokio::test]
async fn trailers_come_behind_a_large_body() {
    let spool = spool();
    let engine = engine(&spool, |policy| policy);
    let (app, _) = app(&engine, async |request: Request| {
        let body = request.into_body().collect().await.unwrap();
        body.trailers().unwrap()["x-sum"].to_str().unwrap().to_owned()
    });
    let trailers = [("x-sum".parse().unwrap(), "42".parse().unwrap())].into_iter().collect();
    let body = ScriptedBody::new([Piece::data(bytes(2_000)), Piece::Trailers(trailers)]);
    send(&app, posted("k", Body::new(body))).await.answered(200, "42");
}

#[tokio::test]
async fn a_body_without_room_is_refused_and_claims_nothing() {
    let rows = [
        (spool().bytes_max(1_500), 413, "body-too-large"),
        (spool().total_bytes_max(1_500), 503, "store-unavailable"),
        (Spool::new(Path::new("/nowhere/at/all")), 503, "store-unavailable"),
    ];
    for (spool, status, code) in rows {
        let engine = engine(&spool, |policy| policy);
        let (app, count) = app(&engine, echo);
        let pieces: Vec<_> = bytes(2_000).chunks(100).map(|it| Piece::data(it.to_vec())).collect();
        let body = Body::new(ScriptedBody::new(pieces));
        send(&app, posted("k", body)).await.refused(status, code);
        assert_eq!((count.runs(), spool.used()), (0, 0));
        assert!(engine.store().is_empty());
    }
}

#[tokio::test]
async fn a_large_body_that_ends_before_its_declared_length_claims_nothing() {
    let spool = spool();
    let engine = engine(&spool, |policy| policy);
    let (app, count) = app(&engine, echo);
    let pieces: Vec<_> = bytes(2_000).chunks(100).map(|it| Piece::data(it.to_vec())).collect();
    let whole = || ScriptedBody::new(pieces.clone());
    let cut_off = Body::new(whole().declaring(2_001));
    send(&app, posted("k", cut_off)).await.refused(400, "body-unreadable");
    assert_eq!((count.runs(), spool.used()), (0, 0));
    assert!(engine.store().is_empty());
    assert_eq!(send(&app, posted("k", Body::new(whole().declaring(2_000)))).await.status, 200);
}

#[tokio::test]
async fn a_body_that_declares_too_much_is_not_read() {
    let spool = spool().bytes_max(1_500);
    let engine = engine(&spool, |policy| policy);
    let (app, _) = app(&engine, echo);
    let body = ScriptedBody::new([Piece::data(bytes(2_000))]).declaring(2_000);
    let taken = body.taken();
    send(&app, posted("k", Body::new(body))).await.refused(413, "body-too-large");
    assert_eq!(taken.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_large_body_that_breaks_off_claims_nothing() {
    let spool = spool();
    let engine = engine(&spool, |policy| policy);
    let (app, count) = app(&engine, echo);
    let body = ScriptedBody::new([Piece::data(bytes(2_000)), Piece::Error]);
    send(&app, posted("k", Body::new(body))).await.refused(400, "body-unreadable");
    assert_eq!((count.runs(), spool.used()), (0, 0));
    assert!(engine.store().is_empty());
}

#[tokio::test]
async fn in_shadow_mode_a_body_without_room_passes_whole() {
    let spool = spool().bytes_max(1_500);
    let engine = engine(&spool, |policy| policy.mode(Mode::Shadow));
    let (app, _) = app(&engine, echo);
    let pieces: Vec<_> = bytes(3_000).chunks(100).map(|it| Piece::data(it.to_vec())).collect();
    let answer = send(&app, posted("k", Body::new(ScriptedBody::new(pieces)))).await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &bytes(3_000)[..]));
    let would = Outcome::Bypassed(Bypass::WouldRefuse(Code::BodyTooLarge));
    assert_eq!(answer.outcome(), &would);
}

#[tokio::test]
async fn a_body_that_the_fingerprint_looks_into_must_fit_into_memory() {
    let mut rule = FingerprintRule::default();
    rule.body = BodyRule::Json;
    let spool = spool();
    let engine = engine(&spool, |policy| policy.fingerprint(rule));
    let (app, count) = app(&engine, echo);
    let json = format!("\"{}\"", "a".repeat(2_000));
    let mut request = posted("k", json);
    request.headers_mut().insert("content-type", "application/json".parse().unwrap());
    send(&app, request).await.refused(413, "body-too-large");
    assert_eq!(count.runs(), 0);
}

#[tokio::test]
async fn without_room_nothing_can_be_streamed() {
    let policy = Policy::draft().into_builder().on_large_body(OnLargeBody::Stream).build().unwrap();
    let error = Engine::builder(MemoryStore::new()).policy(policy).build().unwrap_err();
    assert!(error.to_string().contains("EngineBuilder::spool"), "{error}");
    // Small bodies need none.
    let spool = Spool::new(Path::new("/nowhere/at/all"));
    let engine = engine(&spool, |policy| policy);
    let (app, _) = app(&engine, async |_| "done");
    send(&app, post("k")).await.answered(200, "done");
}
