//! A store in a directory of its own, with a clock that tests set.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use catalog::{
    Catalog, CatalogError, Deployment, Digest, Function, NewDeployment, Segment, SqliteCatalog,
};
use logs::{FunctionLog, LogLimits, LogStore, Query};
use model::{CallEnd, CallId, FunctionName, LogEvent, LogLine, Outcome};
use uuid::Uuid;

pub(crate) const ALL: Query = Query { call: None, since: None, limit: usize::MAX };
/// Where the clock stands at first.
pub(crate) const START: u64 = 1_800_000_000_000;

pub(crate) struct Lab {
    pub(crate) store: LogStore,
    pub(crate) catalog: Arc<Gate>,
    pub(crate) clock: Arc<AtomicU64>,
    limits: LogLimits,
    directory: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(LogLimits::default())
    }

    pub(crate) fn with(limits: LogLimits) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::open(directory, limits, Arc::new(AtomicU64::new(START)))
    }

    fn open(directory: tempfile::TempDir, limits: LogLimits, clock: Arc<AtomicU64>) -> Self {
        let catalog = SqliteCatalog::open(directory.path()).expect("a catalog");
        let catalog = Arc::new(Gate { catalog, state: Mutex::default(), bell: Condvar::new() });
        let time = clock.clone();
        let store = LogStore::with_clock(
            &directory.path().join("logs"),
            limits.clone(),
            catalog.clone(),
            Arc::new(move || time.load(Ordering::Relaxed)),
        );
        Self { store: store.expect("a store"), catalog, clock, limits, directory }
    }

    /// As after a restart of the daemon, with something done in between.
    pub(crate) fn reopened(self, between: impl FnOnce(&dyn Catalog)) -> Self {
        let Self { store, catalog, clock, limits, directory } = self;
        drop(store);
        between(&*catalog);
        drop(catalog);
        Self::open(directory, limits, clock)
    }

    pub(crate) fn function(&self, name: &str) -> Arc<FunctionLog> {
        self.store.function(&function(name))
    }

    pub(crate) fn read(&self, name: &str, query: Query) -> Vec<LogLine> {
        self.store.read(&function(name), query).expect("read")
    }

    /// The lines of a whole log, without times and ids.
    pub(crate) fn texts(&self, name: &str) -> Vec<String> {
        self.read(name, ALL).iter().map(text).collect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("logs").join(name)
    }

    /// Names and sizes of a function's files, in order.
    pub(crate) fn files(&self, name: &str) -> Vec<(String, u64)> {
        let Ok(entries) = fs::read_dir(self.path(name)) else { return Vec::new() };
        let mut files: Vec<_> = entries
            .map(|entry| {
                let entry = entry.expect("an entry");
                let name = entry.file_name().into_string().expect("plain");
                (name, entry.metadata().expect("metadata").len())
            })
            .collect();
        files.sort_unstable();
        files
    }

    pub(crate) fn pass(&self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).expect("not that long");
        self.clock.fetch_add(millis, Ordering::Relaxed);
    }
}

pub(crate) fn function(name: &str) -> FunctionName {
    name.parse().expect("a name")
}

pub(crate) fn call(number: u64) -> CallId {
    let stamp = u128::from(START) << 80;
    CallId(Uuid::from_u128(stamp | 0x7000_8000_0000_0000_0000 | u128::from(number)))
}

pub(crate) fn end(path: &str) -> CallEnd {
    CallEnd {
        method: "GET".into(),
        path: path.into(),
        outcome: Outcome::Served,
        status: Some(200),
        instance: Some("hello-1".into()),
        error: None,
        phases: [1, 2, 3, 4, 5, 6, 7],
    }
}

pub(crate) fn text(line: &LogLine) -> String {
    match &line.event {
        LogEvent::Entry { stream, text } => format!("{stream:?}: {text}").to_lowercase(),
        LogEvent::Note { text } => format!("note: {text}"),
        LogEvent::End(end) => format!("end: {} {}", end.method, end.path),
    }
}

/// Waits for something that happens soon.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("never: {what}");
}

/// A catalog whose index of logs can be made to stall, and whoever uses it too; or to fail.
pub(crate) struct Gate {
    catalog: SqliteCatalog,
    state: Mutex<GateState>,
    bell: Condvar,
}

#[derive(Default)]
struct GateState {
    is_shut: bool,
    waiting: usize,
    is_broken: bool,
    failures: usize,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().expect("no panic")
    }

    pub(crate) fn shut(&self) {
        self.state().is_shut = true;
    }

    pub(crate) fn open(&self) {
        self.state().is_shut = false;
        self.bell.notify_all();
    }

    /// How many wait for it to open.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Whether changes of the index fail from now on.
    pub(crate) fn set_broken(&self, is_broken: bool) {
        self.state().is_broken = is_broken;
    }

    /// How many changes have failed.
    pub(crate) fn failures(&self) -> usize {
        self.state().failures
    }

    fn pass(&self) {
        let mut state = self.state();
        state.waiting += 1;
        state = self.bell.wait_while(state, |state| state.is_shut).expect("no panic");
        state.waiting -= 1;
    }
}

impl Catalog for Gate {
    fn put_segments(&self, segments: &[Segment]) -> Result<(), CatalogError> {
        self.pass();
        let mut state = self.state();
        if state.is_broken {
            state.failures += 1;
            return Err(CatalogError::InUse);
        }
        drop(state);
        self.catalog.put_segments(segments)
    }

    fn segments(&self, name: &FunctionName, since: u64) -> Result<Vec<Segment>, CatalogError> {
        self.pass();
        self.catalog.segments(name, since)
    }

    fn remove_segments(&self, name: &FunctionName, numbers: &[u64]) -> Result<(), CatalogError> {
        self.pass();
        self.catalog.remove_segments(name, numbers)
    }

    fn functions(&self) -> Result<Vec<Function>, CatalogError> {
        self.catalog.functions()
    }

    fn artifacts(&self) -> Result<Vec<Digest>, CatalogError> {
        self.catalog.artifacts()
    }

    fn copy_to(&self, path: &std::path::Path) -> Result<(), CatalogError> {
        self.catalog.copy_to(path)
    }

    fn function(&self, name: &FunctionName) -> Result<Option<Function>, CatalogError> {
        self.catalog.function(name)
    }

    fn begin(&self, new: &NewDeployment) -> Result<(), CatalogError> {
        self.catalog.begin(new)
    }

    fn set_artifact(&self, id: Uuid, artifact: &Digest, bytes: u64) -> Result<(), CatalogError> {
        self.catalog.set_artifact(id, artifact, bytes)
    }

    fn activate(&self, id: Uuid) -> Result<Function, CatalogError> {
        self.catalog.activate(id)
    }

    fn fail(&self, id: Uuid, why: &str) -> Result<(), CatalogError> {
        self.catalog.fail(id, why)
    }

    fn deployments(
        &self,
        name: &FunctionName,
        limit: usize,
    ) -> Result<Vec<Deployment>, CatalogError> {
        self.catalog.deployments(name, limit)
    }

    fn remove(&self, name: &FunctionName) -> Result<bool, CatalogError> {
        self.catalog.remove(name)
    }

    fn fail_interrupted(&self) -> Result<Vec<Deployment>, CatalogError> {
        self.catalog.fail_interrupted()
    }

    fn artifacts_in_use(&self) -> Result<Vec<Digest>, CatalogError> {
        self.catalog.artifacts_in_use()
    }
}
