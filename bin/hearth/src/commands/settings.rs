use std::{collections::BTreeMap, fmt::Display, path::PathBuf};

use api::SettingsPatch;
use clap_complete::ArgValueCandidates;
use model::{MOST_CONCURRENCY, MOST_INSTANCES, Network};

use super::{completions, env_file};
use crate::parts::{parse_variable, whole};

/// How the function is served: the flags of [`SettingsPatch`].
#[derive(clap::Args)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArguments {
    /// A variable for the function's environment. May be repeated.
    #[arg(long = "env", value_name = "K=V", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    /// Variables from a file of lines `K=V`, such as `.env`; --env wins. May be repeated: later files
    /// win.
    #[arg(long = "env-file", value_name = "FILE")]
    environment_files: Vec<PathBuf>,
    /// A variable to remove. May be repeated.
    #[arg(long = "unset-env", alias = "unset", value_name = "K")]
    unset: Vec<String>,
    /// How long a call may take, such as `15s`.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<String>,
    /// Memory of an instance, such as `256MiB`, or `256M`, which means the same.
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| checked(text, model::parse_size))]
    memory: Option<String>,
    /// Processors of an instance, such as `0.5`.
    #[arg(long, value_name = "N", value_parser = |text: &str| checked(text, model::parse_cpus_milli))]
    cpus: Option<String>,
    /// What an instance can reach: `egress` (public addresses), `none` or `host`.
    #[arg(long, value_name = "NETWORK", add = ArgValueCandidates::new(completions::networks), value_parser = |text: &str| checked(text, str::parse::<Network>))]
    network: Option<String>,
    /// Calls at once in one instance.
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST_CONCURRENCY))]
    concurrency: Option<u32>,
    /// Instances that are kept even if nobody calls.
    #[arg(long, value_name = "N", value_parser = whole(0..=MOST_INSTANCES))]
    min: Option<u32>,
    /// The most instances.
    #[arg(long, value_name = "N", value_parser = whole(1..=MOST_INSTANCES))]
    max: Option<u32>,
    /// How long an instance may go without a call before it is stopped, such as `5m`.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    idle: Option<String>,
}

impl SettingsArguments {
    /// What is to change. A variable that is both set and unset is set.
    pub(crate) fn patch(self) -> anyhow::Result<SettingsPatch> {
        let mut environment: BTreeMap<_, _> =
            self.unset.into_iter().map(|name| (name, None)).collect();
        for file in &self.environment_files {
            let variables = env_file::read(file)?.into_iter();
            environment.extend(variables.map(|(name, value)| (name, Some(value))));
        }
        let set = self.environment.into_iter().map(|(name, value)| (name, Some(value)));
        environment.extend(set);
        Ok(SettingsPatch {
            reset: Vec::new(),
            environment,
            timeout: self.timeout,
            memory: self.memory,
            cpus: self.cpus,
            network: self.network,
            concurrency: self.concurrency,
            min: self.min,
            max: self.max,
            idle: self.idle,
        })
    }

    /// Whether variables come from files.
    pub(crate) fn has_files(&self) -> bool {
        !self.environment_files.is_empty()
    }
}

pub(crate) fn parse_time(text: &str) -> Result<String, String> {
    let wrong = |_| "write it like `500ms`, `15s` or `5m`".to_owned();
    humantime::parse_duration(text).map(|_| text.into()).map_err(wrong)
}

/// The daemon reads the text; mistakes show before anything is sent.
pub(crate) fn checked<T, E: Display>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<String, String> {
    parse(text).map(|_| text.into()).map_err(|error| error.to_string())
}
