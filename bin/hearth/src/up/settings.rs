//! What the daemon is told: by a file, and by its command line, which wins.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use logs::LogLimits;
use model::Network;
use serde::Deserialize;
use telemetry::Format;

use crate::{
    exit::{Failure, Fatal},
    parts::{AdapterName, BIND_TIMEOUT},
};

const EXAMPLES: &str = "\
Examples:
  hearth up
  hearth up --listen 0.0.0.0:8080 --url https://functions.example.com --production
  hearth up --data /srv/hearth --config /etc/hearth.toml

The file given by --config has the same settings, by the same names (`max-instances = 200`), and
`log-bytes = \"16MiB\"` and `log-age = \"7d\"`: how much of each function's log is kept. What is said
on the command line wins.

Traces are sent if OTEL_EXPORTER_OTLP_ENDPOINT is set. Functions are called at
http://ADDR:PORT/fn/NAME/path and at http://NAME.localhost:PORT/path; the API is described by
http://ADDR:PORT/openapi.json, metrics are at /metrics.";

/// The least of a log that is worth keeping.
const LEAST_LOG: u64 = 64 << 10;

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where to listen; port 0 picks a free one [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where everything is kept [default: ~/.local/share/hearth; for root /var/lib/hearth].
    #[arg(long, value_name = "DIR", env = "HEARTH_DATA")]
    data: Option<PathBuf>,
    /// A file with settings (TOML).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How clients reach the daemon, for the URLs it prints [default: the address].
    #[arg(id = "public-url", long = "public-url", value_name = "URL")]
    url: Option<String>,
    /// The domain below which each function has a host name [default: localhost].
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// The most instances at once, spares included [default: by memory, 96 MiB each].
    #[arg(long, value_name = "N")]
    max_instances: Option<u32>,
    /// How much of the host's memory instances leave alone, such as `2GiB`, at most half of it
    /// [default: a tenth, at least 256MiB].
    #[arg(long, value_name = "SIZE")]
    memory_reserve: Option<String>,
    /// The most spares of each runtime [default: 8].
    #[arg(long, value_name = "N")]
    max_spares: Option<u32>,
    /// How long the code of a function may take to load, such as `30s` [default: 1m].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    load_timeout: Option<Duration>,
    /// What instances can reach unless their function says otherwise: `egress`, `none` or `host`
    /// [default: egress where the machine can give it, else none].
    #[arg(long)]
    network: Option<Network>,
    /// Where instances run [default: sandbox].
    #[arg(long, value_enum)]
    adapter: Option<AdapterName>,
    /// Refuse whatever does not isolate functions.
    #[arg(long)]
    production: bool,
    /// Use the runtimes in this directory instead of the built-in ones.
    #[arg(long, value_name = "DIR")]
    runtimes: Option<PathBuf>,
    /// How the daemon's own log is written: `text` or `json` [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

/// A file's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct FileSettings {
    listen: Option<SocketAddr>,
    data: Option<PathBuf>,
    public_url: Option<String>,
    domain: Option<String>,
    max_instances: Option<u32>,
    max_spares: Option<u32>,
    memory_reserve: Option<String>,
    #[serde(with = "humantime_serde")]
    load_timeout: Option<Duration>,
    network: Option<Network>,
    adapter: Option<AdapterName>,
    production: bool,
    runtimes: Option<PathBuf>,
    log_format: Option<String>,
    log_bytes: Option<String>,
    #[serde(with = "humantime_serde")]
    log_age: Option<Duration>,
}

/// What the daemon is told, checked.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) listen: SocketAddr,
    pub(crate) data: Option<PathBuf>,
    pub(crate) url: Option<String>,
    pub(crate) domain: Option<String>,
    pub(crate) max_instances: Option<u32>,
    pub(crate) max_spares: Option<u32>,
    pub(crate) memory_reserve: Option<u64>,
    pub(crate) load_timeout: Duration,
    pub(crate) network: Option<Network>,
    pub(crate) adapter: AdapterName,
    pub(crate) runtimes: Option<PathBuf>,
    pub(crate) log_format: Option<Format>,
    log_bytes: Option<u64>,
    log_age: Option<Duration>,
}

impl Arguments {
    /// Reads the file, if one is given, and puts both together. All mistakes come together.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let usage = |message: String| Fatal::new(Failure::Usage, message);
        let file = match &self.config {
            None => FileSettings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    usage(format!("could not read {}: {error}", path.display()))
                })?;
                toml::from_str(&text)
                    .map_err(|error| usage(format!("{} is not right: {error}", path.display())))?
            }
        };
        self.merge(file).map_err(|mistakes| usage(mistakes.join("; ")).into())
    }

    fn merge(&self, file: FileSettings) -> Result<Settings, Vec<String>> {
        let mut mistakes = Vec::new();
        let adapter = self.adapter.or(file.adapter).unwrap_or(AdapterName::Sandbox);
        if (self.production || file.production) && adapter == AdapterName::Process {
            mistakes.push(
                "the adapter `process` does not isolate functions, so `production` refuses it"
                    .to_owned(),
            );
        }
        let max_instances = self.max_instances.or(file.max_instances);
        if max_instances.is_some_and(|count| !(1..=4096).contains(&count)) {
            mistakes.push("max-instances must be from 1 to 4096".into());
        }
        let max_spares = self.max_spares.or(file.max_spares);
        if max_spares.is_some_and(|count| count > 256) {
            mistakes.push("max-spares must be at most 256".into());
        }
        let memory_reserve = self.memory_reserve.as_deref().or(file.memory_reserve.as_deref());
        let memory_reserve = memory_reserve.map(model::parse_size).transpose();
        let memory_reserve = memory_reserve.unwrap_or_else(|error| {
            mistakes.push(format!("memory-reserve: {error}"));
            None
        });
        let log_bytes = file.log_bytes.as_deref().map(model::parse_size).transpose();
        let log_bytes = log_bytes.unwrap_or_else(|error| {
            mistakes.push(format!("log-bytes: {error}"));
            None
        });
        if log_bytes.is_some_and(|bytes| bytes < LEAST_LOG) {
            mistakes.push("log-bytes must be at least 64KiB".into());
        }
        let log_format = file.log_format.as_deref().map(str::parse::<Format>).transpose();
        let log_format = log_format.unwrap_or_else(|error| {
            mistakes.push(format!("log-format: {error}"));
            None
        });
        let url = self.url.clone().or(file.public_url);
        if url
            .as_ref()
            .is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            mistakes.push("public-url must begin with http:// or https://".into());
        }
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Settings {
            listen: self
                .listen
                .or(file.listen)
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            data: self.data.clone().or(file.data),
            url,
            domain: self.domain.clone().or(file.domain),
            max_instances,
            max_spares,
            memory_reserve,
            load_timeout: self.load_timeout.or(file.load_timeout).unwrap_or(BIND_TIMEOUT),
            network: self.network.or(file.network),
            adapter,
            runtimes: self.runtimes.clone().or(file.runtimes),
            log_format: self.log_format.or(log_format),
            log_bytes,
            log_age: file.log_age,
        })
    }
}

impl Settings {
    /// The most instances at once.
    pub(crate) fn instances(&self) -> u32 {
        self.max_instances.unwrap_or_else(super::data::usual_instances)
    }

    pub(crate) fn log_limits(&self) -> LogLimits {
        let usual = LogLimits::default();
        let per_function_bytes = self.log_bytes.unwrap_or(usual.per_function_bytes);
        LogLimits {
            per_function_bytes,
            age: self.log_age.unwrap_or(usual.age),
            segment_bytes: usual.segment_bytes.min(per_function_bytes / 4),
            ..usual
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn merged(line: &[&str], file: &str) -> Result<Settings, Vec<String>> {
        let line = Line::parse_from(["up"].iter().chain(line));
        line.arguments.merge(toml::from_str(file).expect("the file reads"))
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let file = "listen = '0.0.0.0:80'\nmax-instances = 7\nlog-age = '2days'\nnetwork = 'none'\n\
                    memory-reserve = '2GiB'";
        let settings = merged(&["--max-instances", "9"], file).expect("right");
        assert_eq!(settings.listen.port(), 80);
        assert_eq!(settings.max_instances, Some(9));
        assert_eq!(settings.network, Some(Network::None));
        assert_eq!(settings.memory_reserve, Some(2 << 30));
        assert_eq!(settings.log_limits().age, Duration::from_secs(2 * 24 * 3600));
        let settings = merged(&[], "").expect("nothing need be said");
        assert_eq!(settings.listen.to_string(), "127.0.0.1:8080");
    }

    #[test]
    fn all_mistakes_come_together() {
        let file = "max-instances = 0\nlog-bytes = '1KB'\nlog-format = 'xml'\nproduction = true\n\
                    adapter = 'process'\npublic-url = 'example.com'\nmax-spares = 1000\n\
                    memory-reserve = '1GB'";
        let mistakes = merged(&[], file).expect_err("wrong");
        assert_eq!(mistakes.len(), 7, "{mistakes:#?}");
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = toml::from_str::<FileSettings>("max-instance = 7").expect_err("a mistake");
        assert!(error.to_string().contains("max-instance"), "{error}");
    }
}
