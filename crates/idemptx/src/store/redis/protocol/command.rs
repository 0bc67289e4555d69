//! A command, kept as the bytes that go over the wire.

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
    /// An array of bulk strings, in the Redis protocol.
    packed: Vec<u8>,
}

impl Command {
    /// Returns the name and the arguments, in order.
    #[must_use]
    pub fn arguments(&self) -> Arguments<'_> {
        let mut rest = self.packed.as_slice();
        let left = take_length(&mut rest);
        Arguments { rest, left }
    }

    /// Appends it as the Redis protocol has it: an array of bulk strings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.packed);
    }

    /// Returns the command in the Redis protocol.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.packed
    }

    /// Returns the command in the Redis protocol, without a copy.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.packed
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
        let mut packed = Vec::with_capacity(ROOM_BYTES + size);
        push_length(&mut packed, b'*', arguments);
        Self { packed }.text(name)
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
        push_length(&mut self.packed, b'$', parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| self.packed.extend_from_slice(part));
        self.packed.extend_from_slice(LINE_END);
        self
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.arguments().next().unwrap_or_default();
        write!(f, "Command({}, {} bytes)", name.escape_ascii(), self.packed.len())
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

/// The name and the arguments of a [`Command`].
#[derive(Clone, Debug)]
pub struct Arguments<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let length = take_length(&mut self.rest);
        let (argument, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest.strip_prefix(LINE_END)?;
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Arguments<'_> {}

fn push_length(out: &mut Vec<u8>, kind: u8, length: usize) {
    let mut digits = [0; DIGITS_MAX];
    out.push(kind);
    out.extend_from_slice(decimal(&mut digits, length as u64));
    out.extend_from_slice(LINE_END);
}

/// Takes a line such as `$12` off what [`push_length`] wrote.
fn take_length(rest: &mut &[u8]) -> usize {
    let mut length = 0_usize;
    while let Some((byte, more)) = rest.split_first() {
        *rest = more;
        match byte {
            b'0'..=b'9' => length = length * 10 + usize::from(byte - b'0'),
            b'\n' => break,
            _ => {}
        }
    }
    length
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
/// Size of a command without its large arguments: a hash, two keys and the lines between.
const ROOM_BYTES: usize = 256 + 2 * ID_TEXT_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let command = Command::of("SET", 3, 0).joined(&[b"a", b"", b"bc"]).number(0);
        assert_eq!(command.as_bytes(), b"*3\r\n$3\r\nSET\r\n$3\r\nabc\r\n$1\r\n0\r\n");
        let mut out = b"before".to_vec();
        command.encode(&mut out);
        assert_eq!(out, [b"before", command.as_bytes()].concat());
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
        assert_eq!(format!("{command:?}"), "Command(SET, 28 bytes)");
    }
}
