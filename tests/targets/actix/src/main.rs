//! The target application of the black-box suite, on actix-web.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program under test: it prints, and ends at a failure"
)]

mod app;
mod run;

use std::io;
use std::net::TcpListener;
use std::process::ExitCode;
use std::time::Duration;

use actix_web::middleware::Condition;
use actix_web::rt::System;
use actix_web::{App, HttpServer, web};
use clap::Parser;
use target_axum::app::App as State;
use target_axum::flags::Flags;
use target_axum::journal::Journal;
use target_axum::protect::{self, Protection};
use target_axum::{DRAIN_MAX, USAGE};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Runs the application as its flags say until SIGTERM.
fn main() -> ExitCode {
    let flags = Flags::parse();
    System::new().block_on(async {
        let protection = match Protection::new(&flags) {
            Ok(protection) => protection,
            Err(error) => {
                eprintln!("error: {}", protect::told(&*error));
                return ExitCode::from(USAGE);
            }
        };
        if !flags.unprotected {
            protection.check().await;
        }
        match serve(&flags, &protection).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        }
    })
}

async fn serve(flags: &Flags, protection: &Protection) -> io::Result<()> {
    let journal = flags.journal.as_deref().map(Journal::open).transpose()?;
    let state = web::Data::new(State::new(journal));
    let (engine, is_protected) = (protection.engine().clone(), !flags.unprotected);
    let listener = TcpListener::bind(flags.listen)?;
    let address = listener.local_addr()?;
    let limit = if is_protected { protection.drain_max() } else { DRAIN_MAX };
    let server = HttpServer::new(move || {
        App::new()
            .wrap(Condition::new(is_protected, engine.middleware()))
            .app_data(state.clone())
            .configure(app::routes)
    })
    .disable_signals()
    // A client that reads slowly on a busy machine must not find its connection closed as idle.
    .keep_alive(KEEP_ALIVE)
    .shutdown_timeout(limit.as_secs())
    .listen(listener)?
    .run();
    let handle = server.handle();
    let mut terminated = signal(SignalKind::terminate())?;
    let served = actix_web::rt::spawn(server);
    println!("listening on http://{address}");

    terminated.recv().await;
    let drained = async {
        handle.pause().await;
        // Handlers whose clients have left end with their worker, so they come first.
        if is_protected {
            protection.drain().await;
        }
        handle.stop(true).await;
        served.await.map_err(io::Error::other)?
    };
    timeout(limit, drained).await.unwrap_or(Ok(()))
}

const KEEP_ALIVE: Duration = Duration::from_secs(75);
