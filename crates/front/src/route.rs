use std::borrow::Cow;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// To a function.
    Function(Called<'a>),
    /// To the router for administration.
    Admin,
}

/// Which function is called, and how it sees the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called<'a> {
    /// The name as sent, which need not be a function's; of a host name, in lower case.
    pub name: Cow<'a, str>,
    /// `/fn/NAME`, or nothing if the function has the host name to itself.
    pub mount: &'a str,
    /// What is behind the mount; begins with `/`.
    pub path: &'a str,
}

const MOUNT: &str = "/fn/";

/// Decides by the host's name, without a port, and by the path as it was sent.
///
/// `domain` is in lower case and without a dot at its end; below it there are only functions.
pub fn route<'a>(domain: &str, host: &'a str, path: &'a str) -> Route<'a> {
    if let Some(name) = name_below(domain, host) {
        let name = match name.bytes().any(|c| c.is_ascii_uppercase()) {
            true => Cow::Owned(name.to_ascii_lowercase()),
            false => Cow::Borrowed(name),
        };
        return Route::Function(Called { name, mount: "", path });
    }
    let Some(rest) = path.strip_prefix(MOUNT) else { return Route::Admin };
    let length = rest.find('/').unwrap_or(rest.len());
    let (mount, behind) = path.split_at(MOUNT.len() + length);
    let path = if behind.is_empty() { "/" } else { behind };
    Route::Function(Called { name: Cow::Borrowed(&rest[..length]), mount, path })
}

/// The labels of a host name below the domain, if it is below it.
fn name_below<'a>(domain: &str, host: &'a str) -> Option<&'a str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let dot = host.len().checked_sub(domain.len() + 1)?;
    let (name, below) = host.split_at_checked(dot)?;
    let is_below = below.strip_prefix('.')?.eq_ignore_ascii_case(domain);
    (is_below && !domain.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None` is administration, else name, mount and path.
    type Row = (&'static str, &'static str, Option<(&'static str, &'static str, &'static str)>);

    fn check(rows: &[Row]) {
        for (host, path, expected) in rows {
            let found = match route("localhost", host, path) {
                Route::Admin => None,
                Route::Function(called) => Some(called),
            };
            let expected = expected.map(|(name, mount, path)| {
                let name = Cow::Borrowed(name);
                Called { name, mount, path }
            });
            assert_eq!(found, expected, "{host:?} {path:?}");
        }
    }

    #[test]
    fn a_path_selects_by_its_second_segment_as_it_was_sent() {
        check(&[
            ("localhost", "/", None),
            ("localhost", "/v1/functions", None),
            ("localhost", "/fn", None),
            ("localhost", "/fn/a", Some(("a", "/fn/a", "/"))),
            ("localhost", "/fn/a/", Some(("a", "/fn/a", "/"))),
            ("localhost", "/fn/a/b/c", Some(("a", "/fn/a", "/b/c"))),
            ("localhost", "/fn/a//b", Some(("a", "/fn/a", "//b"))),
            ("localhost", "/fn/a/../b", Some(("a", "/fn/a", "/../b"))),
            ("localhost", "/fn/a/%2e%2e/b", Some(("a", "/fn/a", "/%2e%2e/b"))),
            ("localhost", "/fn/a/fn/b", Some(("a", "/fn/a", "/fn/b"))),
            // None of these is a function's name, so none is found.
            ("localhost", "/fn/", Some(("", "/fn/", "/"))),
            ("localhost", "/fn//a", Some(("", "/fn/", "/a"))),
            ("localhost", "/fn/../v1/functions", Some(("..", "/fn/..", "/v1/functions"))),
            ("localhost", "/fn/./a", Some((".", "/fn/.", "/a"))),
            ("localhost", "/fn/a%2fb", Some(("a%2fb", "/fn/a%2fb", "/"))),
            ("localhost", "/fn/%61", Some(("%61", "/fn/%61", "/"))),
            ("localhost", "/fn/a%00", Some(("a%00", "/fn/a%00", "/"))),
            ("localhost", "/fn/a;b", Some(("a;b", "/fn/a;b", "/"))),
            ("localhost", "/fn/A", Some(("A", "/fn/A", "/"))),
            // And these are not mounts.
            ("localhost", "//fn/a", None),
            ("localhost", "/FN/a", None),
            ("localhost", "/./fn/a", None),
            ("localhost", "/%66n/a", None),
        ]);
    }

    #[test]
    fn a_host_below_the_domain_is_a_functions_whatever_the_path() {
        check(&[
            ("a.localhost", "/", Some(("a", "", "/"))),
            ("a.localhost", "/fn/b", Some(("a", "", "/fn/b"))),
            ("a.localhost", "/v1/functions", Some(("a", "", "/v1/functions"))),
            ("a.localhost.", "/x", Some(("a", "", "/x"))),
            ("A.LocalHost", "/x", Some(("a", "", "/x"))),
            // No function has such a name.
            ("a.b.localhost", "/v1/functions", Some(("a.b", "", "/v1/functions"))),
            (".localhost", "/v1/functions", Some(("", "", "/v1/functions"))),
            ("..localhost", "/", Some((".", "", "/"))),
            ("a..localhost", "/", Some(("a.", "", "/"))),
            // Elsewhere.
            ("localhost.", "/fn/a", Some(("a", "/fn/a", "/"))),
            ("alocalhost", "/", None),
            ("a.localhost.example", "/", None),
            ("a.localhost..", "/", None),
            ("127.0.0.1", "/", None),
            ("[::1]", "/", None),
            ("", "/", None),
            ("", "/fn/a", Some(("a", "/fn/a", "/"))),
        ]);
    }

    #[test]
    fn without_a_domain_only_paths_select() {
        assert_eq!(route("", "a.localhost", "/"), Route::Admin);
        assert_eq!(route("", "a.", "/"), Route::Admin);
        assert!(matches!(route("", "", "/fn/a"), Route::Function(_)));
    }
}
