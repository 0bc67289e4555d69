//! Refusals: steps that are certainly not done, and records that this release cannot read.

use bytes::Bytes;

use super::Harness;
use super::case::{Case, done, held_live_by, settled_as};
use super::report::Verdict::{Passed, Skipped};
use super::report::{Outcome, Violation, ensure};
use crate::record::Record;
use crate::store::{ErrorKind, Store};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_certain_refusal_changes_nothing(&self) -> Outcome {
        let (kept, new) = (self.id(), self.id());
        let lease = self.granted(&kept, &self.request()).await?;
        if !self.harness().refuse(true).await {
            return Ok(Skipped("the harness cannot make the store refuse"));
        }
        let claim = self.store().claim(&new, &self.request()).await;
        let settle = self.store().settle(&lease, &done("refused")).await;
        let is_lifted = self.harness().refuse(false).await;
        ensure!(is_lifted, "the harness cannot end the refusal");
        match claim {
            Ok(claim) => return Err(Violation(format!("the claim came to {claim:?}"))),
            Err(error) => ensure!(
                matches!(error.kind(), ErrorKind::Refused | ErrorKind::Full),
                "the refusal of a claim is not certain: {error:?}"
            ),
        }
        // What concerns a claim already granted may get through.
        match settle {
            Ok(()) => {
                settled_as(&self.seen_settled(&kept).await?, &lease, &done("refused"))?;
            }
            Err(error) => {
                ensure!(error.kind().is_transient(), "the settlement failed with {error:?}");
                held_live_by(&self.seen_held(&kept).await?, &lease)?;
                self.settle(&lease, &done("later")).await?;
            }
        }
        self.absent(&new).await?;
        self.granted(&new, &self.request()).await?;
        Ok(Passed)
    }

    /// An older process beside a newer one must neither execute nor say that the record is damaged.
    pub(super) async fn a_record_of_a_later_format_is_refused_and_left_as_it_is(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let later = Bytes::from(later_format(&Record::running(&lease)));
        if !self.harness().overwrite(&id, later).await {
            return Ok(Skipped("the harness cannot overwrite records"));
        }
        for kind in [
            self.store().claim(&id, &self.request()).await.map(drop).map_err(|error| error.kind()),
            self.store().lookup(&id).await.map(drop).map_err(|error| error.kind()),
        ] {
            ensure!(kind == Err(ErrorKind::Full), "a record of a later format is {kind:?}");
        }
        let now = Bytes::from(Record::running(&lease).encode());
        ensure!(self.harness().overwrite(&id, now).await, "the harness cannot restore the record");
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        self.settle(&lease, &done("result")).await?;
        Ok(Passed)
    }
}

/// Encodes a record in the format after this release's.
fn later_format(record: &Record) -> Vec<u8> {
    let mut bytes = record.encode();
    if let Some(version) = bytes.first_mut() {
        *version += 1;
    }
    bytes
}
