//! The middleware for actix-web, in an application of it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use actix_web::body::{BodySize, MessageBody, to_bytes};
use actix_web::dev::{Payload, Service, ServiceResponse};
use actix_web::http::{ConnectionType, Method, StatusCode};
use actix_web::test::{TestRequest, call_service, init_service};
use actix_web::{App, Error, HttpMessage, HttpRequest, HttpResponse, Responder, error, web};
use bytes::Bytes;
use idemptx::store::MemoryStore;
use idemptx::{Directive, Engine, Execution, Outcome, Policy, Scope};
use tokio::sync::Notify;
use tokio::task::LocalSet;

#[tokio::test]
async fn a_retry_gets_the_response_of_the_first_request() {
    let runs = Runs::default();
    let app = App::new().wrap(engine().middleware()).route("/orders", web::post().to(order));
    let app = init_service(app.app_data(runs.clone())).await;
    let first = answered(&app, order_request("k")).await;
    assert_eq!((first.status, &*first.body), (StatusCode::CREATED, &b"run 1 of tea"[..]));
    assert!(matches!(first.outcome, Some(Outcome::Executed { attempt: 1, .. })));
    let retry = answered(&app, order_request("k")).await;
    assert_eq!((retry.status, &retry.body), (first.status, &first.body));
    assert_eq!(retry.lines("x-multi"), ["first", "second"]);
    assert_eq!(retry.lines("idempotent-replayed"), ["true"]);
    assert_eq!(retry.outcome, Some(Outcome::Replayed));
    assert_eq!(runs.count(), 1);
    let other = answered(&app, order_request("k").set_payload("coffee")).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(answered(&app, order_request("other")).await.body, "run 2 of tea");
}

#[tokio::test]
async fn a_handler_takes_its_execution() {
    async fn required(execution: Execution) -> String {
        format!("{} {}", execution.key(), execution.attempt())
    }
    async fn optional(execution: Option<Execution>) -> String {
        execution.map_or_else(|| "without".to_owned(), |it| it.key().to_owned())
    }
    let protected = web::scope("/protected")
        .wrap(engine().middleware())
        .route("/required", web::post().to(required))
        .route("/optional", web::post().to(optional));
    let app = App::new().service(protected).route("/bare", web::post().to(required));
    let app = init_service(app).await;
    let post = |path: &str| TestRequest::post().uri(path);
    let keyed = |path: &str| post(path).insert_header(("idempotency-key", path));
    assert_eq!(answered(&app, keyed("/protected/required")).await.body, "/protected/required 1");
    assert_eq!(answered(&app, keyed("/protected/optional")).await.body, "/protected/optional");
    assert_eq!(answered(&app, post("/protected/optional")).await.body, "without");
    let refused = answered(&app, post("/protected/required")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.text().contains("missing-key"), "{}", refused.text());
    let bare = answered(&app, keyed("/bare")).await;
    assert_eq!(bare.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(bare.text().contains("Engine::middleware"), "{}", bare.text());
}

#[tokio::test]
async fn an_error_under_a_key_is_the_response_that_it_makes() {
    async fn declined(runs: web::Data<Runs>) -> Result<HttpResponse, Error> {
        runs.begin();
        Err(error::ErrorPaymentRequired(format!("declined in run {}", runs.count())))
    }
    let runs = Runs::default();
    let inside = runs.clone();
    let app = App::new()
        // Inside of the engine, a service that ends with an error instead of a response.
        .wrap_fn(move |request, service| {
            let fails = request.path() == "/inside";
            let response = service.call(request);
            let runs = inside.clone();
            async move {
                if fails {
                    runs.begin();
                    return Err(error::ErrorPaymentRequired(format!("{} inside", runs.count())));
                }
                response.await
            }
        })
        .wrap(engine().middleware())
        .app_data(web::Data::new(runs.clone()))
        .route("/handler", web::post().to(declined));
    let app = init_service(app).await;
    for (path, body) in [("/handler", "declined in run 1"), ("/inside", "2 inside")] {
        for is_retry in [false, true] {
            let request = || TestRequest::post().uri(path).insert_header(("idempotency-key", path));
            // As actix' own server makes a response of an error.
            let response = match app.call(request().to_request()).await {
                Ok(response) => response.map_into_boxed_body().into_parts().1,
                Err(error) => error.error_response(),
            };
            assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
            assert_eq!(response.headers().contains_key("idempotent-replayed"), is_retry, "{path}");
            assert_eq!(to_bytes(response.into_body()).await.unwrap(), body);
        }
    }
    let unkeyed = app.call(TestRequest::post().uri("/inside").to_request()).await.unwrap_err();
    assert_eq!(unkeyed.to_string(), "3 inside", "it is the service's own");
}

#[tokio::test]
async fn what_authentication_has_found_is_the_scope_of_a_key() {
    #[derive(Clone)]
    struct Tenant(String);
    let engine = Engine::builder(MemoryStore::new())
        .scope(|request| request.extensions.get().map(|Tenant(name)| Scope::new(name)))
        .build()
        .unwrap();
    let runs = Runs::default();
    let app = App::new()
        .wrap(engine.middleware().with_extension::<Tenant>())
        .wrap_fn(|request, service| {
            let tenant = request.headers().get("tenant").unwrap().to_str().unwrap().to_owned();
            request.extensions_mut().insert(Tenant(tenant));
            service.call(request)
        })
        .app_data(runs.clone())
        .route("/orders", web::post().to(order));
    let app = init_service(app).await;
    for (tenant, body) in [("a", "run 1 of tea"), ("b", "run 2 of tea"), ("a", "run 1 of tea")] {
        let request = order_request("k").insert_header(("tenant", tenant));
        assert_eq!(answered(&app, request).await.body, body);
    }
}

#[tokio::test]
async fn a_handler_whose_client_leaves_goes_on() {
    async fn gated(runs: web::Data<Runs>, gate: web::Data<Notify>) -> String {
        runs.begin();
        gate.notified().await;
        format!("run {}", runs.count())
    }
    let (runs, gate) = (Runs::default(), web::Data::new(Notify::new()));
    let engine = engine();
    let app = App::new()
        .wrap(engine.middleware())
        .app_data(web::Data::new(runs.clone()))
        .app_data(gate.clone())
        .route("/gated", web::post().to(gated));
    let app = init_service(app).await;
    let request = || TestRequest::post().uri("/gated").insert_header(("idempotency-key", "k"));
    {
        let mut first = pin!(app.call(request().to_request()));
        poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            if runs.count() == 1 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
    gate.notify_one();
    assert!(engine.drain().await);
    let retry = answered(&app, request()).await;
    assert_eq!((&*retry.body, retry.outcome), (&b"run 1"[..], Some(Outcome::Replayed)));
}

#[tokio::test]
async fn a_handler_decides_about_its_record() {
    async fn by_field(runs: web::Data<Runs>) -> HttpResponse {
        runs.begin();
        HttpResponse::Ok().insert_header(("idempotency-outcome", "release")).finish()
    }
    async fn by_extension(runs: web::Data<Runs>) -> HttpResponse {
        runs.begin();
        let mut response = HttpResponse::Ok().finish();
        response.extensions_mut().insert(Directive::Release);
        response
    }
    let runs = Runs::default();
    let app = App::new()
        .wrap(engine().middleware())
        .app_data(web::Data::new(runs.clone()))
        .route("/field", web::post().to(by_field))
        .route("/extension", web::post().to(by_extension));
    let app = init_service(app).await;
    for (path, count) in [("/field", 1), ("/field", 2), ("/extension", 3), ("/extension", 4)] {
        let request = TestRequest::post().uri(path).insert_header(("idempotency-key", path));
        let response = answered(&app, request).await;
        assert_eq!((response.status, runs.count()), (StatusCode::OK, count), "{path}");
        assert!(response.lines("idempotency-outcome").is_empty());
    }
}

#[tokio::test]
async fn a_response_keeps_what_is_actixs_own() {
    async fn closing() -> impl Responder {
        HttpResponse::Ok().force_close().body("bye")
    }
    async fn nothing() -> impl Responder {
        HttpResponse::NoContent().finish()
    }
    async fn events() -> impl Responder {
        let events = futures_util::stream::iter([Ok::<_, Error>(Bytes::from("data: 1\n\n"))]);
        HttpResponse::Ok().content_type("text/event-stream").streaming(events)
    }
    let app = App::new()
        .wrap(engine().middleware())
        .route("/closing", web::post().to(closing))
        .route("/nothing", web::post().to(nothing))
        .route("/events", web::post().to(events))
        .route("/events", web::get().to(events));
    let app = init_service(app).await;
    let post = |path| TestRequest::post().uri(path).insert_header(("idempotency-key", path));
    let closing = call_service(&app, post("/closing").to_request()).await;
    assert_eq!(closing.response().head().connection_type(), ConnectionType::Close);
    for _ in 0..2 {
        let nothing = call_service(&app, post("/nothing").to_request()).await;
        assert_eq!(nothing.status(), StatusCode::NO_CONTENT);
        assert_eq!(nothing.response().body().size(), BodySize::None);
    }
    for method in [Method::POST, Method::GET] {
        let live = call_service(&app, post("/events").method(method).to_request()).await;
        assert_eq!(live.response().body().size(), BodySize::Stream);
        assert_eq!(to_bytes(live.into_body()).await.unwrap(), "data: 1\n\n");
    }
    assert_eq!(answered(&app, post("/events")).await.status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn a_body_that_is_too_large_closes_its_connection() {
    let policy = Policy::draft().into_builder().request_bytes_max(3).build().unwrap();
    let engine = Engine::builder(MemoryStore::new()).policy(policy).build().unwrap();
    let app = App::new().wrap(engine.middleware()).route("/orders", web::post().to(order));
    let app = init_service(app.app_data(Runs::default())).await;
    assert_eq!(answered(&app, order_request("k")).await.body, "run 1 of tea");
    let large = order_request("large").set_payload("coffee").to_request();
    let refused = call_service(&app, large).await;
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.response().head().connection_type(), ConnectionType::Close);
}

#[tokio::test]
async fn a_body_over_a_limit_outside_of_the_middleware_is_too_large() {
    let app = App::new()
        .wrap(engine().middleware())
        .wrap_fn(|mut request, service| {
            let over = futures_util::stream::iter([Err(error::PayloadError::Overflow)]);
            request.set_payload(Payload::Stream { payload: Box::pin(over) });
            service.call(request)
        })
        .route("/orders", web::post().to(order));
    let app = init_service(app.app_data(Runs::default())).await;
    let refused = answered(&app, order_request("k")).await;
    assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(refused.text().contains("body-too-large"), "{}", refused.text());
}

#[tokio::test]
async fn a_second_middleware_of_one_engine_passes_what_the_first_one_has() {
    let (engine, runs) = (engine(), Runs::default());
    let inner = web::scope("/v1").wrap(engine.middleware()).route("/orders", web::post().to(order));
    let app = App::new().wrap(engine.middleware()).app_data(runs.clone()).service(inner);
    let app = init_service(app).await;
    for is_retry in [false, true] {
        let response = answered(&app, order_request("k").uri("/v1/orders")).await;
        assert_eq!(response.body, "run 1 of tea");
        assert_eq!(!response.lines("idempotent-replayed").is_empty(), is_retry);
    }
}

#[tokio::test]
async fn a_handler_takes_the_execution_of_the_innermost_engine() {
    async fn attempt(execution: Execution) -> String {
        execution.derive("charge")
    }
    let of = |engine: &Engine<MemoryStore>| engine.middleware();
    let scoped = |name| {
        Engine::builder(MemoryStore::new()).scope(move |_| Some(Scope::new(name))).build().unwrap()
    };
    let (inner, outer) = (scoped("inner"), scoped("outer"));
    let app =
        App::new().service(web::resource("/both").wrap(of(&inner)).wrap(of(&outer)).post(attempt));
    let both = answered(&init_service(app).await, order_request("k").uri("/both")).await;
    let app = App::new().service(web::resource("/both").wrap(of(&scoped("inner"))).post(attempt));
    let alone = answered(&init_service(app).await, order_request("k").uri("/both")).await;
    assert_eq!(both.body, alone.body);
}

#[test]
fn a_runtime_of_several_threads_is_refused() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let app = App::new().wrap(engine().middleware()).route("/orders", web::post().to(order));
        let app = init_service(app.app_data(Runs::default())).await;
        let error = app.call(order_request("k").to_request()).await.unwrap_err();
        assert_eq!(error.as_response_error().status_code(), StatusCode::INTERNAL_SERVER_ERROR);
        assert!(error.to_string().contains("HttpServer"), "{error}");
    });
}

#[tokio::test]
async fn without_a_key_nothing_is_read_of_a_request() {
    async fn size(payload: web::Payload) -> String {
        to_bytes(actix_web::body::BodyStream::new(payload)).await.unwrap().len().to_string()
    }
    let app = App::new().wrap(engine().middleware()).route("/size", web::post().to(size));
    let app = init_service(app).await;
    let request = TestRequest::post().uri("/size").set_payload(vec![b'x'; 3 << 20]);
    assert_eq!(answered(&app, request).await.body, (3 << 20).to_string());
}

async fn order(request: HttpRequest, item: String) -> impl Responder {
    let runs = request.app_data::<Runs>().unwrap();
    runs.begin();
    HttpResponse::Created()
        .append_header(("x-multi", "first"))
        .append_header(("x-multi", "second"))
        .body(format!("run {} of {item}", runs.count()))
}

fn order_request(key: &str) -> TestRequest {
    let request = TestRequest::post().uri("/orders").insert_header(("idempotency-key", key));
    request.insert_header(("content-type", "text/plain")).set_payload("tea")
}

fn engine() -> Engine<MemoryStore> {
    Engine::builder(MemoryStore::new()).build().unwrap()
}

/// A response that was read to its end.
struct Answered {
    status: StatusCode,
    headers: actix_web::http::header::HeaderMap,
    outcome: Option<Outcome>,
    body: Bytes,
}

impl Answered {
    fn lines(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).map(|value| value.to_str().unwrap()).collect()
    }

    fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }
}

async fn answered<S, B>(app: &S, request: TestRequest) -> Answered
where
    S: Service<actix_http::Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let response = call_service(app, request.to_request()).await;
    let (status, headers) = (response.status(), response.headers().clone());
    let outcome = response.response().extensions().get::<Outcome>().cloned();
    let body = to_bytes(response.into_body()).await.map_err(Into::into).unwrap();
    Answered { status, headers, outcome, body }
}

/// Counts the runs of handlers.
#[derive(Clone, Default)]
struct Runs(Rc<Cell<u32>>);

impl Runs {
    fn begin(&self) {
        self.0.set(self.0.get() + 1);
    }

    fn count(&self) -> u32 {
        self.0.get()
    }
}
