use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Limits, Network};

/// How a function is served: everything about it that is not its code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The function's environment. Values may be secrets: they are never printed.
    pub environment: BTreeMap<String, String>,
    /// How long a call may take, the start of an instance included.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// What one instance may use.
    pub limits: Limits,
    /// What an instance can reach; none: egress where the machine can give it.
    pub network: Option<Network>,
    /// How many instances there are, and what each takes.
    pub scale: Scale,
}

/// How many instances a function has, and how many calls at once each of them takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Calls at once in one instance, at least 1.
    pub concurrency: u32,
    /// Instances that are kept even if nobody calls.
    pub min: u32,
    /// The most instances; at least 1 and at least `min`.
    pub max: u32,
    /// How long an instance beyond `min` may go without a call before it is stopped.
    #[serde(with = "humantime_serde")]
    pub idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            environment: BTreeMap::new(),
            timeout: Duration::from_secs(15),
            limits: Limits::default(),
            network: None,
            scale: Scale::default(),
        }
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self { concurrency: 50, min: 0, max: 10, idle: Duration::from_secs(5 * 60) }
    }
}

/// Settings that contradict themselves or go beyond what Hearth can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {given}; it must be {expected}")]
pub struct InvalidSetting {
    /// The setting's name.
    pub name: &'static str,
    /// What was given.
    pub given: String,
    /// What would have been right.
    pub expected: String,
}

/// The least memory that a runtime starts with.
const LEAST_MEMORY: u64 = 16 << 20;
/// The most calls at once in an instance (docs/protocols/worker.md).
const MOST_CONCURRENCY: u32 = 1024;
/// The most instances of one function on a host.
const MOST_INSTANCES: u32 = 4096;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// All variables together; they travel to the worker in one frame.
const MOST_ENVIRONMENT: usize = 64 << 10;

impl Settings {
    /// All that is wrong with them.
    pub fn mistakes(&self) -> Vec<InvalidSetting> {
        let Self { environment, timeout, limits, scale, network: _ } = self;
        let mut mistakes = Vec::new();
        let mut check = |is_right: bool, name, given: String, expected: &str| {
            if !is_right {
                mistakes.push(InvalidSetting { name, given, expected: expected.into() });
            }
        };
        let size: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
        check(size <= MOST_ENVIRONMENT, "environment", format!("{size} bytes"), "at most 64 KiB");
        for name in environment.keys() {
            let is_plain = !name.is_empty() && !name.contains(['=', '\0']);
            check(is_plain, "environment", format!("{name:?}"), "names without `=` and NUL");
        }
        let has_nul = environment.values().any(|value| value.contains('\0'));
        check(!has_nul, "environment", "a value with NUL".into(), "values without NUL");
        let is_timeout = (Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(timeout);
        check(is_timeout, "timeout", format!("{timeout:?}"), "from 1ms to 24h");
        let memory = limits.memory_bytes;
        check(memory >= LEAST_MEMORY, "memory", format!("{memory} bytes"), "at least 16MiB");
        let Scale { concurrency, min, max, idle: _ } = *scale;
        let is_concurrency = (1..=MOST_CONCURRENCY).contains(&concurrency);
        check(is_concurrency, "concurrency", concurrency.to_string(), "from 1 to 1024");
        let is_max = (1..=MOST_INSTANCES).contains(&max);
        check(is_max, "max", max.to_string(), "from 1 to 4096");
        check(min <= max, "min", min.to_string(), &format!("at most max, which is {max}"));
        mistakes
    }
}

/// Names the variables and not their values.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("environment", &self.environment.keys())
            .field("timeout", &self.timeout)
            .field("limits", &self.limits)
            .field("network", &self.network)
            .field("scale", &self.scale)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_are_reported_together() {
        assert_eq!(Settings::default().mistakes(), []);
        let settings = Settings {
            environment: [("a=b".into(), "x\0".into())].into(),
            timeout: Duration::ZERO,
            limits: Limits::with_memory(1),
            network: None,
            scale: Scale { concurrency: 0, min: 3, max: 2, idle: Duration::ZERO },
        };
        let names: Vec<_> = settings.mistakes().iter().map(|mistake| mistake.name).collect();
        let expected = ["environment", "environment", "timeout", "memory", "concurrency", "min"];
        assert_eq!(names, expected);
    }

    #[test]
    fn values_of_variables_are_not_printed() {
        let environment = [("TOKEN".to_owned(), "change-me".to_owned())].into();
        let text = format!("{:?}", Settings { environment, ..Settings::default() });
        assert!(text.contains("TOKEN") && !text.contains("change-me"), "{text}");
    }
}
