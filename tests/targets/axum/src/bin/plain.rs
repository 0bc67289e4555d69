//! The target application without protection.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    target_axum::plain().await
}
