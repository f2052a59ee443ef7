//! The control headers, and the settings they are compared with.

use std::time::Duration;

use hyper::{HeaderMap, header::HeaderValue};
use model::LogId;
use subtle::ConstantTimeEq;

/// Names that begin with this are between the client and the host; functions never see them.
pub(crate) const RESERVED_PREFIX: &str = "x-open-runtimes-";
pub(crate) const SECRET: &str = "x-open-runtimes-secret";
pub(crate) const TIMEOUT: &str = "x-open-runtimes-timeout";
pub(crate) const LOGGING: &str = "x-open-runtimes-logging";
pub(crate) const LOG_ID: &str = "x-open-runtimes-log-id";

/// What a caller must know. Without text, everybody may call.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// A secret; empty text switches the check off.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a request with this header may go on. Takes the same time wherever texts differ.
    pub(crate) fn admits(&self, given: Option<&HeaderValue>) -> bool {
        let given = given.map_or(&b""[..], HeaderValue::as_bytes);
        self.0.is_empty() || bool::from(self.0.as_bytes().ct_eq(given))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Request headers that replace whatever a client sent (specification, 1.7). Names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnforcedHeaders(pub(crate) Vec<(String, String)>);

impl EnforcedHeaders {
    /// Reads the JSON object of `OPEN_RUNTIMES_HEADERS`. Anything else counts as none, as in the
    /// specification; the message says so, for a log.
    pub fn parse(json: &str) -> (Self, Option<String>) {
        if json.is_empty() {
            return (Self::default(), None);
        }
        match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json) {
            Ok(object) => {
                let headers = object.into_iter().map(|(name, value)| {
                    let value = match value {
                        serde_json::Value::String(text) => text,
                        other => other.to_string(),
                    };
                    (name.to_lowercase(), value)
                });
                (Self(headers.collect()), None)
            }
            Err(error) => {
                let why = format!("OPEN_RUNTIMES_HEADERS is not a JSON object: {error}");
                (Self::default(), Some(why))
            }
        }
    }
}

/// A timeout header that is not a positive whole number.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InvalidTimeout;

/// The caller's timeout: `^[1-9][0-9]*$` seconds (specification, 1.6 and 9.4). None: no timeout.
pub(crate) fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, InvalidTimeout> {
    let Some(value) = headers.get(TIMEOUT) else { return Ok(None) };
    let digits = value.as_bytes();
    match digits {
        [] => Ok(None),
        [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit) => {
            let seconds = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
            // More seconds than fit a u64 will not pass either.
            Ok(Some(Duration::from_secs(seconds.unwrap_or(u64::MAX))))
        }
        _ => Err(InvalidTimeout),
    }
}

/// Whether the caller wants a log.
pub(crate) fn wants_log(headers: &HeaderMap) -> bool {
    headers.get(LOGGING).is_none_or(|value| value.is_empty() || value == "enabled")
}

/// The log id that the caller chose. The message of an error is for the caller.
pub(crate) fn log_id(headers: &HeaderMap) -> Result<Option<LogId>, String> {
    let Some(value) = headers.get(LOG_ID).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("?");
    text.parse().map(Some).map_err(|error| format!("Header \"{LOG_ID}\" is not valid: {error}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header value");
        [(hyper::header::HeaderName::from_static(name), value)].into_iter().collect()
    }

    #[test]
    fn a_timeout_is_a_positive_whole_number() {
        let seconds = |n| Ok(Some(Duration::from_secs(n)));
        for (text, expected) in [
            ("", Ok(None)),
            ("1", seconds(1)),
            ("15", seconds(15)),
            ("99999999999999999999", seconds(u64::MAX)),
            ("0", Err(InvalidTimeout)),
            ("01", Err(InvalidTimeout)),
            ("-1", Err(InvalidTimeout)),
            ("+1", Err(InvalidTimeout)),
            ("1.5", Err(InvalidTimeout)),
            ("5x", Err(InvalidTimeout)),
            ("abcd", Err(InvalidTimeout)),
            ("1e3", Err(InvalidTimeout)),
        ] {
            assert_eq!(timeout(&headers(TIMEOUT, text)), expected, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
    }

    #[test]
    fn logging_is_on_unless_said_otherwise() {
        for (text, expected) in [("", true), ("enabled", true), ("disabled", false), ("x", false)] {
            assert_eq!(wants_log(&headers(LOGGING, text)), expected, "{text:?}");
        }
        assert!(wants_log(&HeaderMap::new()));
    }

    #[test]
    fn a_secret_admits_only_itself() {
        let value = |text: &str| HeaderValue::from_str(text).expect("a header value");
        let secret = Secret::new("change-me");
        assert!(secret.admits(Some(&value("change-me"))));
        assert!(!secret.admits(Some(&value("change-m"))));
        assert!(!secret.admits(Some(&value(""))));
        assert!(!secret.admits(None));
        assert!(Secret::default().admits(None), "no secret, no check");
        assert!(Secret::default().admits(Some(&value("whatever"))));
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn enforced_headers_are_text() {
        let json = r#"{"X-Custom":"a","n":248,"x-open-runtimes-custom":true}"#;
        let (headers, complaint) = EnforcedHeaders::parse(json);
        let expected = [("x-custom", "a"), ("n", "248"), ("x-open-runtimes-custom", "true")];
        let expected: Vec<_> = expected.map(|(n, v)| (n.to_owned(), v.to_owned())).into();
        let sorted = |mut headers: Vec<(String, String)>| {
            headers.sort();
            headers
        };
        assert_eq!(sorted(headers.0), sorted(expected));
        assert_eq!(complaint, None);
        for invalid in ["[]", "nonsense", "3"] {
            let (headers, complaint) = EnforcedHeaders::parse(invalid);
            assert_eq!(headers, EnforcedHeaders::default(), "{invalid:?}");
            assert!(complaint.is_some(), "{invalid:?}");
        }
        assert_eq!(EnforcedHeaders::parse("").1, None, "not set is not a mistake");
    }
}
