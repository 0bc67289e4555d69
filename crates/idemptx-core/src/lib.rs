//! The idempotency protocol as a pure state machine.
//!
//! Nothing here reads a clock, opens a socket, or draws a random number.
//! Services use the crate `idemptx`, which drives this one; depend on it directly to write a store
//! or another driver.
//!
//! # Reading order
//!
//! 1. [`key`]: what a client sends, and the [`RecordId`](key::RecordId) it becomes.
//! 2. [`policy`]: what a route promises.
//! 3. [`store`]: the four atomic steps that everything rests on.
//! 4. [`exchange`]: one request's passage; **the only place that decides anything**.
//! 5. [`response`] and [`record`]: what is kept, byte for byte.
//! 6. [`outcome`] and [`problem`]: how it ends, and what a client is told.
//!
//! # A passage, by hand
//!
//! ```
//! use std::sync::Arc;
//! use http::{HeaderMap, Method, Uri};
//! use idemptx_core::exchange::{Action, BodyEnd, Event, Exchange, Head, Operation, Rules};
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
//! // The head is admitted: the body is to be read, and hashed on the way.
//! let random = || Token::from_bytes([7; 16]);
//! let (mut exchange, action) = Exchange::begin(&rules, &head, random);
//! assert!(matches!(action, Action::ReadBody { .. }));
//! let mut prints = Operation::fingerprinters(&rules, &head);
//! prints.iter_mut().for_each(|print| print.update(b"{\"item\":\"tea\"}"));
//! let prints = prints.into_iter().map(|print| print.finish()).collect();
//!
//! // Then the record is to be claimed; a store that has nothing under the id grants it.
//! let now = Timestamp::from_millis(0);
//! let action = exchange.step(Event::Body(BodyEnd::Whole(prints)), now);
//! let Action::Claim { id, claim_request } = action else { panic!("{action:?}") };
//! let granted = Claim::Granted(Lease::granted(id, &claim_request, 1, 1));
//!
//! // And the handler may run, if the answer came soon enough.
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
mod digest;
pub mod exchange;
pub mod fingerprint;
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
