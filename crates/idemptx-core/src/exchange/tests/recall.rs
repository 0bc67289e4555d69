//! Records that a driver already has when the body has been read.

use std::sync::Arc;

use super::passage::{Passage, Stored, describe};
use super::world::{begin, fingerprint, rules};
use crate::exchange::{Action, Answer, BodyEnd, Rules};
use crate::key::RecordId;
use crate::record::Record;

/// Returns the answer to a request for which the driver has this record; `None` if it has to claim.
pub(super) fn recalled(rules: &Arc<Rules>, record: &Record, body: &str) -> Option<String> {
    let whole = BodyEnd::Whole(vec![fingerprint(rules, body)]);
    match begin(rules).recall(whole, record) {
        Ok(response) => {
            let answer = Answer::Replay(Box::new(response));
            Some(describe(Action::Answer { answer, deferred: None }))
        }
        Err(BodyEnd::Whole(_)) => None,
        Err(end) => panic!("{end:?}"),
    }
}

#[test]
fn nothing_is_recalled_for_a_body_that_is_not_whole_or_from_another_record() {
    let rules = rules(|_| {});
    let record = Passage::new(&rules, Stored::Done(201)).cell.record.unwrap();
    let end = begin(&rules).recall(BodyEnd::TooLarge, &record);
    assert!(matches!(end, Err(BodyEnd::TooLarge)), "{end:?}");
    let other = Record { id: RecordId::from_bytes([1; 32]), ..record };
    assert_eq!(recalled(&rules, &other, "a"), None);
}
