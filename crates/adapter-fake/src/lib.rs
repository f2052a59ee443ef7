//! An adapter without an engine: instances are entries in a table. It fails, stalls and crashes on
//! request, so that what depends on adapters can be tested with a stopped clock.
//!
//! What an instance does is told by the first word of its command: `exit` exits at once with the
//! status in the second word, `stubborn` ends only when it is killed, `missing` cannot be launched.
//! Any other runs until it is stopped. What the *next* launches and attaches do is told with
//! [`FakeAdapter::plan`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use adapter::{Adapter, AdapterError, Attaching};
use async_trait::async_trait;
use model::{Exit, ExitStatus, Instance, InstanceId, LaunchSpec, Limits, paths};
use tokio::{sync::watch, time::timeout};

/// Misbehaviour, to be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A launch fails.
    LaunchFails,
    /// A launch never returns.
    LaunchStalls,
    /// A launch succeeds, and the instance has crashed by then.
    LaunchCrashes,
    /// An attach fails.
    AttachFails,
    /// An attach never returns.
    AttachStalls,
}

/// The adapter. See the crate's documentation.
#[derive(Default)]
pub struct FakeAdapter {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    instances: BTreeMap<InstanceId, FakeInstance>,
    launch_faults: VecDeque<Fault>,
    attach_faults: VecDeque<Fault>,
    attached: BTreeSet<InstanceId>,
    launches: usize,
}

struct FakeInstance {
    is_stubborn: bool,
    exit: watch::Sender<Option<Exit>>,
}

impl FakeAdapter {
    /// Has the next launch, or the next attach, go wrong. Plans are carried out in order.
    pub fn plan(&self, fault: Fault) {
        let mut state = self.lock();
        match fault {
            Fault::LaunchFails | Fault::LaunchStalls | Fault::LaunchCrashes => {
                state.launch_faults.push_back(fault);
            }
            Fault::AttachFails | Fault::AttachStalls => state.attach_faults.push_back(fault),
        }
    }

    /// Ends an instance from outside, as a crash would. Unknown ones are left alone.
    pub fn crash(&self, id: &InstanceId, exit: Exit) {
        if let Some(instance) = self.lock().instances.get(id) {
            instance.end(exit);
        }
    }

    /// How many instances have not been released.
    pub fn count(&self) -> usize {
        self.lock().instances.len()
    }

    /// How many launches were asked for.
    pub fn launches(&self) -> usize {
        self.lock().launches
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while the lock is held")
    }

    fn insert(&self, spec: &LaunchSpec, exit: Option<Exit>) -> Result<(), AdapterError> {
        let mut state = self.lock();
        if state.instances.contains_key(&spec.id) {
            return Err(AdapterError::Exists(spec.id.clone()));
        }
        let is_stubborn = spec.command.first().is_some_and(|word| word == "stubborn");
        let instance = FakeInstance { is_stubborn, exit: watch::Sender::new(exit) };
        state.instances.insert(spec.id.clone(), instance);
        Ok(())
    }
}

impl FakeInstance {
    /// The first end is the one that counts.
    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|current| current.is_none() && current.replace(exit).is_none());
    }
}

fn broken(what: &str) -> AdapterError {
    AdapterError::step(what, io::Error::other("as planned"))
}

const fn ended(status: ExitStatus) -> Exit {
    Exit { status, out_of_memory: false }
}

#[async_trait]
impl Adapter for FakeAdapter {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn is_isolating(&self) -> bool {
        true
    }

    async fn launch(
        &self,
        spec: &LaunchSpec,
        _: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError> {
        let fault = {
            let mut state = self.lock();
            state.launches += 1;
            state.launch_faults.pop_front()
        };
        let words: Vec<&str> = spec.command.iter().map(String::as_str).collect();
        let exit = match (fault, &words[..]) {
            (Some(Fault::LaunchStalls), _) => {
                self.insert(spec, None)?;
                return std::future::pending().await;
            }
            (Some(Fault::LaunchCrashes), _) => Some(ended(ExitStatus::Signal(11))),
            (Some(_), _) | (None, ["missing", ..]) => return Err(broken("start an instance")),
            (None, ["exit", status, ..]) => {
                Some(ended(ExitStatus::Code(status.parse().unwrap_or_default())))
            }
            (None, _) => None,
        };
        self.insert(spec, exit)?;
        Ok(Instance { id: spec.id.clone(), pid: None })
    }

    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError> {
        let exit = self.lock().instances.get(id).map(|instance| instance.exit.subscribe());
        let mut exit = exit.ok_or_else(|| AdapterError::Unknown(id.clone()))?;
        let ended_with = exit.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        Ok(ended_with.unwrap_or(ended(ExitStatus::Unknown)))
    }

    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError> {
        let is_stubborn = {
            let state = self.lock();
            let Some(instance) = state.instances.get(id) else { return Ok(()) };
            if !instance.is_stubborn {
                instance.end(ended(ExitStatus::Signal(15)));
            }
            instance.is_stubborn
        };
        if is_stubborn {
            let _ = timeout(grace, self.wait(id)).await;
        }
        let mut state = self.lock();
        if let Some(instance) = state.instances.remove(id) {
            instance.end(ended(ExitStatus::Signal(9)));
        }
        state.attached.remove(id);
        Ok(())
    }

    async fn recover(&self) -> Result<Vec<Instance>, AdapterError> {
        let instances = self.lock().instances.keys().cloned().collect::<Vec<_>>();
        Ok(instances.into_iter().map(|id| Instance { id, pid: None }).collect())
    }

    fn attaching(&self) -> Option<&dyn Attaching> {
        Some(self)
    }
}

#[async_trait]
impl Attaching for FakeAdapter {
    async fn attach(
        &self,
        id: &InstanceId,
        artifact: &Path,
        _limits: &Limits,
    ) -> Result<PathBuf, AdapterError> {
        let fault = self.lock().attach_faults.pop_front();
        match fault {
            Some(Fault::AttachStalls) => return std::future::pending().await,
            Some(_) => return Err(broken("attach")),
            None => {}
        }
        let mut state = self.lock();
        if !state.instances.contains_key(id) {
            return Err(AdapterError::Unknown(id.clone()));
        }
        if artifact.starts_with("/nonexistent") || !state.attached.insert(id.clone()) {
            return Err(broken("attach"));
        }
        Ok(paths::FUNCTION.into())
    }
}
