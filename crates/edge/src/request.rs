//! What a function sees of a request.

use std::borrow::Cow;

use hyper::{HeaderMap, Request};
use protocol::CallHead;

/// The most bytes of a request's target and headers (docs/protocols/worker.md).
pub const MAX_HEAD: usize = 64 << 10;

/// Where a request went, as its function is to see it.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// `http` or `https`.
    pub scheme: &'a str,
    /// `host` or `host:port`.
    pub authority: &'a str,
    /// As sent.
    pub path: &'a str,
    /// Behind the first `?`, as sent; empty if there is none.
    pub query: &'a str,
}

/// Builds the head of a call, without headers.
pub fn call_head(method: &str, address: &Address<'_>) -> CallHead {
    let Address { scheme, authority, path, query: query_string } = *address;
    let default_port = if scheme == "https" { 443 } else { 80 };
    let (host, port) = split_authority(authority);
    let port = port.unwrap_or(default_port);
    CallHead {
        method: method.to_owned(),
        url: url(address, host, Some(port).filter(|port| *port != default_port)),
        scheme: scheme.to_owned(),
        host: host.to_owned(),
        port,
        path: path.to_owned(),
        query_string: query_string.to_owned(),
        query: query(query_string),
        headers: Vec::new(),
    }
}

fn url(address: &Address<'_>, host: &str, port: Option<u16>) -> String {
    let Address { scheme, authority, path, query } = *address;
    let around = "://:?".len();
    let length = scheme.len() + authority.len() + path.len() + query.len() + around;
    let mut url = String::with_capacity(length);
    url.push_str(scheme);
    url.push_str("://");
    url.push_str(host);
    if let Some(port) = port {
        url.push(':');
        url.push_str(&port.to_string());
    }
    url.push_str(path);
    if !query.is_empty() {
        url.push('?');
        url.push_str(query);
    }
    url
}

/// Splits `host:port`; the host may be an IPv6 address in brackets.
pub fn split_authority(authority: &str) -> (&str, Option<u16>) {
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

/// The headers that are kept, each name once: values of one name are joined.
pub fn function_headers(
    headers: &HeaderMap,
    is_kept: impl Fn(&str) -> bool,
) -> Vec<(String, String)> {
    // Room for what doors add.
    let mut seen = Vec::with_capacity(headers.keys_len() + 4);
    for name in headers.keys().filter(|name| is_kept(name.as_str())) {
        let separator = if name == "cookie" { "; " } else { ", " };
        let mut values = headers.get_all(name).iter().map(|value| text(value.as_bytes()));
        let mut joined = values.next().unwrap_or_default().into_owned();
        for value in values {
            joined.push_str(separator);
            joined.push_str(&value);
        }
        seen.push((name.as_str().to_owned(), joined));
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

/// Bytes of a request's target and headers; doors refuse more than [`MAX_HEAD`].
pub fn head_size<B>(request: &Request<B>) -> usize {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let headers = request.headers().iter();
    target + headers.map(|(name, value)| name.as_str().len() + value.len()).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_leaves_out_the_schemes_own_port() {
        for (authority, scheme, url, host, port) in [
            ("a", "http", "http://a/p?q=1", "a", 80),
            ("a:3000", "http", "http://a:3000/p?q=1", "a", 3000),
            ("a:80", "http", "http://a/p?q=1", "a", 80),
            ("a:443", "http", "http://a:443/p?q=1", "a", 443),
            ("a", "https", "https://a/p?q=1", "a", 443),
            ("a:443", "https", "https://a/p?q=1", "a", 443),
            ("a:80", "https", "https://a:80/p?q=1", "a", 80),
            ("[::1]:3000", "http", "http://[::1]:3000/p?q=1", "[::1]", 3000),
            ("[::1]", "http", "http://[::1]/p?q=1", "[::1]", 80),
            ("a:nonsense", "http", "http://a/p?q=1", "a", 80),
        ] {
            let address = Address { scheme, authority, path: "/p", query: "q=1" };
            let head = call_head("GET", &address);
            let given = (head.url.as_str(), head.host.as_str(), head.port);
            assert_eq!(given, (url, host, port), "{authority} {scheme}");
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
    fn headers_are_joined_and_filtered_and_always_text() {
        let mut request = Request::builder();
        for (name, value) in [
            ("Cookie", &b"a=1"[..]),
            ("cookie", b"b=2"),
            ("accept", b"x"),
            ("accept", b"y"),
            ("x-secret", b"s"),
            ("a", "ä".as_bytes()),
            ("b", b"\xe4"),
        ] {
            request = request.header(name, value);
        }
        let request = request.body(()).expect("a request");
        let mut headers = function_headers(request.headers(), |name| name != "x-secret");
        headers.sort();
        let expected = [("a", "ä"), ("accept", "x, y"), ("b", "ä"), ("cookie", "a=1; b=2")];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
