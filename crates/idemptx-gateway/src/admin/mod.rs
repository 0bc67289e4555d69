//! What operators see and do: a listener of its own, with an inspector page, its JSON API, metrics
//! and probes.
//!
//! ```text
//! GET  /                              the inspector: a static page, which asks the API
//! GET  /healthz, /readyz              probes
//! GET  /metrics                       OpenMetrics text
//! GET  /api/overview                  this process
//! GET  /api/records, /api/records/ID  the store, and what this process saw of a record
//! POST /api/search                    which records a key has
//! POST /api/records/ID/release, answer, forget
//! ```
//!
//! The page and the probes tell nothing that needs protection; everything else wants the token, if
//! there is one.
//! The reference is `docs/reference/admin-api.md`.

pub(crate) mod actions;
mod api;
mod auth;
mod listener;
mod router;
pub(crate) mod view;

pub(crate) use self::listener::{listen, poll_store};
pub(crate) use self::router::AdminService;
