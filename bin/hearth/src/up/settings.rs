//! What the daemon is told: by a file, and by its command line, which wins.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use adapter_sandbox::Subnet;
use client::Url;
use logs::LogLimits;
use model::{FunctionName, Network};
use serde::Deserialize;
use telemetry::Format;

use crate::{
    exit::{Failure, Fatal},
    parts::{self, AdapterName, BIND_TIMEOUT, parse_listen},
    paths,
};

const EXAMPLES: &str = "\
Examples:
  hearth up
  hearth up --listen 0.0.0.0:8080 --public-url https://functions.example.com --production
  hearth up --data /srv/hearth --config /etc/hearth.toml

The file given by --config has the same settings, by the same names (`max-instances = 200`,
`allow-network = [\"10.1.0.0/16\"]`), and
`log-bytes = \"16MiB\"` and `log-age = \"7d\"`: how much of each function's log is kept. What is said
on the command line wins. Relative paths in the file begin at the file's directory.

Traces are sent if OTEL_EXPORTER_OTLP_ENDPOINT is set. Functions are called at
http://ADDR:PORT/fn/NAME/path and at http://NAME.localhost:PORT/path; the API is described by
http://ADDR:PORT/openapi.json, metrics are at /metrics.";

/// The least of a log that is worth keeping.
const LEAST_LOG: u64 = 64 << 10;
const LOAD_TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60);
const LOG_AGES: RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(10 * 366 * 24 * 60 * 60);

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where to listen, also by a name such as localhost; port 0 picks a free one [default:
    /// 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT", value_parser = parse_listen)]
    listen: Option<SocketAddr>,
    /// Where everything is kept [default: ~/.local/share/hearth; for root /var/lib/hearth].
    #[arg(long, value_name = "DIR", env = "HEARTH_DATA", value_parser = paths::absolute())]
    data: Option<PathBuf>,
    /// A file with settings (TOML).
    #[arg(long, value_name = "FILE", value_parser = paths::absolute())]
    config: Option<PathBuf>,
    /// How clients reach the daemon, for the URLs it prints [default: the address, or this
    /// machine's name where it listens on all].
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
    /// A range that instances with the network `egress` reach beside public addresses, such as
    /// 10.1.0.0/16. May be repeated. This host's own addresses and other instances stay closed.
    #[arg(long = "allow-network", value_name = "CIDR")]
    allow_network: Vec<Subnet>,
    /// Where instances run [default: sandbox].
    #[arg(long, value_enum)]
    adapter: Option<AdapterName>,
    /// Refuse whatever does not isolate functions.
    #[arg(long)]
    production: bool,
    /// Use the runtimes in this directory instead of the built-in ones.
    #[arg(long, value_name = "DIR", value_parser = paths::absolute())]
    runtimes: Option<PathBuf>,
    /// How the daemon's own log is written: `text` or `json` [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

/// A file's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct FileSettings {
    listen: Option<String>,
    data: Option<PathBuf>,
    public_url: Option<String>,
    domain: Option<String>,
    max_instances: Option<u32>,
    max_spares: Option<u32>,
    memory_reserve: Option<String>,
    #[serde(with = "humantime_serde")]
    load_timeout: Option<Duration>,
    network: Option<Network>,
    allow_network: Vec<String>,
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
    pub(crate) allowed_networks: Vec<Subnet>,
    pub(crate) adapter: AdapterName,
    pub(crate) runtimes: Option<PathBuf>,
    pub(crate) log_format: Option<Format>,
    log_bytes: Option<u64>,
    log_age: Option<Duration>,
}

impl FileSettings {
    /// Relative paths in a file begin where the file is.
    fn beside(self, file: &Path) -> Self {
        let absolute = |path: Option<PathBuf>| path.map(|path| paths::beside(file, path));
        Self { data: absolute(self.data), runtimes: absolute(self.runtimes), ..self }
    }
}

impl Arguments {
    /// Reads the file, if one is given, and puts both together. All mistakes come together.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let usage = |message: String| Fatal::new(Failure::Usage, message);
        let file = match &self.config {
            None => FileSettings::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| {
                    let message = format!("could not read {}: {error}", path.display());
                    Fatal::new(Failure::NoInput, message)
                })?;
                let file: FileSettings = toml::from_str(&text)
                    .map_err(|error| usage(format!("{} is not right: {error}", path.display())))?;
                file.beside(path)
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
        let half = parts::machine().memory_bytes / 2;
        if memory_reserve.is_some_and(|reserve| reserve > half) {
            let half = model::format_size(half);
            mistakes.push(format!("memory-reserve must be at most half of this machine's: {half}"));
        }
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
        if url.as_deref().is_some_and(|url| !is_public_url(url)) {
            mistakes.push("public-url must be like https://functions.example.com".into());
        }
        let domain = self.domain.clone().or(file.domain);
        if domain.as_deref().is_some_and(|domain| !is_domain(domain)) {
            mistakes.push("domain must be a name such as functions.example.com".into());
        }
        let listen = self.listen.map(Ok).or_else(|| file.listen.as_deref().map(parse_listen));
        let listen = listen.transpose().unwrap_or_else(|error| {
            mistakes.push(format!("listen: {error}"));
            None
        });
        let load_timeout = self.load_timeout.or(file.load_timeout).unwrap_or(BIND_TIMEOUT);
        if !LOAD_TIMEOUTS.contains(&load_timeout) {
            mistakes.push("load-timeout must be from 100ms to 24h".into());
        }
        if file.log_age.is_some_and(|age| !LOG_AGES.contains(&age)) {
            mistakes.push("log-age must be from 1m to 10years".into());
        }
        let mut allowed_networks = self.allow_network.clone();
        if allowed_networks.is_empty() {
            for range in &file.allow_network {
                match range.parse() {
                    Ok(range) => allowed_networks.push(range),
                    Err(error) => mistakes.push(format!("allow-network: {error}")),
                }
            }
        }
        mistakes.extend(parts::mistake_in_networks(adapter, &allowed_networks));
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        Ok(Settings {
            listen: listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8080))),
            data: self.data.clone().or(file.data),
            url,
            domain: domain.map(|domain| domain.to_ascii_lowercase()),
            max_instances,
            max_spares,
            memory_reserve,
            load_timeout,
            network: self.network.or(file.network),
            allowed_networks,
            adapter,
            runtimes: self.runtimes.clone().or(file.runtimes),
            log_format: self.log_format.or(log_format),
            log_bytes,
            log_age: file.log_age,
        })
    }
}

/// A URL that a path can be put behind.
fn is_public_url(text: &str) -> bool {
    let is_plain = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };
    // Parsers of URLs drop some white space silently.
    !text.contains(char::is_whitespace) && Url::parse(text).as_ref().is_ok_and(is_plain)
}

/// Labels with dots between them (RFC 1123, 2.1), with room for a function's in front.
fn is_domain(text: &str) -> bool {
    const LONGEST: usize = 253 - 64;
    let is_label = |label: &str| label.to_ascii_lowercase().parse::<FunctionName>().is_ok();
    text.len() <= LONGEST && text.split('.').all(is_label)
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
    fn relative_paths_in_a_file_begin_at_the_file() {
        let file: FileSettings =
            toml::from_str("data = 'd'\nruntimes = '/r'").expect("the file reads");
        let file = file.beside(Path::new("/etc/hearth/up.toml"));
        let settings = Line::parse_from(["up"]).arguments.merge(file).expect("right");
        assert_eq!(settings.data.as_deref(), Some(Path::new("/etc/hearth/d")));
        assert_eq!(settings.runtimes.as_deref(), Some(Path::new("/r")));
        let settings = merged(&["--data", "./d"], "").expect("right");
        assert!(settings.data.is_some_and(|data| data.is_absolute()));
    }

    #[test]
    fn all_mistakes_come_together() {
        let file = "max-instances = 0\nlog-bytes = '1KB'\nlog-format = 'xml'\nproduction = true\n\
                    adapter = 'process'\npublic-url = 'example.com'\nmax-spares = 1000\n\
                    memory-reserve = '1GB'\nlisten = '8080'\ndomain = 'a b'\nload-timeout = '0s'\nlog-age = '999999years'";
        let mistakes = merged(&[], file).expect_err("wrong");
        assert_eq!(mistakes.len(), 11, "{mistakes:#?}");
    }

    #[test]
    fn an_address_may_be_a_name() {
        for line in [&["--listen", "localhost:9201"][..], &[]] {
            let settings = merged(line, "listen = 'localhost:9201'").expect("right");
            assert_eq!(settings.listen.to_string(), "127.0.0.1:9201", "version 4 first");
        }
        for text in ["9201", ":9201", "localhost", "localhost:x", "localhost:99999", ""] {
            let error = parse_listen(text).expect_err(text);
            assert!(error.contains("localhost:8080") || error.contains("no address"), "{error}");
        }
    }

    #[test]
    fn domains_and_urls_are_what_they_say() {
        for (text, expected) in [
            ("localhost", true),
            ("Functions.example-1.com", true),
            ("http://bad domain", false),
            ("bad domain", false),
            ("example.com:80", false),
            ("example.com/", false),
            (".example.com", false),
            ("a..b", false),
            ("", false),
        ] {
            assert_eq!(is_domain(text), expected, "{text:?}");
        }
        for (text, expected) in [
            ("https://functions.example.com", true),
            ("http://10.0.0.1:8080/base/", true),
            ("example.com", false),
            ("http://", false),
            ("http://bad domain", false),
            ("http://a\tb", false),
            ("ftp://example.com", false),
            ("https://user:secret@example.com", false),
            ("https://example.com/?a=b", false),
        ] {
            assert_eq!(is_public_url(text), expected, "{text:?}");
        }
    }

    #[test]
    fn ranges_are_opened_by_file_or_line() {
        let file = "allow-network = ['10.1.0.0/16', '192.168.7.7/32']";
        let opened = |settings: Settings| -> Vec<String> {
            settings.allowed_networks.iter().map(ToString::to_string).collect()
        };
        let settings = merged(&[], file).expect("right");
        assert_eq!(opened(settings), ["10.1.0.0/16", "192.168.7.7/32"]);
        let line = ["--allow-network", "10.2.0.0/16", "--allow-network", "10.3.0.0/16"];
        assert_eq!(opened(merged(&line, file).expect("right")), ["10.2.0.0/16", "10.3.0.0/16"]);
        let wrong = "allow-network = ['10.1.0.1/16', '::/0', '0.0.0.0/0']";
        assert_eq!(merged(&[], wrong).expect_err("wrong").len(), 3);
        let pointless = merged(&["--adapter", "process"], file).expect_err("wrong");
        assert!(pointless[0].contains("`process`"), "{pointless:?}");
        let refused = Line::try_parse_from(["up", "--allow-network", "fd00::/8"]);
        assert!(refused.err().expect("wrong").to_string().contains("IPv4 networks only"));
    }

    #[test]
    fn unknown_settings_are_refused() {
        let error = toml::from_str::<FileSettings>("max-instance = 7").expect_err("a mistake");
        assert!(error.to_string().contains("max-instance"), "{error}");
    }
}
