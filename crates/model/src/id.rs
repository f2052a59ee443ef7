use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Text that is not an id of the kind it was offered as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be 1 to {longest} characters out of {allowed}")]
pub struct InvalidId {
    kind: &'static str,
    longest: usize,
    allowed: &'static str,
}

impl InvalidId {
    pub(crate) fn new(kind: &'static str, longest: usize, allowed: &'static str) -> Self {
        Self { kind, longest, allowed }
    }
}

/// Names an instance on its host: 1 to 40 characters out of `a-z`, `0-9` and `-`.
///
/// Short and plain enough to be part of a path, a cgroup's name and an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(Box<str>);

/// Names a call's log files: 1 to 64 characters out of `A-Z`, `a-z`, `0-9`, `_` and `-`.
///
/// The original system takes any text and opens a file by it, also `../../etc/cron.d/x`; this type is
/// why Hearth does not (Open Runtimes specification, 3.2 and 9.4).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogId(Box<str>);

/// Names a runtime: 1 to 24 characters out of `a-z`, `0-9`, `+`, `.` and `-`, of which the first is a
/// letter. `python`, `c++`, `python-ml`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuntimeName(Arc<str>);

impl RuntimeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An id that the ids of its instances may begin with. Two runtimes may have the same.
    pub fn instance_prefix(&self) -> InstanceId {
        let plain = |c: char| match c {
            '+' => 'p',
            '.' => '-',
            c => c,
        };
        InstanceId(self.0.chars().map(plain).collect::<String>().into())
    }
}

impl FromStr for RuntimeName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed =
            |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'+' | b'.' | b'-');
        let is_name =
            check(text, 24, allowed) && text.starts_with(|c: char| c.is_ascii_lowercase());
        is_name.then(|| Self(text.into())).ok_or(InvalidId {
            kind: "a runtime's name",
            longest: 24,
            allowed: "a-z 0-9 + . -, and begin with a letter",
        })
    }
}

impl TryFrom<String> for RuntimeName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<RuntimeName> for String {
    fn from(name: RuntimeName) -> Self {
        name.as_str().into()
    }
}

impl fmt::Display for RuntimeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a function: 1 to 63 characters out of `a-z`, `0-9` and `-`, with a letter or a digit at
/// either end.
///
/// That is a DNS label (RFC 1123, 2.1), so a function can have a host name of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FunctionName(Arc<str>);

impl FunctionName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FunctionName {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let is_label = check(text, 63, allowed) && !text.starts_with('-') && !text.ends_with('-');
        is_label.then(|| Self(text.into())).ok_or(InvalidId {
            kind: "a function's name",
            longest: 63,
            allowed: "a-z 0-9 -, and not begin or end with -",
        })
    }
}

impl TryFrom<String> for FunctionName {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<FunctionName> for String {
    fn from(name: FunctionName) -> Self {
        name.as_str().into()
    }
}

impl fmt::Display for FunctionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Looked up by text in maps.
impl Borrow<str> for FunctionName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl InstanceId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl LogId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InstanceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        check(text, 40, allowed).then(|| Self(text.into())).ok_or(InvalidId {
            kind: "an instance id",
            longest: 40,
            allowed: "a-z 0-9 -",
        })
    }
}

impl FromStr for LogId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        check(text, 64, allowed).then(|| Self(text.into())).ok_or(InvalidId {
            kind: "a log id",
            longest: 64,
            allowed: "A-Z a-z 0-9 _ -",
        })
    }
}

fn check(text: &str, longest: usize, allowed: fn(u8) -> bool) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(allowed)
}

impl TryFrom<String> for InstanceId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0.into()
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_runtimes_name_begins_ids_of_instances() {
        for (name, prefix) in [
            ("python", "python"),
            ("c++", "cpp"),
            ("python-ml", "python-ml"),
            ("provided.al2023", "provided-al2023"),
        ] {
            let name: RuntimeName = name.parse().expect(name);
            let id = name.instance_prefix();
            assert_eq!(id.as_str(), prefix);
            format!("{id}-{}", u32::MAX).parse::<InstanceId>().expect("an id with a number");
        }
        let longest =
            "a+".repeat(12).parse::<RuntimeName>().expect("24 characters").instance_prefix();
        format!("{longest}-{}", u32::MAX).parse::<InstanceId>().expect("an id with a number");
        for text in ["", "C++", "../x", "+c", "-c", "a b", &"a".repeat(25)] {
            text.parse::<RuntimeName>().expect_err(text);
        }
    }

    #[test]
    fn a_functions_name_can_be_a_host_name() {
        let longest = "x".repeat(63);
        for (text, expected) in [
            ("hello", true),
            ("a", true),
            ("my-function-2", true),
            (longest.as_str(), true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a.b", false),
            ("a_b", false),
            ("..", false),
            ("a%2fb", false),
            (&"x".repeat(64), false),
        ] {
            assert_eq!(text.parse::<FunctionName>().is_ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn ids_refuse_what_could_leave_a_directory() {
        let longest = "x".repeat(64);
        for (text, is_log_id, is_instance_id) in [
            ("a", true, true),
            ("Az09_-", true, false),
            (longest.as_str(), true, false),
            ("", false, false),
            ("..", false, false),
            ("a/b", false, false),
            ("a\0", false, false),
            ("ä", false, false),
            (&"x".repeat(65), false, false),
        ] {
            assert_eq!(text.parse::<LogId>().is_ok(), is_log_id, "{text:?}");
            assert_eq!(text.parse::<InstanceId>().is_ok(), is_instance_id, "{text:?}");
        }
    }
}
