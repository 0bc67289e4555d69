//! Finding the record of a client's key.

use http::{Method, Request};
use idemptx::operator::Operator;
use idemptx::store::AnyStore;
use idemptx::{Engine, Key, Policy, RecordId, Scope};
use idemptx_core::exchange::Head;
use idemptx_core::policy::ScopeRule;
use idemptx_core::secret::Secret;

use super::environment::Environment;
use crate::support::app::{App, engine};
use crate::support::http_client::send;

#[tokio::test]
async fn a_key_is_found_in_its_scope() {
    let place = Environment::memory();
    let by_account = || ScopeRule::Header("x-account".parse().unwrap());
    let app = App::quick(engine(place.open(), |policy| policy.scope(by_account())));
    let request = Request::post("/orders").header("idempotency-key", "\"k\"");
    let request = request.header("x-account", "acme").body(axum::body::Body::empty()).unwrap();
    send(&app.router, request).await.answered(200, "run 1");
    let operator = app.engine.operator();
    let found = operator.ids(&Scope::new("acme"), &key("k"), None);
    let sighting = operator.find(&found).await.unwrap().unwrap();
    assert_eq!(sighting.response.unwrap().body, "run 1");
    let derived = operator.derive(&Scope::new("acme"), &key("k"), "charge");
    assert_eq!(derived, Some(app.runs.last().derive("charge")));
    assert_eq!(operator.scopes(&Scope::new("acme"), None), [sighting.id.scope_bytes()]);
    let other = operator.ids(&Scope::new("other"), &key("k"), None);
    assert_eq!(operator.find(&other).await.unwrap(), None);
    assert_eq!(sighting.id.to_string().parse::<RecordId>(), Ok(sighting.id));
}

#[tokio::test]
async fn a_key_is_found_on_its_route() {
    let place = Environment::memory();
    let policy = Policy::idemptx();
    let app = App::quick(Engine::builder(place.open()).policy(policy).build().unwrap());
    app.post("k").await.answered(200, "run 1");
    let operator = app.engine.operator();
    let find = async |route| {
        operator.find(&operator.ids(&Scope::shared(), &key("k"), route)).await.unwrap()
    };
    assert!(find(Some((&Method::POST, "/orders"))).await.is_some());
    assert!(find(Some((&Method::PATCH, "/orders"))).await.is_none());
    assert!(find(None).await.is_none());
}

#[tokio::test]
async fn a_derived_key_is_that_of_the_execution_or_none() {
    for policy in [Policy::draft(), Policy::idemptx()] {
        let place = Environment::memory();
        let app = App::quick(Engine::builder(place.open()).policy(policy).build().unwrap());
        let request = || {
            let request = Request::post("/orders").header("idempotency-key", "k");
            request.header("authorization", "Bearer a").body(axum::body::Body::empty()).unwrap()
        };
        send(&app.router, request()).await.answered(200, "run 1");
        let operator = app.engine.operator();
        assert_eq!(operator.derive(&Scope::shared(), &key("k"), "charge"), None);
        let derive = |request: Request<_>| {
            let (parts, _) = request.into_parts();
            operator.derive_for(&Head::new(&parts.method, &parts.uri, &parts.headers), "charge")
        };
        assert_eq!(derive(request()), Some(app.runs.last().derive("charge")));
        let mut other = request();
        other.headers_mut().remove("authorization");
        assert_ne!(derive(other), derive(request()));
        let mut keyless = request();
        keyless.headers_mut().remove("idempotency-key");
        assert_eq!(derive(keyless), None);
    }
}

#[tokio::test]
async fn a_key_has_one_record_whatever_secrets_rotate() {
    let place = Environment::memory();
    let secrets = [1, 2].map(|id| Secret::new(id, &[id; 32]).unwrap());
    let keyed = |secrets: &[Secret]| {
        let secrets = secrets.to_vec();
        Policy::draft().into_builder().secrets(secrets).build().unwrap()
    };
    let old = Engine::builder(place.open()).policy(keyed(&secrets[..1])).build().unwrap();
    App::quick(old).post("k").await.answered(200, "run 1");
    let rotated = keyed(&[secrets[1].clone(), secrets[0].clone()]);
    let operator: Operator<AnyStore> = Operator::new(place.open(), rotated).unwrap();
    let ids = operator.ids(&Scope::shared(), &key("k"), None);
    assert_eq!(ids.len(), 1);
    assert_eq!(operator.find(&ids).await.unwrap().map(|view| view.id), Some(ids[0]));
}

#[tokio::test]
async fn an_operator_finds_the_records_of_its_namespace() {
    let place = Environment::memory();
    let engine = Engine::builder(place.open()).namespace("shop").build().unwrap();
    App::quick(engine).post("k").await.answered(200, "run 1");
    for (namespace, is_found) in [("shop", true), ("bank", false), ("", false)] {
        let operator = Operator::new(place.open(), Policy::draft()).unwrap().namespace(namespace);
        let ids = operator.ids(&Scope::shared(), &key("k"), None);
        let found = operator.find(&ids).await.unwrap();
        assert_eq!(found.is_some(), is_found, "{namespace}");
    }
}

fn key(text: &str) -> Key {
    Key::new(text, 255).unwrap()
}
