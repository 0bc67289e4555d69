//! Support for tests of this crate; what other crates need as well is in `idemptx-testkit`.

pub(crate) mod command;
pub(crate) mod counting_service;
pub(crate) mod envoy_process;
pub(crate) mod gateway_process;
pub(crate) mod http_client;
pub(crate) mod hyper_service;
pub(crate) mod in_process;
pub(crate) mod operated_gateway;
pub(crate) mod order_service;
pub(crate) mod raw_client;
pub(crate) mod raw_upstream;
