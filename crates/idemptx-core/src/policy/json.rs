//! Policies from and to JSON, by the names of the reference (`docs/reference/policy.md`).

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use self::given::Given;
use super::{ConfigError, Policy, PolicyBuilder, Profile};
use crate::time::millis;

mod given;
mod shown;

impl Policy {
    /// Lays a JSON object over a profile.
    ///
    /// ```
    /// use idemptx_core::policy::{Policy, Profile};
    ///
    /// let policy = Policy::from_json(Profile::Stripe, r#"{"required": true, "wait_ms": 2000}"#)?;
    /// assert!(policy.required);
    ///
    /// let error = Policy::from_json(Profile::Stripe, r#"{"retain": 60000}"#).unwrap_err();
    /// assert_eq!(error.to_string(), "`retain`: no such field; did you mean `retain_ms`?");
    /// # Ok::<(), idemptx_core::policy::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a text that is no JSON object, an unknown or repeated name, a value of
    /// the wrong kind, and whatever [`Policy::validate`] refuses.
    pub fn from_json(profile: Profile, text: &str) -> Result<Self, ConfigError> {
        Self::profile(profile).into_builder().overlay_json(text)?.build()
    }

    /// The effective policy, every field by its name in JSON.
    ///
    /// Secrets are shown as their ids; without them, [`from_json`](Self::from_json) reads it back.
    #[must_use]
    pub fn to_json(&self) -> String {
        let fields = FIELDS.map(|field| format!("\"{}\":{}", field.name, (field.show)(self)));
        format!("{{{}}}", fields.join(","))
    }
}

impl PolicyBuilder {
    /// Lays a JSON object over what is there; see [`Policy::from_json`].
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a text that is no JSON object, an unknown or repeated name, and a value
    /// of the wrong kind.
    pub fn overlay_json(self, text: &str) -> Result<Self, ConfigError> {
        let Entries(entries) = serde_json::from_str(text).map_err(|error| {
            ConfigError::new("policy", format!("give one JSON object ({error})"))
        })?;
        let mut builder = self;
        for (position, (name, value)) in entries.iter().enumerate() {
            let field = FIELDS.iter().find(|field| field.name == name);
            let field = field.ok_or_else(|| unknown(name))?;
            if entries.iter().take(position).any(|(earlier, _)| earlier == name) {
                return Err(ConfigError::new(field.name, "it stands here twice; keep one"));
            }
            builder = (field.read)(builder, &Given::new(field.name, value))?;
        }
        Ok(builder)
    }
}

/// As [`Policy::to_json`].
impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(FIELDS.iter().map(|field| (field.name, (field.show)(self))))
    }
}

/// A field of a policy in JSON.
struct Field {
    name: &'static str,
    read: fn(PolicyBuilder, &Given<'_>) -> Result<PolicyBuilder, ConfigError>,
    show: fn(&Policy) -> Value,
}

/// A JSON object as it was written: in order, repeated names kept.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of policy fields")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

fn unknown(name: &str) -> ConfigError {
    let nearest = FIELDS.iter().map(|field| (distance(name, field.name), field.name)).min();
    let advice = match nearest {
        Some((distance, near)) if distance * 2 <= near.len() => {
            format!("no such field; did you mean `{near}`?")
        }
        _ => "no such field; docs/reference/policy.md lists them".to_owned(),
    };
    ConfigError::new(name.to_owned(), advice)
}

/// How many characters must be added, dropped or changed to make one name of the other
/// (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut costs: Vec<usize> = (0..=to.chars().count()).collect();
    for (row, have) in from.chars().enumerate() {
        let (mut diagonal, mut left) = (row, row + 1);
        for (want, cost) in to.chars().zip(costs.iter_mut().skip(1)) {
            let change = diagonal + usize::from(have != want);
            diagonal = *cost;
            left = change.min(left + 1).min(*cost + 1);
            *cost = left;
        }
        if let Some(first) = costs.first_mut() {
            *first = row + 1;
        }
    }
    costs.last().copied().unwrap_or_default()
}

/// Every field there is, in the order of the reference.
const FIELDS: [Field; 36] = [
    Field {
        name: "header_name",
        read: |policy, given| Ok(policy.header_names(given.header_names()?)),
        show: |policy| shown::headers(&policy.header_names),
    },
    Field {
        name: "key_syntax",
        read: |policy, given| Ok(policy.key_syntax(given.word()?)),
        show: |policy| policy.key_syntax.as_str().into(),
    },
    Field {
        name: "key_bytes_max",
        read: |policy, given| Ok(policy.key_bytes_max(given.number()?)),
        show: |policy| policy.key_bytes_max.into(),
    },
    Field {
        name: "methods",
        read: |policy, given| Ok(policy.methods(given.list_of(Given::method)?)),
        show: |policy| shown::texts(&policy.methods),
    },
    Field {
        name: "required",
        read: |policy, given| Ok(policy.required(given.truth()?)),
        show: |policy| policy.required.into(),
    },
    Field {
        name: "scope",
        read: |policy, given| Ok(policy.scope(given.scope()?)),
        show: |policy| shown::scope(policy.scope.as_ref()),
    },
    Field {
        name: "key_space",
        read: |policy, given| Ok(policy.key_space(given.word()?)),
        show: |policy| policy.key_space.as_str().into(),
    },
    Field {
        name: "retain_ms",
        read: |policy, given| Ok(policy.retain(given.millis()?)),
        show: |policy| millis(policy.retain).into(),
    },
    Field {
        name: "key_retain_ms",
        read: |policy, given| Ok(policy.key_retain(given.millis()?)),
        show: |policy| millis(policy.key_retain).into(),
    },
    Field {
        name: "lease_ms",
        read: |policy, given| Ok(policy.lease(given.millis()?)),
        show: |policy| millis(policy.lease).into(),
    },
    Field {
        name: "wait_ms",
        read: |policy, given| Ok(policy.wait(given.millis()?)),
        show: |policy| millis(policy.wait).into(),
    },
    Field {
        name: "waiters_max",
        read: |policy, given| Ok(policy.waiters_max(given.number()?)),
        show: |policy| policy.waiters_max.into(),
    },
    Field {
        name: "waiters_total_max",
        read: |policy, given| Ok(policy.waiters_total_max(given.number()?)),
        show: |policy| policy.waiters_total_max.into(),
    },
    Field {
        name: "missing_status",
        read: |policy, given| Ok(policy.missing_status(given.status()?)),
        show: |policy| policy.missing_status.as_u16().into(),
    },
    Field {
        name: "in_flight_status",
        read: |policy, given| Ok(policy.in_flight_status(given.status()?)),
        show: |policy| policy.in_flight_status.as_u16().into(),
    },
    Field {
        name: "mismatch_status",
        read: |policy, given| Ok(policy.mismatch_status(given.status()?)),
        show: |policy| policy.mismatch_status.as_u16().into(),
    },
    Field {
        name: "on_orphan",
        read: |policy, given| Ok(policy.on_orphan(given.word()?)),
        show: |policy| policy.on_orphan.as_str().into(),
    },
    Field {
        name: "on_panic",
        read: |policy, given| Ok(policy.on_panic(given.word()?)),
        show: |policy| policy.on_panic.as_str().into(),
    },
    Field {
        name: "on_store_error",
        read: |policy, given| Ok(policy.on_store_error(given.word()?)),
        show: |policy| policy.on_store_error.as_str().into(),
    },
    Field {
        name: "store_statuses",
        read: |policy, given| Ok(policy.store_statuses(given.statuses()?)),
        show: |policy| shown::statuses(&policy.store_statuses),
    },
    Field {
        name: "release_statuses",
        read: |policy, given| Ok(policy.release_statuses(given.statuses()?)),
        show: |policy| shown::statuses(&policy.release_statuses),
    },
    Field {
        name: "rebind_statuses",
        read: |policy, given| Ok(policy.rebind_statuses(given.statuses()?)),
        show: |policy| shown::statuses(&policy.rebind_statuses),
    },
    Field {
        name: "request_bytes_max",
        read: |policy, given| Ok(policy.request_bytes_max(given.number()?)),
        show: |policy| policy.request_bytes_max.into(),
    },
    Field {
        name: "response_bytes_max",
        read: |policy, given| Ok(policy.response_bytes_max(given.number()?)),
        show: |policy| policy.response_bytes_max.into(),
    },
    Field {
        name: "on_large_body",
        read: |policy, given| Ok(policy.on_large_body(given.word()?)),
        show: |policy| policy.on_large_body.as_str().into(),
    },
    Field {
        name: "fingerprint",
        read: |policy, given| given.fingerprint(policy),
        show: |policy| shown::fingerprint(policy.fingerprint.as_ref()),
    },
    Field {
        name: "replay_headers",
        read: |policy, given| given.replay(policy),
        show: |policy| shown::replay(&policy.replay),
    },
    Field {
        name: "expose",
        read: |policy, given| Ok(policy.expose(given.list_of(Given::word)?)),
        show: |policy| shown::texts(&policy.expose),
    },
    Field {
        name: "status_header",
        read: |policy, given| Ok(policy.status_header(given.header()?)),
        show: |policy| policy.status_header.as_str().into(),
    },
    Field {
        name: "secrets",
        read: |policy, given| Ok(policy.secrets(given.list_of(Given::secret)?)),
        show: |policy| shown::secrets(&policy.secrets),
    },
    Field {
        name: "naming_secret",
        read: |policy, given| Ok(policy.naming_secret(given.optional_secret()?)),
        show: |policy| policy.naming_secret.as_ref().map_or(Value::Null, shown::secret),
    },
    Field {
        name: "store_timeout_ms",
        read: |policy, given| given.store_timeout(policy),
        show: |policy| shown::store_timeout(policy),
    },
    Field {
        name: "on_unsafe_store",
        read: |policy, given| Ok(policy.on_unsafe_store(given.word()?)),
        show: |policy| policy.on_unsafe_store.as_str().into(),
    },
    Field {
        name: "drain_ms",
        read: |policy, given| Ok(policy.drain(given.millis()?)),
        show: |policy| millis(policy.drain).into(),
    },
    Field {
        name: "mode",
        read: |policy, given| Ok(policy.mode(given.word()?)),
        show: |policy| policy.mode.as_str().into(),
    },
    Field {
        name: "new_keys_per_minute_max",
        read: |policy, given| Ok(policy.new_keys_per_minute_max(given.limit()?)),
        show: |policy| policy.new_keys_per_minute_max.into(),
    },
];

#[cfg(test)]
mod tests;
