//! The target application of the black-box suite, on axum.
//!
//! `axum` is protected by the idempotency layer, `plain` is not; everything else is the same.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    clippy::missing_errors_doc,
    reason = "a program under test: it prints, and ends at a failure"
)]

pub mod app;
pub mod flags;
pub mod journal;
pub mod protect;

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::app::App;
use crate::flags::Flags;
use crate::journal::Journal;
use crate::protect::Protection;

/// Runs the application as its flags say until SIGTERM, protected by the layer.
pub async fn protected() -> ExitCode {
    let flags = Flags::parse();
    if flags.unprotected {
        return finish(serve(&flags, None).await);
    }
    match Protection::new(&flags) {
        Ok(protection) => {
            protection.check().await;
            finish(serve(&flags, Some(&protection)).await)
        }
        Err(error) => {
            eprintln!("error: {}", protect::told(&*error));
            ExitCode::from(USAGE)
        }
    }
}

/// Runs the application as its flags say until SIGTERM, without protection.
pub async fn plain() -> ExitCode {
    finish(serve(&Flags::parse(), None).await)
}

async fn serve(flags: &Flags, protection: Option<&Protection>) -> io::Result<()> {
    let router = router(flags, protection)?;
    let listener = TcpListener::bind(flags.listen).await?;
    let address = listener.local_addr()?;
    let listener = listener.tap_io(|stream| {
        // An answer in two segments need not wait for the first one's acknowledgement.
        let _ = stream.set_nodelay(true);
    });
    let mut terminated = signal(SignalKind::terminate())?;
    let closing = Arc::new(Notify::new());
    let closed = closing.clone().notified_owned();
    let server = axum::serve(listener, router).with_graceful_shutdown(closed).into_future();
    let server = tokio::spawn(server);
    println!("listening on http://{address}");

    terminated.recv().await;
    closing.notify_one();
    let drained = async {
        let served = server.await.map_err(io::Error::other)?;
        if let Some(protection) = protection {
            protection.drain().await;
        }
        served
    };
    let limit = protection.map_or(DRAIN_MAX, Protection::drain_max);
    timeout(limit, drained).await.unwrap_or(Ok(()))
}

fn router(flags: &Flags, protection: Option<&Protection>) -> io::Result<Router> {
    let journal = flags.journal.as_deref().map(Journal::open).transpose()?;
    let router = app::router(Arc::new(App::new(journal)));
    Ok(match protection {
        Some(protection) => protection.around(router),
        None => router,
    })
}

fn finish(served: io::Result<()>) -> ExitCode {
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The longest time that draining takes without protection.
pub const DRAIN_MAX: Duration = Duration::from_secs(30);
/// The status that clap ends with, too.
pub const USAGE: u8 = 2;
