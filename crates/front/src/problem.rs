//! What a client sees instead of a reply.

use std::time::Duration;

use edge::{BodyLimits, InvalidStatus, ReplyBody, Unread};
use executor::CallError;
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use model::{CallId, Outcome};
use serde::Serialize;

const ERROR: HeaderName = HeaderName::from_static(api::ERROR_HEADER);

/// Why there is no reply, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// When it is worth asking again.
    pub(crate) retry_after: Option<Duration>,
}

/// An [`api::Problem`] that also says which call it is about.
#[derive(Serialize)]
struct Document<'a> {
    error: Body<'a>,
}

#[derive(Serialize)]
struct Body<'a> {
    code: &'a str,
    message: &'a str,
    call: CallId,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    /// A request that is for nobody.
    pub(crate) fn refused(status: StatusCode, why: &str) -> Self {
        Self::new(status, "bad-request", why)
    }

    /// A name that no function has.
    pub(crate) fn unknown_function(name: &str) -> Self {
        let message = match name.parse::<model::FunctionName>() {
            Ok(name) => format!(
                "No function is called `{name}`. `hearth ls` lists those there are; \
                 `hearth deploy DIRECTORY --name {name}` makes this one."
            ),
            Err(error) => format!(
                "This address does not name a function: {error}. \
                 `hearth ls` lists those there are."
            ),
        };
        Self::new(StatusCode::NOT_FOUND, "unknown-function", message)
    }

    /// A request that came when the server had been told to stop.
    pub(crate) fn stopping() -> Self {
        let message = "Hearth is stopping: it finishes the calls that run and takes no new ones.";
        let stopping = Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", message);
        Self { retry_after: Some(Duration::from_secs(1)), ..stopping }
    }

    /// A body that was not read.
    pub(crate) fn unread(unread: Unread, limits: &BodyLimits) -> Self {
        match unread {
            Unread::TooLarge => {
                let size = limits.size;
                let message = format!("The request's body is larger than {size} bytes.");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", message)
            }
            Unread::NoRoom => {
                let message = "Other requests' bodies take all the memory there is for them.";
                let retry_after = Some(Duration::from_secs(1));
                let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message);
                Self { retry_after, ..busy }
            }
            Unread::TooSlow => {
                let message = "The request's body did not arrive in time.";
                Self::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", message)
            }
            Unread::Broken => {
                let message = "The request's body broke off.";
                Self::new(StatusCode::BAD_REQUEST, "body-broken", message)
            }
        }
    }

    /// A reply that cannot be sent.
    pub(crate) fn invalid(status: InvalidStatus) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "function-failed", status.to_string())
    }

    /// The response, with the id that the client may ask about.
    pub(crate) fn response(&self, call: CallId) -> Response<ReplyBody> {
        let error = Body { code: self.code, message: &self.message, call };
        let text = serde_json::to_vec(&Document { error }).expect("text and ids are valid JSON");
        let mut response = Response::new(ReplyBody::whole(text));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ERROR, HeaderValue::from_static(self.code));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            // RFC 9110, 15.5.6: there must be one.
            let usual = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
            headers.insert(ALLOW, HeaderValue::from_static(usual));
        }
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(after)));
        }
        response
    }
}

/// At least 1: `0` would mean that asking again at once is fine.
fn whole_seconds(duration: Duration) -> u64 {
    let rounded_up = u64::from(duration.subsec_nanos() > 0);
    duration.as_secs().saturating_add(rounded_up).max(1)
}

const NOT_LOADED: &str = "The function's code does not load; its log says why.";

/// The one table from error to status. What a client reads are our words only: an error's own text
/// may have a stack trace, or the reason why somebody else's instance did not start.
pub(crate) fn of_call(error: &CallError) -> (Problem, Outcome) {
    use protocol::CallError as Call;
    let seconds = Duration::from_secs;
    let (status, code, message, retry_after, outcome) = match error {
        CallError::Call(Call::Failed { .. }) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "function-failed",
            "The function failed; its log says why.",
            None,
            Outcome::Failed,
        ),
        // Not 503: that asks proxies and clients to try again, which does not mend broken code,
        // and hides a broken deployment among passing trouble.
        CallError::Call(Call::NotLoaded { .. }) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "function-not-loaded",
            NOT_LOADED,
            None,
            Outcome::NotLoaded,
        ),
        CallError::Call(Call::TimedOut) => (
            StatusCode::GATEWAY_TIMEOUT,
            "timed-out",
            "The function did not reply within its timeout.",
            None,
            Outcome::TimedOut,
        ),
        CallError::Call(Call::Lost { .. }) => (
            StatusCode::BAD_GATEWAY,
            "instance-lost",
            "The function's instance ended before it replied; the function's log says why.",
            None,
            Outcome::Lost,
        ),
        CallError::Call(Call::Unavailable { .. }) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "No instance of the function took the call. It did not run.",
            Some(seconds(1)),
            Outcome::Refused,
        ),
        CallError::Busy { retry_after, .. } => (
            StatusCode::TOO_MANY_REQUESTS,
            "busy",
            "There is no room for the call at the moment. It did not run.",
            Some(*retry_after),
            Outcome::Refused,
        ),
        CallError::BackingOff { cause, retry_after } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "backing-off",
            match cause {
                Call::NotLoaded { .. } => NOT_LOADED,
                _ => "Instances of the function do not start at the moment; its log says why.",
            },
            Some(*retry_after),
            Outcome::Refused,
        ),
    };
    (Problem { status, code, message: message.into(), retry_after }, outcome)
}

#[cfg(test)]
mod tests {
    use protocol::CallError as Call;

    use super::*;

    #[test]
    fn each_error_has_one_status_and_one_outcome() {
        let text = || "at secret.js:1".to_owned();
        let later = Duration::from_millis(1500);
        for (error, status, code, retry_after, outcome) in [
            (
                Call::Failed { message: text() }.into(),
                500,
                "function-failed",
                None,
                Outcome::Failed,
            ),
            (
                Call::NotLoaded { message: text() }.into(),
                500,
                "function-not-loaded",
                None,
                Outcome::NotLoaded,
            ),
            (Call::TimedOut.into(), 504, "timed-out", None, Outcome::TimedOut),
            (Call::Lost { why: text() }.into(), 502, "instance-lost", None, Outcome::Lost),
            (
                Call::Unavailable { why: text() }.into(),
                503,
                "unavailable",
                Some("1"),
                Outcome::Refused,
            ),
            (
                CallError::Busy { why: text(), retry_after: later },
                429,
                "busy",
                Some("2"),
                Outcome::Refused,
            ),
            (
                CallError::BackingOff {
                    cause: Call::Lost { why: text() },
                    retry_after: Duration::ZERO,
                },
                503,
                "backing-off",
                Some("1"),
                Outcome::Refused,
            ),
        ] {
            let (problem, found) = of_call(&error);
            let response = problem.response(CallId(uuid::Uuid::nil()));
            let after = response.headers().get(RETRY_AFTER);
            let after = after.map(|value| value.to_str().expect("digits"));
            assert_eq!(
                (response.status().as_u16(), problem.code, after),
                (status, code, retry_after)
            );
            assert_eq!(found, outcome, "{error:?}");
            assert!(!problem.message.contains("secret.js"), "{error:?}: {}", problem.message);
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, expected) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (2999, 3)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), expected, "{millis}");
        }
    }

    #[test]
    fn an_unknown_name_is_shown_only_if_it_is_a_name() {
        let long = "x".repeat(10_000);
        assert!(Problem::unknown_function("hello").message.contains("--name hello"));
        for name in ["<script>", "", "..", long.as_str()] {
            let message = Problem::unknown_function(name).message;
            assert!(message.len() < 300 && !message.contains("script"), "{message}");
        }
    }
}
