//! What the gateway answers itself where there is nothing to forward, or nothing came back.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LINK, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::json;

use super::routing_table::ActiveRoute;
use crate::config::OnAmbiguous;
use crate::upstream::UpstreamBody;

/// Why there is no other answer than a problem document (RFC 9457).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyError {
    /// The target, or whose it is, cannot be told.
    BadTarget,
    /// Another server could read the path in another way.
    AmbiguousPath,
    /// `Connection` names a field that the key, its scope or the fingerprint depends on.
    NominatedField,
    ConnectRefused,
    NoRoute,
    BodyTooLarge,
    BodyTooSlow,
    BodyBroken,
    Expectation,
    /// Never sent.
    Unreachable,
    /// Never sent, for want of room.
    Busy,
    /// Sent, and lost.
    Failed {
        released: bool,
    },
    /// Sent, and no answer in time.
    Late {
        released: bool,
    },
}

impl ProxyError {
    /// Sent, and lost.
    pub(crate) fn lost(route: &ActiveRoute) -> Self {
        Self::Failed { released: releases_key(route) }
    }

    /// Sent, and no answer in time.
    pub(crate) fn late(route: &ActiveRoute) -> Self {
        Self::Late { released: releases_key(route) }
    }

    pub(crate) fn into_response(self) -> Response<UpstreamBody> {
        let ProblemText { status, code, title, detail } = self.problem_text();
        let page = format!("{PAGE}#{code}");
        let body = json!({
            "type": page,
            "title": title,
            "status": status.as_u16(),
            "detail": detail,
            "code": code,
            "retryable": self.is_retryable(),
            "safe_new_key": self.is_unsent(),
        });
        let mut response = Response::new(UpstreamBody::from_bytes(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(link) = HeaderValue::try_from(format!("<{page}>; rel=\"describedby\"")) {
            headers.insert(LINK, link);
        }
        if matches!(self, Self::Unreachable | Self::Busy) {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    /// Whether the upstream cannot have seen the request.
    const fn is_unsent(self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Late { .. })
    }

    /// Whether the same request may succeed later.
    const fn is_retryable(self) -> bool {
        match self {
            Self::Failed { released } | Self::Late { released } => released,
            Self::Unreachable | Self::Busy | Self::BodyTooSlow | Self::BodyBroken => true,
            _ => false,
        }
    }

    const fn problem_text(self) -> ProblemText {
        match self {
            Self::BadTarget => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "bad-target",
                title: "The request's target cannot be told",
                detail: "Send exactly one Host, and the same in an absolute target.",
            },
            Self::AmbiguousPath => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "ambiguous-path",
                title: "The request's path can be read in more than one way",
                detail: "Send a path without dot segments, empty segments, backslashes, and \
                         encoded dots or slashes.",
            },
            Self::NominatedField => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "nominated-field",
                title: "Connection names a field that must reach its end",
                detail: "Name no field in Connection that a key or an account is sent in.",
            },
            Self::ConnectRefused => ProblemText {
                status: StatusCode::METHOD_NOT_ALLOWED,
                code: "connect-refused",
                title: "This is no tunnel",
                detail: "Send requests of other methods than CONNECT.",
            },
            Self::NoRoute => ProblemText {
                status: StatusCode::NOT_FOUND,
                code: "no-route",
                title: "Nothing is served here",
                detail: "Check the host and the path.",
            },
            Self::BodyTooLarge => ProblemText {
                status: StatusCode::PAYLOAD_TOO_LARGE,
                code: "body-too-large",
                title: "The request's body is too large",
                detail: "Send a smaller body.",
            },
            Self::BodyTooSlow => ProblemText {
                status: StatusCode::REQUEST_TIMEOUT,
                code: "body-too-slow",
                title: "The request's body came too slowly",
                detail: "Send the request again, without pauses.",
            },
            Self::BodyBroken => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "body-unreadable",
                title: "The request's body did not arrive whole",
                detail: "Send the whole request again.",
            },
            Self::Expectation => ProblemText {
                status: StatusCode::EXPECTATION_FAILED,
                code: "expectation-failed",
                title: "The request expects what is not known here",
                detail: "Expect nothing, or 100-continue.",
            },
            Self::Unreachable => ProblemText {
                status: StatusCode::BAD_GATEWAY,
                code: "upstream-unreachable",
                title: "The service cannot be reached",
                detail: "Nothing was executed; send the same request again after the time in \
                         Retry-After.",
            },
            Self::Busy => ProblemText {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "upstream-busy",
                title: "The service takes no more requests at the moment",
                detail: "Nothing was executed; send the same request again after the time in \
                         Retry-After.",
            },
            Self::Failed { .. } => ProblemText {
                status: StatusCode::BAD_GATEWAY,
                code: "upstream-failed",
                title: "The service broke off before it had answered",
                detail: UNKNOWN,
            },
            Self::Late { .. } => ProblemText {
                status: StatusCode::GATEWAY_TIMEOUT,
                code: "upstream-timeout",
                title: "The service did not answer in time",
                detail: UNKNOWN,
            },
        }
    }
}

struct ProblemText {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: &'static str,
}

fn releases_key(route: &ActiveRoute) -> bool {
    let protection = route.config.protection.as_ref();
    protection.is_some_and(|it| it.on_ambiguous == OnAmbiguous::Release)
}

const UNKNOWN: &str = "It may have been executed; find out before you repeat it.";
const PAGE: &str = "https://github.com/idemptx/idemptx/blob/main/docs/guides/gateway.md";
