//! The calls of operators: list, show, resolve, forget and purge records.
//!
//! The admin API and `idemptx keys` share them, with their results as JSON.

mod action;
mod audit;
pub(crate) mod view;

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use idemptx::operator::{
    Inventory, Operator, OperatorError, Page, PurgeReport, Query, RecordStatus, RecordSummary,
    RecordView, Resolution,
};
use idemptx::{Key, Policy, Scope};
use idemptx_core::key::RecordId;
use idemptx_core::policy::{KeySyntax, ScopeRule};
use idemptx_core::store::{ErrorKind, StoreError};

use crate::observation::key_digits;

pub(crate) use self::action::OperatorAction;
pub(crate) use self::audit::{Author, TARGET as AUDIT};

/// The calls of operators on a store.
#[derive(Debug)]
pub(crate) struct Operators<S>(Operator<S>);

/// A decision about a record, with what it needs.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    Release,
    /// The response that retries get.
    Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    },
    Forget,
}

/// A record, and its response if it can be read.
#[derive(Debug)]
pub(crate) struct ShownRecord {
    pub(crate) summary: RecordSummary,
    pub(crate) view: Option<RecordView>,
}

impl<S: Inventory> Operators<S> {
    pub(crate) const fn new(operator: Operator<S>) -> Self {
        Self(operator)
    }

    /// Lists records until `enough` are found, or `pages_max` pages were read.
    ///
    /// A page of a store may be empty although more follow.
    pub(crate) async fn list(
        &self,
        mut query: Query,
        enough: usize,
        pages_max: usize,
    ) -> Result<Page, StoreError> {
        let limit = query.limit;
        let mut page = Page::default();
        for _ in 0..pages_max {
            query = query.limit(limit.saturating_sub(page.entries.len()));
            let next = self.0.list(&query).await?;
            page.entries.extend(next.entries);
            page.unreadable.extend(next.unreadable);
            page.next = next.next;
            if page.next.is_none() || page.entries.len() >= enough {
                break;
            }
            query = query.after(page.next.clone());
        }
        Ok(page)
    }

    /// Returns a record's head, also of one that cannot be read: it can still be forgotten.
    pub(crate) async fn summary(&self, id: &RecordId) -> Result<Option<RecordSummary>, StoreError> {
        self.0.entry(id).await
    }

    /// Returns a record with its response.
    pub(crate) async fn show(&self, id: &RecordId) -> Result<Option<ShownRecord>, StoreError> {
        let Some(mut summary) = self.summary(id).await? else { return Ok(None) };
        let view: Option<RecordView> = match self.0.lookup(id).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            view => view?,
        };
        // Where a response is sealed, or stored apart, only the lookup reads the description.
        if let Some(description) = view.as_ref().and_then(|view| view.description.as_ref()) {
            summary.payload_head = description.encode();
        }
        Ok(Some(ShownRecord { summary, view }))
    }

    /// Returns the ids of records whose second half begins with these digits; two at most, because
    /// more are not needed to see that the digits are too few.
    pub(crate) async fn named(&self, prefix: &str) -> Result<Vec<RecordId>, StoreError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.0.list(&Query::all().after(after)).await?;
            let ids = page.entries.iter().map(|summary| summary.id).chain(page.unreadable);
            for id in ids.filter(|id| key_digits(id).starts_with(prefix)) {
                // A store may list a record twice.
                if !found.contains(&id) {
                    found.push(id);
                }
            }
            if page.next.is_none() || found.len() > 1 {
                return Ok(found);
            }
            after = page.next;
        }
    }

    /// Returns the records that a key may have.
    pub(crate) fn ids(&self, scope: &Scope, key: &Key, route: (&Method, &str)) -> Vec<RecordId> {
        self.0.ids(scope, key, Some(route))
    }

    /// Carries out a decision about a record as it was listed, and writes it to the audit log.
    pub(crate) async fn decide(
        &self,
        before: &RecordSummary,
        decision: Decision,
        author: &Author,
    ) -> Result<(), OperatorError> {
        let action = decision.action().as_str();
        let decided = self.carry_out(before, decision).await;
        let failed = decided.as_ref().err().map(|error| error as &dyn fmt::Display);
        author.log_decision(action, before, failed);
        decided
    }

    async fn carry_out(
        &self,
        before: &RecordSummary,
        decision: Decision,
    ) -> Result<(), OperatorError> {
        match decision {
            Decision::Release => self.0.resolve_listed(before, Resolution::Release).await.map(drop),
            Decision::Answer { status, headers, body } => {
                let response = self.0.response(status, &headers, body);
                self.0.resolve_listed(before, response.into()).await.map(drop)
            }
            Decision::Forget => self.0.forget(&before.id).await.map(drop),
        }
    }

    /// Forgets all records that match, or only counts them.
    pub(crate) async fn purge(
        &self,
        query: Query,
        dry_run: bool,
    ) -> Result<PurgeReport, StoreError> {
        let purge = self.0.purge(query);
        if dry_run { purge.dry_run().run().await } else { { purge }.run().await }
    }
}

impl Decision {
    pub(crate) const fn action(&self) -> OperatorAction {
        match self {
            Self::Release => OperatorAction::Release,
            Self::Answer { .. } => OperatorAction::Answer,
            Self::Forget => OperatorAction::Forget,
        }
    }
}

/// Returns whether a text can be the beginning of a record's short id.
pub(crate) fn is_prefix(text: &str) -> bool {
    (PREFIX_MIN..=PREFIX_MAX).contains(&text.len())
        && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// Returns the query for statuses, or for one of `in-flight`, `in-doubt` and `all`.
pub(crate) fn query_of<'a>(
    states: impl IntoIterator<Item = &'a str>,
) -> Result<Query, UnknownState> {
    let states: Vec<_> = states.into_iter().collect();
    Ok(match states.as_slice() {
        ["all"] => Query::all(),
        ["in-flight"] => Query::in_flight(),
        ["in-doubt"] => Query::in_doubt(),
        states => {
            let status =
                |state: &&str| state.parse().map_err(|_| UnknownState((*state).to_owned()));
            Query::of(states.iter().map(status).collect::<Result<Vec<RecordStatus>, _>>()?)
        }
    })
}

/// A text that names no state, or stands beside others although it names a set of them.
#[derive(Debug)]
pub(crate) struct UnknownState(String);

impl fmt::Display for UnknownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no state here: give `in-flight`, `in-doubt` or `all`, or some of",
            self.0
        )?;
        let mut separator = ' ';
        for status in RecordStatus::ALL {
            write!(f, "{separator}`{status}`")?;
            separator = ',';
        }
        Ok(())
    }
}

impl std::error::Error for UnknownState {}

/// Returns the query for records that may be forgotten.
pub(crate) fn settled() -> Query {
    Query::of([RecordStatus::Completed, RecordStatus::NotReplayable, RecordStatus::ResponseExpired])
}

/// Parses a key as a client sends it.
pub(crate) fn parse_key(text: &str) -> Result<Key, String> {
    let line = HeaderValue::from_str(text)
        .map_err(|_| "it contains characters that a header cannot have".to_owned())?;
    let key = Key::from_lines([&line], KeySyntax::Lenient, KEY_BYTES_MAX);
    key.map_err(|error| error.to_string())?.ok_or_else(|| "it is empty".to_owned())
}

/// Returns the scope under a policy; `None` if the policy takes it from a request and `given` is
/// empty.
pub(crate) fn scope_of(policy: &Policy, given: &str) -> Option<Scope> {
    match policy.scope {
        Some(ScopeRule::Bind(_) | ScopeRule::Shared) => Some(Scope::shared()),
        _ => (!given.is_empty()).then(|| Scope::new(given)),
    }
}

/// Fewer digits name too many records.
const PREFIX_MIN: usize = 4;
const PREFIX_MAX: usize = 32;
/// The greatest limit that a policy can set.
const KEY_BYTES_MAX: usize = 1024;
