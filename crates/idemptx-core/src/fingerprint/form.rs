//! `application/x-www-form-urlencoded` (WHATWG URL §5.1), in bodies and queries.

use std::borrow::Cow;

/// Returns true for this media type.
pub(super) fn is_type(essence: &[u8]) -> bool {
    essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
}

/// A decoded field.
pub(super) struct Field<'a> {
    pub(super) name: Cow<'a, [u8]>,
    pub(super) value: Cow<'a, [u8]>,
}

/// Decodes all fields, in order; any bytes are a list of fields.
pub(super) fn fields(encoded: &[u8]) -> impl Iterator<Item = Field<'_>> {
    encoded.split(|byte| *byte == b'&').filter(|field| !field.is_empty()).map(|field| {
        let mut sides = field.splitn(2, |byte| *byte == b'=').map(decode);
        Field { name: sides.next().unwrap_or_default(), value: sides.next().unwrap_or_default() }
    })
}

fn decode(encoded: &[u8]) -> Cow<'_, [u8]> {
    if !encoded.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(encoded);
    }
    let mut text = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                hex_digit(*high).zip(hex_digit(*low)).map(|(high, low)| (high << 4 | low, after))
            }
            (b'+', _) => Some((b' ', after)),
            _ => None,
        };
        // A percent sign without two digits stands for itself.
        let (byte, after) = escaped.unwrap_or((*first, after));
        text.push(byte);
        rest = after;
    }
    Cow::Owned(text)
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| digit.try_into().ok())
}
