//! The client: its calls, and their ends.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use idemptx::Outcome;
use proptest::prelude::*;
use tower::ServiceExt;

use super::application::{BODY_LIMIT, Running};

#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) key: Option<u8>,
    pub(super) order: u8,
    /// Larger than the limit of the application, where it has one.
    pub(super) is_large: bool,
    pub(super) leaves_after: Option<u16>,
}

impl Call {
    pub(super) fn any() -> impl Strategy<Value = Self> {
        let key = prop::option::weighted(0.8, 0..2_u8);
        let order = prop_oneof![4 => Just(0), 1 => Just(1)];
        let leaves_after = prop::option::weighted(0.25, 0..400_u16);
        (key, order, prop::bool::weighted(0.1), leaves_after).prop_map(
            |(key, order, is_large, leaves_after)| Self { key, order, is_large, leaves_after },
        )
    }

    pub(super) const fn is_same_operation(&self, other: &Self) -> bool {
        self.order == other.order && self.is_large == other.is_large
    }

    fn request(&self, nested: bool) -> Request<Body> {
        let prefix = if nested { "/tenants/a" } else { "" };
        let mut request = Request::post(format!("{prefix}/orders/{}", self.order));
        if let Some(key) = self.key {
            request = request.header("idempotency-key", format!("key-{key}"));
        }
        let bytes = if self.is_large { BODY_LIMIT + 1 } else { 10 };
        request.body(Body::from(vec![b'x'; bytes])).unwrap()
    }
}

/// The end of a call, as its client sees it.
#[derive(Clone, Debug)]
pub(super) enum Seen {
    Answer(Answer),
    /// The connection would have ended without an answer.
    Nothing,
    /// The client left before.
    Left,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    /// `None` if it broke off.
    body: Option<Bytes>,
    pub(super) outcome: Option<Outcome>,
}

impl Answer {
    /// True for the same answer of the application, in another run.
    fn is_like(&self, other: &Self) -> bool {
        let of_the_application = |answer: &Self| {
            let mut headers = answer.headers.clone();
            for name in ["x-run", "idempotency-stored", "content-length", "transfer-encoding"] {
                headers.remove(name);
            }
            headers
        };
        self.status == other.status
            && self.body == other.body
            && of_the_application(self) == of_the_application(other)
    }

    /// True for the same answer of the same run.
    pub(super) fn replays(&self, first: &Self) -> bool {
        let same = |name| self.headers.get(name) == first.headers.get(name);
        self.status == first.status
            && self.body == first.body
            && ["x-run", "content-type"].into_iter().all(same)
    }
}

impl Seen {
    /// True if the layer changed nothing but what it must.
    pub(super) fn is_like(&self, without: &Self) -> bool {
        match (self, without) {
            (Self::Left, Self::Left) | (Self::Nothing, Self::Nothing) => true,
            // A handler that breaks down has an answer under a key: a problem document.
            (Self::Answer(answer), Self::Nothing) => answer.has_failed(),
            (Self::Answer(answer), Self::Answer(other)) => {
                answer.is_like(other) || (other.body.is_none() && answer.has_failed())
            }
            _ => false,
        }
    }

    pub(super) const fn outcome(&self) -> Option<&Outcome> {
        match self {
            Self::Answer(answer) => answer.outcome.as_ref(),
            Self::Nothing | Self::Left => None,
        }
    }
}

impl Answer {
    fn has_failed(&self) -> bool {
        self.outcome == Some(Outcome::Refused(idemptx::Code::HandlerFailed))
    }
}

/// Sends a call, and waits for the end of the answer or until the client leaves.
pub(super) async fn send(application: &Running, call: &Call, nested: bool) -> Seen {
    let router = application.router.clone();
    let request = call.request(nested);
    let mut answer = tokio::spawn(async move {
        let Ok(response) = router.oneshot(request).await;
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.ok().map(|body| body.to_bytes()),
            outcome: parts.extensions.get().cloned(),
        }
    });
    let patience =
        call.leaves_after.map_or(FOR_EVER, |millis| Duration::from_millis(millis.into()));
    match tokio::time::timeout(patience, &mut answer).await {
        Ok(Ok(answer)) => Seen::Answer(answer),
        Ok(Err(_)) => Seen::Nothing,
        Err(_) => {
            answer.abort();
            drop(answer.await);
            Seen::Left
        }
    }
}

const FOR_EVER: Duration = Duration::from_secs(3600);
