//! The host's end of the conversation with one worker.
//!
//! ```text
//!            call()                reader task               writer task
//!  register ──► entry in `calls` ◄── head, body, end, failed
//!  encode ────► `out` ──────────────────────────────────────► socket
//! ```
//!
//! All state is in one short lock. A call's entry lives from its `call` frame to the frame that
//! ends it, also when nobody waits for it any more: only then is it known that nothing of it runs.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use protocol::{
    BindError, Binding, Body, BodyError, BodyStream, Call, CallError, CallLog, ConnectError,
    Connection, Reply,
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
    time::{Instant, Sleep, sleep_until, timeout_at},
};
use tracing::debug;

use crate::{
    frame::{
        CallFailure, CancelReason, Decoder, Frame, FromHost, FromWorker, Hello, INITIAL_WINDOW,
        MAX_BODY_PART, Message, VERSION,
    },
    socket::{self, Reading, Writing},
};

/// New frames wait while this much has not been written yet.
const MAX_UNWRITTEN: usize = 1 << 20;
/// How much is asked from the socket at a time.
const READ_SIZE: usize = 64 << 10;
/// Credit is granted in steps of this, to not answer each small part with a frame.
const GRANT_STEP: u32 = INITIAL_WINDOW / 4;

/// One conversation. Dropping it ends the conversation.
pub(crate) struct Channel {
    shared: Arc<Shared>,
}

/// What the two tasks and all calls share.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Something is in `out`.
    unwritten: Notify,
    /// `out` was taken, or a call ended, or a suspect was cleared: who waits may look again.
    changed: Notify,
    stage: watch::Sender<Stage>,
    patience: Duration,
    instance_log: Arc<dyn CallLog>,
    runtime: Handle,
}

/// How far the conversation is.
#[derive(Clone, Debug)]
enum Stage {
    Connecting,
    Unbound,
    Binding,
    Bound,
    Closed(Arc<str>),
}

#[derive(Default)]
struct State {
    out: BytesMut,
    calls: HashMap<u32, Entry>,
    last_id: u32,
    /// Calls whose deadline has passed and which the worker has not given up yet. While there are
    /// any, nobody knows whether the worker still listens, so no new call is delivered.
    suspects: usize,
    max_calls: usize,
    binding: Option<oneshot::Sender<Result<(), BindError>>>,
    tasks: Vec<AbortHandle>,
    is_closed: bool,
}

/// A call that the worker has been told of and that has not ended.
struct Entry {
    log: Option<Arc<dyn CallLog>>,
    stage: CallStage,
    /// How much more of the request's body may be sent.
    send_credit: u32,
    /// How much more of the reply's body the worker may send.
    receive_credit: u32,
    is_suspect: bool,
}

enum CallStage {
    /// Somebody waits for the head.
    Waiting(oneshot::Sender<Result<Answer, CallError>>),
    /// Somebody reads the body. What is queued is bounded by the credit.
    Streaming(mpsc::UnboundedSender<Result<Bytes, BodyError>>),
    /// Nobody is interested any more.
    Abandoned,
}

/// The head of a reply, and where the rest of its body comes from.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    first: Bytes,
    parts: Option<Parts>,
}

type Parts = mpsc::UnboundedReceiver<Result<Bytes, BodyError>>;

impl Channel {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.shared.fail("the conversation was ended");
    }
}

#[async_trait]
impl Connection for Channel {
    async fn ready(&self) -> Result<(), ConnectError> {
        self.shared.greeted().await;
        match &*self.shared.stage.borrow() {
            Stage::Closed(why) => Err(ConnectError { why: why.to_string() }),
            _ => Ok(()),
        }
    }

    async fn bind(&self, binding: &Binding) -> Result<(), BindError> {
        let outcome = self.shared.begin_bind(binding)?;
        outcome.await.unwrap_or_else(|_| Err(BindError::Lost { why: self.shared.why_closed() }))
    }

    async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let Some(deadline) = call.deadline else {
            return self.shared.exchange(call, &mut None).await;
        };
        let mut delivered = None;
        match timeout_at(deadline, self.shared.exchange(call, &mut delivered)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                if let Some(mut delivered) = delivered {
                    delivered.cancel(CancelReason::TimedOut);
                }
                Err(CallError::TimedOut)
            }
        }
    }

    async fn drain(&self) {
        self.shared.push_to_worker(&FromHost::Drain);
        self.closed().await;
    }

    async fn closed(&self) -> String {
        let mut stage = self.shared.stage.subscribe();
        let closed = stage.wait_for(|stage| matches!(stage, Stage::Closed(_))).await;
        match closed.as_deref() {
            Ok(Stage::Closed(why)) => why.to_string(),
            _ => "the conversation was ended".into(),
        }
    }
}

impl Shared {
    pub(crate) fn new(patience: Duration, instance_log: Arc<dyn CallLog>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            unwritten: Notify::new(),
            changed: Notify::new(),
            stage: watch::Sender::new(Stage::Connecting),
            patience,
            instance_log,
            runtime: Handle::current(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    /// Has a task ended when the conversation ends.
    pub(crate) fn on_close(&self, task: AbortHandle) {
        let mut state = self.lock();
        if state.is_closed { task.abort() } else { state.tasks.push(task) }
    }

    /// Starts to read and write.
    pub(crate) fn attend(self: Arc<Self>, stream: UnixStream) {
        let (reading, writing) = match socket::split(stream) {
            Ok(halves) => halves,
            Err(error) => return self.fail(&format!("could not set up its socket: {error}")),
        };
        let reader = tokio::spawn(Arc::clone(&self).read(reading));
        self.on_close(reader.abort_handle());
        tokio::spawn(self.write(writing));
    }

    /// Returns once the worker has said hello, or will not any more.
    pub(crate) async fn greeted(&self) {
        let mut stage = self.stage.subscribe();
        // The sender lives in `self`, so this cannot fail.
        let _ = stage.wait_for(|stage| !matches!(stage, Stage::Connecting)).await;
    }

    fn why_closed(&self) -> String {
        match &*self.stage.borrow() {
            Stage::Closed(why) => why.to_string(),
            _ => "the conversation was ended".into(),
        }
    }

    /// Ends the conversation for everybody in it.
    pub(crate) fn fail(&self, why: &str) {
        let (calls, tasks, binding) = {
            let mut state = self.lock();
            if std::mem::replace(&mut state.is_closed, true) {
                return;
            }
            state.suspects = 0;
            (
                std::mem::take(&mut state.calls),
                std::mem::take(&mut state.tasks),
                state.binding.take(),
            )
        };
        debug!(why, calls = calls.len(), "conversation with a worker ended");
        self.stage.send_replace(Stage::Closed(why.into()));
        if let Some(binding) = binding {
            let _ = binding.send(Err(BindError::Lost { why: why.into() }));
        }
        for entry in calls.into_values() {
            match entry.stage {
                CallStage::Waiting(waiting) => {
                    let _ = waiting.send(Err(CallError::Lost { why: why.into() }));
                }
                CallStage::Streaming(body) => {
                    let _ = body.send(Err(BodyError(why.into())));
                }
                CallStage::Abandoned => {}
            }
        }
        self.changed.notify_waiters();
        self.unwritten.notify_one();
        for task in tasks {
            task.abort();
        }
    }
}

// Sending.
impl Shared {
    async fn write(self: Arc<Self>, mut socket: Writing) {
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
                return self.fail(&format!("could not write to the worker: {error}"));
            }
            if writing.len() >= MAX_UNWRITTEN {
                self.changed.notify_waiters();
            }
            writing.clear();
        }
    }

    fn push_to_worker(&self, message: &FromHost) {
        let mut state = self.lock();
        if !state.is_closed && message.encode(0, &mut state.out).is_ok() {
            drop(state);
            self.unwritten.notify_one();
        }
    }

    fn begin_bind(
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

    async fn exchange(
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
    fn cancel(
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

    fn grant(&self, id: u32, bytes: u32) {
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

// Receiving.
impl Shared {
    async fn read(self: Arc<Self>, mut socket: Reading) {
        let mut decoder = Decoder::default();
        let mut received = vec![0; READ_SIZE];
        let why = loop {
            match socket.read(&mut received).await {
                Ok(0) => break "the worker closed its connection".to_owned(),
                Ok(length) => decoder.buffer.extend_from_slice(&received[..length]),
                Err(error) => break format!("could not read from the worker: {error}"),
            }
            if let Err(broken) = self.take_frames(&mut decoder) {
                break format!("the worker broke the protocol: {broken}");
            }
        };
        self.fail(&why);
    }

    fn take_frames(self: &Arc<Self>, decoder: &mut Decoder) -> Result<(), String> {
        while let Some(frame) =
            decoder.next_frame::<FromWorker>().map_err(|error| error.to_string())?
        {
            self.take(frame)?;
        }
        Ok(())
    }

    fn take(
        self: &Arc<Self>,
        Frame { call: id, message }: Frame<FromWorker>,
    ) -> Result<(), String> {
        match message {
            FromWorker::Hello(hello) => self.take_hello(&hello),
            FromWorker::Bound => self.take_bind_outcome(Ok(())),
            FromWorker::BindFailed { message, .. } => {
                self.take_bind_outcome(Err(BindError::Load { message }))
            }
            FromWorker::Head { status, more, headers, body } => {
                self.take_head(id, more, Answer { status, headers, first: body, parts: None })
            }
            FromWorker::Body(part) => self.take_body(id, part),
            FromWorker::End => self.take_end(id, None),
            FromWorker::Failed { reason, message } => self.take_end(id, Some((reason, message))),
            FromWorker::Log { stream, text } => {
                let log = match id {
                    0 => Some(self.instance_log.clone()),
                    id => self.lock().calls.get(&id).and_then(|entry| entry.log.clone()),
                };
                if let Some(log) = log {
                    log.write(stream, &text);
                }
                Ok(())
            }
            FromWorker::Window(bytes) => self.take_window(id, bytes),
        }
    }

    fn take_hello(&self, hello: &Hello) -> Result<(), String> {
        let Hello { version_min, version_max, language, language_version, .. } = hello;
        if !matches!(*self.stage.borrow(), Stage::Connecting) {
            return Err("it said hello twice".into());
        }
        if !(*version_min..=*version_max).contains(&VERSION) {
            return Err(format!(
                "it speaks versions {version_min} to {version_max}, this host {VERSION}"
            ));
        }
        debug!(language, language_version, "worker connected");
        self.lock().max_calls = usize::try_from(hello.max_calls).unwrap_or(usize::MAX);
        self.stage.send_replace(Stage::Unbound);
        Ok(())
    }

    fn take_bind_outcome(&self, outcome: Result<(), BindError>) -> Result<(), String> {
        let waiting = self.lock().binding.take().ok_or("it answered a bind that was not sent")?;
        if outcome.is_ok() {
            self.stage.send_replace(Stage::Bound);
        }
        let _ = waiting.send(outcome);
        Ok(())
    }

    fn take_head(&self, id: u32, more: bool, mut answer: Answer) -> Result<(), String> {
        let mut state = self.lock();
        let entry = state.entry(id)?;
        entry.receive(answer.first.len())?;
        let stage = if more {
            std::mem::replace(&mut entry.stage, CallStage::Abandoned)
        } else {
            state.finish(id)
        };
        match stage {
            CallStage::Waiting(waiting) => {
                if more {
                    let (sender, parts) = mpsc::unbounded_channel();
                    state.entry(id)?.stage = CallStage::Streaming(sender);
                    answer.parts = Some(parts);
                }
                drop(state);
                let _ = waiting.send(Ok(answer));
            }
            CallStage::Abandoned => drop(state),
            CallStage::Streaming(_) => return Err(format!("it sent a second head for call {id}")),
        }
        if !more {
            self.changed.notify_waiters();
        }
        Ok(())
    }

    fn take_body(&self, id: u32, part: Bytes) -> Result<(), String> {
        let mut state = self.lock();
        let entry = state.entry(id)?;
        entry.receive(part.len())?;
        match &entry.stage {
            CallStage::Streaming(body) => {
                let _ = body.send(Ok(part));
                Ok(())
            }
            CallStage::Abandoned => Ok(()),
            CallStage::Waiting(_) => Err(format!("it sent a body before the head of call {id}")),
        }
    }

    fn take_end(&self, id: u32, failure: Option<(CallFailure, String)>) -> Result<(), String> {
        let mut state = self.lock();
        state.entry(id)?;
        let stage = state.finish(id);
        drop(state);
        self.changed.notify_waiters();
        match (stage, failure) {
            (CallStage::Waiting(waiting), Some((reason, message))) => {
                let error = match reason {
                    CallFailure::Threw | CallFailure::NoReply => CallError::Failed { message },
                    CallFailure::Cancelled | CallFailure::Worker => {
                        CallError::Lost { why: format!("The worker gave up the call. {message}") }
                    }
                };
                let _ = waiting.send(Err(error));
                Ok(())
            }
            (CallStage::Waiting(_), None) => Err(format!("it ended call {id} without a head")),
            (CallStage::Streaming(body), Some((_, message))) => {
                let _ = body.send(Err(BodyError(message)));
                Ok(())
            }
            (CallStage::Streaming(_) | CallStage::Abandoned, _) => Ok(()),
        }
    }

    fn take_window(&self, id: u32, bytes: u32) -> Result<(), String> {
        let mut state = self.lock();
        // The last grant and the call's end may cross.
        let Some(entry) = state.calls.get_mut(&id) else { return Ok(()) };
        entry.send_credit = entry
            .send_credit
            .checked_add(bytes)
            .filter(|credit| *credit <= i32::MAX.unsigned_abs())
            .ok_or_else(|| format!("it granted too much to call {id}"))?;
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }
}

impl State {
    fn next_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.calls.contains_key(&self.last_id) {
                return self.last_id;
            }
        }
    }

    fn entry(&mut self, id: u32) -> Result<&mut Entry, String> {
        self.calls.get_mut(&id).ok_or_else(|| format!("it answered call {id}, which is not open"))
    }

    /// Forgets a call that is over.
    fn finish(&mut self, id: u32) -> CallStage {
        let Some(entry) = self.calls.remove(&id) else { return CallStage::Abandoned };
        self.suspects -= usize::from(entry.is_suspect);
        entry.stage
    }
}

impl Entry {
    fn receive(&mut self, bytes: usize) -> Result<(), String> {
        self.receive_credit = u32::try_from(bytes)
            .ok()
            .and_then(|bytes| self.receive_credit.checked_sub(bytes))
            .ok_or("it sent more of a body than it was granted")?;
        Ok(())
    }
}

/// A delivered call that somebody waits for. Dropping it cancels the call, unless it is over.
struct Delivered {
    shared: Arc<Shared>,
    id: u32,
    deadline: Option<Instant>,
    is_over: bool,
}

impl Delivered {
    fn cancel(&mut self, reason: CancelReason) {
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
struct ReplyBody {
    parts: Parts,
    delivered: Delivered,
    /// Read, and not yet granted again.
    taken: u32,
    expired: Option<Pin<Box<Sleep>>>,
}

impl ReplyBody {
    fn boxed(parts: Parts, delivered: Delivered, taken: u32) -> BodyStream {
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
                    Poll::Ready(Some(Err(BodyError(CallError::TimedOut.to_string()))))
                }
                Some(Poll::Pending) | None => Poll::Pending,
            },
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
