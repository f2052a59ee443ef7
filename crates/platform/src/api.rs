//! The platform's own HTTP API: what the commands and other programs ask for.
//!
//! Every answer is JSON with the types of the crate `api`; every refusal is an [`api::Problem`].

mod backup;
mod document;
mod handlers;
mod lines;
mod logs;
mod problem;
mod upload;

use std::{pin::Pin, sync::Arc};

use axum::{
    Router,
    body::BodyDataStream,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, patch, post},
};
use bytes::Bytes;
use futures_core::Stream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

pub use document::openapi;

use crate::{platform::Platform, token::Token};
use problem::Refusal;

/// What the API is about, and who may use it.
pub struct Administration {
    /// What is administered.
    pub platform: Arc<Platform>,
    /// What callers must know.
    pub token: Token,
    /// When the daemon was started.
    pub started: Instant,
    /// Cancelled once the daemon ends: then it is not ready any more, and logs are not followed.
    pub stop: CancellationToken,
}

type Shared = Arc<Administration>;

impl Administration {
    /// The API's routes.
    pub fn router(self) -> Router {
        let shared = Arc::new(self);
        let guarded = Router::new()
            .route("/v1/functions", get(handlers::functions))
            .route("/v1/functions/{name}", get(handlers::function).delete(handlers::remove))
            .route(
                "/v1/functions/{name}/deployments",
                // Sources are streamed to disk, where they have a limit of their own.
                post(upload::deploy).layer(DefaultBodyLimit::disable()),
            )
            .route("/v1/functions/{name}/deployments/{id}", delete(upload::cancel))
            .route("/v1/functions/{name}/settings", patch(upload::set))
            .route("/v1/functions/{name}/logs", get(logs::logs))
            .route("/v1/instances", get(handlers::instances))
            .route("/v1/backup", get(backup::backup))
            .route("/v1/status", get(handlers::status))
            .layer(from_fn_with_state(shared.clone(), guard));
        Router::new()
            .route("/healthz", get(handlers::healthz))
            .route("/readyz", get(handlers::readyz))
            .route("/metrics", get(handlers::metrics))
            .route("/openapi.json", get(handlers::document))
            .merge(guarded)
            .fallback(handlers::unknown)
            .method_not_allowed_fallback(handlers::wrong_method)
            .with_state(shared)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = given.and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        token.is_some_and(|token| self.token.admits(token))
    }
}

async fn next_piece(body: &mut BodyDataStream) -> Option<Result<Bytes, axum::Error>> {
    std::future::poll_fn(|cx| Pin::new(&mut *body).poll_next(cx)).await
}

async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    if shared.admits(request.headers()) {
        return next.run(request).await;
    }
    // Who is still sending would not see the refusal.
    let mut body = request.into_body().into_data_stream();
    let discard = async move { while let Some(Ok(_)) = next_piece(&mut body).await {} };
    shared.platform.tasks.spawn(timeout(upload::PATIENCE, discard));
    Refusal::unauthorized().into_response()
}
