//! A function that is served: where its calls go, and what is kept of them.

use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use executor::{CallError, Progress, Service};
use front::{Callee, Journal, Record};
use logs::{CallRecord, FunctionLog};
use model::{CallEnd, CallId, FunctionName, Outcome, Phases, Settings};
use protocol::{Call, CallHead, CallLog, LogStream, Reply};
use telemetry::{CallSpan, FunctionMetrics, Metrics, Spans};
use tokio::time::Instant;

use crate::store::Pin;

/// A function that exists.
pub(crate) struct Active {
    pub(crate) name: FunctionName,
    pub(crate) log: Arc<FunctionLog>,
    pub(crate) counters: Counters,
    current: Mutex<Arc<Current>>,
    metrics: Arc<FunctionMetrics>,
    observers: Observers,
}

/// Where calls are counted and traced.
#[derive(Clone)]
pub(crate) struct Observers {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Arc<Spans>,
}

/// The deployment that serves.
pub(crate) struct Current {
    pub(crate) settings: Settings,
    /// Without one, why there is none, for callers.
    pub(crate) service: Result<Arc<Service>, String>,
    /// Keeps the artifact as long as instances may be made of it.
    pub(crate) _pin: Option<Pin>,
}

/// What a function did since the daemon was started.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) calls: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) busy_micros: AtomicU64,
    /// Of deployments that were replaced.
    pub(crate) earlier_cold_starts: AtomicU64,
}

impl Active {
    pub(crate) fn new(
        name: FunctionName,
        log: Arc<FunctionLog>,
        current: Current,
        observers: Observers,
    ) -> Self {
        let (counters, current) = (Counters::default(), Mutex::new(Arc::new(current)));
        let metrics = observers.metrics.function(&name);
        Self { name, log, counters, current, metrics, observers }
    }

    pub(crate) fn current(&self) -> Arc<Current> {
        self.current.lock().expect("no panic while the lock is held").clone()
    }

    /// From now on another deployment serves. Returns the one that did.
    pub(crate) fn switch(&self, to: Current) -> Arc<Current> {
        let mut current = self.current.lock().expect("no panic while the lock is held");
        let earlier = std::mem::replace(&mut *current, Arc::new(to));
        drop(current);
        if let Ok(service) = &earlier.service {
            let cold_starts = service.load().cold_starts;
            self.counters.earlier_cold_starts.fetch_add(cold_starts, Ordering::Relaxed);
        }
        earlier
    }

    fn count(&self, end: &CallEnd) {
        let Counters { calls, errors, busy_micros, .. } = &self.counters;
        calls.fetch_add(1, Ordering::Relaxed);
        if end.outcome != Outcome::Served {
            errors.fetch_add(1, Ordering::Relaxed);
        }
        let [.., call, reply] = end.phases;
        busy_micros.fetch_add(call + reply, Ordering::Relaxed);
        self.metrics.ended(end.outcome);
        self.observers.metrics.phases(&phases(end));
    }
}

#[async_trait]
impl Callee for Active {
    async fn call(&self, call: Call, progress: &Progress) -> Result<Reply, CallError> {
        let current = self.current();
        match &current.service {
            Ok(service) => service.call(call, progress).await,
            Err(why) => Err(protocol::CallError::Unavailable { why: why.clone() }.into()),
        }
    }
}

/// A function as a journal: calls' records know their function.
pub(crate) struct FunctionJournal(pub(crate) Arc<Active>);

impl Journal for FunctionJournal {
    fn open(&self, call: CallId, head: &CallHead) -> Arc<dyn Record> {
        let is_traced = self.0.observers.spans.is_on();
        let header = |name: &str| head.headers.iter().find(|(key, _)| key == name);
        Arc::new(Recorded {
            log: self.0.log.call(call),
            function: self.0.clone(),
            call,
            started: is_traced.then(|| (SystemTime::now(), Instant::now())),
            traceparent: is_traced
                .then(|| header("traceparent").map(|(_, value)| value.clone()))
                .flatten(),
            ended: OnceLock::new(),
        })
    }
}

struct Recorded {
    log: Arc<CallRecord>,
    function: Arc<Active>,
    call: CallId,
    started: Option<(SystemTime, Instant)>,
    traceparent: Option<String>,
    ended: OnceLock<()>,
}

impl CallLog for Recorded {
    fn write(&self, stream: LogStream, text: &str) {
        self.log.write(stream, text);
    }
}

impl Record for Recorded {
    fn end(&self, end: CallEnd) {
        if self.ended.set(()).is_err() {
            return;
        }
        self.function.count(&end);
        if let Some((started, begun)) = self.started {
            self.function.observers.spans.record(&CallSpan {
                function: &self.function.name,
                call: self.call,
                traceparent: self.traceparent.as_deref(),
                started,
                took: begun.elapsed(),
                end: &end,
            });
        }
        self.log.end(end);
    }

    fn as_log(self: Arc<Self>) -> Arc<dyn CallLog> {
        self
    }
}

fn phases(end: &CallEnd) -> Phases {
    let [receive, wait, spare, attach, bind, call, reply] = end.phases.map(Duration::from_micros);
    Phases { receive, wait, spare, attach, bind, call, reply }
}
