use api::LogQuery;
use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use logs::{CallPart, Follower};
use model::{CallId, FunctionName, LogLine, describe};
use tokio::sync::mpsc::{Sender, channel};
use tokio_util::sync::CancellationToken;

use super::{Shared, handlers::named, lines::lines, problem::Refusal};
use crate::store::StoreError;

/// Lines on their way to a reader.
const WINDOW: usize = 256;
const USUAL_LIMIT: usize = 1000;
const MOST_LINES: usize = 100_000;
/// Calls that are listed where a part of an id means several.
const MOST_CALLS: usize = 10;

/// A function's log, and its new lines if they are asked for.
pub(super) async fn logs(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Refusal> {
    let Query(asked) = query
        .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, "bad-query", describe(&error)))?;
    let name = named(&name)?;
    if shared.platform.active(name.as_str()).is_none() {
        return Err(Refusal::unknown_function(name.as_str()));
    }
    let query = wanted(&shared, &name, &asked).await?;
    let platform = shared.platform.clone();
    let read = move || {
        let failed = |error: logs::LogError| StoreError::Logs(describe(&error));
        if asked.follow {
            let (lines, follower) = platform.logs.read_and_follow(&name, query).map_err(failed)?;
            Ok((lines, Some(follower)))
        } else {
            Ok((platform.logs.read(&name, query).map_err(failed)?, None))
        }
    };
    let (old, follower) = shared.platform.blocking(read).await?;
    let (sender, receiver) = channel(WINDOW);
    let sending = Sending { sender, only: query.call, stop: shared.stop.clone() };
    shared.platform.tasks.spawn(sending.run(old, follower));
    Ok(lines(receiver))
}

async fn wanted(
    shared: &Shared,
    name: &FunctionName,
    asked: &LogQuery,
) -> Result<logs::Query, Refusal> {
    let part = asked.call.as_deref().map(str::parse::<CallPart>).transpose();
    let part = part.map_err(|error| Refusal::invalid(format!("call: {error}")))?;
    let call = match part {
        Some(part) => Some(meant(shared, name, part).await?),
        None => None,
    };
    Ok(logs::Query {
        call,
        since: asked.since,
        limit: asked.limit.unwrap_or(USUAL_LIMIT).min(MOST_LINES),
    })
}

/// The only call that a part of an id can mean. A whole id may be one of a call that has not
/// written anything yet.
async fn meant(shared: &Shared, name: &FunctionName, part: CallPart) -> Result<CallId, Refusal> {
    if let Some(call) = part.whole() {
        return Ok(call);
    }
    let (platform, function) = (shared.platform.clone(), name.clone());
    let find = move || {
        let failed = |error: logs::LogError| StoreError::Logs(describe(&error));
        platform.logs.calls(&function, &part, MOST_CALLS + 1).map_err(failed)
    };
    match shared.platform.blocking(find).await?.as_slice() {
        [] => Err(Refusal::new(
            StatusCode::NOT_FOUND,
            "unknown-call",
            format!("The log of `{name}` has no call whose id begins or ends like that."),
        )),
        [call] => Ok(*call),
        calls => {
            let listed: Vec<_> = calls.iter().take(MOST_CALLS).map(ToString::to_string).collect();
            let more = if calls.len() > MOST_CALLS { ", and more" } else { "" };
            Err(Refusal::invalid(format!(
                "Several calls have ids that begin or end like that; newest first: {}{more}.",
                listed.join(", ")
            )))
        }
    }
}

/// Passes lines on until nobody reads them any more.
struct Sending {
    sender: Sender<LogLine>,
    only: Option<CallId>,
    stop: CancellationToken,
}

impl Sending {
    async fn run(self, old: Vec<LogLine>, follower: Option<Follower>) {
        for line in old {
            if self.sender.send(line).await.is_err() {
                return;
            }
        }
        let Some(mut follower) = follower else { return };
        loop {
            let line = tokio::select! {
                line = follower.next() => line,
                () = self.sender.closed() => return,
                () = self.stop.cancelled() => return,
            };
            let Some(line) = line else { return };
            let is_wanted = self.only.is_none_or(|only| line.call == Some(only));
            if is_wanted && self.sender.send(line).await.is_err() {
                return;
            }
        }
    }
}
