use super::Framing;

/// Bytes are rejected or followed to the same place, wherever the network cuts them.
pub fn framing(data: &[u8]) {
    const LINE_BYTES_MAX: usize = 1 << 20;
    let Some((at, bytes)) = data.split_first() else { return };
    let mut whole = Framing::new(LINE_BYTES_MAX);
    let read = whole.read(bytes);
    let mut in_parts = Framing::new(LINE_BYTES_MAX);
    let (first, second) = bytes.split_at(usize::from(*at).min(bytes.len()));
    let read_in_parts = in_parts.read(first).and_then(|()| in_parts.read(second));
    assert_eq!(read_in_parts.is_ok(), read.is_ok());
    if read.is_ok() {
        assert_eq!(in_parts.position, whole.position);
    }
}
