//! A call: Envoy's messages, and the answers that it waits for.

use std::sync::{Arc, Mutex as SyncMutex, PoisonError};

use tokio::sync::{Mutex, mpsc};

use super::grpc::Reply;
use super::messages::{
    CommonResponse, HeaderMutation, ImmediateResponse, PhaseResponse, ProcessingRequest,
    ProcessingResponse, Received, Sent, TrailersResponse,
};

/// A call, shared by those that speak in it one after the other.
#[derive(Clone, Debug)]
pub(super) struct Dialogue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    messages: Mutex<mpsc::Receiver<ProcessingRequest>>,
    replies: mpsc::Sender<Reply>,
    phase: SyncMutex<Phase>,
}

/// The message that Envoy waits to have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No phase: an answer would be out of turn.
    Idle,
    RequestHeaders,
    RequestBody,
    ResponseHeaders,
    ResponseBody,
}

impl Phase {
    /// Returns whether there is a response already, of the service or of Envoy.
    pub(super) const fn is_response(self) -> bool {
        matches!(self, Self::ResponseHeaders | Self::ResponseBody)
    }
}

/// The call is over, so that an answer has no effect.
#[derive(Debug)]
pub(super) struct Gone;

impl Dialogue {
    pub(super) fn new(
        messages: mpsc::Receiver<ProcessingRequest>,
        replies: mpsc::Sender<Reply>,
    ) -> Self {
        let (messages, phase) = (Mutex::new(messages), SyncMutex::new(Phase::Idle));
        Self(Arc::new(Shared { messages, replies, phase }))
    }

    /// Returns the message that has to be answered next, or `None` if Envoy is gone.
    ///
    /// Trailers are answered here: nothing depends on them.
    pub(super) async fn next(&self) -> Option<ProcessingRequest> {
        loop {
            let message = self.0.messages.lock().await.recv().await?;
            let phase = match &message.request {
                Some(Received::RequestHeaders(_)) => Phase::RequestHeaders,
                Some(Received::RequestBody(_)) => Phase::RequestBody,
                Some(Received::ResponseHeaders(_)) => Phase::ResponseHeaders,
                Some(Received::ResponseBody(_)) => Phase::ResponseBody,
                Some(Received::RequestTrailers(_)) => {
                    self.send(Sent::RequestTrailers(TrailersResponse {})).await.ok()?;
                    continue;
                }
                Some(Received::ResponseTrailers(_)) => {
                    self.send(Sent::ResponseTrailers(TrailersResponse {})).await.ok()?;
                    continue;
                }
                None => Phase::Idle,
            };
            *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
            return Some(message);
        }
    }

    /// Returns the phase that waits for its answer.
    pub(super) fn phase(&self) -> Phase {
        *self.0.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets Envoy go on, with these changes of the head that it holds.
    ///
    /// # Errors
    ///
    /// [`Gone`] if Envoy has certainly not gone on.
    pub(super) async fn proceed(&self, mutation: HeaderMutation) -> Result<(), Gone> {
        let header_mutation = (mutation != HeaderMutation::default()).then_some(mutation);
        let answer = PhaseResponse { response: Some(CommonResponse { header_mutation }) };
        let sent = match self.take_phase() {
            Phase::Idle => return Err(Gone),
            Phase::RequestHeaders => Sent::RequestHeaders(answer),
            Phase::RequestBody => Sent::RequestBody(answer),
            Phase::ResponseHeaders => Sent::ResponseHeaders(answer),
            Phase::ResponseBody => Sent::ResponseBody(answer),
        };
        self.send(sent).await
    }

    /// Makes Envoy answer by itself.
    ///
    /// # Errors
    ///
    /// [`Gone`] if it has certainly not.
    pub(super) async fn answer(&self, response: ImmediateResponse) -> Result<(), Gone> {
        match self.take_phase() {
            Phase::Idle => Err(Gone),
            _ => self.send(Sent::ImmediateResponse(response)).await,
        }
    }

    fn take_phase(&self) -> Phase {
        let mut phase = self.0.phase.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *phase, Phase::Idle)
    }

    async fn send(&self, response: Sent) -> Result<(), Gone> {
        // Messages end when Envoy ends the call, after which it hears nothing.
        if self.0.messages.lock().await.is_closed() {
            return Err(Gone);
        }
        let response = ProcessingResponse { response: Some(response) };
        self.0.replies.send(Reply::message(&response)).await.map_err(|_| Gone)
    }
}
