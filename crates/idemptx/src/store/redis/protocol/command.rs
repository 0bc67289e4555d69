//! A command in the words of the Redis protocol.

use std::fmt;
use std::time::Duration;

use idemptx_core::key::RecordId;
use idemptx_core::time::millis;

use super::layout::{ID_TEXT_BYTES, Layout, text};

/// A command: its name and arguments.
///
/// `Debug` shows its name and its size only: responses are in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// The name and the arguments, one after the other.
    bytes: Vec<u8>,
    /// The end of each.
    ends: Vec<usize>,
}

impl Command {
    /// Returns the name and the arguments, in order.
    pub fn arguments(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let argument = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            argument
        })
    }

    /// Returns the number of bytes in all of them.
    #[cfg(feature = "redis")]
    pub(in crate::store::redis) fn bytes_count(&self) -> usize {
        self.bytes.len()
    }

    /// Appends it as the Redis protocol has it: an array of bulk strings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push_length(out, b'*', self.ends.len());
        for argument in self.arguments() {
            push_length(out, b'$', argument.len());
            out.extend_from_slice(argument);
            out.extend_from_slice(LINE_END);
        }
    }

    /// Sets a key for a while.
    pub(super) fn set(layout: &Layout, key: Key<'_>, value: &[&[u8]], retain: Duration) -> Self {
        let size = value.iter().map(|part| part.len()).sum();
        Self::of("SET", 5, size).key(layout, key).joined(value).text("PX").number(millis(retain))
    }

    /// Creates the command that restarts a key's time to live, in milliseconds.
    pub(super) fn expire(layout: &Layout, key: Key<'_>, retain_millis: u64) -> Self {
        Self::of("PEXPIRE", 3, 0).key(layout, key).number(retain_millis)
    }

    /// Begins one with a number of arguments, its name among them, and about so many bytes of them.
    pub(super) fn of(name: &str, arguments: usize, size: usize) -> Self {
        let bytes = Vec::with_capacity(ROOM_BYTES + size);
        Self { bytes, ends: Vec::with_capacity(arguments) }.text(name)
    }

    pub(super) fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        self.joined(&[bytes])
    }

    pub(super) fn number(self, number: u64) -> Self {
        let mut digits = [0; DIGITS_MAX];
        self.bytes(decimal(&mut digits, number))
    }

    pub(super) fn key(self, layout: &Layout, key: Key<'_>) -> Self {
        let (id, end) = key.parts();
        self.joined(&[layout.prefix(), b"{", &text(id), end])
    }

    /// Adds one argument that lies about in parts.
    pub(super) fn joined(mut self, parts: &[&[u8]]) -> Self {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.ends.push(self.bytes.len());
        self
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.arguments().next().unwrap_or_default();
        write!(f, "Command({}, {} bytes)", name.escape_ascii(), self.bytes.len())
    }
}

/// Key of a record or of its response; the braces put both into one slot.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key<'a> {
    Record(&'a RecordId),
    Response(&'a RecordId),
}

impl<'a> Key<'a> {
    fn parts(self) -> (&'a RecordId, &'static [u8]) {
        match self {
            Self::Record(id) => (id, b"}"),
            Self::Response(id) => (id, b"}:response"),
        }
    }
}

fn push_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    let mut digits = [0; DIGITS_MAX];
    out.push(kind);
    out.extend_from_slice(decimal(&mut digits, length as u64));
    out.extend_from_slice(LINE_END);
}

fn decimal(digits: &mut [u8; DIGITS_MAX], mut number: u64) -> &[u8] {
    let mut first = DIGITS_MAX;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
        first -= 1;
        if number == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
}

const LINE_END: &[u8] = b"\r\n";
/// Number of digits of the largest `u64`.
const DIGITS_MAX: usize = 20;
/// Size of a command without its large arguments: a hash, two keys and a few short ones.
const ROOM_BYTES: usize = 128 + 2 * ID_TEXT_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let command = Command::of("SET", 3, 0).joined(&[b"a", b"", b"bc"]).number(0);
        let mut out = b"before".to_vec();
        command.encode(&mut out);
        assert_eq!(out, b"before*3\r\n$3\r\nSET\r\n$3\r\nabc\r\n$1\r\n0\r\n");
    }

    #[test]
    fn arguments_are_read_back_whatever_bytes_they_hold() {
        let awkward: [&[u8]; 4] = [b"", b"\r\n$3\r\n", b"*1\r\n", &[0xFF; 1000]];
        let command = awkward.iter().fold(Command::of("X", 5, 0), |command, a| command.bytes(a));
        let arguments = command.arguments();
        assert_eq!(arguments.len(), 5);
        assert_eq!(arguments.collect::<Vec<_>>(), [&[&b"X"[..]], &awkward[..]].concat());
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 9, 10, 1_700_000_000_250_000, u64::MAX] {
            let command = Command::of("X", 2, 0).number(number);
            assert_eq!(command.arguments().nth(1).unwrap(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn no_text_about_a_command_shows_its_arguments() {
        let command = Command::of("SET", 2, 0).text("card 4242");
        assert_eq!(format!("{command:?}"), "Command(SET, 12 bytes)");
    }
}
