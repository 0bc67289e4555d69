//! The JSON API of the inspector.

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderValue, Method, StatusCode};
use idemptx::operator::{Operator, OperatorError, Page, Query, RecordStatus, Resolution};
use idemptx::store::AnyStore;
use idemptx::{Code, Key, Scope};
use idemptx_core::key::RecordId;
use idemptx_core::policy::{KeySyntax, ScopeRule};
use idemptx_core::store::{ErrorKind, StoreError};
use serde_json::{Value, json};

use super::actions::OperatorAction;
use super::router::{AdminService, Answer, ApiProblem, Caller};
use super::view;
use crate::metrics::BYPASS_REASONS;
use crate::proxy::ActiveRoute;
use crate::recorder::{RecordedStore, short_id};

type Calls = Operator<Arc<RecordedStore<AnyStore>>>;

impl AdminService {
    /// What this process has done, and has in hand.
    pub(super) fn overview(&self) -> Value {
        let (table, current_values, health) =
            (self.table(), self.current_values(), self.recorder.readiness());
        let routes: Vec<_> = table.routes.iter().map(|route| self.counts(route)).collect();
        let sum = |name: &str| routes.iter().filter_map(|it| it[name].as_u64()).sum::<u64>();
        let refusals = Code::ALL.into_iter().filter_map(|code| {
            let of = |route: &Arc<ActiveRoute>| self.count(route, "refused", code.as_str());
            let count: u64 = table.routes.iter().map(of).sum();
            (count > 0).then(|| json!({ "code": code.as_str(), "count": count }))
        });
        let orphans = self.recorder.metrics().map_or(0, |metrics| metrics.orphans());
        json!({
            "gateway": {
                "version": env!("CARGO_PKG_VERSION"),
                "pid": std::process::id(),
                "uptime_ms": view::millis(health.uptime()),
                "draining": current_values.draining,
            },
            "store": {
                "kind": view::store_kind(table.store.inner()),
                "guarantee": health.guarantee(),
                "reachable": current_values.store,
            },
            "now": {
                "executing": current_values.executing,
                "waiting": current_values.waiting,
                "unconfirmed": current_values.unconfirmed,
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
        let refused = Code::ALL.iter().map(|code| self.count(route, "refused", code.as_str()));
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

    /// A page of the store's records.
    pub(super) async fn records(&self, query: &str) -> Answer {
        let mut wanted = asked(query)?;
        let operator = self.operator()?;
        let mut page = Page::default();
        // A page may be empty although there is more: a few of them are looked through at once.
        for _ in 0..PAGES_MAX {
            let next = operator.list(&wanted).await.map_err(|error| store_problem(&error))?;
            page.entries.extend(next.entries);
            page.unreadable.extend(next.unreadable);
            page.next = next.next;
            if page.next.is_none() || !page.entries.is_empty() {
                break;
            }
            wanted = wanted.after(page.next.clone());
        }
        Ok(json!({
            "records": page.entries.iter().map(view::summary).collect::<Vec<_>>(),
            "unreadable": page.unreadable.iter().map(RecordId::to_string).collect::<Vec<_>>(),
            "next": page.next.as_ref().map(|cursor| cursor.as_str()),
        }))
    }

    /// One record, its story, and what can be done about it.
    pub(super) async fn record(&self, id: &str) -> Answer {
        let id = read_id(id)?;
        let operator = self.operator()?;
        let entry = operator.entry(&id).await.map_err(|error| store_problem(&error))?;
        let sighting = match operator.lookup(&id).await {
            // It does not open; that it can be forgotten is offered all the same.
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            seen => seen.map_err(|error| store_problem(&error))?,
        };
        let current_values = Instant::now();
        let event_log =
            self.recorder.event_log().map(|event_log| event_log.events_of(&id)).unwrap_or_default();
        let told: Vec<_> = event_log.iter().map(|told| view::event(told, current_values)).collect();
        let actions = entry.as_ref().map(|entry| {
            let offer = |action: &OperatorAction| {
                json!({
                    "name": action.as_str(),
                    "title": action.title(),
                    "consequence": action.consequence(),
                    "seen": view::seen(entry),
                })
            };
            OperatorAction::for_state(entry.status).iter().map(offer).collect::<Vec<_>>()
        });
        Ok(json!({
            "id": id.to_string(),
            "record": entry.as_ref().map(view::summary),
            "answer": sighting.as_ref().and_then(view::answer),
            "story": told,
            "story_note": match told.is_empty() {
                true => NOTHING_SEEN,
                false => SEEN_HERE,
            },
            "actions": actions.unwrap_or_default(),
        }))
    }

    /// Which records a key has.
    ///
    /// # Security
    ///
    /// The key comes in a body, so that no log of ours or of a proxy between us has it, and is
    /// dropped with it.
    pub(super) async fn search(&self, asked: &Value) -> Answer {
        let text = |name: &str| asked[name].as_str().unwrap_or_default();
        let bad = |text: String| ApiProblem::new(StatusCode::BAD_REQUEST, text);
        let line = HeaderValue::from_str(text("key"))
            .map_err(|_| bad("`key` is no header's value.".to_owned()))?;
        let key = Key::from_lines([&line], KeySyntax::Lenient, KEY_BYTES_MAX)
            .map_err(|invalid| bad(format!("`key`: {invalid}.")))?
            .ok_or_else(|| bad("Give a `key`.".to_owned()))?;
        let method = Method::from_bytes(text("method").trim().to_ascii_uppercase().as_bytes())
            .unwrap_or(Method::POST);
        let mut found: Vec<(RecordId, Vec<&str>)> = Vec::new();
        let table = self.table();
        for route in &table.routes {
            let Some(scope) = scope_for(route, text("scope")) else { continue };
            let Some(engine) = &route.engine else { continue };
            for id in engine.operator().ids(&scope, &key, Some((&method, text("path")))) {
                match found.iter_mut().find(|(known, _)| *known == id) {
                    Some((_, routes)) => routes.push(&route.config.name),
                    None => found.push((id, vec![&route.config.name])),
                }
            }
        }
        let operator = self.operator()?;
        let mut matches = Vec::new();
        for (id, routes) in found {
            let entry = operator.entry(&id).await.map_err(|error| store_problem(&error))?;
            let record = entry.as_ref().map(view::summary);
            matches.push(json!({ "id": id.to_string(), "routes": routes, "record": record }));
        }
        Ok(json!({ "matches": matches }))
    }

    /// Does something about a record, and says so in the log.
    pub(super) async fn act(
        &self,
        id: &str,
        action: &str,
        asked: &Value,
        caller: &Caller,
    ) -> Answer {
        let id = read_id(id)?;
        let action = OperatorAction::named(action)
            .ok_or_else(|| ApiProblem::new(StatusCode::NOT_FOUND, "There is no such action."))?;
        let operator = self.operator()?;
        let before = operator.entry(&id).await.map_err(|error| store_problem(&error))?;
        let before = before.ok_or_else(|| operator_problem(&OperatorError::Absent))?;
        if asked["seen"].as_str() != Some(&view::seen(&before)) {
            return Err(ApiProblem::new(StatusCode::CONFLICT, CHANGED));
        }
        let result = match action {
            OperatorAction::Forget => operator.forget(&id).await.map(drop),
            OperatorAction::Release => operator.resolve(&id, Resolution::Release).await.map(drop),
            OperatorAction::Answer => {
                let (status, headers, body) = view::read_answer(&asked["answer"])?;
                let answer = operator.response(status, &headers, body);
                operator.resolve(&id, answer.into()).await.map(drop)
            }
        };
        tracing::info!(
            target: "idemptx::audit",
            action = action.as_str(),
            key = short_id(&id),
            was = before.status.as_str(),
            done = result.is_ok(),
            by = caller.name,
            from = %caller.address,
            "an operator decided about a record"
        );
        result.map_err(|error| operator_problem(&error))?;
        if let Some(event_log) = self.recorder.event_log() {
            event_log.record(&id, action.event());
        }
        Ok(json!({ "done": action.done() }))
    }

    /// The calls of an operator, under the policy that keeps answers for the longest.
    fn operator(&self) -> Result<Calls, ApiProblem> {
        let table = self.table();
        let longest = table.engines().max_by_key(|engine| engine.policy().retain);
        longest.map(|engine| engine.operator()).ok_or_else(|| {
            ApiProblem::new(StatusCode::NOT_FOUND, "No route is protected: there are no records.")
        })
    }
}

/// Reads `view`, `limit` and `after`.
fn asked(query: &str) -> Result<Query, ApiProblem> {
    let bad = |text: String| ApiProblem::new(StatusCode::BAD_REQUEST, text);
    let mut wanted = Query::in_flight().limit(LIMIT);
    for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let cursor = wanted.after.clone();
        let limit = wanted.limit;
        wanted = match name {
            "view" => match value {
                "in-flight" => Query::in_flight(),
                "in-doubt" => Query::in_doubt(),
                "all" => Query::all(),
                state => Query::of([state.parse::<RecordStatus>().map_err(|error| {
                    bad(format!("`view`: {error}, in-flight, in-doubt or all."))
                })?]),
            }
            .limit(limit)
            .after(cursor),
            "limit" => {
                wanted.limit(value.parse().map_err(|_| bad("`limit` is no number.".to_owned()))?)
            }
            "after" => {
                let cursor = value.parse().map_err(|error| bad(format!("`after`: {error}.")))?;
                wanted.after(Some(cursor))
            }
            _ => return Err(bad("Ask with `view`, `limit` and `after` only.".to_owned())),
        };
    }
    Ok(wanted)
}

/// The scope that a route's policy would have found; `None` if it needs one that was not given.
fn scope_for(route: &ActiveRoute, given: &str) -> Option<Scope> {
    match route.config.policy()?.scope {
        Some(ScopeRule::Bind(_) | ScopeRule::Shared) => Some(Scope::shared()),
        _ => (!given.is_empty()).then(|| Scope::new(given)),
    }
}

fn read_id(text: &str) -> Result<RecordId, ApiProblem> {
    // A colon needs no escape in a path, but some clients escape it.
    let text = text.replace("%3A", ":").replace("%3a", ":");
    text.parse().map_err(|error| ApiProblem::new(StatusCode::BAD_REQUEST, format!("{error}.")))
}

fn store_problem(error: &StoreError) -> ApiProblem {
    tracing::warn!("an operator's call failed: {}", crate::error::error_text(error));
    ApiProblem::new(StatusCode::SERVICE_UNAVAILABLE, format!("The store: {error}."))
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

const CHANGED: &str = "The record is not what you saw any more; look again.";
const NOTHING_SEEN: &str = "This gateway has seen nothing of it since it started, or has \
     forgotten it: another one may have.";
const SEEN_HERE: &str = "This is what this gateway saw; others may have done more.";
/// Records on a page, unless asked otherwise.
const LIMIT: usize = 50;
const PAGES_MAX: usize = 8;
/// As a policy allows at most.
const KEY_BYTES_MAX: usize = 1024;
