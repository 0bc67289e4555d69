//! Reading a request's body that is too large for memory.

use std::pin::Pin;

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;
use idemptx_core::exchange::BodyEnd;
use idemptx_core::fingerprint::Fingerprinters;

use super::body::{BodyError, CUT_OFF, RequestBody, Whole};
use super::service::broken_end;
use crate::spool::{Refusal, Spool, Spooling};

/// Reads the rest of a body into a file, fingerprinting it on the way, and puts it back; `read` has
/// been already, and all of it is at least as long as `declared`.
pub(super) async fn spooled<B>(
    spool: &Spool,
    read: Whole,
    rest: &mut RequestBody<B>,
    declared: u64,
    mut prints: Fingerprinters,
) -> BodyEnd
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    let mut body = spool.begin();
    let read = match rest.size_hint().lower() {
        left if !spool.takes(left) => Err(Broken::Refused(Refusal::TooLarge)),
        _ => taken(&mut body, &read, rest, declared, &mut prints).await,
    };
    match body.finish().await {
        Ok(body) => rest.put_back_file(body),
        Err(error) => {
            rest.break_off(error.into());
            return BodyEnd::NoRoom;
        }
    }
    match read {
        Ok(trailers) => {
            rest.put_back(Whole::of(Bytes::new(), trailers));
            BodyEnd::complete(prints)
        }
        Err(Broken::Refused(Refusal::TooLarge)) => BodyEnd::TooLarge,
        Err(Broken::Refused(Refusal::NoRoom)) => BodyEnd::NoRoom,
        Err(Broken::Off(error)) => {
            let end = broken_end(&error);
            rest.break_off(error);
            end
        }
    }
}

/// A body that did not come to its end.
enum Broken {
    Refused(Refusal),
    Off(BodyError),
}

async fn taken<B>(
    body: &mut Spooling,
    read: &Whole,
    rest: &mut RequestBody<B>,
    declared: u64,
    prints: &mut Fingerprinters,
) -> Result<HeaderMap, Broken>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    let mut missing = declared;
    for piece in read.pieces() {
        missing = missing.saturating_sub(piece.len() as u64);
        body.push(piece).await.map_err(Broken::Refused)?;
    }
    let mut trailers = HeaderMap::new();
    let mut next = async || {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *rest).poll_frame(cx)).await;
        frame.transpose().map_err(Broken::Off)
    };
    while let Some(frame) = next().await? {
        match frame.into_data() {
            Ok(data) => {
                prints.update(&data);
                missing = missing.saturating_sub(data.len() as u64);
                body.push(&data).await.map_err(Broken::Refused)?;
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    if missing > 0 { Err(Broken::Off(CUT_OFF.into())) } else { Ok(trailers) }
}
