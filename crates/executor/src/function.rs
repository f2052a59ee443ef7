//! From a call to a reply.

use std::{
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use protocol::{BindError, Body, BodyError, BodyStream, Call, CallError, Reply};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tracing::{info, warn};

use crate::{
    instance::{Running, StartError},
    stock::{Stock, describe},
};

/// How often a call that did not reach an instance is tried again.
const MAX_TRIES: usize = 3;

/// What makes a runtime's instances one function's, and how it is served.
#[derive(Clone, Debug)]
pub struct FunctionConfig {
    /// The built code: a directory on this host.
    pub artifact: PathBuf,
    /// The file that defines the function, relative to the artifact.
    pub entrypoint: String,
    /// The function's environment.
    pub environment: Vec<(String, String)>,
    /// Which instance serves a call.
    pub mode: Mode,
    /// How long the code may take to load.
    pub bind_timeout: Duration,
    /// How long running calls may take when the function is shut down.
    pub drain_timeout: Duration,
    /// Calls at once, waiting ones included.
    pub max_calls: usize,
}

/// Which instance serves a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One instance for all calls, replaced when it ends.
    Shared,
    /// A new instance for each call.
    Fresh,
}

/// A function that answers calls.
pub struct Function {
    config: FunctionConfig,
    stock: Arc<Stock>,
    current: watch::Sender<Current>,
    /// After which attempt to start an instance another one is wanted.
    wanted: watch::Sender<u64>,
    /// Calls that are being served or wait.
    calls: AtomicUsize,
    /// Calls that were ever taken.
    taken: AtomicU64,
}

/// The instance that serves calls in [`Mode::Shared`].
#[derive(Clone)]
enum Current {
    /// One is being started.
    Starting,
    Serving(Arc<Running>),
    /// The last attempt failed; the next call makes another.
    Failed {
        error: CallError,
        attempt: u64,
    },
    /// The last one ended before it served anything; the next call starts another.
    Asleep {
        attempt: u64,
    },
}

impl Function {
    /// A function whose instances come from `stock`. [`Function::keep`] makes it serve.
    pub fn new(stock: Arc<Stock>, config: FunctionConfig) -> Arc<Self> {
        let current = watch::Sender::new(Current::Starting);
        let wanted = watch::Sender::new(0);
        let (calls, taken) = (AtomicUsize::new(0), AtomicU64::new(0));
        Arc::new(Self { config, stock, current, wanted, calls, taken })
    }

    /// Keeps an instance serving in [`Mode::Shared`]. Runs until it is dropped.
    pub async fn keep(&self) {
        if self.config.mode == Mode::Fresh {
            return std::future::pending().await;
        }
        for attempt in 1.. {
            self.current.send_replace(Current::Starting);
            let rest = match self.start().await {
                Ok(running) => {
                    let taken = self.taken.load(Ordering::Relaxed);
                    self.serve_with(running).await;
                    if self.taken.load(Ordering::Relaxed) != taken {
                        continue;
                    }
                    // Starting what ends by itself again and again would only heat the machine.
                    Current::Asleep { attempt }
                }
                Err(error) => Current::Failed { error: unavailable(&error), attempt },
            };
            self.current.send_replace(rest);
            let mut wanted = self.wanted.subscribe();
            // The sender lives in `self`, so this cannot fail.
            let _ = wanted.wait_for(|wanted| *wanted >= attempt).await;
        }
    }

    async fn serve_with(&self, running: Running) {
        let running = Arc::new(running);
        self.current.send_replace(Current::Serving(running.clone()));
        let why = running.connection.closed().await;
        info!(instance = %running.id, why, "the instance ended");
    }

    /// Returns once an instance serves or has failed to, in [`Mode::Shared`].
    pub async fn settled(&self) {
        if self.config.mode == Mode::Shared {
            let mut current = self.current.subscribe();
            let _ = current.wait_for(|current| !matches!(current, Current::Starting)).await;
        }
    }

    /// Serves one call. Its deadline covers everything, also the start of an instance.
    ///
    /// Dropping the future cancels the call.
    pub async fn call(&self, call: Call) -> Result<Reply, CallError> {
        let _place = self.enter()?;
        match self.config.mode {
            Mode::Shared => self.call_shared(call).await,
            Mode::Fresh => self.call_fresh(call).await,
        }
    }

    /// Lets running calls finish, bounded by the drain timeout, and stops every instance. Whoever
    /// runs [`Function::keep`] and [`Stock::keep`] drops them first.
    pub async fn shut_down(&self) {
        if let Current::Serving(running) = &*self.current.borrow() {
            running.retire(self.config.drain_timeout);
        }
        self.stock.clear();
        self.stock.engine().until_empty().await;
    }

    fn enter(&self) -> Result<Place<'_>, CallError> {
        let place = Place(&self.calls);
        self.taken.fetch_add(1, Ordering::Relaxed);
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.config.max_calls {
            let why = format!("The function is at its limit of {} calls.", self.config.max_calls);
            return Err(CallError::Unavailable { why });
        }
        Ok(place)
    }

    async fn call_shared(&self, mut call: Call) -> Result<Reply, CallError> {
        let mut refused = CallError::Unavailable { why: "No instance could be started.".into() };
        for _ in 0..MAX_TRIES {
            let running = by(call.deadline, self.serving()).await??;
            let (again, attempt) = copy(call);
            match running.connection.call(attempt).await {
                Err(error) if error.is_safe_to_retry() => {
                    let Some(again) = again else { return Err(error) };
                    call = again;
                    refused = error;
                    self.has_ended(&running).await;
                }
                outcome => return explain(outcome, &running).await,
            }
        }
        Err(refused)
    }

    /// The instance that serves, once there is one.
    async fn serving(&self) -> Result<Arc<Running>, CallError> {
        if let Current::Serving(running) = &*self.current.borrow() {
            return Ok(running.clone());
        }
        let mut current = self.current.subscribe();
        let seen = match &*current.borrow_and_update() {
            Current::Failed { attempt, .. } | Current::Asleep { attempt } => *attempt,
            Current::Starting | Current::Serving(_) => 0,
        };
        self.wanted.send_if_modified(|wanted| {
            let is_news = *wanted < seen;
            *wanted = seen.max(*wanted);
            is_news
        });
        loop {
            match &*current.borrow_and_update() {
                Current::Serving(running) => return Ok(running.clone()),
                Current::Failed { error, attempt } if *attempt > seen => return Err(error.clone()),
                Current::Failed { .. } | Current::Asleep { .. } | Current::Starting => {}
            }
            if current.changed().await.is_err() {
                return Err(CallError::Unavailable { why: "The function was shut down.".into() });
            }
        }
    }

    /// Returns once it is known that this instance is not the one that serves.
    async fn has_ended(&self, running: &Arc<Running>) {
        let mut current = self.current.subscribe();
        let other = current.wait_for(|current| match current {
            Current::Serving(serving) => !Arc::ptr_eq(serving, running),
            Current::Starting | Current::Failed { .. } | Current::Asleep { .. } => true,
        });
        let _ = other.await;
    }

    async fn call_fresh(&self, call: Call) -> Result<Reply, CallError> {
        let started = by(call.deadline, self.start()).await?;
        let running = Arc::new(started.map_err(|error| unavailable(&error))?);
        let outcome = running.connection.call(call).await;
        let mut reply = explain(outcome, &running).await?;
        if let Some(rest) = reply.body.rest.take() {
            reply.body.rest = Some(Box::pin(Holding { rest, _running: running }));
        }
        Ok(reply)
    }

    /// A spare made the function's, or else a new instance.
    async fn start(&self) -> Result<Running, StartError> {
        while let Some(spare) = self.stock.take() {
            match self.bind(&spare).await {
                Ok(()) => return Ok(spare),
                // It may have ended while it waited; that is not the function's fault.
                Err(StartError::Attach(_) | StartError::Bind(BindError::Lost { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        let running = self.stock.launch().await?;
        self.bind(&running).await?;
        Ok(running)
    }

    async fn bind(&self, running: &Running) -> Result<(), StartError> {
        let FunctionConfig { artifact, entrypoint, environment, bind_timeout, .. } = &self.config;
        let bind = self.stock.engine().bind(
            running,
            artifact,
            entrypoint,
            environment,
            self.stock.limits(),
        );
        timeout(*bind_timeout, bind).await.map_err(|_| StartError::TimedOut(*bind_timeout))?
    }
}

/// Waits for something no longer than a call may take.
async fn by<T>(deadline: Option<Instant>, future: impl Future<Output = T>) -> Result<T, CallError> {
    match deadline {
        Some(deadline) => timeout_at(deadline, future).await.map_err(|_| CallError::TimedOut),
        None => Ok(future.await),
    }
}

/// A call's place among those at once.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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

fn unavailable(error: &StartError) -> CallError {
    match error {
        StartError::Bind(BindError::Load { message }) => {
            CallError::NotLoaded { message: message.clone() }
        }
        error => {
            let why = describe(error);
            warn!(error = why, "could not start an instance");
            CallError::Unavailable { why: format!("The function could not be started: {why}.") }
        }
    }
}

/// Says how the instance ended, where that is why a call was lost.
async fn explain(outcome: Result<Reply, CallError>, running: &Running) -> Result<Reply, CallError> {
    let Err(CallError::Lost { why }) = &outcome else { return outcome };
    match running.epitaph().await {
        Some(exit) if !is_ours(exit) => Err(CallError::Lost {
            why: format!("The instance {exit} while this call was running."),
        }),
        _ => Err(CallError::Lost { why: why.clone() }),
    }
}

/// Whether an instance ended because we killed it; then the reason for that is more telling.
fn is_ours(exit: model::Exit) -> bool {
    !exit.out_of_memory
        && matches!(exit.status, model::ExitStatus::Signal(9) | model::ExitStatus::Unknown)
}

/// A body that keeps its instance until it has been read.
struct Holding {
    rest: BodyStream,
    _running: Arc<Running>,
}

impl Stream for Holding {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.rest.as_mut().poll_next(cx)
    }
}
