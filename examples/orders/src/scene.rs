//! The scene: what clients do to the service, over real connections, and what comes of it.
//!
//! It is a test as well: whatever it claims, it checks.

use std::error::Error;
use std::net::SocketAddr;
use std::process;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde_json::{Map, Value};

use crate::Shop;
use crate::client::{Answer, order};
use crate::stage::Stage;

/// Plays it; `true` if everything held.
pub(crate) async fn play(
    address: SocketAddr,
    promise: &str,
    shop: &Arc<Shop>,
) -> Result<bool, Box<dyn Error>> {
    let mut scene = Scene {
        stage: Stage::new(),
        address,
        shop: shop.clone(),
        // Other runs may have left their keys in the store.
        run: format!("{:x}-{:x}", process::id(), SystemTime::UNIX_EPOCH.elapsed()?.as_secs()),
        sent: 0,
    };
    scene.welcome(promise);
    let first = scene.first().await?;
    scene.again(&first).await?;
    scene.changed().await?;
    scene.at_once().await?;
    scene.client_gone().await?;
    scene.sum();
    Ok(scene.stage.held())
}

struct Scene {
    stage: Stage,
    address: SocketAddr,
    shop: Arc<Shop>,
    run: String,
    /// Requests.
    sent: usize,
}

impl Scene {
    fn welcome(&self, promise: &str) {
        let Self { stage, address, .. } = self;
        stage.title("Orders, charged once however often the client asks");
        stage.line(format_args!("http://{address}"));
        stage.line(format_args!("store: {promise}"));
        stage.line("\nTry it yourself, twice: the second answer will be a replay.");
        stage.line("Kill the service and start it again in between: it still will, unless the");
        stage.line("store is memory.\n");
        stage.line(format_args!("  curl -i http://{address}/orders -d '{TEA}' \\"));
        stage.line("    -H 'Content-Type: application/json' -H 'Idempotency-Key: try-1'");
    }

    async fn first(&mut self) -> Result<Answer, Box<dyn Error>> {
        self.stage.step("A first request");
        let (answer, charges) = self.shown("tea", TEA).await?;
        let held = answer.status == StatusCode::CREATED && !answer.is_replay() && charges == 1;
        let why = "The key was new: the handler ran, and its answer was stored before it was sent.";
        self.stage.claim(held, counted("executed", charges), why);
        Ok(answer)
    }

    async fn again(&mut self, first: &Answer) -> Result<(), Box<dyn Error>> {
        self.stage.step("The same again, from a client that never saw the answer");
        let (answer, charges) = self.shown("tea", TEA).await?;
        let same = answer.status == first.status && answer.body == first.body;
        let held = same && answer.is_replay() && charges == 0;
        let why = "Same key, same request: the stored answer comes back, and no handler runs.";
        self.stage.claim(
            held,
            format_args!("{}, byte for byte", counted("replayed", charges)),
            why,
        );
        Ok(())
    }

    async fn changed(&mut self) -> Result<(), Box<dyn Error>> {
        self.stage.step("The same key for something else");
        let (answer, charges) = self.shown("tea", MORE_TEA).await?;
        let is_problem = answer.headers.get(CONTENT_TYPE).is_some_and(|it| it == PROBLEM);
        for (name, value) in serde_json::from_slice::<Map<String, Value>>(&answer.body)? {
            self.stage.line(format_args!("     {name}: {value}"));
        }
        let held = answer.status == StatusCode::UNPROCESSABLE_ENTITY && is_problem && charges == 0;
        let why =
            "A replay would answer a question nobody asked; the fingerprint tells them apart.";
        self.stage.claim(held, counted("refused", charges), why);
        Ok(())
    }

    async fn at_once(&mut self) -> Result<(), Box<dyn Error>> {
        self.stage.step("Fifty at once, all the same");
        let (key, before, began) = (self.key("cake"), self.charges(), Instant::now());
        self.stage.request(format_args!("{CROWD} x POST /orders  key {key}  {CAKE}"));
        let requests: Vec<_> = (0..CROWD)
            .map(|_| {
                let (address, key) = (self.address, key.clone());
                let request = async move { order(address, &key, CAKE).await };
                tokio::spawn(async { request.await.map_err(|error| error.to_string()) })
            })
            .collect();
        self.sent += CROWD;
        let mut answers = Vec::new();
        for request in requests {
            answers.push(request.await??);
        }
        let charges = self.charges() - before;
        let same = answers.iter().all(|it| it.status == StatusCode::CREATED)
            && answers.windows(2).all(|pair| pair[0].body == pair[1].body);
        let replays = answers.iter().filter(|it| it.is_replay()).count();
        let took = began.elapsed().as_millis();
        self.stage.answer(format_args!("{} x 201 Created, all within {took} ms", answers.len()));
        let fact = format_args!("{}, {replays} replays of it", counted("executed", charges));
        let why = "One of them got the claim; the others waited, and were woken with its answer.";
        self.stage.claim(same && charges == 1 && replays == CROWD - 1, fact, why);
        Ok(())
    }

    async fn client_gone(&mut self) -> Result<(), Box<dyn Error>> {
        self.stage.step("A client that goes away, and comes back");
        let (key, before) = (self.key("pie"), self.charges());
        let mut charges = self.shop.charges.subscribe();
        self.stage.request(format_args!("POST /orders  key {key}  {PIE}"));
        self.sent += 1;
        tokio::select! {
            answered = order(self.address, &key, PIE) => {
                return Err(format!("the service was too quick: {answered:?}").into());
            }
            charging = charges.wait_for(|charges| *charges > before) => { charging?; }
        }
        self.stage.line("   x the client hangs up, while its card is being charged");
        let (answer, _) = self.shown("pie", PIE).await?;
        let charges = self.charges() - before;
        let held = answer.status == StatusCode::CREATED && answer.is_replay() && charges == 1;
        let why = "The handler outlives the connection: its answer was stored, for whoever asks.";
        self.stage.claim(
            held,
            format_args!("{}, then replayed", counted("executed", charges)),
            why,
        );
        Ok(())
    }

    fn sum(&mut self) {
        let (sent, orders, charges) = (self.sent, self.shop.orders().len(), self.charges());
        self.stage.title("In all");
        let fact = format_args!("{sent} requests sent, {orders} orders created, {charges} charges");
        let why = "One for each thing that a customer wanted: tea, cake, pie.";
        self.stage.claim(orders == 3 && charges == 3, fact, why);
    }

    /// Sends one request, shows it with its answer, and tells how many charges came of it.
    async fn shown(&mut self, name: &str, body: &str) -> Result<(Answer, usize), Box<dyn Error>> {
        let (key, before) = (self.key(name), self.charges());
        self.stage.request(format_args!("POST /orders  key {key}  {body}"));
        self.sent += 1;
        let answer = order(self.address, &key, body).await?;
        let took = answer.took.as_secs_f64() * 1e3;
        let mark = if answer.is_replay() { "  Idempotent-Replayed: true" } else { "" };
        self.stage.answer(format_args!("{}  {took:.1} ms{mark}", answer.status));
        if answer.status.is_success() {
            self.stage.line(format_args!("     {}", answer.text()));
        }
        Ok((answer, self.charges() - before))
    }

    fn key(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }

    fn charges(&self) -> usize {
        *self.shop.charges.borrow()
    }
}

fn counted(what: &str, charges: usize) -> String {
    match charges {
        0 => format!("{what}: no charge"),
        1 => format!("{what}: 1 charge"),
        charges => format!("{what}: {charges} charges"),
    }
}

const TEA: &str = r#"{"item":"tea","cents":450}"#;
const MORE_TEA: &str = r#"{"item":"tea","cents":9900}"#;
const CAKE: &str = r#"{"item":"cake","cents":380}"#;
const PIE: &str = r#"{"item":"pie","cents":520}"#;
const CROWD: usize = 50;
const PROBLEM: &str = "application/problem+json";
