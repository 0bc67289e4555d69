//! The cost of the middleware to an application on actix-web.

use std::hint::black_box;
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use actix_http::Request;
use actix_web::body::{MessageBody, to_bytes};
use actix_web::dev::{Service, ServiceResponse};
use actix_web::http::header::ContentType;
use actix_web::rt::System;
use actix_web::test::{TestRequest, init_service};
use actix_web::web::{self, ServiceConfig};
use actix_web::{App, Error, HttpResponse, HttpServer};
use bytes::Bytes;
use idemptx::Engine;
use idemptx::store::AnyStore;

use crate::in_process::{CALLS, Key, WARM_UP, on_one_thread};
use crate::load::Keys;
use crate::redis_server::RedisServer;
use crate::report::Report;
use crate::series::in_turns;
use crate::server::Framework;
use crate::{Effort, Measured, app, in_process, over_http};

/// Adds the table of a server, over sockets.
pub(crate) fn over_http(effort: Effort, report: &mut Report) -> Measured<()> {
    let variants = [
        ("actix-web alone", None, Keys::Fresh, "1.00"),
        ("middleware, request without a key", Some("memory:"), Keys::None, "-"),
        ("middleware, memory, new", Some("memory:"), Keys::Fresh, "-"),
        ("middleware, memory, hit", Some("memory:"), Keys::Used, "-"),
    ];
    over_http::compare(
        "A server with the middleware for actix-web, over sockets",
        "Baseline: the same actix-web server without the middleware, in the same round.\n\
         Circumstances: as in the first table.",
        Framework::Actix,
        &variants,
        &RedisServer::start()?,
        effort,
        report,
    )
}

/// Adds the table of calls, without sockets.
pub(crate) fn in_process(effort: Effort, report: &mut Report) -> Measured<()> {
    let variants = [
        ("actix-web alone", false, Some(Key::Fresh)),
        ("middleware, request without a key", true, None),
        ("middleware, memory, new", true, Some(Key::Fresh)),
        ("middleware, memory, hit", true, Some(Key::Used)),
    ];
    let series = in_turns(effort.rounds * 3, &variants, |(_, is_protected, key)| {
        let (is_protected, key) = (*is_protected, *key);
        Ok([on_one_thread(move || async move {
            if is_protected {
                let engine = app::engine("memory:", Duration::ZERO)?;
                let app = App::new().wrap(engine.middleware()).configure(routes);
                nanos_per_call(&init_service(app).await, key).await
            } else {
                nanos_per_call(&init_service(App::new().configure(routes)).await, key).await
            }
        })?])
    })?;
    let title = "A call of the application on actix-web, without sockets";
    let about = "Baseline: the same application without the middleware, in the same round.\n\
                 One call after the other, on one thread.";
    in_process::add(title, about, &variants.map(|(name, ..)| name), &series, report);
    Ok(())
}

/// Serves the application until killed, under an engine if there is one.
pub(crate) fn serve(engine: Option<Engine<AnyStore>>, workers: usize) -> Measured<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    // Two branches: a middleware that may be off would cost the baseline something.
    System::new().block_on(async {
        match engine {
            None => {
                let server = HttpServer::new(|| App::new().configure(routes));
                server.workers(workers).tcp_nodelay(true).listen(listener)?.run().await
            }
            Some(engine) => {
                let app = move || App::new().wrap(engine.middleware()).configure(routes);
                let server = HttpServer::new(app);
                server.workers(workers).tcp_nodelay(true).listen(listener)?.run().await
            }
        }
    })?;
    Ok(())
}

fn routes(app: &mut ServiceConfig) {
    app.route("/orders", web::post().to(order));
}

async fn order(_: Bytes) -> HttpResponse {
    HttpResponse::Created().content_type(ContentType::json()).body(app::ORDER)
}

async fn nanos_per_call<S, B>(app: &S, key: Option<Key>) -> Measured<f64>
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let requests: Vec<_> = (0..WARM_UP + CALLS)
        .map(|number| {
            let number = if key == Some(Key::Used) { 0 } else { number };
            let request = TestRequest::post().uri("/orders").insert_header(ContentType::json());
            let request = match key {
                Some(_) => request.insert_header(("idempotency-key", format!("{number:032x}"))),
                None => request,
            };
            request.set_payload(app::WISH).to_request()
        })
        .collect();
    let mut began = Instant::now();
    for (number, request) in requests.into_iter().enumerate() {
        if number == WARM_UP {
            began = Instant::now();
        }
        let response = app.call(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body()).await.map_err(Into::into);
        black_box(body.map_err(|error: Box<dyn std::error::Error>| error.to_string())?);
        if status != 201 {
            return Err(status.to_string().into());
        }
    }
    Ok(began.elapsed().as_nanos() as f64 / CALLS as f64)
}
