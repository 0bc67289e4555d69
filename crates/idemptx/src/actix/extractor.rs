//! The execution as an extractor of actix-web.

use std::future::{Ready, ready};

use actix_web::dev::Payload;
use actix_web::http::StatusCode;
use actix_web::{FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError};

use crate::execution::{BypassNote, Execution, NoExecution};

/// Takes the execution of the request's key; without a key the request is refused.
///
/// Where the policy lets a request under a key run without a claim, as in shadow mode, the execution
/// is one without a claim: attempt 1, a token and a fence of zero.
impl FromRequest for Execution {
    type Error = NoExecution;
    type Future = Ready<Result<Self, NoExecution>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let extensions = request.extensions();
        if let Some(execution) = extensions.get::<Self>() {
            return ready(Ok(execution.clone()));
        }
        let note = extensions.get::<BypassNote>();
        let execution = note.and_then(BypassNote::execution);
        ready(execution.ok_or_else(|| NoExecution::of(note, "`Execution`")))
    }
}

impl ResponseError for NoExecution {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.response().status().as_u16()).unwrap_or_default()
    }

    fn error_response(&self) -> HttpResponse {
        let (parts, body) = self.response().into_parts();
        let mut response = HttpResponse::build(self.status_code());
        for (name, value) in &parts.headers {
            response.append_header((name.as_str(), value.as_bytes()));
        }
        response.body(body)
    }
}
