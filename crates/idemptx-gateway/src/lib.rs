//! The gateway: makes any HTTP service safe to retry, without a line of code.
//!
//! The binary `idemptx` is a thin shell around this crate: [`Config`](config::Config) describes a
//! gateway and [`Gateway`](serve::Gateway) runs it.
//!
//! | module | contents |
//! |---|---|
//! | [`config`] | the configuration: one TOML file, or a few flags |
//! | [`serve`] | listeners and connections, and the routing table that a reload replaces |
//! | `network` | sockets of TCP and of Unix: the operating system's, or a simulated network's in tests |
//! | `strict_http1` | rejects HTTP/1.1 messages that can be parsed in two ways |
//! | `proxy_protocol` | the client's address from a load balancer |
//! | `proxy` | one request: target, route, engine, forwarding, response; `proxy::ext_proc` for Envoy |
//! | `upstream` | addresses and connections to the services |
//! | `recorder` | records store operations and completed requests for metrics, log and inspector |
//! | `traces` | OpenTelemetry spans, with the feature `otel` |
//! | `metrics` | counters and histograms for Prometheus |
//! | `admin` | the admin listener: inspector page, JSON API, metrics, probes |
//! | `keys` | `idemptx keys`: records from the command line |
//! | `openapi` | `idemptx openapi`: describes keys in an OpenAPI document |
//! | [`logging`] | the log |
//! | [`check`](mod@check) | `idemptx check`: reports the effective configuration |
//! | [`demo`] | `idemptx demo`: a service in front of which the gateway runs |
//! | [`workers`] | the threads that serve clients |
//! | [`cli`] | the command line |
//!
//! # Features
//!
//! | feature | adds | pulls in |
//! |---|---|---|
//! | `otel` | traces for OpenTelemetry, exported over OTLP | `opentelemetry`, `opentelemetry-otlp`, `hyper-rustls` |

#![cfg_attr(docsrs, feature(doc_cfg))]

mod activity;
mod admin;
pub mod check;
pub mod cli;
pub mod config;
mod connection_limit;
pub mod demo;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzed;
mod keys;
pub mod logging;
mod metrics;
mod network;
mod observation;
mod openapi;
mod operators;
mod proxy;
mod proxy_protocol;
mod recorder;
mod request_body;
pub mod serve;
mod shutdown;
#[cfg(test)]
mod simulation;
mod store;
mod strict_http1;
mod systemd;
mod tls;
mod token;
mod traces;
mod upstream;
pub mod workers;
mod write_timeout;
