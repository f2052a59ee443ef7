use api::LogQuery;
use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::Response,
};
use logs::Follower;
use model::{CallId, LogLine, describe};
use tokio::sync::mpsc::{Sender, channel};
use tokio_util::sync::CancellationToken;

use super::{Shared, handlers::named, lines::lines, problem::Refusal};
use crate::store::StoreError;

/// Lines on their way to a reader.
const WINDOW: usize = 256;
const USUAL_LIMIT: usize = 1000;
const MOST_LINES: usize = 100_000;

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
    let query = wanted(&asked)?;
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

fn wanted(asked: &LogQuery) -> Result<logs::Query, Refusal> {
    let call = asked.call.as_deref().map(str::parse::<CallId>).transpose();
    Ok(logs::Query {
        call: call.map_err(|error| Refusal::invalid(error.to_string()))?,
        since: asked.since,
        limit: asked.limit.unwrap_or(USUAL_LIMIT).min(MOST_LINES),
    })
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
