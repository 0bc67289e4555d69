//! Heads in Envoy's messages, and what is to be changed in them.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};

use super::messages::{
    self, AppendAction, HeaderMutation, HeaderValueOption, HttpStatus, ImmediateResponse, Kind,
    ProcessingRequest,
};

/// Returns the head of a request; `None` if it is not one that the gateway could have received.
pub(super) fn request(headers: messages::HeaderMap) -> Option<Request<()>> {
    let (mut method, mut path, mut authority) = (None, None, None);
    let mut request = Request::new(());
    for messages::HeaderValue { key, value, raw_value } in headers.headers {
        let value = bytes_of(value, raw_value);
        match &*key {
            ":method" => method = Some(Method::from_bytes(&value).ok()?),
            ":path" => path = Some(Uri::from_maybe_shared(value).ok()?),
            ":authority" | "host" => authority = Some(HeaderValue::from_maybe_shared(value).ok()?),
            _ if key.starts_with(':') => {}
            _ => {
                let name = HeaderName::from_bytes(key.as_bytes()).ok()?;
                let value = HeaderValue::from_maybe_shared(value).ok()?;
                request.headers_mut().try_append(name, value).ok()?;
            }
        }
    }
    *request.method_mut() = method?;
    *request.version_mut() = Version::HTTP_11;
    if let Some(authority) = authority {
        request.headers_mut().insert(HOST, authority);
    }
    match path {
        Some(path) => *request.uri_mut() = path,
        // A tunnel has no path.
        None if *request.method() == Method::CONNECT => {}
        None => return None,
    }
    Some(request)
}

/// Returns the head of a response, without what Envoy adds for itself.
pub(super) fn response(headers: messages::HeaderMap) -> Option<Response<()>> {
    let mut response = Response::new(());
    let mut status = None;
    for messages::HeaderValue { key, value, raw_value } in headers.headers {
        let value = bytes_of(value, raw_value);
        if key == ":status" {
            status = Some(StatusCode::from_bytes(&value).ok()?);
        } else if !key.starts_with(':') && !key.starts_with(ENVOY) {
            let name = HeaderName::from_bytes(key.as_bytes()).ok()?;
            let value = HeaderValue::from_maybe_shared(value).ok()?;
            response.headers_mut().try_append(name, value).ok()?;
        }
    }
    *response.status_mut() = status?;
    Some(response)
}

fn bytes_of(value: String, raw_value: Bytes) -> Bytes {
    if raw_value.is_empty() { value.into() } else { raw_value }
}

/// Returns what makes `after` of `before`, save for fields that are Envoy's own.
pub(super) fn difference(before: &HeaderMap, after: &HeaderMap) -> HeaderMutation {
    let is_ours = |name: &&HeaderName| !CONNECTION_FIELDS.contains(name);
    let remove_headers = before.keys().filter(is_ours).filter(|name| !after.contains_key(*name));
    let set_headers = after
        .keys()
        .filter(is_ours)
        .filter(|name| !before.get_all(*name).iter().eq(after.get_all(*name)))
        .flat_map(|name| set(after, name));
    HeaderMutation {
        set_headers: set_headers.collect(),
        remove_headers: remove_headers.map(|name| name.as_str().to_owned()).collect(),
    }
}

/// Returns what Envoy answers by itself instead of asking the service.
pub(super) fn immediate(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    details: &str,
) -> ImmediateResponse {
    let is_ours = |name: &&HeaderName| !CONNECTION_FIELDS.contains(name);
    let remove_headers = match headers.contains_key(CONTENT_TYPE) {
        true => Vec::new(),
        false => vec![CONTENT_TYPE.as_str().to_owned()],
    };
    let set_headers = headers.keys().filter(is_ours).flat_map(|name| set(headers, name)).collect();
    ImmediateResponse {
        status: Some(HttpStatus { code: status.as_u16().into() }),
        headers: Some(HeaderMutation { set_headers, remove_headers }),
        body,
        grpc_status: None,
        details: details.to_owned(),
    }
}

/// Returns the lines of a field, of which the first replaces those that there are.
fn set(headers: &HeaderMap, name: &HeaderName) -> impl Iterator<Item = HeaderValueOption> {
    headers.get_all(name).iter().enumerate().map(move |(number, value)| {
        let (append, action) = match number {
            0 => (None, AppendAction::OverwriteIfExistsOrAdd),
            _ => (Some(true), AppendAction::AppendIfExistsOrAdd),
        };
        HeaderValueOption {
            header: Some(messages::HeaderValue {
                key: name.as_str().to_owned(),
                value: String::new(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
            }),
            append,
            append_action: action.into(),
            keep_empty_value: true,
        }
    })
}

/// The attributes of a message.
#[derive(Debug)]
pub(super) struct Attributes<'a>(&'a ProcessingRequest);

impl<'a> Attributes<'a> {
    pub(super) const fn of(message: &'a ProcessingRequest) -> Self {
        Self(message)
    }

    /// Returns the cause of a response: Envoy's word for how it came to be.
    pub(super) fn code_details(&self) -> Option<&'a str> {
        match self.value("response.code_details")? {
            Kind::Text(text) => Some(text),
            Kind::Number(_) => None,
        }
    }

    /// Returns the number of times that Envoy has sent the request to a service, or tried to.
    pub(super) fn attempts(&self) -> Option<u64> {
        match self.value("upstream.request_attempt_count")? {
            // Counts are small whole numbers.
            Kind::Number(number) => Some(*number as u64),
            Kind::Text(text) => text.parse().ok(),
        }
    }

    /// Returns the client's address.
    pub(super) fn client(&self) -> Option<IpAddr> {
        match self.value("source.address")? {
            Kind::Text(text) => text.parse::<SocketAddr>().ok().map(|it| it.ip()),
            Kind::Number(_) => None,
        }
    }

    fn value(&self, name: &str) -> Option<&'a Kind> {
        let mut all = self.0.attributes.values();
        all.find_map(|attributes| attributes.fields.get(name)?.kind.as_ref())
    }
}

/// Fields that belong to a connection, or that say what a request is: Envoy removes and sets them.
const CONNECTION_FIELDS: [HeaderName; 11] = [
    CONNECTION,
    CONTENT_LENGTH,
    COOKIE,
    EXPECT,
    HOST,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];
/// Begins the names of the fields that Envoy adds to responses for its own use.
const ENVOY: &str = "x-envoy-";

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let line = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        lines.iter().map(line).collect()
    }

    #[test]
    fn a_difference_names_what_is_removed_changed_and_added_only() {
        let before = fields(&[("a", "1"), ("b", "2"), ("c", "3"), ("connection", "close")]);
        let after = fields(&[("a", "1"), ("b", "2"), ("b", "4"), ("d", "5"), ("host", "x")]);
        let found = difference(&before, &after);
        assert_eq!(found.remove_headers, ["c"]);
        let set: Vec<_> = found
            .set_headers
            .iter()
            .map(|it| (it.header.clone().unwrap(), it.append))
            .map(|(header, append)| (header.key, header.raw_value, append))
            .collect();
        let of = |key: &str, value: &'static str, append: Option<bool>| {
            (key.to_owned(), Bytes::from_static(value.as_bytes()), append)
        };
        assert_eq!(set, [of("b", "2", None), of("b", "4", Some(true)), of("d", "5", None)]);
    }

    #[test]
    fn a_head_that_is_none_is_refused() {
        let head = |lines: &[(&str, &str)]| {
            let headers = lines.iter().map(|(key, value)| messages::HeaderValue {
                key: (*key).to_owned(),
                value: String::new(),
                raw_value: Bytes::copy_from_slice(value.as_bytes()),
            });
            request(messages::HeaderMap { headers: headers.collect() })
        };
        let good = [(":method", "POST"), (":path", "/a?b"), (":authority", "shop")];
        let request = head(&good).unwrap();
        assert_eq!(
            (request.uri().path(), request.headers()[HOST].as_bytes()),
            ("/a", &b"shop"[..])
        );
        for wrong in [
            &good[..1],
            &good[1..],
            &[good[0], (":path", "/a b")],
            &[good[0], good[1], ("a", "b\n")],
            &[good[0], good[1], ("a b", "c")],
        ] {
            assert!(head(wrong).is_none(), "{wrong:?}");
        }
        assert!(head(&[(":method", "CONNECT"), (":authority", "a:1")]).is_some());
    }
}
