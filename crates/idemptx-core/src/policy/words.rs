//! The word for each choice, the same in JSON, TOML, Python and on command lines.

use std::fmt;
use std::str::FromStr;

use super::{
    ConfigError, Expose, KeySpace, KeySyntax, Mode, OnLargeBody, OnOrphan, OnPanic, OnStoreError,
    OnUnsafeStore, Profile,
};

macro_rules! words {
    ($field:literal is $choice:ident: $($word:literal = $variant:ident),+) => {
        impl $choice {
            /// Its word in a policy.
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
    };
}

words!("profile" is Profile:
    "draft" = Draft, "stripe" = Stripe, "payments" = Payments, "idemptx" = Idemptx);
words!("key_syntax" is KeySyntax: "lenient" = Lenient, "strict_sf" = StrictSf);
words!("key_space" is KeySpace: "scope" = Scope, "route" = Route);
words!("on_orphan" is OnOrphan:
    "reexecute" = Reexecute, "quarantine" = Quarantine, "probe" = Probe);
words!("on_panic" is OnPanic: "release" = Release, "quarantine" = Quarantine);
words!("on_store_error" is OnStoreError: "fail_closed" = FailClosed, "fail_open" = FailOpen);
words!("on_large_body" is OnLargeBody: "reject" = Reject, "skip" = Skip, "stream" = Stream);
words!("on_unsafe_store" is OnUnsafeStore: "warn" = Warn, "refuse" = Refuse);
words!("mode" is Mode: "enforce" = Enforce, "shadow" = Shadow);
words!("expose" is Expose:
    "status" = Status, "key" = Key, "signature" = Signature, "expiry" = Expiry);
