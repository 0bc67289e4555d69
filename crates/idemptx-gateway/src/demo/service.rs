//! The example service: it takes orders and charges for each, without idempotency keys.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::sleep;

/// A running service, with its orders and charges.
#[derive(Clone, Debug)]
pub(super) struct DemoService {
    pub(super) address: SocketAddr,
    orders: Arc<watch::Sender<Vec<Value>>>,
    charges: Arc<watch::Sender<usize>>,
}

impl DemoService {
    /// Starts the service on a free port.
    pub(super) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shop = Self { address, orders: Arc::default(), charges: Arc::default() };
        let start = shop.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shop = start.clone();
                let service = service_fn(move |request| {
                    let shop = shop.clone();
                    async move { Ok::<_, Infallible>(shop.answer(request).await) }
                });
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move {
                    // A client may disconnect at any time.
                    let _ = served.await;
                });
            }
        });
        Ok(shop)
    }

    /// The number of charges so far.
    pub(super) fn charges(&self) -> usize {
        *self.charges.borrow()
    }

    /// Watches the number of charges.
    pub(super) fn charging(&self) -> watch::Receiver<usize> {
        self.charges.subscribe()
    }

    pub(super) fn orders(&self) -> usize {
        self.orders.borrow().len()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/orders") => self.order(request).await,
            (&Method::GET, "/orders") => {
                json_response(StatusCode::OK, &Value::Array(self.orders.borrow().clone()))
            }
            _ => json_response(StatusCode::NOT_FOUND, &json!({ "error": "try /orders" })),
        }
    }

    async fn order(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
        let order_request =
            body.ok().and_then(|body| serde_json::from_slice::<Value>(&body.to_bytes()).ok());
        let Some((item, cents)) = order_request.as_ref().and_then(|order_request| {
            Some((order_request.get("item")?.as_str()?, order_request.get("cents")?.as_u64()?))
        }) else {
            let advice = json!({ "error": "send {\"item\": text, \"cents\": number}" });
            return json_response(StatusCode::BAD_REQUEST, &advice);
        };
        // Stands for a slow call to a payment provider.
        self.charges.send_modify(|charges| *charges += 1);
        sleep(CHARGE_TIME).await;
        let mut id = 0;
        self.orders.send_modify(|orders| {
            id = orders.len() + 1;
            orders.push(json!({ "id": id, "item": item, "cents": cents }));
        });
        let order = json!({ "id": id, "item": item, "cents": cents });
        let mut answer = json_response(StatusCode::CREATED, &order);
        if let Ok(place) = HeaderValue::try_from(format!("/orders/{id}")) {
            answer.headers_mut().insert(LOCATION, place);
        }
        answer
    }
}

fn json_response(status: StatusCode, json: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(json.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

const BODY_BYTES_MAX: usize = 64 << 10;
const CHARGE_TIME: Duration = Duration::from_millis(300);
