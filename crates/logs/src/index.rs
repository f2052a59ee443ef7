use std::{
    collections::{HashMap, hash_map::Entry},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use catalog::{Catalog, CatalogError, Segment};
use model::FunctionName;

use crate::trouble::Trouble;

/// Keeps the catalog's index up to date on a thread of its own, a little late, so that a slow sync
/// holds up no lines.
pub(crate) struct Index {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    catalog: Arc<dyn Catalog>,
    every: Duration,
    state: Mutex<State>,
    bell: Condvar,
}

#[derive(Default)]
struct State {
    changes: Changes,
    /// Whether others are being made at the moment.
    is_busy: bool,
    is_closed: bool,
}

/// What is in a file now; none if the file is gone.
type Changes = HashMap<(FunctionName, u64), Option<Segment>>;

const SOUND: &str = "no panic while the lock is held";

impl Index {
    /// The index in a catalog, which is brought up to date so often.
    pub(crate) fn spawn(catalog: Arc<dyn Catalog>, every: Duration) -> std::io::Result<Self> {
        let state = Mutex::default();
        let shared = Arc::new(Shared { catalog, every, state, bell: Condvar::new() });
        let thread = std::thread::Builder::new().name("log-index".into()).spawn({
            let shared = shared.clone();
            move || shared.run()
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(crate) fn put(&self, segment: &Segment) {
        let key = (segment.function.clone(), segment.number);
        self.change(key, Some(segment.clone()));
    }

    pub(crate) fn remove(&self, function: &FunctionName, number: u64) {
        self.change((function.clone(), number), None);
    }

    fn change(&self, key: (FunctionName, u64), change: Option<Segment>) {
        let mut state = self.shared.state();
        let is_first = state.changes.is_empty();
        state.changes.insert(key, change);
        drop(state);
        if is_first {
            self.shared.bell.notify_all();
        }
    }

    /// Takes all that there is about a function out of the index, at once.
    pub(crate) fn forget(&self, function: &FunctionName) -> Result<(), CatalogError> {
        let mut state = self.shared.state();
        state = self.shared.bell.wait_while(state, |state| state.is_busy).expect(SOUND);
        state.changes.retain(|(name, _), _| name != function);
        let catalog = &*self.shared.catalog;
        let numbers: Vec<_> =
            catalog.segments(function, 0)?.iter().map(|segment| segment.number).collect();
        catalog.remove_segments(function, &numbers)
    }
}

/// Makes the last changes first.
impl Drop for Index {
    fn drop(&mut self) {
        self.shared.state().is_closed = true;
        self.shared.bell.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(SOUND)
    }

    fn run(&self) {
        let mut trouble = Trouble::of("the index of functions' logs");
        while let Some(changes) = self.next() {
            let outcome = apply(&changes, &*self.catalog);
            let mut state = self.state();
            state.is_busy = false;
            match outcome {
                Ok(()) => trouble.worked(),
                Err(error) => {
                    trouble.failed(&error);
                    for (key, change) in changes {
                        if let Entry::Vacant(entry) = state.changes.entry(key) {
                            entry.insert(change);
                        }
                    }
                    // What is not in the index by now is found in the files later.
                    if state.is_closed {
                        return;
                    }
                }
            }
            drop(state);
            self.bell.notify_all();
        }
    }

    /// What has gathered; none at the end.
    fn next(&self) -> Option<Changes> {
        let idle = |state: &mut State| state.changes.is_empty() && !state.is_closed;
        let state = self.bell.wait_while(self.state(), idle).expect(SOUND);
        let gathering = |state: &mut State| !state.is_closed;
        let (mut state, _) =
            self.bell.wait_timeout_while(state, self.every, gathering).expect(SOUND);
        state.is_busy = !state.changes.is_empty();
        state.is_busy.then(|| mem::take(&mut state.changes))
    }
}

fn apply(changes: &Changes, catalog: &dyn Catalog) -> Result<(), CatalogError> {
    let put: Vec<_> = changes.values().flatten().cloned().collect();
    if !put.is_empty() {
        catalog.put_segments(&put)?;
    }
    let mut gone: HashMap<&FunctionName, Vec<u64>> = HashMap::new();
    for ((function, number), change) in changes {
        if change.is_none() {
            gone.entry(function).or_default().push(*number);
        }
    }
    gone.iter().try_for_each(|(function, numbers)| catalog.remove_segments(function, numbers))
}
