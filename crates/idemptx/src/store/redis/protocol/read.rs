//! Values that a transaction reads first.

use bytes::Bytes;
use idemptx_core::key::RecordId;
use idemptx_core::store::StoreError;

use super::clock;
use super::command::{Command, Key};
use super::layout::Layout;
use super::reply::Reply;

/// Values of a record, read under one `WATCH` of its two [keys](Layout::keys).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Value of the first key.
    pub record: Option<Bytes>,
    /// Result of `PTTL` for it: milliseconds, negative if there is no expiry or no record.
    pub pttl: i64,
    /// Value of the second key.
    pub response: Option<Bytes>,
    /// The server's clock, in microseconds since the Unix epoch.
    pub micros: u64,
}

impl Read {
    /// Returns the commands to send after the `WATCH`.
    #[must_use]
    pub fn questions(layout: &Layout, id: &RecordId) -> [Command; 4] {
        let (record, response) = (Key::Record(id), Key::Response(id));
        [
            Command::of("GET", 2, 0).key(layout, record),
            Command::of("PTTL", 2, 0).key(layout, record),
            Command::of("GET", 2, 0).key(layout, response),
            clock::question(),
        ]
    }

    /// Reads the replies to the [questions](Self::questions).
    ///
    /// # Errors
    ///
    /// As [`Layout::refused`] if one of them is an error.
    pub fn of(layout: &Layout, replies: [Reply; 4]) -> Result<Self, StoreError> {
        if let Some(error) = replies.iter().find_map(error) {
            return Err(layout.refused(error));
        }
        let [record, pttl, response, time] = replies;
        let Reply::Integer(pttl) = pttl else { return Err(layout.unexpected("PTTL")) };
        Ok(Self {
            record: string(layout, record)?,
            pttl,
            response: string(layout, response)?,
            micros: clock::micros(&time).ok_or_else(|| layout.unexpected("TIME"))?,
        })
    }
}

fn error(reply: &Reply) -> Option<&Bytes> {
    match reply {
        Reply::Error(error) => Some(error),
        _ => None,
    }
}

fn string(layout: &Layout, reply: Reply) -> Result<Option<Bytes>, StoreError> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::Bytes(bytes) => Ok(Some(bytes)),
        _ => Err(layout.unexpected("GET")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use idemptx_core::store::ErrorKind;

    fn time() -> Reply {
        Reply::Array(vec![Reply::Bytes("1700000000".into()), Reply::Bytes("0".into())])
    }

    #[test]
    fn what_cannot_be_read_is_no_absent_record() {
        let layout = Layout::new("idem:");
        let wrong_type = Reply::Error("WRONGTYPE Operation against a key".into());
        let replies = [wrong_type, Reply::Integer(1), Reply::Nil, time()];
        assert_eq!(Read::of(&layout, replies).unwrap_err().kind(), ErrorKind::Corrupt);
        let replies = [Reply::Integer(1), Reply::Integer(1), Reply::Nil, time()];
        assert_eq!(Read::of(&layout, replies).unwrap_err().kind(), ErrorKind::Internal);
        let replies = [Reply::Nil, Reply::Integer(-2), Reply::Nil, time()];
        assert_eq!(Read::of(&layout, replies).unwrap().record, None);
    }
}
