//! What a client sees of a reply (specification, 1.8).

use std::sync::Arc;

use bytes::Bytes;
use edge::{Gone, ReplyBody};
use hyper::{
    Response, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use protocol::{CallLog, LogStream, Reply};

use crate::control::RESERVED_PREFIX;

/// Turns a function's reply into a response. What cannot be sent is reported to the log.
pub(crate) fn response(
    reply: Reply,
    log: Option<Arc<dyn CallLog>>,
    gone: impl FnOnce() -> Gone,
) -> Response<ReplyBody> {
    let complain = |text: &str| {
        if let Some(log) = &log {
            log.write(LogStream::Error, text);
        }
    };
    match edge::response(reply, &[RESERVED_PREFIX], complain, gone) {
        Ok(mut response) => {
            if let Some(log) = log {
                response.body_mut().report_to(log);
            }
            response
        }
        Err(error) => {
            complain(&error.to_string());
            empty(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

/// A response without a body.
pub(crate) fn empty(status: StatusCode) -> Response<ReplyBody> {
    text(status, Bytes::new())
}

/// A response of the host itself.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::whole(body));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
