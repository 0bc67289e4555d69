//! Keys that are remembered longer than their responses.

use std::time::Duration;

use idemptx::operator::{Query, RecordStatus};

use super::environment::{Environment, id};
use crate::support::http_client::{posted, send};

pub(crate) async fn a_late_retry_is_refused_and_not_run_again(place: &Environment) {
    let app = place.process(|policy| policy.retain(RETAIN).key_retain(KEY_RETAIN));
    app.post("late").await.answered(200, "run 1");
    let spent = place.comes_to("late", RecordStatus::ResponseExpired).await;
    assert_eq!((spent.response, spent.payload_bytes), (None, 0));
    for _ in 0..2 {
        let reply = app.post("late").await;
        reply.refused(409, "key-expired");
        assert_eq!(reply.problem()["safe_new_key"], false);
    }
    send(&app.router, posted("late", "something else")).await.refused(422, "key-reused");
    assert_eq!(app.runs.began(), 1);

    // An operator sees it, and may forget it.
    let operator = place.operator();
    let id = id(&operator, "late");
    let page = operator.list(&Query::of([RecordStatus::ResponseExpired]).only(id)).await.unwrap();
    let [entry] = page.entries.as_slice() else { panic!("{page:?}") };
    assert!(entry.idle >= RETAIN && entry.expires_in <= KEY_RETAIN, "{entry:?}");
    assert_eq!(operator.forget(&id).await.unwrap().was.status, RecordStatus::ResponseExpired);
    app.post("late").await.answered(200, "run 2");

    // By itself it is forgotten when the key's time is over.
    let brief = place.process(|policy| policy.retain(RETAIN).key_retain(RETAIN));
    brief.post("brief").await.answered(200, "run 1");
    let ended = async {
        while operator.lookup(&super::environment::id(&operator, "brief")).await.unwrap().is_some()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    brief.post("brief").await.answered(200, "run 2");
}

const RETAIN: Duration = Duration::from_millis(100);
const KEY_RETAIN: Duration = Duration::from_secs(3600);
