//! `idemptx openapi`: what is added to a document.

use serde_json::Value;

use crate::support::command::idemptx;

fn file(name: &str) -> String {
    format!("{}/tests/openapi/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn merged(input: &str, rest: &[&str]) -> String {
    let ended = idemptx(&[&["openapi", "--merge", input], rest].concat());
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.stdout
}

/// Converts a document from YAML to JSON.
fn json(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap()
}

#[test]
fn a_document_gets_what_the_routes_promise() {
    let (input, config) = (file("shop.yaml"), file("idemptx.toml"));
    let ended = idemptx(&["openapi", "--merge", &input, "--config", &config]);
    assert_eq!(ended.code, 0, "{ended:?}");
    ended.is("../openapi/shop-merged.yaml");
}

#[test]
fn a_second_run_changes_nothing_and_another_policy_replaces_what_was_added() {
    let folder = tempfile::tempdir().unwrap();
    let (once, twice) = (folder.path().join("once.yaml"), folder.path().join("twice.yaml"));
    let (once, twice) = (once.to_str().unwrap(), twice.to_str().unwrap());
    let config = file("idemptx.toml");
    merged(&file("shop.yaml"), &["--config", &config, "--output", once]);
    merged(once, &["--config", &config, "--output", twice]);
    let text = |path: &str| std::fs::read_to_string(path).unwrap();
    assert_eq!(text(once), text(twice));
    let direct = merged(&file("shop.yaml"), &["--profile", "draft"]);
    assert_eq!(merged(once, &["--profile", "draft"]), direct);
}

#[test]
fn refusals_are_described_in_the_form_that_clients_get() {
    let yaml = merged(&file("shop.yaml"), &["--profile", "acp"]);
    let document = json(&yaml);
    let schemas = &document["components"]["schemas"];
    assert!(schemas["IdempotencyProblem"].is_null());
    let codes = schemas["IdempotencyError"]["properties"]["code"]["enum"].as_array().unwrap();
    assert!(codes.contains(&"idempotency_conflict".into()), "{codes:?}");
    let reused = &document["paths"]["/carts"]["post"]["responses"]["422"]["content"];
    let reused = &reused["application/json"];
    assert_eq!(reused["schema"]["$ref"], "#/components/schemas/IdempotencyError");
    assert_eq!(reused["x-idempotency-codes"], serde_json::json!(["idempotency_conflict"]));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("acp.yaml");
    std::fs::write(&path, yaml).unwrap();
    let direct = merged(&file("shop.yaml"), &["--profile", "draft"]);
    assert_eq!(merged(path.to_str().unwrap(), &["--profile", "draft"]), direct);
}

#[test]
fn what_somebody_wrote_stays() {
    let before = json(&std::fs::read_to_string(file("shop.yaml")).unwrap());
    let mut after = json(&merged(&file("shop.yaml"), &["--config", &file("idemptx.toml")]));
    take_away(&mut after);
    assert_eq!(after, before);
}

#[test]
fn a_document_in_json_stays_json_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api.json");
    let text = r#"{"paths":{"/b":{"patch":{}},"/a":{"get":{}}},"openapi":"3.0.3","info":{}}"#;
    std::fs::write(&path, text).unwrap();
    let merged = merged(path.to_str().unwrap(), &[]);
    let document: Value = serde_json::from_str(&merged).unwrap();
    let order = ["\"paths\"", "\"/b\"", "\"/a\"", "\"openapi\"", "\"info\"", "\"components\""];
    let places: Vec<_> = order.iter().map(|it| merged.find(it).unwrap()).collect();
    assert!(places.is_sorted(), "{places:?}");
    let patch = &document["paths"]["/b"]["patch"];
    assert_eq!(patch["x-idempotency"]["response_retained_seconds"], 86_400);
    assert_eq!(patch["parameters"][0]["name"], "Idempotency-Key");
    assert_eq!(patch["parameters"][0]["required"], false);
    assert!(patch["responses"]["409"].is_object() && patch["responses"]["422"].is_object());
    assert_eq!(document["paths"]["/a"]["get"], serde_json::json!({}));
}

#[test]
fn what_is_no_such_document_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    for text in ["swagger: '2.0'\npaths: {}", "openapi: 3.1.0", "a: [", "{\"openapi\":\"3.0.0\",}"]
    {
        std::fs::write(&path, text).unwrap();
        let ended = idemptx(&["openapi", "--merge", path.to_str().unwrap()]);
        assert_eq!((ended.code, &*ended.stdout), (2, ""), "{text}: {ended:?}");
    }
}

/// Removes the marked additions.
fn take_away(node: &mut Value) {
    let is_added = |it: &Value| it.get("x-idempotency-generated").is_some();
    match node {
        Value::Array(items) => {
            items.retain(|it| !is_added(it));
            items.iter_mut().for_each(take_away);
        }
        Value::Object(members) => {
            members.remove("x-idempotency");
            members.retain(|_, it| !is_added(it));
            members.values_mut().for_each(take_away);
            // What was made to hold it.
            for name in ["parameters", "headers", "content"] {
                let is_empty = |it: &Value| match it {
                    Value::Array(items) => items.is_empty(),
                    Value::Object(members) => members.is_empty(),
                    _ => false,
                };
                if members.get(name).is_some_and(is_empty) {
                    members.remove(name);
                }
            }
        }
        _ => {}
    }
}
