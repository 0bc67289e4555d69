//! The audit log: one line for each decision of an operator, with who made it and why.

use std::fmt;

use idemptx::operator::{PurgeReport, RecordSummary};

use crate::observation::short_id;

/// The author of a decision and the reason, as far as they are given; neither is authenticated.
#[derive(Clone, Debug)]
pub(crate) struct Author {
    pub(crate) by: String,
    /// The address or the host that the decision came from.
    pub(crate) from: String,
    pub(crate) why: Option<String>,
}

impl Author {
    /// Returns the reason as it is logged: cut, because the log is no place for documents.
    pub(crate) fn reason(text: &str) -> Option<String> {
        let text = text.trim();
        (!text.is_empty()).then(|| text.chars().take(REASON_CHARS_MAX).collect())
    }

    /// Logs a decision about a record, as it was `before`; the error is that of one that failed.
    pub(crate) fn log_decision(
        &self,
        action: &str,
        before: &RecordSummary,
        failed: Option<&dyn fmt::Display>,
    ) {
        let description = before.description();
        let description = description.as_ref();
        tracing::info!(
            target: TARGET,
            action,
            record = short_id(&before.id),
            was = before.status.as_str(),
            method = description.map(|it| &*it.method),
            path = description.map(|it| &*it.path),
            route = description.map(|it| &*it.route).filter(|it| !it.is_empty()),
            upstream = description.map(|it| &*it.service).filter(|it| !it.is_empty()),
            done = failed.is_none(),
            error = failed.map(tracing::field::display),
            by = self.by,
            from = self.from,
            why = self.why,
            "an operator decided about a record"
        );
    }

    /// Logs that many records were forgotten at once.
    pub(crate) fn log_purge(&self, states: &str, report: &PurgeReport) {
        tracing::info!(
            target: TARGET,
            action = "purge",
            states,
            forgotten = report.forgotten,
            by = self.by,
            from = self.from,
            why = self.why,
            "an operator decided about many records"
        );
    }
}

/// The target of audit lines.
pub(crate) const TARGET: &str = "idemptx::audit";
const REASON_CHARS_MAX: usize = 500;
