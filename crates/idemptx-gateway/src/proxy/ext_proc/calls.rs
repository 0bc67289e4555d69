//! A property of the messages of a call, over arbitrary bytes.

use bytes::BytesMut;
use http::HeaderMap;
use prost::Message as _;

use super::grpc::take;
use super::messages::{HeaderMutation, ProcessingRequest, Received};
use super::translate::{self, Attributes};

/// Messages are read or refused, and what is read can be read again when it is written.
///
/// # Panics
///
/// If that does not hold.
pub fn messages(data: &[u8]) {
    let mut read = BytesMut::from(data);
    while let Ok(Some(bytes)) = take(&mut read, data.len()) {
        let Ok(message) = ProcessingRequest::decode(bytes) else { return };
        // Compared by their lengths: maps have no order, and a number may be none.
        let again = ProcessingRequest::decode(&*message.encode_to_vec());
        assert_eq!(again.map(|it| it.encoded_len()), Ok(message.encoded_len()));
        let attributes = Attributes::of(&message);
        let _ = (attributes.client(), attributes.attempts(), attributes.code_details());
        if let Some(Received::RequestHeaders(head) | Received::ResponseHeaders(head)) =
            message.request
        {
            let headers = head.headers.unwrap_or_default();
            let parts = translate::request(headers.clone()).map(|it| it.into_parts().0.headers);
            unchanged(&parts.unwrap_or_default());
            let parts = translate::response(headers).map(|it| it.into_parts().0.headers);
            unchanged(&parts.unwrap_or_default());
        }
    }
}

fn unchanged(headers: &HeaderMap) {
    assert_eq!(translate::difference(headers, headers), HeaderMutation::default());
}
