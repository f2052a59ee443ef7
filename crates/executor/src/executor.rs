//! The instances of one host, and who runs in them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, atomic::AtomicU64},
    time::Duration,
};

use adapter::Adapter;
use autoscaler::SparePolicy;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    hosting::Hosted,
    instance::{Engine, Template},
    pool::{CallKey, InstanceKey, Order, Pool, PoolLimits, Refusal, ServiceKey},
    readahead::Waiting,
    revision::{Revision, StartPhases},
    service::{Lease, Service},
    stock::Stock,
};

/// How an executor is set up.
#[derive(Clone, Debug)]
pub struct ExecutorConfig {
    /// What bounds the instances and queues of this host.
    pub limits: PoolLimits,
    /// How many spares a runtime has.
    pub spares: SparePolicy,
    /// How long an instance that is stopped while nothing runs in it may take to end by itself.
    pub stop_grace: Duration,
    /// Told of each cold start.
    pub on_cold_start: OnColdStart,
}

/// Is told of each cold start: its runtime's name, and whether there was a spare.
#[derive(Clone, Default)]
pub struct OnColdStart(Option<Arc<ToldOfColdStart>>);

type ToldOfColdStart = dyn Fn(&str, bool) + Send + Sync;

impl OnColdStart {
    /// Whoever is to be told.
    pub fn new(tell: impl Fn(&str, bool) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(tell)))
    }

    pub(crate) fn tell(&self, runtime: &str, has_found: bool) {
        if let Some(tell) = &self.0 {
            tell(runtime, has_found);
        }
    }
}

impl std::fmt::Debug for OnColdStart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnColdStart(…)")
    }
}

impl Default for ExecutorConfig {
    fn default() -> Self {
        Self {
            limits: PoolLimits::default(),
            spares: SparePolicy::default(),
            stop_grace: Duration::from_secs(1),
            on_cold_start: OnColdStart::default(),
        }
    }
}

/// Owns the instances of one host.
///
/// Must be made within a tokio runtime. Its tasks end with [`Executor::shut_down`].
#[derive(Clone)]
pub struct Executor(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) config: ExecutorConfig,
    state: Mutex<State>,
    stocks: Mutex<Vec<Arc<Stock>>>,
    /// Starts that are under way.
    pub(crate) starting: watch::Sender<usize>,
    /// Something failed, so the next tick may be due earlier.
    pub(crate) touched: Notify,
    pub(crate) tasks: TaskTracker,
    stop: CancellationToken,
    pub(crate) waiting_for_readers: Waiting,
}

/// The table, and what its keys stand for.
pub(crate) struct State {
    pub(crate) pool: Pool,
    pub(crate) calls: HashMap<CallKey, oneshot::Sender<Result<Lease, Refusal>>>,
    pub(crate) instances: HashMap<InstanceKey, Hosted>,
    pub(crate) services: HashMap<ServiceKey, Known>,
    next_call: CallKey,
}

/// A service that the table knows.
pub(crate) struct Known {
    pub(crate) revision: Arc<Revision>,
    pub(crate) cold_starts: Arc<AtomicU64>,
    closed: watch::Sender<bool>,
}

impl State {
    pub(crate) fn new_call(&mut self) -> CallKey {
        self.next_call += 1;
        self.next_call
    }
}

impl Executor {
    /// An executor without functions.
    pub fn new(engine: Engine, config: ExecutorConfig) -> Self {
        let state = State {
            pool: Pool::new(config.limits),
            calls: HashMap::new(),
            instances: HashMap::new(),
            services: HashMap::new(),
            next_call: 0,
        };
        let inner = Arc::new(Inner {
            engine,
            config,
            state: Mutex::new(state),
            stocks: Mutex::default(),
            starting: watch::Sender::new(0),
            touched: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            waiting_for_readers: Waiting::default(),
        });
        let keeper = inner.clone();
        inner.spawn(async move { keeper.keep_time().await });
        Self(inner)
    }

    /// The stock of spares made from a template. It is kept from now on.
    pub fn stock(&self, template: &Template) -> Arc<Stock> {
        let mut stocks = self.0.stocks();
        if let Some(stock) = stocks.iter().find(|stock| *stock.spec() == template.spec) {
            return stock.clone();
        }
        let ExecutorConfig { spares, on_cold_start, .. } = &self.0.config;
        let stock =
            Stock::new(self.0.engine.clone(), template.clone(), *spares, on_cold_start.clone());
        stocks.push(stock.clone());
        let (inner, kept) = (self.0.clone(), stock.clone());
        self.0.spawn(async move {
            kept.keep(inner.starting.subscribe(), || inner.has_room_for_spare()).await;
        });
        stock
    }

    /// Serves a revision of a function from now on. Nothing is started before [`Service::ready`]
    /// or the first call, but what it wants at the least.
    pub fn serve(&self, revision: Revision) -> Service {
        let policy = revision.policy();
        let (closed, cold_starts) = (watch::Sender::new(false), Arc::new(AtomicU64::new(0)));
        let is_closed = closed.subscribe();
        let known =
            Known { revision: Arc::new(revision), cold_starts: cold_starts.clone(), closed };
        let key = self.0.with_state(|state| {
            let key = state.pool.register(policy);
            state.services.insert(key, known);
            state.pool.warm(key, 0, Instant::now());
            key
        });
        Service::new(self.0.clone(), key, is_closed, cold_starts)
    }

    /// The engine that instances run on.
    pub fn adapter(&self) -> &Arc<dyn Adapter> {
        self.0.engine.adapter()
    }

    /// All stocks of spares.
    pub fn stocks(&self) -> Vec<Arc<Stock>> {
        self.0.stocks().clone()
    }

    /// Lets running calls finish, for at most `drain`, and stops every instance. Returns when
    /// nothing is left.
    pub async fn shut_down(&self, drain: Duration) {
        let inner = &self.0;
        let deadline = Instant::now() + drain;
        let services = inner.with_state(|state| {
            let keys: Vec<_> = state.services.keys().copied().collect();
            let closed = keys.iter().map(|key| (*key, state.services[key].closed.subscribe()));
            let closed = closed.collect::<Vec<_>>();
            keys.iter().for_each(|key| state.pool.retire(*key, Instant::now()));
            closed
        });
        // No more spares, so that nothing is started on the way out.
        inner.stop.cancel();
        for stock in inner.stocks().iter() {
            stock.clear();
        }
        for (key, mut closed) in services {
            inner.close_by(key, &mut closed, deadline).await;
        }
        inner.tasks.close();
        inner.tasks.wait().await;
        for stock in inner.stocks().iter() {
            stock.clear();
        }
        inner.engine.until_empty().await;
    }
}

impl Inner {
    /// Does something with the state, and then what the table orders.
    pub(crate) fn with_state<T>(self: &Arc<Self>, act: impl FnOnce(&mut State) -> T) -> T {
        self.with_started(None, act)
    }

    pub(crate) fn with_started<T>(
        self: &Arc<Self>,
        phases: Option<StartPhases>,
        act: impl FnOnce(&mut State) -> T,
    ) -> T {
        let mut state = self.lock();
        let outcome = act(&mut state);
        // Leases that nobody waits for any more are released, for which the lock must be free.
        let undelivered = self.carry_out(&mut state, phases);
        drop(state);
        drop(undelivered);
        outcome
    }

    fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        phases: Option<StartPhases>,
    ) -> Vec<Result<Lease, Refusal>> {
        let mut undelivered = Vec::new();
        for order in state.pool.take_orders() {
            match order {
                Order::Start { service, instance } => self.begin_start(state, service, instance),
                Order::Stop { instance } => {
                    if let Some(hosted) = state.instances.get_mut(&instance) {
                        hosted.stop(self.config.stop_grace);
                    }
                }
                Order::Grant { call, instance } => {
                    let lease = Lease::of(self, state, instance, phases);
                    let sender = state.calls.remove(&call);
                    match (sender, lease) {
                        (Some(sender), Some(lease)) => {
                            undelivered.extend(sender.send(Ok(lease)).err());
                        }
                        (None, Some(lease)) => undelivered.push(Ok(lease)),
                        (_, None) => {}
                    }
                }
                Order::Refuse { call, refusal } => {
                    if let Some(sender) = state.calls.remove(&call) {
                        undelivered.extend(sender.send(Err(refusal)).err());
                    }
                }
                Order::Closed { service } => {
                    if let Some(known) = state.services.remove(&service) {
                        known.closed.send_replace(true);
                    }
                }
            }
        }
        undelivered
    }

    /// Waits until a retired service has nothing left, and ends it once it is time.
    pub(crate) async fn close_by(
        self: &Arc<Self>,
        service: ServiceKey,
        closed: &mut watch::Receiver<bool>,
        deadline: Instant,
    ) {
        // The table drops its sender only after saying so.
        if tokio::time::timeout_at(deadline, closed.wait_for(|is| *is)).await.is_err() {
            self.with_state(|state| state.pool.close(service, Instant::now()));
            let _ = closed.wait_for(|is| *is).await;
        }
    }

    async fn keep_time(self: &Arc<Self>) {
        loop {
            let next = self.lock().pool.next_tick(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(next) => {
                    self.with_state(|state| state.pool.tick(Instant::now()));
                }
                () = self.touched.notified() => {}
            }
        }
    }

    /// A task that ends when the executor is shut down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn has_room_for_spare(&self) -> bool {
        let spares: usize = self.stocks().iter().map(|stock| stock.count()).sum();
        (self.lock().pool.live() as usize) + spares < self.config.limits.instances as usize
    }

    /// On a full host, an instance that must be launched takes the place of another's spare.
    pub(crate) fn make_room_beside(&self, stock: &Arc<Stock>) {
        let spares: usize = self.stocks().iter().map(|stock| stock.count()).sum();
        let live = self.lock().pool.live() as usize;
        if live + spares > self.config.limits.instances as usize {
            let others = self.stocks();
            let _ = others.iter().filter(|other| !Arc::ptr_eq(other, stock)).any(|s| s.drop_one());
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    fn stocks(&self) -> MutexGuard<'_, Vec<Arc<Stock>>> {
        self.stocks.lock().expect("no panic while the lock is held")
    }
}
