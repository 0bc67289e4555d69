//! Differences between front doors or stores, and their reasons.

use crate::store_under_test;

/// The name of the executable under test.
#[must_use]
pub fn front_door() -> String {
    std::env::var("IDEMPTX_TARGET").unwrap_or_else(|_| "axum".into())
}

/// A property that not every front door or store shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A handler that breaks down is answered for by the framework, not with a problem document.
    FrameworkAnswersForFailures,
    /// A handler that breaks down is an upstream whose answer is lost: 502.
    BrokenAnswersAreLost,
    /// Fields that concern the application's connection do not reach the client.
    IsAHopItself,
    /// Only handlers are protected: other methods and routes do not even look at a key.
    OnlyHandlersAreProtected,
    /// The store's guarantees are checked and reported with the first request that needs them.
    StoreIsLookedAtWhenItIsUsed,
    /// A client that asks whether to send its body is told so before anything sees its request.
    ServerAsksForEachBody,
    /// There is no server that could be away at start, be set up badly, or cut a connection.
    StoreHasNoServer,
}

impl Difference {
    /// Returns whether it applies to the front door or the store under test.
    #[must_use]
    pub fn applies(self) -> bool {
        let under_test = [front_door(), store_under_test()];
        DIFFERENCES.iter().any(|(name, difference, _)| {
            *difference == self && under_test.iter().any(|tested| tested == name)
        })
    }
}

/// The known differences with their reasons; everything else is the same everywhere.
const DIFFERENCES: [(&str, Difference, &str); 8] = [
    (
        "gateway",
        Difference::IsAHopItself,
        "an intermediary takes off what Connection names (RFC 9110 §7.6.1)",
    ),
    (
        "gateway",
        Difference::BrokenAnswersAreLost,
        "from outside it cannot be told whether the handler or its process broke down",
    ),
    (
        "fastapi-decorator",
        Difference::FrameworkAnswersForFailures,
        "an exception belongs to the application's exception handlers and error middleware, \
         which log and count it",
    ),
    (
        "fastapi-middleware",
        Difference::FrameworkAnswersForFailures,
        "as with the decorator: what was raised within is raised on",
    ),
    (
        "fastapi-decorator",
        Difference::OnlyHandlersAreProtected,
        "it is run for the handlers that it stands on, and for nothing else",
    ),
    (
        "fastapi-decorator",
        Difference::StoreIsLookedAtWhenItIsUsed,
        "nobody tells a decorator that the server starts",
    ),
    (
        "actix",
        Difference::ServerAsksForEachBody,
        "actix-web's server answers `Expect: 100-continue` by itself, before any middleware runs",
    ),
    (
        "sqlite",
        Difference::StoreHasNoServer,
        "its file is opened by the target itself, which does not start without it",
    ),
];
