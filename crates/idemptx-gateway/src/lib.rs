//! The gateway: makes any HTTP service safe to retry, without a line of code.
//!
//! The binary `idemptx` is a thin shell around this; [`Config`](config::Config) says what to do and
//! [`Gateway`](serve::Gateway) does it.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | one TOML file, or a few flags, parsed into types |
//! | [`serve`] | listeners and connections, and a plan that a reload replaces |
//! | `network` | sockets: the system's, or a simulation's in tests |
//! | `framing` | a client's bytes, which must not be readable in two ways |
//! | `proxy` | one request: its target, its route, the engine, what is forwarded and answered |
//! | `upstream` | addresses and connections, and whether a request without an answer was sent |
//! | `observe` | what happens, told to those who ask: the store's steps, the requests' ends |
//! | `traces` | the same, for OpenTelemetry: spans, where the feature `otel` is built in |
//! | `metrics` | what is counted, for Prometheus |
//! | `admin` | the operators' listener: inspector page, JSON API, metrics, probes |
//! | `keys` | `idemptx keys`: records, from a shell |
//! | `openapi` | `idemptx openapi`: what an API's document should say |
//! | [`telemetry`] | the log |
//! | [`check`](mod@check) | what a configuration comes to |
//! | [`demo`] | a shop behind the gateway, and what clients do to it |
//! | [`cli`] | the words of the command line |
//!
//! # Features
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `otel` | traces for OpenTelemetry, exported over OTLP | `opentelemetry`, `opentelemetry-otlp`, `hyper-rustls` |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod admin;
pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
mod framing;
mod keys;
mod metrics;
mod network;
mod observe;
mod openapi;
mod patient;
mod proxy;
pub mod serve;
mod shutdown;
#[cfg(test)]
mod simulation;
mod store;
pub mod telemetry;
mod tls;
mod traces;
mod upstream;
