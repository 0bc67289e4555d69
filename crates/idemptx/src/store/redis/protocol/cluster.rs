//! Clusters: the slots of records, the nodes that serve them, and refusals that lead elsewhere.
//!
//! The name of a record has its id in braces, so the record, its response and its wake-up channel
//! share a slot, and every step concerns one node.

use std::fmt;
use std::sync::OnceLock;

use idemptx_core::key::RecordId;

use super::command::Command;
use super::layout::text;
use super::refusal::code_of;
use super::reply::Reply;

/// Number of slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// Returns the slot of a record, of its response and of its wake-up channel.
#[must_use]
pub fn slot_of(id: &RecordId) -> u16 {
    slot_of_tag(&text(id))
}

/// Returns the command that asks a node for the slots and the nodes that serve them.
///
/// `CLUSTER SLOTS` is older than `CLUSTER SHARDS`, and known to every server and proxy.
#[must_use]
pub fn question() -> Command {
    Command::of("CLUSTER", 2, 0).text("SLOTS")
}

/// Reads the reply to the [question](question()): the ranges of slots, with their primaries.
#[must_use]
pub fn slot_ranges(reply: &Reply) -> Option<Vec<SlotRange>> {
    let Reply::Array(ranges) = reply else { return None };
    ranges.iter().map(SlotRange::read).collect()
}

/// Slots that one primary serves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotRange {
    /// The first slot.
    pub first: u16,
    /// The last slot.
    pub last: u16,
    /// The address of the primary.
    pub primary: NodeAddress,
    /// The id of the primary; empty where the server does not say.
    pub primary_id: String,
    /// The number of its replicas.
    pub replicas: usize,
}

impl SlotRange {
    fn read(reply: &Reply) -> Option<Self> {
        let Reply::Array(parts) = reply else { return None };
        let [Reply::Integer(first), Reply::Integer(last), Reply::Array(primary), replicas @ ..] =
            parts.as_slice()
        else {
            return None;
        };
        let [host, Reply::Integer(port), rest @ ..] = primary.as_slice() else { return None };
        let host = match host {
            Reply::Bytes(host) => std::str::from_utf8(host).ok()?,
            _ => "",
        };
        let primary_id = match rest.first() {
            Some(Reply::Bytes(id)) => std::str::from_utf8(id).ok()?.to_owned(),
            _ => String::new(),
        };
        let slot = |number: &i64| u16::try_from(*number).ok().filter(|slot| *slot < SLOTS);
        let primary = NodeAddress::new(host, u16::try_from(*port).ok()?);
        let (first, last) = (slot(first)?, slot(last)?);
        Some(Self { first, last, primary, primary_id, replicas: replicas.len() })
    }
}

/// Address of a node, as another node tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct NodeAddress {
    /// The host; `None` for that of the node that was asked.
    pub host: Option<String>,
    /// The port.
    pub port: u16,
}

impl NodeAddress {
    fn new(host: &str, port: u16) -> Self {
        // A node that does not know its own host, or must not tell, says nothing or `?`.
        let host = Some(host).filter(|host| !matches!(*host, "" | "?"));
        Self { host: host.map(str::to_owned), port }
    }

    /// Reads `host:port`; an IPv6 address may stand there without brackets.
    fn read(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(host);
        Some(Self::new(host, port.parse().ok()?))
    }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host.as_deref().unwrap_or("?"), self.port)
    }
}

/// A refusal by a node of a cluster that says where, or when, to ask again.
///
/// The command was certainly not executed: the node checks the slot first.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redirect {
    /// Another node serves the slot from now on.
    Moved {
        /// The slot.
        slot: u16,
        /// The node that serves it.
        to: NodeAddress,
    },
    /// The slot is being migrated, and the node to which it goes has to be asked, this once and
    /// after `ASKING`.
    Ask(NodeAddress),
    /// The slot is being migrated, and only some of the keys have arrived.
    TryAgain,
    /// The cluster, or the part of it that this node sees, does not serve the slot.
    Down,
}

impl Redirect {
    /// Reads an error of the server; `None` if it is none of these.
    #[must_use]
    pub fn read(error: &[u8]) -> Option<Self> {
        match code_of(error) {
            b"TRYAGAIN" => return Some(Self::TryAgain),
            b"CLUSTERDOWN" => return Some(Self::Down),
            b"MOVED" | b"ASK" => {}
            _ => return None,
        }
        let mut parts = std::str::from_utf8(error).ok()?.split(' ');
        let (code, slot, to) = (parts.next()?, parts.next()?, parts.next()?);
        let (slot, to) = (slot.parse().ok()?, NodeAddress::read(to)?);
        (slot < SLOTS).then_some(match code {
            "MOVED" => Self::Moved { slot, to },
            _ => Self::Ask(to),
        })
    }
}

/// Returns the command after which a node executes one command on a slot that it is taking over.
#[must_use]
pub fn asking() -> Command {
    Command::of("ASKING", 1, 0)
}

/// Returns the number whose decimal digits, in braces, put a name into a slot.
pub(super) fn tag_of(slot: u16) -> u32 {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let mut tags = vec![None; usize::from(SLOTS)];
        let mut left = tags.len();
        for number in 0..TAGS_TRIED_MAX {
            let slot = slot_of_tag(number.to_string().as_bytes());
            let Some(tag @ None) = tags.get_mut(usize::from(slot)) else { continue };
            *tag = Some(number);
            left -= 1;
            if left == 0 {
                break;
            }
        }
        tags.into_iter().map(Option::unwrap_or_default).collect()
    });
    tags.get(usize::from(slot)).copied().unwrap_or_default()
}

fn slot_of_tag(tag: &[u8]) -> u16 {
    crc16(tag) % SLOTS
}

/// CRC-16/XMODEM, which the cluster specification names.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        (crc << 8) ^ CRC16.get(index).copied().unwrap_or_default()
    })
}

const CRC16: [u16; 256] = crc16_table();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler")]
const fn crc16_table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = (index as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

/// More than enough: all slots have a tag among the first 100,000 numbers.
const TAGS_TRIED_MAX: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_the_checksum_that_the_specification_gives_as_its_example() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // As `CLUSTER KEYSLOT` answers.
        for (tag, slot) in [("foo", 12_182), ("", 0), ("somekey", 11_058)] {
            assert_eq!(slot_of_tag(tag.as_bytes()), slot, "{tag}");
        }
    }

    #[test]
    fn every_slot_has_a_tag_that_leads_to_it() {
        for slot in 0..SLOTS {
            assert_eq!(slot_of_tag(tag_of(slot).to_string().as_bytes()), slot);
        }
    }

    #[test]
    fn what_leads_elsewhere_is_read() {
        let address = |host: Option<&str>, port| NodeAddress { host: host.map(Into::into), port };
        for (error, expected) in [
            (
                "MOVED 3999 127.0.0.1:6381",
                Some(Redirect::Moved { slot: 3999, to: address(Some("127.0.0.1"), 6381) }),
            ),
            ("MOVED 1 :6381", Some(Redirect::Moved { slot: 1, to: address(None, 6381) })),
            ("ASK 3999 ?:6381", Some(Redirect::Ask(address(None, 6381)))),
            ("ASK 3999 fe80::1:6381", Some(Redirect::Ask(address(Some("fe80::1"), 6381)))),
            ("ASK 1 [fe80::1]:6381", Some(Redirect::Ask(address(Some("fe80::1"), 6381)))),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Some(Redirect::TryAgain)),
            ("CLUSTERDOWN Hash slot not served", Some(Redirect::Down)),
            ("MOVED 16384 127.0.0.1:1", None),
            ("MOVED 1", None),
            ("MOVED x y", None),
            ("READONLY You can't write against a read only replica.", None),
            ("", None),
        ] {
            assert_eq!(Redirect::read(error.as_bytes()), expected, "{error}");
        }
    }

    #[test]
    fn the_slots_of_a_cluster_are_read_with_what_a_server_may_leave_out() {
        let text = |text: &'static str| Reply::Bytes(text.into());
        let range = |parts: Vec<Reply>| Reply::Array(vec![Reply::Array(parts)]);
        let (first, last, port) = (Reply::Integer(0), Reply::Integer(5460), Reply::Integer(7000));
        let node = Reply::Array(vec![text("10.0.0.1"), port.clone(), text("abc"), Reply::Nil]);
        let ranges = slot_ranges(&range(vec![first.clone(), last.clone(), node.clone(), node]));
        let read = SlotRange {
            first: 0,
            last: 5460,
            primary: NodeAddress { host: Some("10.0.0.1".into()), port: 7000 },
            primary_id: "abc".into(),
            replicas: 1,
        };
        assert_eq!(ranges, Some(vec![read]));
        let bare = Reply::Array(vec![Reply::Nil, port]);
        let ranges = slot_ranges(&range(vec![first.clone(), last, bare])).unwrap();
        assert_eq!((&ranges[0].primary.host, &*ranges[0].primary_id), (&None, ""));
        for wrong in [Reply::Nil, range(vec![first]), Reply::Array(vec![Reply::Nil])] {
            assert_eq!(slot_ranges(&wrong), None);
        }
    }
}
