//! A call that somebody waits for, and the rest of its reply's body.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use protocol::{BodyError, BodyStream};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Parts, Shared};
use crate::frame::{CancelReason, INITIAL_WINDOW};

/// Credit is granted in steps of this, to not answer each small part with a frame.
const GRANT_STEP: u32 = INITIAL_WINDOW / 4;

/// A delivered call that somebody waits for. Dropping it cancels the call, unless it is over.
pub(super) struct Delivered {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u32,
    pub(super) deadline: Option<Instant>,
    pub(super) is_over: bool,
}

impl Delivered {
    pub(super) fn cancel(&mut self, reason: CancelReason) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.shared.cancel(self.id, reason, self.deadline, None);
        }
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        self.cancel(CancelReason::ClientGone);
    }
}

/// The rest of a reply's body: grants credit as it is read, ends at the call's deadline.
pub(super) struct ReplyBody {
    parts: Parts,
    delivered: Delivered,
    /// Read, and not yet granted again.
    taken: u32,
    expired: Option<Pin<Box<Sleep>>>,
}

impl ReplyBody {
    pub(super) fn boxed(parts: Parts, delivered: Delivered, taken: u32) -> BodyStream {
        let expired = delivered.deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Box::pin(Self { parts, delivered, taken, expired })
    }

    fn take(&mut self, part: &Bytes) {
        self.taken += u32::try_from(part.len()).unwrap_or(0);
        if self.taken >= GRANT_STEP {
            self.delivered.shared.grant(self.delivered.id, std::mem::take(&mut self.taken));
        }
    }
}

impl Stream for ReplyBody {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.delivered.is_over {
            return Poll::Ready(None);
        }
        match self.parts.poll_recv(cx) {
            Poll::Ready(Some(Ok(part))) => {
                self.take(&part);
                Poll::Ready(Some(Ok(part)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.delivered.is_over = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.delivered.is_over = true;
                Poll::Ready(None)
            }
            Poll::Pending => match self.expired.as_mut().map(|expired| expired.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => {
                    self.delivered.cancel(CancelReason::TimedOut);
                    Poll::Ready(Some(Err(BodyError::TimedOut)))
                }
                Some(Poll::Pending) | None => Poll::Pending,
            },
        }
    }
}
