//! What a function sees of a request, from the outside in.

use std::net::IpAddr;

use edge::Address;
use hyper::http::request::Parts;
use protocol::CallHead;

use crate::{RESERVED, route::Called};

/// Headers about the connection, which a function has none of (RFC 9110, 7.6.1).
const CONNECTION: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Builds the head of a call.
pub(crate) fn call_head(
    parts: &Parts,
    called: &Called<'_>,
    authority: &str,
    client: IpAddr,
) -> CallHead {
    let mut headers = Headers(edge::function_headers(&parts.headers, is_kept));
    if parts.uri.authority().is_some() {
        headers.set("host", authority);
    }
    headers.append("x-forwarded-for", client.to_canonical().to_string());
    headers.default("x-forwarded-proto", "http");
    if !authority.is_empty() {
        headers.default("x-forwarded-host", authority);
    }
    if !called.mount.is_empty() {
        headers.set("x-forwarded-prefix", called.mount);
    }
    let is_https = headers.get("x-forwarded-proto").is_some_and(begins_with_https);
    let address = Address {
        scheme: if is_https { "https" } else { "http" },
        authority,
        path: called.path,
        query: parts.uri.query().unwrap_or(""),
    };
    let head = edge::call_head(parts.method.as_str(), &address);
    CallHead { headers: headers.0, ..head }
}

fn is_kept(name: &str) -> bool {
    !CONNECTION.contains(&name) && !RESERVED.iter().any(|prefix| name.starts_with(prefix))
}

/// The first proxy, nearest to the client, comes first.
fn begins_with_https(protocols: &str) -> bool {
    let first = protocols.split(',').next().unwrap_or_default();
    first.trim().eq_ignore_ascii_case("https")
}

/// Names in lower case and unique.
struct Headers(Vec<(String, String)>);

impl Headers {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn find(&mut self, name: &str) -> Option<&mut String> {
        self.0.iter_mut().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn set(&mut self, name: &str, value: &str) {
        match self.find(name) {
            Some(known) => value.clone_into(known),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn default(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.0.push((name.to_owned(), value.to_owned()));
        }
    }

    fn append(&mut self, name: &str, value: String) {
        match self.find(name) {
            Some(known) => {
                known.push_str(", ");
                known.push_str(&value);
            }
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use hyper::Request;

    use super::*;

    fn head(target: &str, mount: &'static str, headers: &[(&str, &str)]) -> CallHead {
        let mut request = Request::builder().uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        let path = &parts.uri.path()[mount.len()..];
        let called = Called { name: Cow::Borrowed("a"), mount, path };
        let authority = parts.uri.authority().map_or("door:8080", |a| a.as_str()).to_owned();
        call_head(&parts, &called, &authority, IpAddr::from([192, 0, 2, 7]))
    }

    fn headers(given: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut headers = head("/fn/a/p", "/fn/a", given).headers;
        headers.sort();
        headers
    }

    fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_function_sees_its_own_address() {
        let mounted = head("/fn/a/p/%2e?x=%20&y", "/fn/a", &[("host", "door:8080")]);
        assert_eq!(mounted.url, "http://door:8080/p/%2e?x=%20&y");
        assert_eq!((mounted.host.as_str(), mounted.port), ("door", 8080));
        assert_eq!((mounted.path.as_str(), mounted.query_string.as_str()), ("/p/%2e", "x=%20&y"));

        let absolute = head("http://A.localhost/p", "", &[("host", "elsewhere")]);
        assert_eq!(absolute.url, "http://A.localhost/p");
        assert!(absolute.headers.contains(&("host".into(), "A.localhost".into())));
        assert!(!absolute.headers.iter().any(|(name, _)| name == "x-forwarded-prefix"));
    }

    #[test]
    fn forwarded_headers_say_how_the_request_came() {
        let expected = [
            ("host", "door:8080"),
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-host", "door:8080"),
            ("x-forwarded-prefix", "/fn/a"),
            ("x-forwarded-proto", "http"),
        ];
        assert_eq!(headers(&[("host", "door:8080")]), owned(&expected));
        let expected = [
            ("x-forwarded-for", "203.0.113.9, 198.51.100.1, 192.0.2.7"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-prefix", "/fn/a"),
            ("x-forwarded-proto", "https"),
        ];
        let given = [
            ("x-forwarded-for", "203.0.113.9"),
            ("x-forwarded-for", "198.51.100.1"),
            ("x-forwarded-host", "shop.example"),
            ("x-forwarded-prefix", "/elsewhere"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(headers(&given), owned(&expected));
    }

    #[test]
    fn only_a_known_scheme_gets_into_the_url() {
        for (proto, expected) in [
            ("https", "https://door:8080/p"),
            ("HTTPS", "https://door:8080/p"),
            ("https, http", "https://door:8080/p"),
            ("http, https", "http://door:8080/p"),
            ("javascript", "http://door:8080/p"),
            ("", "http://door:8080/p"),
        ] {
            let head = head("/fn/a/p", "/fn/a", &[("x-forwarded-proto", proto)]);
            assert_eq!(head.url, expected, "{proto:?}");
        }
    }

    #[test]
    fn a_client_in_ipv6_clothes_is_shown_without() {
        let (parts, ()) = Request::builder().uri("/").body(()).expect("a request").into_parts();
        let called = Called { name: Cow::Borrowed("a"), mount: "", path: "/" };
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().expect("an address");
        let head = call_head(&parts, &called, "a.localhost", mapped);
        assert!(head.headers.contains(&("x-forwarded-for".into(), "192.0.2.7".into())));
    }

    #[test]
    fn what_is_about_the_connection_or_reserved_is_not_seen() {
        let given = [
            ("connection", "keep-alive, x-kept"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "websocket"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-hearth-timing", "1"),
            ("x-hearth-call", "forged"),
            ("x-open-runtimes-secret", "s"),
            ("x-kept", "yes"),
            ("authorization", "kept"),
        ];
        let seen = headers(&given);
        let names: Vec<_> = seen.iter().map(|(name, _)| name.as_str()).collect();
        let expected = [
            "authorization",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-prefix",
            "x-forwarded-proto",
            "x-kept",
        ];
        assert_eq!(names, expected);
    }
}
