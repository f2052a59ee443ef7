use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use model::describe;
use tracing::warn;

use crate::store::StoreError;

/// Why a request is refused, with its status.
pub(super) struct Refusal {
    status: StatusCode,
    problem: api::Problem,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let error = api::ErrorBody { code: code.into(), message: message.into() };
        Self { status, problem: api::Problem { error } }
    }

    pub(super) fn unauthorized() -> Self {
        let message = "This needs the daemon's token as `authorization: Bearer <token>`; it is in \
                       the file `token` of the daemon's data directory.";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }

    pub(super) fn unknown_function(name: &str) -> Self {
        let message = format!("There is no function `{name}`; `hearth ls` lists those there are.");
        Self::new(StatusCode::NOT_FOUND, "unknown-function", message)
    }

    pub(super) fn busy(message: &str) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", format!("{message} Try again later."))
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
    }
}

/// Something of ours failed; whoever asked can do little about it.
impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let message = describe(&error);
        warn!(error = message, "a request of the API failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.problem)).into_response();
        let hint = match self.status {
            StatusCode::UNAUTHORIZED => Some((WWW_AUTHENTICATE, "Bearer")),
            StatusCode::TOO_MANY_REQUESTS => Some((RETRY_AFTER, "5")),
            _ => None,
        };
        if let Some((name, value)) = hint {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}
