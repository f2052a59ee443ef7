//! What a case expects of a text.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A text is given as a whole, or described.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(crate) enum TextRule {
    Exact(String),
    Described(Description),
}

/// All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Description {
    /// Nothing is there at all; an empty text is something.
    absent: bool,
    contains: Vec<String>,
    lacks: Vec<String>,
    /// How often texts occur.
    times: BTreeMap<String, usize>,
    /// In bytes.
    length: Option<usize>,
    /// The bytes in hexadecimal digits.
    hex: Option<String>,
    /// The whole, as JSON.
    json: Option<Value>,
    /// JSON that is part of it: objects may have more members.
    includes: Option<Value>,
}

impl TextRule {
    /// What is wrong with what was found; none if nothing is.
    pub(crate) fn complaint(&self, found: Option<&[u8]>) -> Option<String> {
        let text = found.map(String::from_utf8_lossy);
        let is_met = match (self, found, text.as_deref()) {
            (Self::Exact(expected), Some(found), _) => expected.as_bytes() == found,
            (Self::Described(rule), Some(found), Some(text)) => rule.is_met(found, text),
            (Self::Described(rule), ..) => rule.absent,
            (Self::Exact(_), ..) => false,
        };
        let describe = || match &text {
            Some(text) => format!("found {:?}, expected {self}", shortened(text)),
            None => format!("is missing, expected {self}"),
        };
        (!is_met).then(describe)
    }
}

impl Description {
    fn is_met(&self, found: &[u8], text: &str) -> bool {
        let json = || serde_json::from_str::<Value>(text).ok();
        !self.absent
            && self.contains.iter().all(|part| text.contains(part))
            && !self.lacks.iter().any(|part| text.contains(part))
            && self.times.iter().all(|(part, times)| text.matches(part).count() == *times)
            && self.length.is_none_or(|length| found.len() == length)
            && self.hex.as_ref().is_none_or(|hex| *hex == to_hex(found))
            && self.json.as_ref().is_none_or(|expected| json().as_ref() == Some(expected))
            && self.includes.as_ref().is_none_or(|part| json().is_some_and(|all| has(&all, part)))
    }
}

impl std::fmt::Display for TextRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => write!(f, "{:?}", shortened(text)),
            Self::Described(rule) => write!(f, "{rule:?}"),
        }
    }
}

/// Whether `all` has everything that `part` has.
fn has(all: &Value, part: &Value) -> bool {
    match (all, part) {
        (Value::Object(all), Value::Object(part)) => {
            part.iter().all(|(name, part)| all.get(name).is_some_and(|all| has(all, part)))
        }
        (all, part) => all == part,
    }
}

/// The bytes that hexadecimal digits stand for; none if they do not.
pub(crate) fn from_hex(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn shortened(text: &str) -> String {
    const MOST: usize = 400;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(toml: &str) -> TextRule {
        let mut table: BTreeMap<String, TextRule> = toml::from_str(toml).expect("a rule");
        table.remove("rule").expect("it is called rule")
    }

    #[test]
    fn rules_hold_for_some_texts_and_not_for_others() {
        for (toml, meets, fails) in [
            ("rule = ''", "", "x"),
            ("rule = 'x'", "x", "xx"),
            ("rule = { contains = ['a', 'b'] }", "ab", "a"),
            ("rule = { lacks = ['a'] }", "b", "ab"),
            ("rule = { times = { a = 2 } }", "aba", "aaa"),
            ("rule = { length = 2 }", "ab", "abc"),
            ("rule = { hex = '6100' }", "a\0", "a"),
            ("rule = { json = { a = 1 } }", r#"{"a": 1}"#, r#"{"a":1,"b":2}"#),
            ("rule = { includes = { a = { b = 1 } } }", r#"{"a":{"b":1,"c":2}}"#, r#"{"a":{}}"#),
        ] {
            assert_eq!(rule(toml).complaint(Some(meets.as_bytes())), None, "{toml}: {meets}");
            assert!(rule(toml).complaint(Some(fails.as_bytes())).is_some(), "{toml}: {fails}");
            assert!(rule(toml).complaint(None).is_some(), "{toml}: nothing there");
        }
        let absent = rule("rule = { absent = true }");
        assert_eq!(absent.complaint(None), None);
        assert!(absent.complaint(Some(b"")).is_some(), "an empty text is something");
    }

    #[test]
    fn hexadecimal_digits_are_bytes() {
        assert_eq!(from_hex("00ff10"), Some(vec![0, 255, 16]));
        assert_eq!(from_hex("xy"), None);
    }
}
