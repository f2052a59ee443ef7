use std::{collections::HashMap, fs, io, path::Path, time::Duration};

use catalog::{Catalog, Segment};
use model::{CallId, FunctionName, LogLine};

use crate::{LogError, files};

/// A call's first line may be stamped so much before its id says that it came: clocks are set.
const SLACK: Duration = Duration::from_secs(1);

/// Which lines are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Only what this call wrote, and how it ended.
    pub call: Option<CallId>,
    /// Only what was written since then: milliseconds since 1970.
    pub since: Option<u64>,
    /// The newest so many lines.
    pub limit: usize,
}

impl Query {
    /// Nothing that was written before can be wanted.
    fn floor(&self) -> u64 {
        let slack = u64::try_from(SLACK.as_millis()).unwrap_or(0);
        let came = self.call.and_then(|call| call.at_millis()).unwrap_or(0).saturating_sub(slack);
        came.max(self.since.unwrap_or(0))
    }

    fn wants(&self, line: &LogLine) -> bool {
        self.call.is_none_or(|call| line.call == Some(call))
            && self.since.is_none_or(|since| line.at >= since)
    }
}

/// The beginning or the end of a call's id, or all of it: 1 to 36 characters out of `0-9`, `a-f` and
/// `-`. Ids begin with the time, so calls of the same minute differ only in their ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallPart(String);

/// Text that no call's id begins or ends with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a call's id, or its beginning or end, is 1 to 36 characters out of 0-9 a-f -")]
pub struct InvalidCallPart;

impl std::str::FromStr for CallPart {
    type Err = InvalidCallPart;

    fn from_str(text: &str) -> Result<Self, InvalidCallPart> {
        let is_right = (1..=36).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
        if is_right { Ok(Self(text.to_ascii_lowercase())) } else { Err(InvalidCallPart) }
    }
}

impl CallPart {
    /// The call, if this is the whole of an id.
    pub fn whole(&self) -> Option<CallId> {
        if self.0.len() == 36 { self.0.parse().ok() } else { None }
    }

    fn is_of(&self, call: CallId) -> bool {
        let id = call.to_string();
        id.starts_with(&self.0) || id.ends_with(&self.0)
    }
}

/// How far somebody has written: reading stops there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

impl Position {
    pub(crate) const END: Self = Self { number: u64::MAX, bytes: u64::MAX };
}

/// The newest lines that are wanted, oldest of them first.
pub(crate) fn read(
    root: &Path,
    catalog: &dyn Catalog,
    function: &FunctionName,
    query: Query,
    until: Position,
) -> Result<Vec<LogLine>, LogError> {
    let failed = |source| LogError::Files { step: "read", source };
    let index = catalog.segments(function, 0)?;
    let index: HashMap<_, _> = index.iter().map(|segment| (segment.number, segment)).collect();
    let mut lines = Vec::new();
    for number in files::numbers(root, function).map_err(failed)?.into_iter().rev() {
        if number > until.number || lines.len() >= query.limit {
            continue;
        }
        let path = files::path(root, function, number);
        let segment = index.get(&number).copied();
        let Some(mut bytes) = wanted(&path, segment, query.floor()).map_err(failed)? else {
            continue;
        };
        if number == until.number {
            bytes.truncate(usize::try_from(until.bytes).unwrap_or(usize::MAX));
        }
        collect(&bytes, query, &mut lines);
    }
    lines.reverse();
    Ok(lines)
}

/// The newest `most` calls that the part is of, newest first. Blocks for as long as it takes to read
/// the whole log, which has a limit.
pub(crate) fn calls(
    root: &Path,
    function: &FunctionName,
    part: &CallPart,
    most: usize,
) -> Result<Vec<CallId>, LogError> {
    #[derive(serde::Deserialize)]
    struct Named {
        call: Option<CallId>,
    }
    let failed = |source| LogError::Files { step: "read", source };
    let mut calls = Vec::new();
    for number in files::numbers(root, function).map_err(failed)?.into_iter().rev() {
        let path = files::path(root, function, number);
        let Some(bytes) = wanted(&path, None, 0).map_err(failed)? else { continue };
        for line in bytes.rsplit(|byte| *byte == b'\n').skip(1) {
            // Most lines are another call's, and telling so is much cheaper than reading JSON.
            let is_near = str::from_utf8(line).is_ok_and(|line| line.contains(&part.0));
            let named = if is_near { serde_json::from_slice::<Named>(line).ok() } else { None };
            let call = named.and_then(|named| named.call).filter(|call| part.is_of(*call));
            let Some(call) = call.filter(|call| !calls.contains(call)) else { continue };
            calls.push(call);
            if calls.len() == most {
                return Ok(calls);
            }
        }
    }
    Ok(calls)
}

/// The content of a file that may have lines from `floor` on. None, too, if it is gone by now.
fn wanted(path: &Path, segment: Option<&Segment>, floor: u64) -> io::Result<Option<Vec<u8>>> {
    let content = || {
        let is_old = |segment: &Segment| -> io::Result<bool> {
            // The index may lag behind the file.
            Ok(segment.last_at < floor && fs::metadata(path)?.len() == segment.bytes)
        };
        match segment.map(is_old).transpose()? {
            Some(true) => Ok(None),
            Some(false) | None => fs::read(path).map(Some),
        }
    };
    match content() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome,
    }
}

/// Adds wanted lines, newest first, up to the limit.
fn collect(bytes: &[u8], query: Query, lines: &mut Vec<LogLine>) {
    let call = query.call.map(|call| call.to_string());
    // Behind the last line end is nothing, or a line that is being written.
    for line in bytes.rsplit(|byte| *byte == b'\n').skip(1) {
        if lines.len() >= query.limit {
            return;
        }
        let Ok(text) = str::from_utf8(line) else { continue };
        // Most lines are another call's, and telling so is much cheaper than reading JSON.
        if call.as_ref().is_some_and(|call| !text.contains(call.as_str())) {
            continue;
        }
        let line = serde_json::from_str(text).ok();
        lines.extend(line.filter(|line| query.wants(line)));
    }
}
