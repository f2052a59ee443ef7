use axum::{
    Json,
    extract::{Extension, Path, State},
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{CONTENT_TYPE, HOST},
    },
    response::{IntoResponse, Response},
};
use executor::Activity;
use front::{Peer, is_loopback_authority};
use model::FunctionName;
use telemetry::{Levels, METRICS_CONTENT_TYPE};

use super::{Administration, Shared, problem::Refusal};

/// A name in a path, which may be any text.
pub(super) fn named(text: &str) -> Result<FunctionName, Refusal> {
    // What cannot be a name is the name of no function.
    text.parse().map_err(|_| Refusal::unknown_function(text))
}

pub(super) async fn functions(
    State(shared): State<Shared>,
) -> Result<Json<Vec<api::Function>>, Refusal> {
    Ok(Json(shared.platform.list().await?))
}

pub(super) async fn function(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<api::Function>, Refusal> {
    let function = shared.platform.find(&named(&name)?).await?;
    function.map(Json).ok_or_else(|| Refusal::unknown_function(&name))
}

pub(super) async fn remove(
    State(shared): State<Shared>,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let (parsed, platform) = (named(&name)?, shared.platform.clone());
    // A removal that has begun is finished, also if nobody waits for it.
    let removing = shared.platform.tasks.spawn(async move { platform.remove(&parsed).await });
    let outcome = removing
        .await
        .unwrap_or_else(|error| Err(crate::store::StoreError::Task(error.to_string())));
    if outcome? { Ok(StatusCode::NO_CONTENT) } else { Err(Refusal::unknown_function(&name)) }
}

pub(super) async fn instances(State(shared): State<Shared>) -> Json<Vec<api::Instance>> {
    Json(shared.platform.instances().await)
}

pub(super) async fn status(State(shared): State<Shared>) -> Json<api::Status> {
    Json(shared.platform.status(shared.started.elapsed()))
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

pub(super) async fn readyz(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

/// Names of functions are nobody else's business, so from other machines it takes the token.
pub(super) async fn metrics(
    State(shared): State<Shared>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Response {
    // A name that is not this machine's may be one that a web page let point here.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let is_local = peer.is_some_and(|Extension(Peer(address))| address.ip().is_loopback())
        && is_loopback_authority(host);
    let is_proxied = headers.contains_key("x-forwarded-for") || headers.contains_key("forwarded");
    if (!is_local || is_proxied) && !shared.admits(&headers) {
        return Refusal::unauthorized().into_response();
    }
    let (levels, platform) = (shared.levels(), shared.platform.clone());
    // With thousands of functions that takes longer than calls should wait.
    let render = move || Ok(platform.observers.metrics.render(levels));
    match shared.platform.blocking(render).await {
        Ok(page) => ([(CONTENT_TYPE, METRICS_CONTENT_TYPE)], page).into_response(),
        Err(error) => Refusal::from(error).into_response(),
    }
}

pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], super::openapi()).into_response()
}

pub(super) async fn unknown(uri: Uri) -> Refusal {
    let message = format!(
        "There is nothing at {}: functions are called at /fn/NAME, the API is at /v1, described \
         by /openapi.json.",
        uri.path()
    );
    Refusal::new(StatusCode::NOT_FOUND, "not-found", message)
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Refusal {
    let message = format!("{} does not take {method}.", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", message)
}

impl Administration {
    fn levels(&self) -> Levels {
        let platform = &self.platform;
        let reports = platform.executor.instances();
        let doing = |activity| {
            let doing = reports.iter().filter(|report| report.activity == activity);
            doing.count() as u64
        };
        let (calls_in_flight, calls_waiting) = platform.executor.calls();
        let spares = platform.executor.stocks();
        Levels {
            instances: vec![
                ("starting", doing(Activity::Starting)),
                ("idle", doing(Activity::Idle)),
                ("busy", doing(Activity::Busy)),
                ("draining", doing(Activity::Draining)),
            ],
            spares: spares
                .iter()
                .map(|stock| (stock.runtime().to_owned(), stock.report().waiting as u64))
                .collect(),
            functions: platform.count() as u64,
            calls_in_flight,
            calls_waiting,
            log_lines_dropped: platform.logs.left_out(),
        }
    }
}
