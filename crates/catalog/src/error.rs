use std::path::PathBuf;

use uuid::Uuid;

use crate::DeploymentState;

/// Why the catalog did not do something. Nothing of it was done then.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// Two daemons with one data directory would each believe to know what exists.
    #[error("another process has the catalog open")]
    InUse,
    /// A later version of Hearth wrote it.
    #[error("the catalog is of version {found}, and this program knows versions up to {known}")]
    TooNew {
        /// The version of the file.
        found: i64,
        /// The newest version that this program can read.
        known: usize,
    },
    /// There is no catalog, or an empty one, and artifacts or logs beside it.
    #[error("there is no catalog, and there are artifacts or logs")]
    Missing,
    /// The stores beside the catalog have seen a later state of it.
    #[error(
        "the catalog is older than the artifacts beside it, as one copied without catalog.db-wal"
    )]
    Older {
        /// The file that says so.
        note: PathBuf,
    },
    /// The stores belong to another catalog.
    #[error("the artifacts beside the catalog belong to another one")]
    Stranger {
        /// The file that says so.
        note: PathBuf,
    },
    /// There is no such deployment.
    #[error("no deployment `{0}`")]
    UnknownDeployment(Uuid),
    /// Only a pending deployment can change.
    #[error("deployment `{id}` is {} already", state.as_str())]
    NotPending {
        /// The deployment.
        id: Uuid,
        /// What became of it.
        state: DeploymentState,
    },
    /// A deployment without an artifact cannot serve.
    #[error("deployment `{0}` has no artifact")]
    NoArtifact(Uuid),
    /// Something in the catalog is not what the program wrote.
    #[error("the catalog's {what} cannot be read: {why}")]
    Damaged {
        /// Which column.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The file cannot be made.
    #[error("could not open the catalog")]
    Open(#[source] std::io::Error),
    /// SQLite, or the disk below it.
    #[error("the catalog's database failed")]
    Database(#[source] rusqlite::Error),
}

impl CatalogError {
    /// Whether the disk is full: the same may succeed once there is room again.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Database(error) => {
                error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            Self::Open(error) => is_disk_full(error),
            Self::InUse
            | Self::TooNew { .. }
            | Self::Missing
            | Self::Older { .. }
            | Self::Stranger { .. }
            | Self::UnknownDeployment(_)
            | Self::NotPending { .. }
            | Self::NoArtifact(_)
            | Self::Damaged { .. } => false,
        }
    }
}

/// Whether there was no room on the disk, or none for this user: the same may succeed once there is.
pub fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl From<rusqlite::Error> for CatalogError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Self::InUse
            }
            _ => Self::Database(error),
        }
    }
}
