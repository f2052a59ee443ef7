use model::FunctionName;
use rusqlite::{Connection, Row, Transaction, params};

use super::{signed, unsigned};
use crate::{CatalogError, Segment};

pub(super) fn put(transaction: &Transaction<'_>, segments: &[Segment]) -> Result<(), CatalogError> {
    let mut statement = transaction.prepare_cached(
        "INSERT INTO log_segments (function, number, first_at, last_at, bytes, lines)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET first_at = ?3, last_at = ?4, bytes = ?5, lines = ?6",
    )?;
    for Segment { function, number, first_at, last_at, bytes, lines } in segments {
        let (first_at, last_at) = (signed(*first_at), signed(*last_at));
        let (number, bytes, lines) = (signed(*number), signed(*bytes), signed(*lines));
        statement.execute(params![function.as_str(), number, first_at, last_at, bytes, lines])?;
    }
    Ok(())
}

pub(super) fn of_function(
    connection: &Connection,
    function: &FunctionName,
    since: u64,
) -> Result<Vec<Segment>, CatalogError> {
    let mut statement = connection.prepare_cached(
        "SELECT number, first_at, last_at, bytes, lines FROM log_segments
         WHERE function = ?1 AND last_at >= ?2 ORDER BY number",
    )?;
    let rows = statement
        .query_map(params![function.as_str(), signed(since)], |row| segment(row, function))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn segment(row: &Row<'_>, function: &FunctionName) -> rusqlite::Result<Segment> {
    Ok(Segment {
        function: function.clone(),
        number: unsigned(row.get("number")?),
        first_at: unsigned(row.get("first_at")?),
        last_at: unsigned(row.get("last_at")?),
        bytes: unsigned(row.get("bytes")?),
        lines: unsigned(row.get("lines")?),
    })
}

pub(super) fn remove(
    transaction: &Transaction<'_>,
    function: &FunctionName,
    numbers: &[u64],
) -> Result<(), CatalogError> {
    let mut statement = transaction
        .prepare_cached("DELETE FROM log_segments WHERE function = ?1 AND number = ?2")?;
    for number in numbers {
        statement.execute(params![function.as_str(), signed(*number)])?;
    }
    Ok(())
}

pub(super) fn remove_all(
    transaction: &Transaction<'_>,
    function: &FunctionName,
) -> Result<bool, CatalogError> {
    let sql = "DELETE FROM log_segments WHERE function = ?1";
    Ok(transaction.prepare_cached(sql)?.execute([function.as_str()])? > 0)
}
