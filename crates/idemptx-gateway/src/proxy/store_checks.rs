//! Checks of what the store promises, at start and from time to time.
//!
//! The store is asked once for all routes; each policy then decides whether that is enough.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use idemptx::store::{AnyStore, Finding, SafetyCheck, SafetyReport, Severity};
use idemptx::{CheckError, Engine};
use idemptx_core::store::ErrorKind;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::error::error_text;
use crate::recorder::RecordedStore;
use crate::upstream::random;

/// The checks of a store for some engines.
pub(super) struct StoreChecks {
    pub(super) engines: Vec<Engine<Arc<RecordedStore<AnyStore>>>>,
    pub(super) findings: LoggedFindings,
    /// The reason why requests are refused, as it was logged last.
    pub(super) problem: Option<String>,
}

impl StoreChecks {
    /// Checks until it is dropped; `first` hears of the first check that is passed.
    pub(super) async fn run(
        mut self,
        store: Arc<RecordedStore<AnyStore>>,
        first: oneshot::Sender<()>,
    ) {
        let mut first = Some(first);
        let every = self.engines.iter().map(|engine| engine.policy().store_check);
        let every = every.filter(|every| !every.is_zero()).min();
        loop {
            let checked = match timeout(CHECK_LIMIT, store.check()).await {
                Ok(Ok(report)) => self.judge(&store, &report),
                Ok(Err(error)) => Err(CheckError::Unreachable(error)),
                Err(_) => Err(CheckError::Unreachable(ErrorKind::Unavailable.into())),
            };
            let pause = match (self.note(&checked), every) {
                (false, _) => RETRY_INTERVAL,
                (true, Some(every)) => every,
                (true, None) => return,
            };
            if let Some(first) = first.take_if(|_| self.problem.is_none()) {
                // The start may have gone on without it.
                let _ = first.send(());
            }
            sleep(jittered(pause)).await;
        }
    }

    /// Has every engine judge a report; the first refusal counts.
    fn judge(
        &self,
        store: &RecordedStore<AnyStore>,
        report: &SafetyReport,
    ) -> Result<(), CheckError> {
        let mut findings = Vec::new();
        let mut refusal = Ok(());
        for engine in &self.engines {
            let judged = engine.judge(report.clone());
            if let Ok(judged) | Err(CheckError::Refused(judged)) = &judged {
                findings.extend(judged.findings.iter().cloned());
            }
            refusal = refusal.and(judged.map(drop));
        }
        store.recorder().readiness().set_report(report.clone(), refusal.is_err());
        self.findings.update(&report.guarantee, &findings);
        refusal
    }

    /// Logs why requests are refused, once, and returns false if the store is to be asked again
    /// soon.
    fn note(&mut self, checked: &Result<(), CheckError>) -> bool {
        let problem = checked.as_ref().err().map(|error| error_text(error));
        match &problem {
            Some(problem) if self.problem.as_ref() != Some(problem) => {
                tracing::warn!("{problem}; requests with a key get 503");
            }
            None if self.problem.is_some() => {
                tracing::info!("the store is found good again; requests with a key are taken");
            }
            _ => {}
        }
        self.problem = problem;
        checked.is_ok()
    }
}

/// Findings that were logged and still hold, so that each change is logged once.
#[derive(Clone, Debug, Default)]
pub(crate) struct LoggedFindings(Arc<Mutex<HashSet<String>>>);

impl LoggedFindings {
    /// Logs what has come and what has gone since the last time.
    fn update(&self, guarantee: &str, findings: &[Finding]) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let guarantee = format!("store: {guarantee}");
        if !logged.contains(&guarantee) {
            tracing::info!("{guarantee}");
        }
        let mut holds = HashSet::from([guarantee]);
        for finding in findings {
            if holds.insert(finding.text.clone()) && !logged.contains(&finding.text) {
                match finding.severity {
                    Severity::Note => tracing::info!("{}", finding.text),
                    _ => tracing::warn!("{}", finding.text),
                }
            }
        }
        for gone in logged.difference(&holds).filter(|gone| !gone.starts_with("store: ")) {
            tracing::info!("not any more: {gone}");
        }
        *logged = holds;
    }
}

/// Returns a pause that is up to a quarter longer or shorter, so that gateways which start together
/// do not ask together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + random() / 2.0)
}

const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The time limit of one check.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
