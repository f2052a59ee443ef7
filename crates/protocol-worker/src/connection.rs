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

mod receive;
mod reply;
mod send;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use protocol::{
    BindError, Binding, BodyError, Call, CallError, CallLog, ConnectError, Connection, Reply,
};
use tokio::{
    net::UnixStream,
    runtime::Handle,
    sync::{Notify, mpsc, oneshot, watch},
    task::AbortHandle,
    time::timeout_at,
};
use tracing::debug;

use crate::{
    frame::{CancelReason, FromHost},
    socket,
};

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
        self.shared.closed().await;
        self.shared.why_closed()
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

    /// Returns once the conversation is over.
    async fn closed(&self) {
        let mut stage = self.stage.subscribe();
        let _ = stage.wait_for(|stage| matches!(stage, Stage::Closed(_))).await;
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
                    let _ = body.send(Err(BodyError::Lost { why: why.into() }));
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
