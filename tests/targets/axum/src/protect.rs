//! Everything that the application has to do with idemptx.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use idemptx::store::AnyStore;
use idemptx::{Engine, Execution, Policy, Profile};
use tokio::time::{sleep, timeout};

use crate::app::RecordSnapshot;
use crate::flags::Flags;

/// The layer around the application, and what belongs to it.
#[derive(Clone, Debug)]
pub struct Protection(Engine<AnyStore>);

impl Protection {
    /// Builds the engine that the flags describe; nothing is connected yet.
    pub fn new(flags: &Flags) -> Result<Self, Box<dyn Error>> {
        let profile: Profile = flags.profile.parse()?;
        let policy = Policy::from_json(profile, &flags.policy)?;
        let store = AnyStore::from_url(&flags.store)?;
        Ok(Self(Engine::builder(store).policy(policy).build()?))
    }

    /// Returns the engine.
    #[must_use]
    pub const fn engine(&self) -> &Engine<AnyStore> {
        &self.0
    }

    /// Puts the layer around all routes.
    pub fn around(&self, router: Router) -> Router {
        router.layer(self.0.layer())
    }

    /// Reports on stderr what the store promises; one that cannot be used yet is asked again later.
    pub async fn check(&self) {
        let protection = self.clone();
        let mut checks = tokio::spawn(async move {
            let mut told = None;
            while let Err(problem) = protection.checked().await {
                if told.as_ref() != Some(&problem) {
                    eprintln!("warning: {problem}; requests under a key are answered 503");
                }
                told = Some(problem);
                sleep(CHECK_AGAIN).await;
            }
        });
        // What is unsafe should be known before the first request; what is away is waited for.
        let _ = timeout(CHECK_AGAIN, &mut checks).await;
    }

    /// Waits until all handlers have ended, clients present or gone.
    pub async fn drain(&self) {
        if !self.0.drain().await {
            eprintln!("warning: some handlers have not ended in time; their claims will lapse");
        }
    }

    /// Returns the longest time that draining may take.
    pub fn drain_max(&self) -> Duration {
        self.0.policy().drain
    }

    async fn checked(&self) -> Result<(), String> {
        let report = self.0.check().await.map_err(|error| told(&error))?;
        eprintln!("store: {}", report.guarantee);
        for finding in report.findings {
            eprintln!("warning: {}", finding.text);
        }
        Ok(())
    }
}

/// Returns a handler's view of the execution that it is part of.
pub(crate) fn snapshot(execution: &Execution) -> RecordSnapshot {
    RecordSnapshot {
        key: Some(execution.key().to_owned()),
        attempt: Some(execution.attempt()),
        token: Some(execution.token().to_string()),
        derived: Some(execution.derive("charge")),
    }
}

/// An error and what caused it, in one line.
pub fn told(error: &dyn Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", told(cause)),
        None => error.to_string(),
    }
}

const CHECK_AGAIN: Duration = Duration::from_secs(1);
