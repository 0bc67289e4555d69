//! The target application, protected by the idempotency layer.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    target_axum::protected().await
}
