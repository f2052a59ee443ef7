use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Capacity, InvalidVariable, Limits, Network, check_variable, format_cpus, format_size};

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

/// A setting that contradicts another, or goes beyond what Hearth or the machine can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// A value.
    #[error("{name} is {given}; it must be {expected}")]
    Value {
        /// The setting's name.
        name: &'static str,
        /// What was given.
        given: String,
        /// What would have been right.
        expected: String,
    },
    /// The name of a variable.
    #[error(transparent)]
    Variable(#[from] InvalidVariable),
}

/// The least memory that a runtime starts with.
const LEAST_MEMORY: u64 = 16 << 20;
/// The most memory of an instance. More than a machine has is allowed, and says nothing; what no
/// machine has is a mistake.
const MOST_MEMORY: u64 = 1 << 40;
/// The most calls at once in an instance (docs/protocols/worker.md).
pub const MOST_CONCURRENCY: u32 = 1024;
/// The most instances of one function on a host.
pub const MOST_INSTANCES: u32 = 4096;
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
                mistakes.push(InvalidSetting::Value { name, given, expected: expected.into() });
            }
        };
        let size: usize = environment.iter().map(|(name, value)| name.len() + value.len()).sum();
        check(size <= MOST_ENVIRONMENT, "environment", format!("{size} bytes"), "at most 64 KiB");
        let has_nul = environment.values().any(|value| value.contains('\0'));
        check(!has_nul, "environment", "a value with NUL".into(), "values without NUL");
        let is_timeout = (Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(timeout);
        let given = humantime::format_duration(*timeout).to_string();
        check(is_timeout, "timeout", given, "from 1ms to 24h");
        let memory = limits.memory_bytes;
        let is_memory = (LEAST_MEMORY..=MOST_MEMORY).contains(&memory);
        check(is_memory, "memory", format_size(memory), "from 16MiB to 1024GiB");
        let Scale { concurrency, min, max, idle: _ } = *scale;
        let is_concurrency = (1..=MOST_CONCURRENCY).contains(&concurrency);
        check(is_concurrency, "concurrency", concurrency.to_string(), "from 1 to 1024");
        let is_max = (1..=MOST_INSTANCES).contains(&max);
        check(is_max, "max", max.to_string(), "from 1 to 4096");
        check(min <= max, "min", min.to_string(), &format!("at most max, which is {max}"));
        let names = environment.keys().filter_map(|name| check_variable(name).err());
        mistakes.extend(names.map(InvalidSetting::from));
        mistakes
    }
}

impl Limits {
    /// What is more than a machine has, so that no instance could ever have it.
    pub fn beyond(&self, machine: &Capacity) -> Vec<InvalidSetting> {
        let memory = (self.memory_bytes > machine.memory_bytes).then(|| InvalidSetting::Value {
            name: "memory",
            given: format_size(self.memory_bytes),
            expected: format!(
                "at most {}, which is all that the machine has",
                format_size(machine.memory_bytes)
            ),
        });
        let cpus = (self.cpus_milli > machine.cpus_milli).then(|| InvalidSetting::Value {
            name: "cpus",
            given: format_cpus(self.cpus_milli),
            expected: format!(
                "at most {}, which is all that the machine has",
                format_cpus(machine.cpus_milli)
            ),
        });
        memory.into_iter().chain(cpus).collect()
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
            environment: [("A B".into(), "x\0".into()), ("HEARTH_X".into(), "".into())].into(),
            timeout: Duration::ZERO,
            limits: Limits::with_memory(1),
            network: None,
            scale: Scale { concurrency: 0, min: 3, max: 2, idle: Duration::ZERO },
        };
        let mistakes: Vec<_> = settings.mistakes().iter().map(ToString::to_string).collect();
        let expected = [
            "environment is a value with NUL; it must be values without NUL",
            "timeout is 0s; it must be from 1ms to 24h",
            "memory is 1B; it must be from 16MiB to 1024GiB",
            "concurrency is 0; it must be from 1 to 1024",
            "min is 3; it must be at most max, which is 2",
            "the variable \"A B\" must have a name of letters, digits, `_`, `.` and `-`, and not \
             begin with a digit",
            "the variable `HEARTH_X` cannot be set: names that begin with `HEARTH_` are Hearth's own",
        ];
        assert_eq!(mistakes, expected);
    }

    #[test]
    fn an_instance_has_no_more_than_the_machine() {
        let machine = Capacity { memory_bytes: 24 << 30, cpus_milli: 2000 };
        let beyond = |memory_bytes, cpus_milli| {
            let limits = Limits { cpus_milli, ..Limits::with_memory(memory_bytes) };
            limits.beyond(&machine).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(beyond(24 << 30, 2000), [""; 0]);
        assert_eq!(
            beyond(999 << 30, 100_000),
            [
                "memory is 999GiB; it must be at most 24GiB, which is all that the machine has",
                "cpus is 100; it must be at most 2, which is all that the machine has",
            ]
        );
    }

    #[test]
    fn memory_that_no_machine_has_is_a_mistake() {
        for (bytes, is_right) in [
            (LEAST_MEMORY - 1, false),
            (LEAST_MEMORY, true),
            (MOST_MEMORY, true),
            (MOST_MEMORY + 1, false),
            (97 << 40, false),
            (u64::MAX, false),
        ] {
            let limits = Limits::with_memory(bytes);
            let mistakes = Settings { limits, ..Settings::default() }.mistakes();
            assert_eq!(mistakes.is_empty(), is_right, "{bytes}: {mistakes:?}");
            let text = mistakes.first().map(ToString::to_string).unwrap_or_default();
            assert!(is_right || text.ends_with("from 16MiB to 1024GiB"), "{text}");
        }
    }

    #[test]
    fn values_of_variables_are_not_printed() {
        let environment = [("TOKEN".to_owned(), "change-me".to_owned())].into();
        let text = format!("{:?}", Settings { environment, ..Settings::default() });
        assert!(text.contains("TOKEN") && !text.contains("change-me"), "{text}");
    }
}
