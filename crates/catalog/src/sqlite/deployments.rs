use std::{fmt::Display, str::FromStr};

use model::{FunctionName, Settings};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use uuid::Uuid;

use super::{signed, unsigned};
use crate::{
    CatalogError, Deployment, DeploymentState, Digest, Function, KEPT_DEPLOYMENTS, NewDeployment,
};

const INTERRUPTED: &str = "the daemon ended while it was being deployed";

pub(super) fn functions(
    connection: &Connection,
    only: Option<&FunctionName>,
) -> Result<Vec<Function>, CatalogError> {
    let select = "SELECT deployments.*, functions.created_at AS first_at, functions.updated_at
         FROM functions JOIN deployments ON deployments.id = functions.active";
    let mut statement = match only {
        Some(_) => connection.prepare_cached(&format!("{select} WHERE name = ?1"))?,
        None => connection.prepare_cached(&format!("{select} ORDER BY name"))?,
    };
    let rows = match only {
        Some(name) => statement.query_and_then([name.as_str()], function)?,
        None => statement.query_and_then([], function)?,
    };
    rows.collect()
}

fn function(row: &Row<'_>) -> Result<Function, CatalogError> {
    let active = deployment(row)?;
    Ok(Function {
        name: active.function.clone(),
        settings: settings(row)?,
        created_at: unsigned(row.get("first_at")?),
        updated_at: unsigned(row.get("updated_at")?),
        active,
    })
}

fn settings(row: &Row<'_>) -> Result<Settings, CatalogError> {
    let text = row.get_ref("settings")?.as_str().map_err(rusqlite::Error::from)?;
    // Without what serde says: it may quote the value of a variable.
    let damaged = |error: serde_json::Error| CatalogError::Damaged {
        what: "settings",
        why: format!("unexpected JSON at column {}", error.column()),
    };
    serde_json::from_str(text).map_err(damaged)
}

fn deployment(row: &Row<'_>) -> Result<Deployment, CatalogError> {
    let state: String = row.get("state")?;
    let artifact: Option<String> = row.get("artifact")?;
    Ok(Deployment {
        id: parsed("id", &row.get::<_, String>("id")?)?,
        function: parsed("function", &row.get::<_, String>("function")?)?,
        state: DeploymentState::from_text(&state)
            .ok_or(CatalogError::Damaged { what: "state", why: format!("`{state}`") })?,
        runtime: row.get("runtime")?,
        entrypoint: row.get("entrypoint")?,
        artifact: artifact.map(|text| parsed("artifact", &text)).transpose()?,
        artifact_bytes: unsigned(row.get("artifact_bytes")?),
        failure: row.get("failure")?,
        created_at: unsigned(row.get("created_at")?),
    })
}

fn parsed<T: FromStr<Err: Display>>(what: &'static str, text: &str) -> Result<T, CatalogError> {
    text.parse().map_err(|error| CatalogError::Damaged { what, why: format!("`{text}`: {error}") })
}

pub(super) fn begin(
    transaction: &Transaction<'_>,
    new: &NewDeployment,
) -> Result<(), CatalogError> {
    let settings = serde_json::to_string(&new.settings).expect("plain data becomes JSON");
    let sql = "INSERT INTO deployments
         (id, function, state, runtime, entrypoint, settings, created_at)
         VALUES (?1, ?2, 'pending', ?3, ?4, ?5, ?6)";
    transaction.prepare_cached(sql)?.execute(params![
        new.id.to_string(),
        new.function.as_str(),
        new.runtime,
        new.entrypoint,
        settings,
        signed(new.created_at)
    ])?;
    forget_old(transaction, &new.function)
}

fn forget_old(transaction: &Transaction<'_>, function: &FunctionName) -> Result<(), CatalogError> {
    let sql = "DELETE FROM deployments
         WHERE function = ?1 AND state IN ('superseded', 'failed') AND id NOT IN (
             SELECT id FROM deployments WHERE function = ?1
             ORDER BY state IN ('pending', 'active') DESC, rowid DESC LIMIT ?2)";
    let kept = i64::try_from(KEPT_DEPLOYMENTS).unwrap_or(i64::MAX);
    transaction.prepare_cached(sql)?.execute(params![function.as_str(), kept])?;
    Ok(())
}

pub(super) fn set_artifact(
    transaction: &Transaction<'_>,
    id: Uuid,
    artifact: &Digest,
    bytes: u64,
) -> Result<(), CatalogError> {
    pending(transaction, id)?;
    let sql = "UPDATE deployments SET artifact = ?2, artifact_bytes = ?3 WHERE id = ?1";
    let mut statement = transaction.prepare_cached(sql)?;
    statement.execute(params![id.to_string(), artifact.to_string(), signed(bytes)])?;
    Ok(())
}

pub(super) fn activate(transaction: &Transaction<'_>, id: Uuid) -> Result<Function, CatalogError> {
    let deployment = pending(transaction, id)?;
    if deployment.artifact.is_none() {
        return Err(CatalogError::NoArtifact(id));
    }
    let name = deployment.function.as_str();
    let supersede = "UPDATE deployments SET state = 'superseded'
         WHERE function = ?1 AND state = 'active'";
    transaction.prepare_cached(supersede)?.execute([name])?;
    let activate = "UPDATE deployments SET state = 'active' WHERE id = ?1";
    transaction.prepare_cached(activate)?.execute([id.to_string()])?;
    let at = signed(deployment.created_at);
    let sql = "INSERT INTO functions (name, active, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT DO UPDATE SET active = ?2, updated_at = ?3";
    transaction.prepare_cached(sql)?.execute(params![name, id.to_string(), at])?;
    functions(transaction, Some(&deployment.function))?
        .pop()
        .ok_or(CatalogError::UnknownDeployment(id))
}

pub(super) fn fail(transaction: &Transaction<'_>, id: Uuid, why: &str) -> Result<(), CatalogError> {
    pending(transaction, id)?;
    let sql = "UPDATE deployments SET state = 'failed', failure = ?2 WHERE id = ?1";
    transaction.prepare_cached(sql)?.execute(params![id.to_string(), why])?;
    Ok(())
}

fn pending(transaction: &Transaction<'_>, id: Uuid) -> Result<Deployment, CatalogError> {
    let mut statement = transaction.prepare_cached("SELECT * FROM deployments WHERE id = ?1")?;
    let found = statement.query_row([id.to_string()], |row| Ok(deployment(row))).optional()?;
    let deployment = found.ok_or(CatalogError::UnknownDeployment(id))??;
    match deployment.state {
        DeploymentState::Pending => Ok(deployment),
        state => Err(CatalogError::NotPending { id, state }),
    }
}

pub(super) fn of_function(
    connection: &Connection,
    function: &FunctionName,
    limit: usize,
) -> Result<Vec<Deployment>, CatalogError> {
    let mut statement = connection.prepare_cached(
        "SELECT * FROM deployments WHERE function = ?1
         ORDER BY rowid DESC LIMIT ?2",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = statement.query_and_then(params![function.as_str(), limit], deployment)?;
    rows.collect()
}

pub(super) fn remove(
    transaction: &Transaction<'_>,
    function: &FunctionName,
) -> Result<bool, CatalogError> {
    let name = function.as_str();
    transaction.prepare_cached("DELETE FROM functions WHERE name = ?1")?.execute([name])?;
    let sql = "DELETE FROM deployments WHERE function = ?1";
    Ok(transaction.prepare_cached(sql)?.execute([name])? > 0)
}

pub(super) fn fail_interrupted(
    transaction: &Transaction<'_>,
) -> Result<Vec<Deployment>, CatalogError> {
    let mut statement = transaction.prepare_cached(
        "UPDATE deployments SET state = 'failed', failure = ?1 WHERE state = 'pending'
         RETURNING *",
    )?;
    statement.query_and_then([INTERRUPTED], deployment)?.collect()
}

/// All that any deployment has, whatever became of it.
pub(super) fn artifacts(connection: &Connection) -> Result<Vec<Digest>, CatalogError> {
    digests(connection, "SELECT DISTINCT artifact FROM deployments WHERE artifact IS NOT NULL")
}

pub(super) fn artifacts_in_use(connection: &Connection) -> Result<Vec<Digest>, CatalogError> {
    let sql = "SELECT DISTINCT artifact FROM deployments
         WHERE state IN ('pending', 'active') AND artifact IS NOT NULL";
    digests(connection, sql)
}

fn digests(connection: &Connection, sql: &str) -> Result<Vec<Digest>, CatalogError> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_and_then([], |row| {
        parsed("artifact", row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)
    })?;
    rows.collect()
}
