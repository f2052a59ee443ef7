//! The HTTP servers that are measured: Hearth and its peers, all answering the same bytes.

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::time::Instant;

use super::{
    EXPECTED_BODY,
    language::Language,
    stage::{SEARCH_PATH, Server, Stage},
};
use crate::http::{self, Target};

/// How long a server may take until it answers; Python's peers import for a second or two.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const NGINX: &str = "/usr/sbin/nginx";

/// Where everything is that a benchmark starts.
#[derive(Debug)]
pub(crate) struct Site {
    /// The repository.
    pub(crate) root: PathBuf,
    /// The program that is measured.
    pub(crate) hearth: PathBuf,
    /// The adapter that it is told to use, if any.
    pub(crate) adapter: Option<String>,
    /// What has been started.
    pub(crate) stage: Arc<Stage>,
}

/// A server that has answered correctly.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// What runs; stopped when the endpoint is dropped.
    pub(crate) server: Server,
    /// `http://ADDRESS:PORT`.
    pub(crate) url: String,
    /// Its log files: millions, in the end, so they go with it.
    pub(super) logs: Option<PathBuf>,
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(logs) = &self.logs {
            // What is left goes with the stage.
            let _ = fs::remove_dir_all(logs);
        }
    }
}

impl Endpoint {
    /// The address and the bytes of a request for `path`.
    pub(crate) fn request(
        &self,
        path: &str,
        headers: &[String],
    ) -> anyhow::Result<(Target, Vec<u8>)> {
        let target = Target::parse(&format!("{}{path}", self.url))?;
        let request = target.request(headers);
        Ok((target, request))
    }

    /// Calls once over a new connection: the time from sending the request to the first byte.
    pub(crate) fn first_byte(&self) -> anyhow::Result<Duration> {
        Ok(ask(&Target::parse(&self.url)?, &[])?.first_byte)
    }

    /// Waits until the server gives the agreed answer.
    pub(super) fn when_ready(mut server: Server, url: String) -> anyhow::Result<Self> {
        let target = Target::parse(&url)?;
        server.wait_for(PATIENCE, || ask(&target, &[]))?;
        Ok(Self { server, url, logs: None })
    }
}

/// A reply with everything that was received, and when it began.
pub(super) struct Answer {
    /// From sending the request to the first byte.
    pub(super) first_byte: Duration,
    pub(super) received: Vec<u8>,
    pub(super) reply: http::Reply,
}

/// Asks once over a new connection and compares the reply with what all servers must say.
pub(super) fn ask(target: &Target, headers: &[String]) -> anyhow::Result<Answer> {
    let answer = exchange(target, &target.request(headers))?;
    let body = answer.reply.body(&answer.received);
    ensure!(
        answer.reply.status == 200 && body == EXPECTED_BODY.as_bytes(),
        "answered {} `{}` instead of 200 `{EXPECTED_BODY}`",
        answer.reply.status,
        String::from_utf8_lossy(&body)
    );
    Ok(answer)
}

/// Sends one request over a new connection and waits for the whole reply, whatever it says.
pub(super) fn exchange(target: &Target, request: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&target.address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    let start = Instant::now();
    stream.write_all(request)?;
    let mut count = stream.read(&mut buffer)?;
    let first_byte = start.elapsed();
    let reply = loop {
        received.extend_from_slice(&buffer[..count]);
        if let Some(reply) = http::find(&received, count == 0)? {
            break reply;
        }
        ensure!(count > 0, "the connection was closed before the reply");
        count = stream.read(&mut buffer)?;
    };
    Ok(Answer { first_byte, received, reply })
}

/// What `hearth serve` is asked for beyond a function.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HearthOptions {
    /// Write log files.
    pub(crate) logs: Option<LogPlace>,
    /// A new instance for every call.
    pub(crate) is_fresh: bool,
    /// How many unbound workers wait.
    pub(crate) spares: Option<u16>,
}

/// Where log files are written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LogPlace {
    Memory,
    Disk,
}

impl Site {
    /// Starts `hearth serve` on a language's benchmark function. The name is that of its files.
    pub(crate) fn hearth(
        &self,
        language: &Language,
        name: &str,
        options: HearthOptions,
    ) -> anyhow::Result<Endpoint> {
        ensure!(
            self.hearth.exists(),
            "there is no `{}`; build it with `cargo build --release`",
            self.hearth.display()
        );
        let mut command = Command::new(&self.hearth);
        command.arg("serve").arg(self.root.join("bench/functions").join(language.name));
        command.args(["--runtime", language.name, "--listen", "127.0.0.1:0"]);
        if let Some(adapter) = &self.adapter {
            command.args(["--adapter", adapter]);
        }
        let logs = options.logs.map(|place| {
            let parent = match place {
                LogPlace::Memory => self.stage.memory(),
                LogPlace::Disk => self.stage.directory(),
            };
            parent.join(format!("{name}.logs"))
        });
        if let Some(logs) = &logs {
            fs::create_dir_all(logs).with_context(|| format!("create `{}`", logs.display()))?;
            command.arg("--logs").arg(logs);
        }
        if options.is_fresh {
            command.arg("--fresh");
        }
        if let Some(spares) = options.spares {
            command.args(["--spares", &spares.to_string()]);
        }
        let mut server = self.stage.start(name, command)?;
        let url = server.expect_line("listening on ", PATIENCE)?;
        let mut endpoint = Endpoint::when_ready(server, url.trim().to_owned())?;
        endpoint.logs = logs;
        Ok(endpoint)
    }

    /// Starts the bare server of a language.
    pub(crate) fn bare(&self, language: &Language, name: &str) -> anyhow::Result<Endpoint> {
        match language.name {
            "node" => {
                let mut command = node();
                command.arg(self.peer("node-http/server.js"));
                let mut server = self.stage.start(name, command)?;
                let url = server.expect_line("listening on ", PATIENCE)?;
                Endpoint::when_ready(server, url)
            }
            "python" => {
                let port = free_port()?;
                let mut command = Command::new(self.python_packages()?.join("bin/gunicorn"));
                command.args(["--worker-class", "aiohttp.GunicornWebWorker", "--workers", "1"]);
                command.args(["--bind", &format!("127.0.0.1:{port}"), "app:application"]);
                command.arg("--chdir").arg(self.peer("aiohttp"));
                self.start_on(name, command, port)
            }
            other => bail!("no bare server is known for {other}"),
        }
    }

    /// Starts nginx, which passes every request on to another server over connections that stay open.
    pub(crate) fn nginx(&self, behind: &Endpoint, name: &str) -> anyhow::Result<Endpoint> {
        ensure!(Path::new(NGINX).exists(), "there is no `{NGINX}` (Debian: `nginx-light`)");
        let directory = self.stage.directory().join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("create `{}`", directory.display()))?;
        let port = free_port()?;
        let configuration = include_str!("../../../bench/peers/nginx/nginx.conf")
            .replace("@LISTEN@", &format!("127.0.0.1:{port}"))
            .replace("@BEHIND@", behind.url.trim_start_matches("http://"));
        fs::write(directory.join("nginx.conf"), configuration).context("write `nginx.conf`")?;
        let mut command = Command::new(NGINX);
        command.arg("-p").arg(&directory).args(["-c", "nginx.conf", "-e", "stderr"]);
        self.start_on(name, command, port)
    }

    /// Starts Google's functions framework for a language.
    pub(crate) fn functions_framework(
        &self,
        language: &Language,
        name: &str,
    ) -> anyhow::Result<Endpoint> {
        let port = free_port()?;
        let (mut command, source) = match language.name {
            "node" => {
                let packages = self.node_packages()?;
                let main = "node_modules/@google-cloud/functions-framework/build/src/main.js";
                let mut command = node();
                command.arg(packages.join(main));
                (command, self.peer("functions-framework-node"))
            }
            "python" => {
                let command = Command::new(self.python_packages()?.join("bin/functions-framework"));
                (command, self.peer("functions-framework-python/main.py"))
            }
            other => bail!("no functions framework is known for {other}"),
        };
        let port_text = port.to_string();
        command.args(["--target=hello", "--signature-type=http"]);
        command.arg(format!("--source={}", source.display())).arg(format!("--port={port_text}"));
        self.start_on(name, command, port)
    }

    fn start_on(&self, name: &str, command: Command, port: u16) -> anyhow::Result<Endpoint> {
        let server = self.stage.start(name, command)?;
        Endpoint::when_ready(server, format!("http://127.0.0.1:{port}"))
    }

    fn peer(&self, path: &str) -> PathBuf {
        self.root.join("bench/peers").join(path)
    }

    /// A virtual environment with the packages of `bench/peers/requirements.txt`.
    fn python_packages(&self) -> anyhow::Result<PathBuf> {
        install(&self.packages("python"), &self.peer("requirements.txt"), |directory, manifest| {
            run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(directory))?;
            let pip = directory.join("bin/pip");
            run(Command::new(pip).args(["install", "--quiet", "--requirement"]).arg(manifest))
        })
    }

    /// A folder with the packages of `bench/peers/package.json`.
    fn node_packages(&self) -> anyhow::Result<PathBuf> {
        install(&self.packages("node"), &self.peer("package.json"), |directory, manifest| {
            fs::copy(manifest, directory.join("package.json")).context("copy `package.json`")?;
            let quiet = ["install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"];
            run(Command::new("/usr/bin/npm").args(quiet).current_dir(directory))
        })
    }

    fn packages(&self, name: &str) -> PathBuf {
        self.root.join("target/bench-peers").join(name)
    }
}

/// Fills `directory` from a manifest, unless that has been done with the same manifest before.
fn install(
    directory: &Path,
    manifest: &Path,
    fill: impl FnOnce(&Path, &Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let wanted = fs::read(manifest).with_context(|| format!("read `{}`", manifest.display()))?;
    let installed = directory.join("installed-manifest");
    if !fs::read(&installed).is_ok_and(|text| text == wanted) {
        eprintln!("installing {}", manifest.display());
        fs::create_dir_all(directory)
            .with_context(|| format!("create `{}`", directory.display()))?;
        fill(directory, manifest)?;
        fs::write(&installed, wanted).context("remember what is installed")?;
    }
    Ok(directory.to_owned())
}

/// Runs an installer. Unlike what is measured it keeps the environment, which knows the proxies.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = command
        .env("PATH", format!("{SEARCH_PATH}:{path}"))
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        bail!("{} failed: {last}", command.get_program().display());
    }
    Ok(())
}

/// Node as servers run it: some packages do more work outside of production.
fn node() -> Command {
    let mut command = Command::new("/usr/bin/node");
    command.env("NODE_ENV", "production");
    command
}

/// A port that nobody listened on a moment ago, for servers that cannot choose one themselves.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("read the port")?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_installed_once_for_each_manifest() {
        let directory = std::env::temp_dir().join(format!("hearth-install-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("create");
        let manifest = directory.join("manifest");
        let mut runs = 0;
        for (text, expected) in [("a", 1), ("a", 1), ("b", 2)] {
            fs::write(&manifest, text).expect("write");
            install(&directory.join("packages"), &manifest, |_, _| {
                runs += 1;
                Ok(())
            })
            .expect("installed");
            assert_eq!(runs, expected, "after manifest `{text}`");
        }
        let failed = install(&directory.join("other"), &manifest, |_, _| bail!("no network"));
        assert!(failed.is_err());
        assert!(!directory.join("other/installed-manifest").exists(), "it is tried again");
        fs::remove_dir_all(directory).expect("remove");
    }
}
