//! From a call to a reply.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use model::{Exit, ExitStatus};
use protocol::{Body, BodyError, BodyStream, Call, Reply};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    executor::{Inner, State},
    instance::Running,
    outcome::{CallError, Progress},
    pool::{Admission, CallKey, Ended, InstanceKey, Refusal, ServiceKey},
    readahead::read_ahead,
    report::Load,
    revision::StartPhases,
};

/// How often a call that did not reach an instance is tried again.
const MAX_TRIES: usize = 3;
/// When a full queue is worth another look.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A revision of a function that is served. Dropping it retires it.
pub struct Service {
    executor: Arc<Inner>,
    key: ServiceKey,
    closed: watch::Receiver<bool>,
    cold_starts: Arc<AtomicU64>,
}

impl Service {
    pub(crate) fn new(
        executor: Arc<Inner>,
        key: ServiceKey,
        closed: watch::Receiver<bool>,
        cold_starts: Arc<AtomicU64>,
    ) -> Self {
        Self { executor, key, closed, cold_starts }
    }

    /// Returns once an instance takes calls; starts one if there is none.
    pub async fn ready(&self, deadline: Instant) -> Result<(), CallError> {
        let mut lease = self.lease(Some(deadline), &Progress::default()).await?;
        lease.is_unused = true;
        Ok(())
    }

    /// Serves one call: the only path from a call to an instance. Its deadline covers everything,
    /// also the start of an instance.
    ///
    /// Dropping the future, or the reply's body before its end, cancels the call. A call reaches
    /// an instance at most once. Its place is free again once its reply is complete, also if nobody
    /// has read that yet.
    pub async fn call(&self, mut call: Call, progress: &Progress) -> Result<Reply, CallError> {
        let mut refused = None;
        for _ in 0..MAX_TRIES {
            let mut lease = self.lease(call.deadline, progress).await?;
            progress.given_to(lease.running.id.clone());
            let deadline = call.deadline;
            let (again, attempt) = copy(call);
            let calling = Timed::begin(progress, |phases, took| phases.call = took);
            let outcome = lease.running.connection.call(attempt).await;
            calling.end();
            match (outcome, again) {
                (Err(error), Some(copy)) if error.is_safe_to_retry() => {
                    lease.ended = Ended::Lost;
                    lease.instance_has_ended();
                    call = copy;
                    refused = Some(error);
                }
                (Ok(mut reply), _) => {
                    if let Some(rest) = reply.body.rest.take() {
                        let rest = Box::pin(Holding { rest, deadline, lease });
                        let waiting = &self.executor.waiting_for_readers;
                        let (rest, reading) = read_ahead(rest, deadline, waiting);
                        self.executor.spawn(reading);
                        reply.body.rest = Some(rest);
                    } else {
                        lease.ended = Ended::Served;
                    }
                    return Ok(reply);
                }
                (Err(error), _) => {
                    lease.ended = how_it_ended(&error);
                    return Err(explain(error, &lease).await.into());
                }
            }
        }
        let why = "No instance could be started.".into();
        Err(refused.unwrap_or(protocol::CallError::Unavailable { why }).into())
    }

    /// What it does at the moment.
    pub fn load(&self) -> Load {
        let tally = self.executor.lock().pool.tally(self.key);
        Load::new(tally, self.cold_starts.load(Ordering::Relaxed))
    }

    /// Keeps so many instances although nobody calls, instead of what its revision says.
    pub fn keep(&self, min: u32) {
        self.executor.with_state(|state| state.pool.keep(self.key, min, Instant::now()));
    }

    /// Lets its calls finish, for at most `drain`, then ends its instances. Calls that come all
    /// the same are served. Returns when nothing is left.
    pub async fn retire(&self, drain: Duration) {
        let deadline = Instant::now() + drain;
        self.executor.with_state(|state| state.pool.retire(self.key, Instant::now()));
        let mut closed = self.closed.clone();
        self.executor.close_by(self.key, &mut closed, deadline).await;
    }

    /// A place for one call, in an instance that takes it.
    async fn lease(
        &self,
        deadline: Option<Instant>,
        progress: &Progress,
    ) -> Result<Lease, CallError> {
        let begun = Instant::now();
        let (call, receiver) = match self.executor.with_state(|state| self.admit(state, begun)) {
            Admitted::Now(lease) => return Ok(lease),
            Admitted::Later(call, receiver) => (call, receiver),
            Admitted::Never(refusal) => return Err(self.refused(refusal)),
        };
        let _queued = Queued { executor: &self.executor, service: self.key, call };
        // Who gives up while it waits has waited, too.
        let waiting = Timed::begin(progress, |phases, took| phases.wait += took);
        let granted = by(deadline, receiver).await;
        let waited = waiting.explained();
        let explained = match &granted {
            Some(Ok(Ok(Lease { begun_with: Some(start), .. }))) => start.explain(waited),
            _ => model::Phases { wait: waited, ..model::Phases::default() },
        };
        progress.note(|phases| {
            phases.wait += explained.wait;
            phases.spare += explained.spare;
            phases.attach += explained.attach;
            phases.bind += explained.bind;
        });
        match granted {
            Some(Ok(Ok(lease))) => Ok(lease),
            Some(Ok(Err(refusal))) => Err(self.refused(refusal)),
            Some(Err(_)) => Err(self.refused(Refusal::Gone)),
            None => Err(self.waited_in_vain()),
        }
    }

    fn admit(&self, state: &mut State, now: Instant) -> Admitted {
        let call = state.new_call();
        match state.pool.admit(self.key, call, now) {
            Admission::Granted(instance) => {
                let lease = Lease::of(&self.executor, state, instance, None);
                lease.map_or(Admitted::Never(Refusal::Gone), Admitted::Now)
            }
            Admission::Waiting => {
                let (sender, receiver) = oneshot::channel();
                state.calls.insert(call, sender);
                if state.pool.backs_off(self.key) {
                    // The attempt that it waits for may be due before the next tick.
                    self.executor.touched.notify_one();
                }
                Admitted::Later(call, receiver)
            }
            Admission::Refused(refusal) => Admitted::Never(refusal),
        }
    }

    fn refused(&self, refusal: Refusal) -> CallError {
        match refusal {
            Refusal::Gone => {
                let why = "The function was removed or replaced.".into();
                protocol::CallError::Unavailable { why }.into()
            }
            Refusal::Full { waiting } => CallError::Busy {
                why: format!("{waiting} calls wait for the function already."),
                retry_after: LOOK_AGAIN,
            },
            Refusal::AllKept => CallError::Busy {
                why: "Every place of this host is kept for other functions (their `--min`).".into(),
                retry_after: LOOK_AGAIN,
            },
            Refusal::BackingOff { cause, retry_after } => {
                CallError::BackingOff { cause, retry_after }
            }
            Refusal::Failed(cause) => cause.into(),
        }
    }

    /// The deadline passed before the call got a place.
    fn waited_in_vain(&self) -> CallError {
        let Load { starting, serving, .. } = self.load();
        match (starting, serving) {
            (1.., 0) => protocol::CallError::TimedOut.into(),
            (_, 0) => CallError::Busy {
                why: "This host is full: every instance is busy with other functions.".into(),
                retry_after: LOOK_AGAIN,
            },
            _ => CallError::Busy {
                why: "The function is busy: all its instances run as many calls as they take."
                    .into(),
                retry_after: LOOK_AGAIN,
            },
        }
    }
}

/// What became of a call's request for a place.
enum Admitted {
    Now(Lease),
    Later(CallKey, oneshot::Receiver<Result<Lease, Refusal>>),
    Never(Refusal),
}

impl Drop for Service {
    fn drop(&mut self) {
        self.executor.with_state(|state| state.pool.retire(self.key, Instant::now()));
    }
}

/// A place for one call in an instance. Dropping it gives the place back.
pub(crate) struct Lease {
    executor: Arc<Inner>,
    instance: InstanceKey,
    running: Arc<Running>,
    /// The start that it waited for.
    begun_with: Option<StartPhases>,
    /// As long as nothing else is known, the call that it is for was given up.
    ended: Ended,
    /// No call was made with it.
    is_unused: bool,
}

impl Lease {
    /// The lease of a place that the table has given.
    pub(crate) fn of(
        executor: &Arc<Inner>,
        state: &mut State,
        instance: InstanceKey,
        begun_with: Option<StartPhases>,
    ) -> Option<Self> {
        let hosted = state.instances.get(&instance);
        let Some(running) = hosted.and_then(|hosted| hosted.running.clone()) else {
            state.pool.release(instance, Ended::Lost, Instant::now());
            return None;
        };
        let executor = executor.clone();
        let ended = Ended::Abandoned;
        Some(Self { executor, instance, running, begun_with, ended, is_unused: false })
    }

    /// The instance takes no more calls, which the table may not know yet.
    fn instance_has_ended(&self) {
        self.executor.with_state(|state| state.pool.ended(self.instance, Instant::now()));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Self { instance, ended, is_unused, .. } = *self;
        let now = Instant::now();
        self.executor.with_state(|state| match is_unused {
            true => state.pool.give_back(instance, now),
            false => state.pool.release(instance, ended, now),
        });
    }
}

/// Part of a call's path. Dropping it notes how long it took, also of a call that was given up.
struct Timed<'a> {
    progress: &'a Progress,
    begun: Instant,
    note: Option<fn(&mut model::Phases, Duration)>,
}

impl<'a> Timed<'a> {
    fn begin(progress: &'a Progress, note: fn(&mut model::Phases, Duration)) -> Self {
        Self { progress, begun: Instant::now(), note: Some(note) }
    }

    /// It is over.
    fn end(self) {}

    /// It is over, and whoever asks notes what it was for.
    fn explained(mut self) -> Duration {
        self.note = None;
        self.begun.elapsed()
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        if let Some(note) = self.note {
            self.progress.note(|phases| note(phases, self.begun.elapsed()));
        }
    }
}

/// A call in the queue. Dropping it takes it out.
struct Queued<'a> {
    executor: &'a Arc<Inner>,
    service: ServiceKey,
    call: CallKey,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let unsent = self.executor.with_state(|state| {
            let sender = state.calls.remove(&self.call)?;
            state.pool.give_up(self.service, self.call);
            Some(sender)
        });
        drop(unsent);
    }
}

/// Waits for something no longer than a call may take.
async fn by<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.ok(),
        None => Some(future.await),
    }
}

/// A copy to try again with, if there can be one: a body that is still coming comes once.
fn copy(call: Call) -> (Option<Call>, Call) {
    let again = call.body.rest.is_none().then(|| Call {
        head: call.head.clone(),
        body: Body::whole(call.body.first.clone()),
        deadline: call.deadline,
        log: call.log.clone(),
    });
    (again, call)
}

/// Says how the instance ended, where that is why a call was lost.
async fn explain(error: protocol::CallError, lease: &Lease) -> protocol::CallError {
    if !matches!(error, protocol::CallError::Lost { .. }) {
        return error;
    }
    match lease.running.own_end().await {
        Some(exit) => protocol::CallError::Lost {
            why: format!("The instance {exit} while this call was running."),
        },
        None => error,
    }
}

/// How a call came to its end that has no reply.
fn how_it_ended(error: &protocol::CallError) -> Ended {
    match error {
        // A function that throws is one that runs.
        protocol::CallError::Failed { .. } => Ended::Served,
        protocol::CallError::TimedOut => Ended::Abandoned,
        protocol::CallError::NotLoaded { .. }
        | protocol::CallError::Lost { .. }
        | protocol::CallError::Unavailable { .. } => Ended::Lost,
    }
}

/// What is to be said of an instance that nobody stopped. None if the engine lost it.
pub(crate) fn own_end(exit: Exit) -> Option<protocol::CallError> {
    let is_lost = exit.status == ExitStatus::Unknown && !exit.out_of_memory;
    (!is_lost).then(|| protocol::CallError::Unavailable {
        why: format!("The function's last instance {exit}."),
    })
}

/// A body that keeps its place until all of it has come.
struct Holding {
    rest: BodyStream,
    deadline: Option<Instant>,
    lease: Lease,
}

impl Stream for Holding {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.rest.as_mut().poll_next(cx);
        match &piece {
            Poll::Ready(None) => self.lease.ended = Ended::Served,
            Poll::Ready(Some(Err(_))) => {
                let is_late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
                self.lease.ended = if is_late { Ended::Abandoned } else { Ended::Lost };
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        piece
    }
}
