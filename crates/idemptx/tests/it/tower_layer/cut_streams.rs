//! Requests over HTTP/2 whose streams are reset without an error before their end.

use std::future::IntoFuture as _;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use h2::Reason;
use h2::client::SendRequest;
use http::Request;
use idemptx::Engine;
use idemptx::store::MemoryStore;
use idemptx::tower::require_end_stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tower::util::MapRequestLayer;

use super::engine;

#[tokio::test]
async fn half_a_request_whose_length_is_declared_is_not_executed() {
    let engine = engine(|policy| policy);
    let whole = (200, WHOLE.to_owned());
    assert_eq!(after_half_of(echo(&engine), Some(WHOLE.len())).await, whole);
}

#[tokio::test]
async fn half_a_request_without_a_length_is_not_executed_where_its_end_is_required() {
    let unaware = engine(|policy| policy);
    let (status, _) = after_half_of(echo(&unaware), None).await;
    assert_eq!(status, 422, "what the guarantees say of it is outdated");
    let engine = engine(|policy| policy);
    let app = echo(&engine).layer(MapRequestLayer::new(require_end_stream));
    assert_eq!(after_half_of(app, None).await, (200, WHOLE.to_owned()));
}

/// An application whose response is the request's body.
fn echo(engine: &Engine<MemoryStore>) -> Router {
    let orders = Router::new().route("/orders", post(async |body: Bytes| body));
    orders.layer(engine.layer()).route("/", get(async || ()))
}

/// Returns the answer to a whole request after half of one under its key.
async fn after_half_of(app: Router, length: Option<usize>) -> (u16, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, app).into_future());
    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let order = || Request::post("http://shop/orders").header("idempotency-key", "k");
    let request =
        length.into_iter().fold(order(), |it, length| it.header("content-length", length));
    let (_, mut half) = client.send_request(request.body(()).unwrap(), false).unwrap();
    half.send_data("half of it".into(), false).unwrap();
    // Once this one is answered, the layer reads the body of the other.
    ask(&mut client, Request::get("http://shop/").body(()).unwrap(), None).await;
    half.send_reset(Reason::NO_ERROR);
    let whole = Some(WHOLE);
    ask(&mut client, order().body(()).unwrap(), whole).await
}

async fn ask(
    client: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: Option<&'static str>,
) -> (u16, String) {
    let (answer, mut sending) = client.send_request(request, body.is_none()).unwrap();
    if let Some(body) = body {
        sending.send_data(body.into(), true).unwrap();
    }
    let answer = timeout(PATIENCE, answer).await.expect("in time").unwrap();
    let status = answer.status().as_u16();
    let mut stream = answer.into_body();
    let mut text = Vec::new();
    while let Some(piece) = stream.data().await {
        text.extend_from_slice(&piece.unwrap());
    }
    (status, String::from_utf8(text).unwrap())
}

const WHOLE: &str = "half of it, and the rest";
const PATIENCE: Duration = Duration::from_secs(60);
