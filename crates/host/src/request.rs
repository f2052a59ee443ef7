//! What a function sees of a request (specification, 2.1).

use std::borrow::Cow;

use hyper::{HeaderMap, http::request::Parts};
use protocol::CallHead;

use crate::control::{EnforcedHeaders, RESERVED_PREFIX};

/// Builds the head of a call: reserved headers removed, enforced ones added, the URL put together.
pub(crate) fn call_head(parts: &Parts, enforced: &EnforcedHeaders) -> CallHead {
    let headers = function_headers(&parts.headers, enforced);
    let header = |name: &str| {
        headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    };
    let scheme = header("x-forwarded-proto").filter(|scheme| !scheme.is_empty()).unwrap_or("http");
    let authority = header("host").or(parts.uri.authority().map(|a| a.as_str())).unwrap_or("");
    let default_port = if scheme == "https" { 443 } else { 80 };
    let (host, port) = split_authority(authority);
    let port = port.unwrap_or(default_port);
    let path = parts.uri.path();
    let query_string = parts.uri.query().unwrap_or("");

    let mut url = format!("{scheme}://{host}");
    if port != default_port {
        url.push(':');
        url.push_str(&port.to_string());
    }
    url.push_str(path);
    if !query_string.is_empty() {
        url.push('?');
        url.push_str(query_string);
    }
    CallHead {
        method: parts.method.as_str().to_owned(),
        url,
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
        query_string: query_string.to_owned(),
        query: query(query_string),
        headers,
    }
}

/// Splits `host:port`; the host may be an IPv6 address in brackets.
fn split_authority(authority: &str) -> (&str, Option<u16>) {
    let after_brackets = authority.find(']').map_or(0, |at| at + 1);
    match authority[after_brackets..].find(':') {
        Some(colon) => {
            let at = after_brackets + colon;
            (&authority[..at], authority[at + 1..].parse().ok())
        }
        None => (authority, None),
    }
}

/// The query's parts: split at the first `=`, empty names skipped, the last of a name wins,
/// nothing is decoded.
fn query(query_string: &str) -> Vec<(String, String)> {
    let mut query: Vec<(String, String)> = Vec::new();
    for part in query_string.split('&') {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if name.is_empty() {
            continue;
        }
        match query.iter_mut().find(|(known, _)| known == name) {
            Some((_, earlier)) => value.clone_into(earlier),
            None => query.push((name.to_owned(), value.to_owned())),
        }
    }
    query
}

fn function_headers(headers: &HeaderMap, enforced: &EnforcedHeaders) -> Vec<(String, String)> {
    let mut seen = Vec::with_capacity(headers.keys_len() + enforced.0.len());
    for name in headers.keys() {
        if name.as_str().starts_with(RESERVED_PREFIX) {
            continue;
        }
        let separator = if name == "cookie" { "; " } else { ", " };
        let mut values = headers.get_all(name).iter().map(|value| text(value.as_bytes()));
        let mut joined = values.next().unwrap_or_default().into_owned();
        for value in values {
            joined.push_str(separator);
            joined.push_str(&value);
        }
        seen.push((name.as_str().to_owned(), joined));
    }
    for (name, value) in &enforced.0 {
        match seen.iter_mut().find(|(known, _)| known == name) {
            Some((_, given)) => value.clone_into(given),
            None => seen.push((name.clone(), value.clone())),
        }
    }
    seen
}

/// A header's value as text: UTF-8 if it is that, else ISO 8859-1 (RFC 9110, 5.5).
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => bytes.iter().map(|byte| char::from(*byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &[u8])]) -> CallHead {
        let mut request = Request::builder().method("GET").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        call_head(&parts, &EnforcedHeaders::default())
    }

    #[test]
    fn the_url_leaves_out_the_schemes_own_port() {
        for (host, proto, url, port) in [
            ("a", "", "http://a/p?q=1", 80),
            ("a:3000", "", "http://a:3000/p?q=1", 3000),
            ("a:80", "http", "http://a/p?q=1", 80),
            ("a:443", "http", "http://a:443/p?q=1", 443),
            ("a", "https", "https://a/p?q=1", 443),
            ("a:443", "https", "https://a/p?q=1", 443),
            ("a:80", "https", "https://a:80/p?q=1", 80),
            ("[::1]:3000", "http", "http://[::1]:3000/p?q=1", 3000),
            ("[::1]", "http", "http://[::1]/p?q=1", 80),
            ("a:nonsense", "http", "http://a/p?q=1", 80),
        ] {
            let headers: [(&str, &[u8]); 2] =
                [("host", host.as_bytes()), ("x-forwarded-proto", proto.as_bytes())];
            let head = head("/p?q=1", &headers);
            assert_eq!((head.url.as_str(), head.port), (url, port), "{host} {proto}");
        }
    }

    #[test]
    fn a_query_is_split_and_not_decoded() {
        for (query_string, expected) in [
            ("", &[][..]),
            ("a=1&b=2", &[("a", "1"), ("b", "2")]),
            ("a=1&a=2", &[("a", "2")]), // the last wins
            ("a", &[("a", "")]),
            ("a=b=c", &[("a", "b=c")]), // only the first `=` splits
            ("&&a=1&", &[("a", "1")]),
            ("=1", &[]), // no name
            ("a=%20+", &[("a", "%20+")]),
            ("a=1?b=2", &[("a", "1?b=2")]), // a second `?` is data
        ] {
            let split = query(query_string);
            let split: Vec<_> = split.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(split, expected, "{query_string:?}");
        }
    }

    #[test]
    fn headers_are_joined_filtered_and_enforced() {
        let (enforced, _) = EnforcedHeaders::parse(r#"{"X-A":"set","x-open-runtimes-user":"u"}"#);
        let mut request = Request::builder().uri("/");
        for (name, value) in [
            ("Cookie", "a=1"),
            ("cookie", "b=2"),
            ("accept", "x"),
            ("accept", "y"),
            ("x-a", "client's"),
            ("x-open-runtimes-secret", "s"),
            ("x-open-runtimes-anything", "s"),
        ] {
            request = request.header(name, value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let mut headers = call_head(&parts, &enforced).headers;
        headers.sort();
        let expected = [
            ("accept", "x, y"),
            ("cookie", "a=1; b=2"),
            ("x-a", "set"),
            ("x-open-runtimes-user", "u"),
        ];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn header_values_are_always_text() {
        let head = head("/", &[("a", "ä".as_bytes()), ("b", b"\xe4")]);
        assert_eq!(head.headers, [("a".into(), "ä".into()), ("b".into(), "ä".into())]);
    }

    #[test]
    fn the_path_stays_as_it_was_sent() {
        let head = head("/%C3%A4/..//b?x", &[]);
        assert_eq!((head.path.as_str(), head.query_string.as_str()), ("/%C3%A4/..//b", "x"));
    }
}
