//! The admin listener: inspector page, JSON API, metrics and probes.
//!
//! ```text
//! GET  /                              the inspector: a static page that uses the API
//! GET  /healthz, /readyz              probes
//! GET  /metrics                       OpenMetrics text
//! GET  /api/overview                  this process
//! GET  /api/records, /api/records/ID  records in the store, and their events in this process
//! POST /api/search                    the records of a key
//! POST /api/records/ID/release, answer, forget
//! ```
//!
//! The page and the probes are public; everything else requires the token, if there is one.
//! The reference is `docs/reference/admin-api.md`.

mod api;
mod auth;
mod event_view;
mod listener;
mod router;

pub(crate) use self::listener::listen;
pub(crate) use self::router::AdminService;
