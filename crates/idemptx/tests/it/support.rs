//! Support for tests of this crate; what other crates need as well is in `idemptx-testkit`.

#[cfg(feature = "tower")]
pub(crate) mod app;
#[cfg(feature = "tower")]
pub(crate) mod http_client;
#[cfg(feature = "tower")]
pub(crate) mod scripted_body;
