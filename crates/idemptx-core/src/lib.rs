//! The idempotency protocol as a pure state machine.
//!
//! Nothing here reads a clock, opens a socket, or draws a random number.
//! Services use the crate `idemptx`, which drives this one; depend on it directly to write a store
//! or another driver.
//!
//! # Reading order
//!
//! 1. [`key`]: the client's key, and the [`RecordId`](key::RecordId) derived from it.
//! 2. [`policy`]: the rules of a route.
//! 3. [`store`]: the four atomic steps that everything rests on.
//! 4. [`exchange`]: the state machine of one request; **the only place that decides anything**.
//! 5. [`response`], [`description`] and [`record`]: the stored bytes.
//! 6. [`outcome`] and [`problem`]: the result of an exchange, and its answer to the client.
//!
//! # An exchange, step by step
//!
//! ```
//! use std::sync::Arc;
//! use http::{HeaderMap, Method, Uri};
//! use idemptx_core::exchange::{Action, BodyEnd, Event, Exchange, Head, Rules};
//! use idemptx_core::lease::{Lease, Token};
//! use idemptx_core::policy::Policy;
//! use idemptx_core::store::Claim;
//! use idemptx_core::time::Timestamp;
//!
//! let rules = Arc::new(Rules::new(Policy::draft()));
//! let (method, uri) = (Method::POST, Uri::from_static("/orders"));
//! let mut headers = HeaderMap::new();
//! headers.insert("idempotency-key", "8e03978e".parse()?);
//! let head = Head::new(&method, &uri, &headers);
//!
//! // The head is admitted: read the body, and hash it on the way.
//! let (mut exchange, action) = Exchange::begin(&rules, &head);
//! assert!(matches!(action, Action::ReadBody { .. }));
//! let mut prints = exchange.fingerprinters(&head).ok_or("no key")?;
//! prints.update(b"{\"item\":\"tea\"}");
//!
//! // Claim the record; a store without a record under the id grants it.
//! let (now, random) = (Timestamp::from_millis(0), Token::from_bytes([7; 16]));
//! let action = exchange.step(Event::Body(BodyEnd::complete(prints), random), now);
//! let Action::Claim { id, claim_request } = action else { panic!("{action:?}") };
//! let granted = Claim::Granted(Lease::granted(id, &claim_request, 1, 1));
//!
//! // The answer came soon enough, so the handler may run.
//! let action = exchange.step(Event::Claimed(Ok(granted)), Timestamp::from_millis(2));
//! assert!(matches!(action, Action::Execute(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Features
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `conformance` | the test suite for your own store | |
//! | `serde` | policies from and to JSON | `serde`, `serde_json` |

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod coordination;
pub mod description;
mod digest;
pub mod exchange;
mod field_names;
pub mod fingerprint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
#[allow(missing_docs, clippy::expect_used, clippy::panic, reason = "a property fails by panicking")]
pub mod fuzzed;
pub mod key;
pub mod lease;
pub mod outcome;
pub mod policy;
pub mod problem;
pub mod record;
pub mod response;
pub mod response_headers;
pub mod secret;
pub mod stats;
pub mod store;
pub mod time;
