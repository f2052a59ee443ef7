//! What the host says: calls and their bodies, cancels, credit.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use protocol::{BindError, Binding, Body, BodyError, BodyStream, Call, CallError, Reply};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Answer, CallStage, Entry, Shared, Stage, State,
    reply::{Delivered, ReplyBody},
};
use crate::{
    frame::{CancelReason, FromHost, INITIAL_WINDOW, MAX_BODY_PART, Message, VERSION},
    socket::Writing,
};

/// New frames wait while this much has not been written yet.
const MAX_UNWRITTEN: usize = 1 << 20;

impl Shared {
    pub(super) async fn write(self: Arc<Self>, mut socket: Writing) {
        let mut writing = BytesMut::new();
        loop {
            let is_closed = {
                let mut state = self.lock();
                std::mem::swap(&mut state.out, &mut writing);
                state.is_closed
            };
            if is_closed {
                return;
            }
            if writing.is_empty() {
                self.unwritten.notified().await;
                continue;
            }
            if let Err(error) = socket.write_all(&writing).await {
                // A worker that has ended may have said more than has been read yet. Its end is
                // noticed behind that; one that only does not listen any more has no such end.
                let _ = timeout(self.patience, self.closed()).await;
                return self.fail(&format!("could not write to the worker: {error}"));
            }
            if writing.len() >= MAX_UNWRITTEN {
                self.changed.notify_waiters();
            }
            writing.clear();
        }
    }

    pub(super) fn push_to_worker(&self, message: &FromHost) {
        let mut state = self.lock();
        if !state.is_closed && message.encode(0, &mut state.out).is_ok() {
            drop(state);
            self.unwritten.notify_one();
        }
    }

    pub(super) fn begin_bind(
        &self,
        binding: &Binding,
    ) -> Result<oneshot::Receiver<Result<(), BindError>>, BindError> {
        let lost = |why: String| BindError::Lost { why };
        let mut state = self.lock();
        let stage = self.stage.borrow().clone();
        match stage {
            Stage::Unbound => {}
            Stage::Closed(why) => return Err(lost(why.to_string())),
            Stage::Connecting => return Err(lost("it has not said hello".into())),
            Stage::Binding | Stage::Bound => return Err(lost("it is bound already".into())),
        }
        let message = FromHost::Bind {
            version: VERSION,
            code_directory: binding.code_directory.to_string_lossy().into_owned(),
            entrypoint: binding.entrypoint.clone(),
            environment: binding.environment.clone(),
        };
        message.encode(0, &mut state.out).map_err(|error| BindError::Load {
            message: format!("the function's environment cannot be given to it: {error}"),
        })?;
        let (outcome, waiting) = oneshot::channel();
        state.binding = Some(outcome);
        drop(state);
        self.stage.send_replace(Stage::Binding);
        self.unwritten.notify_one();
        Ok(waiting)
    }

    pub(super) async fn exchange(
        self: &Arc<Self>,
        call: Call,
        delivered: &mut Option<Delivered>,
    ) -> Result<Reply, CallError> {
        let deadline = call.deadline;
        let (id, answer) = self.deliver(call).await?;
        *delivered = Some(Delivered { shared: self.clone(), id, deadline, is_over: false });
        let answer =
            answer.await.unwrap_or_else(|_| Err(CallError::Lost { why: self.why_closed() }));
        let mut delivered = delivered.take().expect("set above");
        delivered.is_over = !matches!(&answer, Ok(Answer { parts: Some(_), .. }));
        let Answer { status, headers, first, parts } = answer?;
        let taken = u32::try_from(first.len()).unwrap_or(0);
        let rest = parts.map(|parts| ReplyBody::boxed(parts, delivered, taken));
        Ok(Reply { status, headers, body: Body { first, rest } })
    }

    /// Tells the worker of a call as soon as it takes one.
    async fn deliver(
        self: &Arc<Self>,
        call: Call,
    ) -> Result<(u32, oneshot::Receiver<Result<Answer, CallError>>), CallError> {
        let Call { head, body: Body { mut first, rest }, deadline, log } = call;
        let inline = first.split_to(first.len().min(MAX_BODY_PART));
        let message = FromHost::Call {
            timeout_ms: deadline.map_or(0, milliseconds_until),
            logging: log.is_some(),
            more: !first.is_empty() || rest.is_some(),
            head,
            body: inline,
        };
        let (waiting, reply) = oneshot::channel();
        let mut entry = Some(Entry {
            log,
            stage: CallStage::Waiting(waiting),
            send_credit: INITIAL_WINDOW,
            receive_credit: INITIAL_WINDOW,
            is_suspect: false,
        });
        let id = loop {
            let changed = self.changed.notified();
            if let Some(id) = self.try_deliver(&message, &mut entry)? {
                break id;
            }
            changed.await;
        };
        self.unwritten.notify_one();
        if let FromHost::Call { more: true, body: inline, .. } = &message {
            let sent = u32::try_from(inline.len()).unwrap_or(INITIAL_WINDOW);
            self.spend_credit(id, sent);
            self.runtime.spawn(Arc::clone(self).send_body(id, first, rest));
        }
        Ok((id, reply))
    }

    /// Delivers a call unless it has to wait.
    fn try_deliver(
        &self,
        message: &FromHost,
        entry: &mut Option<Entry>,
    ) -> Result<Option<u32>, CallError> {
        let mut state = self.lock();
        if state.is_closed {
            drop(state);
            return Err(CallError::Unavailable { why: self.why_closed() });
        }
        if state.binding.is_some() || !matches!(*self.stage.borrow(), Stage::Bound) {
            return Err(CallError::Unavailable { why: "the instance is not bound".into() });
        }
        let is_full = state.max_calls != 0 && state.calls.len() >= state.max_calls;
        if state.suspects > 0 || is_full || state.out.len() >= MAX_UNWRITTEN {
            return Ok(None);
        }
        let id = state.next_id();
        message.encode(id, &mut state.out).map_err(|error| CallError::Failed {
            message: format!("the call cannot be delivered: {error}"),
        })?;
        state.calls.insert(id, entry.take().expect("a call is delivered once"));
        Ok(Some(id))
    }

    fn spend_credit(&self, id: u32, bytes: u32) {
        if let Some(entry) = self.lock().calls.get_mut(&id) {
            entry.send_credit = entry.send_credit.saturating_sub(bytes);
        }
    }

    /// Sends the rest of a request's body as the worker takes it, until the call is over.
    async fn send_body(self: Arc<Self>, id: u32, mut part: Bytes, mut rest: Option<BodyStream>) {
        loop {
            while !part.is_empty() {
                let changed = self.changed.notified();
                match self.try_send_part(id, &mut part) {
                    Some(true) => {}
                    Some(false) => changed.await,
                    None => return,
                }
            }
            part = match rest.as_mut() {
                None => break,
                Some(stream) => match next(stream).await {
                    None => break,
                    Some(Ok(part)) => part,
                    Some(Err(error)) => {
                        let why = format!("the request's body broke off: {error}");
                        return self.cancel(id, CancelReason::ClientGone, None, Some(why));
                    }
                },
            };
        }
        let mut state = self.lock();
        if state.calls.contains_key(&id) && FromHost::End.encode(id, &mut state.out).is_ok() {
            drop(state);
            self.unwritten.notify_one();
        }
    }

    /// Sends what credit and buffer allow. None: the call is over.
    fn try_send_part(&self, id: u32, part: &mut Bytes) -> Option<bool> {
        let mut state = self.lock();
        let unwritten = state.out.len();
        let entry = state.calls.get_mut(&id)?;
        if entry.send_credit == 0 || unwritten >= MAX_UNWRITTEN {
            return Some(false);
        }
        let credit = usize::try_from(entry.send_credit).unwrap_or(usize::MAX);
        let piece = part.split_to(part.len().min(MAX_BODY_PART).min(credit));
        entry.send_credit -= u32::try_from(piece.len()).unwrap_or(0);
        FromHost::Body(piece).encode(id, &mut state.out).ok()?;
        drop(state);
        self.unwritten.notify_one();
        Some(true)
    }

    /// Nobody waits for this call any more: the worker is to give it up.
    pub(super) fn cancel(
        self: &Arc<Self>,
        id: u32,
        reason: CancelReason,
        deadline: Option<Instant>,
        why: Option<String>,
    ) {
        let mut state = self.lock();
        let State { calls, out, suspects, .. } = &mut *state;
        let Some(entry) = calls.get_mut(&id) else { return };
        let stage = std::mem::replace(&mut entry.stage, CallStage::Abandoned);
        if let (CallStage::Waiting(waiting), Some(why)) = (stage, why) {
            let _ = waiting.send(Err(CallError::Lost { why }));
        }
        entry.log = None;
        if FromHost::Cancel(reason).encode(id, out).is_err() {
            return;
        }
        let give_up = match reason {
            CancelReason::TimedOut => {
                entry.is_suspect = true;
                *suspects += 1;
                Some(Instant::now() + self.patience)
            }
            // A function may be busy for long after its client has gone, if it has the time.
            CancelReason::ClientGone | CancelReason::ShuttingDown => {
                deadline.map(|deadline| deadline + self.patience)
            }
        };
        drop(state);
        self.unwritten.notify_one();
        if let Some(at) = give_up {
            self.runtime.spawn(Arc::clone(self).give_up_at(id, at));
        }
    }

    async fn give_up_at(self: Arc<Self>, id: u32, at: Instant) {
        let mut stage = self.stage.subscribe();
        let over = async {
            loop {
                let changed = self.changed.notified();
                if !self.lock().calls.contains_key(&id) {
                    return;
                }
                tokio::select! {
                    () = changed => {}
                    _ = stage.wait_for(|stage| matches!(stage, Stage::Closed(_))) => return,
                }
            }
        };
        if timeout_at(at, over).await.is_err() {
            self.fail(
                "The worker was replaced: a call in it did not stop after its timeout, \
                 so nothing else in it could go on.",
            );
        }
    }

    pub(super) fn grant(&self, id: u32, bytes: u32) {
        let mut state = self.lock();
        let State { calls, out, .. } = &mut *state;
        let Some(entry) = calls.get_mut(&id) else { return };
        entry.receive_credit += bytes;
        if FromHost::Window(bytes).encode(id, out).is_ok() {
            drop(state);
            self.unwritten.notify_one();
        }
    }
}

async fn next(stream: &mut BodyStream) -> Option<Result<Bytes, BodyError>> {
    std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
}

/// For the worker's information only: the host keeps the deadline.
fn milliseconds_until(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis();
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}
