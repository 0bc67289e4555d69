//! The tools of the black-box suite: a [`Target`] under test, a [`Journal`] that counts its
//! executions, a [`SharedStore`] that can be killed, and [`Answer`]s that can be judged.
//!
//! The suite knows nothing of the target but its flags, its endpoints and its journal.
//! `IDEMPTX_TARGET` names the executable under `target/targets/`; the default is `axum`.
//! `IDEMPTX_STORE` names the store; the default is `redis`, with memory where one process will do.
//! A few things differ between front doors, or between stores: [`Difference`] lists them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::needless_pass_by_value,
    reason = "a test fails by panicking"
)]

mod answer;
mod default_store;
mod journal;
mod known_differences;
mod redis;
mod request;
mod store;
mod target;

use std::time::Duration;

pub use crate::answer::{Answer, assert_one_success};
pub use crate::journal::{Entry, Event, Journal};
pub use crate::known_differences::{Difference, front_door};
pub use crate::redis::{Monitor, RedisServer};
pub use crate::request::Request;
pub use crate::store::{SharedStore, store_under_test};
pub use crate::target::{Builder, Target, refused_start};

/// The longest time that anything may take: a bound for hopeless cases, not a measurement.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until the answer is yes.
///
/// # Panics
///
/// If it is still no when [`PATIENCE`] is over.
pub async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    let asked = async {
        while !ask().await {
            tokio::time::sleep(PAUSE).await;
        }
    };
    if tokio::time::timeout(PATIENCE, asked).await.is_err() {
        panic!("waited in vain until {what}");
    }
}

/// Sends the same request again and again until its answer is as wanted, and returns that answer.
///
/// # Panics
///
/// If it never is within [`PATIENCE`].
pub async fn retry_until(request: &Request, mut wanted: impl FnMut(&Answer) -> bool) -> Answer {
    let mut last = None;
    let asked = async {
        loop {
            let answer = request.send().await;
            if wanted(&answer) {
                return answer;
            }
            last = Some(answer);
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answer) => answer,
        Err(_) => panic!("retried in vain; the last answer was {last:#?}"),
    }
}

/// The pause between two looks at something that does not announce its changes.
const PAUSE: Duration = Duration::from_millis(10);
