//! Who may ask for administration, beside knowing the token.
//!
//! A web page can make a browser send requests to a daemon on the same machine, and with a name
//! that its owner lets point there ("DNS rebinding") it can read the answers, since it looks like
//! the same site. So names count, and so does what browsers say about where a request comes from.
//! Functions are called from web pages on purpose, so their replies are their own business.

use std::net::{IpAddr, Ipv4Addr};

use hyper::{
    HeaderMap, StatusCode,
    header::{HeaderName, ORIGIN},
    http::request::Parts,
};
use model::excerpt;

use crate::{authority::host_name, problem::Problem};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// The most of a host's name that an answer repeats.
const MOST_OF_HOST: usize = 80;

/// The names of the daemon itself, for administration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNames {
    /// The hosts that may be asked beside `localhost` and loopback addresses; none: all may. For a
    /// daemon that listens on a loopback address.
    pub hosts: Option<Vec<String>>,
    /// The authority of the URL by which clients reach it: pages from there are its own.
    pub public: Option<String>,
}

impl OwnNames {
    /// Whether a request may be answered that is for this authority.
    pub(crate) fn check(&self, parts: &Parts, authority: &str) -> Result<(), Problem> {
        if matches!(parts.uri.path(), "/healthz" | "/readyz") {
            // They tell nothing, and whoever checks health has names of its own.
            return Ok(());
        }
        let host = host_name(authority).unwrap_or("");
        if !self.has(host) {
            let message = format!(
                "This daemon listens on this machine only and does not know itself as `{}`. Ask \
                 for localhost or 127.0.0.1; if it is meant to be reached by this name, start it \
                 with --public-url.",
                excerpt(host, MOST_OF_HOST)
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, "unknown-host", message));
        }
        if self.is_from_elsewhere(&parts.headers, authority) {
            let message = "The API does not answer web pages of other sites.";
            return Err(Problem::new(StatusCode::FORBIDDEN, "cross-site", message));
        }
        Ok(())
    }

    fn has(&self, host: &str) -> bool {
        let Some(hosts) = &self.hosts else { return true };
        let name = host.strip_suffix('.').unwrap_or(host);
        // Browsers always name a host; what came before HTTP/1.1 need not.
        host.is_empty()
            || is_loopback_host(host)
            || hosts.iter().any(|own| own.eq_ignore_ascii_case(name))
    }

    fn is_from_elsewhere(&self, headers: &HeaderMap, authority: &str) -> bool {
        let site = headers.get(SEC_FETCH_SITE).map(|value| value.as_bytes());
        if matches!(site, Some(b"cross-site" | b"same-site")) {
            return true;
        }
        let Some(origin) = headers.get(ORIGIN) else { return false };
        let origin = origin.to_str().ok().and_then(|origin| {
            origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"))
        });
        let is_own = |origin: &str| {
            let mut own = [Some(authority), self.public.as_deref()].into_iter().flatten();
            own.any(|own| own.eq_ignore_ascii_case(origin))
        };
        !origin.is_some_and(is_own)
    }
}

/// Whether a `host` or `host:port` is this machine by any name.
pub fn is_loopback_authority(authority: &str) -> bool {
    host_name(authority).is_some_and(is_loopback_host)
}

/// `localhost`, a loopback address, or the one that stands for all of a machine's own.
fn is_loopback_host(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    let address = name.trim_start_matches('[').trim_end_matches(']');
    let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
    name.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(is_loopback)
        || name == Ipv4Addr::UNSPECIFIED.to_string()
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn names() -> OwnNames {
        let hosts = Some(vec!["localhost".into(), "shop.example".into()]);
        OwnNames { hosts, public: Some("shop.example".into()) }
    }

    fn check(names: &OwnNames, path: &str, authority: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("a request").into_parts();
        names.check(&parts, authority).map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn on_this_machine_a_daemon_is_asked_by_its_own_names() {
        for (authority, expected) in [
            ("localhost", 200),
            ("LOCALHOST.:8080", 200),
            ("127.0.0.1:8080", 200),
            ("127.8.9.1", 200),
            ("[::1]:8080", 200),
            ("[::ffff:127.0.0.1]", 200),
            ("0.0.0.0:8080", 200),
            ("shop.example", 200),
            ("Shop.Example.:443", 200),
            ("", 200),
            ("evil.example", 421),
            ("evil.example:8080", 421),
            ("localhost.evil.example", 421),
            ("127.0.0.1.evil.example", 421),
            ("192.0.2.1", 421),
            ("10.0.0.1:8080", 421),
        ] {
            assert_eq!(check(&names(), "/metrics", authority, &[]), expected, "{authority}");
            assert_eq!(check(&OwnNames::default(), "/metrics", authority, &[]), 200, "elsewhere");
        }
        assert_eq!(check(&names(), "/readyz", "evil.example", &[]), 200, "it tells nothing");
    }

    #[test]
    fn pages_of_other_sites_are_refused_everywhere() {
        for (headers, expected) in [
            (&[("sec-fetch-site", "none")][..], 200),
            (&[("sec-fetch-site", "same-origin")], 200),
            (&[("sec-fetch-site", "same-site")], 403),
            (&[("sec-fetch-site", "cross-site")], 403),
            (&[("origin", "http://localhost:8080")], 200),
            (&[("origin", "https://localhost:8080")], 200),
            (&[("origin", "https://shop.example")], 200),
            (&[("origin", "http://localhost:3000")], 403),
            (&[("origin", "http://localhost")], 403),
            (&[("origin", "https://evil.example")], 403),
            (&[("origin", "null")], 403),
            (&[("origin", "")], 403),
        ] {
            assert_eq!(check(&names(), "/v1/status", "localhost:8080", headers), expected);
            let elsewhere = OwnNames { hosts: None, ..names() };
            assert_eq!(check(&elsewhere, "/v1/status", "localhost:8080", headers), expected);
        }
    }
}
