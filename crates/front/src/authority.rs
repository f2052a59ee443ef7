//! What a request says about the host it is for.

use std::net::Ipv6Addr;

use hyper::{
    Method, StatusCode, Version,
    header::{HOST, HeaderValue},
    http::request::Parts,
};

/// Why a request cannot be for anybody: a status and a sentence.
pub(crate) type Refusal = (StatusCode, &'static str);

/// The authority that a request is for, checked; empty if it names none (RFC 9112, 3.2 and 3.3).
pub(crate) fn authority(parts: &Parts) -> Result<&str, Refusal> {
    let refuse = |why| Err((StatusCode::BAD_REQUEST, why));
    if parts.method == Method::CONNECT {
        return Err((StatusCode::METHOD_NOT_ALLOWED, "This is not a proxy: there is no CONNECT."));
    }
    if !parts.uri.path().starts_with('/') {
        return refuse("The request's target is neither a path nor a URL.");
    }
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return refuse("The request has more than one Host header.");
    }
    if host.is_none() && parts.version == Version::HTTP_11 {
        return refuse("The request has no Host header.");
    }
    let Ok(host) = host.map_or(Ok(""), HeaderValue::to_str) else {
        return refuse("The request's Host header is not a host name.");
    };
    let authority = parts.uri.authority().map_or(host, |authority| authority.as_str());
    if !authority.is_empty() && host_name(authority).is_none() {
        return refuse("The request is for something that is not a host name.");
    }
    Ok(authority)
}

/// The host of `host` or `host:port`, if it is that and nothing else, such as a user's name.
pub(crate) fn host_name(authority: &str) -> Option<&str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']')?;
            address.parse::<Ipv6Addr>().ok()?;
            (&authority[..address.len() + 2], port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_name = host.starts_with('[') || host.bytes().all(is_in_names);
    let is_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|c| c.is_ascii_digit()) && digits.len() <= 5,
        None => port.is_empty(),
    };
    (is_name && is_port && !host.is_empty()).then_some(host)
}

/// What registered names may have (RFC 3986, 3.2.2).
fn is_in_names(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&c)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    #[test]
    fn a_host_name_is_that_and_nothing_else() {
        for (authority, expected) in [
            ("a", Some("a")),
            ("a:80", Some("a")),
            ("a:", Some("a")),
            ("A.b.", Some("A.b.")),
            ("127.0.0.1:8080", Some("127.0.0.1")),
            ("[::1]", Some("[::1]")),
            ("[::1]:8080", Some("[::1]")),
            ("[::1]x", None),
            ("[hello.localhost]", None),
            ("[", None),
            ("a:b", None),
            ("a:80:80", None),
            ("a:123456", None),
            ("user@a", None),
            ("user:secret@a", None),
            ("a/b", None),
            ("a b", None),
            ("a\\b", None),
            ("a#b", None),
            ("a?b", None),
            ("", None),
            (":80", None),
        ] {
            assert_eq!(host_name(authority), expected, "{authority:?}");
        }
    }

    #[test]
    fn a_request_is_for_one_host() {
        let bad = Err(StatusCode::BAD_REQUEST);
        for (method, target, version, hosts, expected) in [
            ("GET", "/", Version::HTTP_11, &["a"][..], Ok("a")),
            ("GET", "/", Version::HTTP_11, &[""], Ok("")),
            ("GET", "/", Version::HTTP_11, &[], bad),
            ("GET", "/", Version::HTTP_11, &["a", "a"], bad),
            ("GET", "/", Version::HTTP_11, &["a, b"], bad),
            ("GET", "/", Version::HTTP_11, &["user@a"], bad),
            ("GET", "/", Version::HTTP_10, &[], Ok("")),
            ("GET", "/", Version::HTTP_10, &["a", "b"], bad),
            ("GET", "http://a:1/p", Version::HTTP_11, &["b"], Ok("a:1")),
            ("GET", "http://a", Version::HTTP_11, &["b"], Ok("a")),
            ("GET", "http://a/p", Version::HTTP_11, &[], bad),
            ("GET", "http://u@a/p", Version::HTTP_11, &["a"], bad),
            ("GET", "http://u:p@a/p", Version::HTTP_11, &["a"], bad),
            ("OPTIONS", "*", Version::HTTP_11, &["a"], bad),
            ("GET", "a:80", Version::HTTP_11, &["a"], bad),
            ("CONNECT", "a:80", Version::HTTP_11, &["a"], Err(StatusCode::METHOD_NOT_ALLOWED)),
            ("CONNECT", "/", Version::HTTP_11, &["a"], Err(StatusCode::METHOD_NOT_ALLOWED)),
        ] {
            let mut request = Request::builder().method(method).uri(target).version(version);
            for host in hosts {
                request = request.header(HOST, *host);
            }
            let (parts, ()) = request.body(()).expect("a request").into_parts();
            let found = authority(&parts).map_err(|(status, _)| status);
            assert_eq!(found, expected, "{method} {target} {version:?} {hosts:?}");
        }
    }
}
