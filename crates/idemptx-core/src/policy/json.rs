//! Policies from and to JSON, by the names of the reference (`docs/reference/policy.md`).

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::definition::FIELDS;
use super::json_input::{Given, Node};
use super::{ConfigError, Policy, PolicyBuilder, Profile};

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
    /// Returns [`ConfigError`] for a text that is not a JSON object, an unknown or repeated name, a
    /// value of the wrong kind, and a policy that [`Policy::validate`] refuses.
    pub fn from_json(profile: Profile, text: &str) -> Result<Self, ConfigError> {
        Self::profile(profile).into_builder().overlay_json(text)?.build()
    }

    /// Writes the effective policy, every field by its name in JSON.
    ///
    /// Secrets are shown as their ids; without them, [`from_json`](Self::from_json) reads it back.
    #[must_use]
    pub fn to_json(&self) -> String {
        let entries = self.json_entries();
        let entries: Vec<_> =
            entries.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        format!("{{{}}}", entries.join(","))
    }

    /// Returns every name with its value, in the order of the reference.
    fn json_entries(&self) -> Vec<(&'static str, Value)> {
        let mut entries: Vec<(&'static str, Value)> = Vec::with_capacity(FIELDS.len());
        for field in FIELDS {
            let value = (field.write)(self);
            let Some(member) = field.member else {
                entries.push((field.name, value));
                continue;
            };
            if entries.last().is_none_or(|(name, _)| *name != field.name) {
                entries.push((field.name, Value::Object(serde_json::Map::new())));
            }
            if let Some((_, Value::Object(members))) = entries.last_mut() {
                members.insert(member.to_owned(), value);
            }
        }
        entries
    }
}

impl PolicyBuilder {
    /// Lays a JSON object over the fields that are set; see [`Policy::from_json`].
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError`] for a text that is not a JSON object, an unknown or repeated name,
    /// and a value of the wrong kind.
    pub fn overlay_json(mut self, text: &str) -> Result<Self, ConfigError> {
        let not_an_object =
            |reason| ConfigError::new("policy", format!("give one JSON object ({reason})"));
        let node: Node =
            serde_json::from_str(text).map_err(|error| not_an_object(error.to_string()))?;
        let Node::Object(entries) = &node else {
            return Err(not_an_object("this is another value".to_owned()));
        };
        for (position, (name, value)) in entries.iter().enumerate() {
            if !FIELDS.iter().any(|field| field.name == name) {
                return Err(unknown(name));
            }
            let given = Given::new(name.as_str(), value);
            if entries.iter().take(position).any(|(earlier, _)| earlier == name) {
                return Err(given.repeated());
            }
            self.overlay_field(name, &given)?;
        }
        Ok(self)
    }

    fn overlay_field(&mut self, name: &str, given: &Given<'_>) -> Result<(), ConfigError> {
        let fields = FIELDS.iter().filter(|field| field.name == name);
        let members: Vec<_> = fields.clone().filter_map(|field| field.member).collect();
        if members.is_empty() {
            return fields.into_iter().try_for_each(|field| (field.read)(self, given));
        }
        for (member, given) in given.entries(&members)? {
            let mut of_member = fields.clone().filter(|field| field.member == Some(member));
            of_member.try_for_each(|field| (field.read)(self, &given))?;
        }
        Ok(())
    }
}

/// Writes the same object as [`Policy::to_json`].
impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.json_entries();
        let mut map = serializer.serialize_map(Some(entries.len()))?;
        entries.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

/// A field of a policy in JSON, or a member of a field that holds several.
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) member: Option<&'static str>,
    pub(super) read: fn(&mut PolicyBuilder, &Given<'_>) -> Result<(), ConfigError>,
    pub(super) write: fn(&Policy) -> Value,
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

/// Counts the characters to add, drop or change to turn one name into the other (Levenshtein).
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

#[cfg(test)]
mod tests;
