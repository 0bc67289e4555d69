//! The JSON API of the inspector.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use idemptx::operator::{InvalidCursor, OperatorError, Query};
use idemptx::store::{AnyStore, StoreKind};
use idemptx_core::key::RecordId;
use idemptx_core::response::may_have_content;
use idemptx_core::store::{ErrorKind, StoreError};
use serde_json::{Value, json};

use super::event_view;
use super::router::{AdminService, ApiProblem, Caller};
use crate::error::error_text;
use crate::observation::{BYPASS_REASONS, refusal_reasons};
use crate::operators::{self, Author, Decision, OperatorAction, Operators, view};
use crate::proxy::ActiveRoute;
use crate::recorder::RecordedStore;

impl AdminService {
    /// Logs that the store failed an operator; a page that is open asks again and again.
    fn store_problem(&self, error: &StoreError) -> ApiProblem {
        if let Some(suppressed) = self.failures.admit() {
            tracing::warn!("a call of an operator failed: {}{suppressed}", error_text(error));
        }
        ApiProblem::new(StatusCode::SERVICE_UNAVAILABLE, format!("The store: {error}."))
    }

    /// The state and the counters of this process.
    pub(super) fn overview(&self) -> Value {
        let (table, now, readiness) =
            (self.table(), self.current_values(), self.recorder.readiness());
        let routes: Vec<_> = table.routes.iter().map(|route| self.counts(route)).collect();
        let sum = |name: &str| routes.iter().filter_map(|it| it[name].as_u64()).sum::<u64>();
        let refusals = refusal_reasons().filter_map(|code| {
            let of = |route: &Arc<ActiveRoute>| self.count(route, "refused", code);
            let count: u64 = table.routes.iter().map(of).sum();
            (count > 0).then(|| json!({ "code": code, "count": count }))
        });
        let orphans = self.recorder.metrics().map_or(0, |metrics| metrics.orphans());
        json!({
            "gateway": {
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "uptime_ms": view::millis(readiness.uptime()),
                "draining": now.draining,
            },
            "store": {
                "kind": store_kind(table.store.inner()),
                "guarantee": readiness.report().map(|report| report.guarantee),
                "reachable": now.store,
            },
            "now": {
                "executing": now.executing,
                "waiting": now.waiting,
                "unconfirmed": now.unconfirmed,
            },
            "requests": {
                "executed": sum("executed"),
                "unstored": sum("unstored"),
                "replayed": sum("replayed"),
                "refused": sum("refused"),
                "passed": sum("passed"),
                "orphans": orphans,
            },
            "refusals": refusals.collect::<Vec<_>>(),
            "routes": routes,
        })
    }

    fn counts(&self, route: &ActiveRoute) -> Value {
        let plain = |outcome| self.count(route, outcome, "");
        let refused = refusal_reasons().map(|reason| self.count(route, "refused", reason));
        let passed = BYPASS_REASONS.iter().map(|reason| self.count(route, "passed", reason));
        json!({
            "name": route.config.name,
            "executed": plain("executed"),
            "unstored": plain("unstored"),
            "replayed": plain("replayed"),
            "refused": refused.sum::<u64>(),
            "passed": passed.sum::<u64>(),
        })
    }

    fn count(&self, route: &ActiveRoute, outcome: &'static str, reason: &'static str) -> u64 {
        self.recorder.metrics().map_or(0, |it| it.count(&route.name, outcome, reason))
    }

    /// Lists records of the store.
    pub(super) async fn records(&self, query: &str) -> Result<Value, ApiProblem> {
        let query = parse_query(query)?;
        // One record is enough: a page of the inspector refreshes often and must not scan.
        let page = self.operators()?.list(query, 1, PAGES_MAX).await;
        let page = page.map_err(|error| match error.kind() {
            // Every store has cursors of its own, and nothing else is read from the client.
            ErrorKind::Invalid => bad_request(format!("`after`: {InvalidCursor}.")),
            _ => self.store_problem(&error),
        });
        Ok(view::page(&page?))
    }

    /// Returns a record with its events and the possible actions.
    pub(super) async fn record(&self, id: &str) -> Result<Value, ApiProblem> {
        let id = parse_id(id)?;
        let record =
            self.operators()?.show(&id).await.map_err(|error| self.store_problem(&error))?;
        let now = Instant::now();
        let events = self.recorder.event_log().map(|log| log.events_of(&id)).unwrap_or_default();
        let events: Vec<_> = events.iter().map(|logged| event_view::event(logged, now)).collect();
        let actions = record.as_ref().map(|record| {
            let offer = |action: &OperatorAction| {
                json!({
                    "name": action.as_str(),
                    "title": action.title(),
                    "consequence": action.consequence(),
                    "seen": view::version(&record.summary),
                })
            };
            OperatorAction::for_status(record.summary.status).iter().map(offer).collect::<Vec<_>>()
        });
        Ok(json!({
            "id": id.to_string(),
            "record": record.as_ref().map(|record| view::summary(&record.summary)),
            "answer": record.as_ref().and_then(|it| view::response(it.view.as_ref()?)),
            "story_note": if events.is_empty() { NO_EVENTS } else { LOCAL_EVENTS },
            "story": events,
            "actions": actions.unwrap_or_default(),
        }))
    }

    /// Returns the records of a key.
    ///
    /// # Security
    ///
    /// The key is in the body, which no log records, and is dropped with it.
    pub(super) async fn search(&self, body: &Value) -> Result<Value, ApiProblem> {
        let text = |name: &str| body[name].as_str().unwrap_or_default();
        let key = operators::parse_key(text("key"))
            .map_err(|error| bad_request(format!("`key`: {error}.")))?;
        let bytes_max = self.table().engines().map(|it| it.policy().key_bytes_max).max();
        if let Some(bytes_max) = bytes_max.filter(|max| key.as_str().len() > *max) {
            let detail = format!("`key` is longer than the {bytes_max} bytes that routes accept.");
            return Err(bad_request(detail));
        }
        let method = Method::from_bytes(text("method").trim().to_ascii_uppercase().as_bytes())
            .unwrap_or(Method::POST);
        let mut found: Vec<(RecordId, Vec<&str>)> = Vec::new();
        let table = self.table();
        for route in &table.routes {
            let Some(engine) = &route.engine else { continue };
            let scope = operators::scope_of(engine.policy(), text("scope"));
            let Some(scope) = scope else { continue };
            let operators = Operators::new(engine.operator());
            for id in operators.ids(&scope, &key, (&method, text("path"))) {
                match found.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, routes)) => routes.push(&route.config.name),
                    None => found.push((id, vec![&route.config.name])),
                }
            }
        }
        let operators = self.operators()?;
        let mut matches = Vec::new();
        for (id, routes) in found {
            let summary =
                operators.summary(&id).await.map_err(|error| self.store_problem(&error))?;
            let record = summary.as_ref().map(view::summary);
            matches.push(json!({ "id": id.to_string(), "routes": routes, "record": record }));
        }
        // What the log and lists show of a record is looked up as well.
        if matches.iter().all(|it| it["record"].is_null()) && operators::is_prefix(text("key")) {
            let ids = operators.named(&text("key").to_ascii_lowercase()).await;
            for id in ids.map_err(|error| self.store_problem(&error))? {
                let summary =
                    operators.summary(&id).await.map_err(|error| self.store_problem(&error))?;
                let record = summary.as_ref().map(view::summary);
                matches.push(json!({ "id": id.to_string(), "routes": [], "record": record }));
            }
        }
        Ok(json!({ "matches": matches }))
    }

    /// Carries out a decision, and writes it to the audit log.
    pub(super) async fn act(
        &self,
        id: &str,
        action: &str,
        body: &Value,
        caller: &Caller,
    ) -> Result<Value, ApiProblem> {
        let id = parse_id(id)?;
        let action = OperatorAction::from_name(action)
            .ok_or_else(|| ApiProblem::new(StatusCode::NOT_FOUND, "There is no such action."))?;
        let operators = self.operators()?;
        let before = operators.summary(&id).await.map_err(|error| self.store_problem(&error))?;
        let before = before.ok_or_else(|| operator_problem(&OperatorError::Absent))?;
        if body["seen"].as_str() != Some(&view::version(&before)) {
            return Err(ApiProblem::new(StatusCode::CONFLICT, CHANGED));
        }
        let decision = match action {
            OperatorAction::Release => Decision::Release,
            OperatorAction::Answer => parse_answer(&body["answer"])?,
            OperatorAction::Forget => Decision::Forget,
        };
        let author = Author {
            by: caller.name.clone(),
            from: caller.address.to_string(),
            why: body["reason"].as_str().and_then(Author::reason),
        };
        let decided = operators.decide(&before, decision, &author).await;
        decided.map_err(|error| operator_problem(&error))?;
        if let Some(event_log) = self.recorder.event_log() {
            event_log.record(&id, event_view::decided(action));
        }
        Ok(json!({ "done": action.done() }))
    }

    /// Returns the calls under the policy that keeps responses for the longest.
    ///
    /// A record does not name its route, whose policy would say how long a decision is kept.
    fn operators(&self) -> Result<Operators<Arc<RecordedStore<AnyStore>>>, ApiProblem> {
        let table = self.table();
        let longest = table.engines().max_by_key(|engine| engine.policy().retain);
        longest.map(|engine| Operators::new(engine.operator())).ok_or_else(|| {
            ApiProblem::new(StatusCode::NOT_FOUND, "No route is protected: there are no records.")
        })
    }
}

/// Parses `view`, `limit` and `after`.
fn parse_query(text: &str) -> Result<Query, ApiProblem> {
    let mut query = Query::in_flight().limit(LIMIT);
    for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
        query = match name {
            "view" => {
                let view = operators::query_of([value])
                    .map_err(|error| bad_request(format!("`view`: {error}.")))?;
                view.limit(query.limit).after(query.after)
            }
            "limit" => {
                query.limit(value.parse().map_err(|_| bad_request("`limit` is not a number."))?)
            }
            "after" => {
                let cursor =
                    value.parse().map_err(|error| bad_request(format!("`after`: {error}.")))?;
                query.after(Some(cursor))
            }
            _ => return Err(bad_request("Only `view`, `limit` and `after` are known.")),
        };
    }
    Ok(query)
}

fn parse_id(text: &str) -> Result<RecordId, ApiProblem> {
    // A colon needs no escape in a path, but some clients escape it.
    let text = text.replace("%3A", ":").replace("%3a", ":");
    text.parse().map_err(|error| bad_request(format!("{error}.")))
}

/// Parses the response to be stored.
fn parse_answer(given: &Value) -> Result<Decision, ApiProblem> {
    let status = given["status"].as_u64().and_then(|it| u16::try_from(it).ok());
    let status = status
        .and_then(|it| StatusCode::from_u16(it).ok())
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| bad_request("`answer.status` is not a status from 200 to 599."))?;
    let mut headers = HeaderMap::new();
    let body = Bytes::from(given["body"].as_str().unwrap_or_default().to_owned());
    if !body.is_empty() && !may_have_content(status) {
        return Err(bad_request(format!("`answer.body`: a response with {status} has none.")));
    }
    // Without a body there is nothing whose type could be told.
    let kind = given["content_type"].as_str().filter(|it| !it.is_empty() && !body.is_empty());
    if let Some(kind) = kind {
        let kind = HeaderValue::from_str(kind);
        let kind = kind.map_err(|_| bad_request("`answer.content_type` is not a header value."))?;
        headers.insert(CONTENT_TYPE, kind);
    }
    Ok(Decision::Answer { status, headers, body })
}

fn store_kind(store: &AnyStore) -> &'static str {
    match store.kind() {
        StoreKind::Memory => "memory",
        StoreKind::Postgres => "PostgreSQL",
        StoreKind::Redis => "Redis",
        StoreKind::Sqlite => "SQLite",
        _ => "other",
    }
}

fn bad_request(detail: impl Into<String>) -> ApiProblem {
    ApiProblem::new(StatusCode::BAD_REQUEST, detail)
}

fn operator_problem(error: &OperatorError) -> ApiProblem {
    let status = match error {
        OperatorError::Absent => StatusCode::NOT_FOUND,
        OperatorError::Unstorable => StatusCode::UNPROCESSABLE_ENTITY,
        OperatorError::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    };
    ApiProblem::new(status, format!("{error}."))
}

const CHANGED: &str = "The record has changed since you opened it; look again.";
const NO_EVENTS: &str = "This gateway has seen no events of this record since it started, or has \
     dropped them. Other gateways may have seen some.";
const LOCAL_EVENTS: &str = "Events on this gateway; others may have seen more.";
/// The default number of records on a page.
const LIMIT: usize = 50;
/// The number of pages that one call reads at most.
const PAGES_MAX: usize = 8;
