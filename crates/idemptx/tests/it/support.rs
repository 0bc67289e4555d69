//! Support for tests of this crate; what other crates need as well is in `idemptx-testkit`.

pub(crate) mod app;
pub(crate) mod http_client;
pub(crate) mod records;
pub(crate) mod scripted_body;
