//! `idemptx migrate`: prepares a store before anything is served.

use idemptx_testkit::PostgresServer;

use crate::support::command::idemptx;

#[test]
fn a_store_is_prepared_by_a_command_of_its_own() {
    let server = PostgresServer::start(&[]);
    let file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let config = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n\n[[upstream]]\nname = \"shop\"\n\
         urls = [\"http://127.0.0.1:9\"]\n\n\
         [[route]]\npath = \"/**\"\nupstream = \"shop\"\n\n\
         [store]\nurl = \"{}\"\nschema = \"shop\"\nmigrate = false\n",
        server.url()
    );
    std::fs::write(file.path(), config).unwrap();
    let path = file.path().to_str().unwrap();
    let check = || idemptx(&["check", "--config", path]);
    let missing = check();
    assert_eq!(missing.code, 1, "{missing:?}");
    for _ in 0..2 {
        let migrated = idemptx(&["migrate", "--config", path]).good();
        assert!(migrated.stdout.starts_with("the store is ready"), "{migrated:?}");
    }
    check().good();
    let by_url = idemptx(&["migrate", "--store", &format!("{}?schema=other", server.url())]);
    by_url.good();
    let away = idemptx(&["migrate", "--store", "postgres://127.0.0.1:9/nowhere"]);
    assert_eq!(away.code, 1, "{away:?}");
    assert_eq!(idemptx(&["migrate"]).code, 2);
}
