//! What a function sees of a request (specification, 2.1).

use edge::Address;
use hyper::http::request::Parts;
use protocol::CallHead;

use crate::control::{EnforcedHeaders, RESERVED_PREFIX};

/// Builds the head of a call: reserved headers removed, enforced ones added, the URL put together.
pub(crate) fn call_head(parts: &Parts, enforced: &EnforcedHeaders) -> CallHead {
    let mut headers =
        edge::function_headers(&parts.headers, |name| !name.starts_with(RESERVED_PREFIX));
    for (name, value) in &enforced.0 {
        match headers.iter_mut().find(|(known, _)| known == name) {
            Some((_, given)) => value.clone_into(given),
            None => headers.push((name.clone(), value.clone())),
        }
    }
    let header = |name: &str| {
        headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    };
    let authority = header("host").or(parts.uri.authority().map(|a| a.as_str()));
    let address = Address {
        scheme: header("x-forwarded-proto").filter(|scheme| !scheme.is_empty()).unwrap_or("http"),
        authority: authority.unwrap_or(""),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or(""),
    };
    let head = edge::call_head(parts.method.as_str(), &address);
    CallHead { headers, ..head }
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(uri: &str, headers: &[(&str, &str)], enforced: &EnforcedHeaders) -> CallHead {
        let mut request = Request::builder().method("GET").uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        call_head(&parts, enforced)
    }

    #[test]
    fn the_url_is_what_the_client_asked_a_proxy_for() {
        for (host, proto, url, port) in [
            ("a", "", "http://a/p?q=1", 80),
            ("a:3000", "", "http://a:3000/p?q=1", 3000),
            ("a:80", "http", "http://a/p?q=1", 80),
            ("a", "https", "https://a/p?q=1", 443),
            ("[::1]:3000", "http", "http://[::1]:3000/p?q=1", 3000),
        ] {
            let headers = [("host", host), ("x-forwarded-proto", proto)];
            let head = head("/p?q=1", &headers, &EnforcedHeaders::default());
            assert_eq!((head.url.as_str(), head.port), (url, port), "{host} {proto}");
        }
    }

    #[test]
    fn headers_are_filtered_and_enforced() {
        let (enforced, _) = EnforcedHeaders::parse(r#"{"X-A":"set","x-open-runtimes-user":"u"}"#);
        let given = [
            ("accept", "x"),
            ("x-a", "client's"),
            ("x-open-runtimes-secret", "s"),
            ("x-open-runtimes-anything", "s"),
            ("x-hearth-anything", "not reserved here"),
        ];
        let mut headers = head("/", &given, &enforced).headers;
        headers.sort();
        let expected = [
            ("accept", "x"),
            ("x-a", "set"),
            ("x-hearth-anything", "not reserved here"),
            ("x-open-runtimes-user", "u"),
        ];
        assert_eq!(headers, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn the_path_stays_as_it_was_sent() {
        let head = head("/%C3%A4/..//b?x", &[], &EnforcedHeaders::default());
        assert_eq!((head.path.as_str(), head.query_string.as_str()), ("/%C3%A4/..//b", "x"));
    }
}
