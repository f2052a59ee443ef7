//! Knows which functions, deployments and artifacts exist, also after the daemon was killed.
//!
//! ```text
//! begin ──► pending ── set_artifact ──► pending ── activate ──► active ──► superseded
//!              └───────────────────────────┴── fail ──► failed
//! ```
//!
//! A function exists from its first activation on; what was tried before can be read as its
//! deployments. Each operation of a [`Catalog`] happens as a whole or not at all. Artifacts are
//! files, named by their SHA-256, in [`Blobs`]. The catalog also keeps the index of functions' logs;
//! the lines themselves are files of the crate `logs`.
//!
//! Everything here blocks for as long as the disk takes: from async code, use `spawn_blocking`.
//! Not here: who may have the data directory open (the program's lock), and what a function's code
//! is made of.

mod blobs;
mod digest;
mod error;
mod record;
mod sqlite;

use std::path::Path;

use model::FunctionName;
use uuid::Uuid;

pub use blobs::{BlobError, Blobs};
pub use digest::{Digest, InvalidDigest};
pub use error::{CatalogError, is_disk_full};
pub use record::{Deployment, DeploymentState, Function, NewDeployment, Segment};
pub use sqlite::{SqliteCatalog, Stores};

/// The most deployments of a function that are kept.
pub const KEPT_DEPLOYMENTS: usize = 10;

/// What exists. Every operation is one transaction, and durable when it returns.
pub trait Catalog: Send + Sync + 'static {
    /// All functions, by name.
    fn functions(&self) -> Result<Vec<Function>, CatalogError>;

    /// One function; none if it does not exist.
    fn function(&self, name: &FunctionName) -> Result<Option<Function>, CatalogError>;

    /// Notes a deployment that is about to be made, as pending. Of a function's older deployments,
    /// as many are forgotten as go beyond [`KEPT_DEPLOYMENTS`]; never a pending or active one.
    fn begin(&self, new: &NewDeployment) -> Result<(), CatalogError>;

    /// Says what was built for a pending deployment.
    fn set_artifact(&self, id: Uuid, artifact: &Digest, bytes: u64) -> Result<(), CatalogError>;

    /// Makes a pending deployment, which has its artifact, the one that serves its function.
    /// The one that served before is superseded.
    fn activate(&self, id: Uuid) -> Result<Function, CatalogError>;

    /// Says that a pending deployment will never serve, and why.
    fn fail(&self, id: Uuid, why: &str) -> Result<(), CatalogError>;

    /// The newest deployments of a function, newest first; also of one that never came to exist.
    fn deployments(
        &self,
        function: &FunctionName,
        limit: usize,
    ) -> Result<Vec<Deployment>, CatalogError>;

    /// Forgets a function, its deployments and the index of its log. Whether there was anything.
    fn remove(&self, function: &FunctionName) -> Result<bool, CatalogError>;

    /// Fails what is pending, because the daemon that worked on it ended. For a daemon's start.
    fn fail_interrupted(&self) -> Result<Vec<Deployment>, CatalogError>;

    /// The artifacts of active and pending deployments: what [`Blobs::sweep`] must keep.
    fn artifacts_in_use(&self) -> Result<Vec<Digest>, CatalogError>;

    /// The artifacts of all deployments, also of those that do not serve any more.
    fn artifacts(&self) -> Result<Vec<Digest>, CatalogError>;

    /// Writes a copy of the catalog, as it is at one moment, to a file that does not exist yet.
    fn copy_to(&self, path: &Path) -> Result<(), CatalogError>;

    /// Adds parts of functions' logs to the index, or replaces what it says about them.
    fn put_segments(&self, segments: &[Segment]) -> Result<(), CatalogError>;

    /// The parts of a function's log that have a line from `since` on, oldest first.
    fn segments(&self, function: &FunctionName, since: u64) -> Result<Vec<Segment>, CatalogError>;

    /// Takes parts of a function's log out of the index; those that are not in it do not matter.
    fn remove_segments(&self, function: &FunctionName, numbers: &[u64])
    -> Result<(), CatalogError>;
}
