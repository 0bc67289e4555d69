//! One execution of a handler.

use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, web,
};
use futures_util::future::LocalBoxFuture;
use http::{HeaderMap, HeaderName};
use idemptx::Execution;
use serde::Deserialize;
use serde_json::{Value, json};
use target_axum::app::{App, RecordSnapshot};

/// A running execution.
///
/// Taking it from the request journals the start and sleeps as long as the request asks; it must
/// be a handler's last part, so that nothing refuses the request after the start.
#[derive(Debug)]
pub(crate) struct Run {
    /// The identifier that no other execution has.
    pub(crate) n: String,
    /// The request's key, `-` without one.
    pub(crate) key: String,
    /// The handler's view of its execution.
    pub(crate) seen: RecordSnapshot,
    app: web::Data<App>,
    method: String,
    path: String,
}

impl Run {
    /// The body of most answers.
    pub(crate) fn serial(&self) -> Value {
        json!({ "n": self.n })
    }

    /// Journals the end of an answer with the usual body.
    pub(crate) async fn end(&self, mut answer: HttpResponseBuilder) -> HttpResponse {
        self.record("end").await;
        answer.json(self.serial())
    }

    /// Writes to the journal, on a thread that may be blocked: that of a worker has other requests.
    pub(crate) async fn record(&self, event: &'static str) {
        let (app, method) = (self.app.clone(), self.method.clone());
        let (path, key) = (self.path.clone(), self.key.clone());
        let record = move || {
            if let Some(journal) = &app.journal {
                journal.record(event, &method, &path, &key);
            }
        };
        web::block(record).await.expect("the journal can be written");
    }
}

impl FromRequest for Run {
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self, Error>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let request = request.clone();
        Box::pin(async move {
            let pause = web::Query::<Pause>::from_query(request.query_string())?;
            let app = web::Data::<App>::extract(&request).await?;
            let seen =
                RecordSnapshot::of(request.extensions().get::<Execution>(), &headers_of(&request));
            let run = Self {
                n: app.next(),
                key: seen.key.clone().unwrap_or_else(|| "-".to_owned()),
                seen,
                app,
                method: request.method().to_string(),
                path: request.path().to_owned(),
            };
            run.record("start").await;
            tokio::time::sleep(Duration::from_millis(pause.ms)).await;
            Ok(run)
        })
    }
}

/// The request's header lines, as the other targets read them.
fn headers_of(request: &HttpRequest) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in request.headers() {
        if let (Ok(name), Ok(value)) =
            (HeaderName::try_from(name.as_str()), value.as_bytes().try_into())
        {
            headers.append(name, value);
        }
    }
    headers
}

#[derive(Deserialize)]
struct Pause {
    #[serde(default)]
    ms: u64,
}
