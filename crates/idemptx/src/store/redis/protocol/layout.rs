//! Names of records.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use idemptx_core::key::RecordId;

use super::cluster::{slot_of, tag_of};

/// Names of a store's records, shared by all of its steps.
#[derive(Clone, Debug)]
pub struct Layout {
    prefix: Box<str>,
    channel: Box<str>,
    is_sharded: bool,
    server: Option<Arc<str>>,
    /// True once a server has refused to write what is as expected without a script.
    needs_scripts: Arc<AtomicBool>,
}

impl Layout {
    /// The layout under a prefix such as `idem:`.
    ///
    /// Stores with different prefixes share nothing.
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        let channel = format!("{prefix}wake").into_boxed_str();
        let needs_scripts = Arc::default();
        Self { prefix: prefix.into(), channel, is_sharded: false, server: None, needs_scripts }
    }

    /// Sets the server's name for the texts of errors: an address, never a credential.
    #[must_use]
    pub fn at(mut self, server: impl Into<Arc<str>>) -> Self {
        self.server = Some(server.into());
        self
    }

    /// Publishes notifications on a channel of the record's slot, as a cluster can.
    ///
    /// A plain channel would do, but every node of the cluster passes its messages on to every
    /// other.
    #[must_use]
    pub fn sharded(mut self) -> Self {
        self.is_sharded = true;
        self
    }

    /// Returns the channel of the notifications, unless they are [sharded](Self::sharded); each is
    /// a record's id in text.
    #[must_use]
    pub fn channel(&self) -> &str {
        &self.channel
    }

    /// Returns the channel of a record's notifications.
    #[must_use]
    pub fn channel_of(&self, id: &RecordId) -> Cow<'_, str> {
        match self.is_sharded {
            true => format!("{}{{{}}}", self.channel, tag_of(slot_of(id))).into(),
            false => (&*self.channel).into(),
        }
    }

    /// Returns the command that publishes a notification.
    pub(super) const fn publish(&self) -> &'static str {
        if self.is_sharded { "SPUBLISH" } else { "PUBLISH" }
    }

    /// The keys of a record, and of its response where that is kept apart.
    #[must_use]
    pub fn keys(&self, id: &RecordId) -> [String; 2] {
        let record = format!("{}{{{id}}}", self.prefix);
        let response = format!("{record}:response");
        [record, response]
    }

    /// Returns the key of the history of a server's data; in a cluster it is in one of its slots.
    #[cfg(feature = "redis")]
    pub(super) fn epoch_key(&self, slot: Option<u16>) -> String {
        match slot {
            Some(slot) => format!("{}epoch{{{}}}", self.prefix, tag_of(slot)),
            None => format!("{}epoch", self.prefix),
        }
    }

    /// Returns true if `SET … IFEQ` may be known: Valkey has it since 8.1, Redis since 8.4.
    pub(super) fn may_compare(&self) -> bool {
        !self.needs_scripts.load(Ordering::Relaxed)
    }

    /// Notes that a server does not know `SET … IFEQ`.
    pub(super) fn note_needs_scripts(&self) {
        self.needs_scripts.store(true, Ordering::Relaxed);
    }

    pub(super) fn prefix(&self) -> &[u8] {
        self.prefix.as_bytes()
    }

    pub(super) fn server(&self) -> Option<Arc<str>> {
        self.server.clone()
    }
}

/// An id as its `Display` has it, without the detour.
pub(super) fn text(id: &RecordId) -> [u8; ID_TEXT_BYTES] {
    let mut text = [b':'; ID_TEXT_BYTES];
    let (scope, colon_and_name) = text.split_at_mut(ID_TEXT_BYTES / 2);
    let (scope_bytes, name_bytes) = id.as_bytes().split_at(RecordId::BYTES / 2);
    write_hex(scope, scope_bytes);
    if let Some((_, name)) = colon_and_name.split_first_mut() {
        write_hex(name, name_bytes);
    }
    text
}

fn write_hex(out: &mut [u8], bytes: &[u8]) {
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        let digits = [byte >> 4, byte & 0xF];
        pair.copy_from_slice(&digits.map(|it| b'0' + it + u8::from(it > 9) * (b'a' - b'9' - 1)));
    }
}

/// A retention that Redis accepts as a time to live.
pub(super) fn kept(retain: Duration) -> Duration {
    retain.clamp(RETAIN_MIN, RETAIN_MAX)
}

/// Length of an id in text.
pub(super) const ID_TEXT_BYTES: usize = 2 * RecordId::BYTES + 1;

const RETAIN_MIN: Duration = Duration::from_millis(1);
const RETAIN_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::redis::protocol::command::{Command, Key};

    #[test]
    fn the_record_and_its_response_share_a_hash_slot() {
        let id = RecordId::from_bytes(std::array::from_fn(|position| position as u8 * 7));
        let layout = Layout::new("idem:");
        let [record, response] = layout.keys(&id);
        assert_eq!(record, format!("idem:{{{id}}}"));
        assert_eq!(response, format!("idem:{{{id}}}:response"));
        let command = Command::of("GET", 3, 0)
            .key(&layout, Key::Record(&id))
            .key(&layout, Key::Response(&id));
        let keys: Vec<_> = command.arguments().skip(1).collect();
        assert_eq!(keys, [record.as_bytes(), response.as_bytes()]);
    }

    #[test]
    fn no_retention_exceeds_what_redis_accepts() {
        assert_eq!(kept(Duration::ZERO), RETAIN_MIN);
        assert_eq!(kept(Duration::MAX), RETAIN_MAX);
        assert_eq!(kept(Duration::from_secs(60)), Duration::from_secs(60));
    }
}
