use bytes::Bytes;
use reqwest::{Method, Response, StatusCode, Url, Version, header::HeaderMap};

use crate::ClientError;

/// A call of a function.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The verb.
    pub method: Method,
    /// The path as the function sees it, with the query: `/` or more. It is sent as it is.
    pub path: String,
    /// Headers. There is none beside these and what HTTP itself needs.
    pub headers: HeaderMap,
    /// The body, if there is one.
    pub body: Option<Bytes>,
}

/// What a function replied; the body comes piece by piece. Dropping it cancels the call.
#[derive(Debug)]
pub struct Reply {
    response: Response,
    /// What was read to find out that it is the function's.
    first: Option<Bytes>,
}

impl Reply {
    pub(crate) fn new(response: Response, first: Option<Bytes>) -> Self {
        Self { response, first }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The version of HTTP that was spoken, such as `HTTP/1.1`.
    pub fn version(&self) -> Version {
        self.response.version()
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; none at its end. Dropping the future loses nothing.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        if let Some(first) = self.first.take().filter(|first| !first.is_empty()) {
            return Ok(Some(first));
        }
        self.response.chunk().await.map_err(|error| ClientError::of_body(&error))
    }
}

/// The URL of a function's path. URL parsers resolve dots and drop white space, so what they would
/// change is refused: it could become another function's.
pub(crate) fn url(mount: &str, path: &str) -> Result<Url, ClientError> {
    let refused = || ClientError::Path { path: path.into() };
    let (plain, _) = path.split_once('?').unwrap_or((path, ""));
    let is_dots = |part: &str| {
        let part = part.to_ascii_lowercase().replace("%2e", ".");
        part == "." || part == ".."
    };
    let is_plain = plain.starts_with('/')
        && !plain.split(['/', '\\']).any(is_dots)
        && !path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
    if !is_plain {
        return Err(refused());
    }
    let url = Url::parse(&format!("{mount}{path}")).map_err(|_| refused())?;
    let mount = Url::parse(mount).map_err(|_| refused())?;
    let is_below = url.path().strip_prefix(mount.path()).is_some_and(|rest| rest.starts_with('/'));
    if is_below { Ok(url) } else { Err(refused()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_with_its_function() {
        let mount = "http://127.0.0.1:8080/fn/a";
        for (path, expected) in [
            ("/", Some("/fn/a/")),
            ("/x/y?q=1&r=../..", Some("/fn/a/x/y")),
            ("/%2f%20ä", Some("/fn/a/%2f%20%C3%A4")),
            ("//b", Some("/fn/a//b")),
            ("/...", Some("/fn/a/...")),
            ("", None),
            ("x", None),
            ("@host/", None),
            ("/../b", None),
            ("/x/../../b", None),
            ("/%2E%2e/b", None),
            ("/.%2e/b", None),
            ("/\\..\\b", None),
            ("/.\t./b", None),
            ("/./b", None),
            ("/a#b", None),
        ] {
            let url = url(mount, path).ok();
            assert_eq!(url.as_ref().map(Url::path), expected, "{path:?}");
        }
        assert_eq!(url(mount, "/?a=%20b").expect("plain").query(), Some("a=%20b"));
    }
}
