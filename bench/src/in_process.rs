//! The cost of the layer per call, without sockets.

use std::hint::black_box;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use http_body_util::BodyExt;
use tower::ServiceExt;

use crate::app::{self, Gate};
use crate::report::{Report, Table, count, ratio};
use crate::series::{Series, in_turns};
use crate::{Effort, Measured, machine};

/// Adds the table.
pub(crate) fn measure(effort: Effort, report: &mut Report) -> Measured<()> {
    let variants = [
        ("axum alone", false, Some(Key::Fresh)),
        ("layer, request without a key", true, None),
        ("layer, memory, new", true, Some(Key::Fresh)),
        ("layer, memory, hit", true, Some(Key::Used)),
    ];
    let series = in_turns(effort.rounds * 3, &variants, |(_, layer, key)| {
        let (layer, key) = (*layer, *key);
        Ok([on_one_thread(move || async move {
            let router = if layer {
                app::protected(&app::engine("memory:", Duration::ZERO)?, Gate::default())
            } else {
                app::routes(Gate::default())
            };
            nanos_per_call(&router, key).await
        })?])
    })?;
    let title = "A call of the service, without sockets";
    let about = "Baseline: the same axum router without the layer, in the same round.\n\
                 One call after the other, on one thread.\n\
                 Without a client's and a server's share of the work the ratios are far from those \
                 over sockets: what counts is the difference, in time.";
    add(title, about, &variants.map(|(name, ..)| name), &series, report);
    Ok(())
}

/// Adds a table of calls, of which the first is the baseline.
pub(crate) fn add(
    title: &'static str,
    about: &'static str,
    names: &[&str],
    series: &[[Series; 1]],
    report: &mut Report,
) {
    let mut table = Table::new(title, about, &["", "ns/call", "ratio", "more than alone, ns"]);
    let [base] = &series[0];
    for (name, [nanos]) in names.iter().zip(series) {
        table.row([
            (*name).to_owned(),
            count(nanos.median()),
            ratio(nanos.relative_to(base).median()),
            count(nanos.median() - base.median()),
        ]);
    }
    report.add(&table);
}

/// Runs something in a runtime of one thread, on the core of what is measured.
pub(crate) fn on_one_thread<T, F, R>(work: F) -> Measured<T>
where
    T: Send + 'static,
    F: FnOnce() -> R + Send + 'static,
    R: Future<Output = Measured<T>> + 'static,
{
    let thread = std::thread::spawn(|| {
        machine::stay_on(machine::MEASURED);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(work()).map_err(|error| error.to_string())
    });
    Ok(thread.join().map_err(|_| "the measurement broke down")??)
}

/// A call with its answer, read to its end.
pub(crate) async fn call(router: &Router, request: Request<Body>) -> Measured<StatusCode> {
    let (head, body) = router.clone().oneshot(request).await?.into_parts();
    black_box(body.collect().await?.to_bytes());
    Ok(head.status)
}

/// Fails unless something was created.
pub(crate) fn created(status: StatusCode) -> Measured<()> {
    if status == StatusCode::CREATED { Ok(()) } else { Err(status.to_string().into()) }
}

/// A request.
pub(crate) fn request(path: &str, key: Option<&str>, body: Bytes) -> Measured<Request<Body>> {
    let request = Request::post(path).header("content-type", "application/json");
    let request = match key {
        Some(key) => request.header("idempotency-key", key),
        None => request,
    };
    Ok(request.body(Body::from(body))?)
}

/// The keys of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Fresh,
    Used,
}

async fn nanos_per_call(router: &Router, key: Option<Key>) -> Measured<f64> {
    let mut requests = Vec::new();
    for number in 0..WARM_UP + CALLS {
        let number = if key == Some(Key::Used) { 0 } else { number };
        let key = key.map(|_| format!("{number:032x}"));
        requests.push(request(
            "/orders",
            key.as_deref(),
            Bytes::from_static(app::WISH.as_bytes()),
        )?);
    }
    let mut began = Instant::now();
    for (number, request) in requests.into_iter().enumerate() {
        if number == WARM_UP {
            began = Instant::now();
        }
        created(call(router, request).await?)?;
    }
    Ok(began.elapsed().as_nanos() as f64 / CALLS as f64)
}

pub(crate) const WARM_UP: usize = 500;
pub(crate) const CALLS: usize = 5_000;
