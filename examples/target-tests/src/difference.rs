//! Where a front door may differ from the others, and why.

/// The name of the executable under test.
#[must_use]
pub fn front_door() -> String {
    std::env::var("IDEMPTX_TARGET").unwrap_or_else(|_| "axum".into())
}

/// Something that is not the same behind every front door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// A handler that breaks down is answered for by the framework, not with a problem document.
    FrameworkAnswersForFailures,
    /// Only handlers are protected: other methods and routes do not even look at a key.
    OnlyHandlersAreProtected,
    /// What a store promises is found out, and told, with the first request that needs it.
    StoreIsLookedAtWhenItIsUsed,
}

impl Difference {
    /// Whether it applies to the front door under test.
    #[must_use]
    pub fn applies(self) -> bool {
        let front_door = front_door();
        DIFFERENCES.iter().any(|(name, difference, _)| (*name, *difference) == (&*front_door, self))
    }
}

/// Each difference that there is, with its reason; whatever is not in here is the same everywhere.
const DIFFERENCES: [(&str, Difference, &str); 4] = [
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
];
