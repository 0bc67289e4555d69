//! Listing what there is, and forgetting much of it.

use std::collections::BTreeSet;
use std::time::Duration;

use idemptx::operator::{Query, RecordStatus};
use idemptx::{RecordId, Scope};

use super::environment::{Environment, id};
use crate::support::app::App;

pub(crate) async fn what_is_listed_is_purged_and_nothing_else(place: &Environment) {
    let (app, operator) = (place.process(|policy| policy), place.operator());
    let orphan = place.orphan("orphan").await;
    let slow = App::slow(app.engine.clone());
    let client = slow.client("live");
    slow.runs.reach(1).await;
    let keys: Vec<String> = (0..DONE).map(|number| format!("done-{number}")).collect();
    for key in &keys {
        app.post(key).await;
    }

    let in_flight: BTreeSet<_> = listed(place, Query::in_flight().limit(1)).await;
    assert_eq!(in_flight, BTreeSet::from([orphan.id, id(&operator, "live")]));
    assert_eq!(listed(place, Query::in_doubt()).await, BTreeSet::from([orphan.id]));
    let results: BTreeSet<_> = keys.iter().map(|key| id(&operator, key)).collect();
    assert_eq!(listed(place, Query::of([RecordStatus::Completed]).limit(3)).await, results);
    let entry = operator.entry(&orphan.id).await.unwrap().unwrap();
    assert_eq!((entry.claim.token, entry.status), (orphan.claim.token, RecordStatus::Orphaned));

    let elsewhere = operator.scopes(&Scope::new("another"), None)[0];
    let nothing = operator.purge(Query::all().in_scope(elsewhere)).run().await.unwrap();
    assert_eq!(nothing.forgotten, 0);
    let recent = Query::all().idle_for(Duration::from_secs(3600));
    assert_eq!(operator.purge(recent).run().await.unwrap().forgotten, 0);

    let here = Query::all().in_scope(operator.scopes(&Scope::shared(), None)[0]).limit(4);
    let would = operator.purge(here.clone()).dry_run().run().await.unwrap();
    assert_eq!((would.forgotten, would.in_flight, would.unreadable), (DONE + 1, 1, 0));
    assert!(would.payload_bytes >= DONE * "run 1".len() as u64);
    assert_eq!(listed(place, Query::all()).await.len() as u64, DONE + 2);

    // Whoever is interrupted begins again.
    let mut interrupted = operator.purge(here.clone());
    let Ok(more) = interrupted.step().await else { panic!("{interrupted:?}") };
    assert!(more && interrupted.report().forgotten <= 4);
    let rest = operator.purge(here.clone()).run().await.unwrap();
    assert_eq!(rest.forgotten + interrupted.report().forgotten, DONE + 1);
    // Redis lists what was left alone again where a page within a handful was forgotten.
    assert!(rest.in_flight >= 1 && rest.changed == 0, "{rest:?}");

    assert_eq!(listed(place, Query::all()).await, BTreeSet::from([id(&operator, "live")]));
    slow.gate.open();
    client.await.unwrap().answered(200, "run 1");
    let number = DONE + 1;
    app.post(&keys[0]).await.answered(200, &format!("run {number}"));
}

async fn listed(place: &Environment, query: Query) -> BTreeSet<RecordId> {
    let (operator, mut query, mut found) = (place.operator(), query, BTreeSet::new());
    loop {
        let page = operator.list(&query).await.unwrap();
        found.extend(page.entries.iter().map(|entry| entry.id));
        assert_eq!(page.unreadable, []);
        match page.next {
            None => return found,
            next => query = query.after(next),
        }
    }
}

const DONE: u64 = 10;
