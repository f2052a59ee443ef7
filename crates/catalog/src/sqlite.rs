mod deployments;
mod migrate;
mod segments;
mod stores;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use model::FunctionName;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use uuid::Uuid;

pub use stores::Stores;

use crate::{Catalog, CatalogError, Deployment, Digest, Function, NewDeployment, Segment};

/// The catalog's file in the data directory.
const FILE: &str = "catalog.db";
/// How long a backup that copies the file at the moment may make us wait.
const PATIENCE: Duration = Duration::from_millis(250);

/// A catalog in one SQLite file, `catalog.db`, which is open in one process at a time.
#[derive(Debug)]
pub struct SqliteCatalog {
    connection: Mutex<Connection>,
    /// Where the stores beside it remember it.
    note: Option<PathBuf>,
}

impl SqliteCatalog {
    /// Opens the catalog in a directory; makes it, readable by its owner only, if it is missing.
    /// One of an older version is brought up to date first.
    pub fn open(directory: &Path) -> Result<Self, CatalogError> {
        Self::open_checked(directory, None)
    }

    /// The same, beside stores that it must belong to. A catalog that is missing, empty, older than
    /// they are or another one's is refused, and nothing is changed then: what it does not name
    /// would look as if nobody needed it.
    pub fn open_with(directory: &Path, stores: Stores) -> Result<Self, CatalogError> {
        stores.check_file(&directory.join(FILE))?;
        Self::open_checked(directory, Some(stores))
    }

    fn open_checked(directory: &Path, stores: Option<Stores>) -> Result<Self, CatalogError> {
        let path = directory.join(FILE);
        // It holds values of variables. SQLite gives its other files the same mode.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(&path).map_err(CatalogError::Open)?;
        let mut connection = Connection::open(&path)?;
        connection.busy_timeout(PATIENCE)?;
        // Exclusive before WAL: SQLite then needs no shared memory, and keeps others out for good.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "cache_size", -512)?;
        connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
        if let Some(stores) = &stores {
            stores.check(&connection)?;
        }
        migrate::migrate(&mut connection)?;
        let note = stores.map(|stores| stores.note);
        if let Some(note) = &note {
            stores::note(&connection, note);
        }
        Ok(Self { connection: Mutex::new(connection), note })
    }

    /// Looks for damage, as far as SQLite can see it, and forgets the index of logs, which are not
    /// part of a backup.
    pub fn check_copy(&self) -> Result<(), CatalogError> {
        let verdict: String =
            self.connection().query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(CatalogError::Damaged { what: "file", why: verdict });
        }
        self.change(|transaction| Ok(transaction.execute_batch("DELETE FROM log_segments")?))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("no panic while the lock is held")
    }

    /// All of `change` or nothing of it.
    fn change<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut connection = self.connection();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let outcome = change(&transaction)?;
        transaction.commit()?;
        Ok(outcome)
    }
}

impl SqliteCatalog {
    /// A change of what must be kept beside the catalog.
    fn change_stores<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let outcome = self.change(|transaction| {
            stores::count(transaction)?;
            change(transaction)
        })?;
        if let Some(note) = &self.note {
            stores::note(&self.connection(), note);
        }
        Ok(outcome)
    }
}

impl Catalog for SqliteCatalog {
    fn functions(&self) -> Result<Vec<Function>, CatalogError> {
        deployments::functions(&self.connection(), None)
    }

    fn function(&self, name: &FunctionName) -> Result<Option<Function>, CatalogError> {
        Ok(deployments::functions(&self.connection(), Some(name))?.pop())
    }

    fn begin(&self, new: &NewDeployment) -> Result<(), CatalogError> {
        self.change(|transaction| deployments::begin(transaction, new))
    }

    fn set_artifact(&self, id: Uuid, artifact: &Digest, bytes: u64) -> Result<(), CatalogError> {
        self.change_stores(|transaction| {
            deployments::set_artifact(transaction, id, artifact, bytes)
        })
    }

    fn activate(&self, id: Uuid) -> Result<Function, CatalogError> {
        self.change_stores(|transaction| deployments::activate(transaction, id))
    }

    fn fail(&self, id: Uuid, why: &str) -> Result<(), CatalogError> {
        self.change(|transaction| deployments::fail(transaction, id, why))
    }

    fn deployments(
        &self,
        function: &FunctionName,
        limit: usize,
    ) -> Result<Vec<Deployment>, CatalogError> {
        deployments::of_function(&self.connection(), function, limit)
    }

    fn remove(&self, function: &FunctionName) -> Result<bool, CatalogError> {
        self.change_stores(|transaction| {
            let segments = segments::remove_all(transaction, function)?;
            Ok(deployments::remove(transaction, function)? || segments)
        })
    }

    fn fail_interrupted(&self) -> Result<Vec<Deployment>, CatalogError> {
        self.change(deployments::fail_interrupted)
    }

    fn artifacts_in_use(&self) -> Result<Vec<Digest>, CatalogError> {
        deployments::artifacts_in_use(&self.connection())
    }

    fn artifacts(&self) -> Result<Vec<Digest>, CatalogError> {
        deployments::artifacts(&self.connection())
    }

    fn copy_to(&self, path: &Path) -> Result<(), CatalogError> {
        let invalid = || CatalogError::Open(io::ErrorKind::InvalidFilename.into());
        let path = path.to_str().ok_or_else(invalid)?;
        self.connection().execute("VACUUM INTO ?1", [path])?;
        Ok(())
    }

    fn put_segments(&self, segments: &[Segment]) -> Result<(), CatalogError> {
        self.change(|transaction| segments::put(transaction, segments))
    }

    fn segments(&self, function: &FunctionName, since: u64) -> Result<Vec<Segment>, CatalogError> {
        segments::of_function(&self.connection(), function, since)
    }

    fn remove_segments(
        &self,
        function: &FunctionName,
        numbers: &[u64],
    ) -> Result<(), CatalogError> {
        self.change(|transaction| segments::remove(transaction, function, numbers))
    }
}

/// SQLite's integers are signed; our numbers stay far below the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests;
