//! A shop whose orders are in the database that also keeps the records.

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::handler::Handler;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use idemptx::store::Transactional;
use idemptx::store::postgres::{PostgresStore, PostgresStoreBuilder};
use idemptx::{Engine, IdempotentTransaction, Policy, SettleError, StepError, TransactionError};
use idemptx_core::policy::PolicyBuilder;
use idemptx_core::store::Store;
use idemptx_testkit::PostgresServer;

use crate::support::http_client::{Reply, posted, send};

/// A server with a table of orders.
pub(crate) struct Shop {
    pub(crate) server: PostgresServer,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        let server = PostgresServer::start(&["fsync = off"]);
        server.session().await.batch_execute(ORDERS).await.unwrap();
        Self { server }
    }

    /// An engine as another process would have one.
    pub(crate) fn engine(&self) -> Engine<PostgresStore> {
        engine(self.store(), |policy| policy)
    }

    pub(crate) fn store(&self) -> PostgresStore {
        patient(self.server.url()).open().unwrap()
    }

    pub(crate) fn app(&self) -> App {
        App::of(&self.engine(), order)
    }

    /// The attempts that left an order under a key.
    pub(crate) async fn orders(&self, key: &str) -> Vec<i32> {
        let select = "SELECT attempt FROM orders WHERE key = $1 ORDER BY attempt";
        let rows = self.server.session().await.query(select, &[&key]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    pub(crate) async fn number(&self, query: &str) -> i64 {
        self.server.session().await.query_one(query, &[]).await.unwrap().get(0)
    }

    /// Counts the records in a state.
    pub(crate) async fn records(&self, state: char) -> i64 {
        let count = "SELECT count(*) FROM idemptx.records WHERE state::text = $1";
        let state = state.to_string();
        self.server.session().await.query_one(count, &[&state]).await.unwrap().get(0)
    }

    /// Expires the lease of every claim.
    pub(crate) async fn lapse(&self) {
        let lapse = "UPDATE idemptx.records SET lease_until = clock_timestamp() WHERE state = 'R'";
        assert_eq!(self.server.session().await.execute(lapse, &[]).await.unwrap(), 1);
    }
}

/// The routes of a process.
#[derive(Clone)]
pub(crate) struct App(pub(crate) Router);

impl App {
    pub(crate) fn of<H, T, S>(engine: &Engine<S>, handler: H) -> Self
    where
        S: Store,
        H: Handler<T, ()>,
        T: 'static,
    {
        Self(Router::new().fallback(handler).layer(engine.layer()))
    }

    /// Sends an order; the body says how the handler is to end.
    pub(crate) async fn post(&self, key: &str, body: &str) -> Reply {
        soon(send(&self.0, posted(key, body.to_owned()))).await
    }

    /// A client that waits for its reply, or leaves when it is aborted.
    pub(crate) fn client(&self, key: &str, body: &str) -> tokio::task::JoinHandle<Reply> {
        let (app, key, body) = (self.clone(), key.to_owned(), body.to_owned());
        tokio::spawn(async move { app.post(&key, &body).await })
    }
}

/// Takes an order, and ends as its body says.
pub(crate) async fn order(tx: IdempotentTransaction, body: String) -> Result<Response, AppError> {
    let number = place(&tx).await?;
    end(&body, format!("order {number}"))
}

/// Writes an order down, and returns its number.
pub(crate) async fn place(tx: &IdempotentTransaction) -> Result<i64, TransactionError> {
    let (key, attempt) = (tx.execution().key(), tx.execution().attempt() as i32);
    let row = tx.query_one(INSERT, &[&key, &attempt]).await?;
    Ok(row.get(0))
}

pub(crate) fn end(body: &str, answer: String) -> Result<Response, AppError> {
    match body.split_once(' ').unwrap_or((body, "")) {
        ("panic", _) => panic!("as it was told"),
        ("error", _) => Err(AppError("as it was told".into())),
        (status, outcome) => {
            let status: StatusCode = status.parse().unwrap();
            let mut response = (status, answer).into_response();
            if !outcome.is_empty() {
                response.headers_mut().insert("idempotency-outcome", outcome.parse().unwrap());
            }
            Ok(response)
        }
    }
}

/// The error of a handler.
#[derive(Debug)]
pub(crate) struct AppError(pub(crate) String);

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0).into_response()
    }
}

impl From<TransactionError> for AppError {
    fn from(error: TransactionError) -> Self {
        Self(told(&error))
    }
}

impl From<SettleError> for AppError {
    fn from(error: SettleError) -> Self {
        Self(told(&error))
    }
}

impl From<StepError<Infallible>> for AppError {
    fn from(error: StepError<Infallible>) -> Self {
        Self(told(&error))
    }
}

/// An error with its causes.
pub(crate) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

pub(crate) fn engine<S: Store + Transactional>(
    store: S,
    change: impl FnOnce(PolicyBuilder) -> PolicyBuilder,
) -> Engine<S> {
    // A busy machine may take longer than the default.
    let patient = Policy::draft().into_builder().claim_timeout(PATIENCE).settle_timeout(PATIENCE);
    let policy = change(patient).build().unwrap();
    Engine::builder(store).policy(policy).transactional().build().unwrap()
}

/// A store that a busy machine does not lead to give up.
pub(crate) fn patient(url: String) -> PostgresStoreBuilder {
    PostgresStore::builder(url).timeout(PATIENCE).connect_timeout(PATIENCE)
}

pub(crate) async fn soon<T>(event: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, event).await.expect("it did not happen")
}

/// A request without a key.
pub(crate) fn keyless() -> Request {
    Request::post("/orders").body("201".into()).unwrap()
}

pub(crate) const INSERT: &str =
    "INSERT INTO orders (key, attempt) VALUES ($1, $2) RETURNING number";
pub(crate) const ORDERS: &str = "CREATE TABLE orders (number bigserial, key text, attempt int)";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
