use std::{io, path::Path};

use async_trait::async_trait;
use executor::Template;
use model::Network;

/// What a source turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The runtime with its version, such as `python-3.11.2`.
    pub runtime: String,
    /// The file that defines the function, relative to the source.
    pub entrypoint: String,
}

/// Why source does not become something to serve. The text is for the user, and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WorkshopError(pub String);

/// Why something that was asked for by name cannot be had. The texts say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOffered {
    /// There is nothing of this name.
    #[error("{0}")]
    Unknown(String),
    /// This machine lacks it.
    #[error("{0}")]
    Missing(String),
}

/// Knows languages: what a source is, how it is built, what its instances are made of.
#[async_trait]
pub trait Workshop: Send + Sync + 'static {
    /// Whether this machine has such a runtime, `node` or `node-20`, and such a network for
    /// instances. May look for programs, and so takes a while.
    fn offers(&self, runtime: Option<&str>, network: Option<Network>) -> Result<(), NotOffered>;

    /// Tells what the source in a directory is, as far as the user has not said so.
    fn examine(
        &self,
        source: &Path,
        runtime: Option<&str>,
        entrypoint: Option<&str>,
    ) -> Result<Plan, WorkshopError>;

    /// Whether there is anything to build, such as packages to install: if not, a deployment does
    /// not wait for others' builds.
    fn has_build(&self, plan: &Plan, source: &Path) -> bool;

    /// Builds the source where it is. What the build prints goes to `output` as it comes. Dropping
    /// the future ends the build.
    async fn build(
        &self,
        plan: &Plan,
        source: &Path,
        output: &(dyn Fn(String) + Send + Sync),
    ) -> Result<(), WorkshopError>;

    /// Makes a built tree one that instances can use: its owner, for one.
    fn hand_over(&self, tree: &Path) -> Result<(), WorkshopError>;

    /// Whether [`Self::hand_over`], as it is today, has been done with this tree: an older daemon
    /// may have made it, or one that used another adapter.
    ///
    /// # Errors
    ///
    /// If the tree cannot be looked at.
    fn is_handed_over(&self, tree: &Path) -> io::Result<bool>;

    /// What instances of a runtime have in common. Equal arguments give equal templates.
    fn template(&self, runtime: &str, network: Option<Network>) -> Result<Template, WorkshopError>;
}
