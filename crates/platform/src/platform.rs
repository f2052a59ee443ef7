//! What exists and is served.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, RwLock, Weak},
    time::Duration,
};

use catalog::{Catalog, CatalogError, SqliteCatalog};
use executor::{Executor, Revision, Service};
use front::{Functions, Target};
use logs::{FunctionLog, LogError, LogLimits, LogStore};
use model::{Capacity, FunctionName, Settings, describe};
use telemetry::{Metrics, Spans};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::{
    builds::Builds,
    function::{Active, Current, FunctionJournal, Observers},
    room::Room,
    store::{Store, StoreError},
    switchboard::Switchboard,
    under_way::UnderWay,
    workshop::Workshop,
};

/// How long what was being done for the API may take.
const LAST_TASKS: Duration = Duration::from_secs(5);
/// How long the last spans may take.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// How a platform is set up.
#[derive(Clone, Debug)]
pub struct PlatformConfig {
    /// Where everything is kept. Nobody else may use it meanwhile.
    pub data: PathBuf,
    /// Where functions are called, without a slash at its end.
    pub url: String,
    /// The most bytes of an uploaded source, compressed.
    pub upload_bytes: u64,
    /// Builds at once, of different functions; others wait.
    pub builds: usize,
    /// Deployments that are under way or wait; more are refused.
    pub deployments: usize,
    /// How long a new deployment's first instance may take.
    pub start_timeout: Duration,
    /// How long the calls of a deployment that is replaced or removed may take.
    pub drain_timeout: Duration,
    /// How long the code of a function may take to load.
    pub bind_timeout: Duration,
    /// How much of the functions' logs is kept.
    pub logs: LogLimits,
    /// What the machine has: no more can be asked for.
    pub machine: Capacity,
}

/// Why a platform did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The catalog cannot be used.
    #[error("could not open the catalog")]
    Catalog(#[from] CatalogError),
    /// The logs cannot be used.
    #[error("could not open the logs")]
    Logs(#[from] LogError),
    /// Artifacts cannot be used.
    #[error("could not open the artifacts: {0}")]
    Artifacts(String),
}

/// All functions, and what serves them. Its tasks end with [`Platform::shut_down`].
pub struct Platform {
    pub(crate) config: PlatformConfig,
    pub(crate) catalog: Arc<dyn Catalog>,
    pub(crate) store: Store,
    pub(crate) logs: LogStore,
    pub(crate) executor: Executor,
    pub(crate) workshop: Arc<dyn Workshop>,
    pub(crate) observers: Observers,
    pub(crate) builds: Builds,
    /// Places for deployments that are under way or wait.
    pub(crate) deployments: Arc<Semaphore>,
    pub(crate) under_way: UnderWay,
    /// The place for a backup that is being made.
    pub(crate) backups: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the daemon is told to end.
    pub(crate) stop: CancellationToken,
    switchboard: Switchboard,
    functions: RwLock<HashMap<FunctionName, Known>>,
    /// Who changes a function takes its turn.
    turns: Mutex<HashMap<FunctionName, Weak<Turn>>>,
}

/// Changes of one function come one after the other.
pub(crate) struct Turn {
    pub(crate) lock: tokio::sync::Mutex<()>,
    /// Places for deployments of this function that are under way or wait.
    pub(crate) deployments: Arc<Semaphore>,
    /// The number of the last deployment that came. Whoever has a smaller one need not go on for
    /// long.
    pub(crate) newest: watch::Sender<u64>,
    /// How often somebody wanted the function removed: whoever deploys it meanwhile need not go on.
    pub(crate) removals: watch::Sender<u64>,
}

/// Deployments of one function that are under way, wait, or are being received.
pub(crate) const DEPLOYMENTS_OF_ONE: usize = 4;

impl Default for Turn {
    fn default() -> Self {
        Self {
            lock: tokio::sync::Mutex::default(),
            deployments: Arc::new(Semaphore::new(DEPLOYMENTS_OF_ONE)),
            newest: watch::Sender::default(),
            removals: watch::Sender::default(),
        }
    }
}

#[derive(Clone)]
struct Known {
    active: Arc<Active>,
    journal: Arc<FunctionJournal>,
    timeout: Duration,
}

/// What a platform is made of, beside its data.
pub struct Parts {
    /// Owns the instances.
    pub executor: Executor,
    /// Where the executor's instances write.
    pub switchboard: Switchboard,
    /// Knows languages.
    pub workshop: Arc<dyn Workshop>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Sends spans.
    pub spans: Arc<Spans>,
    /// Cancelled when the daemon is told to end: deployments are given up then.
    pub stop: CancellationToken,
}

impl Platform {
    /// Opens the data directory, removes what an earlier daemon left half-done, and serves what
    /// exists. Blocks; must be called within a tokio runtime.
    pub fn open(config: PlatformConfig, parts: Parts) -> Result<Arc<Self>, OpenError> {
        let artifacts = |error: StoreError| OpenError::Artifacts(describe(&error));
        let store = Store::open(&config.data).map_err(artifacts)?;
        let stores = store.stores().map_err(artifacts)?;
        let catalog =
            store.with_room(|| Ok(SqliteCatalog::open_with(&config.data, stores.clone())?));
        let catalog: Arc<dyn Catalog> = Arc::new(catalog.map_err(|error| match error {
            StoreError::Catalog(error) => OpenError::Catalog(error),
            error => artifacts(error),
        })?);
        let logs = LogStore::open(&config.data.join("logs"), config.logs.clone(), catalog.clone())?;
        for deployment in catalog.fail_interrupted()? {
            warn!(function = %deployment.function, deployment = %deployment.id, "was interrupted");
        }
        let platform = Arc::new(Self {
            builds: Builds::new(config.builds),
            deployments: Arc::new(Semaphore::new(config.deployments)),
            under_way: UnderWay::default(),
            backups: Arc::new(Semaphore::new(1)),
            config,
            catalog,
            store,
            logs,
            executor: parts.executor,
            workshop: parts.workshop,
            observers: Observers { metrics: parts.metrics, spans: parts.spans },
            tasks: TaskTracker::new(),
            stop: parts.stop,
            switchboard: parts.switchboard,
            functions: RwLock::default(),
            turns: Mutex::default(),
        });
        platform.store.set_aside(&*platform.catalog).map_err(artifacts)?;
        platform.store.sweep(&platform.catalog).map_err(artifacts)?;
        platform.store.discard_foreign(&*platform.workshop).map_err(artifacts)?;
        platform.serve_all()?;
        Ok(platform)
    }

    /// Gives up deployments, lets calls finish, ends all instances, and writes what is left to
    /// write.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.executor.shut_down(self.config.drain_timeout).await;
        self.tasks.close();
        if timeout(LAST_TASKS, self.tasks.wait()).await.is_err() {
            warn!("some requests of the API were not finished");
        }
        self.logs.shutdown();
        let spans = self.observers.spans.clone();
        let _ = tokio::task::spawn_blocking(move || spans.shutdown(LAST_SPANS)).await;
    }

    fn serve_all(&self) -> Result<(), OpenError> {
        let functions = self.catalog.functions()?;
        info!(functions = functions.len(), "serving what exists");
        for function in functions {
            let log = self.logs.function(&function.name);
            let current = self.current_of(&function, &log);
            self.put(function.name, log, current);
        }
        Ok(())
    }

    /// What serves a function of the catalog, or why nothing does.
    fn current_of(&self, function: &catalog::Function, log: &Arc<FunctionLog>) -> Current {
        let catalog::Function { name, settings, active, .. } = function;
        let service = self.served(name, settings, active, log);
        if let Err(why) = &service {
            warn!(function = %name, why, "cannot be served");
        }
        let pin = active.artifact.as_ref().map(|artifact| self.store.pin(artifact));
        Current { settings: settings.clone(), service, _pin: pin }
    }

    fn served(
        &self,
        name: &FunctionName,
        settings: &Settings,
        deployment: &catalog::Deployment,
        log: &Arc<FunctionLog>,
    ) -> Result<Arc<Service>, String> {
        let Some(artifact) = &deployment.artifact else {
            return Err("The function has no artifact; deploy it again.".into());
        };
        let tree = self.store.restore(artifact, &*self.workshop).map_err(|error| {
            format!(
                "The function's artifact cannot be used: {}; deploy it again.",
                describe(&error)
            )
        })?;
        let source =
            Source { runtime: &deployment.runtime, entrypoint: &deployment.entrypoint, tree };
        self.serve(name, settings, source, log)
    }

    /// Has the executor serve an artifact. Nothing is started but what is to be kept.
    pub(crate) fn serve(
        &self,
        name: &FunctionName,
        settings: &Settings,
        source: Source<'_>,
        log: &Arc<FunctionLog>,
    ) -> Result<Arc<Service>, String> {
        let template = self
            .workshop
            .template(source.runtime, settings.network)
            .map_err(|error| format!("The function's runtime cannot be used: {error}."))?;
        let entrypoint = ("OPEN_RUNTIMES_ENTRYPOINT".to_owned(), source.entrypoint.to_owned());
        let own = settings.environment.iter().map(|(key, value)| (key.clone(), value.clone()));
        let (switchboard, log) = (self.switchboard.clone(), log.clone());
        let revision = Revision {
            label: name.to_string(),
            stock: self.executor.stock(&template),
            artifact: source.tree,
            entrypoint: source.entrypoint.to_owned(),
            environment: std::iter::once(entrypoint).chain(own).collect(),
            limits: settings.limits.clone(),
            scale: settings.scale,
            is_single_use: false,
            bind_timeout: self.config.bind_timeout,
            on_bind: Some(Arc::new(move |id| switchboard.connect(id, log.instance(id)))),
        };
        Ok(Arc::new(self.executor.serve(revision)))
    }

    /// Lets a deployment serve all calls from now on. Returns the one that did so far.
    pub(crate) fn put(
        &self,
        name: FunctionName,
        log: Arc<FunctionLog>,
        current: Current,
    ) -> Option<Arc<Current>> {
        let limit = current.settings.timeout;
        let mut functions = self.functions.write().expect("no panic while the lock is held");
        if let Some(known) = functions.get_mut(&name) {
            known.timeout = limit;
            return Some(known.active.switch(current));
        }
        let active = Active::new(name.clone(), log, current, self.observers.clone());
        let active = Arc::new(active);
        let journal = Arc::new(FunctionJournal(active.clone()));
        functions.insert(name, Known { active, journal, timeout: limit });
        None
    }

    pub(crate) fn active(&self, name: &str) -> Option<Arc<Active>> {
        let functions = self.functions.read().expect("no panic while the lock is held");
        functions.get(name).map(|known| known.active.clone())
    }

    /// How many functions are served.
    pub(crate) fn count(&self) -> usize {
        self.functions.read().expect("no panic while the lock is held").len()
    }

    /// All functions that are served, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Active>> {
        let functions = self.functions.read().expect("no panic while the lock is held");
        functions.values().map(|known| known.active.clone()).collect()
    }

    /// What this host has room for, beside a function.
    pub(crate) fn room_beside(&self, name: &FunctionName) -> Room {
        let kept_by = |active: &Arc<Active>| {
            let min = active.current().settings.scale.min;
            (active.name != *name && min > 0).then(|| (active.name.clone(), min))
        };
        Room {
            places: self.executor.max_instances(),
            most_kept: self.executor.most_kept(),
            others: self.all().iter().filter_map(kept_by).collect(),
        }
    }

    /// Removes a function with everything it had; a deployment of it that is under way fails.
    /// False if there is no trace of it.
    pub(crate) async fn remove(self: &Arc<Self>, name: &FunctionName) -> Result<bool, StoreError> {
        let turn = self.turn(name);
        turn.removals.send_modify(|count| *count += 1);
        let _changing = turn.lock.lock().await;
        let (platform, removed) = (self.clone(), name.clone());
        let remove = move || {
            // Also on a full disk, or nobody could make room.
            platform.store.with_room(|| Ok(platform.catalog.remove(&removed)?))
        };
        let was_there = self.blocking(remove).await?;
        let known = {
            let mut functions = self.functions.write().expect("no panic while the lock is held");
            functions.remove(name)
        };
        if let Some(Known { active, .. }) = &known {
            self.retire(active.current()).await;
        }
        drop(known);
        self.observers.metrics.remove_function(name);
        let (platform, removed) = (self.clone(), name.clone());
        self.blocking(move || {
            platform.logs.remove(&removed).map_err(|error| StoreError::Logs(describe(&error)))?;
            platform.store.with_room(|| platform.store.sweep(&platform.catalog))
        })
        .await?;
        if was_there {
            info!(function = %name, "removed");
        }
        Ok(was_there)
    }

    /// Ends a deployment that does not serve any more.
    pub(crate) async fn retire(&self, earlier: Arc<Current>) {
        if let Ok(service) = &earlier.service {
            service.retire(self.config.drain_timeout).await;
        }
    }

    /// Where those who change a function wait for their turn.
    pub(crate) fn turn(&self, name: &FunctionName) -> Arc<Turn> {
        let mut turns = self.turns.lock().expect("no panic while the lock is held");
        turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = turns.get(name).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::<Turn>::default();
        turns.insert(name.clone(), Arc::downgrade(&turn));
        turn
    }

    /// Does something that waits for the disk, off the thread that serves calls.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        match self.tasks.spawn_blocking(work).await {
            Ok(outcome) => outcome,
            Err(error) => Err(StoreError::Task(error.to_string())),
        }
    }

    /// Where a function is called.
    pub(crate) fn url_of(&self, name: &FunctionName) -> String {
        format!("{}/fn/{name}", self.config.url)
    }
}

/// Where a deployment's code is, and what it is written for.
pub(crate) struct Source<'a> {
    pub(crate) runtime: &'a str,
    pub(crate) entrypoint: &'a str,
    pub(crate) tree: PathBuf,
}

impl Functions for Platform {
    fn find(&self, name: &str) -> Option<Target> {
        let functions = self.functions.read().expect("no panic while the lock is held");
        let Known { active, journal, timeout } = functions.get(name)?;
        Some(Target {
            name: active.name.clone(),
            function: active.clone(),
            journal: journal.clone(),
            timeout: *timeout,
        })
    }
}
