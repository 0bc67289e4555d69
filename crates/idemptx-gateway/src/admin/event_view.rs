//! Events of records as JSON, with the texts of the inspector.

use std::time::Instant;

use idemptx_core::record::State;
use idemptx_core::store::ErrorKind;
use serde_json::{Value, json};

use crate::operators::OperatorAction;
use crate::operators::view::millis;
use crate::recorder::event_log::{Event, LoggedEvent};

pub(super) fn event(logged: &LoggedEvent, now: Instant) -> Value {
    let (kind, text) = describe(logged.event);
    json!({
        "kind": kind,
        "text": text,
        "ms_ago": millis(now.saturating_duration_since(logged.first)),
        "last_ms_ago": millis(now.saturating_duration_since(logged.last)),
        "times": logged.times,
    })
}

/// The event of a decision that was carried out.
pub(super) const fn decided(action: OperatorAction) -> Event {
    match action {
        OperatorAction::Release => Event::OperatorReleased,
        OperatorAction::Answer => Event::OperatorAnswered,
        OperatorAction::Forget => Event::OperatorForgot,
    }
}

fn describe(event: Event) -> (&'static str, String) {
    let (kind, text) = match event {
        Event::Claimed { attempt } => {
            return ("claimed", format!("Claimed, attempt {attempt}"));
        }
        Event::Refused(code) => return ("refused", format!("Request refused: {code}")),
        Event::Renewed => ("renewed", "Lease renewed"),
        Event::MetHolder => ("held", "A request found it claimed"),
        Event::MetOrphan => ("orphan", "A request found it orphaned: its lease had lapsed"),
        Event::Settled(State::Completed) => ("settled", "Answer stored"),
        Event::Settled(State::Unknown) => ("no-verdict", "Recorded: outcome unknown"),
        Event::Settled(_) => ("settled", "Recorded: completed, response not kept"),
        Event::Released => ("released", "Claim released: the next request executes"),
        Event::Fenced => ("fenced", "The owner had lost the claim, and changed nothing"),
        Event::Failed(ErrorKind::Refused) => ("no-verdict", "Store refused"),
        Event::Failed(ErrorKind::Full) => ("no-verdict", "Store full"),
        Event::Failed(ErrorKind::Corrupt) => ("no-verdict", "The stored record cannot be read"),
        Event::Failed(_) => ("no-verdict", "Store unavailable"),
        Event::Executed { stored: true } => ("executed", "Answer sent"),
        Event::Executed { stored: false } => ("no-verdict", "Answer sent but not stored"),
        Event::Replayed { waited: false } => ("replayed", "Replayed"),
        Event::Replayed { waited: true } => ("replayed", "Replayed to a request that waited"),
        Event::OperatorReleased => ("operator", "An operator released the key"),
        Event::OperatorAnswered => ("operator", "An operator stored an answer"),
        Event::OperatorForgot => ("operator", "An operator forgot the record"),
    };
    (kind, text.to_owned())
}
