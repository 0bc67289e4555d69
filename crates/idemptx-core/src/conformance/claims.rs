//! Who is granted a record that nobody has settled.

use super::Harness;
use super::report::Verdict::Passed;
use super::report::{Broken, Outcome, ensure};
use super::trial::{Trial, done, held_by, held_live_by, settled_as};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::{Lease, Token};
use crate::store::{ClaimRequest, Expected};

pub(super) async fn a_claim_of_nothing_is_granted_as_the_first_attempt<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let lease = trial.granted(&trial.id(), &trial.claim_request()).await?;
    ensure!(lease.attempt == 1, "the first attempt is {}", lease.attempt);
    Ok(Passed)
}

pub(super) async fn a_claim_sent_again_is_granted_unchanged<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.claim_request());
    let lease = trial.granted(&id, &claim_request).await?;
    for _ in 0..3 {
        let again = trial.granted(&id, &claim_request).await?;
        ensure!(again == lease, "{again:?} instead of {lease:?}");
    }
    Ok(Passed)
}

pub(super) async fn a_claim_sent_again_starts_the_term_anew<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.brief_claim_request());
    trial.granted(&id, &claim_request).await?;
    for _ in 0..TRIES_MAX {
        trial.lapsed(&id).await?;
        trial.granted(&id, &claim_request).await?;
        if !trial.seen_held(&id).await?.is_orphan() {
            return Ok(Passed);
        }
    }
    Err(Broken("a repeated claim is still an orphan".to_owned()))
}

pub(super) async fn a_claim_sent_again_after_the_lapse_is_granted_unchanged<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.brief_claim_request());
    let lease = trial.granted(&id, &claim_request).await?;
    trial.lapsed(&id).await?;
    let again = trial.granted(&id, &claim_request).await?;
    ensure!(again == lease, "{again:?} instead of {lease:?}");
    Ok(Passed)
}

pub(super) async fn a_claim_sent_again_after_settling_finds_the_result<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.claim_request());
    let lease = trial.granted(&id, &claim_request).await?;
    let result = done("result");
    trial.settle(&lease, &result).await?;
    settled_as(&trial.settled(&id, &claim_request).await?, &lease, &result)?;
    Ok(Passed)
}

pub(super) async fn a_live_claim_is_held_against_another_token<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    held_live_by(&trial.held(&id, &trial.claim_request()).await?, &lease)?;
    // The same request is refused as well: only the token counts.
    let same = ClaimRequest { fingerprint: lease.fingerprint, ..trial.claim_request() };
    held_live_by(&trial.held(&id, &same).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn a_refused_claim_changes_nothing<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    let other = ClaimRequest { term: trial.tick(), retain: trial.tick(), ..trial.claim_request() };
    trial.held(&id, &other).await?;
    trial.sleep(3).await;
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    trial.settle(&lease, &done("result")).await?;
    Ok(Passed)
}

pub(super) async fn a_lapsed_claim_is_an_orphan_and_not_given_away_unasked<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.orphan(&id).await?;
    let holder = trial.held(&id, &trial.claim_request()).await?;
    held_by(&holder, &lease)?;
    ensure!(holder.is_orphan(), "{:?} are left of a lapsed lease", holder.remaining);
    Ok(Passed)
}

pub(super) async fn claims_of_other_ids_are_independent<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (one, two, three) = (trial.id(), trial.id(), trial.id());
    let first = trial.granted(&one, &trial.claim_request()).await?;
    let second = trial.granted(&two, &trial.claim_request()).await?;
    let third = trial.granted(&three, &trial.claim_request()).await?;
    let result = done("second");
    trial.settle(&second, &result).await?;
    trial.release(&third).await?;
    held_live_by(&trial.seen_held(&one).await?, &first)?;
    settled_as(&trial.seen_settled(&two).await?, &second, &result)?;
    trial.absent(&three).await?;
    Ok(Passed)
}

pub(super) async fn ids_that_differ_in_one_bit_are_two<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let id = trial.id();
    let lease = trial.granted(&id, &trial.claim_request()).await?;
    for position in 0..RecordId::BYTES {
        let mut bytes = *id.as_bytes();
        flip(&mut bytes, position);
        let near = RecordId::from_bytes(bytes);
        trial.absent(&near).await?;
        trial.granted(&near, &trial.claim_request()).await?;
    }
    held_live_by(&trial.seen_held(&id).await?, &lease)?;
    Ok(Passed)
}

pub(super) async fn tokens_that_differ_in_one_bit_are_two<H: Harness>(
    trial: &Trial<'_, H>,
) -> Outcome {
    let (id, claim_request) = (trial.id(), trial.claim_request());
    let lease = trial.granted(&id, &claim_request).await?;
    for position in 0..Token::BYTES {
        let mut bytes = *claim_request.token.as_bytes();
        flip(&mut bytes, position);
        let near = ClaimRequest { token: Token::from_bytes(bytes), ..claim_request.clone() };
        held_live_by(&trial.held(&id, &near).await?, &lease)?;
    }
    Ok(Passed)
}

pub(super) async fn ids_and_tokens_are_any_bytes<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    for (odd, token) in ODD.iter().zip(ODD.iter().rev()) {
        let id = marked(trial.id(), odd);
        let claim_request =
            ClaimRequest { token: Token::from_bytes(*token), ..trial.claim_request() };
        let lease = trial.granted(&id, &claim_request).await?;
        held_live_by(&trial.held(&id, &trial.claim_request()).await?, &lease)?;
        trial.renew(&lease).await?;
        let result = done(odd);
        trial.settle(&lease, &result).await?;
        settled_as(&trial.seen_settled(&id).await?, &lease, &result)?;
        let expected = trial
            .granted(&id, &trial.claim_request().expecting(Expected::Settled(claim_request.token)))
            .await?;
        trial.release(&expected).await?;
    }
    Ok(Passed)
}

pub(super) async fn fingerprints_are_any_bytes<H: Harness>(trial: &Trial<'_, H>) -> Outcome {
    for (config, odd) in [0, 1, u32::MAX, 0x8000_0000].into_iter().zip(ODD) {
        let id = trial.id();
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(odd.iter().rev().chain(odd)) {
            *to = *from;
        }
        let fingerprint = Fingerprint { config, digest, binding: *odd, operation: *odd };
        let lease: Lease =
            trial.granted(&id, &ClaimRequest { fingerprint, ..trial.claim_request() }).await?;
        held_live_by(&trial.held(&id, &trial.claim_request()).await?, &lease)?;
        let result = done("result");
        trial.settle(&lease, &result).await?;
        settled_as(&trial.settled(&id, &trial.claim_request()).await?, &lease, &result)?;
    }
    Ok(Passed)
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

/// For what a stall of the machine can spoil.
const TRIES_MAX: u32 = 20;
/// What a text protocol, a C string or a script might trip over.
const ODD: &[[u8; 16]] = &[[0; 16], [0xFF; 16], *b"\r\n\r\n\0\"'\\{}%s:*$-", *b"nil false -1 1e9"];
