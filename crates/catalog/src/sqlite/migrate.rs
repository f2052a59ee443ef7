use rusqlite::{Connection, TransactionBehavior};

use crate::CatalogError;

/// The n-th one makes version n of version n - 1. What is here never changes again.
pub(super) const MIGRATIONS: [&str; 3] = [
    include_str!("../../migrations/0001_functions.sql"),
    include_str!("../../migrations/0002_log_segments.sql"),
    include_str!("../../migrations/0003_identity.sql"),
];

/// From this version on a catalog has an identity.
pub(super) const IDENTITY_SINCE: i64 = 3;

/// Brings the catalog up to date, one transaction per version.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), CatalogError> {
    run(connection, &MIGRATIONS)
}

pub(super) fn run(connection: &mut Connection, migrations: &[&str]) -> Result<(), CatalogError> {
    // Immediate, so that a catalog that is in use is noticed here.
    let behaviour = TransactionBehavior::Immediate;
    let transaction = connection.transaction_with_behavior(behaviour)?;
    let found: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    drop(transaction);
    let known = migrations.len();
    let missing = usize::try_from(found)
        .ok()
        .and_then(|found| migrations.get(found..))
        .ok_or(CatalogError::TooNew { found, known })?;
    for (version, migration) in (found + 1..).zip(missing) {
        let transaction = connection.transaction_with_behavior(behaviour)?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}
