//! A running `hearth up`, and what it is asked through its API.

use std::{fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    bench::{
        language::Language,
        servers::{Answer, Endpoint, PATIENCE, Site, exchange},
    },
    http::Target,
};

/// How many functions are being deployed at once.
const DEPLOYERS: usize = 4;
const POLL: Duration = Duration::from_millis(20);
const BOUNDARY: &str = "a-line-that-no-tar-has";

/// What `hearth up` is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    pub(super) max_instances: Option<u32>,
    pub(super) max_spares: Option<u32>,
}

/// A running `hearth up`; dropping it stops it.
pub(super) struct Daemon {
    pub(super) endpoint: Endpoint,
    api: Api,
}

/// Its API.
struct Api {
    url: String,
    token: String,
}

/// Instances that were started, by where they came from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Started {
    pub(super) from_spare: f64,
    pub(super) from_nothing: f64,
}

impl Started {
    pub(super) fn total(self) -> f64 {
        self.from_spare + self.from_nothing
    }

    pub(super) fn since(self, before: Self) -> Self {
        Self {
            from_spare: self.from_spare - before.from_spare,
            from_nothing: self.from_nothing - before.from_nothing,
        }
    }
}

/// A function's source, packed.
pub(super) struct Source {
    runtime: &'static str,
    archive: Vec<u8>,
}

impl Source {
    /// The benchmark function of a language.
    pub(super) fn of(site: &Site, language: &Language) -> anyhow::Result<Self> {
        Self::packed(site, language.name, language.name, language.entrypoint)
    }

    /// The function that does harm to others.
    pub(super) fn of_neighbour(site: &Site) -> anyhow::Result<Self> {
        Self::packed(site, "python", "neighbour", "main.py")
    }

    fn packed(site: &Site, runtime: &'static str, name: &str, file: &str) -> anyhow::Result<Self> {
        let directory = site.root.join("bench/functions").join(name);
        let output = Command::new("tar")
            .args(["--create", "--file", "-", "--directory"])
            .arg(&directory)
            .arg(file)
            .output()
            .context("run tar")?;
        ensure!(output.status.success(), "tar could not pack `{}`", directory.display());
        Ok(Self { runtime, archive: output.stdout })
    }

    /// A form with settings and the source, as the API takes it.
    fn form(&self, settings: &Value) -> Vec<u8> {
        let request = json!({ "runtime": self.runtime, "settings": settings }).to_string();
        let mut form = Vec::new();
        let parts: [(_, _, &[u8]); 2] = [
            ("settings", "application/json", request.as_bytes()),
            ("source", "application/octet-stream", &self.archive),
        ];
        for (name, kind, bytes) in parts {
            let head = format!(
                "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; \
                 filename=\"{name}\"\r\ncontent-type: {kind}\r\n\r\n"
            );
            form.extend_from_slice(head.as_bytes());
            form.extend_from_slice(bytes);
            form.extend_from_slice(b"\r\n");
        }
        form.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
        form
    }
}

impl Daemon {
    /// Starts it on an empty data directory of its own.
    pub(super) fn start(site: &Site, name: &str, options: Options) -> anyhow::Result<Self> {
        Self::start_on(site, name, &site.stage.directory().join(format!("{name}.data")), options)
    }

    /// Starts it on a data directory, be it that of an earlier one.
    pub(super) fn start_on(
        site: &Site,
        name: &str,
        data: &Path,
        options: Options,
    ) -> anyhow::Result<Self> {
        ensure!(
            site.hearth.exists(),
            "there is no `{}`; build it with `cargo build --release`",
            site.hearth.display()
        );
        let mut command = Command::new(&site.hearth);
        command.args(["up", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        if let Some(adapter) = &site.adapter {
            command.args(["--adapter", adapter]);
        }
        for (flag, value) in
            [("--max-instances", options.max_instances), ("--max-spares", options.max_spares)]
        {
            if let Some(value) = value {
                command.args([flag, &value.to_string()]);
            }
        }
        let mut server = site.stage.start(name, command)?;
        let url = server.expect_line("listening on ", PATIENCE)?.trim().to_owned();
        let token = fs::read_to_string(data.join("token")).context("read the token")?;
        let api = Api { url: url.clone(), token: token.trim().to_owned() };
        Ok(Self { endpoint: Endpoint { server, url, logs: None }, api })
    }

    /// The bytes of a call of a function, for the load generator.
    pub(super) fn call(&self, function: &str) -> anyhow::Result<(Target, Vec<u8>)> {
        self.endpoint.request(&path(function), &[])
    }

    /// Where a function is called.
    pub(super) fn target(&self, function: &str) -> anyhow::Result<Target> {
        Target::parse(&format!("{}{}", self.endpoint.url, path(function)))
    }

    /// Deploys a function and waits until it serves.
    pub(super) fn deploy(
        &self,
        function: &str,
        source: &Source,
        settings: &Value,
    ) -> anyhow::Result<()> {
        self.api.deploy(function, &source.form(settings))
    }

    /// Deploys the same source under many names: once, and then a few at once.
    pub(super) fn deploy_all(
        &self,
        functions: &[String],
        source: &Source,
        settings: &Value,
    ) -> anyhow::Result<()> {
        let (api, form) = (&self.api, &source.form(settings));
        let Some((first, functions)) = functions.split_first() else { return Ok(()) };
        api.deploy(first, form)?;
        let share = functions.len().div_ceil(DEPLOYERS).max(1);
        thread::scope(|scope| {
            let deployers = functions.chunks(share).map(|share| {
                scope.spawn(move || share.iter().try_for_each(|name| api.deploy(name, form)))
            });
            let deployers: Vec<_> = deployers.collect();
            deployers
                .into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow!("a deployer panicked"))?)
        })
    }

    /// How many instances have been started so far, except spares that wait.
    pub(super) fn started(&self) -> anyhow::Result<Started> {
        let answer = self.api.ask("GET", "/metrics", "", &[])?;
        let text = answer.reply.body(&answer.received);
        Ok(started(&String::from_utf8_lossy(&text)))
    }

    /// Waits until no function has an instance.
    pub(super) fn until_idle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.api.status()?;
            if status["instances"] == status["spares"] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "instances do not end although nobody calls");
            thread::sleep(POLL);
        }
    }

    /// Waits until a spare waits, if there are to be any.
    pub(super) fn until_spare(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.api.status()?["spares"] == 0 {
            ensure!(Instant::now() < deadline, "there is no spare");
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Api {
    fn deploy(&self, function: &str, form: &[u8]) -> anyhow::Result<()> {
        let kind = format!("content-type: multipart/form-data; boundary={BOUNDARY}\r\n");
        let path = format!("/v1/functions/{function}/deployments");
        let answer = self.ask("POST", &path, &kind, form)?;
        let events = answer.reply.body(&answer.received);
        let events = String::from_utf8_lossy(&events);
        let last = events.lines().next_back().unwrap_or_default();
        let is_active =
            serde_json::from_str::<Value>(last).is_ok_and(|event| event["event"] == "active");
        ensure!(is_active, "deploying `{function}` ended with {} {last}", answer.reply.status);
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Value> {
        let answer = self.ask("GET", "/v1/status", "", &[])?;
        let body = answer.reply.body(&answer.received);
        ensure!(answer.reply.status == 200, "the status was answered {}", answer.reply.status);
        serde_json::from_slice(&body).context("the status is not JSON")
    }

    fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> anyhow::Result<Answer> {
        let target = Target::parse(&self.url)?;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\n{headers}\
             content-length: {}\r\n\r\n",
            target.address,
            self.token,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        exchange(&target, &request).with_context(|| format!("{method} {path}"))
    }
}

fn path(function: &str) -> String {
    format!("/fn/{function}/")
}

/// Names for so many functions.
pub(super) fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("f{index:05}")).collect()
}

fn started(metrics: &str) -> Started {
    let sum = |kind: &str| {
        let lines = metrics.lines().filter(|line| line.starts_with("hearth_cold_starts_total{"));
        let lines = lines.filter(|line| line.contains(&format!("kind=\"{kind}\"")));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    Started { from_spare: sum("spare"), from_nothing: sum("launch") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_summed_over_runtimes() {
        let metrics = "# TYPE hearth_cold_starts counter\n\
                       hearth_cold_starts_total{runtime=\"node-20\",kind=\"spare\"} 3\n\
                       hearth_cold_starts_total{runtime=\"python-3\",kind=\"spare\"} 4\n\
                       hearth_cold_starts_total{runtime=\"node-20\",kind=\"launch\"} 5\n\
                       hearth_calls_total{kind=\"spare\"} 9\n";
        let seen = started(metrics);
        assert_eq!(seen, Started { from_spare: 7.0, from_nothing: 5.0 });
        assert_eq!(seen.since(Started { from_spare: 1.0, from_nothing: 0.0 }).total(), 11.0);
    }

    #[test]
    fn a_form_has_both_parts_and_an_end() {
        let source = Source { runtime: "node", archive: b"TAR".to_vec() };
        let form = source.form(&json!({ "idle": "1s" }));
        let form = String::from_utf8(form).expect("text");
        assert!(form.contains("\r\n\r\n{\"runtime\":\"node\",\"settings\":{\"idle\":\"1s\"}}\r\n"));
        assert!(form.contains("name=\"source\""), "{form}");
        assert!(form.ends_with(&format!("\r\n\r\nTAR\r\n--{BOUNDARY}--\r\n")), "{form}");
    }
}
