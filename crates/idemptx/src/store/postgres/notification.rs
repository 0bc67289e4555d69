//! Payload of a notification.

use idemptx_core::key::RecordId;

/// The id that a payload spells in hexadecimal digits.
pub(super) fn id_in(payload: &str) -> Option<RecordId> {
    let mut bytes = [0; RecordId::BYTES];
    if payload.len() != 2 * bytes.len() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        let digits = payload.get(2 * place..2 * place + 2)?;
        *byte = u8::from_str_radix(digits, 16).ok()?;
    }
    Some(RecordId::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_that_spells_no_id_is_none() {
        for nonsense in ["", "a7", &"x".repeat(64), &"ä".repeat(32)] {
            assert_eq!(id_in(nonsense), None);
        }
        let id = RecordId::from_bytes([0xA7; RecordId::BYTES]);
        assert_eq!(id_in(&"a7".repeat(32)), Some(id));
    }
}
