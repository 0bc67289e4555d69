//! `idemptx keys`: what it prints, and what comes of it.

use crate::support::command::{Ended, idemptx, idemptx_fed};
use crate::support::http_client::post;
use crate::support::operated_gateway::{OperatedGateway, eventually};
use crate::support::order_service::OrderService;

#[test]
fn records_are_listed_for_people_and_for_machines() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let store = gateway.store();
    idemptx(&["keys", "--store", &store, "list"]).good().is("list-empty.txt");
    post(gateway.public, "/orders", "tea").key("k").reply();
    post(gateway.public, "/die", "tea").key("stuck").reply();
    idemptx(&["keys", "--store", &store, "list", "--state", "all"]).good().is("list.txt");
    let doubt = ["keys", "--store", &store, "--json", "list", "--state", "in-doubt"];
    let listed: serde_json::Value = serde_json::from_str(&idemptx(&doubt).good().stdout).unwrap();
    assert_eq!(listed["records"][0]["state"], "unknown", "{listed}");
    assert_eq!(listed["records"].as_array().unwrap().len(), 1);
    let one = ["keys", "--store", &store, "list", "--state", "all", "--limit", "1"];
    let first = idemptx(&one).good();
    first.is("list-limited.txt");
    let cursor = first.stdout.trim_end().rsplit(' ').next().unwrap().to_owned();
    let rest = [&one[..], &["--after", &cursor]].concat();
    assert_ne!(idemptx(&rest).good().stdout.lines().nth(1), first.stdout.lines().nth(1));
    idemptx(&["keys", "--store", &store, "list", "--idle", "1d"]).good().is("list-empty.txt");
    let running = ["keys", "--store", &store, "list", "--state", "running"];
    assert_eq!(idemptx(&running).good().stdout, "no records\n");
}

#[test]
fn a_record_is_shown_without_its_body_unless_that_is_asked_for() {
    let gateway = OperatedGateway::start("");
    let config = gateway.config();
    let config = config.to_str().unwrap();
    post(gateway.public, "/orders", "tea").key("\"k 1\"").reply();
    let show = ["keys", "--config", config, "show", "--key", "\"k 1\""];
    let shown = idemptx(&show).good();
    shown.is("show.txt");
    assert!(!shown.stdout.contains("{\"n\":"));
    idemptx(&[&show[..], &["--body"]].concat()).good().is("show-body.txt");
    let json = idemptx(&[&show[..], &["--json", "--body"]].concat()).good().stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["answer"]["body"], "{\"n\":1}", "{json}");
    let id = json["id"].as_str().unwrap();
    idemptx(&["keys", "--config", config, "show", id]).good().is("show.txt");
    // As the log shows it; and the flags may stand at the end.
    idemptx(&["keys", "show", &id[33..41], "--config", config]).good().is("show.txt");
    let absent = idemptx(&["keys", "--config", config, "show", "--key", "other"]);
    assert_eq!(absent.code, 1);
    absent.is("show-absent.txt");
}

#[test]
fn a_record_says_which_request_it_is_of() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let store = gateway.store();
    let keys = |rest: &[&str]| idemptx(&[&["keys", "--store", &store], rest].concat()).good();
    post(gateway.public, "/die?card=4711", "tea").key("stuck").reply();
    post(gateway.public, "/orders", "tea").key("k").reply();
    let doubt = keys(&["list", "--state", "in-doubt"]).stdout;
    assert!(doubt.contains("  POST /die\n"), "{doubt}");
    assert!(!doubt.contains("card"), "no query is kept: {doubt}");
    let exported = keys(&["export"]).stdout;
    let mut exported: Vec<serde_json::Value> =
        exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    exported.sort_by_key(|record| record["path"].to_string());
    let of = |record: &serde_json::Value| {
        ["method", "path", "route", "upstream"]
            .map(|name| record[name].as_str().unwrap().to_owned())
    };
    assert_eq!(exported.len(), 2);
    assert_eq!(of(&exported[0]), ["POST", "/die", "orders", "shop"]);
    assert_eq!(of(&exported[1]), ["POST", "/orders", "orders", "shop"]);
    // One name of the record everywhere: here, in the log and in the inspector.
    let record = exported[0]["record"].as_str().unwrap();
    eventually(|| gateway.log().contains(&format!("record={record}")));
    let asked = serde_json::json!({ "key": record }).to_string();
    let found = post(gateway.admin, "/api/search", &asked).deliberate("alice").json();
    let found: Vec<_> = found["matches"].as_array().unwrap().iter().collect();
    assert!(found.iter().any(|it| it["record"]["path"] == "/die"), "{found:?}");
    // What an operator stores does not make it another request.
    let answer = tempfile::NamedTempFile::new().unwrap();
    let path = answer.path().to_str().unwrap();
    keys(&["resolve", record, "--answer", path]);
    let shown = keys(&["--json", "show", record, "--body"]).stdout;
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&*of(&shown)[1], &shown["state"]), ("/die", &"completed".into()), "{shown}");
    assert_eq!(shown["answer"]["headers"], serde_json::json!([]), "nothing has no type");
}

#[test]
fn each_decision_leaves_a_line_with_who_and_why() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let (store, config) = (gateway.store(), gateway.config());
    post(gateway.public, "/die", "tea").key("stuck").reply();
    post(gateway.public, "/orders", "tea").key("k").reply();
    let keys = |rest: &[&str]| {
        let author = ["--by", "alice", "--reason", "ticket 17"];
        let config = config.to_str().unwrap();
        idemptx(&[&["keys", "--config", config], rest, &author].concat()).good()
    };
    let audit = keys(&["resolve", "--key", "stuck", "--release"]).audit;
    for part in
        ["action=release", "was=unknown", "method=POST", "path=/die", "done=true", "record="]
    {
        assert!(audit.contains(part), "{part}: {audit}");
    }
    let forgotten = keys(&["forget", "--key", "k", "--yes"]).audit;
    assert!(forgotten.contains("action=forget") && forgotten.contains("path=/orders"));
    post(gateway.public, "/orders", "tea").key("k").reply();
    assert_eq!(keys(&["purge"]).audit, "", "what only counts decides nothing");
    let purged = keys(&["purge", "--yes"]).audit;
    assert!(purged.contains("action=purge") && purged.contains("forgotten=1"), "{purged}");
    for line in [audit, forgotten, purged] {
        assert!(line.contains("by=alice") && line.contains("why=\"ticket 17\""), "{line}");
    }
    let json = ["keys", "--store", &store, "--json", "purge", "--yes", "--by", "bob"];
    let line: serde_json::Value = serde_json::from_str(&idemptx(&json).good().audit).unwrap();
    assert_eq!((&line["by"], &line["action"]), (&"bob".into(), &"purge".into()), "{line}");
}

#[test]
fn an_answer_may_be_any_bytes_that_its_status_allows() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let config = gateway.config();
    post(gateway.public, "/die", "tea").key("k").reply();
    let resolve = |status: &str, body: &[u8]| {
        let rest = ["resolve", "--key", "k", "--answer", "-", "--status", status];
        idemptx_fed(&[&["keys", "--config", config.to_str().unwrap()], &rest[..]].concat(), body)
    };
    for status in ["101", "204", "304"] {
        let refused = resolve(status, b"\xffpaid");
        assert!(refused.stderr.contains("has no body"), "{status}: {refused:?}");
    }
    resolve("200", b"\xffpaid").good();
    let stored = gateway.ask(&format!("/api/records/{}", gateway.only_record())).json();
    assert_eq!(stored["answer"]["body_bytes"], 5, "{stored}");
}

#[test]
fn a_doubt_is_resolved_with_an_answer_or_by_release() {
    let gateway = OperatedGateway::start("policy = { scope = { header = \"X-Account\" } }");
    let store = gateway.store();
    let send = |key| post(gateway.public, "/die", "tea").key(key).header("x-account", "a").reply();
    let resolve = |key, rest: &[&str]| {
        let policy = r#"{"scope":{"header":"X-Account"}}"#;
        let start =
            ["keys", "--store", &store, "--namespace", "shop", "--policy", policy, "resolve"];
        idemptx(&[&start[..], &["--key", key, "--scope", "a"], rest].concat())
    };
    send("happened");
    send("did-not");
    let answer = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&answer, "paid").unwrap();
    let path = answer.path().to_str().unwrap();
    let told = ["--answer", path, "--status", "202", "--content-type", "text/plain"];
    resolve("happened", &told).good().is("resolve-answer.txt");
    let replay = send("happened");
    assert_eq!((replay.status, &*replay.body), (202, "paid"));
    resolve("did-not", &["--release"]).good().is("resolve-release.txt");
    assert_eq!((send("did-not").status, gateway.upstream.executed()), (502, 3));
    let twice = resolve("happened", &["--release"]);
    assert_eq!(twice.code, 1);
    twice.is("resolve-twice.txt");
    let undecided = resolve("happened", &[]);
    assert_eq!(undecided.code, 2, "{undecided:?}");
    let whose = idemptx(&[
        "keys",
        "--store",
        &store,
        "--policy",
        r#"{"scope":{"header":"X"}}"#,
        "resolve",
        "--key",
        "happened",
        "--release",
    ]);
    assert_eq!(whose.code, 1);
    whose.is("resolve-whose.txt");
}

#[test]
fn a_settled_record_is_forgotten_and_its_operation_executes_again() {
    let gateway = OperatedGateway::start("");
    let store = gateway.store();
    let send = || post(gateway.public, "/orders", "tea").key("k").reply().body;
    assert_eq!((send(), send()), ("{\"n\":1}".into(), "{\"n\":1}".into()));
    let absent = idemptx(&["keys", "--store", &store, "forget", "--key", "k"]);
    assert_eq!(absent.code, 1, "in the namespace of the library");
    absent.is("show-absent-outside.txt");
    let service = ["keys", "--store", &store, "--namespace", "shop"];
    let asked = idemptx(&[&service[..], &["forget", "--key", "k"]].concat());
    assert_eq!((asked.code, send()), (1, "{\"n\":1}".into()), "nothing is removed without --yes");
    asked.is("forget-asked.txt");
    let told = &["forget", "--key", "k", "--yes"];
    idemptx(&[&service[..], told].concat()).good().is("forget.txt");
    assert_eq!(send(), "{\"n\":2}");
}

#[test]
fn a_key_is_looked_up_in_the_namespace_of_each_route() {
    let other = OrderService::start();
    let gateway = OperatedGateway::start(&format!(
        "path = \"/orders\"\n\
         [[upstream]]\nname = \"bank\"\nurls = [\"http://{}\"]\n\
         [[route]]\nname = \"payments\"\nupstream = \"bank\"",
        other.address
    ));
    let config = gateway.config();
    let show = |key: &str, route: &[&str]| {
        let start = ["keys", "--config", config.to_str().unwrap(), "--json"];
        idemptx(&[&start[..], route, &["show", "--key", key]].concat())
    };
    let id = |shown: &Ended| {
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        shown["id"].as_str().unwrap().to_owned()
    };
    post(gateway.public, "/payments", "tea").key("bank").reply();
    let only = gateway.only_record();
    assert_eq!(id(&show("bank", &[]).good()), only);
    let searched =
        post(gateway.admin, "/api/search", r#"{"key":"bank"}"#).deliberate("alice").json();
    let found = searched["matches"].as_array().unwrap().iter().filter(|it| !it["record"].is_null());
    let found: Vec<_> = found.map(|it| (&it["id"], &it["routes"][0])).collect();
    assert_eq!(found, [(&only.into(), &"payments".into())], "{searched}");

    post(gateway.public, "/orders", "tea").key("both").reply();
    post(gateway.public, "/payments", "tea").key("both").reply();
    let several = show("both", &[]);
    assert_eq!(several.code, 1);
    several.is("show-several.txt");
    let (orders, payments) =
        (show("both", &["--route", "orders"]), show("both", &["--route", "payments"]));
    assert_ne!(id(&orders.good()), id(&payments.good()));
}

#[test]
fn a_record_that_does_not_open_is_found_and_forgotten() {
    let gateway = OperatedGateway::start("");
    let send = || post(gateway.public, "/orders", "tea").key("k").reply().body;
    send();
    // The gateway's records are not sealed, which is as strange to this reader as other keys.
    let sealed = tempfile::NamedTempFile::new().unwrap();
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    let seal = format!("[store.seal]\nkeys = \"1:{}\"\n", "01020304".repeat(8));
    std::fs::write(&sealed, text + &seal).unwrap();
    let named = |call: &[&str]| {
        let config = sealed.path().to_str().unwrap();
        idemptx(&[&["keys", "--config", config][..], call, &["--key", "k"]].concat())
    };
    let refused = named(&["resolve", "--release"]);
    assert_eq!(refused.code, 1);
    refused.is("resolve-unreadable.txt");
    assert_eq!(send(), "{\"n\":1}");
    named(&["forget", "--yes"]).good().is("forget.txt");
    assert_eq!(send(), "{\"n\":2}");
}

#[test]
fn purging_says_what_it_would_do_until_it_is_told_to() {
    let gateway = OperatedGateway::start("policy = { scope = \"shared\" }");
    let store = gateway.store();
    for key in ["a", "b", "c"] {
        post(gateway.public, "/orders", "tea").key(key).reply();
    }
    post(gateway.public, "/die", "tea").key("stuck").reply();
    idemptx(&["keys", "--store", &store, "purge"]).good().is("purge-dry.txt");
    idemptx(&["keys", "--store", &store, "purge", "--idle", "1d"]).good().is("purge-none.txt");
    idemptx(&["keys", "--store", &store, "purge", "--yes"]).good().is("purge.txt");
    let rest = idemptx(&["keys", "--store", &store, "list", "--state", "all"]).good().stdout;
    assert!(
        rest.contains("unknown") && !rest.contains("completed"),
        "what is in doubt stays: {rest}"
    );
}

#[test]
fn what_cannot_be_meant_is_said_at_once() {
    let memory = idemptx(&["keys", "--store", "memory:", "list"]);
    assert_eq!(memory.code, 1);
    memory.is("memory.txt");
    let absent = idemptx(&["keys", "--store", "sqlite:/nowhere/keys.db", "list"]);
    assert_eq!(absent.code, 1);
    absent.is("no-file.txt");
    let nowhere = idemptx(&["keys", "list"]);
    assert_eq!(nowhere.code, 1);
    assert!(nowhere.stderr.contains("give --config FILE, the gateway's, or --store URL"));
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("keys.db").display());
    drop(idemptx::store::sqlite::SqliteStore::open(folder.path().join("keys.db")).unwrap());
    for state in ["bogus", "in-doubt,completed"] {
        let refused = idemptx(&["keys", "--store", &store, "list", "--state", state]);
        let first = state.split(',').next().unwrap();
        let advice = format!("`{first}` is no state here: give `in-flight`, `in-doubt` or `all`");
        assert!(refused.stderr.contains(&advice), "{refused:?}");
    }
    for wrong in [
        &["--store", "sqlite:x", "list", "--limit", "0"][..],
        &["--store", "sqlite:x", "show"],
        &["--store", "sqlite:x", "show", "xyz"],
        &["--store", "sqlite:x", "purge", "--idle", "soon"],
    ] {
        assert_eq!(idemptx(&[&["keys"], wrong].concat()).code, 2, "{wrong:?}");
    }
}

/// Its services keep records under their own prefix, which the program does not know.
#[cfg(feature = "redis")]
#[test]
fn who_looks_for_records_of_a_python_service_is_told_where_they_are() {
    let redis = idemptx_testkit::RedisServer::start(&[]);
    let (plain, prefixed) = (redis.patient_url(), format!("{}&prefix=a:", redis.patient_url()));
    let hint = "`?prefix=idempotency:`";
    for (command, is_told) in [
        (&["--store", &plain, "list"][..], true),
        (&["--store", &plain, "list", "--state", "all"], true),
        (&["--store", &plain, "show", "--key", "k"], true),
        (&["--store", &plain, "show", "abcd"], true),
        (&["--store", &prefixed, "list"], false),
    ] {
        let ended = idemptx(&[&["keys"], command].concat());
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert_eq!(said.contains(hint), is_told, "{command:?}: {said}");
    }
}
