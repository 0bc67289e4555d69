//! The scenario: requests over real connections, with checks of their results.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, IsTerminal as _, Write as _, stdout};
use std::net::SocketAddr;
use std::time::SystemTime;

use http::StatusCode;

use super::client::{TimedResponse, send_order};
use super::service::DemoService;

type Played<T> = Result<T, Box<dyn Error>>;

/// Runs the scenario and counts failed checks.
pub(super) struct Scenario<'a> {
    address: SocketAddr,
    service: &'a DemoService,
    /// Makes keys unique: the store may hold those of earlier runs.
    run: String,
    colour: bool,
    steps: u32,
    sent: usize,
    failures: u32,
}

impl<'a> Scenario<'a> {
    pub(super) fn new(address: SocketAddr, service: &'a DemoService) -> Played<Self> {
        let since = SystemTime::UNIX_EPOCH.elapsed()?.as_millis();
        let colour = stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let run = format!("{since:x}");
        Ok(Self { address, service, run, colour, steps: 0, sent: 0, failures: 0 })
    }

    /// Runs all steps; `true` if every check passed.
    pub(super) async fn play(mut self, promise: &str) -> Played<bool> {
        self.title("A service without retry handling, and the gateway in front of it")?;
        self.line(format_args!("service: http://{}", self.service.address))?;
        self.line(format_args!("gateway: http://{}", self.address))?;
        self.line(format_args!("store:   {promise}"))?;
        let first = self.first().await?;
        self.repeat_order(&first).await?;
        self.changed_body().await?;
        self.concurrent_retries().await?;
        self.client_gone().await?;
        self.totals()?;
        Ok(self.failures == 0)
    }

    async fn first(&mut self) -> Played<TimedResponse> {
        self.step("A first order")?;
        let (answer, charges) = self.shown("tea", TEA).await?;
        let created = answer.response.status() == StatusCode::CREATED;
        let held = created && !answer.is_replay() && charges == 1;
        let why = "The key was new: the gateway forwarded the request, and stored the response \
                   before it passed it on.";
        self.claim(held, with_charges("executed", charges), why)?;
        Ok(answer)
    }

    async fn repeat_order(&mut self, first: &TimedResponse) -> Played<()> {
        self.step("The same again, from a client that never got the response")?;
        let (answer, charges) = self.shown("tea", TEA).await?;
        let same = answer.response.body() == first.response.body();
        let held = same && answer.is_replay() && charges == 0;
        let why = "Same key, same request: the gateway replayed the stored response without \
                   calling the service.";
        self.claim(held, with_charges("replayed, byte for byte", charges), why)
    }

    async fn changed_body(&mut self) -> Played<()> {
        self.step("The same key with another body")?;
        let (answer, charges) = self.shown("tea", MORE_TEA).await?;
        self.line(format_args!("     {}", answer.text()))?;
        let refused = answer.response.status() == StatusCode::UNPROCESSABLE_ENTITY;
        let why = "A replay would answer another request; the fingerprints differ.";
        self.claim(refused && charges == 0, with_charges("refused", charges), why)
    }

    async fn concurrent_retries(&mut self) -> Played<()> {
        self.step("Fifty identical requests at once")?;
        let (key, before) = (self.key("cake"), self.service.charges());
        self.line(format_args!("   > {CROWD} x POST /orders  key {key}  {CAKE}"))?;
        let requests: Vec<_> = (0..CROWD)
            .map(|_| {
                let (address, key) = (self.address, key.clone());
                tokio::spawn(async move { send_order(address, &key, CAKE).await })
            })
            .collect();
        self.sent += CROWD;
        let mut answers = Vec::new();
        for request in requests {
            answers.push(request.await?.map_err(|error| error.to_string())?);
        }
        let charges = self.service.charges() - before;
        let bodies = answers.first().map(|first| first.response.body());
        let same = answers.iter().all(|it| {
            it.response.status() == StatusCode::CREATED && Some(it.response.body()) == bodies
        });
        let replays = answers.iter().filter(|it| it.is_replay()).count();
        let fact = format!("{}, {replays} replays", with_charges("executed", charges));
        let why = "One of them ran; the others waited for its response.";
        self.claim(same && charges == 1 && replays == CROWD - 1, fact, why)
    }

    async fn client_gone(&mut self) -> Played<()> {
        self.step("A client that disconnects, and retries")?;
        let (key, before) = (self.key("pie"), self.service.charges());
        let mut charging = self.service.charging();
        self.line(format_args!("   > POST /orders  key {key}  {PIE}"))?;
        self.sent += 1;
        tokio::select! {
            answered = send_order(self.address, &key, PIE) => {
                return Err(format!("the service was too quick: {answered:?}").into());
            }
            charged = charging.wait_for(|charges| *charges > before) => { charged?; }
        }
        self.line("   x the client disconnects while its card is being charged")?;
        let (answer, _) = self.shown("pie", PIE).await?;
        let charges = self.service.charges() - before;
        let created = answer.response.status() == StatusCode::CREATED;
        let why = "The gateway let the request finish, and stored its response for the retry.";
        let fact = format!("{}, then replayed", with_charges("executed", charges));
        self.claim(created && answer.is_replay() && charges == 1, fact, why)
    }

    fn totals(&mut self) -> Played<()> {
        self.title("Total")?;
        let (sent, orders, charges) = (self.sent, self.service.orders(), self.service.charges());
        let fact = format!("{sent} requests sent, {orders} orders created, {charges} charges");
        let why = "One for each order: tea, cake, pie.";
        self.claim(orders == 3 && charges == 3, fact, why)
    }

    /// Sends one request, prints it with its response, and returns the number of charges.
    async fn shown(&mut self, name: &str, body: &str) -> Played<(TimedResponse, usize)> {
        let (key, before) = (self.key(name), self.service.charges());
        self.line(format_args!("   > POST /orders  key {key}  {body}"))?;
        self.sent += 1;
        let answer =
            send_order(self.address, &key, body).await.map_err(|error| error.to_string())?;
        let took = answer.took.as_secs_f64() * 1e3;
        let mark = if answer.is_replay() { "  Idempotent-Replayed: true" } else { "" };
        self.line(format_args!("   < {}  {took:.1} ms{mark}", answer.response.status()))?;
        if answer.response.status().is_success() {
            self.line(format_args!("     {}", answer.text()))?;
        }
        Ok((answer, self.service.charges() - before))
    }

    fn title(&self, text: &str) -> Played<()> {
        self.line(format_args!("\n{}", self.painted(BOLD, text)))
    }

    fn step(&mut self, text: &str) -> Played<()> {
        self.steps += 1;
        let text = format!("{}  {text}", self.steps);
        self.line(format_args!("\n{}", self.painted(BOLD, &text)))
    }

    /// Prints a check's result with its explanation.
    fn claim(&mut self, holds: bool, fact: impl Display, why: &str) -> Played<()> {
        if holds {
            self.line(format_args!("   {} {fact}", self.painted(GREEN, "ok")))?;
            self.line(format_args!("   {}", self.painted(DIM, why)))
        } else {
            self.failures += 1;
            self.line(format_args!("   {} {fact}", self.painted(RED, "FAILED:")))
        }
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&self, line: impl Display) -> Played<()> {
        Ok(writeln!(stdout(), "{line}")?)
    }

    fn key(&self, name: &str) -> String {
        format!("{name}-{}", self.run)
    }
}

/// Prints a command to try.
pub(super) fn print_invitation(address: SocketAddr) -> io::Result<()> {
    let mut out = stdout();
    writeln!(out, "\nTry it yourself, twice: the second response is a replay.\n")?;
    writeln!(out, "  curl -i http://{address}/orders -d '{TEA}' \\")?;
    writeln!(out, "    -H 'Content-Type: application/json' -H 'Idempotency-Key: try-1'")?;
    writeln!(out, "\nServing until Ctrl-C.")
}

fn with_charges(what: &str, charges: usize) -> String {
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
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "32";
