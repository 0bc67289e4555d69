//! Claims: the requests that are granted a record without a result.

use super::Harness;
use super::case::{Case, done, held_by, held_live_by, settled_as};
use super::report::Verdict::Passed;
use super::report::{Outcome, Violation, ensure};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::store::{ClaimRequest, Expected};

impl<H: Harness> Case<'_, H> {
    pub(super) async fn a_claim_of_nothing_is_granted_as_the_first_attempt(&self) -> Outcome {
        let lease = self.granted(&self.id(), &self.request()).await?;
        ensure!(lease.attempt == 1, "the first attempt is {}", lease.attempt);
        Ok(Passed)
    }

    pub(super) async fn a_claim_sent_again_is_granted_unchanged(&self) -> Outcome {
        let (id, request) = (self.id(), self.request());
        let lease = self.granted(&id, &request).await?;
        for _ in 0..3 {
            let again = self.granted(&id, &request).await?;
            ensure!(again == lease, "{again:?} instead of {lease:?}");
        }
        Ok(Passed)
    }

    pub(super) async fn a_claim_sent_again_starts_the_term_again(&self) -> Outcome {
        let (id, request) = (self.id(), self.brief_request());
        self.granted(&id, &request).await?;
        for _ in 0..TRIES_MAX {
            self.lapsed(&id).await?;
            self.granted(&id, &request).await?;
            if !self.seen_held(&id).await?.is_orphan() {
                return Ok(Passed);
            }
        }
        Err(Violation("a repeated claim is still an orphan".to_owned()))
    }

    pub(super) async fn a_claim_sent_again_after_the_lapse_is_granted_unchanged(&self) -> Outcome {
        let (id, request) = (self.id(), self.brief_request());
        let lease = self.granted(&id, &request).await?;
        self.lapsed(&id).await?;
        let again = self.granted(&id, &request).await?;
        ensure!(again == lease, "{again:?} instead of {lease:?}");
        Ok(Passed)
    }

    pub(super) async fn a_claim_sent_again_after_settling_finds_the_result(&self) -> Outcome {
        let (id, request) = (self.id(), self.request());
        let lease = self.granted(&id, &request).await?;
        let result = done("result");
        self.settle(&lease, &result).await?;
        settled_as(&self.settled(&id, &request).await?, &lease, &result)?;
        Ok(Passed)
    }

    pub(super) async fn a_live_claim_is_held_against_another_token(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        held_live_by(&self.held(&id, &self.request()).await?, &lease)?;
        // The same request is refused as well: only the token counts.
        let same = ClaimRequest { fingerprint: lease.fingerprint, ..self.request() };
        held_live_by(&self.held(&id, &same).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn a_refused_claim_changes_nothing(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        let other = ClaimRequest { term: self.tick(), retain: self.tick(), ..self.request() };
        self.held(&id, &other).await?;
        self.sleep(3).await;
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        self.settle(&lease, &done("result")).await?;
        Ok(Passed)
    }

    pub(super) async fn a_lapsed_claim_is_an_orphan_and_not_given_away_unasked(&self) -> Outcome {
        let id = self.id();
        let lease = self.orphan(&id).await?;
        let holder = self.held(&id, &self.request()).await?;
        held_by(&holder, &lease)?;
        ensure!(holder.is_orphan(), "{:?} are left of a lapsed lease", holder.remaining);
        Ok(Passed)
    }

    pub(super) async fn claims_of_other_ids_are_independent(&self) -> Outcome {
        let (one, two, three) = (self.id(), self.id(), self.id());
        let first = self.granted(&one, &self.request()).await?;
        let second = self.granted(&two, &self.request()).await?;
        let third = self.granted(&three, &self.request()).await?;
        let result = done("second");
        self.settle(&second, &result).await?;
        self.release(&third).await?;
        held_live_by(&self.seen_held(&one).await?, &first)?;
        settled_as(&self.seen_settled(&two).await?, &second, &result)?;
        self.absent(&three).await?;
        Ok(Passed)
    }

    pub(super) async fn ids_that_differ_in_one_bit_are_two(&self) -> Outcome {
        let id = self.id();
        let lease = self.granted(&id, &self.request()).await?;
        for position in 0..RecordId::BYTES {
            let mut bytes = *id.as_bytes();
            flip(&mut bytes, position);
            let near = RecordId::from_bytes(bytes);
            self.absent(&near).await?;
            self.granted(&near, &self.request()).await?;
        }
        held_live_by(&self.seen_held(&id).await?, &lease)?;
        Ok(Passed)
    }

    pub(super) async fn tokens_that_differ_in_one_bit_are_two(&self) -> Outcome {
        let (id, request) = (self.id(), self.request());
        let lease = self.granted(&id, &request).await?;
        for position in 0..Token::BYTES {
            let mut bytes = *request.token.as_bytes();
            flip(&mut bytes, position);
            let near = ClaimRequest { token: Token::from_bytes(bytes), ..request.clone() };
            held_live_by(&self.held(&id, &near).await?, &lease)?;
        }
        Ok(Passed)
    }

    pub(super) async fn ids_and_tokens_are_any_bytes(&self) -> Outcome {
        for (odd, token) in ODD.iter().zip(ODD.iter().rev()) {
            let id = marked(self.id(), odd);
            let request = ClaimRequest { token: Token::from_bytes(*token), ..self.request() };
            let lease = self.granted(&id, &request).await?;
            held_live_by(&self.held(&id, &self.request()).await?, &lease)?;
            self.renew(&lease).await?;
            let result = done(odd);
            self.settle(&lease, &result).await?;
            settled_as(&self.seen_settled(&id).await?, &lease, &result)?;
            let expected = self
                .granted(&id, &self.request().expecting(Expected::Settled(request.token)))
                .await?;
            self.release(&expected).await?;
        }
        Ok(Passed)
    }

    pub(super) async fn fingerprints_are_any_bytes(&self) -> Outcome {
        for (config, odd) in [0, 1, u32::MAX, 0x8000_0000].into_iter().zip(ODD) {
            let id = self.id();
            let mut digest = [0; 32];
            for (to, from) in digest.iter_mut().zip(odd.iter().rev().chain(odd)) {
                *to = *from;
            }
            let fingerprint = Fingerprint { config, digest, binding: *odd, operation: *odd };
            let lease: Lease =
                self.granted(&id, &ClaimRequest { fingerprint, ..self.request() }).await?;
            held_live_by(&self.held(&id, &self.request()).await?, &lease)?;
            let result = done("result");
            self.settle(&lease, &result).await?;
            settled_as(&self.settled(&id, &self.request()).await?, &lease, &result)?;
        }
        Ok(Passed)
    }
}

fn flip(bytes: &mut [u8], position: usize) {
    if let Some(byte) = bytes.get_mut(position) {
        *byte ^= 1 << (position % 8);
    }
}

/// An id that is new by its first half and odd in its second.
fn marked(id: RecordId, odd: &[u8; 16]) -> RecordId {
    let mut bytes = *id.as_bytes();
    for (to, from) in bytes.iter_mut().skip(odd.len()).zip(odd) {
        *to = *from;
    }
    RecordId::from_bytes(bytes)
}

/// The tries for cases that a stall of the machine can spoil.
const TRIES_MAX: u32 = 20;
/// Bytes on which a text protocol, a C string or a script might fail.
const ODD: &[[u8; 16]] = &[[0; 16], [0xFF; 16], *b"\r\n\r\n\0\"'\\{}%s:*$-", *b"nil false -1 1e9"];
