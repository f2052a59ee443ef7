//! What a client sees of a reply.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode,
    body::{Body as HttpBody, Frame, SizeHint},
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use protocol::{Body, BodyError, BodyStream, CallLog, LogStream, Reply};

/// Returns when nobody will read the rest of a body.
pub type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A status that no response can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Status {0} is not one that a function can answer with.")]
pub struct InvalidStatus(pub u16);

/// Why a body ended before it was complete.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BodyEnd {
    /// The rest does not come.
    #[error(transparent)]
    Failed(#[from] BodyError),
    /// Nobody would read the rest.
    #[error("the client is gone")]
    Gone,
}

/// Turns a function's reply into a response, without headers whose names begin with one of
/// `reserved`. Each header that cannot be sent is a complaint.
///
/// `gone` is asked for if the rest of the body is still coming.
pub fn response(
    reply: Reply,
    reserved: &[&str],
    complain: impl Fn(&str),
    gone: impl FnOnce() -> Gone,
) -> Result<Response<ReplyBody>, InvalidStatus> {
    let status = final_status(reply.status).ok_or(InvalidStatus(reply.status))?;
    let headers = response_headers(&reply.headers, reserved, complain);
    let mut response = Response::new(ReplyBody::new(reply.body, status, gone));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// 1xx announces another response, which will not come.
fn final_status(status: u16) -> Option<StatusCode> {
    StatusCode::from_u16(status).ok().filter(|status| !status.is_informational())
}

fn response_headers(
    given: &[(String, String)],
    reserved: &[&str],
    complain: impl Fn(&str),
) -> HeaderMap {
    // Room for what doors add.
    let mut headers = HeaderMap::with_capacity(given.len() + 3);
    for (name, value) in given {
        let Ok(name) = HeaderName::from_bytes(name.as_bytes()) else {
            complain(&format!("Header {name:?} was left out: HTTP does not allow its name."));
            continue;
        };
        let is_reserved = reserved.iter().any(|prefix| name.as_str().starts_with(prefix));
        if is_reserved || is_framing(&name) {
            continue;
        }
        let value = match name {
            CONTENT_TYPE => HeaderValue::from_bytes(content_type(value).as_bytes()),
            _ => HeaderValue::from_bytes(value.as_bytes()),
        };
        match value {
            Ok(value) if name == CONTENT_TYPE => _ = headers.insert(name, value),
            Ok(value) => _ = headers.append(name, value),
            Err(_) => {
                complain(&format!(
                    "Header \"{name}\" was left out: HTTP does not allow its value."
                ));
            }
        }
    }
    if !headers.contains_key(CONTENT_TYPE) {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    headers
}

/// Where a message ends is the door's business; a function that could say it could smuggle one.
fn is_framing(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "content-length"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-connection"
    )
}

/// Lower-cased and with a character set, unless it has one or is multipart: boundaries have case.
fn content_type(given: &str) -> String {
    let lower = given.to_lowercase();
    if lower.starts_with("multipart/") || lower.contains("charset=") {
        given.to_owned()
    } else {
        lower + "; charset=utf-8"
    }
}

/// A response's body: there as a whole, or coming. Dropping it cancels the call that it belongs to,
/// unless all of it has come.
pub struct ReplyBody {
    first: Option<Bytes>,
    rest: Option<Rest>,
}

/// What is still coming, as long as somebody wants it.
struct Rest {
    stream: BodyStream,
    gone: Gone,
    log: Option<Arc<dyn CallLog>>,
}

impl ReplyBody {
    fn new(body: Body, status: StatusCode, gone: impl FnOnce() -> Gone) -> Self {
        // RFC 9110, 6.4.1: these have no content.
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return Self::whole(Bytes::new());
        }
        let rest = body.rest.map(|stream| Rest { stream, gone: gone(), log: None });
        Self { rest, ..Self::whole(body.first) }
    }

    /// A body that is there.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { first: Some(bytes.into()).filter(|bytes| !bytes.is_empty()), rest: None }
    }

    /// Whether part of it is still to come.
    pub fn is_coming(&self) -> bool {
        self.rest.is_some()
    }

    /// Writes to this log why the rest does not come, if it does not.
    pub fn report_to(&mut self, log: Arc<dyn CallLog>) {
        if let Some(rest) = &mut self.rest {
            rest.log = Some(log);
        }
    }
}

impl Rest {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyEnd>>> {
        match self.stream.as_mut().poll_next(cx) {
            Poll::Ready(part) => {
                if let (Some(Err(error)), Some(log)) = (&part, &self.log) {
                    log.write(LogStream::Error, &error.to_string());
                }
                Poll::Ready(part.map(|part| part.map_err(BodyEnd::Failed)))
            }
            Poll::Pending => {
                std::task::ready!(self.gone.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyEnd::Gone)))
            }
        }
    }
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = BodyEnd;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyEnd>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(rest) = self.rest.as_mut() else { return Poll::Ready(None) };
        let part = std::task::ready!(rest.poll_next(cx));
        if !matches!(part, Some(Ok(_))) {
            // Dropping what is left cancels its call.
            self.rest = None;
        }
        Poll::Ready(part.map(|part| part.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.rest.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let there = self.first.as_ref().map_or(0, Bytes::len);
        let there = u64::try_from(there).unwrap_or(u64::MAX);
        match self.rest {
            None => SizeHint::with_exact(there),
            Some(_) => {
                let mut hint = SizeHint::new();
                hint.set_lower(there);
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&str, &str)]) -> Vec<(String, String)> {
        let given: Vec<_> = given.iter().map(|(n, v)| ((*n).into(), (*v).into())).collect();
        let headers = response_headers(&given, &["x-mine-", "x-also-"], |_| {});
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
    }

    #[test]
    fn a_content_type_gets_a_character_set() {
        for (given, expected) in [
            ("TEXT/PLAIN", "text/plain; charset=utf-8"),
            ("text/plain; charset=iso-8859-1", "text/plain; charset=iso-8859-1"),
            ("application/json", "application/json; charset=utf-8"),
            ("image/png", "image/png; charset=utf-8"),
            ("multipart/form-data; boundary=AbC", "multipart/form-data; boundary=AbC"),
            ("text/html; CHARSET=UTF-8", "text/html; CHARSET=UTF-8"),
        ] {
            assert_eq!(
                headers(&[("Content-Type", given)]),
                [("content-type".to_owned(), expected.to_owned())]
            );
        }
        assert_eq!(headers(&[])[0].1, "text/plain; charset=utf-8");
    }

    #[test]
    fn cookies_repeat_and_reserved_or_framing_names_go() {
        let sent = headers(&[
            ("Set-Cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("X-Mine-Anything", "x"),
            ("x-also-this", "x"),
            ("Content-Length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("bad name", "x"),
            ("bad-value", "a\r\nb: c"),
            ("X-Custom", "ä"),
        ]);
        let expected = [
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-custom", "ä"),
            ("content-type", "text/plain; charset=utf-8"),
        ];
        assert_eq!(sent, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn only_final_statuses_are_sent() {
        for (status, is_final) in
            [(100, false), (199, false), (200, true), (599, true), (999, true)]
        {
            assert_eq!(final_status(status).is_some(), is_final, "{status}");
        }
    }
}
