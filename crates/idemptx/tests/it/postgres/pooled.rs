//! PgBouncer in transaction mode between store and server; the conformance suite tests that the
//! contract holds through it.

use std::sync::Arc;

use idemptx_core::store::{ErrorKind, Store};
use idemptx_testkit::PgBouncer;

use super::fixture::{PATIENCE, claim_request, done, granted, id, patient, reason, soon, started};

#[tokio::test]
async fn whoever_listens_elsewhere_is_told_of_what_happens_behind_a_pooler() {
    let (server, listening) = started(&[]).await;
    let pooler = PgBouncer::start(&server);
    let pooled = patient(format!("{}?pooled=true", pooler.url())).connect().await.unwrap();
    assert!(!pooled.capabilities().watch && pooled.watch(&id(1)).await.is_none());
    let lease = granted(&pooled, id(1)).await;
    let watch = listening.watch(&id(1)).await.unwrap();
    pooled.settle(&lease, &done("done")).await.unwrap();
    soon(watch).await;
}

#[tokio::test]
async fn a_pooled_store_leaves_no_setting_to_whoever_has_the_session_next() {
    let (server, _) = started(&[]).await;
    let pooler = PgBouncer::start(&server);
    let pooled = Arc::new(patient(pooler.url()).pooled(true).connect().await.unwrap());
    let claims: Vec<_> = (0..64)
        .map(|number| {
            let pooled = pooled.clone();
            tokio::spawn(async move { granted(&pooled, id(number)).await })
        })
        .collect();
    for claim in claims {
        claim.await.unwrap();
    }
    let (next, connection) =
        tokio_postgres::connect(&pooler.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    for name in ["lock_timeout", "statement_timeout", "plan_cache_mode"] {
        let show = format!("SELECT setting = boot_val FROM pg_settings WHERE name = '{name}'");
        let rows = next.query_typed(&show, &[]).await.unwrap();
        assert!(rows[0].get::<_, bool>(0), "{name}");
    }
}

#[tokio::test]
async fn a_store_that_was_not_told_of_its_pooler_says_what_to_call() {
    let (server, _) = started(&[]).await;
    let pooler = PgBouncer::start(&server);
    let misled = Arc::new(patient(pooler.url()).open().unwrap());
    // It goes well for as long as every step meets the session that it has prepared.
    let crowd = async {
        for round in 0.. {
            let claims: Vec<_> = (0..64)
                .map(|number| {
                    let misled = misled.clone();
                    tokio::spawn(async move {
                        misled.claim(&id(round * 64 + number), &claim_request()).await
                    })
                })
                .collect();
            for claim in claims {
                if let Err(error) = claim.await.unwrap()
                    && reason(&error).contains("pooled")
                {
                    return error;
                }
            }
        }
        unreachable!("rounds never end");
    };
    let error = tokio::time::timeout(PATIENCE, crowd).await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(reason(&error).contains("pooled(true)"), "{}", reason(&error));
}
