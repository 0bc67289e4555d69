//! Operations whose process ended in the middle of them.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use idemptx::operator::RecordStatus;
use idemptx::store::AnyStore;
use idemptx::{Engine, ProbeResult, StoredResponse};
use idemptx_core::policy::OnOrphan;
use idemptx_core::response::ReplayRules;

use super::environment::Environment;
use crate::support::app::App;

pub(crate) async fn an_orphan_is_dealt_with_as_the_policy_says(place: &Environment) {
    let orphan = place.orphan("again").await;
    assert_eq!((orphan.status, orphan.claim.attempt), (RecordStatus::Orphaned, 1));
    let app = place.process(|policy| policy.on_orphan(OnOrphan::Reexecute));
    app.post("again").await.answered(200, "run 1");
    assert_eq!(app.runs.last().attempt(), 2);
    assert!(app.runs.last().fence() > orphan.claim.fence);
    assert!(app.post("again").await.is_replay());

    place.orphan("doubt").await;
    let app = place.process(|policy| policy.on_orphan(OnOrphan::Quarantine));
    for _ in 0..2 {
        let reply = app.post("doubt").await;
        reply.refused(409, "outcome-unknown");
        assert_eq!(reply.problem()["safe_new_key"], false);
    }
    assert_eq!(app.runs.began(), 0);
    assert_eq!(place.comes_to("doubt", RecordStatus::Orphaned).await.claim.attempt, 1);

    place.orphan("happened").await;
    let (headers, rules) = (HeaderMap::new(), ReplayRules::default());
    let found = Bytes::from_static(b"found");
    let found = StoredResponse::capture(StatusCode::CREATED, &headers, found, None, &rules);
    let app = probing(place, ProbeResult::Happened(found));
    for _ in 0..2 {
        let reply = app.post("happened").await;
        reply.answered(201, "found");
        assert!(reply.is_replay());
    }
    assert_eq!(app.runs.began(), 0);

    place.orphan("did-not").await;
    let app = probing(place, ProbeResult::NotHappened);
    app.post("did-not").await.answered(200, "run 1");
    assert_eq!(app.runs.last().attempt(), 2);

    place.orphan("who-knows").await;
    let reply = probing(place, ProbeResult::Unknown).post("who-knows").await;
    reply.refused(409, "outcome-unknown");
    assert_eq!(reply.header("retry-after"), Some("5"));
    place.comes_to("who-knows", RecordStatus::Orphaned).await;
}

fn probing(place: &Environment, known: ProbeResult) -> App<AnyStore> {
    let policy = place.process(|policy| policy).engine.policy().clone();
    let builder = Engine::builder(place.open()).policy(policy);
    App::quick(builder.probe(move |_| std::future::ready(known.clone())).build().unwrap())
}
