use std::{collections::BTreeMap, time::Duration};

use model::{Capacity, Limits, Network, Settings};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Deployment;

/// What is deployed, beside the source. Whatever is left out stays as it was, or is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DeployRequest {
    /// The runtime, such as `node` or `python-3.11`; told from the source if left out.
    pub runtime: Option<String>,
    /// The file that defines the function; the runtime's usual names if left out.
    pub entrypoint: Option<String>,
    /// How it is served.
    pub settings: SettingsPatch,
}

/// A setting by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SettingName {
    /// All variables.
    Environment,
    /// How long a call may take.
    Timeout,
    /// Memory of an instance, and with it the room for its files.
    Memory,
    /// Processors of an instance.
    Cpus,
    /// What an instance can reach.
    Network,
    /// Calls at once in one instance.
    Concurrency,
    /// Instances that are kept.
    Min,
    /// The most instances.
    Max,
    /// How long an instance may go without a call.
    Idle,
}

impl SettingName {
    /// All there are.
    pub const ALL: [Self; 9] = [
        Self::Environment,
        Self::Timeout,
        Self::Memory,
        Self::Cpus,
        Self::Network,
        Self::Concurrency,
        Self::Min,
        Self::Max,
        Self::Idle,
    ];

    /// As it is written in JSON, in files and in flags.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Timeout => "timeout",
            Self::Memory => "memory",
            Self::Cpus => "cpus",
            Self::Network => "network",
            Self::Concurrency => "concurrency",
            Self::Min => "min",
            Self::Max => "max",
            Self::Idle => "idle",
        }
    }

    fn reset(self, settings: &mut Settings) {
        let Settings { environment, timeout, limits, network, scale } = Settings::default();
        match self {
            Self::Environment => settings.environment = environment,
            Self::Timeout => settings.timeout = timeout,
            Self::Memory => {
                let cpus_milli = settings.limits.cpus_milli;
                settings.limits = Limits { cpus_milli, ..limits };
            }
            Self::Cpus => settings.limits.cpus_milli = limits.cpus_milli,
            Self::Network => settings.network = network,
            Self::Concurrency => settings.scale.concurrency = scale.concurrency,
            Self::Min => settings.scale.min = scale.min,
            Self::Max => settings.scale.max = scale.max,
            Self::Idle => settings.scale.idle = scale.idle,
        }
    }
}

/// Settings that are to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SettingsPatch {
    /// Settings that become their defaults, before the others are changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 9)]
    pub reset: Vec<SettingName>,
    /// Variables to set, and those to remove: null.
    pub environment: BTreeMap<String, Option<String>>,
    /// How long a call may take, such as `15s`: from 1ms to 24h.
    #[schema(pattern = r"^\s*(0|([0-9]+\s*[a-zA-Z]+\s*)+)$")]
    pub timeout: Option<String>,
    /// Memory of an instance, such as `256MiB` or `256M`, which is the same: at least 16MiB, at most
    /// what the machine has.
    #[schema(pattern = "^[0-9]+(B|[KMG]iB|[KMGkmg])?$")]
    pub memory: Option<String>,
    /// Processors of an instance, such as `0.5`: at least 0.01, at most what the machine has.
    #[schema(pattern = r"^[0-9]{1,4}(\.[0-9]{1,3})?$")]
    pub cpus: Option<String>,
    /// `egress`, `none` or `host`.
    #[schema(pattern = "^(egress|none|host)$")]
    pub network: Option<String>,
    /// Calls at once in one instance.
    #[schema(minimum = 1, maximum = 1024)]
    pub concurrency: Option<u32>,
    /// Instances that are kept even if nobody calls.
    #[schema(maximum = 4096)]
    pub min: Option<u32>,
    /// The most instances.
    #[schema(minimum = 1, maximum = 4096)]
    pub max: Option<u32>,
    /// How long an instance may go without a call, such as `5m`.
    #[schema(pattern = r"^\s*(0|([0-9]+\s*[a-zA-Z]+\s*)+)$")]
    pub idle: Option<String>,
}

impl SettingsPatch {
    /// These changes, and those of `base` where these say nothing.
    pub fn over(self, base: Self) -> Self {
        let mut environment = base.environment;
        environment.extend(self.environment);
        Self {
            reset: base.reset.into_iter().chain(self.reset).collect(),
            environment,
            timeout: self.timeout.or(base.timeout),
            memory: self.memory.or(base.memory),
            cpus: self.cpus.or(base.cpus),
            network: self.network.or(base.network),
            concurrency: self.concurrency.or(base.concurrency),
            min: self.min.or(base.min),
            max: self.max.or(base.max),
            idle: self.idle.or(base.idle),
        }
    }

    /// The settings with the changes, for a machine that has so much; or all mistakes in words.
    pub fn apply(&self, to: &Settings, machine: &Capacity) -> Result<Settings, Vec<String>> {
        let mut settings = to.clone();
        let mut mistakes = Vec::new();
        for name in &self.reset {
            name.reset(&mut settings);
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => _ = settings.environment.insert(name.clone(), value.clone()),
                None => _ = settings.environment.remove(name),
            }
        }
        let limits = &mut settings.limits;
        if let Some(bytes) =
            read("memory", self.memory.as_deref(), model::parse_size, &mut mistakes)
        {
            let cpus_milli = limits.cpus_milli;
            *limits = Limits { cpus_milli, ..Limits::with_memory(bytes) };
        }
        if let Some(cpus) =
            read("cpus", self.cpus.as_deref(), model::parse_cpus_milli, &mut mistakes)
        {
            limits.cpus_milli = cpus;
        }
        if let Some(network) =
            read("network", self.network.as_deref(), str::parse::<Network>, &mut mistakes)
        {
            settings.network = Some(network);
        }
        if let Some(timeout) = read("timeout", self.timeout.as_deref(), duration, &mut mistakes) {
            settings.timeout = timeout;
        }
        if let Some(idle) = read("idle", self.idle.as_deref(), duration, &mut mistakes) {
            settings.scale.idle = idle;
        }
        let scale = &mut settings.scale;
        scale.concurrency = self.concurrency.unwrap_or(scale.concurrency);
        scale.max = self.max.unwrap_or(scale.max);
        scale.min = self.min.unwrap_or(scale.min);
        // A default, or what was allowed before, is not asked for.
        let asked = Limits {
            memory_bytes: self.memory.as_ref().map_or(0, |_| settings.limits.memory_bytes),
            cpus_milli: self.cpus.as_ref().map_or(0, |_| settings.limits.cpus_milli),
            ..settings.limits.clone()
        };
        let wrong = settings.mistakes().into_iter().chain(asked.beyond(machine));
        mistakes.extend(wrong.map(|mistake| mistake.to_string()));
        if mistakes.is_empty() { Ok(settings) } else { Err(mistakes) }
    }
}

fn read<T, E: std::fmt::Display>(
    name: &str,
    text: Option<&str>,
    parse: impl Fn(&str) -> Result<T, E>,
    mistakes: &mut Vec<String>,
) -> Option<T> {
    match parse(text?) {
        Ok(value) => Some(value),
        Err(error) => {
            mistakes.push(format!("{name}: {error}"));
            None
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| format!("`{text}` is not a duration such as `500ms`, `15s` or `5m`"))
}

/// What happens while a deployment is made. The answer's header `x-hearth-deployment` names
/// the deployment, for who wants to cancel it. The last event is `active` or `failed`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum DeployEvent {
    /// A step begins.
    Step {
        /// `queue`, `unpack`, `build`, `store` or `start`.
        step: String,
    },
    /// What the build printed.
    Output {
        /// A piece of text; not necessarily whole lines.
        text: String,
    },
    /// The deployment serves all new calls.
    Active {
        /// The deployment.
        deployment: Box<Deployment>,
        /// Where the function is called.
        url: String,
    },
    /// The deployment does not serve; what served before still does.
    Failed {
        /// The step that failed.
        step: String,
        /// Why, and what to do; the build's output was sent before.
        message: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Capacity = Capacity { memory_bytes: 1 << 30, cpus_milli: 2000 };

    #[test]
    fn what_is_left_out_stays_as_it_was() {
        let first = SettingsPatch {
            environment: [("A".into(), Some("1".into())), ("B".into(), Some("2".into()))].into(),
            memory: Some("64MiB".into()),
            cpus: Some("0.5".into()),
            ..SettingsPatch::default()
        };
        let settings = first.apply(&Settings::default(), &MACHINE).expect("valid");
        let second = SettingsPatch {
            environment: [("A".into(), None)].into(),
            timeout: Some("2s".into()),
            memory: Some("128MiB".into()),
            ..SettingsPatch::default()
        };
        let settings = second.apply(&settings, &MACHINE).expect("valid");
        assert_eq!(settings.environment, [("B".to_owned(), "2".to_owned())].into());
        assert_eq!(settings.limits.memory_bytes, 128 << 20);
        assert_eq!(settings.limits.cpus_milli, 500);
        assert_eq!(settings.timeout, Duration::from_secs(2));
    }

    #[test]
    fn a_reset_setting_is_the_default_unless_it_is_given_too() {
        let first = SettingsPatch {
            environment: [("A".into(), Some("1".into()))].into(),
            timeout: Some("2s".into()),
            memory: Some("64MiB".into()),
            cpus: Some("0.5".into()),
            network: Some("none".into()),
            concurrency: Some(7),
            min: Some(1),
            max: Some(2),
            idle: Some("1s".into()),
            ..SettingsPatch::default()
        };
        let settings = first.apply(&Settings::default(), &MACHINE).expect("valid");
        let reset = |reset: Vec<SettingName>| SettingsPatch { reset, ..SettingsPatch::default() };
        let all = reset(SettingName::ALL.into()).apply(&settings, &MACHINE);
        assert_eq!(all, Ok(Settings::default()));
        for name in SettingName::ALL {
            let one = reset(vec![name]).apply(&settings, &MACHINE).expect("valid");
            assert_ne!(one, settings, "{name:?}");
            assert_eq!(serde_json::to_value(name).expect("JSON"), name.as_str());
        }
        let memory = reset(vec![SettingName::Memory]).apply(&settings, &MACHINE).expect("valid");
        assert_eq!(memory.limits, Limits { cpus_milli: 500, ..Limits::default() });
        let both = SettingsPatch {
            environment: [("B".into(), Some("2".into()))].into(),
            max: Some(5),
            ..reset(vec![SettingName::Environment, SettingName::Max])
        };
        let both = both.apply(&settings, &MACHINE).expect("valid");
        assert_eq!(both.environment, [("B".to_owned(), "2".to_owned())].into());
        assert_eq!(both.scale.max, 5);
    }

    #[test]
    fn all_mistakes_come_together() {
        let patch = SettingsPatch {
            timeout: Some("soon".into()),
            memory: Some("lots".into()),
            cpus: Some("-1".into()),
            network: Some("everything".into()),
            concurrency: Some(0),
            min: Some(20),
            idle: Some("x".into()),
            ..SettingsPatch::default()
        };
        let mistakes = patch.apply(&Settings::default(), &MACHINE).expect_err("many mistakes");
        assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
    }

    #[test]
    fn a_machine_gives_what_it_has() {
        let patch = SettingsPatch {
            memory: Some("2GiB".into()),
            cpus: Some("100".into()),
            ..SettingsPatch::default()
        };
        let mistakes = patch.apply(&Settings::default(), &MACHINE).expect_err("too much");
        assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
        assert!(mistakes[0].contains("1GiB") && mistakes[1].contains("at most 2"), "{mistakes:#?}");
        let small = Capacity { memory_bytes: 256 << 20, cpus_milli: 500 };
        let unchanged = SettingsPatch::default().apply(&Settings::default(), &small);
        assert_eq!(unchanged, Ok(Settings::default()), "what nobody asked for is not refused");
    }

    #[test]
    fn unknown_settings_are_refused() {
        let text = r#"{"settings": {"memroy": "64MiB"}}"#;
        let error = serde_json::from_str::<DeployRequest>(text).expect_err("a mistake");
        assert!(error.to_string().contains("memroy"), "{error}");
    }
}
