//! The seam to engines and sandboxes: where code runs.
//!
//! ```text
//! launch ──► running ──► (attach) ──► running ──► gone ──► released
//!               └──── stop, crash, exit ────────────┘  stop
//! ```
//!
//! An adapter starts, watches and stops instances. It does not know which protocol an instance
//! speaks, or why it is wanted. Not here: any concrete engine. What every adapter promises is
//! written as tests in [`conformance`]; each adapter's own tests run them.

pub mod conformance;

use std::{io, os::fd::OwnedFd, path::Path, path::PathBuf, time::Duration};

use async_trait::async_trait;
use model::{Exit, Instance, InstanceId, LaunchSpec, Limits, Network, Usage};

/// Runs instances on one kind of engine or sandbox.
#[async_trait]
pub trait Adapter: Send + Sync + 'static {
    /// The name users choose it by.
    fn name(&self) -> &'static str;

    /// Whether instances are kept from each other and from the host. Production mode asks for it.
    fn is_isolating(&self) -> bool;

    /// Starts an instance. Returns when its program runs, which may be before it listens.
    ///
    /// What the program writes to standard output and standard error goes to `output`, or nowhere.
    /// After a failure nothing is left of the instance. Dropping the future leaves an instance that
    /// `recover` lists and `stop` removes.
    async fn launch(
        &self,
        spec: &LaunchSpec,
        output: Option<OwnedFd>,
    ) -> Result<Instance, AdapterError>;

    /// Returns when the instance is gone, however it ended. Several may wait, and may ask again
    /// until `stop` has released the instance; after that it is [`AdapterError::Unknown`].
    async fn wait(&self, id: &InstanceId) -> Result<Exit, AdapterError>;

    /// Stops an instance and releases all it had: politely, then by force once `grace` is over.
    ///
    /// Must also be called for an instance that ended by itself. Stopping one that is not known
    /// (any more) succeeds, and so does stopping one twice at the same time.
    async fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), AdapterError>;

    /// Lists our instances that have not been released. After a restart, what an earlier owner
    /// left behind has been removed before the adapter exists.
    async fn recover(&self) -> Result<Vec<Instance>, AdapterError>;

    /// Giving code to an instance that is already running, on engines that can.
    fn attaching(&self) -> Option<&dyn Attaching> {
        None
    }

    /// What instances use, on engines that know.
    fn metering(&self) -> Option<&dyn Metering> {
        None
    }
}

/// Tells what instances use.
#[async_trait]
pub trait Metering: Send + Sync {
    /// What an instance uses now. Cheap enough to ask once a second.
    async fn usage(&self, id: &InstanceId) -> Result<Usage, AdapterError>;
}

/// Gives a running instance its function's code: what spares need.
#[async_trait]
pub trait Attaching: Send + Sync {
    /// Makes the artifact (a directory on this host) visible in the instance, and returns its path
    /// as seen from inside. At most once in an instance's life: the second time is an error.
    ///
    /// From then on `limits` hold instead of those it was launched with: a spare does not know yet
    /// whose it will be. An adapter applies what can be changed while an instance runs.
    ///
    /// The instance never changes the artifact: what it writes there is its own and goes with it.
    /// (`process` cannot promise that; it says so.)
    async fn attach(
        &self,
        id: &InstanceId,
        artifact: &Path,
        limits: &Limits,
    ) -> Result<PathBuf, AdapterError>;
}

/// Why an engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// Never launched, or released.
    #[error("no instance `{0}`")]
    Unknown(InstanceId),
    /// The id is taken.
    #[error("instance `{0}` exists already")]
    Exists(InstanceId),
    /// The specification asks for what this adapter cannot give.
    #[error("{adapter} cannot {what}: {instead}")]
    Unsupported {
        /// The adapter's name.
        adapter: &'static str,
        /// What was asked for.
        what: String,
        /// What the user may do about it.
        instead: String,
    },
    /// A step failed, and trying again may help.
    #[error("could not {step}")]
    Step {
        /// What was being done.
        step: String,
        /// What the system said.
        source: io::Error,
    },
    /// The adapter itself has ended.
    #[error("{adapter} is gone: {why}")]
    Gone {
        /// The adapter's name.
        adapter: &'static str,
        /// What happened to it.
        why: String,
    },
}

impl AdapterError {
    /// The error of a step.
    pub fn step(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Step { step: step.into(), source: source.into() }
    }

    /// The error of an adapter that has no such network.
    pub fn no_network(adapter: &'static str, network: Network, instead: &str) -> Self {
        Self::Unsupported {
            adapter,
            what: format!("give an instance the network `{network}`"),
            instead: instead.into(),
        }
    }
}
