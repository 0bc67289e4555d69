//! The target application of the black-box suite, on axum.
//!
//! `axum` stands behind the idempotency layer, `plain` does not; everything else is the same.

pub mod app;
pub mod flags;
pub mod journal;

use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use axum::serve::ListenerExt;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::app::App;
use crate::flags::Flags;
use crate::journal::Journal;

/// Runs the application without the layer, as its flags say, until a signal ends it.
pub async fn plain() -> ExitCode {
    let flags = Flags::parse();
    finish(serve(&flags, |router| router).await)
}

async fn serve(flags: &Flags, protect: impl FnOnce(Router) -> Router) -> std::io::Result<()> {
    let journal = flags.journal.as_deref().map(Journal::open).transpose()?;
    let router = protect(app::router(Arc::new(App::new(journal))));
    let mut terminated = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(flags.listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let listener = listener.tap_io(|stream| {
        // An answer in two segments need not wait for the first one's acknowledgement.
        let _ = stream.set_nodelay(true);
    });
    let drained = async move {
        terminated.recv().await;
    };
    axum::serve(listener, router).with_graceful_shutdown(drained).await
}

fn finish(served: std::io::Result<()>) -> ExitCode {
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
