//! Responses that the gateway generates itself when it cannot forward or gets no response.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, LINK, RETRY_AFTER};
use http::{Extensions, HeaderValue, Response, StatusCode};
use idemptx::{Code, Rejection};
use idemptx_core::problem::GrpcError;
use serde_json::json;

use super::routing_table::ActiveRoute;
use crate::config::OnAmbiguous;
use crate::upstream::UpstreamBody;

/// The cause of a generated problem response (RFC 9457).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProxyError {
    /// The request target or its host is invalid or ambiguous.
    BadTarget,
    /// The path could be normalised differently by another server.
    AmbiguousPath,
    /// `Connection` nominates a field that the key, its scope or the fingerprint depends on.
    NominatedField,
    ConnectRefused,
    NoRoute,
    BodyTooLarge,
    BodyTooSlow,
    BodyBroken,
    Expectation,
    /// Not sent.
    Unreachable,
    /// Not sent: all connections are in use.
    Busy,
    /// Sent, then the connection broke.
    Failed {
        released: bool,
    },
    /// Sent, but no response arrived in time.
    Late {
        released: bool,
    },
}

impl ProxyError {
    /// Returns the problem of a broken connection.
    pub(crate) fn lost(route: &ActiveRoute) -> Self {
        Self::Failed { released: releases_key(route) }
    }

    /// Returns the problem of a response timeout.
    pub(crate) fn late(route: &ActiveRoute) -> Self {
        Self::Late { released: releases_key(route) }
    }

    /// Returns the problem of a response that broke off, if the engine has refused this one for
    /// that.
    ///
    /// Whether the key is free depends on what the response had said, too: the engine knows.
    pub(crate) fn broken_off(extensions: &Extensions) -> Option<Self> {
        let rejection = extensions.get::<Rejection>();
        let rejection = rejection.filter(|it| it.code == Code::HandlerFailed)?;
        Some(Self::Failed { released: rejection.retryable })
    }

    /// The codes of all problems.
    pub(crate) const CODES: [&str; 13] = [
        "bad-target",
        "ambiguous-path",
        "nominated-field",
        "connect-refused",
        "no-route",
        "body-too-large",
        "body-too-slow",
        "body-unreadable",
        "expectation-failed",
        "upstream-unreachable",
        "upstream-busy",
        "upstream-failed",
        "upstream-timeout",
    ];

    /// The codes of those with which a request can be answered that has a route and was not sent,
    /// beside the ones that the engine has too.
    pub(crate) const UNSENT_ON_A_ROUTE: [&str; 3] =
        ["body-too-slow", "upstream-unreachable", "upstream-busy"];

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
        response.extensions_mut().insert(OwnAnswer(self));
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

    /// Makes the problem response of a gRPC call out of the one that HTTP clients get: gRPC clients
    /// read no document, and take a 502 for a status of their own choice.
    pub(super) fn shape_for_grpc<B>(
        self,
        response: Response<B>,
        content_type: HeaderValue,
    ) -> Response<UpstreamBody> {
        let mut response = response.map(|_| UpstreamBody::from_bytes(Bytes::new()));
        *response.status_mut() = StatusCode::OK;
        let headers = response.headers_mut();
        for name in [CACHE_CONTROL, CONTENT_LENGTH, LINK] {
            headers.remove(name);
        }
        let ProblemText { code, detail, .. } = self.problem_text();
        let error = GrpcError {
            status: self.grpc_status(),
            reason: code,
            code,
            message: detail,
            retryable: self.is_retryable(),
            safe_new_key: self.is_unsent(),
        };
        error.apply(content_type, headers);
        response
    }

    /// Returns the number of the gRPC status.
    ///
    /// Clients repeat calls that are UNAVAILABLE by themselves: only those that were not sent are.
    const fn grpc_status(self) -> u16 {
        match self {
            Self::BadTarget
            | Self::AmbiguousPath
            | Self::NominatedField
            | Self::BodyBroken
            | Self::Expectation => INVALID_ARGUMENT,
            Self::BodyTooSlow | Self::Late { .. } => DEADLINE_EXCEEDED,
            Self::BodyTooLarge => RESOURCE_EXHAUSTED,
            Self::ConnectRefused | Self::NoRoute => UNIMPLEMENTED,
            Self::Unreachable | Self::Busy => UNAVAILABLE,
            Self::Failed { .. } => INTERNAL,
        }
    }

    /// Returns the name of the problem.
    pub(crate) const fn code(self) -> &'static str {
        self.problem_text().code
    }

    /// Returns whether the upstream cannot have received the request.
    pub(crate) const fn is_unsent(self) -> bool {
        !matches!(self, Self::Failed { .. } | Self::Late { .. })
    }

    /// Returns whether the same request may succeed later.
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
                title: "Invalid or ambiguous request target",
                detail: "Send exactly one Host; an absolute target must name the same one.",
            },
            Self::AmbiguousPath => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "ambiguous-path",
                title: "Ambiguous request path",
                detail: "Send a path without dot segments, empty segments, backslashes, and \
                         encoded dots or slashes; encode what is not ASCII.",
            },
            Self::NominatedField => ProblemText {
                status: StatusCode::BAD_REQUEST,
                code: "nominated-field",
                title: "Connection nominates an end-to-end field",
                detail: "Do not nominate fields in Connection that carry the key or the credentials.",
            },
            Self::ConnectRefused => ProblemText {
                status: StatusCode::METHOD_NOT_ALLOWED,
                code: "connect-refused",
                title: "CONNECT is not supported",
                detail: "Use another method.",
            },
            Self::NoRoute => ProblemText {
                status: StatusCode::NOT_FOUND,
                code: "no-route",
                title: "No route matches",
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
                title: "Request body too slow",
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
                title: "Unsupported expectation",
                detail: "Send no Expect, or 100-continue.",
            },
            Self::Unreachable => ProblemText {
                status: StatusCode::BAD_GATEWAY,
                code: "upstream-unreachable",
                title: "Service unreachable",
                detail: "Nothing was executed; send the same request again after the time in \
                         Retry-After.",
            },
            Self::Busy => ProblemText {
                status: StatusCode::SERVICE_UNAVAILABLE,
                code: "upstream-busy",
                title: "Service busy",
                detail: "Nothing was executed; send the same request again after the time in \
                         Retry-After.",
            },
            Self::Failed { .. } => ProblemText {
                status: StatusCode::BAD_GATEWAY,
                code: "upstream-failed",
                title: "The service failed to respond",
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

/// An extension of the responses that the gateway makes itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnAnswer(pub(super) ProxyError);

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

const UNKNOWN: &str = "The request may have been executed; find out before you repeat it.";
const INVALID_ARGUMENT: u16 = 3;
const DEADLINE_EXCEEDED: u16 = 4;
const RESOURCE_EXHAUSTED: u16 = 8;
const UNIMPLEMENTED: u16 = 12;
const INTERNAL: u16 = 13;
const UNAVAILABLE: u16 = 14;
const PAGE: &str = "https://github.com/idemptx/idemptx/blob/main/docs/guides/gateway.md";
