//! The application: endpoints whose every execution answers differently and can be counted.

use std::io;
use std::time::Duration;

use actix_web::body::SizedStream;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Resource, Responder, web};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use target_axum::app::body::{HALF_BYTES, random};
use target_axum::app::{App, ECHO_BYTES_MAX};

use crate::run::Run;

/// Adds the application's routes.
pub(crate) fn routes(config: &mut web::ServiceConfig) {
    config
        .app_data(web::PayloadConfig::new(ECHO_BYTES_MAX))
        .service(
            at("/count")
                .route(web::get().to(last))
                .route(web::head().to(last))
                .route(web::post().to(created))
                .route(web::patch().to(created)),
        )
        .service(at("/echo").route(web::post().to(echo)))
        .service(at("/slow").route(web::post().to(created)))
        .service(at("/status/{code}").route(web::post().to(status)))
        .service(at("/flaky").route(web::post().to(flaky)))
        .service(at("/raise").route(web::post().to(raise)))
        .service(at("/cookie").route(web::post().to(cookie)))
        .service(at("/headers").route(web::post().to(headers)))
        .service(at("/bytes").route(web::post().to(bytes)))
        .service(at("/stream").route(web::post().to(plain_chunks)))
        .service(at("/events").route(web::post().to(events)))
        .service(at("/abort").route(web::post().to(abort)))
        .service(at("/outcome").route(web::post().to(outcome)))
        .service(at("/execution").route(web::post().to(execution)));
}

/// A resource that answers other methods with 405, and not with 404 as one does without routes.
fn at(path: &str) -> Resource {
    web::resource(path)
}

async fn last(app: web::Data<App>) -> impl Responder {
    HttpResponse::Ok().json(json!({ "n": app.last() }))
}

async fn created(run: Run) -> HttpResponse {
    run.end(HttpResponse::Created()).await
}

async fn echo(request: HttpRequest, body: Bytes, run: Run) -> HttpResponse {
    run.record("end").await;
    let mut answer = HttpResponse::Ok();
    if let Some(kind) = request.headers().get(header::CONTENT_TYPE) {
        answer.insert_header((header::CONTENT_TYPE, kind));
    }
    answer.insert_header((EXECUTED, run.n.clone())).body(body)
}

async fn status(code: web::Path<u16>, run: Run) -> HttpResponse {
    let code = StatusCode::from_u16(*code).ok().filter(|code| !code.is_informational());
    match code {
        Some(code @ (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)) => {
            run.record("end").await;
            HttpResponse::build(code).finish()
        }
        Some(code) => run.end(HttpResponse::build(code)).await,
        None => {
            run.record("end").await;
            HttpResponse::BadRequest().finish()
        }
    }
}

#[derive(Deserialize)]
struct Fails {
    fails: u64,
}

async fn flaky(app: web::Data<App>, query: web::Query<Fails>, run: Run) -> HttpResponse {
    let failed = app.flaky(&run.key) <= query.fails;
    let code = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CREATED };
    run.end(HttpResponse::build(code)).await
}

async fn raise(_run: Run) -> HttpResponse {
    panic!("the handler fails, as it was asked to");
}

async fn cookie(run: Run) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer
        .append_header((header::SET_COOKIE, format!("session={}", run.n)))
        .append_header((header::SET_COOKIE, "theme=dark"));
    run.end(answer).await
}

async fn headers(run: Run) -> HttpResponse {
    let latin = HeaderValue::from_bytes(b"caf\xe9").expect("obs-text is allowed in a field");
    let mut answer = HttpResponse::Ok();
    answer
        .append_header(("x-multi", "first"))
        .append_header(("x-multi", "second"))
        .append_header((header::ETAG, "\"v1\""))
        .append_header((header::LOCATION, "/things/1"))
        .append_header((header::CACHE_CONTROL, "no-cache"))
        .append_header((header::CONNECTION, "X-Hop"))
        .append_header(("x-hop", "1"))
        .append_header(("x-latin", latin));
    run.end(answer).await
}

#[derive(Deserialize)]
struct Size {
    n: usize,
}

async fn bytes(size: web::Query<Size>, run: Run) -> HttpResponse {
    run.record("end").await;
    HttpResponse::Ok().content_type("application/octet-stream").body(random(&run.n, size.n))
}

#[derive(Deserialize)]
struct Chunks {
    chunks: u64,
    #[serde(default)]
    gap: u64,
}

async fn plain_chunks(query: web::Query<Chunks>, run: Run) -> HttpResponse {
    let line = format!("{} chunk\n", run.n);
    let chunks = chunks(run, line, query.chunks, query.gap);
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").streaming(chunks)
}

#[derive(Deserialize)]
struct Events {
    chunks: u64,
    #[serde(default)]
    gap: u64,
    kind: Option<String>,
    buffering: Option<String>,
    o: Option<String>,
}

async fn events(query: web::Query<Events>, run: Run) -> HttpResponse {
    let line = format!("data: {}\n\n", run.n);
    let mut answer = HttpResponse::Ok();
    answer.content_type(query.kind.as_deref().unwrap_or("text/event-stream"));
    for (name, value) in [("x-accel-buffering", &query.buffering), (OUTCOME, &query.o)] {
        if let Some(value) = value {
            answer.insert_header((name, value.as_str()));
        }
    }
    answer.streaming(chunks(run, line, query.chunks, query.gap))
}

/// `line`, `count` times with a pause of `gap` milliseconds between two of them.
fn chunks(
    run: Run,
    line: String,
    count: u64,
    gap: u64,
) -> impl stream::Stream<Item = io::Result<Bytes>> + 'static {
    let line = Bytes::from(line);
    stream::unfold((run, 0), move |(run, sent)| {
        let line = line.clone();
        async move {
            if sent == count {
                run.record("end").await;
                return None;
            }
            if sent > 0 && gap > 0 {
                tokio::time::sleep(Duration::from_millis(gap)).await;
            }
            Some((Ok(line), (run, sent + 1)))
        }
    })
}

async fn abort(_run: Run) -> HttpResponse {
    let half = stream::iter([Ok(Bytes::from_static(&[b'x'; HALF_BYTES]))]);
    let broken = half.chain(stream::once(async {
        // So that the half is on its way when the rest fails.
        tokio::task::yield_now().await;
        Err(io::Error::other("the body breaks off, as it was asked to"))
    }));
    HttpResponse::Ok().body(SizedStream::new(HALF_BYTES as u64 * 2, broken))
}

#[derive(Deserialize)]
struct Directed {
    o: String,
}

async fn outcome(query: web::Query<Directed>, run: Run) -> HttpResponse {
    let mut answer = HttpResponse::Ok();
    answer.insert_header((OUTCOME, query.o.clone()));
    run.end(answer).await
}

async fn execution(run: Run) -> HttpResponse {
    run.record("end").await;
    HttpResponse::Ok().json(&run.seen)
}

const EXECUTED: &str = "x-executed";
const OUTCOME: &str = "idempotency-outcome";
