//! The choices that a policy offers, each with its word in JSON, TOML, Python and on command lines.

use std::fmt;
use std::str::FromStr;

use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderName};

use super::ConfigError;

/// Declares an enum whose variants are words of the policy's field `$field`.
macro_rules! choice {
    (
        $(#[$doc:meta])*
        $choice:ident for $field:literal {
            $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $choice {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $choice {
            /// Returns the word for this choice in a policy.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for $choice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $choice {
            type Err = ConfigError;

            fn from_str(word: &str) -> Result<Self, ConfigError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ConfigError::new(
                        $field,
                        format!("write `{}`", [$($word),+].join("` or `")),
                    )),
                }
            }
        }

        #[cfg(feature = "serde")]
        impl super::values::JsonValue for $choice {
            fn read(given: &super::json_input::Given<'_>, _: &Self) -> Result<Self, ConfigError> {
                given.text().unwrap_or_default().parse()
            }

            fn write(&self) -> serde_json::Value {
                self.as_str().into()
            }
        }
    };
}

choice! {
    /// A named set of defaults.
    Profile for "profile" {
        /// The defaults of the IETF draft.
        Draft = "draft",
        /// The behaviour of Stripe's v1 API: 400 for a mismatch, 5xx stored.
        Stripe = "stripe",
        /// No second execution under any failure: an operator resolves every doubt.
        Payments = "payments",
        /// The behaviour of the original Python package.
        Idemptx = "idemptx",
        /// The rules of the Agentic Commerce Protocol.
        Acp = "acp",
        /// The rules of the Universal Commerce Protocol.
        Ucp = "ucp",
        /// The rules of the Iceberg REST catalog.
        Iceberg = "iceberg",
    }
}

choice! {
    /// The syntax of a key in its header.
    KeySyntax for "key_syntax" {
        /// A Structured Field String, or bare text.
        Lenient = "lenient",
        /// A Structured Field String only (RFC 8941 §3.3.3).
        StrictSf = "strict_sf",
    }
}

choice! {
    /// The treatment of a key that a client's template or script failed to fill in, such as
    /// `undefined` or `{{$guid}}`.
    OnPlaceholderKey for "on_placeholder_key" {
        /// Accept it; [`Policy::warns_of_key`](super::Policy::warns_of_key) lets an adapter report
        /// it.
        Warn = "warn",
        /// Refuse it as an invalid key.
        Refuse = "refuse",
    }
}

choice! {
    /// The range in which a key is unique.
    KeySpace for "key_space" {
        /// A key names one operation in its scope, on any route.
        Scope = "scope",
        /// A key names one operation for each method and path.
        Route = "route",
    }
}

choice! {
    /// The treatment of an operation whose executor stopped without a result.
    OnOrphan for "on_orphan" {
        /// The next request executes again.
        Reexecute = "reexecute",
        /// Requests are refused until an operator resolves the record.
        Quarantine = "quarantine",
        /// A hook of the application decides.
        Probe = "probe",
    }
}

choice! {
    /// The treatment of a retry whose operation completed with a response that was not kept: one
    /// that was too large, or a stream.
    OnNotReplayable for "on_not_replayable" {
        /// Refuse it: the operation happens once.
        Refuse = "refuse",
        /// Execute the operation again, such as an export without effects.
        Reexecute = "reexecute",
    }
}

choice! {
    /// The treatment of an operation whose handler failed.
    OnPanic for "on_panic" {
        /// The next request executes again.
        Release = "release",
        /// The outcome is unknown.
        Quarantine = "quarantine",
    }
}

choice! {
    /// The treatment of a request while the store is unavailable.
    OnStoreError for "on_store_error" {
        /// Refuse it.
        FailClosed = "fail_closed",
        /// Run it without protection.
        FailOpen = "fail_open",
    }
}

choice! {
    /// The treatment of a request body over the limit.
    OnLargeBody for "on_large_body" {
        /// Refuse the request.
        Reject = "reject",
        /// Run the request without protection.
        Skip = "skip",
        /// Compute the fingerprint while the body passes through a file; a body that the
        /// fingerprint's rule parses is refused.
        Stream = "stream",
    }
}

choice! {
    /// The treatment of a store that can lose records.
    OnUnsafeStore for "on_unsafe_store" {
        /// Warn at start-up.
        Warn = "warn",
        /// Refuse to start.
        Refuse = "refuse",
    }
}

choice! {
    /// The choice between enforcement and observation.
    Mode for "mode" {
        /// Duplicates are refused or replayed.
        Enforce = "enforce",
        /// Every request executes; refusals and replays are only reported.
        Shadow = "shadow",
    }
}

choice! {
    /// A fact that responses reveal besides the replay marker.
    Expose for "expose" {
        /// The outcome of the request, in the policy's `status_header`.
        Status = "status",
        /// The key, echoed.
        Key = "key",
        /// The fingerprint.
        Signature = "signature",
        /// The time until the response expires.
        Expiry = "expiry",
    }
}

choice! {
    /// The format of refusals.
    ProblemFormat for "problem.format" {
        /// A problem document (RFC 9457), `application/problem+json`.
        Rfc9457 = "rfc9457",
        /// A flat object with `type`, `code` and `message`, `application/json`.
        Flat = "flat",
    }
}

/// The namespace of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ScopeRule {
    /// One namespace, where a key belongs to the client that used it first: these headers must be
    /// the same on a retry.
    Bind(Vec<HeaderName>),
    /// The value of a header that a trusted proxy or layer sets or verifies.
    Header(HeaderName),
    /// The value of a cookie (RFC 6265), such as a session; the application verifies it.
    Cookie(String),
    /// The result of the adapter's function.
    Custom,
    /// One namespace for all clients.
    Shared,
}

impl ScopeRule {
    /// Returns true for a request that has cookies and none of the headers to which its key is
    /// bound, `Host` aside; an adapter reports it.
    ///
    /// If the session is in a cookie, the key is bound to no one: two users who choose the same key
    /// for the same request get one response.
    #[must_use]
    pub fn misses_session(&self, headers: &HeaderMap) -> bool {
        let Self::Bind(names) = self else { return false };
        headers.contains_key(COOKIE)
            && !names.iter().any(|name| *name != HOST && headers.contains_key(name))
    }
}
