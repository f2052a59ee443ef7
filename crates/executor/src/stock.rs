//! Spares: instances that wait, unbound.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use autoscaler::{ColdStarts, Rate, SparePolicy};
use model::{InstanceId, LaunchSpec, describe};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tracing::warn;

use crate::{
    executor::OnColdStart,
    instance::{Engine, LaunchError, Running, Template},
};

/// How long nothing is launched after a launch has failed.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// A spare is made when nobody waits for an instance, but not later than this.
const PATIENCE: Duration = Duration::from_millis(250);
/// The first call of a new instance has the processors for itself for so long.
const QUIET: Duration = Duration::from_millis(30);
/// How often a stock that nobody touches looks whether it is still wanted.
const LOOK: Duration = Duration::from_secs(5);
/// How much the last launch counts in the average of what a launch takes.
const WEIGHT: f64 = 0.2;

/// Keeps spares of one runtime waiting, as many as its cold starts ask for.
pub struct Stock {
    engine: Engine,
    template: Template,
    policy: SparePolicy,
    on_cold_start: OnColdStart,
    waiting: Mutex<Waiting>,
    touched: Notify,
    from_stock: AtomicU64,
    from_nothing: AtomicU64,
}

struct Waiting {
    spares: VecDeque<Running>,
    cold_starts: Rate,
    /// Since when the runtime is in use.
    in_use_since: Instant,
    refill: Duration,
}

/// What a stock has done, for a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StockReport {
    /// Spares that wait.
    pub waiting: usize,
    /// Cold starts that found a spare.
    pub from_stock: u64,
    /// Cold starts that found none.
    pub from_nothing: u64,
}

impl Stock {
    /// An empty stock, which wants what `policy` says. [`Stock::keep`] fills it.
    pub(crate) fn new(
        engine: Engine,
        template: Template,
        policy: SparePolicy,
        on_cold_start: OnColdStart,
    ) -> Arc<Self> {
        let now = Instant::now();
        let waiting = Waiting {
            spares: VecDeque::new(),
            cold_starts: Rate::new(now),
            in_use_since: now,
            refill: Duration::from_millis(50),
        };
        Arc::new(Self {
            engine,
            template,
            policy,
            on_cold_start,
            waiting: Mutex::new(waiting),
            touched: Notify::new(),
            from_stock: AtomicU64::new(0),
            from_nothing: AtomicU64::new(0),
        })
    }

    /// The runtime's name.
    pub fn runtime(&self) -> &str {
        self.template.runtime.as_str()
    }

    /// How many spares wait, and how cold starts went.
    pub fn report(&self) -> StockReport {
        StockReport {
            waiting: self.count(),
            from_stock: self.from_stock.load(Ordering::Relaxed),
            from_nothing: self.from_nothing.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn ready_timeout(&self) -> Duration {
        self.template.ready_timeout
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn spec(&self) -> &LaunchSpec {
        &self.template.spec
    }

    /// Fills the stock, and again whenever a spare is taken or has ended, as far as `has_room`
    /// allows and while nothing in `starting` is held up by it. Runs until it is dropped.
    pub(crate) async fn keep(
        &self,
        mut starting: watch::Receiver<usize>,
        has_room: impl Fn() -> bool,
    ) {
        loop {
            let some_end = self.engine.some_end();
            self.shrink();
            while self.count() < self.wanted() && has_room() {
                let _ = timeout(PATIENCE, starting.wait_for(|count| *count == 0)).await;
                self.until_quiet().await;
                self.add().await;
            }
            tokio::select! {
                () = self.touched.notified() => {}
                () = some_end => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Ids of the spares that wait, and since when.
    pub(crate) fn spares(&self) -> Vec<(InstanceId, Instant)> {
        let waiting = self.lock();
        let alive = waiting.spares.iter().filter(|spare| !spare.has_ended());
        alive.map(|spare| (spare.id.clone(), spare.since)).collect()
    }

    /// How many spares wait.
    pub(crate) fn count(&self) -> usize {
        let mut waiting = self.lock();
        waiting.spares.retain(|spare| !spare.has_ended());
        waiting.spares.len()
    }

    /// Stops all spares.
    pub(crate) fn clear(&self) {
        self.lock().spares.clear();
    }

    /// Stops the spare that has waited longest. False if none waits.
    pub(crate) fn drop_one(&self) -> bool {
        self.lock().spares.pop_front().is_some()
    }

    /// Takes the spare that has waited longest, if one waits. It may have ended a moment ago.
    pub(crate) fn take(&self) -> Option<Running> {
        let mut waiting = self.lock();
        let spares = &mut waiting.spares;
        std::iter::from_fn(|| spares.pop_front()).find(|spare| !spare.has_ended())
    }

    /// Notes a cold start, which found a spare or did not.
    pub(crate) fn note(&self, has_found: bool) {
        self.lock().cold_starts.note(Instant::now());
        let counter = if has_found { &self.from_stock } else { &self.from_nothing };
        counter.fetch_add(1, Ordering::Relaxed);
        self.on_cold_start.tell(self.runtime(), has_found);
        self.touched.notify_one();
    }

    /// Launches an instance that has not waited.
    pub(crate) async fn launch(&self) -> Result<Running, LaunchError> {
        let begun = Instant::now();
        let running = self.engine.launch(&self.template).await?;
        let mut waiting = self.lock();
        waiting.refill = waiting.refill.mul_f64(1.0 - WEIGHT) + begun.elapsed().mul_f64(WEIGHT);
        Ok(running)
    }

    async fn until_quiet(&self) {
        let last = self.lock().cold_starts.last();
        if let Some(last) = last {
            tokio::time::sleep_until(last + QUIET).await;
        }
    }

    async fn add(&self) {
        match self.launch().await {
            Ok(spare) => self.lock().spares.push_back(spare),
            Err(error) => {
                warn!(runtime = self.runtime(), error = describe(&error), "could not make a spare");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
        }
    }

    fn wanted(&self) -> usize {
        let now = Instant::now();
        let waiting = self.lock();
        let used = waiting.cold_starts.last().unwrap_or(waiting.in_use_since);
        let seen = ColdStarts {
            per_second: waiting.cold_starts.per_second(now),
            refill: waiting.refill,
            quiet_for: now.saturating_duration_since(used.max(waiting.in_use_since)),
        };
        autoscaler::spares(seen, &self.policy) as usize
    }

    fn shrink(&self) {
        let wanted = self.wanted();
        let spares = &mut self.lock().spares;
        let too_many = spares.len().saturating_sub(wanted);
        spares.drain(..too_many);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no panic while the lock is held")
    }
}
